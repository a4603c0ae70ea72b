//! A copy of a prefix in memory, kept by one list and one watch.
//!
//! The copy is folded into a [`View`] of the caller's choice, so that a document is decoded once per change and not
//! once per read. After an interruption everything is listed again: a view must not care how often it hears a thing.
//! From time to time the keys and their revisions are compared without one, too, in case a watch lost something: what it
//! has not told a while later it never will, and everything is listed again. The larger the prefix, the seldomer that is.

use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use crate::{Event, Pause, Result, Revisions, Store, StoreError, Watch};

/// A change that a watch lost is noticed after this time, all the same: most of it passes before the keys are compared,
/// the rest is for what a watch still has to tell then.
const RELIST: Duration = Duration::from_secs(60);
/// Of the time goes to that: a list that took a second is followed by 200 without.
const RELIST_SHARE: u32 = 200;

/// What the entries are folded into.
pub trait View: Send + Sync + 'static {
    /// The key's value is now this; `None`: it is gone.
    fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: i64);
    /// Every key that the view holds before it is told of any: what of these is not in the store is gone.
    fn keys(&self) -> Vec<String>;
    /// Whether what it was told shows that a watch lost something: then everything is listed again at once.
    fn lacks(&self) -> bool {
        false
    }
    /// It has been told of everything.
    fn listed(&mut self) {}
}

/// See the module. Dropping it ends the copying.
pub struct Mirror<V> {
    shared: Arc<Shared<V>>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared<V> {
    view: RwLock<V>,
    revision: signal::Sender<i64>,
    live: AtomicBool,
}

impl<V> Drop for Mirror<V> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<V: View> Mirror<V> {
    /// Lists once, then follows in the background until dropped.
    ///
    /// # Errors
    /// Where the first list fails. Later failures are retried.
    pub async fn start(store: Arc<dyn Store>, prefix: String, view: V) -> Result<Self> {
        let mirror = Self::start_cold(store.clone(), prefix, view);
        mirror.wait_live().await;
        Ok(mirror)
    }

    /// Begins with the view as given and lists as soon as the store answers.
    pub fn start_cold(store: Arc<dyn Store>, prefix: String, view: V) -> Self {
        Self::start_listing_every(RELIST, store, prefix, view)
    }

    /// The same with another time between lists than a minute.
    pub fn start_listing_every(relist: Duration, store: Arc<dyn Store>, prefix: String, view: V) -> Self {
        let shared = Arc::new(Shared {
            view: RwLock::new(view),
            revision: signal::Sender::new(0),
            live: AtomicBool::new(false),
        });
        let task = tokio::spawn(follow(relist, store, prefix, shared.clone()));
        Self { shared, task }
    }

    /// Reads the view. Keep it short: changes wait meanwhile.
    pub fn read<T>(&self, f: impl FnOnce(&V) -> T) -> T {
        f(&self.shared.view.read())
    }

    /// For views that collect what changed and hand it over.
    pub fn write<T>(&self, f: impl FnOnce(&mut V) -> T) -> T {
        f(&mut self.shared.view.write())
    }

    /// Tells of every batch of changes: the value is the revision that the view has reached.
    #[must_use]
    pub fn subscribe(&self) -> signal::Receiver<i64> {
        self.shared.revision.subscribe()
    }

    /// Whether the copy follows the store now; if not, it is as of the last contact.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.shared.live.load(Ordering::Acquire)
    }

    /// Returns once the store answered and the view is whole.
    pub async fn wait_live(&self) {
        let mut receiver = self.subscribe();
        while !self.is_live() {
            if receiver.changed().await.is_err() {
                return;
            }
        }
    }

    /// Returns once the view holds everything up to `revision`, so that a writer reads its own write; `false` after `limit`.
    pub async fn reached(&self, revision: i64, limit: Duration) -> bool {
        let mut receiver = self.subscribe();
        tokio::time::timeout(limit, receiver.wait_for(|at| *at >= revision)).await.is_ok_and(|r| r.is_ok())
    }
}

async fn follow<V: View>(relist: Duration, store: Arc<dyn Store>, prefix: String, shared: Arc<Shared<V>>) {
    let mut pause = Pause::from(Duration::from_millis(50));
    // What the view was told last of each key, while the watch that told it goes on.
    let mut told: HashMap<String, i64> = shared.view.read().keys().into_iter().map(|key| (key, 0)).collect();
    let mut trusted = false;
    loop {
        let began = Instant::now();
        let begun = list_and_watch(store.as_ref(), &prefix, &shared, &mut told, trusted).await;
        let took = began.elapsed();
        let (ended, took) = match begun {
            Ok(watch) => {
                pause.reset();
                let mut following = Following { shared: &shared, watch, told: &mut told };
                (following.go_on(store.as_ref(), &prefix, relist, took).await, Duration::ZERO)
            }
            Err(error) => (Err(error), took),
        };
        trusted = ended.is_ok();
        match ended {
            Ok(()) => tracing::warn!(prefix, "a watch has lost a change; listing again"),
            Err(error) => {
                tracing::debug!(prefix, %error, "the store does not answer; listing again");
                shared.live.store(false, Ordering::Release);
            }
        }
        tokio::time::sleep(pause.after(took)).await;
    }
}

/// A watch, and what it has told.
struct Following<'a, V> {
    shared: &'a Shared<V>,
    watch: Box<dyn Watch>,
    told: &'a mut HashMap<String, i64>,
}

impl<V: View> Following<'_, V> {
    /// Applies what the watch tells until it ends or is found to have lost something. `took`: what the last list took.
    async fn go_on(&mut self, store: &dyn Store, prefix: &str, relist: Duration, took: Duration) -> Result<()> {
        let mut took = took;
        loop {
            let pause = tokio::time::sleep((relist * 3 / 4).max(took * RELIST_SHARE));
            let Some(()) = self.during(pause).await? else { return Ok(()) };
            let began = Instant::now();
            let Some(there) = self.during(store.revisions(prefix)).await? else { return Ok(()) };
            took = began.elapsed();
            // A store that is behind is asked another time: the watch goes on, and tells when it does not.
            let owed = there.map(|there| self.owed(there)).unwrap_or_default();
            if !owed.is_empty() {
                let told = self.during(tokio::time::sleep(relist / 4)).await?;
                if told.is_none() || owed.iter().any(|owed| self.owes(owed)) {
                    return Ok(());
                }
            }
        }
    }

    /// `None`: what the watch told meanwhile shows that it lost something.
    async fn during<T>(&mut self, other: impl Future<Output = T>) -> Result<Option<T>, StoreError> {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                events = self.watch.next() => {
                    apply(self.shared, &events?, self.told);
                    if self.shared.view.read().lacks() {
                        return Ok(None);
                    }
                }
                done = &mut other => return Ok(Some(done)),
            }
        }
    }

    /// What the watch has not told of what is there.
    fn owed(&self, there: Revisions) -> Vec<Owed> {
        let gone = {
            let keys: HashSet<&str> = there.keys.iter().map(|(key, _)| key.as_str()).collect();
            let known = self.told.iter().filter(|(key, at)| **at <= there.revision && !keys.contains(key.as_str()));
            known.map(|(key, at)| Owed::Gone(key.clone(), *at)).collect::<Vec<_>>()
        };
        let written = there.keys.into_iter().map(|(key, at)| Owed::Written(key, at));
        written.filter(|owed| self.owes(owed)).chain(gone).collect()
    }

    fn owes(&self, owed: &Owed) -> bool {
        match owed {
            Owed::Written(key, at) => self.told.get(key).is_none_or(|told| told < at),
            Owed::Gone(key, at) => self.told.get(key) == Some(at),
        }
    }
}

/// A change that a watch should have told.
enum Owed {
    /// The key was written at that revision.
    Written(String, i64),
    /// The key is there no more, and was told last as of that revision.
    Gone(String, i64),
}

/// `trusted`: a key of the revision that was told last has the value that was told. A store that was restored from a
/// backup counts anew, but no watch goes on over that.
async fn list_and_watch<V: View>(
    store: &dyn Store,
    prefix: &str,
    shared: &Shared<V>,
    told: &mut HashMap<String, i64>,
    trusted: bool,
) -> Result<Box<dyn Watch>> {
    let listing = store.list(prefix).await?;
    let watch = store.watch(prefix, listing.revision + 1).await?;
    {
        let mut view = shared.view.write();
        let mut before = std::mem::replace(told, HashMap::with_capacity(listing.entries.len()));
        for entry in listing.entries {
            if before.remove(&entry.key) != Some(entry.revision) || !trusted {
                view.apply(&entry.key, Some(&entry.value), entry.revision);
            }
            told.insert(entry.key, entry.revision);
        }
        for key in before.into_keys() {
            view.apply(&key, None, listing.revision);
        }
        view.listed();
    }
    shared.live.store(true, Ordering::Release);
    shared.revision.send_modify(|at| *at = (*at).max(listing.revision));
    Ok(watch)
}

fn apply<V: View>(shared: &Shared<V>, events: &[Event], told: &mut HashMap<String, i64>) {
    let mut view = shared.view.write();
    let mut reached = 0;
    for event in events {
        reached = reached.max(event.revision());
        match event {
            Event::Put(entry) => {
                view.apply(&entry.key, Some(&entry.value), entry.revision);
                told.insert(entry.key.clone(), entry.revision);
            }
            Event::Delete { key, revision } => {
                view.apply(key, None, *revision);
                told.remove(key);
            }
        }
    }
    drop(view);
    shared.revision.send_modify(|at| *at = (*at).max(reached));
}
