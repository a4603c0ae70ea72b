//! From specs and reports to the writes that bring the hosts nearer to what is wanted.
//!
//! One call looks at one vcluster and returns writes that belong into one transaction, at most [`BATCH`] of them.
//! Planning again after they are committed gives the next ones; when nothing is left to do, there are none. So a
//! planner that crashes between two transactions, or runs twice, does no harm.

use docklet_types::id::{NodeId, VclusterId};
use docklet_types::moves::Move;
use docklet_types::name::HostName;
use docklet_types::net::{Mac, Subnet};
use docklet_types::plan::{Network, NodePlan, Peer, VclusterPlan};
use docklet_types::port::Forward;
use docklet_types::report::{NodeState, Reason};
use docklet_types::spec::{NodeSpec, VclusterSpec, Wanted};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use crate::cluster::{Cluster, Rev};
use crate::moving;
use crate::place::{Places, Policy};

/// Most node writes of one transaction: with the other writes and compares it stays below etcd's 128 operations.
pub const BATCH: usize = 50;
/// The smallest network of a vcluster: 61 nodes.
const SMALLEST_PREFIX: u8 = 26;

/// One write, with the revision that it replaces.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    PutNetwork {
        id: VclusterId,
        network: Network,
    },
    DeleteNetwork {
        id: VclusterId,
        revision: i64,
    },
    PutNode {
        host: HostName,
        plan: Box<NodePlan>,
        revision: Option<i64>,
    },
    /// The node is gone from its host: its plan and report go.
    ForgetNode {
        host: HostName,
        id: NodeId,
        revision: i64,
    },
    PutShare {
        host: HostName,
        plan: Box<VclusterPlan>,
        revision: Option<i64>,
    },
    /// The host has let go of the vcluster: plan and report of its share go.
    ForgetShare {
        host: HostName,
        id: VclusterId,
        revision: i64,
    },
    PutMove {
        doc: Box<Move>,
        revision: Option<i64>,
    },
    /// The node has moved, or is not to any more.
    DeleteMove {
        node: NodeId,
        revision: i64,
    },
    /// Nothing of the vcluster is left: its spec and name go and its owner's usage shrinks.
    ForgetVcluster {
        spec: Rev<VclusterSpec>,
    },
}

/// What one look at a vcluster came to.
#[derive(Debug, Clone, Default)]
pub struct Planned {
    pub decisions: Vec<Decision>,
    /// The spec that this follows from must still be at this revision.
    pub spec_revision: Option<i64>,
    /// Hosts that get new nodes, with the revision of their allocation counters: these are compared and raised.
    pub placed_on: BTreeMap<HostName, Option<i64>>,
    /// A network was taken: the network counter, with this revision, is compared and raised.
    pub network_taken: Option<Option<i64>>,
    /// Nodes that have no place, or cannot leave the one they have, and why.
    pub waiting: BTreeMap<NodeId, Reason>,
}

/// The prefix of a network for that many nodes with room to double, or just enough where that is too large; `None`
/// where even half of `net` is too small.
#[must_use]
pub fn subnet_prefix(net: Subnet, nodes: u32) -> Option<u8> {
    let largest = net.prefix() + 1;
    let fits = |prefix: u8, count: u64| (1u64 << (32 - prefix)) - 3 >= count;
    let roomy = (largest..=SMALLEST_PREFIX).rev().find(|p| fits(*p, u64::from(nodes) * 2));
    roomy.or_else(|| (largest..=SMALLEST_PREFIX).rev().find(|p| fits(*p, u64::from(nodes))))
}

/// A free network of that prefix. The search begins at a place that the id decides, so that addresses are not reused
/// soon and two planners seldom want the same.
fn free_subnet(cluster: &Cluster, net: Subnet, prefix: u8, id: VclusterId) -> Option<Subnet> {
    let count = 1u64 << (prefix - net.prefix());
    let start = (id.as_uuid().as_u128() as u64) % count;
    (0..count).find_map(|i| {
        let index = (start + i) % count;
        let base = u32::from(net.base()) + u32::try_from(index << (32 - prefix)).ok()?;
        let subnet = Subnet::containing(Ipv4Addr::from(base), prefix)?;
        cluster.subnet_is_free(subnet).then_some(subnet)
    })
}

/// The VNI follows from the subnet, so that one allocation serves both: its index among all /26 of the network, from 1.
fn vni(net: Subnet, subnet: Subnet) -> u32 {
    1 + ((u32::from(subnet.base()) - u32::from(net.base())) >> (32 - SMALLEST_PREFIX))
}

/// What to write for one vcluster now.
#[must_use]
pub fn plan(cluster: &Cluster, policy: &Policy, id: VclusterId) -> Planned {
    let mut planned = Planned::default();
    let Some(spec) = cluster.spec(id) else {
        return planned;
    };
    planned.spec_revision = Some(spec.revision);
    forget_absent_nodes(cluster, &spec.value, &mut planned);
    if spec.value.wanted == Wanted::Absent {
        plan_removal(cluster, spec, &mut planned);
    } else {
        let preboot = policy.preboot();
        let policy = if spec.value.warm.is_some() { &preboot } else { policy };
        plan_presence(cluster, policy, &spec.value, &mut planned);
    }
    planned
}

/// Nodes whose host reported them absent after it was told so.
fn forget_absent_nodes(cluster: &Cluster, spec: &VclusterSpec, planned: &mut Planned) {
    for (node, placed) in cluster.placed_nodes(spec.id) {
        for (host, half) in &placed.halves {
            let Some(plan) = &half.plan else { continue };
            let gone = half
                .report
                .as_ref()
                .is_some_and(|r| r.value.state == NodeState::Absent && r.value.generation >= plan.value.generation);
            // The last plan of a node that is to be made anew elsewhere still holds its address.
            let last = placed.plan.as_ref().is_some_and(|(home, _)| home == host);
            let needed = last && spec.wanted != Wanted::Absent && spec.nodes.iter().any(|n| n.id == node);
            if plan.value.wanted == Wanted::Absent && gone && !needed && planned.decisions.len() < BATCH {
                planned.decisions.push(Decision::ForgetNode { host: host.clone(), id: node, revision: plan.revision });
            }
        }
    }
}

/// Asks a host to let go of a node. One that is lost is not asked.
pub(crate) fn retire_half(cluster: &Cluster, host: &HostName, plan: &Rev<NodePlan>, planned: &mut Planned) {
    if planned.decisions.len() >= BATCH {
        return;
    }
    if is_lost(cluster, host) {
        let id = plan.value.id;
        planned.decisions.push(Decision::ForgetNode { host: host.clone(), id, revision: plan.revision });
    } else if plan.value.wanted != Wanted::Absent {
        let mut retired = (*plan.value).clone();
        retired.wanted = Wanted::Absent;
        retired.generation += 1;
        put_again(host, plan, retired, planned);
    }
}

fn is_forgotten(planned: &Planned, host: &HostName, node: NodeId) -> bool {
    planned.decisions.iter().any(|d| matches!(d, Decision::ForgetNode { host: h, id, .. } if h == host && *id == node))
}

fn is_lost(cluster: &Cluster, host: &HostName) -> bool {
    cluster.host(host).is_some_and(|h| h.lost.is_some())
}

/// Replaces a node's plan.
pub(crate) fn put_again(host: &HostName, old: &Rev<NodePlan>, new: NodePlan, planned: &mut Planned) {
    planned.decisions.push(Decision::PutNode { host: host.clone(), plan: Box::new(new), revision: Some(old.revision) });
}

fn plan_removal(cluster: &Cluster, spec: &Rev<VclusterSpec>, planned: &mut Planned) {
    let id = spec.value.id;
    moving::forget_moves(cluster, |m| m.vcluster == id, planned);
    let mut halves = 0;
    for (_, placed) in cluster.placed_nodes(id) {
        for (host, half) in &placed.halves {
            if let Some(plan) = &half.plan {
                halves += 1;
                if !is_forgotten(planned, host, plan.value.id) {
                    retire_half(cluster, host, plan, planned);
                }
            }
        }
    }
    let forgotten = planned.decisions.iter().filter(|d| matches!(d, Decision::ForgetNode { .. })).count();
    let nodes_left = forgotten < halves;
    let mut shares_left = false;
    for (host, share) in cluster.shares(id) {
        shares_left |= !retire_share(cluster, host, share, nodes_left, planned);
    }
    if nodes_left || shares_left || planned.decisions.len() >= BATCH {
        return;
    }
    if let Some(network) = cluster.network(id) {
        planned.decisions.push(Decision::DeleteNetwork { id, revision: network.revision });
    }
    planned.decisions.push(Decision::ForgetVcluster { spec: spec.clone() });
}

/// Takes a host's share of a vcluster away; `true` once the host has let go and the share can be forgotten.
fn retire_share(
    cluster: &Cluster,
    host: &HostName,
    share: &crate::cluster::Share,
    nodes_left: bool,
    planned: &mut Planned,
) -> bool {
    let Some(plan) = &share.plan else {
        // A report without a plan is dropped with the next write of its host.
        return true;
    };
    if is_lost(cluster, host) {
        let id = plan.value.id;
        planned.decisions.push(Decision::ForgetShare { host: host.clone(), id, revision: plan.revision });
        return true;
    }
    if plan.value.wanted != Wanted::Absent {
        let mut retired = (*plan.value).clone();
        retired.wanted = Wanted::Absent;
        retired.generation += 1;
        planned.decisions.push(Decision::PutShare {
            host: host.clone(),
            plan: Box::new(retired),
            revision: Some(plan.revision),
        });
        return false;
    }
    let gone = share.report.as_ref().is_some_and(|r| !r.value.present && r.value.generation >= plan.value.generation);
    if gone && !nodes_left {
        planned.decisions.push(Decision::ForgetShare {
            host: host.clone(),
            id: plan.value.id,
            revision: plan.revision,
        });
        return true;
    }
    false
}

fn plan_presence(cluster: &Cluster, policy: &Policy, spec: &VclusterSpec, planned: &mut Planned) {
    let id = spec.id;
    let named: HashSet<NodeId> = spec.nodes.iter().map(|n| n.id).collect();
    let unnamed = || cluster.placed_nodes(id).filter(|(node, _)| !named.contains(node));
    moving::forget_moves(cluster, |m| m.vcluster == id && !named.contains(&m.node), planned);
    for (_, placed) in unnamed() {
        for (host, half) in &placed.halves {
            if let Some(plan) = half.plan.as_ref().filter(|p| !is_forgotten(planned, host, p.value.id)) {
                retire_half(cluster, host, plan, planned);
            }
        }
    }
    let network = match cluster.network(id) {
        Some(network) => *network.value,
        None => {
            let prefix = subnet_prefix(policy.cluster_net, u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX));
            let Some(subnet) = prefix.and_then(|p| free_subnet(cluster, policy.cluster_net, p, id)) else {
                let reason = Reason::new(
                    "no_network",
                    format!(
                        "All networks of {} are taken. A vcluster must be deleted, or an administrator must enlarge CLUSTER_NET.",
                        policy.cluster_net
                    ),
                );
                planned.waiting = spec.nodes.iter().map(|n| (n.id, reason.clone())).collect();
                return;
            };
            let network = Network { subnet, vni: vni(policy.cluster_net, subnet) };
            planned.network_taken = Some(cluster.network_alloc_revision());
            planned.decisions.push(Decision::PutNetwork { id, network });
            network
        }
    };
    plan_nodes(cluster, policy, spec, network, planned);
    plan_shares(cluster, spec, network, planned);
}

fn plan_nodes(cluster: &Cluster, policy: &Policy, spec: &VclusterSpec, network: Network, planned: &mut Planned) {
    let mut siblings: BTreeMap<HostName, u32> = BTreeMap::new();
    let mut taken: HashSet<Ipv4Addr> = HashSet::new();
    for (_, placed) in cluster.placed_nodes(spec.id) {
        if let Some((host, plan)) = &placed.plan {
            *siblings.entry(host.clone()).or_default() += 1;
            taken.insert(plan.value.ip);
        }
    }
    let mut free = network.subnet.node_addresses().filter(move |ip| !taken.contains(ip));
    let mut places = Places::new(cluster, policy, siblings, &spec.host_labels);
    for node in &spec.nodes {
        let placed = cluster.node(node.id);
        if let Some((host, plan)) = placed.and_then(|p| p.plan.as_ref()) {
            if is_lost(cluster, host) || plan.value.wanted == Wanted::Absent {
                make_anew(&mut places, spec, node, planned);
            } else if !moving::advance(&mut places, spec, node, planned) {
                update_node(spec, node, host, plan, planned);
            }
            continue;
        }
        // What was on its way to a host goes before the node gets a place.
        if placed.is_some_and(|p| moving::drop_incoming(cluster, p, planned)) || planned.decisions.len() >= BATCH {
            continue;
        }
        let Some(ip) = free.next() else {
            planned.waiting.insert(
                node.id,
                Reason::new("no_address", format!("The vcluster's network {} is full.", network.subnet)),
            );
            continue;
        };
        match places.room().take(node.size) {
            Ok(host) => {
                planned.placed_on.insert(host.clone(), cluster.host(&host).and_then(|h| h.alloc_revision));
                let plan = Box::new(new_node(spec, node, ip));
                planned.decisions.push(Decision::PutNode { host, plan, revision: None });
            }
            Err(reason) => {
                planned.waiting.insert(node.id, reason);
            }
        }
    }
}

fn new_node(spec: &VclusterSpec, node: &NodeSpec, ip: Ipv4Addr) -> NodePlan {
    NodePlan {
        id: node.id,
        vcluster: spec.id,
        owner: spec.owner.clone(),
        name: node.name.clone(),
        generation: 1,
        wanted: spec.wanted,
        attempt: node.attempt,
        image: node.image.clone(),
        size: node.size,
        range: spec.range,
        ip,
        mac: Mac::of_address(ip),
        moving: None,
        frozen: spec.warm.is_some(),
        planned_at: None,
    }
}

/// The plan as the spec asks for it now, of the same generation.
pub(crate) fn updated(spec: &VclusterSpec, node: &NodeSpec, plan: &NodePlan) -> NodePlan {
    NodePlan {
        wanted: spec.wanted,
        attempt: node.attempt,
        size: node.size,
        frozen: spec.warm.is_some(),
        ..plan.clone()
    }
}

fn update_node(spec: &VclusterSpec, node: &NodeSpec, host: &HostName, plan: &Rev<NodePlan>, planned: &mut Planned) {
    let mut next = updated(spec, node, &plan.value);
    // A node on its way out is not called back: its spec has forgotten it, ids are not reused.
    if plan.value.wanted == Wanted::Absent || next == *plan.value || planned.decisions.len() >= BATCH {
        return;
    }
    next.generation += 1;
    put_again(host, plan, next, planned);
}

/// A node whose host is lost with its disk: it gets a new one on another host, at its old address. Where there is no room
/// its plan stays as a tombstone, so that the address is kept and the old host, should it come back, removes it.
fn make_anew(places: &mut Places<'_>, spec: &VclusterSpec, node: &NodeSpec, planned: &mut Planned) {
    let cluster = places.cluster;
    let Some(placed) = cluster.node(node.id) else { return };
    let Some((old, plan)) = &placed.plan else { return };
    moving::forget_moves(cluster, |m| m.node == node.id, planned);
    let arriving = moving::drop_incoming(cluster, placed, planned);
    if planned.decisions.len() + 2 > BATCH {
        return;
    }
    // Nobody answers for a host that is lost; any other must have said that the node is gone.
    let gone = is_lost(cluster, old)
        || placed
            .report
            .as_ref()
            .is_some_and(|(_, r)| r.value.state == NodeState::Absent && r.value.generation >= plan.value.generation);
    let found = if arriving || !gone {
        Err(node_lost(old))
    } else {
        places.room().give_back(old, plan.value.size);
        places.room().take(node.size)
    };
    match found {
        Ok(host) => {
            planned.placed_on.insert(host.clone(), cluster.host(&host).and_then(|h| h.alloc_revision));
            let mut fresh = new_node(spec, node, plan.value.ip);
            fresh.generation = plan.value.generation + 1;
            if host == *old {
                put_again(old, plan, fresh, planned);
            } else {
                planned.decisions.push(Decision::PutNode { host, plan: Box::new(fresh), revision: None });
                let (host, id) = (old.clone(), node.id);
                planned.decisions.push(Decision::ForgetNode { host, id, revision: plan.revision });
            }
        }
        Err(reason) => {
            if plan.value.wanted != Wanted::Absent {
                let mut tombstone = (*plan.value).clone();
                tombstone.wanted = Wanted::Absent;
                tombstone.generation += 1;
                tombstone.moving = None;
                put_again(old, plan, tombstone, planned);
            }
            planned.waiting.insert(node.id, reason);
        }
    }
}

fn node_lost(host: &HostName) -> Reason {
    Reason::new(
        "node_lost",
        format!("The host {host} was given up for lost with this node's disk. The node is made anew from its image."),
    )
}

/// The numbers of hosts' losses that are settled: the host has said that it let go of everything, and so do its plans.
#[must_use]
pub fn settled_losses(cluster: &Cluster) -> Vec<(HostName, i64)> {
    let clean = |id: &NodeId, host: &HostName| {
        cluster.node(*id).and_then(|p| p.halves.get(host)).is_none_or(|half| {
            half.plan.as_ref().is_none_or(|p| p.value.wanted == Wanted::Absent)
                && half.report.as_ref().is_none_or(|r| r.value.state == NodeState::Absent)
        })
    };
    let settled = cluster.hosts().filter_map(|(name, host)| {
        let lost = host.lost.as_ref().filter(|l| host.cleared == Some(l.value.number))?;
        host.nodes.iter().all(|id| clean(id, name)).then(|| (name.clone(), lost.revision))
    });
    settled.collect()
}

/// Each host with nodes gets the vcluster's share with all peers; a host without any lets go of it.
fn plan_shares(cluster: &Cluster, spec: &VclusterSpec, network: Network, planned: &mut Planned) {
    let mut forwards: BTreeMap<HostName, Vec<Forward>> = BTreeMap::new();
    // Every plan as it will be after this transaction.
    let mut halves: BTreeMap<(NodeId, &HostName), &NodePlan> = BTreeMap::new();
    for (node, placed) in cluster.placed_nodes(spec.id) {
        for (host, half) in &placed.halves {
            halves.extend(half.plan.as_ref().map(|plan| ((node, host), &*plan.value)));
        }
    }
    for decision in &planned.decisions {
        if let Decision::PutNode { host, plan, .. } = decision {
            halves.insert((plan.id, host), plan);
        }
    }
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    let mut holding: BTreeSet<HostName> = BTreeSet::new();
    for ((node, host), plan) in halves {
        // Of a host that said that a node is gone a share may still be there, and goes after its nodes.
        if is_lost(cluster, host) {
            continue;
        }
        holding.insert(host.clone());
        if plan.wanted != Wanted::Absent && !plan.is_incoming() {
            peers.insert(node, Peer { name: plan.name.clone(), ip: plan.ip, mac: plan.mac, host: host.clone() });
        }
    }
    for mapping in &spec.ports {
        if let Some(peer) = peers.get(&mapping.node) {
            let forward =
                Forward { protocol: mapping.protocol, public: mapping.public, ip: peer.ip, port: mapping.port };
            forwards.entry(peer.host.clone()).or_default().push(forward);
        }
    }
    let peers: Vec<Peer> = peers.into_values().collect();
    let address = |host: &HostName| Some((host.clone(), cluster.host(host)?.report.as_ref()?.value.address?));
    // A vcluster on one host needs none, and is not told again when that moves.
    let several = peers.windows(2).any(|pair| pair[0].host != pair[1].host);
    let hosts: BTreeMap<HostName, Ipv4Addr> =
        if several { peers.iter().filter_map(|p| address(&p.host)).collect() } else { BTreeMap::new() };
    for host in &holding {
        let present =
            cluster.shares(spec.id).find(|(name, _)| *name == host).and_then(|(_, share)| share.plan.as_ref());
        let mut wanted = VclusterPlan {
            id: spec.id,
            owner: spec.owner.clone(),
            name: spec.name.clone(),
            generation: present.map_or(1, |p| p.value.generation),
            wanted: Wanted::Running,
            range: spec.range,
            network,
            peers: peers.clone(),
            hosts: hosts.clone(),
            forwards: forwards.get(host).cloned().unwrap_or_default(),
            limits: spec.limits,
            keys: spec.keys.clone(),
        };
        if present.is_none_or(|p| *p.value != wanted) {
            wanted.generation = present.map_or(1, |p| p.value.generation + 1);
            planned.decisions.push(Decision::PutShare {
                host: host.clone(),
                plan: Box::new(wanted),
                revision: present.map(|p| p.revision),
            });
        }
    }
    for (host, share) in cluster.shares(spec.id) {
        if !holding.contains(host) {
            retire_share(cluster, host, share, false, planned);
        }
    }
}
