//! What the master keeps in SQL: accounts, sessions, the history of changes, and what guards them.
//!
//! One code path serves SQLite (one master) and PostgreSQL (several): `$1` placeholders, TEXT and BIGINT only. What
//! clusters there are is not here but in the store (`docklet-store`). Each resource has its module with narrow
//! functions on [`Db`]; a transaction begins with a write, so that SQLite takes the write lock at once and waits for
//! it instead of failing on an upgrade.
//!
//! Masters' clocks may differ. What is over after seconds is told by the database's own clock ([`Db::now`]): claims,
//! tickets, lock-outs. Sessions last hours and go by the clock of the master that is asked.

pub mod app_tokens;
pub mod idempotency;
pub mod lockouts;
pub mod operations;
pub mod sessions;
pub mod sites;
pub mod users;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use docklet_types::time::Micros;
use sqlx::any::AnyPoolOptions;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AnyPool, Executor, Row, SqlSafeStr};

/// Connections held open at most.
const CONNECTIONS: u32 = 6;

/// A statement that failed. `doing` is what was attempted; the source says why.
#[derive(Debug, thiserror::Error)]
#[error("the database could not {doing}")]
pub struct DbError {
    pub doing: &'static str,
    #[source]
    pub source: sqlx::Error,
}

impl DbError {
    /// Whether a row with the same unique value is already there.
    fn is_unique_violation(&self) -> bool {
        self.source.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
    }
}

trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, DbError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, DbError> {
        self.map_err(|source| DbError { doing, source })
    }
}

/// A text in the database is not of the form this version writes.
fn unreadable(column: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source: Box::new(error) }
}

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the directory {path} for the database")]
    Directory { path: String, source: std::io::Error },
    #[error("cannot open the database {url}")]
    Connect { url: String, source: sqlx::Error },
    #[error("cannot bring the database {url} to this version's tables")]
    Migrate { url: String, source: sqlx::migrate::MigrateError },
}

/// The database's clock in microseconds: the one expression that the two do not share. That of PostgreSQL goes on within
/// a transaction.
const SQLITE_CLOCK: &str = "CAST((julianday('now') - 2440587.5) * 86400000000 AS BIGINT)";
const POSTGRES_CLOCK: &str = "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)";

/// A pool of connections.
#[derive(Debug, Clone)]
pub struct Db {
    pool: AnyPool,
    /// An expression: now, in microseconds.
    clock: String,
    /// Whose changes are meant; empty before [`Db::at_site`].
    site: Arc<str>,
}

fn migrator() -> Migrator {
    let migration = |number, name: &'static str, text: &'static str| {
        Migration::new(number, name.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(vec![
        migration(1, "first", include_str!("../migrations/0001_first.sql")),
        migration(2, "sites", include_str!("../migrations/0002_sites.sql")),
    ])
}

/// The address without its password, for messages.
fn without_secret(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_owned(),
    }
}

impl Db {
    /// Opens the SQLite file, making it when it is missing.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_file(path: &Path) -> Result<Self, OpenError> {
        if let Some(directory) = path.parent() {
            // Hashes of passwords and tokens lie there.
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| OpenError::Directory { path: directory.display().to_string(), source })?;
        }
        Self::open_url(&format!("sqlite://{}?mode=rwc", path.display())).await
    }

    /// Opens `sqlite:…` or `postgres://…` and brings its tables to this version.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_url(url: &str) -> Result<Self, OpenError> {
        static DRIVERS: Once = Once::new();
        DRIVERS.call_once(sqlx::any::install_default_drivers);
        let sqlite = url.starts_with("sqlite:");
        let shown = || without_secret(url);
        let pool = AnyPoolOptions::new()
            .max_connections(CONNECTIONS)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .after_connect(move |connection, _| {
                Box::pin(async move {
                    if sqlite {
                        // FULL: an acknowledged password change or session end outlives a power cut.
                        connection
                            .execute(
                                "PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 10000; PRAGMA synchronous = FULL; \
                                 PRAGMA foreign_keys = ON;",
                            )
                            .await?;
                    }
                    Ok(())
                })
            })
            .connect(url)
            .await
            .map_err(|source| OpenError::Connect { url: shown(), source })?;
        migrator().run(&pool).await.map_err(|source| OpenError::Migrate { url: shown(), source })?;
        let clock = if sqlite { SQLITE_CLOCK } else { POSTGRES_CLOCK };
        Ok(Self { pool, clock: clock.to_owned(), site: "".into() })
    }

    /// What the database's clock says, the same for all masters.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn now(&self) -> Result<Micros, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {} AS now", self.clock)))
            .fetch_one(&self.pool)
            .await
            .and_then(|row| row.try_get("now"))
            .map(Micros)
            .doing("tell the time")
    }

    /// The same database as it will be so many seconds later, for tests.
    #[must_use]
    pub fn later(&self, seconds: i64) -> Self {
        Self { clock: format!("({} + {})", self.clock, seconds * 1_000_000), ..self.clone() }
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), DbError> {
        sqlx::query("SELECT 1").execute(&self.pool).await.doing("answer")?;
        Ok(())
    }

    /// Drops what has expired: sessions, app tokens, idempotency keys, old lock-outs. Returns how many rows went.
    ///
    /// # Errors
    /// A statement failed.
    pub async fn purge(&self) -> Result<u64, DbError> {
        let now = self.now().await?;
        let day_ago = now.plus_seconds(-24 * 3600).0;
        let mut gone = 0;
        for (statement, before) in [
            ("DELETE FROM app_tokens WHERE expires_at <= $1", now.0),
            ("DELETE FROM sessions WHERE expires_at <= $1", now.0),
            ("DELETE FROM idempotency_keys WHERE at <= $1", day_ago),
            ("DELETE FROM lockouts WHERE changed_at <= $1 AND locked_until <= $1", day_ago),
        ] {
            gone += sqlx::query(statement)
                .bind(before)
                .execute(&self.pool)
                .await
                .doing("drop what expired")?
                .rows_affected();
        }
        Ok(gone)
    }

    /// Waits for running statements and closes every connection.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
