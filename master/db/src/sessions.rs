//! Sessions: who is signed in. The token itself is never stored, only its SHA-256.

use docklet_types::id::UserId;
use docklet_types::time::Micros;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::users::{User, user};
use crate::{Db, DbError, Doing};

/// How a session is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A browser's cookie.
    Portal,
    /// A bearer token.
    Api,
}

impl SessionKind {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Portal => "portal",
            Self::Api => "api",
        }
    }
}

/// A session to be stored.
#[derive(Debug, Clone)]
pub struct NewSession<'a> {
    /// SHA-256 of the token, in hexadecimal.
    pub hash: &'a str,
    pub user: UserId,
    pub kind: SessionKind,
    pub created_at: Micros,
    pub expires_at: Micros,
    pub user_agent: &'a str,
    pub address: &'a str,
}

/// A session as its user sees it in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub hash: String,
    pub kind: String,
    pub created_at: Micros,
    pub expires_at: Micros,
    pub last_used: Micros,
    pub user_agent: String,
    pub address: String,
}

fn session(row: &AnyRow) -> Result<SessionRow, sqlx::Error> {
    Ok(SessionRow {
        hash: row.try_get("hash")?,
        kind: row.try_get("kind")?,
        created_at: Micros(row.try_get("created_at")?),
        expires_at: Micros(row.try_get("expires_at")?),
        last_used: Micros(row.try_get("last_used")?),
        user_agent: row.try_get("user_agent")?,
        address: row.try_get("address")?,
    })
}

impl Db {
    /// # Errors
    /// The statement failed.
    pub async fn add_session(&self, new: &NewSession<'_>) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO sessions (hash, user_id, kind, created_at, expires_at, last_used, user_agent, address) \
             VALUES ($1, $2, $3, $4, $5, $4, $6, $7)",
        )
        .bind(new.hash)
        .bind(new.user.to_string())
        .bind(new.kind.as_str())
        .bind(new.created_at.0)
        .bind(new.expires_at.0)
        .bind(new.user_agent)
        .bind(new.address)
        .execute(&self.pool)
        .await
        .doing("store the session")?;
        Ok(())
    }

    /// The user of a session that has not ended and whose account is enabled, with its end.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn user_of_session(&self, hash: &str, now: Micros) -> Result<Option<(User, Micros)>, DbError> {
        sqlx::query(
            "SELECT users.id AS id, name, role, disabled, range_index, theme, users.created_at AS created_at, last_seen, expires_at \
             FROM sessions JOIN users ON users.id = sessions.user_id \
             WHERE sessions.hash = $1 AND expires_at > $2 AND disabled = 0",
        )
        .bind(hash)
        .bind(now.0)
        .fetch_optional(&self.pool)
        .await
        .and_then(|row| row.map(|row| Ok((user(&row)?, Micros(row.try_get("expires_at")?)))).transpose())
        .doing("look up the session")
    }

    /// Which of these sessions are still good: not ended, of an enabled account.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn live_sessions(&self, hashes: &[String], now: Micros) -> Result<Vec<String>, DbError> {
        // A bound on the statement's parameters that both databases accept.
        const CHUNK: usize = 500;
        let mut live = Vec::new();
        for chunk in hashes.chunks(CHUNK) {
            let places: Vec<String> = (2..chunk.len() + 2).map(|i| format!("${i}")).collect();
            let statement = format!(
                "SELECT hash FROM sessions JOIN users ON users.id = sessions.user_id \
                 WHERE expires_at > $1 AND disabled = 0 AND hash IN ({})",
                places.join(", ")
            );
            let mut query = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(now.0);
            for hash in chunk {
                query = query.bind(hash);
            }
            for row in query.fetch_all(&self.pool).await.doing("look up sessions")? {
                live.push(row.try_get("hash").doing("look up sessions")?);
            }
        }
        Ok(live)
    }

    /// # Errors
    /// The statement failed.
    pub async fn touch_session(&self, hash: &str, now: Micros) -> Result<(), DbError> {
        sqlx::query("UPDATE sessions SET last_used = $1 WHERE hash = $2")
            .bind(now.0)
            .bind(hash)
            .execute(&self.pool)
            .await
            .doing("note the session's use")?;
        Ok(())
    }

    /// Whether it was there.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn remove_session(&self, hash: &str) -> Result<bool, DbError> {
        let done = sqlx::query("DELETE FROM sessions WHERE hash = $1")
            .bind(hash)
            .execute(&self.pool)
            .await
            .doing("end the session")?;
        Ok(done.rows_affected() == 1)
    }

    /// Ends all sessions of a user but `keep`, and says which.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn remove_sessions_of(&self, user: UserId, keep: Option<&str>) -> Result<Vec<String>, DbError> {
        sqlx::query("DELETE FROM sessions WHERE user_id = $1 AND hash <> $2 RETURNING hash")
            .bind(user.to_string())
            .bind(keep.unwrap_or(""))
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(|row| row.try_get("hash")).collect())
            .doing("end the user's sessions")
    }

    /// A user's sessions, the one used last first.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn sessions_of(&self, user: UserId, now: Micros) -> Result<Vec<SessionRow>, DbError> {
        sqlx::query(
            "SELECT hash, kind, created_at, expires_at, last_used, user_agent, address FROM sessions \
             WHERE user_id = $1 AND expires_at > $2 ORDER BY last_used DESC",
        )
        .bind(user.to_string())
        .bind(now.0)
        .fetch_all(&self.pool)
        .await
        .and_then(|rows| rows.iter().map(session).collect())
        .doing("list the sessions")
    }
}
