//! Which masters are at work: each holds a key for as long as it lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use docklet_store::held::Held;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Store, StoreError};
use docklet_types::config::Config;
use docklet_types::master::MasterReport;
use docklet_types::name::HostName;
use docklet_types::time::Micros;
use docklet_types::view::MasterView;
use tokio::time::Instant;

use crate::reconcile::ClusterView;

/// A master that died is gone from the list after this.
const LEASE: Duration = Duration::from_secs(10);

/// The lease of an earlier run may be granted anew once, by a member of etcd that came to lead.
const FREE_WITHIN: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(500);

/// Why this master cannot show up.
#[derive(Debug, thiserror::Error)]
pub enum ShowUpError {
    #[error(
        "another master is called {name}, at {address}: each needs a name of its own (HOST_NAME in the configuration)"
    )]
    NameTaken { name: HostName, address: SocketAddr },
    #[error("cannot tell which masters are at work")]
    Store(#[source] StoreError),
}

/// See the module.
pub struct Masters {
    view: Arc<ClusterView>,
    here: MasterReport,
    /// How long a namesake may take to go.
    patience: Duration,
}

/// What this master says of itself. Its address is the one that hosts know where it serves on all.
fn describe(config: &Config) -> MasterReport {
    let ip = if config.proxy_ip.is_unspecified() { config.master_ip } else { config.proxy_ip };
    MasterReport {
        name: docklet_daemon::config::host_name(config.host_name.as_ref()),
        address: SocketAddr::new(ip, config.proxy_port),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Micros::now(),
    }
}

impl Masters {
    #[must_use]
    pub fn new(config: &Config, view: Arc<ClusterView>) -> Self {
        Self { view, here: describe(config), patience: FREE_WITHIN }
    }

    /// Says that this one is at work, until what is returned is dropped.
    ///
    /// # Errors
    /// Another one of this name is at work, elsewhere; or the store does not answer.
    pub async fn show_up(&self, store: Arc<dyn Store>, keys: &Keys) -> Result<Held, ShowUpError> {
        let key = keys.write(&Key::Master(self.here.name.clone()));
        let deadline = Instant::now() + self.patience;
        while let Some(other) = self.namesake(store.as_ref(), &key).await.map_err(ShowUpError::Store)? {
            if Instant::now() >= deadline {
                return Err(ShowUpError::NameTaken { name: other.name, address: other.address });
            }
            tokio::time::sleep(LOOK).await;
        }
        let value = serde_json::to_vec(&self.here)
            .map_err(|source| ShowUpError::Store(StoreError::Encode { key: key.clone(), source }))?;
        Ok(Held::start(store, key, value, LEASE))
    }

    /// One of this name at another address. At the same it is an earlier run of this one: two cannot have one port.
    async fn namesake(&self, store: &dyn Store, key: &str) -> Result<Option<MasterReport>, StoreError> {
        let found = store.get(key).await?;
        let other = found.and_then(|entry| serde_json::from_slice::<MasterReport>(&entry.value).ok());
        Ok(other.filter(|other| other.address != self.here.address))
    }

    /// All that are at work, by name.
    #[must_use]
    pub fn list(&self) -> Vec<MasterView> {
        self.view.masters().iter().map(|report| self.shown(report)).collect()
    }

    fn shown(&self, report: &MasterReport) -> MasterView {
        MasterView {
            name: report.name.to_string(),
            address: report.address.to_string(),
            version: report.version.clone(),
            started_at: report.started_at.to_string(),
            here: *report == self.here,
        }
    }
}

/// The names of masters at work other than `name`, as the store has them.
///
/// # Errors
/// The store does not answer.
pub async fn others(store: &dyn Store, keys: &Keys, name: &HostName) -> Result<Vec<HostName>, StoreError> {
    let listing = store.list(keys.root()).await?;
    let masters = listing.entries.iter().filter_map(|entry| match keys.read(&entry.key) {
        Some(Key::Master(master)) if master != *name => Some(master),
        _ => None,
    });
    Ok(masters.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use docklet_store::memory::MemoryStore;

    #[tokio::test]
    async fn two_at_work_are_not_called_the_same() {
        let (store, keys) = (Arc::new(MemoryStore::new()), Keys::new(&"test".parse().unwrap()));
        let view = ClusterView::start(store.clone(), keys.clone()).await.unwrap();
        let called_front = |port: u16, patience| {
            let config = Config::parse(&format!("HOST_NAME=front\nPROXY_PORT={port}\n"), []).unwrap();
            Masters { patience, ..Masters::new(&config, view.clone()) }
        };
        let (first, second) = (called_front(8000, Duration::ZERO), called_front(8001, Duration::ZERO));
        let here = first.show_up(store.clone(), &keys).await.unwrap();
        let key = keys.write(&Key::Master("front".parse().unwrap()));
        while store.get(&key).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
        let error = second.show_up(store.clone(), &keys).await.err().unwrap().to_string();
        assert!(error.contains("called front, at ") && error.contains(":8000"), "{error}");
        // Started again after it was killed: its own key is no other's.
        let again = first.show_up(store.clone(), &keys).await;
        assert!(again.is_ok());
        drop(again);
        // Moved to another port: what it left goes while it waits.
        let moved = called_front(8001, FREE_WITHIN);
        let (shown, ()) = tokio::join!(moved.show_up(store.clone(), &keys), here.release());
        assert!(shown.is_ok());
    }
}
