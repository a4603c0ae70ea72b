//! A host that comes back after an operator gave it up for lost: its nodes were made anew elsewhere, so that everything it
//! still holds goes, whatever plans it knows. Only the store's own word counts, never the local copy's.

use std::sync::Arc;

use docklet_store::keys::Key;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::spec::Wanted;
use docklet_worker_host::HostError;
use docklet_worker_plan::node::NOTHING;
use std::time::Duration;

use super::Event;
use super::actor::{Loop, Object};
use super::task::Context;

/// After something could not be removed.
const AGAIN: Duration = Duration::from_secs(5);

impl Loop {
    /// The number of the loss that this host has to answer, if there is one.
    pub(super) fn loss(&self) -> Option<u64> {
        if self.plans.is_live() { self.plans.read(|p| p.lost()) } else { None }
    }

    /// Takes the next step towards an empty host, and says when it is empty.
    pub(super) fn clear_lost(&mut self) {
        let Some(number) = self.loss() else {
            if self.cleared.take().is_some() {
                self.reporter.delete(self.keys.write(&Key::Cleared(self.settings.host.clone())));
            }
            if self.seen_loss.take().is_some() {
                // What was put off meanwhile.
                self.dirty_nodes.extend(self.nodes.keys());
                self.dirty_vclusters.extend(self.vclusters.keys());
            }
            return;
        };
        if self.stopping || self.cleared == Some(number) {
            return;
        }
        if self.seen_loss.is_none_or(|(seen, _)| seen != number) {
            tracing::warn!(number, "an operator gave this host up for lost; everything that it still holds is removed");
            self.seen_loss = Some((number, false));
            self.look();
        }
        let mut left = false;
        for (id, node) in &mut self.nodes {
            // What is planned to go goes its usual way.
            let leaves = node.plan.as_ref().is_some_and(|p| p.wanted == Wanted::Absent);
            left |= node.observed != NOTHING || node.task.is_some();
            if let Some(task) = node.task.as_ref().filter(|_| !leaves) {
                task.cancel.cancel();
            } else if !leaves && node.observed != NOTHING && self.clearing.insert(Object::Node(*id)) {
                self.tasks.spawn(remove_node(self.context.clone(), *id));
            }
        }
        if left {
            return;
        }
        for (id, vcluster) in &self.vclusters {
            left |= vcluster.observed.is_some() || vcluster.busy;
            if vcluster.observed.is_some() && !vcluster.busy && self.clearing.insert(Object::Vcluster(*id)) {
                self.tasks.spawn(remove_vcluster(self.context.clone(), *id));
            }
        }
        if !left && self.clearing.is_empty() && self.seen_loss == Some((number, true)) {
            tracing::info!(number, "nothing of what was lost is left on this host");
            self.cleared = Some(number);
            if let Ok(document) = serde_json::to_vec(&number) {
                self.reporter.put(self.keys.write(&Key::Cleared(self.settings.host.clone())), document, true);
            }
        }
    }

    pub(super) fn node_cleared(&mut self, id: NodeId, gone: bool) {
        self.clearing.remove(&Object::Node(id));
        self.count += 1;
        if let Some(node) = self.nodes.get_mut(&id).filter(|_| gone) {
            node.touched = self.count;
            node.observed = NOTHING;
            node.watch = None;
            if node.plan.is_none() && node.task.is_none() {
                self.nodes.remove(&id);
            }
        }
        // A plan that came meanwhile has waited.
        self.dirty_nodes.insert(id);
    }

    pub(super) fn vcluster_cleared(&mut self, id: VclusterId, gone: bool) {
        self.clearing.remove(&Object::Vcluster(id));
        self.count += 1;
        if let Some(vcluster) = self.vclusters.get_mut(&id).filter(|_| gone) {
            vcluster.touched = self.count;
            vcluster.observed = None;
            vcluster.history.removed();
            if vcluster.plan.is_none() {
                self.vclusters.remove(&id);
            }
        }
    }
}

pub(super) async fn remove_node(context: Arc<Context>, id: NodeId) {
    let host = &context.host;
    let removed = async {
        host.stop(id, Duration::ZERO).await?;
        let port = host.remove_port(id).await;
        let disk = host.remove_disk(id).await;
        port.and(disk)
    };
    let gone = said(removed.await, &id).await;
    context.tell(Event::NodeCleared(id, gone));
}

async fn remove_vcluster(context: Arc<Context>, id: VclusterId) {
    let gone = said(context.host.remove_vcluster(id).await, &id).await;
    context.tell(Event::VclusterCleared(id, gone));
}

/// Whether it went well; if not, only after a pause.
async fn said(result: Result<(), HostError>, id: &(dyn std::fmt::Display + Sync)) -> bool {
    let Err(HostError(reason)) = result else { return true };
    tracing::warn!(%id, code = reason.code, reason = reason.message, "something could not be removed; trying again");
    tokio::time::sleep(AGAIN).await;
    false
}
