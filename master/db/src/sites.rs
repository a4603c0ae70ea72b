//! Sites: clusters that share this database, and with it accounts and sessions. Changes, idempotency keys and what users
//! left behind are each site's own.

use docklet_types::id::UserId;
use docklet_types::name::{ClusterName, UserName};
use sqlx::Row;

use crate::{Db, DbError, Doing};

impl Db {
    /// The database as this site uses it. What is there from before it had sites is the first one's.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn at_site(&self, site: &ClusterName) -> Result<Self, DbError> {
        let doing = "enter this site";
        let here = Self { site: site.as_str().into(), ..self.clone() };
        let mut tx = here.pool.begin().await.doing(doing)?;
        sqlx::query("INSERT INTO sites (name) VALUES ($1) ON CONFLICT (name) DO NOTHING")
            .bind(site.as_str())
            .execute(&mut *tx)
            .await
            .doing(doing)?;
        for statement in [
            "UPDATE operations SET site = $1 WHERE site = '' AND NOT EXISTS (SELECT 1 FROM sites WHERE name <> $1)",
            "INSERT INTO presences (user_id, site) SELECT id, CAST($1 AS TEXT) FROM users WHERE NOT EXISTS (SELECT 1 FROM sites WHERE name <> $1) \
             ON CONFLICT (user_id, site) DO NOTHING",
        ] {
            sqlx::query(statement).bind(site.as_str()).execute(&mut *tx).await.doing(doing)?;
        }
        tx.commit().await.doing(doing)?;
        Ok(here)
    }

    /// The names of all sites that ever used the database.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn sites(&self) -> Result<Vec<String>, DbError> {
        sqlx::query("SELECT name FROM sites ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(|row| row.try_get("name")).collect())
            .doing("list the sites")
    }

    /// Notes that the user is given something at this site.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn note_presence(&self, user: &UserName) -> Result<(), DbError> {
        if self.site.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO presences (user_id, site) SELECT id, CAST($1 AS TEXT) FROM users WHERE name = $2 \
             ON CONFLICT (user_id, site) DO NOTHING",
        )
        .bind(&*self.site)
        .bind(user.as_str())
        .execute(&self.pool)
        .await
        .doing("note where the user is")?;
        Ok(())
    }

    /// Nothing of the user is left at this site. The others where something may be.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn leave_site(&self, user: UserId) -> Result<Vec<String>, DbError> {
        let doing = "note that the user has left";
        sqlx::query("DELETE FROM presences WHERE user_id = $1 AND site = $2")
            .bind(user.to_string())
            .bind(&*self.site)
            .execute(&self.pool)
            .await
            .doing(doing)?;
        sqlx::query("SELECT site FROM presences WHERE user_id = $1 ORDER BY site")
            .bind(user.to_string())
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(|row| row.try_get("site")).collect())
            .doing(doing)
    }

    /// Forgets everything of this site but the accounts.
    ///
    /// # Errors
    /// A statement failed; nothing has changed.
    pub async fn forget_site(&self) -> Result<(), DbError> {
        let doing = "forget the site";
        let mut tx = self.pool.begin().await.doing(doing)?;
        for (statement, which) in [
            ("DELETE FROM operations WHERE site = $1", self.site.to_string()),
            ("DELETE FROM presences WHERE site = $1", self.site.to_string()),
            // Names of sites have neither of the letters that mean others here.
            ("DELETE FROM idempotency_keys WHERE key LIKE $1", format!("{} %", self.site)),
        ] {
            sqlx::query(statement).bind(which).execute(&mut *tx).await.doing(doing)?;
        }
        tx.commit().await.doing(doing)?;
        Ok(())
    }

    /// A key of this site's own.
    pub(crate) fn own_key(&self, key: &str) -> String {
        if self.site.is_empty() { key.to_owned() } else { format!("{} {key}", self.site) }
    }
}
