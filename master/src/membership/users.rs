//! etcd's users follow from who joined.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use docklet_store::etcd::EtcdStore;
use docklet_store::keys::{Key, Keys};
use docklet_store::patient::PatientEtcd;
use docklet_store::{Store as _, StoreError};
use docklet_types::join::JoinedHost;
use docklet_types::name::HostName;

use crate::http::problem::chain;

/// How often all users are compared without a change.
const COMPARE: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(5);

/// See the module. Does nothing where etcd has no users of ours.
#[derive(Clone)]
pub struct Users {
    etcd: Option<Arc<PatientEtcd>>,
    keys: Keys,
}

impl Users {
    /// `None` where who may enter etcd is somebody else's business.
    #[must_use]
    pub fn new(etcd: Option<Arc<PatientEtcd>>, keys: Keys) -> Self {
        Self { etcd, keys }
    }

    /// Lets a worker into etcd.
    ///
    /// # Errors
    /// etcd cannot be reached or refuses.
    pub async fn admit(&self, host: &HostName, identity: &str) -> Result<(), StoreError> {
        match &self.etcd {
            Some(etcd) => etcd.store().await?.admit_worker(&self.keys, host, identity).await,
            None => Ok(()),
        }
    }

    /// Keeps etcd's users as the hosts are, until dropped.
    pub async fn follow(self) {
        let Some(etcd) = &self.etcd else { return };
        loop {
            let compared = match etcd.store().await {
                Ok(etcd) => self.compare(&etcd).await,
                Err(error) => Err(error),
            };
            match compared {
                Ok(revision) => self.wait_for_change(etcd, revision + 1).await,
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot compare etcd's users with the hosts that joined");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Returns the revision up to which hosts were seen.
    async fn compare(&self, etcd: &EtcdStore) -> Result<i64, StoreError> {
        // Users first: one that is there now has joined before the hosts are listed.
        let admitted = etcd.admitted_workers(&self.keys).await?;
        let listing = etcd.list(&self.keys.joined()).await?;
        let mut joined: HashMap<String, HostName> = HashMap::new();
        for entry in &listing.entries {
            if let (Some(Key::Joined(host)), Ok(document)) =
                (self.keys.read(&entry.key), serde_json::from_slice::<JoinedHost>(&entry.value))
            {
                joined.insert(document.identity, host);
            }
        }
        for identity in admitted {
            if joined.remove(&identity).is_none() {
                tracing::info!(identity, "no longer let into etcd");
                etcd.dismiss_worker(&identity).await?;
            }
        }
        // A master died between the two.
        for (identity, host) in joined {
            etcd.admit_worker(&self.keys, &host, &identity).await?;
        }
        Ok(listing.revision)
    }

    async fn wait_for_change(&self, etcd: &PatientEtcd, from: i64) {
        let changed = async {
            match etcd.watch(&self.keys.joined(), from).await {
                Ok(mut watch) => {
                    if watch.next().await.is_err() {
                        tokio::time::sleep(RETRY).await;
                    }
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        };
        let _ = tokio::time::timeout(COMPARE, changed).await;
    }
}
