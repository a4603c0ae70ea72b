//! Reports on their way to the store: the newest of each key, in batches, for as long as it takes.
//!
//! Whoever reports never waits: a key's older report that was not sent yet is simply replaced. While the store is away
//! everything stays here, and it is compared with the store again every minute in case the store lost something.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use docklet_daemon::fail;
use docklet_store::{Entry, Pause, Store, Txn, Write};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Writes in one transaction; half of etcd's limit.
const BATCH: usize = 64;
/// Reports of steps under way wait this long for company; results do not.
const GATHER: Duration = Duration::from_millis(60);

#[derive(Default)]
struct State {
    /// What the store should hold of ours.
    wanted: HashMap<String, Arc<[u8]>>,
    /// Not sent yet; `None` deletes.
    queue: BTreeMap<String, Option<Arc<[u8]>>>,
    urgent: bool,
    sending: bool,
    /// Counts what was reported and sent: a list of the store from before says nothing about now.
    version: u64,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    idle: Notify,
}

/// See the module. Dropping it ends the sending.
pub struct Reporter {
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Reporter {
    #[must_use]
    pub fn start(store: Arc<dyn Store>) -> Self {
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(send_for_ever(store, shared.clone()));
        Self { shared, task }
    }

    /// `urgent`: somebody waits for this one.
    pub fn put(&self, key: String, document: Vec<u8>, urgent: bool) {
        let document: Arc<[u8]> = document.into();
        let mut state = self.shared.state.lock();
        state.version += 1;
        state.wanted.insert(key.clone(), document.clone());
        state.queue.insert(key, Some(document));
        state.urgent |= urgent;
        drop(state);
        self.shared.wake.notify_one();
    }

    pub fn delete(&self, key: String) {
        let mut state = self.shared.state.lock();
        state.version += 1;
        state.wanted.remove(&key);
        state.queue.insert(key, None);
        state.urgent = true;
        drop(state);
        self.shared.wake.notify_one();
    }

    /// For a comparison with the store by another task.
    #[must_use]
    pub fn handle(&self) -> Comparison {
        Comparison { shared: self.shared.clone() }
    }

    /// Returns when everything was sent, or after `limit`.
    pub async fn flush(&self, limit: Duration) {
        let all_sent = async {
            loop {
                let idle = self.shared.idle.notified();
                {
                    let mut state = self.shared.state.lock();
                    if state.queue.is_empty() && !state.sending {
                        return;
                    }
                    state.urgent = true;
                }
                self.shared.wake.notify_one();
                idle.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_sent).await;
    }
}

/// See [`Reporter::handle`].
pub struct Comparison {
    shared: Arc<Shared>,
}

impl Comparison {
    /// To be asked before the store is.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.state.lock().version
    }

    /// Sends again what the store lost, and has it forget what nobody reports, unless anything was reported since
    /// `asked`. `entries` are all of `prefix`; other keys are not looked at.
    pub fn compare(&self, entries: &[Entry], prefix: &str, asked: u64) {
        let mut state = self.shared.state.lock();
        if state.version != asked || state.sending || !state.queue.is_empty() {
            return;
        }
        let stored: HashMap<&str, &[u8]> = entries.iter().map(|e| (e.key.as_str(), e.value.as_slice())).collect();
        let mut queue: BTreeMap<String, Option<Arc<[u8]>>> = state
            .wanted
            .iter()
            .filter(|(key, document)| key.starts_with(prefix) && stored.get(key.as_str()) != Some(&document.as_ref()))
            .map(|(key, document)| (key.clone(), Some(document.clone())))
            .collect();
        queue
            .extend(stored.keys().filter(|key| !state.wanted.contains_key(**key)).map(|key| ((*key).to_owned(), None)));
        if !queue.is_empty() {
            tracing::info!(
                reports = queue.len(),
                "the store and this host disagree on what was reported; reporting again"
            );
            state.queue = queue;
            state.version += 1;
            drop(state);
            self.shared.wake.notify_one();
        }
    }
}

async fn send_for_ever(store: Arc<dyn Store>, shared: Arc<Shared>) {
    let mut pause = Pause::from(Duration::from_millis(100));
    let mut away = false;
    loop {
        let urgent = {
            let state = shared.state.lock();
            if state.queue.is_empty() { None } else { Some(state.urgent) }
        };
        match urgent {
            None => {
                shared.idle.notify_waiters();
                shared.wake.notified().await;
                continue;
            }
            Some(false) => {
                let gathered = tokio::time::Instant::now() + GATHER;
                while tokio::time::timeout_at(gathered, shared.wake.notified()).await.is_ok() {
                    if shared.state.lock().urgent {
                        break;
                    }
                }
            }
            Some(true) => {}
        }
        let batch: Vec<(String, Option<Arc<[u8]>>)> = {
            let mut state = shared.state.lock();
            let mut batch = Vec::new();
            while batch.len() < BATCH
                && let Some(next) = state.queue.pop_first()
            {
                batch.push(next);
            }
            if state.queue.is_empty() {
                state.urgent = false;
            }
            state.sending = true;
            batch
        };
        let writes = batch
            .iter()
            .map(|(key, document)| match document {
                Some(document) => Write::Put { key: key.clone(), value: document.to_vec(), lease: None },
                None => Write::Delete { key: key.clone() },
            })
            .collect();
        let began = tokio::time::Instant::now();
        fail::before("report");
        let sent = store.txn(Txn { compares: Vec::new(), writes }).await;
        fail::after("report");
        let failed = sent.err();
        {
            let mut state = shared.state.lock();
            state.sending = false;
            state.version += 1;
            if failed.is_some() {
                for (key, document) in batch {
                    // What was reported meanwhile is newer.
                    state.queue.entry(key).or_insert(document);
                }
            }
        }
        if let Some(error) = failed {
            if !std::mem::replace(&mut away, true) {
                tracing::warn!(%error, "reports do not reach the store; they are kept");
            }
            tokio::time::sleep(pause.after(began.elapsed())).await;
        } else {
            pause.reset();
            if std::mem::take(&mut away) {
                tracing::info!("reports reach the store again");
            }
        }
    }
}
