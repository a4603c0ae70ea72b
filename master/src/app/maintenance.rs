//! Maintenance, said and taken back by administrators, and who may begin something new meanwhile.

use std::sync::Arc;

use docklet_master_db::DbError;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::maintenance::{self, Maintenance};
use docklet_types::name::UserName;
use docklet_types::time::Micros;
use docklet_types::view::{BeginMaintenance, MaintenanceView, Role};

use super::create::{FieldError, TRIES};
use super::vclusters::Vclusters;
use crate::auth::Actor;
use crate::reconcile::ClusterView;

/// Seconds after which to try again where nobody said when it is over, or where it should be by now.
const RETRY_SECONDS: u64 = 60;

/// Why maintenance neither began nor ended.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    #[error(transparent)]
    Field(FieldError),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
}

/// Maintenance is on, and the actor is no administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("maintenance is on")]
pub struct UnderMaintenance(pub Arc<Maintenance>);

impl UnderMaintenance {
    /// Seconds after which it is worth to try again.
    #[must_use]
    pub fn retry_in(&self, now: Micros) -> u64 {
        self.0.until.map_or(RETRY_SECONDS, |until| (until.millis_since(now) / 1000).max(RETRY_SECONDS))
    }
}

impl Vclusters {
    /// Whether the actor may begin something new now. Asks the database only while maintenance is on.
    pub(super) async fn may_begin(&self, actor: &UserName) -> Result<Result<(), UnderMaintenance>, DbError> {
        let Some(said) = self.view.maintenance() else { return Ok(Ok(())) };
        let is_admin = self.db.user_by_name(actor).await?.is_some_and(|user| user.role == Role::Admin);
        Ok(if is_admin { Ok(()) } else { Err(UnderMaintenance(said.value)) })
    }
}

/// See the module.
pub struct Maintenances {
    store: Arc<dyn Store>,
    key: String,
    view: Arc<ClusterView>,
}

impl Maintenances {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: &Keys, view: Arc<ClusterView>) -> Self {
        Self { store, key: keys.write(&Key::Maintenance), view }
    }

    /// How it is now, as far as the actor may know.
    #[must_use]
    pub fn show(&self, actor: &Actor) -> MaintenanceView {
        let Some(said) = self.view.maintenance() else {
            return MaintenanceView { on: false, message: None, since: None, until: None, by: None };
        };
        let said = said.value;
        MaintenanceView {
            on: true,
            message: Some(said.message.clone()).filter(|m| !m.is_empty()),
            since: Some(said.since.to_string()),
            until: said.until.map(|at| at.to_string()),
            by: actor.is_admin().then(|| said.actor.to_string()),
        }
    }

    /// Begins it, or says something else of it where it is on.
    ///
    /// # Errors
    /// See [`MaintenanceError`].
    pub async fn begin(&self, actor: &Actor, asked: &BeginMaintenance) -> Result<MaintenanceView, MaintenanceError> {
        let now = Micros::now();
        let (message, until) = parsed(asked, now).map_err(MaintenanceError::Field)?;
        for _ in 0..TRIES {
            let old = self.view.maintenance();
            let since = old.as_ref().map_or(now, |old| old.value.since);
            let new = Maintenance { message: message.clone(), until, actor: actor.name().clone(), since };
            let unchanged = Compare::as_read(&self.key, old.map(|old| old.revision));
            let txn = Txn::new().when(unchanged).put(&self.key, &new).map_err(MaintenanceError::Store)?;
            if self.write(txn).await? {
                tracing::info!(actor = %actor.name(), message = new.message, "maintenance is on");
                return Ok(self.show(actor));
            }
        }
        Err(MaintenanceError::Contended)
    }

    /// Ends it; nothing happens where it is not on.
    ///
    /// # Errors
    /// The store does not take it.
    pub async fn end(&self, actor: &Actor) -> Result<(), MaintenanceError> {
        self.write(Txn::new().delete(&self.key)).await?;
        tracing::info!(actor = %actor.name(), "maintenance is over");
        Ok(())
    }

    /// Whether it was written; where not, the picture is no older than the store was.
    async fn write(&self, txn: Txn) -> Result<bool, MaintenanceError> {
        if let Outcome::Committed { revision } = self.store.txn(txn).await.map_err(MaintenanceError::Store)? {
            self.view.reached(revision).await;
            return Ok(true);
        }
        let now = self.store.revisions(&self.key).await.map_err(MaintenanceError::Store)?.revision;
        self.view.caught_up(now).await;
        Ok(false)
    }
}

fn parsed(asked: &BeginMaintenance, now: Micros) -> Result<(String, Option<Micros>), FieldError> {
    let message = maintenance::message(asked.message.as_deref().unwrap_or_default());
    let message = message.map_err(|e| FieldError::new("message", e))?;
    let until = match asked.until.as_deref() {
        None => None,
        Some(text) => {
            let at = text.parse::<Micros>().map_err(|e| FieldError::new("until", e))?;
            // In whole seconds: it is a guess, and people read it.
            let at = Micros(at.0 - at.0.rem_euclid(1_000_000));
            if at <= now {
                return Err(FieldError::new("until", "until is a time to come"));
            }
            Some(at)
        }
    };
    Ok((message, until))
}
