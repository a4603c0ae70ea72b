//! A store for tests whose watches lie: they swallow batches, tell them twice, late, or end, at random. What is written and
//! read is as in the store beneath.

use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use crate::{Entry, Event, Keeper, LeaseId, Listing, Outcome, Result, Revisions, Store, StoreError, Txn, Watch};

/// How often watches lie, of a hundred batches each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lies {
    pub swallowed: u64,
    pub repeated: u64,
    pub ended: u64,
    /// Every batch comes later by up to this many milliseconds.
    pub late_millis: u64,
}

/// Numbers that look random: splitmix64, so that a seed repeats a run.
pub struct Dice(Mutex<u64>);

impl Dice {
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    /// A number below `n`.
    pub fn below(&self, n: u64) -> u64 {
        let mut state = self.0.lock();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

struct Shared {
    dice: Dice,
    lies: Mutex<Lies>,
    swallowed: AtomicU64,
    lists: AtomicU64,
    comparisons: AtomicU64,
    /// Sent to when all watches are to end.
    end: signal::Sender<()>,
}

/// See the module.
#[derive(Clone)]
pub struct Unreliable {
    inner: Arc<dyn Store>,
    shared: Arc<Shared>,
}

impl Unreliable {
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, seed: u64, lies: Lies) -> Self {
        let shared = Shared {
            dice: Dice::new(seed),
            lies: Mutex::new(lies),
            swallowed: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            comparisons: AtomicU64::new(0),
            end: signal::Sender::new(()),
        };
        Self { inner, shared: Arc::new(shared) }
    }

    /// From now on watches lie so.
    pub fn lie(&self, lies: Lies) {
        *self.shared.lies.lock() = lies;
    }

    /// Ends every watch that there is.
    pub fn end_watches(&self) {
        self.shared.end.send_replace(());
    }

    /// How many batches were swallowed so far.
    #[must_use]
    pub fn swallowed(&self) -> u64 {
        self.shared.swallowed.load(Ordering::Acquire)
    }

    /// How often everything was listed.
    #[must_use]
    pub fn lists(&self) -> u64 {
        self.shared.lists.load(Ordering::Acquire)
    }

    /// How often keys were compared by their revisions.
    #[must_use]
    pub fn comparisons(&self) -> u64 {
        self.shared.comparisons.load(Ordering::Acquire)
    }
}

struct UnreliableWatch {
    inner: Box<dyn Watch>,
    /// What it tells next, and when: whoever asks may stop waiting and ask again.
    due: VecDeque<(Instant, Vec<Event>)>,
    shared: Arc<Shared>,
    end: signal::Receiver<()>,
}

#[async_trait]
impl Watch for UnreliableWatch {
    async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            if let Some((at, _)) = self.due.front() {
                tokio::time::sleep_until(*at).await;
            }
            if let Some((_, events)) = self.due.pop_front() {
                return Ok(events);
            }
            let events = tokio::select! {
                events = self.inner.next() => events?,
                _ = self.end.changed() => return Err(StoreError::WatchEnded),
            };
            let lies = *self.shared.lies.lock();
            let drawn = self.shared.dice.below(100);
            if drawn < lies.swallowed {
                self.shared.swallowed.fetch_add(1, Ordering::AcqRel);
                continue;
            }
            let at = Instant::now() + Duration::from_millis(self.shared.dice.below(lies.late_millis + 1));
            if drawn < lies.swallowed + lies.repeated {
                self.due.push_back((at, events.clone()));
            } else if drawn < lies.swallowed + lies.repeated + lies.ended {
                return Err(StoreError::WatchEnded);
            }
            self.due.push_back((at, events));
        }
    }
}

#[async_trait]
impl Store for Unreliable {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing> {
        self.shared.lists.fetch_add(1, Ordering::AcqRel);
        self.inner.list(prefix).await
    }
    async fn revisions(&self, prefix: &str) -> Result<Revisions> {
        self.shared.comparisons.fetch_add(1, Ordering::AcqRel);
        self.inner.revisions(prefix).await
    }
    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        self.inner.txn(txn).await
    }
    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>> {
        let end = self.shared.end.subscribe();
        let inner = self.inner.watch(prefix, revision).await?;
        Ok(Box::new(UnreliableWatch { inner, due: VecDeque::new(), shared: self.shared.clone(), end }))
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        self.inner.grant(ttl).await
    }
    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>> {
        self.inner.keep(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.inner.revoke(lease).await
    }
}
