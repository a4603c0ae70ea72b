//! The picture of the cluster in memory, kept by a mirror of the store. The API, the portal, the proxy and the planner
//! all read it; nobody writes to it but the mirror.

use docklet_master_plan::cluster::{Change, Cluster, Rev};
use docklet_master_plan::view::Waiting;
use docklet_store::keys::{Key, Keys};
use docklet_store::mirror::{Mirror, View};
use docklet_store::{Store, StoreError};
use docklet_types::id::VclusterId;
use docklet_types::maintenance::Maintenance;
use docklet_types::master::MasterReport;
use docklet_types::name::HostName;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use super::counter::Counter;

/// See the module.
pub struct ClusterView {
    mirror: Mirror<Fold>,
    /// Why nodes have no place, by vcluster, as the planner last found.
    waiting: RwLock<HashMap<VclusterId, Waiting>>,
    /// Raised when `waiting` changes.
    waiting_changed: watch::Sender<u64>,
}

impl ClusterView {
    /// Lists the store once and follows it from then on.
    ///
    /// # Errors
    /// Where the store does not answer.
    pub async fn start(store: Arc<dyn Store>, keys: Keys) -> Result<Arc<Self>, StoreError> {
        let prefix = keys.root().to_owned();
        let fold = Fold {
            keys,
            cluster: Cluster::default(),
            masters: BTreeMap::new(),
            maintenance: None,
            skipped: HashMap::new(),
        };
        Ok(Arc::new(Self {
            mirror: Mirror::start(store, prefix, fold).await?,
            waiting: RwLock::default(),
            waiting_changed: watch::Sender::new(0),
        }))
    }

    /// Reads the picture. Keep it short and never await inside: changes wait meanwhile.
    pub fn read<T>(&self, f: impl FnOnce(&Cluster) -> T) -> T {
        self.mirror.read(|fold| f(&fold.cluster))
    }

    /// The masters that are at work, by name.
    #[must_use]
    pub fn masters(&self) -> Vec<MasterReport> {
        self.mirror.read(|fold| fold.masters.values().cloned().collect())
    }

    /// Present while maintenance is on.
    #[must_use]
    pub fn maintenance(&self) -> Option<Rev<Maintenance>> {
        self.mirror.read(|fold| fold.maintenance.clone())
    }

    /// Why nodes of the vcluster have no place.
    #[must_use]
    pub fn waiting(&self, id: VclusterId) -> Waiting {
        self.waiting.read().get(&id).cloned().unwrap_or_default()
    }

    /// Wakes on every change; the value is the store's revision that the picture has reached.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.mirror.subscribe()
    }

    /// Wakes when the planner found other reasons for waiting.
    #[must_use]
    pub fn subscribe_waiting(&self) -> watch::Receiver<u64> {
        self.waiting_changed.subscribe()
    }

    /// Returns once a write of this process at `revision` can be read here; `false` if that takes over 5 s.
    pub async fn reached(&self, revision: i64) -> bool {
        self.mirror.reached(revision, Duration::from_secs(5)).await
    }

    /// The same for a revision of the whole store. It may be of a key that is not ours, and then nothing tells that the
    /// picture has come that far: so it is not waited for long.
    pub async fn caught_up(&self, revision: i64) -> bool {
        self.mirror.reached(revision, Duration::from_secs(1)).await
    }

    /// Whether the picture follows the store now. If not, it is as of the last contact.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.mirror.is_live()
    }

    /// Whether somebody waits for room.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let pressed: Vec<VclusterId> = {
            let all = self.waiting.read();
            let waits = |waiting: &Waiting| waiting.values().any(|reason| reason.code == "no_room");
            all.iter().filter(|(_, waiting)| waits(waiting)).map(|(id, _)| *id).collect()
        };
        // What waits for being warm has no claim.
        let asked_for = |id: &VclusterId, cluster: &Cluster| cluster.spec(*id).is_some_and(|s| s.value.warm.is_none());
        self.read(|cluster| pressed.iter().any(|id| asked_for(id, cluster)))
    }

    pub(crate) fn take_dirty(&self) -> BTreeSet<VclusterId> {
        self.mirror.write(|fold| fold.cluster.take_dirty())
    }

    pub(crate) fn mark_dirty(&self, id: VclusterId) {
        self.mirror.write(|fold| fold.cluster.mark_dirty(id));
    }

    pub(crate) fn set_waiting(&self, id: VclusterId, waiting: &Waiting) {
        let mut all = self.waiting.write();
        let changed = match all.get(&id) {
            Some(old) => old != waiting,
            None => !waiting.is_empty(),
        };
        if !changed {
            return;
        }
        if waiting.is_empty() {
            all.remove(&id);
        } else {
            all.insert(id, waiting.clone());
        }
        drop(all);
        self.mirror.write(|fold| fold.cluster.mark_changed(id));
        self.waiting_changed.send_modify(|n| *n += 1);
    }
}

/// Turns keys and bytes into changes of the picture.
struct Fold {
    keys: Keys,
    cluster: Cluster,
    masters: BTreeMap<HostName, MasterReport>,
    maintenance: Option<Rev<Maintenance>>,
    /// Counters that were heard of and follow not on the ones that are known: they count once everything was listed.
    skipped: HashMap<Key, i64>,
}

fn document<T: DeserializeOwned>(key: &str, value: Option<&[u8]>, revision: i64) -> Result<Option<Rev<T>>, ()> {
    let Some(bytes) = value else { return Ok(None) };
    match serde_json::from_slice(bytes) {
        Ok(document) => Ok(Some(Rev::new(document, revision))),
        Err(error) => {
            // One bad record must not stop the rest: it is left as it was last known.
            tracing::error!(key, %error, "a document in the store cannot be read; it is left alone");
            Err(())
        }
    }
}

/// A counter is at that revision now.
fn counter(key: Key, revision: Option<i64>) -> Option<Change> {
    match key {
        Key::NetworkAlloc => Some(Change::NetworkAlloc(revision)),
        Key::HostAlloc(host) => Some(Change::HostAlloc(host, revision)),
        Key::VclusterAlloc(id) => Some(Change::VclusterAlloc(id, revision)),
        _ => None,
    }
}

impl Fold {
    /// Whether what was heard of a counter shows that something was missed.
    fn skips(&self, key: &Key, value: Option<&[u8]>, revision: i64) -> bool {
        let known = match key {
            Key::NetworkAlloc => self.cluster.network_alloc_revision(),
            Key::HostAlloc(host) => self.cluster.host(host).and_then(|h| h.alloc_revision),
            Key::VclusterAlloc(id) => self.cluster.vcluster_alloc_revision(*id),
            _ => return false,
        };
        !Counter::follows(value, revision, known)
    }
}

/// What the document under a key, now this, changes of the picture.
fn change(parsed: Key, key: &str, value: Option<&[u8]>, revision: i64) -> Option<Change> {
    let alive = value.is_some();
    Some(match parsed {
        Key::Spec(id) => Change::Spec(id, document(key, value, revision).ok()?),
        Key::Usage(owner) => Change::Usage(owner, document(key, value, revision).ok()?),
        Key::Network(id) => Change::Network(id, document(key, value, revision).ok()?),
        key @ (Key::NetworkAlloc | Key::HostAlloc(_) | Key::VclusterAlloc(_)) => {
            return counter(key, value.map(|_| revision));
        }
        Key::NodePlan(host, id) => Change::NodePlan(host, id, document(key, value, revision).ok()?),
        Key::VclusterPlan(host, id) => Change::VclusterPlan(host, id, document(key, value, revision).ok()?),
        Key::NodeReport(host, id) => Change::NodeReport(host, id, document(key, value, revision).ok()?),
        Key::VclusterReport(host, id) => Change::VclusterReport(host, id, document(key, value, revision).ok()?),
        Key::Host(host) => Change::Host(host, document(key, value, revision).ok()?),
        Key::HostSettings(host) => Change::HostSettings(host, document(key, value, revision).ok()?),
        Key::Alive(host) => Change::Alive(host, alive),
        // Read from the specs, or of no concern to planning.
        Key::Name(..) | Key::Port(..) | Key::Joined(_) | Key::Token(_) | Key::Master(_) | Key::Maintenance => {
            return None;
        }
        Key::Move(id) => Change::Move(id, document(key, value, revision).ok()?),
        Key::Lost(host) => Change::Lost(host, document(key, value, revision).ok()?),
        Key::Cleared(host) => {
            Change::Cleared(host, document::<u64>(key, value, revision).ok()?.map(|number| *number.value))
        }
    })
}

impl View for Fold {
    fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: i64) {
        let Some(parsed) = self.keys.read(key) else { return };
        if parsed == Key::Maintenance {
            if let Ok(said) = document(key, value, revision) {
                self.maintenance = said;
            }
        } else if let Key::Master(name) = parsed {
            let Ok(report) = document::<MasterReport>(key, value, revision) else { return };
            match report {
                Some(report) => self.masters.insert(name, (*report.value).clone()),
                None => self.masters.remove(&name),
            };
        } else if self.skips(&parsed, value, revision) {
            self.skipped.insert(parsed, revision);
        } else {
            self.skipped.remove(&parsed);
            if let Some(change) = change(parsed, key, value, revision) {
                self.cluster.apply(change);
            }
        }
    }

    /// It begins empty.
    fn keys(&self) -> Vec<String> {
        Vec::new()
    }

    fn lacks(&self) -> bool {
        !self.skipped.is_empty()
    }

    fn listed(&mut self) {
        let changes = self.skipped.drain().filter_map(|(key, revision)| counter(key, Some(revision)));
        changes.for_each(|change| self.cluster.apply(change));
    }
}
