//! The API's views, from the picture of the cluster.

use docklet_types::host::Capacity;
use docklet_types::host::CheckOutcome;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::label;
use docklet_types::moves::Stage;
use docklet_types::name::HostName;
use docklet_types::port::PortMapping;
use docklet_types::report::{LimitHit, NodeReport, NodeState, Reason, Step, StepTiming, VclusterReport};
use docklet_types::spec::{NodeSpec, Usage, VclusterSpec, Wanted};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{HostView, LimitHitView, MoveView, NodeView, PortView, StepView, UsageView, VclusterView};
use std::collections::{BTreeMap, HashSet};

use crate::cluster::{Cluster, HostState};
use crate::status;

/// Why nodes have no place, by node, as the planner last found.
pub type Waiting = BTreeMap<NodeId, Reason>;

/// Without the newest operation, which lies in the database.
#[must_use]
pub fn vcluster(cluster: &Cluster, spec: &VclusterSpec, waiting: &Waiting) -> VclusterView {
    let judged = status::of_vcluster(cluster, spec, waiting);
    let ready = spec
        .nodes
        .iter()
        .filter(|n| status::of_node(cluster, spec.wanted, cluster.node(n.id), None).status == Status::Running)
        .count();
    VclusterView {
        id: spec.id.to_string(),
        name: spec.name.to_string(),
        owner: spec.owner.to_string(),
        status: judged.status,
        reason: judged.reason,
        image: spec.image.name.to_string(),
        size: spec.size,
        nodes: u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX),
        nodes_ready: u32::try_from(ready).unwrap_or(u32::MAX),
        limits: spec.limits,
        host_labels: label::texts(&spec.host_labels),
        subnet: cluster.network(spec.id).map(|n| n.value.subnet.to_string()),
        created_at: spec.created_at.to_string(),
        changed_at: spec.changed_at.to_string(),
        generation: spec.generation,
        operation: None,
    }
}

/// The nodes of a vcluster in order, then those on their way out.
#[must_use]
pub fn nodes(cluster: &Cluster, spec: &VclusterSpec, waiting: &Waiting) -> Vec<NodeView> {
    let named: HashSet<NodeId> = spec.nodes.iter().map(|n| n.id).collect();
    let mut views: Vec<NodeView> = spec
        .nodes
        .iter()
        .map(|node| {
            let placed = cluster.node(node.id);
            let judged = status::of_node(cluster, spec.wanted, placed, waiting.get(&node.id));
            let plan = placed.and_then(|p| p.plan.as_ref());
            NodeView {
                name: node.name.to_string(),
                status: judged.status,
                reason: judged.reason,
                ip: plan.map(|(_, p)| p.value.ip.to_string()),
                host: plan.map(|(host, _)| host.to_string()),
                image: node.image.name.to_string(),
                size: node.size,
                ready_millis: placed.and_then(|p| p.report.as_ref()).and_then(|(_, r)| ready_millis(&r.value)),
                moving: moving(cluster, spec, node, waiting.get(&node.id)),
                limits_hit: placed
                    .and_then(|p| p.report.as_ref())
                    .map(|(_, r)| limits_hit(&r.value))
                    .unwrap_or_default(),
            }
        })
        .collect();
    for (id, placed) in cluster.placed_nodes(spec.id) {
        if let (false, Some((host, plan))) = (named.contains(&id), &placed.plan) {
            let failed = placed.report.as_ref().filter(|(_, r)| r.value.state == NodeState::Failed);
            views.push(NodeView {
                name: plan.value.name.to_string(),
                status: Status::Deleting,
                reason: failed.and_then(|(_, r)| r.value.reason.clone()),
                ip: Some(plan.value.ip.to_string()),
                host: Some(host.to_string()),
                image: plan.value.image.name.to_string(),
                size: plan.value.size,
                ready_millis: None,
                moving: None,
                limits_hit: Vec::new(),
            });
        }
    }
    views
}

fn limits_hit(report: &NodeReport) -> Vec<LimitHitView> {
    let view = |hit: &LimitHit| LimitHitView { limit: hit.limit, times: hit.times, at: hit.at.to_string() };
    report.limits_hit.iter().map(view).collect()
}

/// The published ports of a vcluster, by protocol and number.
#[must_use]
pub fn ports(cluster: &Cluster, spec: &VclusterSpec) -> Vec<PortView> {
    let mut mappings = spec.ports.clone();
    mappings.sort_by_key(|m| (m.protocol, m.public));
    mappings.iter().filter_map(|m| port(cluster, spec, m)).collect()
}

/// One of them, and where it is reached.
#[must_use]
pub fn port(cluster: &Cluster, spec: &VclusterSpec, mapping: &PortMapping) -> Option<PortView> {
    let node = spec.nodes.iter().find(|n| n.id == mapping.node)?;
    let host = cluster.node(node.id).and_then(|p| p.plan.as_ref()).map(|(host, _)| host);
    let address = host.and_then(|h| cluster.host(h)?.report.as_ref()?.value.address);
    let report = host.and_then(|h| cluster.share(spec.id, h)?.report.as_ref());
    let is_refused =
        |r: &VclusterReport| r.refused.iter().any(|f| (f.protocol, f.public) == (mapping.protocol, mapping.public));
    let reason = host.zip(report).filter(|(_, r)| is_refused(&r.value)).map(|(host, _)| {
        Reason::new(
            "port_in_use",
            format!(
                "A program of the host {host} itself uses port {}/{}. Publish the node at another port; this one leads to it once it is free.",
                mapping.public, mapping.protocol
            ),
        )
    });
    Some(PortView {
        node: node.name.to_string(),
        protocol: mapping.protocol,
        port: mapping.port,
        public_port: mapping.public,
        host: host.map(ToString::to_string),
        address: address.map(|a| a.to_string()),
        reason,
    })
}

/// How far a node is on its way to another host, where it is to be on one.
fn moving(cluster: &Cluster, spec: &VclusterSpec, node: &NodeSpec, waiting: Option<&Reason>) -> Option<MoveView> {
    let (home, plan) = cluster.node(node.id)?.plan.as_ref()?;
    let doc = cluster.moving(node.id).map(|m| &*m.value);
    let draining = cluster.host(home).is_some_and(HostState::is_draining);
    if doc.is_none() && !draining || plan.value.wanted == Wanted::Absent {
        return None;
    }
    let trip = doc.and_then(|d| d.trip.as_ref());
    let stage = doc.map_or(Stage::Waiting, |d| d.stage);
    Some(MoveView {
        owner: spec.owner.to_string(),
        vcluster: spec.name.to_string(),
        node: node.name.to_string(),
        from: trip.map_or(home, |t| &t.from).to_string(),
        to: trip.map(|t| &t.to).or(doc.and_then(|d| d.wanted.as_ref())).map(ToString::to_string),
        stage,
        bytes: trip.map_or(0, |t| t.bytes),
        reason: doc.and_then(|d| d.reason.clone()).or_else(|| waiting.filter(|_| stage == Stage::Waiting).cloned()),
    })
}

/// Nodes that leave a host: those under way first, then those that failed or wait, with why. Nodes that only wait for
/// their turn are left out.
#[must_use]
pub fn moves_from(cluster: &Cluster, name: &HostName, waiting: impl Fn(VclusterId) -> Waiting) -> Vec<MoveView> {
    let Some(host) = cluster.host(name) else { return Vec::new() };
    // Mostly nothing moves, and a list of hosts must not look at every node to see that.
    if !host.is_draining() && cluster.moves().next().is_none() {
        return Vec::new();
    }
    let vclusters: HashSet<VclusterId> =
        host.nodes.iter().filter_map(|id| cluster.node(*id)?.plan.as_ref().map(|(_, p)| p.value.vcluster)).collect();
    let mut found = Vec::new();
    for spec in vclusters.into_iter().filter_map(|id| cluster.spec(id)) {
        let reasons = waiting(spec.value.id);
        let views = spec.value.nodes.iter().filter_map(|n| moving(cluster, &spec.value, n, reasons.get(&n.id)));
        found.extend(views.filter(|m| m.from == name.as_str() && (m.stage != Stage::Waiting || m.reason.is_some())));
    }
    found.sort_by(|a, b| {
        let key = |m: &MoveView| (!m.stage.is_under_way(), m.owner.clone(), m.vcluster.clone(), m.node.clone());
        key(a).cmp(&key(b))
    });
    found
}

/// From the first step of the last start to its end.
fn ready_millis(report: &NodeReport) -> Option<u64> {
    if report.state != NodeState::Ready {
        return None;
    }
    let first = report.steps.first()?.started_at;
    let last = report.steps.iter().rfind(|s| matches!(s.step, Step::Ready | Step::Thaw))?.ended_at?;
    Some(last.millis_since(first))
}

/// Whether everything that the spec asks for was observed, and nothing else is left.
#[must_use]
pub fn is_done(cluster: &Cluster, spec: &VclusterSpec) -> bool {
    let named: HashSet<NodeId> = spec.nodes.iter().map(|n| n.id).collect();
    let wanted = match spec.wanted {
        Wanted::Running => Status::Running,
        Wanted::Stopped => Status::Stopped,
        Wanted::Absent => return false,
    };
    spec.nodes.iter().all(|n| {
        cluster.node(n.id).is_some_and(|p| p.plan.is_some())
            && status::of_node(cluster, spec.wanted, cluster.node(n.id), None).status == wanted
    }) && cluster.placed_nodes(spec.id).all(|(id, _)| named.contains(&id))
}

/// The steps of the change in force, over all nodes, in the order they begin. `now` ends those that run.
#[must_use]
pub fn steps(cluster: &Cluster, spec: &VclusterSpec, now: Micros) -> Vec<StepView> {
    let since = spec.changed_at;
    let mut timings: BTreeMap<Step, Vec<StepTiming>> = BTreeMap::new();
    let mut add = |step, started_at, ended_at| {
        timings.entry(step).or_default().push(StepTiming { step, started_at, ended_at });
    };
    let admitted = spec.admitted_at.filter(|at| *at >= since);
    if let Some(at) = admitted {
        add(Step::Admit, since, Some(at));
    }
    for (_, placed) in cluster.placed_nodes(spec.id) {
        let reported = placed.report.iter().flat_map(|(_, r)| &r.value.steps).filter(|t| t.started_at >= since);
        let planned = placed.plan.as_ref().and_then(|(_, p)| p.value.planned_at).filter(|at| *at >= since);
        if let Some(planned) = planned {
            add(Step::Place, admitted.unwrap_or(since), Some(planned));
            add(Step::HandOver, planned, reported.clone().map(|t| t.started_at).min());
        }
        for timing in reported {
            add(timing.step, timing.started_at, timing.ended_at);
        }
    }
    if spec.wanted == Wanted::Running {
        let fresh = spec.nodes.iter().filter(|n| cluster.node(n.id).is_none_or(|p| p.plan.is_none()));
        fresh.for_each(|_| add(Step::Place, admitted.unwrap_or(since), None));
    }
    timings.into_iter().map(|(step, all)| over_all(step, &all, since, now)).collect()
}

/// The same for a change that has come to its end `now`.
#[must_use]
pub fn steps_to_the_end(cluster: &Cluster, spec: &VclusterSpec, now: Micros) -> Vec<StepView> {
    let mut views = steps(cluster, spec, now);
    let reports = cluster.placed_nodes(spec.id).filter_map(|(_, placed)| placed.report.as_ref());
    let ended = reports.flat_map(|(_, r)| &r.value.steps).filter_map(|t| t.ended_at).max();
    if let Some(ended) = ended.filter(|at| *at >= spec.changed_at) {
        let timing = StepTiming { step: Step::Report, started_at: ended, ended_at: Some(now) };
        views.push(over_all(Step::Report, &[timing], spec.changed_at, now));
    }
    views
}

fn over_all(step: Step, all: &[StepTiming], since: Micros, now: Micros) -> StepView {
    let started = all.iter().map(|t| t.started_at).min().unwrap_or(now);
    let finished = all.iter().all(|t| t.ended_at.is_some());
    let ended = if finished { all.iter().filter_map(|t| t.ended_at).max().unwrap_or(now) } else { now };
    StepView {
        step,
        done: u32::try_from(all.iter().filter(|t| t.ended_at.is_some()).count()).unwrap_or(u32::MAX),
        total: u32::try_from(all.len()).unwrap_or(u32::MAX),
        started_millis: started.millis_since(since),
        millis: ended.millis_since(started),
        finished,
    }
}

#[must_use]
pub fn usage(usage: &Usage) -> UsageView {
    UsageView {
        vclusters: usage.vclusters,
        nodes: usage.nodes,
        cpu: usage.cpu_millis as f64 / 1000.0,
        memory_mib: usage.memory_mib,
        disk_mib: usage.disk_mib,
        ports: usage.ports,
    }
}

/// `None` for a host that has never described itself. `waiting` tells why nodes of a vcluster wait.
#[must_use]
pub fn host(
    cluster: &Cluster,
    name: &HostName,
    host: &HostState,
    waiting: impl Fn(VclusterId) -> Waiting,
) -> Option<HostView> {
    let report = &host.report.as_ref()?.value;
    let failed = report.checks.iter().any(|c| c.outcome == CheckOutcome::Failed);
    let status = match () {
        () if !host.alive => "unreachable",
        () if failed => "failed",
        () if host.lost.is_some() => "clearing",
        () if host.is_draining() && host.nodes.is_empty() => "drained",
        () if host.is_draining() => "draining",
        () if host.is_cordoned() => "cordoned",
        () => "ready",
    };
    let allocated: Capacity = host.allocated;
    Some(HostView {
        name: name.to_string(),
        status: status.to_owned(),
        cordoned: host.is_cordoned(),
        labels: host.settings.as_ref().map(|s| label::texts(&s.value.labels)).unwrap_or_default(),
        draining: host.is_draining(),
        moves: moves_from(cluster, name, waiting),
        version: report.version.clone(),
        kernel: report.kernel.clone(),
        cgroup: report.cgroup.clone(),
        storage: report.storage.clone(),
        capacity: report.capacity,
        allocated,
        nodes: u32::try_from(host.nodes.len()).unwrap_or(u32::MAX).saturating_sub(host.tally.warm),
        nodes_ready: host.tally.ready,
        nodes_warm: host.tally.frozen,
        checks: report.checks.clone(),
        started_at: report.started_at.to_string(),
    })
}
