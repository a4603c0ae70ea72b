//! Requests that carry an `Idempotency-Key` take effect once: a repetition within 24 h gets the first answer.
//!
//! All times here are the database's: a master whose clock is ahead must not take another's claim for abandoned.

use docklet_types::id::UserId;
use sqlx::Row;

use crate::{Db, DbError, Doing};

/// How long a key is remembered.
pub const KEPT_SECONDS: i64 = 24 * 3600;
/// A request whose master died before it answered leaves its key unfinished; after this long without a
/// [`Db::keep_claim`] another may take it.
pub const ABANDONED_SECONDS: i64 = 20;

/// What a key means for the request that brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// The first of its kind: go on, call [`Db::keep_claim`] meanwhile, then [`Db::finish_idempotent`] or
    /// [`Db::forget_idempotent`].
    Fresh,
    /// Answered before: give the same answer.
    Done { status: u16, body: String },
    /// The first one is still worked on.
    Busy,
    /// The key came with another request before.
    Mismatch,
}

impl Db {
    /// Claims `key` for this user. Two requests at once: one is [`Claim::Fresh`].
    ///
    /// # Errors
    /// A statement failed.
    pub async fn claim_idempotent(&self, user: UserId, key: &str, fingerprint: &str) -> Result<Claim, DbError> {
        let doing = "claim the Idempotency-Key";
        // One statement decides: it writes where there is no row, an expired one, or an abandoned one. A claim from the
        // future is from before the clock was put back: whoever still works on it would have kept it up since.
        let statement = format!(
            "INSERT INTO idempotency_keys (user_id, key, fingerprint, at) VALUES ($1, $2, $3, {now}) \
             ON CONFLICT (user_id, key) DO UPDATE SET fingerprint = excluded.fingerprint, status = NULL, body = NULL, at = excluded.at \
             WHERE idempotency_keys.at <= excluded.at - $4 \
             OR (idempotency_keys.status IS NULL AND abs(idempotency_keys.at - excluded.at) >= $5 \
             AND idempotency_keys.fingerprint = excluded.fingerprint)",
            now = self.clock
        );
        let claimed = sqlx::query(sqlx::AssertSqlSafe(statement))
            .bind(user.to_string())
            .bind(self.own_key(key))
            .bind(fingerprint)
            .bind(KEPT_SECONDS * 1_000_000)
            .bind(ABANDONED_SECONDS * 1_000_000)
            .execute(&self.pool)
            .await
            .doing(doing)?;
        if claimed.rows_affected() == 1 {
            return Ok(Claim::Fresh);
        }
        let row = sqlx::query("SELECT fingerprint, status, body FROM idempotency_keys WHERE user_id = $1 AND key = $2")
            .bind(user.to_string())
            .bind(self.own_key(key))
            .fetch_optional(&self.pool)
            .await
            .doing(doing)?;
        // Forgotten between the two statements: the first request failed, and the client may repeat.
        let Some(row) = row else { return Ok(Claim::Busy) };
        let first: String = row.try_get("fingerprint").doing(doing)?;
        if first != fingerprint {
            return Ok(Claim::Mismatch);
        }
        let status: Option<i64> = row.try_get("status").doing(doing)?;
        let body: Option<String> = row.try_get("body").doing(doing)?;
        Ok(match (status.and_then(|s| u16::try_from(s).ok()), body) {
            (Some(status), Some(body)) => Claim::Done { status, body },
            _ => Claim::Busy,
        })
    }

    /// Says that the request is still worked on.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn keep_claim(&self, user: UserId, key: &str) -> Result<(), DbError> {
        let set = format!(
            "UPDATE idempotency_keys SET at = {} WHERE user_id = $1 AND key = $2 AND status IS NULL",
            self.clock
        );
        sqlx::query(sqlx::AssertSqlSafe(set))
            .bind(user.to_string())
            .bind(self.own_key(key))
            .execute(&self.pool)
            .await
            .doing("keep the claim of an Idempotency-Key")?;
        Ok(())
    }

    /// Keeps the answer for repetitions.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn finish_idempotent(&self, user: UserId, key: &str, status: u16, body: &str) -> Result<(), DbError> {
        sqlx::query("UPDATE idempotency_keys SET status = $1, body = $2 WHERE user_id = $3 AND key = $4")
            .bind(i64::from(status))
            .bind(body)
            .bind(user.to_string())
            .bind(self.own_key(key))
            .execute(&self.pool)
            .await
            .doing("keep the answer of an Idempotency-Key")?;
        Ok(())
    }

    /// Gives the key back: the request had no effect and may be repeated.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn forget_idempotent(&self, user: UserId, key: &str) -> Result<(), DbError> {
        sqlx::query("DELETE FROM idempotency_keys WHERE user_id = $1 AND key = $2 AND status IS NULL")
            .bind(user.to_string())
            .bind(self.own_key(key))
            .execute(&self.pool)
            .await
            .doing("give an Idempotency-Key back")?;
        Ok(())
    }
}
