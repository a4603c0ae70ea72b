//! The shared truth: versioned documents under keys, with transactions, watches and leases.
//!
//! [`Store`] is the narrow waist: etcd in production ([`etcd`]), memory in tests ([`memory`]); one suite runs on both.
//! [`unreliable`] is one for tests, too, whose watches lie. [`mirror`] keeps a copy of a prefix in memory, and [`keys`] is
//! the one place that knows what a key looks like.

use async_trait::async_trait;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

pub mod etcd;
pub mod etcd_users;
pub mod held;
pub mod keys;
pub mod memory;
pub mod mirror;
pub mod patient;
pub mod unreliable;

/// A value with the revision of the store at which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub value: Vec<u8>,
    /// Grows with every write to the store; compare it to know that nobody wrote in between.
    pub revision: i64,
}

/// All entries under a prefix, as of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Entry>,
    pub revision: i64,
}

/// The same without the values: which key was last written when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revisions {
    pub keys: Vec<(String, i64)>,
    pub revision: i64,
}

/// What must still hold for a transaction to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    Absent { key: String },
    Unchanged { key: String, revision: i64 },
}

impl Compare {
    /// Nobody wrote the key since it was read: at that revision, or absent.
    #[must_use]
    pub fn as_read(key: impl Into<String>, revision: Option<i64>) -> Self {
        let key = key.into();
        match revision {
            Some(revision) => Self::Unchanged { key, revision },
            None => Self::Absent { key },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Put {
        key: String,
        value: Vec<u8>,
        lease: Option<LeaseId>,
    },
    /// Deleting what is not there is no error.
    Delete {
        key: String,
    },
}

/// All writes happen if all compares hold, else none. Of one key there is at most one write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub writes: Vec<Write>,
}

impl Txn {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Puts a document as JSON.
    ///
    /// # Errors
    /// Where the document has no JSON form (a map with keys that are not text).
    pub fn put<T: serde::Serialize>(mut self, key: impl Into<String>, document: &T) -> Result<Self, StoreError> {
        let key = key.into();
        let value = serde_json::to_vec(document).map_err(|source| StoreError::Encode { key: key.clone(), source })?;
        self.writes.push(Write::Put { key, value, lease: None });
        Ok(self)
    }

    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Compares and writes together. etcd refuses transactions of more than [`MAX_OPS`] of either.
    #[must_use]
    pub fn len(&self) -> usize {
        self.compares.len().max(self.writes.len())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

/// etcd's default limit of operations in one transaction (`--max-txn-ops`).
pub const MAX_OPS: usize = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Committed {
        revision: i64,
    },
    /// A compare did not hold; nothing was written.
    Conflict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseId(pub i64);

/// One change under a watched prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Put(Entry),
    Delete { key: String, revision: i64 },
}

impl Event {
    #[must_use]
    pub fn revision(&self) -> i64 {
        match self {
            Self::Put(entry) => entry.revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// Changes in order. All changes of one revision come in one batch.
#[async_trait]
pub trait Watch: Send {
    /// The next batch. An error ends the watch: list again and watch from there.
    async fn next(&mut self) -> Result<Vec<Event>, StoreError>;
}

/// Keeps one lease from running out. What it holds open for that goes with it.
#[async_trait]
pub trait Keeper: Send {
    /// Gives a sign of life. `false`: the lease is gone; grant a new one. An error ends the keeper: ask for another.
    async fn beat(&mut self) -> Result<bool, StoreError>;
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing was decided; the same call may work later. A transaction may have been committed.
    #[error("the store cannot be reached to {action}")]
    Unavailable {
        action: &'static str,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("the store refused to {action}")]
    Refused {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The changes asked for are no longer kept, or the watch ended: list again.
    #[error("the watch has ended")]
    WatchEnded,
    #[error("the document of {key} cannot be written as JSON")]
    Encode {
        key: String,
        #[source]
        source: serde_json::Error,
    },
}

impl StoreError {
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether it is certain that the call had no effect and will have none. Without a quorum most calls end so; where an
    /// answer was lost nobody knows.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        match self {
            Self::Unavailable { source, .. } => source.as_ref().is_some_and(|s| etcd::means_no_effect(&s.to_string())),
            Self::Refused { .. } | Self::WatchEnded | Self::Encode { .. } => true,
        }
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// How long to wait before a call that failed is made again: longer each time, and about as long as it took to fail, so that
/// thousands of hosts do not keep a store busy that is behind. No two wait alike.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    first: Duration,
    next: Duration,
}

impl Pause {
    const LONGEST: Duration = Duration::from_secs(2);

    #[must_use]
    pub const fn from(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// It went well: the next failure is the first again.
    pub const fn reset(&mut self) {
        self.next = self.first;
    }

    /// `took`: how long the call was waited for.
    pub fn after(&mut self, took: Duration) -> Duration {
        let pause = self.next.max(took);
        self.next = (self.next * 2).min(Self::LONGEST);
        // From half of that to the whole; the hasher's keys are random.
        let random = RandomState::new().hash_one(()) % 1000;
        pause.mul_f64(0.5 + random as f64 / 2000.0)
    }
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn get(&self, key: &str) -> Result<Option<Entry>>;
    async fn list(&self, prefix: &str) -> Result<Listing>;
    /// Like `list`, for who has the values already and asks whether they are the last ones.
    async fn revisions(&self, prefix: &str) -> Result<Revisions>;
    async fn txn(&self, txn: Txn) -> Result<Outcome>;
    /// Changes under `prefix` from `revision` (inclusive) on.
    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>>;
    /// Keys put with the lease go when it is not kept alive for `ttl` (whole seconds, at least 1).
    async fn grant(&self, ttl: Duration) -> Result<LeaseId>;
    /// What keeps the lease, by signs of life that its holder gives.
    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>>;
    /// Ends the lease and removes its keys at once.
    async fn revoke(&self, lease: LeaseId) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_follow_what_a_failure_took() {
        let (first, none) = (Duration::from_millis(100), Duration::ZERO);
        let mut pause = Pause::from(first);
        let within = |pause: Duration, about: Duration| pause >= about / 2 && pause <= about;
        for factor in [1, 2, 4, 8, 16, 20, 20] {
            assert!(within(pause.after(none), first * factor));
        }
        assert!(within(pause.after(Duration::from_secs(5)), Duration::from_secs(5)));
        pause.reset();
        assert!(within(pause.after(none), first));
    }
}
