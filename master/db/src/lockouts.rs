//! Counts of failed sign-ins, and until when a key (an account at an address) is locked.

use docklet_types::time::Micros;
use sqlx::Row;

use crate::{Db, DbError, Doing};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lockout {
    pub fails: i64,
    pub locked_until: Micros,
}

impl Db {
    /// # Errors
    /// The statement failed.
    pub async fn lockout(&self, key: &str) -> Result<Lockout, DbError> {
        sqlx::query("SELECT fails, locked_until FROM lockouts WHERE key = $1")
            .bind(key)
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| {
                row.map_or(Ok(Lockout::default()), |row| {
                    Ok(Lockout { fails: row.try_get("fails")?, locked_until: Micros(row.try_get("locked_until")?) })
                })
            })
            .doing("look up failed sign-ins")
    }

    /// Counts one more failure and returns the count. Failures older than `forget_before` start again from one.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn count_failure(&self, key: &str, now: Micros, forget_before: Micros) -> Result<i64, DbError> {
        sqlx::query(
            "INSERT INTO lockouts (key, fails, locked_until, changed_at) VALUES ($1, 1, 0, $2) \
             ON CONFLICT (key) DO UPDATE SET fails = CASE WHEN lockouts.changed_at < $3 THEN 1 ELSE lockouts.fails + 1 END, \
             changed_at = excluded.changed_at RETURNING fails",
        )
        .bind(key)
        .bind(now.0)
        .bind(forget_before.0)
        .fetch_one(&self.pool)
        .await
        .and_then(|row| row.try_get("fails"))
        .doing("count a failed sign-in")
    }

    /// # Errors
    /// The statement failed.
    pub async fn lock_until(&self, key: &str, until: Micros) -> Result<(), DbError> {
        sqlx::query("UPDATE lockouts SET locked_until = $1 WHERE key = $2")
            .bind(until.0)
            .bind(key)
            .execute(&self.pool)
            .await
            .doing("lock an account")?;
        Ok(())
    }

    /// A good sign-in forgets the failures before it.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn clear_failures(&self, key: &str) -> Result<(), DbError> {
        sqlx::query("DELETE FROM lockouts WHERE key = $1")
            .bind(key)
            .execute(&self.pool)
            .await
            .doing("forget failed sign-ins")?;
        Ok(())
    }
}
