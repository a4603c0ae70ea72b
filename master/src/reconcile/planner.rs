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

/// The vclusters of one transaction.
#[derive(Default)]
struct Bundle {
    members: Vec<(VclusterId, Planned)>,
    claims: HashSet<Claim>,
    moves: bool,
    writes: usize,
    bytes: usize,
}

impl Bundle {
    fn has_room_for(&self, planned: &Planned) -> bool {
        self.writes + planned.writes() <= MAX_WRITES && self.bytes + planned.share_bytes() <= MAX_BYTES
    }

    fn add(&mut self, id: VclusterId, planned: Planned, claims: HashSet<Claim>) {
        self.claims.extend(claims);
        self.moves |= planned.moves();
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
        let committed = join_all(bundles.into_iter().map(|bundle| self.commit(bundle))).await;
        let (mut reached, mut conflict, mut failed) = (None, false, false);
        for (ids, outcome) in committed {
            match outcome {
                Ok(Outcome::Committed { revision }) => {
                    reached = reached.max(Some(revision));
                    continue;
                }
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
                    txn = txn.when(Compare::as_read(counter.clone(), revision)).put(counter, &id)?;
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
            // Its name and its owner's usage go apart.
            Decision::ForgetVcluster { spec } => txn.delete(key(Key::Spec(spec.value.id))),
        })
    }
}
