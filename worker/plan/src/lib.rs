//! What a worker has to do: a pure comparison of what the host should hold with what it holds.
//!
//! [`node`] decides for one node, [`vcluster`] for one vcluster's share of the host, [`trouble`] when to try again after
//! a failure, [`limits`] what is told of limits; [`diff`] is all of it at once. Nothing here reads a clock or touches anything: times are arguments, what
//! happened is told through the histories. The rule that everything else bows to: without a plan nothing is done, and
//! only a plan that says `Absent` removes anything that anybody could miss ([`node::is_remains`] is the rest).

use std::collections::BTreeMap;

use docklet_types::id::{NodeId, VclusterId};
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::time::Micros;
use docklet_worker_host::Observed;

pub mod limits;
pub mod node;
pub mod trouble;
pub mod vcluster;

pub use node::{NodeAction, NodeHistory, NodeTodo};
pub use trouble::Trouble;
pub use vcluster::{VclusterHistory, VclusterTodo};

/// A plan older than one that was already followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the plan's generation {offered} is older than {held}, which is already followed")]
pub struct Refused {
    pub offered: u64,
    pub held: u64,
}

/// All plans of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredHost {
    pub nodes: BTreeMap<NodeId, NodePlan>,
    pub vclusters: BTreeMap<VclusterId, VclusterPlan>,
}

/// What the worker remembers of each object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub nodes: BTreeMap<NodeId, NodeHistory>,
    pub vclusters: BTreeMap<VclusterId, VclusterHistory>,
}

/// What is to be done on a host. Objects that are as wanted do not appear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostDiff {
    pub nodes: BTreeMap<NodeId, NodeTodo>,
    pub vclusters: BTreeMap<VclusterId, VclusterTodo>,
}

impl HostDiff {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.vclusters.is_empty()
    }
}

/// Compares a whole host with its plans. The plans are those that [`NodeHistory::accept`] took.
#[must_use]
pub fn diff(desired: &DesiredHost, observed: &Observed, history: &History, now: Micros) -> HostDiff {
    let nothing_seen = node::NOTHING;
    let mut out = HostDiff::default();
    for (id, plan) in &desired.nodes {
        let seen = observed.nodes.get(id).unwrap_or(&nothing_seen);
        let past = history.nodes.get(id).cloned().unwrap_or_default();
        match node::diff(plan, desired.vclusters.get(&plan.vcluster), seen, &past, now) {
            NodeTodo::Nothing => {}
            todo => {
                out.nodes.insert(*id, todo);
            }
        }
    }
    for (id, plan) in &desired.vclusters {
        let nodes_left = desired.nodes.values().filter(|n| n.vcluster == *id).any(|n| {
            let seen = observed.nodes.get(&n.id).unwrap_or(&nothing_seen);
            let cleaned = history.nodes.get(&n.id).is_some_and(|h| h.cleaned);
            !node::is_gone(n, seen, cleaned)
        });
        let past = history.vclusters.get(id).cloned().unwrap_or_default();
        match vcluster::diff(plan, observed.vclusters.get(id), &past, nodes_left, now) {
            VclusterTodo::Nothing => {}
            todo => {
                out.vclusters.insert(*id, todo);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests;
