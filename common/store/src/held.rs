//! A key that says "I am here": held by a lease for as long as its holder lives and reaches the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Keeper, LeaseId, Pause, Result, Store, Txn, Write};

/// After a call that failed.
const PAUSE: Duration = Duration::from_millis(500);

/// Puts `key` under a lease of `ttl` and keeps it, through interruptions, until dropped. After a drop (or a crash) the
/// key goes when the lease runs out.
pub struct Held {
    store: Arc<dyn Store>,
    key: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Held {
    #[must_use]
    pub fn start(store: Arc<dyn Store>, key: String, value: Vec<u8>, ttl: Duration) -> Self {
        let task = tokio::spawn(hold(store.clone(), key.clone(), value, ttl));
        Self { store, key, task }
    }

    /// Lets go in good order: the key goes at once.
    pub async fn release(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        let write = Write::Delete { key: self.key.clone() };
        if let Err(error) = self.store.txn(Txn { compares: Vec::new(), writes: vec![write] }).await {
            tracing::debug!(key = self.key, %error, "the key goes when its lease runs out");
        }
    }
}

/// A lease, and what keeps it once that was asked for.
struct Lease {
    id: LeaseId,
    keeper: Option<Box<dyn Keeper>>,
}

async fn hold(store: Arc<dyn Store>, key: String, value: Vec<u8>, ttl: Duration) {
    let mut lease: Option<Lease> = None;
    let mut pause = Pause::from(PAUSE);
    loop {
        let began = Instant::now();
        let kept = match &mut lease {
            Some(lease) => keep(store.as_ref(), lease).await,
            None => Ok(false),
        };
        match kept {
            Ok(true) => {
                pause.reset();
                tokio::time::sleep(ttl / 3).await;
            }
            Ok(false) => match take(store.as_ref(), &key, &value, ttl).await {
                Ok(id) => lease = Some(Lease { id, keeper: None }),
                Err(error) => {
                    tracing::debug!(key, %error, "cannot take the lease; trying again");
                    tokio::time::sleep(pause.after(began.elapsed())).await;
                }
            },
            Err(error) => {
                tracing::debug!(key, %error, "cannot keep the lease; trying again");
                // What it has left is running out: the pause does not grow.
                tokio::time::sleep(Pause::from(PAUSE).after(Duration::ZERO)).await;
            }
        }
    }
}

async fn keep(store: &dyn Store, lease: &mut Lease) -> Result<bool> {
    let mut keeper = match lease.keeper.take() {
        Some(keeper) => keeper,
        None => store.keep(lease.id).await?,
    };
    let kept = keeper.beat().await?;
    lease.keeper = Some(keeper);
    Ok(kept)
}

async fn take(store: &dyn Store, key: &str, value: &[u8], ttl: Duration) -> Result<LeaseId> {
    let lease = store.grant(ttl).await?;
    let write = Write::Put { key: key.to_owned(), value: value.to_vec(), lease: Some(lease) };
    store.txn(Txn { compares: Vec::new(), writes: vec![write] }).await?;
    Ok(lease)
}
