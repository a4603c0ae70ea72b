//! The history of changes: who asked for what, when it was done, and how it went.

use docklet_types::id::{OperationId, VclusterId};
use docklet_types::name::{UserName, VclusterName};
use docklet_types::report::Reason;
use docklet_types::time::Micros;
use docklet_types::view::{OperationView, StepView};
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::{Db, DbError, Doing, unreadable};

/// A change that has been asked for.
#[derive(Debug, Clone)]
pub struct NewOperation<'a> {
    pub id: OperationId,
    pub vcluster: VclusterId,
    pub owner: &'a UserName,
    pub name: &'a VclusterName,
    /// `create`, `start`, …
    pub action: &'a str,
    pub actor: &'a UserName,
    pub started_at: Micros,
}

/// How a change ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Running,
    Done,
    Failed,
    /// A later change took its place.
    Superseded,
}

impl Outcome {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Superseded => "superseded",
        }
    }
}

/// One row of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    pub id: OperationId,
    pub vcluster: VclusterId,
    pub owner: String,
    pub name: String,
    pub action: String,
    pub actor: String,
    pub started_at: Micros,
    pub ended_at: Option<Micros>,
    pub outcome: String,
    pub reason: Option<Reason>,
    pub steps: Vec<StepView>,
}

impl Operation {
    /// As the API shows it; `now` stands for the end of one that still runs.
    #[must_use]
    pub fn view(&self, now: Micros) -> OperationView {
        OperationView {
            id: self.id.to_string(),
            action: self.action.clone(),
            actor: self.actor.clone(),
            outcome: self.outcome.clone(),
            started_at: self.started_at.to_string(),
            ended_at: self.ended_at.map(|at| at.to_string()),
            millis: self.ended_at.unwrap_or(now).millis_since(self.started_at),
            steps: self.steps.clone(),
            reason: self.reason.clone(),
        }
    }
}

const COLUMNS: &str = "id, vcluster_id, owner, name, action, actor, started_at, ended_at, outcome, reason, steps";

/// Rows of this site; where the name of none is written, the one there was.
const OWN: &str = "site IN ('',";

fn operation(row: &AnyRow) -> Result<Operation, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let vcluster: String = row.try_get("vcluster_id")?;
    let reason: Option<String> = row.try_get("reason")?;
    let steps: String = row.try_get("steps")?;
    Ok(Operation {
        id: id.parse().map_err(|e| unreadable("id", e))?,
        vcluster: vcluster.parse().map_err(|e| unreadable("vcluster_id", e))?,
        owner: row.try_get("owner")?,
        name: row.try_get("name")?,
        action: row.try_get("action")?,
        actor: row.try_get("actor")?,
        started_at: Micros(row.try_get("started_at")?),
        ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(Micros),
        outcome: row.try_get("outcome")?,
        reason: reason.map(|text| serde_json::from_str(&text)).transpose().map_err(|e| unreadable("reason", e))?,
        steps: serde_json::from_str(&steps).map_err(|e| unreadable("steps", e))?,
    })
}

impl Db {
    /// # Errors
    /// The statement failed.
    pub async fn add_operation(&self, new: &NewOperation<'_>) -> Result<(), DbError> {
        sqlx::query(
            "INSERT INTO operations (id, vcluster_id, owner, name, action, actor, started_at, site, outcome, steps) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'running', '[]')",
        )
        .bind(new.id.to_string())
        .bind(new.vcluster.to_string())
        .bind(new.owner.as_str())
        .bind(new.name.as_str())
        .bind(new.action)
        .bind(new.actor.as_str())
        .bind(new.started_at.0)
        .bind(&*self.site)
        .execute(&self.pool)
        .await
        .doing("note the change")?;
        Ok(())
    }

    /// Takes back a change that did not come about.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn forget_operation(&self, id: OperationId) -> Result<(), DbError> {
        sqlx::query("DELETE FROM operations WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .doing("take back the note of a change")?;
        Ok(())
    }

    /// Ends a change that still runs; one that has ended stays as it is. Whether it did.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn end_operation(
        &self,
        id: OperationId,
        outcome: Outcome,
        reason: Option<&Reason>,
        steps: &[StepView],
        now: Micros,
    ) -> Result<bool, DbError> {
        // These types always have a JSON form: texts and numbers only.
        let steps = serde_json::to_string(steps).unwrap_or_else(|_| "[]".to_owned());
        let reason = reason.and_then(|r| serde_json::to_string(r).ok());
        let done = sqlx::query("UPDATE operations SET outcome = $1, reason = $2, steps = $3, ended_at = $4 WHERE id = $5 AND outcome = 'running'")
            .bind(outcome.as_str())
            .bind(reason)
            .bind(steps)
            .bind(now.0)
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .doing("note how the change ended")?;
        Ok(done.rows_affected() == 1)
    }

    /// # Errors
    /// The statement failed.
    pub async fn operation(&self, id: OperationId) -> Result<Option<Operation>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM operations WHERE id = $1")))
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .and_then(|row| row.as_ref().map(operation).transpose())
            .doing("read the change")
    }

    /// A vcluster's changes, the newest first.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn operations_of_vcluster(&self, vcluster: VclusterId, limit: i64) -> Result<Vec<Operation>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM operations WHERE vcluster_id = $1 AND {OWN} $2) \
             ORDER BY started_at DESC, id DESC LIMIT $3"
        )))
        .bind(vcluster.to_string())
        .bind(&*self.site)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .and_then(|rows| rows.iter().map(operation).collect())
        .doing("list the changes")
    }

    /// The newest changes of one owner, or of all.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn recent_operations(&self, owner: Option<&UserName>, limit: i64) -> Result<Vec<Operation>, DbError> {
        let query = match owner {
            Some(owner) => sqlx::query(sqlx::AssertSqlSafe(format!(
                "SELECT {COLUMNS} FROM operations WHERE owner = $1 AND {OWN} $2) ORDER BY started_at DESC, id DESC LIMIT $3"
            )))
            .bind(owner.as_str())
            .bind(&*self.site)
            .bind(limit),
            None => sqlx::query(sqlx::AssertSqlSafe(format!(
                "SELECT {COLUMNS} FROM operations WHERE {OWN} $1) ORDER BY started_at DESC, id DESC LIMIT $2"
            )))
            .bind(&*self.site)
            .bind(limit),
        };
        query
            .fetch_all(&self.pool)
            .await
            .and_then(|rows| rows.iter().map(operation).collect())
            .doing("list the changes")
    }

    /// Changes without an outcome yet, the oldest first.
    ///
    /// # Errors
    /// The statement failed.
    pub async fn running_operations(&self) -> Result<Vec<Operation>, DbError> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM operations WHERE outcome = 'running' AND {OWN} $1) ORDER BY started_at, id"
        )))
        .bind(&*self.site)
        .fetch_all(&self.pool)
        .await
        .and_then(|rows| rows.iter().map(operation).collect())
        .doing("list the running changes")
    }
}
