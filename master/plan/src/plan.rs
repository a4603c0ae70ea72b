//! From specs and reports to the writes that bring the hosts nearer to what is wanted.
//!
//! One call looks at one vcluster and returns writes that belong into one transaction, at most [`BATCH`] of them.
//! Planning again after they are committed gives the next ones; when nothing is left to do, there are none. So a
//! planner that crashes between two transactions, or runs twice, does no harm.

use docklet_types::id::{NodeId, VclusterId};
use docklet_types::name::HostName;
use docklet_types::net::{Mac, Subnet};
use docklet_types::plan::{Network, NodePlan, Peer, VclusterPlan};
use docklet_types::port::Forward;
use docklet_types::report::{NodeState, Reason};
use docklet_types::spec::{NodeSpec, VclusterSpec, Wanted};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;

use crate::cluster::{Cluster, Rev};
use crate::place::{Policy, Room};

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
    /// Nodes that have no place, and why.
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
    forget_absent_nodes(cluster, id, &mut planned);
    if spec.value.wanted == Wanted::Absent {
        plan_removal(cluster, spec, &mut planned);
    } else {
        plan_presence(cluster, policy, &spec.value, &mut planned);
    }
    planned
}

/// Nodes whose host reported them absent after it was told so.
fn forget_absent_nodes(cluster: &Cluster, id: VclusterId, planned: &mut Planned) {
    for (node, placed) in cluster.placed_nodes(id) {
        let Some((host, plan)) = &placed.plan else { continue };
        let gone = placed
            .report
            .as_ref()
            .is_some_and(|(_, r)| r.value.state == NodeState::Absent && r.value.generation >= plan.value.generation);
        if plan.value.wanted == Wanted::Absent && gone && planned.decisions.len() < BATCH {
            planned.decisions.push(Decision::ForgetNode { host: host.clone(), id: node, revision: plan.revision });
        }
    }
}

fn retire_node(host: &HostName, plan: &Rev<NodePlan>, planned: &mut Planned) {
    if plan.value.wanted != Wanted::Absent && planned.decisions.len() < BATCH {
        let mut retired = (*plan.value).clone();
        retired.wanted = Wanted::Absent;
        retired.generation += 1;
        planned.decisions.push(Decision::PutNode {
            host: host.clone(),
            plan: Box::new(retired),
            revision: Some(plan.revision),
        });
    }
}

fn plan_removal(cluster: &Cluster, spec: &Rev<VclusterSpec>, planned: &mut Planned) {
    let id = spec.value.id;
    let forgotten: HashSet<NodeId> = planned
        .decisions
        .iter()
        .filter_map(|d| if let Decision::ForgetNode { id, .. } = d { Some(*id) } else { None })
        .collect();
    let mut nodes_left = false;
    for (node, placed) in cluster.placed_nodes(id) {
        if let Some((host, plan)) = &placed.plan {
            nodes_left |= !forgotten.contains(&node);
            retire_node(host, plan, planned);
        }
    }
    let mut shares_left = false;
    for (host, share) in cluster.shares(id) {
        shares_left |= !retire_share(host, share, nodes_left, planned);
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
fn retire_share(host: &HostName, share: &crate::cluster::Share, nodes_left: bool, planned: &mut Planned) -> bool {
    let Some(plan) = &share.plan else {
        // A report without a plan is dropped with the next write of its host.
        return true;
    };
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
    for (node, placed) in cluster.placed_nodes(id) {
        if let (false, Some((host, plan))) = (named.contains(&node), &placed.plan) {
            retire_node(host, plan, planned);
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
    // Made when the first node needs it: most calls place nothing.
    let mut room: Option<Room> = None;
    for node in &spec.nodes {
        let placed = cluster.node(node.id).and_then(|p| p.plan.as_ref());
        if let Some((host, plan)) = placed {
            update_node(cluster, spec, node, host, plan, planned);
            continue;
        }
        if planned.decisions.len() >= BATCH {
            continue;
        }
        let room = room.get_or_insert_with(|| Room::of(cluster, policy, &siblings, &spec.host_labels));
        let Some(ip) = free.next() else {
            planned.waiting.insert(
                node.id,
                Reason::new("no_address", format!("The vcluster's network {} is full.", network.subnet)),
            );
            continue;
        };
        match room.take(node.size) {
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
    }
}

fn update_node(
    cluster: &Cluster,
    spec: &VclusterSpec,
    node: &NodeSpec,
    host: &HostName,
    plan: &Rev<NodePlan>,
    planned: &mut Planned,
) {
    // A node on its way out is not called back: its spec has forgotten it, ids are not reused.
    let differs = plan.value.wanted != spec.wanted || plan.value.attempt != node.attempt;
    if plan.value.wanted == Wanted::Absent || !differs || planned.decisions.len() >= BATCH {
        return;
    }
    debug_assert!(cluster.spec(spec.id).is_some());
    let mut updated = (*plan.value).clone();
    updated.wanted = spec.wanted;
    updated.attempt = node.attempt;
    updated.generation += 1;
    planned.decisions.push(Decision::PutNode {
        host: host.clone(),
        plan: Box::new(updated),
        revision: Some(plan.revision),
    });
}

/// Each host with nodes gets the vcluster's share with all peers; a host without any lets go of it.
fn plan_shares(cluster: &Cluster, spec: &VclusterSpec, network: Network, planned: &mut Planned) {
    let mut peers: BTreeMap<NodeId, Peer> = BTreeMap::new();
    let mut holding: BTreeSet<HostName> = BTreeSet::new();
    let mut forwards: BTreeMap<HostName, Vec<Forward>> = BTreeMap::new();
    let mut note = |host: &HostName, plan: &NodePlan| {
        holding.insert(host.clone());
        if plan.wanted == Wanted::Absent {
            peers.remove(&plan.id);
        } else {
            peers.insert(plan.id, Peer { name: plan.name.clone(), ip: plan.ip, mac: plan.mac, host: host.clone() });
        }
    };
    for (_, placed) in cluster.placed_nodes(spec.id) {
        if let Some((host, plan)) = &placed.plan {
            note(host, &plan.value);
        }
    }
    for decision in &planned.decisions {
        if let Decision::PutNode { host, plan, .. } = decision {
            note(host, plan);
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
            retire_share(host, share, false, planned);
        }
    }
}
