//! The planner's loop: woken by any change, it reads the picture, decides by the pure `plan`, and commits.
//!
//! It takes no input and remembers nothing. On a conflict it plans again, so that several masters may run it at once.

use docklet_daemon::fail;
use docklet_master_plan::place::Policy;
use docklet_master_plan::plan::{Decision, Planned, plan};
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::id::VclusterId;
use docklet_types::spec::Usage;
use docklet_types::time::Micros;
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

/// What became of the writes for one vcluster.
enum Committed {
    Nothing,
    Done,
    Conflict,
}

impl Planner {
    /// Plans until the task is dropped.
    pub async fn run(self) {
        let mut changes = self.view.subscribe();
        loop {
            let dirty = self.view.take_dirty();
            if dirty.is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
                continue;
            }
            for id in dirty {
                if let Err(error) = self.plan_one(id).await {
                    tracing::warn!(vcluster = %id, %error, "cannot write a plan now; trying again");
                    self.view.mark_dirty(id);
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    async fn plan_one(&self, id: VclusterId) -> Result<(), StoreError> {
        loop {
            let planned = self.view.read(|cluster| plan(cluster, &self.policy, id));
            self.view.set_waiting(id, planned.waiting.clone());
            match self.commit(id, planned).await? {
                Committed::Nothing => return Ok(()),
                Committed::Done => {}
                // The picture is behind: what it lacks is on its way.
                Committed::Conflict => {
                    let mut changes = self.view.subscribe();
                    let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
                }
            }
        }
    }

    async fn commit(&self, id: VclusterId, planned: Planned) -> Result<Committed, StoreError> {
        if planned.decisions.is_empty() {
            return Ok(Committed::Nothing);
        }
        let count = planned.decisions.len();
        let txn = self.transaction(id, planned)?;
        fail::before("plan");
        match self.store.txn(txn).await? {
            Outcome::Committed { revision } => {
                fail::after("plan");
                tracing::debug!(vcluster = %id, writes = count, revision, "planned");
                self.view.reached(revision).await;
                Ok(Committed::Done)
            }
            Outcome::Conflict => Ok(Committed::Conflict),
        }
    }

    fn transaction(&self, id: VclusterId, planned: Planned) -> Result<Txn, StoreError> {
        let key = |key: &Key| self.keys.write(key);
        let mut txn = Txn::new().when(Compare::as_read(key(&Key::Spec(id)), planned.spec_revision));
        if let Some(revision) = planned.network_taken {
            let counter = key(&Key::NetworkAlloc);
            txn = txn.when(Compare::as_read(counter.clone(), revision)).put(counter, &id)?;
        }
        for (host, revision) in planned.placed_on {
            let counter = key(&Key::HostAlloc(host));
            txn = txn.when(Compare::as_read(counter.clone(), revision)).put(counter, &id)?;
        }
        let deletes_network = planned.decisions.iter().any(|d| matches!(d, Decision::DeleteNetwork { .. }));
        let forgets = planned.decisions.iter().any(|d| matches!(d, Decision::ForgetVcluster { .. }));
        if forgets && !deletes_network {
            // Decided from a picture without a network: one that is there all the same would stay for ever.
            txn = txn.when(Compare::Absent { key: key(&Key::Network(id)) });
        }
        for decision in planned.decisions {
            txn = self.add(txn, decision)?;
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
            Decision::ForgetVcluster { spec } => {
                let owner = &spec.value.owner;
                let usage = self.view.read(|cluster| cluster.usage(owner).cloned());
                let gone = Usage::of(&spec.value);
                let left = usage.as_ref().map_or_else(Usage::default, |u| u.value.minus(gone));
                let usage_key = key(Key::Usage(owner.clone()));
                let txn = txn.delete(key(Key::Spec(spec.value.id)));
                // What nobody asked for has no name and is in no sum.
                if spec.value.warm.is_some() {
                    txn
                } else {
                    txn.when(Compare::as_read(usage_key.clone(), usage.map(|u| u.revision)))
                        .put(usage_key, &left)?
                        .delete(key(Key::Name(owner.clone(), spec.value.name.clone())))
                }
            }
        })
    }
}
