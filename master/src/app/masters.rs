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

use crate::reconcile::ClusterView;

/// A master that died is gone from the list after this.
const LEASE: Duration = Duration::from_secs(10);

/// See the module.
pub struct Masters {
    view: Arc<ClusterView>,
    here: MasterReport,
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
        Self { view, here: describe(config) }
    }

    /// Says that this one is at work, until what is returned is dropped.
    ///
    /// # Errors
    /// The description has no JSON form.
    pub fn show_up(&self, store: Arc<dyn Store>, keys: &Keys) -> Result<Held, StoreError> {
        let key = keys.write(&Key::Master(self.here.name.clone()));
        let value = serde_json::to_vec(&self.here).map_err(|source| StoreError::Encode { key: key.clone(), source })?;
        Ok(Held::start(store, key, value, LEASE))
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
