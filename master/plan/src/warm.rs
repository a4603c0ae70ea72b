//! Vclusters that are kept warm: made before anybody asks, booted and frozen, so that the owner's next request finds them.
//!
//! To the planner and the hosts a warm vcluster is one like any other, with network, keys and ids of its own. A request
//! takes it over as a whole: it gets the name, what is too much of it goes, what is missing is added.

use docklet_types::host::Capacity;
use docklet_types::image::ImageRef;
use docklet_types::name::{HostName, UserName};
use docklet_types::report::NodeState;
use docklet_types::size::Size;
use docklet_types::spec::{NodeSpec, VclusterSpec, Wanted};
use docklet_types::time::Micros;
use std::collections::BTreeMap;

use crate::admit;
use crate::cluster::{Cluster, HostState, Rev};
use crate::place::{self, Policy};

/// What a request must have in common with a warm vcluster.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub owner: &'a UserName,
    pub image: &'a ImageRef,
    pub size: Size,
    pub nodes: u32,
}

/// The warm vcluster that serves such a request, if there is one.
#[must_use]
pub fn find<'a>(cluster: &'a Cluster, policy: &Policy, asked: Asked<'_>) -> Option<&'a Rev<VclusterSpec>> {
    cluster.warm_of(asked.owner).find(|spec| {
        let subnet = cluster.network(spec.value.id).map(|n| n.value.subnet);
        spec.value.wanted == Wanted::Running
            && spec.value.image == *asked.image
            && subnet.is_some()
            && admit::fits_network(policy, subnet, asked.nodes).is_ok()
            && !is_spoilt(cluster, &spec.value)
            && (spec.value.size == asked.size || can_be_resized(cluster, policy, &spec.value, asked))
    })
}

/// What a node holds once it is up; the kernel may refuse a limit below that, and a cold node would come up with it.
const LEAST_MEMORY_MIB: u32 = 128;

/// A node that stands still takes any size that its host has room for, and that holds what it has. One that still boots
/// has the old one.
fn can_be_resized(cluster: &Cluster, policy: &Policy, spec: &VclusterSpec, asked: Asked<'_>) -> bool {
    let mut growth: BTreeMap<&HostName, Capacity> = BTreeMap::new();
    let taken = usize::try_from(asked.nodes).unwrap_or(usize::MAX);
    if asked.size.memory_mib < LEAST_MEMORY_MIB.min(spec.size.memory_mib) {
        return false;
    }
    for node in spec.nodes.iter().take(taken) {
        let placed = cluster.node(node.id);
        let frozen = placed.and_then(|p| p.report.as_ref()).filter(|(_, r)| r.value.state == NodeState::Frozen);
        let Some((host, _)) = frozen else { return false };
        let more = growth.entry(host).or_default();
        more.cpu_millis += u64::from(asked.size.cpu.millis().saturating_sub(node.size.cpu.millis()));
        more.memory_mib += u64::from(asked.size.memory_mib.saturating_sub(node.size.memory_mib));
        more.disk_mib += u64::from(asked.size.disk_mib.saturating_sub(node.size.disk_mib));
    }
    growth.iter().all(|(host, more)| cluster.host(host).is_some_and(|h| place::has_room(h, policy, more)))
}

/// The nodes of a request that takes over `warm`: first those that are there, then new ones by `make`.
#[must_use]
pub fn nodes(warm: &VclusterSpec, size: Size, count: u32, make: impl Fn(u32) -> NodeSpec) -> Vec<NodeSpec> {
    let there = u32::try_from(warm.nodes.len()).unwrap_or(u32::MAX);
    let kept = warm.nodes.iter().take(usize::try_from(count).unwrap_or(usize::MAX));
    kept.map(|node| NodeSpec { size, ..node.clone() }).chain((there + 1..=count).map(make)).collect()
}

/// Warm vclusters that are to go: their time is over, something is wrong with them, or others wait for their room
/// (`pressed`).
#[must_use]
pub fn outdated(cluster: &Cluster, now: Micros, pressed: bool) -> Vec<Rev<VclusterSpec>> {
    let over = |spec: &VclusterSpec| spec.warm.is_some_and(|w| w.until <= now);
    cluster
        .warm()
        .filter(|spec| spec.value.wanted != Wanted::Absent)
        .filter(|spec| pressed || over(&spec.value) || is_spoilt(cluster, &spec.value))
        .cloned()
        .collect()
}

/// When the next of them is over.
#[must_use]
pub fn next_end(cluster: &Cluster) -> Option<Micros> {
    let kept = cluster.warm().filter(|spec| spec.value.wanted != Wanted::Absent);
    kept.filter_map(|spec| spec.value.warm).map(|w| w.until).min()
}

/// A node of it failed, or is on a host that takes none: it is not worth moving.
fn is_spoilt(cluster: &Cluster, spec: &VclusterSpec) -> bool {
    let closed = |host: &HostState| !host.alive || host.is_cordoned() || host.lost.is_some();
    spec.nodes.iter().filter_map(|node| cluster.node(node.id)).any(|placed| {
        let failed = placed.report.as_ref().is_some_and(|(_, r)| r.value.state == NodeState::Failed);
        failed || placed.plan.as_ref().is_some_and(|(host, _)| cluster.host(host).is_none_or(closed))
    })
}
