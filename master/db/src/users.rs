//! Accounts. A removed account's block of ids is never given out again; see [`Db::create_user`].

use docklet_types::id::{IdRange, UserId};
use docklet_types::name::UserName;
use docklet_types::time::Micros;
use docklet_types::view::Role;
use sqlx::Row;
use sqlx::any::AnyRow;
use uuid::Uuid;

use crate::{Db, DbError, Doing, unreadable};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub id: UserId,
    pub name: UserName,
    pub role: Role,
    pub disabled: bool,
    pub range: IdRange,
    pub theme: Theme,
    pub created_at: Micros,
    /// The last sign-in.
    pub last_seen: Option<Micros>,
}

/// How the portal looks for a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Theme {
    /// As the browser's system is.
    #[default]
    Auto,
    Light,
    Dark,
}

impl Theme {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Auto, Self::Light, Self::Dark].into_iter().find(|t| t.as_str() == text)
    }
}

#[must_use]
pub const fn role_text(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::User => "user",
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CreateUserError {
    #[error("there is already a user of that name")]
    Taken,
    #[error("all {} blocks of user ids are given out", IdRange::MAX_INDEX + 1)]
    NoIdsLeft,
    #[error(transparent)]
    Db(DbError),
}

#[derive(Debug, thiserror::Error)]
#[error("a value in the users table is not known to this version: {0}")]
struct Unknown(String);

const COLUMNS: &str = "id, name, role, disabled, range_index, theme, created_at, last_seen";

pub(crate) fn role(text: &str) -> Result<Role, sqlx::Error> {
    match text {
        "admin" => Ok(Role::Admin),
        "user" => Ok(Role::User),
        other => Err(unreadable("role", Unknown(other.to_owned()))),
    }
}

pub(crate) fn user(row: &AnyRow) -> Result<User, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let name: String = row.try_get("name")?;
    let role_text: String = row.try_get("role")?;
    let index: i64 = row.try_get("range_index")?;
    let theme: String = row.try_get("theme")?;
    let range = u32::try_from(index)
        .ok()
        .and_then(IdRange::new)
        .ok_or_else(|| unreadable("range_index", Unknown(index.to_string())))?;
    Ok(User {
        id: id.parse().map_err(|e| unreadable("id", e))?,
        name: name.parse().map_err(|e| unreadable("name", e))?,
        role: role(&role_text)?,
        disabled: row.try_get::<i64, _>("disabled")? != 0,
        range,
        theme: Theme::parse(&theme).unwrap_or_default(),
        created_at: Micros(row.try_get("created_at")?),
        last_seen: row.try_get::<Option<i64>, _>("last_seen")?.map(Micros),
    })
}

impl Db {
    /// Adds an account with a block of ids of its own. The counter and the row are one transaction, and the counter only
    /// grows, so no two accounts ever share a block.
    ///
    /// # Errors
    /// See [`CreateUserError`].
    pub async fn create_user(
        &self,
        name: &UserName,
        password_hash: &str,
        role: Role,
        now: Micros,
    ) -> Result<User, CreateUserError> {
        let doing = "add the user";
        let db = CreateUserError::Db;
        let mut tx = self.pool.begin().await.doing(doing).map_err(db)?;
        let index: i64 =
            sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'id_range' RETURNING value - 1 AS taken")
                .fetch_one(&mut *tx)
                .await
                .and_then(|row| row.try_get("taken"))
                .doing(doing)
                .map_err(db)?;
        let range = u32::try_from(index).ok().and_then(IdRange::new).ok_or(CreateUserError::NoIdsLeft)?;
        let id = UserId::from_uuid(Uuid::now_v7());
        sqlx::query(
            "INSERT INTO users (id, name, password_hash, role, disabled, range_index, theme, created_at) \
             VALUES ($1, $2, $3, $4, 0, $5, 'auto', $6)",
        )
        .bind(id.to_string())
        .bind(name.as_str())
        .bind(password_hash)
        .bind(role_text(role))
        .bind(index)
        .bind(now.0)
        .execute(&mut *tx)
        .await
        .doing(doing)
        .map_err(|e| if e.is_unique_violation() { CreateUserError::Taken } else { CreateUserError::Db(e) })?;
        tx.commit().await.doing(doing).map_err(db)?;
        Ok(User {
            id,
            name: name.clone(),
            role,
            disabled: false,
            range,
            theme: Theme::Auto,
            created_at: now,
            last_seen: None,
        })
    }

    /// # Errors
    /// The statement failed.
    pub async fn user_by_name(&self, name: &UserName) -> Result<Option<User>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM users WHERE name = $1")))
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| row.as_ref().map(user).transpose())
            .doing("read the user")
    }

    /// The account and its password's hash.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn user_with_hash(&self, name: &UserName) -> Result<Option<(User, String)>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS}, password_hash FROM users WHERE name = $1")))
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| row.map(|row| Ok((user(&row)?, row.try_get("password_hash")?))).transpose())
            .doing("read the user")
    }

    /// All accounts by name.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn users(&self) -> Result<Vec<User>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM users ORDER BY name")))
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(user).collect())
            .doing("list the users")
    }

    /// Whether the account was there.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn set_password(&self, id: UserId, password_hash: &str) -> Result<bool, DbError> {
        let done = sqlx::query("UPDATE users SET password_hash = $1 WHERE id = $2")
            .bind(password_hash)
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .doing("change the password")?;
        Ok(done.rows_affected() == 1)
    }

    /// # Errors
    /// The statement failed.
    pub async fn set_theme(&self, id: UserId, theme: Theme) -> Result<(), DbError> {
        sqlx::query("UPDATE users SET theme = $1 WHERE id = $2")
            .bind(theme.as_str())
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .doing("change the theme")?;
        Ok(())
    }

    /// Changes role or state, unless that would leave no enabled administrator: then nothing changes and it is `false`.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn set_role_and_state(&self, id: UserId, role: Role, disabled: bool) -> Result<bool, DbError> {
        let doing = "change the user";
        let keeps_admin = role == Role::Admin && !disabled;
        let mut tx = self.pool.begin().await.doing(doing)?;
        if !keeps_admin {
            // One after another, on PostgreSQL too: of two administrators who end each other, each would still see the other.
            sqlx::query(
                "INSERT INTO counters (name, value) VALUES ('admin_changes', 1) \
                 ON CONFLICT (name) DO UPDATE SET value = counters.value + 1",
            )
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        }
        let done = sqlx::query(
            "UPDATE users SET role = $1, disabled = $2 WHERE id = $3 AND ($4 = 1 OR role <> 'admin' OR disabled = 1 OR EXISTS \
             (SELECT 1 FROM users other WHERE other.id <> $3 AND other.role = 'admin' AND other.disabled = 0))",
        )
        .bind(role_text(role))
        .bind(i64::from(disabled))
        .bind(id.to_string())
        .bind(i64::from(keeps_admin))
        .execute(&mut *tx)
        .await
        .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(done.rows_affected() == 1)
    }

    /// # Errors
    /// The statement failed.
    pub async fn touch_user(&self, id: UserId, now: Micros) -> Result<(), DbError> {
        sqlx::query("UPDATE users SET last_seen = $1 WHERE id = $2")
            .bind(now.0)
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .doing("note the sign-in")?;
        Ok(())
    }

    /// Removes the account, its sessions and its history. A later account of the same name sees none of it.
    ///
    /// # Errors
    /// A statement failed; nothing has changed.
    pub async fn remove_user(&self, id: UserId, name: &UserName) -> Result<bool, DbError> {
        let doing = "remove the user";
        let mut tx = self.pool.begin().await.doing(doing)?;
        let done =
            sqlx::query("DELETE FROM users WHERE id = $1").bind(id.to_string()).execute(&mut *tx).await.doing(doing)?;
        sqlx::query("DELETE FROM operations WHERE owner = $1")
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        tx.commit().await.doing(doing)?;
        Ok(done.rows_affected() == 1)
    }
}
