//! A store in memory for tests: same meaning as etcd, plus a switch that makes it unreachable.

use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch as signal;

use crate::etcd::NO_LEADER;
use crate::{
    Compare, Entry, Event, Keeper, LeaseId, Listing, Outcome, Result, Revisions, Store, StoreError, Txn, Watch, Write,
};

#[derive(Default)]
struct State {
    entries: BTreeMap<String, (Entry, Option<LeaseId>)>,
    /// Every change so far, by revision.
    log: Vec<Vec<Event>>,
    /// Changes before this index were forgotten.
    compacted: usize,
    leases: BTreeMap<i64, (Duration, Instant)>,
    next_lease: i64,
    down: bool,
    down_after_commit: bool,
}

impl State {
    fn revision(&self) -> i64 {
        // etcd starts at 1.
        i64::try_from(self.log.len()).unwrap_or(i64::MAX - 1) + 1
    }

    fn write(&mut self, writes: Vec<Write>) {
        let revision = self.revision() + 1;
        let mut events = Vec::new();
        for write in writes {
            match write {
                Write::Put { key, value, lease } => {
                    let entry = Entry { key: key.clone(), value, revision };
                    self.entries.insert(key, (entry.clone(), lease));
                    events.push(Event::Put(entry));
                }
                Write::Delete { key } => {
                    if self.entries.remove(&key).is_some() {
                        events.push(Event::Delete { key, revision });
                    }
                }
            }
        }
        if !events.is_empty() {
            self.log.push(events);
        }
    }

    fn expire(&mut self, now: Instant) {
        let dead: Vec<i64> = self.leases.iter().filter(|(_, (_, until))| *until <= now).map(|(id, _)| *id).collect();
        for id in dead {
            self.drop_lease(LeaseId(id));
        }
    }

    fn drop_lease(&mut self, lease: LeaseId) {
        self.leases.remove(&lease.0);
        let keys = self
            .entries
            .iter()
            .filter(|(_, (_, l))| *l == Some(lease))
            .map(|(k, _)| Write::Delete { key: k.clone() })
            .collect();
        self.write(keys);
    }
}

/// See the module.
#[derive(Clone)]
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    changed: signal::Sender<()>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self { state: Arc::default(), changed: signal::Sender::new(()) }
    }
}

impl MemoryStore {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// While down every call fails as if there were no quorum, and watches end.
    pub fn set_down(&self, down: bool) {
        self.state.lock().down = down;
        self.changed.send_replace(());
    }

    /// The next transaction is committed, but nobody hears of it: the store is down from then on.
    pub fn go_down_after_commit(&self) {
        self.state.lock().down_after_commit = true;
    }

    /// Forgets past changes, as etcd's compaction does: watches from before now end.
    pub fn compact(&self) {
        let mut state = self.state.lock();
        state.compacted = state.log.len();
        drop(state);
        self.changed.send_replace(());
    }

    fn with<T>(&self, action: &'static str, f: impl FnOnce(&mut State) -> T) -> Result<T> {
        let mut state = self.state.lock();
        if state.down {
            return Err(StoreError::Unavailable { action, source: Some(NO_LEADER.into()) });
        }
        state.expire(Instant::now());
        let out = f(&mut state);
        drop(state);
        self.changed.send_replace(());
        Ok(out)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.with("read a key", |s| s.entries.get(key).map(|(e, _)| e.clone()))
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        self.with("list keys", |s| Listing {
            entries: s
                .entries
                .range(prefix.to_owned()..)
                .take_while(|(k, _)| k.starts_with(prefix))
                .map(|(_, (e, _))| e.clone())
                .collect(),
            revision: s.revision(),
        })
    }

    async fn revisions(&self, prefix: &str) -> Result<Revisions> {
        let Listing { entries, revision } = self.list(prefix).await?;
        Ok(Revisions { keys: entries.into_iter().map(|e| (e.key, e.revision)).collect(), revision })
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        self.with("commit a transaction", |s| {
            let holds = txn.compares.iter().all(|compare| match compare {
                Compare::Absent { key } => !s.entries.contains_key(key),
                Compare::Unchanged { key, revision } => {
                    s.entries.get(key).is_some_and(|(e, _)| e.revision == *revision)
                }
            });
            if !holds {
                return Ok(Outcome::Conflict);
            }
            s.write(txn.writes);
            s.down = std::mem::take(&mut s.down_after_commit);
            if s.down {
                return Err(StoreError::Unavailable { action: "commit a transaction", source: None });
            }
            Ok(Outcome::Committed { revision: s.revision() })
        })?
    }

    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>> {
        let index = usize::try_from(revision - 2).unwrap_or(0);
        self.with("watch keys", |_| ())?;
        Ok(Box::new(MemoryWatch {
            store: self.clone(),
            changed: self.changed.subscribe(),
            prefix: prefix.to_owned(),
            index,
        }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.with("grant a lease", |s| {
            s.next_lease += 1;
            s.leases.insert(s.next_lease, (ttl, Instant::now() + ttl));
            LeaseId(s.next_lease)
        })
    }

    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>> {
        Ok(Box::new(MemoryKeeper { store: self.clone(), lease }))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.with("revoke a lease", |s| s.drop_lease(lease))
    }
}

struct MemoryKeeper {
    store: MemoryStore,
    lease: LeaseId,
}

#[async_trait]
impl Keeper for MemoryKeeper {
    async fn beat(&mut self) -> Result<bool> {
        self.store.with("keep a lease", |s| match s.leases.get_mut(&self.lease.0) {
            Some((ttl, until)) => {
                *until = Instant::now() + *ttl;
                true
            }
            None => false,
        })
    }
}

struct MemoryWatch {
    store: MemoryStore,
    changed: signal::Receiver<()>,
    prefix: String,
    /// The next entry of the log to look at.
    index: usize,
}

#[async_trait]
impl Watch for MemoryWatch {
    async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            self.changed.borrow_and_update();
            {
                let mut state = self.store.state.lock();
                state.expire(Instant::now());
                if state.down || self.index < state.compacted {
                    return Err(StoreError::WatchEnded);
                }
                while self.index < state.log.len() {
                    let events: Vec<Event> = state.log[self.index]
                        .iter()
                        .filter(|e| match e {
                            Event::Put(entry) => entry.key.starts_with(&self.prefix),
                            Event::Delete { key, .. } => key.starts_with(&self.prefix),
                        })
                        .cloned()
                        .collect();
                    self.index += 1;
                    if !events.is_empty() {
                        return Ok(events);
                    }
                }
            }
            // Leases run out without anybody calling: look once a second.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.changed.changed()).await;
        }
    }
}
