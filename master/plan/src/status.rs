//! How a node and a vcluster are, computed from spec, plan and reports whenever somebody asks.

use docklet_types::id::NodeId;
use docklet_types::plan::NodePlan;
use docklet_types::report::{NodeState, Reason};
use docklet_types::spec::{VclusterSpec, Wanted};
use docklet_types::status::Status;
use std::collections::BTreeMap;

use crate::cluster::{Cluster, Placed, Rev};

/// A status with its reason where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    pub status: Status,
    pub reason: Option<Reason>,
}

impl Judged {
    fn plain(status: Status) -> Self {
        Self { status, reason: None }
    }
}

/// How one node is. `waiting` says why nodes without a place have none, as the planner found.
#[must_use]
pub fn of_node(cluster: &Cluster, wanted: Wanted, placed: Option<&Placed>, waiting: Option<&Reason>) -> Judged {
    // A node that is wanted and whose only plan says that it goes is about to be made anew elsewhere.
    let stays = |(_, plan): &&(_, Rev<NodePlan>)| wanted == Wanted::Absent || plan.value.wanted != Wanted::Absent;
    let Some((host, plan)) = placed.and_then(|p| p.plan.as_ref()).filter(stays) else {
        return match wanted {
            Wanted::Running => Judged { status: Status::Pending, reason: waiting.cloned() },
            Wanted::Stopped => Judged { status: Status::Stopped, reason: waiting.cloned() },
            Wanted::Absent => Judged::plain(Status::Deleting),
        };
    };
    let alive = cluster.host(host).is_some_and(|h| h.alive);
    let unreachable = || {
        (!alive).then(|| {
            Reason::new(
                "host_unreachable",
                format!("The host {host} cannot be reached. The node may still run; it is not started anywhere else."),
            )
        })
    };
    let report = placed.and_then(|p| p.report.as_ref()).map(|(_, r)| &r.value);
    // A report of an older plan says nothing about this one, unless it is about the same wish.
    let report = report.filter(|r| r.generation >= plan.value.generation);
    let failed = report.filter(|r| r.state == NodeState::Failed).and_then(|r| r.reason.clone());
    // The spec may be ahead of the plan for a moment: the wish is what counts.
    let status = match (wanted, report.map(|r| r.state)) {
        (Wanted::Absent, _) => Status::Deleting,
        (_, Some(NodeState::Failed)) => Status::Failed,
        (Wanted::Running, Some(NodeState::Ready)) if plan.value.wanted == Wanted::Running => Status::Running,
        (Wanted::Running, _) => Status::Starting,
        (Wanted::Stopped, Some(NodeState::Stopped)) if plan.value.wanted == Wanted::Stopped => Status::Stopped,
        (Wanted::Stopped, _) => Status::Stopping,
    };
    match unreachable() {
        Some(reason) if status == Status::Running => Judged { status: Status::Degraded, reason: Some(reason) },
        Some(reason) => Judged { status, reason: failed.or(Some(reason)) },
        None => Judged { status, reason: failed },
    }
}

/// How a whole vcluster is: what its nodes are taken together, with the reason of the first that is not well.
#[must_use]
pub fn of_vcluster(cluster: &Cluster, spec: &VclusterSpec, waiting: &BTreeMap<NodeId, Reason>) -> Judged {
    if spec.wanted == Wanted::Absent {
        let stuck = cluster.placed_nodes(spec.id).find_map(|(_, p)| {
            p.report
                .as_ref()
                .filter(|(_, r)| r.value.state == NodeState::Failed)
                .and_then(|(_, r)| r.value.reason.clone())
        });
        return Judged { status: Status::Deleting, reason: stuck };
    }
    let nodes: Vec<Judged> =
        spec.nodes.iter().map(|n| of_node(cluster, spec.wanted, cluster.node(n.id), waiting.get(&n.id))).collect();
    let count = |status: Status| nodes.iter().filter(|n| n.status == status).count();
    // A failure explains more than a wait.
    let reason = nodes.iter().filter(|n| n.status == Status::Failed).chain(nodes.iter()).find_map(|n| n.reason.clone());
    let (all, failed, pending) = (nodes.len(), count(Status::Failed), count(Status::Pending));
    let held_up = nodes.iter().any(|n| n.status == Status::Pending && n.reason.is_some());
    let status = match spec.wanted {
        Wanted::Stopped if count(Status::Stopped) == all => Status::Stopped,
        Wanted::Stopped if count(Status::Stopping) > 0 => Status::Stopping,
        Wanted::Stopped => Status::Failed,
        _ if count(Status::Running) == all => Status::Running,
        _ if failed == all => Status::Failed,
        _ if pending == all => Status::Pending,
        _ if count(Status::Starting) > 0 => Status::Starting,
        _ if pending > 0 && !held_up && failed == 0 => Status::Starting,
        _ if count(Status::Running) + count(Status::Degraded) == 0 && failed > 0 => Status::Failed,
        _ => Status::Degraded,
    };
    Judged { status, reason }
}
