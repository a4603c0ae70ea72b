//! What signs a browser in at an app's own origin: a one-time ticket, exchanged for a cookie bound to that host name.
//! Both hang on a portal session and go with it. Only hashes are stored.

use docklet_types::time::Micros;
use sqlx::Row;

use crate::users::{User, user};
use crate::{Db, DbError, Doing};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppTokenKind {
    /// Good once, for seconds.
    Ticket,
    Cookie,
}

impl AppTokenKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Cookie => "cookie",
        }
    }
}

impl Db {
    /// # Errors
    /// The statement failed; also when the session has ended meanwhile.
    pub async fn add_app_token(
        &self,
        kind: AppTokenKind,
        hash: &str,
        session_hash: &str,
        host: &str,
        expires_at: Micros,
    ) -> Result<(), DbError> {
        sqlx::query("INSERT INTO app_tokens (hash, session_hash, kind, host, expires_at) VALUES ($1, $2, $3, $4, $5)")
            .bind(hash)
            .bind(session_hash)
            .bind(kind.as_str())
            .bind(host)
            .bind(expires_at.0)
            .execute(&self.pool)
            .await
            .doing("store the app's sign-in")?;
        Ok(())
    }

    /// Uses up a ticket for `host` and gives its session's hash. Two at once: one gets it.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn take_app_ticket(&self, hash: &str, host: &str, now: Micros) -> Result<Option<String>, DbError> {
        sqlx::query("DELETE FROM app_tokens WHERE hash = $1 AND kind = 'ticket' AND host = $2 AND expires_at > $3 RETURNING session_hash")
            .bind(hash)
            .bind(host)
            .bind(now.0)
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| row.map(|row| row.try_get("session_hash")).transpose())
            .doing("take the app's ticket")
    }

    /// Who the cookie of an app's origin belongs to, while the portal session behind it lives: user, session's hash, end.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn user_of_app_cookie(
        &self,
        hash: &str,
        host: &str,
        now: Micros,
    ) -> Result<Option<(User, String, Micros)>, DbError> {
        sqlx::query(
            "SELECT users.id AS id, name, role, disabled, range_index, theme, users.created_at AS created_at, last_seen, \
             session_hash, app_tokens.expires_at AS ends \
             FROM app_tokens JOIN sessions ON sessions.hash = app_tokens.session_hash JOIN users ON users.id = sessions.user_id \
             WHERE app_tokens.hash = $1 AND app_tokens.kind = 'cookie' AND host = $2 \
             AND app_tokens.expires_at > $3 AND sessions.expires_at > $3 AND disabled = 0",
        )
        .bind(hash)
        .bind(host)
        .bind(now.0)
        .fetch_optional(&self.pool)
        .await
        .and_then(|row| row.map(|row| Ok((user(&row)?, row.try_get("session_hash")?, Micros(row.try_get("ends")?)))).transpose())
        .doing("look up the app's sign-in")
    }
}
