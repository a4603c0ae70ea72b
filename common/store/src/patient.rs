//! etcd where the certificates that reach it may not have been made yet, or are made anew while the program runs.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use docklet_types::paths::IdentityFiles;
use parking_lot::Mutex;

use crate::etcd::{EtcdAddress, EtcdStore};
use crate::{Entry, Keeper, LeaseId, Listing, Outcome, Result, Revisions, Store, StoreError, Txn, Watch};

/// Connects when first used, and anew when the certificates were replaced. Until then every call finds it unavailable.
pub struct PatientEtcd {
    members: Vec<String>,
    identity: IdentityFiles,
    current: Mutex<Option<Connection>>,
}

struct Connection {
    store: Arc<EtcdStore>,
    made_with: Certificates,
}

/// When the files were written; `None` where there are none.
type Certificates = Option<[Option<SystemTime>; 3]>;

impl PatientEtcd {
    /// The files of `identity` need not be there yet.
    #[must_use]
    pub fn new(members: Vec<String>, identity: IdentityFiles) -> Self {
        Self { members, identity, current: Mutex::new(None) }
    }

    fn certificates(&self) -> Certificates {
        let written = |file: &Path| file.metadata().and_then(|m| m.modified()).ok();
        let authority = written(&self.identity.authority)?;
        Some([Some(authority), written(&self.identity.certificate), written(&self.identity.key)])
    }

    /// The store as it is reached now.
    ///
    /// # Errors
    /// A certificate cannot be read.
    pub async fn store(&self) -> Result<Arc<EtcdStore>> {
        let certificates = self.certificates();
        if let Some(connection) = self.current.lock().as_ref()
            && connection.made_with == certificates
        {
            return Ok(connection.store.clone());
        }
        let address = EtcdAddress::new(&self.members, self.identity.clone());
        let connected = EtcdStore::connect(&address).await;
        let store =
            Arc::new(connected.map_err(|e| StoreError::Unavailable { action: "connect", source: Some(Box::new(e)) })?);
        *self.current.lock() = Some(Connection { store: store.clone(), made_with: certificates });
        Ok(store)
    }
}

#[async_trait]
impl Store for PatientEtcd {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.store().await?.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing> {
        self.store().await?.list(prefix).await
    }
    async fn revisions(&self, prefix: &str) -> Result<Revisions> {
        self.store().await?.revisions(prefix).await
    }
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        self.store().await?.txn(txn).await
    }
    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>> {
        self.store().await?.watch(prefix, revision).await
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.store().await?.grant(ttl).await
    }
    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>> {
        self.store().await?.keep(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.store().await?.revoke(lease).await
    }
}
