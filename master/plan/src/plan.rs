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
use crate::place::{Places, Policy, Room};

/// Most decisions about nodes in one transaction: with their hosts' counters they are no more than a hundred writes.
pub const BATCH: usize = 50;
/// Most writes of one transaction, and about as many compares: etcd takes 128 of either, unless it is told otherwise.
pub const MAX_WRITES: usize = 124;
/// Shares are what is large in a transaction; etcd takes 1.5 MiB.
const MAX_SHARE_BYTES: usize = 1 << 20;
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
    /// Something of the vcluster is planned where nothing was: its counter is compared and raised.
    RaiseCounter {
        id: VclusterId,
        revision: Option<i64>,
    },
    /// Nothing of the vcluster is planned anywhere: its counter is compared and goes.
    ForgetCounter {
        id: VclusterId,
        revision: Option<i64>,
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
    /// The spec that this follows from must still be at this revision; `None`: there must be none.
    pub spec_revision: Option<i64>,
    /// Hosts that get new nodes, with the revision of their allocation counters: these are compared and raised.
    pub placed_on: BTreeMap<HostName, Option<i64>>,
    /// A network was taken: the network counter, with this revision, is compared and raised.
    pub network_taken: Option<Option<i64>>,
    /// Nodes that have no place, or cannot leave the one they have, and why.
    pub waiting: BTreeMap<NodeId, Reason>,
    /// More nodes are to be placed than one transaction takes.
    unfinished: bool,
    /// It was decided which of two places is a node's.
    pub(crate) chosen: bool,
    share_bytes: usize,
}

impl Planned {
    /// Writes of the transaction that this becomes, counters included.
    #[must_use]
    pub fn writes(&self) -> usize {
        let of = |decision: &Decision| match decision {
            Decision::ForgetNode { .. } | Decision::ForgetShare { .. } => 2,
            Decision::ForgetVcluster { .. } => 3,
            _ => 1,
        };
        self.decisions.iter().map(of).sum::<usize>() + self.placed_on.len() + usize::from(self.network_taken.is_some())
    }

    /// About how many bytes its largest documents have together.
    #[must_use]
    pub fn share_bytes(&self) -> usize {
        self.share_bytes
    }

    /// Whether it begins to move a node, which no other may do from the same host at the same time.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.decisions.iter().any(|d| matches!(d, Decision::PutMove { .. }))
    }

    /// Whether another planner must not have planned anything of the vcluster meanwhile that this picture lacks.
    fn needs_fence(&self) -> bool {
        let is_new = |decision: &Decision| {
            matches!(decision, Decision::PutNode { revision: None, .. } | Decision::PutShare { revision: None, .. })
        };
        self.chosen || self.decisions.iter().any(is_new)
    }

    /// Writes a share if there is room for it; the next transaction does otherwise.
    fn put_share(&mut self, host: &HostName, plan: VclusterPlan, revision: Option<i64>) {
        let bytes = about(&plan);
        let fits = self.share_bytes == 0 || self.share_bytes + bytes <= MAX_SHARE_BYTES;
        if fits && self.writes() < MAX_WRITES - LAST_WRITES {
            self.share_bytes += bytes;
            self.decisions.push(Decision::PutShare { host: host.clone(), plan: Box::new(plan), revision });
        }
    }

    /// `false`: there is no room for it now.
    fn forget_share(&mut self, host: &HostName, plan: &Rev<VclusterPlan>) -> bool {
        let fits = self.writes() + 2 <= MAX_WRITES - LAST_WRITES;
        if fits {
            let (host, id) = (host.clone(), plan.value.id);
            self.decisions.push(Decision::ForgetShare { host, id, revision: plan.revision });
        }
        fits
    }
}

/// What the end of a vcluster takes: its network, counter, spec, name and usage.
const LAST_WRITES: usize = 5;

/// The size of a share as JSON, nearly.
fn about(plan: &VclusterPlan) -> usize {
    let keys = [&plan.keys.user, &plan.keys.host].map(|pair| pair.private.len() + pair.public.len());
    500 + keys.iter().sum::<usize>() + 120 * plan.peers.len() + 50 * (plan.hosts.len() + plan.forwards.len())
}

/// One look at the cluster, in which any number of vclusters are planned one after the other: what is decided for one is
/// taken for the next.
pub struct Pass<'a> {
    cluster: &'a Cluster,
    policy: &'a Policy,
    room: Room<'a>,
    subnets: Vec<Subnet>,
    /// New vclusters get their networks, and their places the next time: all networks of a pass are one transaction.
    networks_first: bool,
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
fn free_subnet(cluster: &Cluster, taken: &[Subnet], net: Subnet, prefix: u8, id: VclusterId) -> Option<Subnet> {
    let count = 1u64 << (prefix - net.prefix());
    let start = (id.as_uuid().as_u128() as u64) % count;
    (0..count).find_map(|i| {
        let index = (start + i) % count;
        let base = u32::from(net.base()) + u32::try_from(index << (32 - prefix)).ok()?;
        let subnet = Subnet::containing(Ipv4Addr::from(base), prefix)?;
        let free = cluster.subnet_is_free(subnet) && !taken.iter().any(|other| other.overlaps(&subnet));
        free.then_some(subnet)
    })
}

/// The VNI follows from the subnet, so that one allocation serves both: its index among all /26 of the network, from 1.
fn vni(net: Subnet, subnet: Subnet) -> u32 {
    1 + ((u32::from(subnet.base()) - u32::from(net.base())) >> (32 - SMALLEST_PREFIX))
}

/// What to write for one vcluster now.
#[must_use]
pub fn plan(cluster: &Cluster, policy: &Policy, id: VclusterId) -> Planned {
    Pass::new(cluster, policy, false).plan(id)
}

impl<'a> Pass<'a> {
    /// `many`: more than one vcluster will be planned.
    #[must_use]
    pub fn new(cluster: &'a Cluster, policy: &'a Policy, many: bool) -> Self {
        Self { cluster, policy, room: Room::of(cluster, policy), subnets: Vec::new(), networks_first: many }
    }

    /// What to write for one vcluster, the ones before taken into account.
    #[must_use]
    pub fn plan(&mut self, id: VclusterId) -> Planned {
        let spec = self.cluster.spec(id);
        let present = spec.map(|s| &*s.value).filter(|s| s.wanted != Wanted::Absent);
        let mut planned = Planned { spec_revision: spec.map(|s| s.revision), ..Planned::default() };
        forget_absent_nodes(self.cluster, id, present, &mut planned);
        match present {
            Some(present) => self.plan_presence(present, &mut planned),
            // What is planned of a vcluster that nobody knows goes, too: something went wrong, and nobody else would see.
            None => plan_removal(self.cluster, id, spec, &mut planned),
        }
        if planned.needs_fence() {
            let revision = self.cluster.vcluster_alloc_revision(id);
            planned.decisions.push(Decision::RaiseCounter { id, revision });
        }
        planned
    }

    fn places(&mut self, spec: &'a VclusterSpec) -> Places<'_, 'a> {
        let mut siblings: BTreeMap<HostName, u32> = BTreeMap::new();
        for (host, _) in self.cluster.placed_nodes(spec.id).filter_map(|(_, placed)| placed.plan.as_ref()) {
            *siblings.entry(host.clone()).or_default() += 1;
        }
        Places::new(&mut self.room, siblings, &spec.host_labels, spec.warm.is_some())
    }

    fn plan_presence(&mut self, spec: &'a VclusterSpec, planned: &mut Planned) {
        let (cluster, id) = (self.cluster, spec.id);
        let named: HashSet<NodeId> = spec.nodes.iter().map(|n| n.id).collect();
        let unnamed = || cluster.placed_nodes(id).filter(|(node, _)| !named.contains(node));
        moving::forget_moves(cluster, |m| m.vcluster == id && !named.contains(&m.node), planned);
        for (_, placed) in unnamed() {
            for (host, half) in &placed.halves {
                if let Some(plan) = &half.plan {
                    retire_half(cluster, host, plan, planned);
                }
            }
        }
        let network = match cluster.network(id) {
            Some(network) => *network.value,
            None => match self.take_network(spec, planned) {
                Some(network) if !self.networks_first => network,
                _ => return,
            },
        };
        self.plan_nodes(spec, network, planned);
        // Shares name every node: written before all have a place they would be written again and again.
        if !planned.unfinished {
            plan_shares(cluster, spec, network, planned);
        }
    }

    fn take_network(&mut self, spec: &VclusterSpec, planned: &mut Planned) -> Option<Network> {
        let net = self.policy.cluster_net;
        let prefix = subnet_prefix(net, u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX));
        let Some(subnet) = prefix.and_then(|p| free_subnet(self.cluster, &self.subnets, net, p, spec.id)) else {
            let reason = Reason::new(
                "no_network",
                format!(
                    "All networks of {net} are taken. A vcluster must be deleted, or an administrator must enlarge CLUSTER_NET."
                ),
            );
            planned.waiting = spec.nodes.iter().map(|n| (n.id, reason.clone())).collect();
            return None;
        };
        let network = Network { subnet, vni: vni(net, subnet) };
        self.subnets.push(subnet);
        planned.network_taken = Some(self.cluster.network_alloc_revision());
        planned.decisions.push(Decision::PutNetwork { id: spec.id, network });
        Some(network)
    }

    fn plan_nodes(&mut self, spec: &'a VclusterSpec, network: Network, planned: &mut Planned) {
        let cluster = self.cluster;
        let taken: HashSet<Ipv4Addr> = cluster
            .placed_nodes(spec.id)
            .filter_map(|(_, placed)| placed.plan.as_ref().map(|(_, plan)| plan.value.ip))
            .collect();
        let mut free = network.subnet.node_addresses().filter(move |ip| !taken.contains(ip));
        let mut places = self.places(spec);
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
            if placed.is_some_and(|p| moving::drop_incoming(cluster, p, planned)) {
                continue;
            }
            if planned.decisions.len() >= BATCH {
                planned.unfinished = true;
                continue;
            }
            let Some(ip) = free.next() else {
                planned.waiting.insert(
                    node.id,
                    Reason::new("no_address", format!("The vcluster's network {} is full.", network.subnet)),
                );
                continue;
            };
            match places.take(node.size) {
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
        places.finish();
    }
}

/// Nodes whose host reported them absent after it was told so. `present`: the spec, unless all are to go.
fn forget_absent_nodes(cluster: &Cluster, id: VclusterId, present: Option<&VclusterSpec>, planned: &mut Planned) {
    for (node, placed) in cluster.placed_nodes(id) {
        for (host, half) in &placed.halves {
            let Some(plan) = &half.plan else { continue };
            let gone = half
                .report
                .as_ref()
                .is_some_and(|r| r.value.state == NodeState::Absent && r.value.generation >= plan.value.generation);
            // The last plan of a node that is to be made anew elsewhere still holds its address.
            let last = placed.plan.as_ref().is_some_and(|(home, _)| home == host);
            let needed = last && present.is_some_and(|spec| spec.nodes.iter().any(|n| n.id == node));
            if plan.value.wanted == Wanted::Absent && gone && !needed && planned.decisions.len() < BATCH {
                planned.decisions.push(Decision::ForgetNode { host: host.clone(), id: node, revision: plan.revision });
            }
        }
    }
}

/// Asks a host to let go of a node. One that is lost is not asked.
pub(crate) fn retire_half(cluster: &Cluster, host: &HostName, plan: &Rev<NodePlan>, planned: &mut Planned) {
    if planned.decisions.len() >= BATCH || is_forgotten(planned, host, plan.value.id) {
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

fn plan_removal(cluster: &Cluster, id: VclusterId, spec: Option<&Rev<VclusterSpec>>, planned: &mut Planned) {
    moving::forget_moves(cluster, |m| m.vcluster == id, planned);
    let mut halves = 0;
    for (_, placed) in cluster.placed_nodes(id) {
        for (host, half) in &placed.halves {
            if let Some(plan) = &half.plan {
                halves += 1;
                retire_half(cluster, host, plan, planned);
            }
        }
    }
    let forgotten = planned.decisions.iter().filter(|d| matches!(d, Decision::ForgetNode { .. })).count();
    let nodes_left = forgotten < halves;
    let mut shares_left = false;
    for (host, share) in cluster.shares(id) {
        shares_left |= !retire_share(cluster, host, share, nodes_left, planned);
    }
    if nodes_left || shares_left || planned.writes() + LAST_WRITES > MAX_WRITES {
        return;
    }
    let (network, counter) = (cluster.network(id), cluster.vcluster_alloc_revision(id));
    if spec.is_none() && network.is_none() && counter.is_none() {
        return;
    }
    if let Some(network) = network {
        planned.decisions.push(Decision::DeleteNetwork { id, revision: network.revision });
    }
    planned.decisions.push(Decision::ForgetCounter { id, revision: counter });
    if let Some(spec) = spec {
        planned.decisions.push(Decision::ForgetVcluster { spec: spec.clone() });
    }
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
        return planned.forget_share(host, plan);
    }
    if plan.value.wanted != Wanted::Absent {
        let mut retired = (*plan.value).clone();
        retired.wanted = Wanted::Absent;
        retired.generation += 1;
        planned.put_share(host, retired, Some(plan.revision));
        return false;
    }
    let gone = share.report.as_ref().is_some_and(|r| !r.value.present && r.value.generation >= plan.value.generation);
    gone && !nodes_left && planned.forget_share(host, plan)
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
fn make_anew(places: &mut Places<'_, '_>, spec: &VclusterSpec, node: &NodeSpec, planned: &mut Planned) {
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
        places.give_back(old, plan.value.size);
        places.take(node.size)
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
    let mut wanted = VclusterPlan {
        id: spec.id,
        owner: spec.owner.clone(),
        name: spec.name.clone(),
        generation: 1,
        wanted: Wanted::Running,
        range: spec.range,
        network,
        peers,
        hosts,
        forwards: Vec::new(),
        limits: spec.limits,
        keys: spec.keys.clone(),
    };
    for host in &holding {
        let present = cluster.share(spec.id, host).and_then(|share| share.plan.as_ref());
        wanted.generation = present.map_or(1, |p| p.value.generation);
        wanted.forwards = forwards.remove(host).unwrap_or_default();
        // Copied only where it is written: most looks at a vcluster find its shares as they should be.
        if present.is_none_or(|p| *p.value != wanted) {
            let mut plan = wanted.clone();
            plan.generation = present.map_or(1, |p| p.value.generation + 1);
            planned.put_share(host, plan, present.map(|p| p.revision));
        }
    }
    for (host, share) in cluster.shares(spec.id) {
        if !holding.contains(host) {
            retire_share(cluster, host, share, false, planned);
        }
    }
}
