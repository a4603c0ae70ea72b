//! The planner's loop: woken by any change, it reads the picture, decides by the pure `plan`, and commits.
//!
//! It takes no input and remembers nothing. On a conflict it plans again, so that several masters may run it at once.
//!
//! What waits is planned together, from one picture, and written in transactions of which no two want the same host's
//! counter: these are committed at the same time, so that the disk under etcd is waited for once and not for each.

use docklet_daemon::fail;
use docklet_master_plan::place::Policy;
use docklet_master_plan::plan::{Decision, MAX_WRITES, Pass, Planned};
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::id::VclusterId;
use docklet_types::name::{HostName, UserName};
use docklet_types::spec::Usage;
use docklet_types::time::Micros;
use futures::future::join_all;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::counter::Counter;
use super::view::ClusterView;

/// See the module.
pub struct Planner {
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub view: Arc<ClusterView>,
    pub policy: Policy,
}

/// Vclusters planned from one picture. More would hold the picture for longer.
const PASS: usize = 64;
/// Bytes of shares in one transaction of several vclusters; etcd takes 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;

/// What two transactions cannot both have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Claim {
    Networks,
    Host(HostName),
    Usage(UserName),
}

fn claims(planned: &Planned) -> HashSet<Claim> {
    let usage = planned.decisions.iter().filter_map(|decision| match decision {
        Decision::ForgetVcluster { spec } if spec.value.warm.is_none() => Some(Claim::Usage(spec.value.owner.clone())),
        _ => None,
    });
    let hosts = planned.placed_on.keys().cloned().map(Claim::Host);
    hosts.chain(usage).chain(planned.network_taken.map(|_| Claim::Networks)).collect()
}

/// Whether it is for a vcluster without a spec.
fn sweeps(planned: &Planned) -> bool {
    planned.spec_revision.is_none()
}

/// The vclusters of one transaction.
#[derive(Default)]
struct Bundle {
    members: Vec<(VclusterId, Planned)>,
    claims: HashSet<Claim>,
    moves: bool,
    /// It clears away what is there without a spec. If the spec is there after all and cannot be read, that is refused
    /// again and again, and must be nobody else's matter.
    sweeps: bool,
    writes: usize,
    bytes: usize,
}

impl Bundle {
    fn has_room_for(&self, planned: &Planned) -> bool {
        !self.sweeps
            && !sweeps(planned)
            && self.writes + planned.writes() <= MAX_WRITES
            && self.bytes + planned.share_bytes() <= MAX_BYTES
    }

    fn add(&mut self, id: VclusterId, planned: Planned, claims: HashSet<Claim>) {
        self.claims.extend(claims);
        self.moves |= planned.moves();
        self.sweeps |= sweeps(&planned);
        self.writes += planned.writes();
        self.bytes += planned.share_bytes();
        self.members.push((id, planned));
    }
}

/// Puts what was planned into transactions of which no two want the same, so that all can be committed at once. Returns
/// what is left for the next pass, too.
fn bundles(planned: Vec<(VclusterId, Planned)>) -> (Vec<Bundle>, Vec<VclusterId>) {
    let mut bundles: Vec<Bundle> = Vec::new();
    let mut later = Vec::new();
    for (id, planned) in planned {
        let claims = claims(&planned);
        let mut wanting =
            bundles.iter().enumerate().filter(|(_, b)| !b.claims.is_disjoint(&claims)).map(|(index, _)| index);
        let (first, second) = (wanting.next(), wanting.next());
        let at = match (first, second) {
            (None, _) => match bundles.last() {
                Some(last) if last.has_room_for(&planned) => bundles.len() - 1,
                _ => {
                    bundles.push(Bundle::default());
                    bundles.len() - 1
                }
            },
            (Some(index), None)
                if bundles[index].has_room_for(&planned) && !bundles[index].moves && !planned.moves() =>
            {
                index
            }
            _ => {
                later.push(id);
                continue;
            }
        };
        bundles[at].add(id, planned, claims);
    }
    (bundles, later)
}

impl Planner {
    /// Plans until the task is dropped.
    pub async fn run(self) {
        let mut changes = self.view.subscribe();
        loop {
            let dirty: Vec<VclusterId> = self.view.take_dirty().into_iter().collect();
            if dirty.is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            for ids in dirty.chunks(PASS) {
                self.pass(ids).await;
            }
        }
    }

    /// Plans some vclusters from one picture and commits what comes of it. What was written makes them dirty again, until
    /// there is nothing left to write.
    async fn pass(&self, ids: &[VclusterId]) {
        let planned: Vec<(VclusterId, Planned)> = self.view.read(|cluster| {
            let mut pass = Pass::new(cluster, &self.policy, ids.len() > 1);
            ids.iter().map(|id| (*id, pass.plan(*id))).collect()
        });
        for (id, planned) in &planned {
            self.view.set_waiting(*id, &planned.waiting);
        }
        let planned = planned.into_iter().filter(|(_, planned)| !planned.decisions.is_empty()).collect();
        let (bundles, later) = bundles(planned);
        later.into_iter().for_each(|id| self.view.mark_dirty(id));
        let sweeping: Vec<bool> = bundles.iter().map(|bundle| bundle.sweeps).collect();
        let committed = join_all(bundles.into_iter().map(|bundle| self.commit(bundle))).await;
        let (mut reached, mut conflict, mut failed) = (None, false, false);
        for ((ids, outcome), sweeps) in committed.into_iter().zip(sweeping) {
            match outcome {
                Ok(Outcome::Committed { revision }) => {
                    reached = reached.max(Some(revision));
                    continue;
                }
                // There is more than this picture shows, and when it does, that is planned again.
                Ok(Outcome::Conflict) if sweeps => continue,
                Ok(Outcome::Conflict) => conflict = true,
                Err(error) => {
                    tracing::warn!(vclusters = ids.len(), %error, "cannot write plans now; trying again");
                    failed = true;
                }
            }
            ids.into_iter().for_each(|id| self.view.mark_dirty(id));
        }
        if let Some(revision) = reached {
            self.view.reached(revision).await;
        }
        if failed {
            tokio::time::sleep(Duration::from_millis(500)).await;
        } else if conflict && reached.is_none() {
            // The picture is behind: what it lacks is on its way.
            let mut changes = self.view.subscribe();
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        }
    }

    async fn commit(&self, bundle: Bundle) -> (Vec<VclusterId>, Result<Outcome, StoreError>) {
        let ids: Vec<VclusterId> = bundle.members.iter().map(|(id, _)| *id).collect();
        let txn = match self.transaction(bundle) {
            Ok(txn) => txn,
            Err(error) => return (ids, Err(error)),
        };
        let writes = txn.writes.len();
        fail::before("plan");
        let outcome = self.store.txn(txn).await;
        if let Ok(Outcome::Committed { revision }) = outcome {
            fail::after("plan");
            tracing::debug!(vclusters = ids.len(), first = %ids[0], writes, revision, "planned");
        }
        (ids, outcome)
    }

    fn transaction(&self, bundle: Bundle) -> Result<Txn, StoreError> {
        let key = |key: &Key| self.keys.write(key);
        let mut txn = Txn::new();
        let mut counted = HashSet::new();
        let mut gone: BTreeMap<UserName, Usage> = BTreeMap::new();
        for (id, planned) in bundle.members {
            txn = txn.when(Compare::as_read(key(&Key::Spec(id)), planned.spec_revision));
            let networks = planned.network_taken.map(|revision| (Key::NetworkAlloc, revision));
            let hosts = planned.placed_on.into_iter().map(|(host, revision)| (Key::HostAlloc(host), revision));
            for (counter, revision) in networks.into_iter().chain(hosts) {
                let counter = key(&counter);
                // Members share counters: all of them were planned from the same picture.
                if counted.insert(counter.clone()) {
                    txn = Counter::raise(txn, counter, revision)?;
                }
            }
            let deletes_network = planned.decisions.iter().any(|d| matches!(d, Decision::DeleteNetwork { .. }));
            let forgets = planned.decisions.iter().any(|d| matches!(d, Decision::ForgetVcluster { .. }));
            if forgets && !deletes_network {
                // Decided from a picture without a network: one that is there all the same would stay for ever.
                txn = txn.when(Compare::Absent { key: key(&Key::Network(id)) });
            }
            for decision in planned.decisions {
                // What nobody asked for has no name and is in no sum.
                if let Decision::ForgetVcluster { spec } = &decision
                    && spec.value.warm.is_none()
                {
                    let name = Key::Name(spec.value.owner.clone(), spec.value.name.clone());
                    txn = txn.delete(key(&name));
                    let sum = gone.entry(spec.value.owner.clone()).or_default();
                    *sum = sum.plus(Usage::of(&spec.value));
                }
                txn = self.add(txn, decision)?;
            }
        }
        for (owner, gone) in gone {
            let usage = self.view.read(|cluster| cluster.usage(&owner).cloned());
            let left = usage.as_ref().map_or_else(Usage::default, |u| u.value.minus(gone));
            let at = key(&Key::Usage(owner));
            txn = txn.when(Compare::as_read(at.clone(), usage.map(|u| u.revision))).put(at, &left)?;
        }
        Ok(txn)
    }

    fn add(&self, txn: Txn, decision: Decision) -> Result<Txn, StoreError> {
        let key = |key: Key| self.keys.write(&key);
        Ok(match decision {
            Decision::PutNetwork { id, network } => {
                let at = key(Key::Network(id));
                txn.when(Compare::Absent { key: at.clone() }).put(at, &network)?
            }
            Decision::DeleteNetwork { id, revision } => {
                let at = key(Key::Network(id));
                txn.when(Compare::Unchanged { key: at.clone(), revision }).delete(at)
            }
            Decision::PutNode { host, mut plan, revision } => {
                plan.planned_at = Some(Micros::now());
                let at = key(Key::NodePlan(host, plan.id));
                txn.when(Compare::as_read(at.clone(), revision)).put(at, &*plan)?
            }
            Decision::ForgetNode { host, id, revision } => {
                let at = key(Key::NodePlan(host.clone(), id));
                txn.when(Compare::Unchanged { key: at.clone(), revision })
                    .delete(at)
                    .delete(key(Key::NodeReport(host, id)))
            }
            Decision::PutShare { host, plan, revision } => {
                let at = key(Key::VclusterPlan(host, plan.id));
                txn.when(Compare::as_read(at.clone(), revision)).put(at, &*plan)?
            }
            Decision::ForgetShare { host, id, revision } => {
                let at = key(Key::VclusterPlan(host.clone(), id));
                txn.when(Compare::Unchanged { key: at.clone(), revision })
                    .delete(at)
                    .delete(key(Key::VclusterReport(host, id)))
            }
            Decision::PutMove { doc, revision } => {
                let at = key(Key::Move(doc.node));
                txn.when(Compare::as_read(at.clone(), revision)).put(at, &*doc)?
            }
            Decision::DeleteMove { node, revision } => {
                let at = key(Key::Move(node));
                txn.when(Compare::Unchanged { key: at.clone(), revision }).delete(at)
            }
            Decision::RaiseCounter { id, revision } => Counter::raise(txn, key(Key::VclusterAlloc(id)), revision)?,
            Decision::ForgetCounter { id, revision } => {
                let at = key(Key::VclusterAlloc(id));
                txn.when(Compare::as_read(at.clone(), revision)).delete(at)
            }
            // Its name and its owner's usage go apart.
            Decision::ForgetVcluster { spec } => txn.delete(key(Key::Spec(spec.value.id))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use docklet_master_plan::plan::plan;
    use docklet_store::memory::MemoryStore;
    use docklet_store::unreliable::{Lies, Unreliable};
    use docklet_types::host::{Capacity, HostReport, HostSettings};
    use docklet_types::id::{IdRange, NodeId, OperationId};
    use docklet_types::image::ImageRef;
    use docklet_types::name::NodeName;
    use docklet_types::plan::NodePlan;
    use docklet_types::size::Size;
    use docklet_types::spec::{NodeSpec, SshKeyPair, VclusterKeys, VclusterSpec, Wanted};
    use uuid::Uuid;

    const DEAF: Lies = Lies { swallowed: 100, repeated: 0, ended: 0, late_millis: 0 };

    struct Site {
        store: Arc<dyn Store>,
        keys: Keys,
    }

    /// A planner whose picture may be kept from following.
    struct Master {
        watches: Unreliable,
        planner: Planner,
    }

    impl Site {
        fn new() -> Self {
            Self { store: Arc::new(MemoryStore::new()), keys: Keys::new(&"test".parse().unwrap()) }
        }

        async fn put<T: serde::Serialize>(&self, key: Key, document: &T) {
            let txn = Txn::new().put(self.keys.write(&key), document).unwrap();
            assert!(matches!(self.store.txn(txn).await.unwrap(), Outcome::Committed { .. }));
        }

        async fn host(&self, name: &str, memory_mib: u64) {
            let name: HostName = name.parse().unwrap();
            let report = HostReport {
                name: name.clone(),
                address: None,
                agent_port: None,
                version: "0".into(),
                kernel: "6".into(),
                cgroup: "v2".into(),
                storage: "btrfs".into(),
                capacity: Capacity { cpu_millis: 100_000, memory_mib, disk_mib: 100_000 },
                checks: vec![],
                started_at: Micros(0),
            };
            self.put(Key::Host(name.clone()), &report).await;
            self.put(Key::Alive(name), &true).await;
        }

        async fn master(&self) -> Master {
            let watches = Unreliable::new(self.store.clone(), 1, Lies::default());
            let store: Arc<dyn Store> = Arc::new(watches.clone());
            let view = ClusterView::start(store.clone(), self.keys.clone()).await.unwrap();
            let policy = Policy {
                preboot_below: 0.5,
                cluster_net: "172.16.0.0/20".parse().unwrap(),
                cpu_overcommit: 1.0,
                memory_overcommit: 1.0,
                disk_overcommit: 1.0,
            };
            Master { watches, planner: Planner { store, keys: self.keys.clone(), view, policy } }
        }

        async fn close(&self, host: &str, cordoned: bool) {
            let settings = HostSettings { cordoned, ..HostSettings::default() };
            self.put(Key::HostSettings(host.parse().unwrap()), &settings).await;
        }

        /// Every node plan that there is.
        async fn placed(&self) -> Vec<(HostName, NodeId)> {
            let all = self.store.list(self.keys.root()).await.unwrap().entries;
            let plans = all.iter().filter_map(|entry| match self.keys.read(&entry.key) {
                Some(Key::NodePlan(host, id)) => Some((host, id)),
                _ => None,
            });
            plans.collect()
        }
    }

    impl Master {
        fn plan(&self, id: VclusterId) -> Planned {
            self.planner.view.read(|cluster| plan(cluster, &self.planner.policy, id))
        }

        async fn commit(&self, id: VclusterId) -> Outcome {
            self.write(id, self.plan(id)).await
        }

        /// As the planner does it when several wait: the network first.
        async fn commit_network(&self, id: VclusterId) -> Outcome {
            let planned = self.planner.view.read(|cluster| Pass::new(cluster, &self.planner.policy, true).plan(id));
            self.write(id, planned).await
        }

        async fn write(&self, id: VclusterId, planned: Planned) -> Outcome {
            assert!(!planned.decisions.is_empty(), "there is something to write");
            let mut bundle = Bundle::default();
            bundle.add(id, planned, HashSet::new());
            self.planner.commit(bundle).await.1.unwrap()
        }

        /// Misses what is done meanwhile.
        async fn missing(&self, what: impl Future<Output = ()>) {
            let before = self.watches.swallowed();
            self.watches.lie(DEAF);
            what.await;
            eventually("it was missed", || self.watches.swallowed() > before).await;
            self.watches.lie(Lies::default());
        }

        async fn follows(&self, store: &dyn Store) {
            let now = store.list("/").await.unwrap().revision;
            assert!(self.planner.view.reached(now).await);
        }
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn spec(number: u128, nodes: u32) -> VclusterSpec {
        let pair = || SshKeyPair { private: "private".into(), public: "public".into() };
        let image = || ImageRef {
            name: "base".parse().unwrap(),
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        };
        let size = Size::new(1.0, 100, 100).unwrap();
        let uuid = |n: u32| Uuid::from_u128((number << 32) | u128::from(n));
        let node = |n| NodeSpec {
            id: NodeId::from_uuid(uuid(n)),
            name: NodeName::numbered(n),
            image: image(),
            size,
            attempt: 0,
        };
        VclusterSpec {
            id: VclusterId::from_uuid(uuid(0)),
            owner: "alice".parse().unwrap(),
            range: IdRange::new(1).unwrap(),
            name: format!("v{number}").parse().unwrap(),
            image: image(),
            size,
            nodes: (1..=nodes).map(node).collect(),
            ports: vec![],
            limits: docklet_types::rate::RateLimits::default(),
            host_labels: docklet_types::label::Labels::new(),
            wanted: Wanted::Running,
            generation: 1,
            created_at: Micros(0),
            changed_at: Micros(0),
            operation: OperationId::from_uuid(uuid(0)),
            keys: VclusterKeys { user: pair(), host: pair() },
            warm: None,
            asked_as: None,
            admitted_at: None,
        }
    }

    fn committed(outcome: Outcome) {
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
    }

    #[tokio::test]
    async fn of_two_that_place_a_node_on_different_hosts_one_is_refused() {
        let site = Site::new();
        site.host("h1", 1000).await;
        site.host("h2", 1000).await;
        let spec = spec(1, 1);
        site.put(Key::Spec(spec.id), &spec).await;
        let (first, second) = (site.master().await, site.master().await);
        committed(first.commit_network(spec.id).await);
        site.close("h1", true).await;
        first.follows(&*site.store).await;
        second.follows(&*site.store).await;
        // From here on they see different hosts as the one that has room.
        second.watches.lie(DEAF);
        site.close("h1", false).await;
        site.close("h2", true).await;
        first.follows(&*site.store).await;
        let on = |planned: Planned| planned.placed_on.into_keys().map(|h| h.to_string()).collect::<Vec<_>>();
        assert_eq!((on(first.plan(spec.id)), on(second.plan(spec.id))), (vec!["h1".to_owned()], vec!["h2".to_owned()]));
        committed(first.commit(spec.id).await);
        assert_eq!(second.commit(spec.id).await, Outcome::Conflict);
        assert_eq!(site.placed().await.len(), 1, "the node is in one place");
    }

    #[tokio::test]
    async fn who_missed_a_placement_cannot_forget_the_vcluster() {
        let site = Site::new();
        site.host("h1", 1000).await;
        let mut spec = spec(1, 1);
        site.put(Key::Spec(spec.id), &spec).await;
        let (first, second) = (site.master().await, site.master().await);
        committed(first.commit_network(spec.id).await);
        first.follows(&*site.store).await;
        second.follows(&*site.store).await;
        second.missing(async { committed(first.commit(spec.id).await) }).await;
        spec.wanted = Wanted::Absent;
        site.put(Key::Spec(spec.id), &spec).await;
        second.follows(&*site.store).await;
        let forgets = second.plan(spec.id).decisions;
        assert!(
            forgets.iter().any(|d| matches!(d, Decision::ForgetVcluster { .. })),
            "it knows of no node: {forgets:?}"
        );
        assert_eq!(second.commit(spec.id).await, Outcome::Conflict);
        assert!(site.store.get(&site.keys.write(&Key::Network(spec.id))).await.unwrap().is_some());
    }

    /// What is heard of a counter shows that a placement was missed: it is looked for at once, and not placed again before.
    #[tokio::test]
    async fn who_missed_a_placement_and_hears_of_the_next_looks_again() {
        let site = Site::new();
        site.host("h1", 1000).await;
        site.host("h2", 1000).await;
        let (mut one, other) = (spec(1, 1), spec(2, 1));
        for spec in [&one, &other] {
            site.put(Key::Spec(spec.id), spec).await;
        }
        let (first, second) = (site.master().await, site.master().await);
        committed(first.commit_network(one.id).await);
        first.follows(&*site.store).await;
        second.follows(&*site.store).await;
        second.missing(async { committed(first.commit(one.id).await) }).await;
        first.follows(&*site.store).await;
        one.nodes.push(NodeSpec {
            id: NodeId::from_uuid(Uuid::from_u128(99)),
            name: NodeName::numbered(2),
            ..one.nodes[0].clone()
        });
        site.put(Key::Spec(one.id), &one).await;
        first.follows(&*site.store).await;
        committed(first.commit(one.id).await);
        let missed = one.nodes[0].id;
        eventually("what was missed is seen", || {
            second.planner.view.read(|cluster| cluster.node(missed).is_some_and(|p| p.plan.is_some()))
        })
        .await;
        // It counts on from there.
        committed(second.commit(other.id).await);
        second.follows(&*site.store).await;
        assert!(second.plan(one.id).decisions.is_empty());
        assert_eq!(site.placed().await.len(), 3);
    }

    #[tokio::test]
    async fn what_was_placed_of_a_vcluster_that_is_gone_is_cleared_away() {
        let site = Site::new();
        site.host("h1", 1000).await;
        let spec = spec(1, 1);
        site.put(Key::Spec(spec.id), &spec).await;
        let master = site.master().await;
        committed(master.commit(spec.id).await);
        let gone = Txn::new().delete(site.keys.write(&Key::Spec(spec.id)));
        committed(site.store.txn(gone).await.unwrap());
        master.follows(&*site.store).await;
        committed(master.commit(spec.id).await);
        for (host, id) in site.placed().await {
            let entry = site.store.get(&site.keys.write(&Key::NodePlan(host, id))).await.unwrap().unwrap();
            let plan: NodePlan = serde_json::from_slice(&entry.value).unwrap();
            assert_eq!(plan.wanted, Wanted::Absent, "its host is told to let go of it");
        }
    }

    /// A spec that cannot be read is there all the same: nothing of the vcluster is touched, and others go on.
    #[tokio::test]
    async fn what_belongs_to_a_spec_that_cannot_be_read_stays() {
        let site = Site::new();
        site.host("h1", 1000).await;
        let (broken, other) = (spec(1, 1), spec(2, 1));
        site.put(Key::Spec(broken.id), &broken).await;
        let master = site.master().await;
        committed(master.commit(broken.id).await);
        site.put(Key::Spec(broken.id), &"what is this?").await;
        site.put(Key::Spec(other.id), &other).await;
        let late = site.master().await;
        let view = late.planner.view.clone();
        let planner = tokio::spawn(late.planner.run());
        eventually("the other is placed", || {
            view.read(|cluster| cluster.node(other.nodes[0].id).is_some_and(|p| p.plan.is_some()))
        })
        .await;
        planner.abort();
        let key = site.keys.write(&Key::NodePlan("h1".parse().unwrap(), broken.nodes[0].id));
        let entry = site.store.get(&key).await.unwrap().unwrap();
        assert_eq!(serde_json::from_slice::<NodePlan>(&entry.value).unwrap().wanted, Wanted::Running);
    }
}
