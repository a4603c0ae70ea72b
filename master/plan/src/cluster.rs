//! The masters' picture of everything: specs, plans, reports, hosts, with the indices that decisions need.
//!
//! It is folded together from single changes, in any order and as often as they are heard. What a change may affect is
//! collected in a set of vclusters to plan again.

use docklet_types::host::{Capacity, HostReport, HostSettings};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::label::Labels;
use docklet_types::moves::{Lost, Move};
use docklet_types::name::{HostName, NodeName, UserName, VclusterName};
use docklet_types::plan::{Network, NodePlan, VclusterPlan};
use docklet_types::port::Protocol;
use docklet_types::report::{NodeReport, NodeState, VclusterReport};
use docklet_types::spec::{Usage, VclusterSpec, Wanted};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

/// A document and the revision it was read at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rev<T> {
    pub value: Arc<T>,
    pub revision: i64,
}

impl<T> Rev<T> {
    pub fn new(value: T, revision: i64) -> Self {
        Self { value: Arc::new(value), revision }
    }
}

/// One document is now this, or gone.
#[derive(Debug, Clone)]
pub enum Change {
    Spec(VclusterId, Option<Rev<VclusterSpec>>),
    Usage(UserName, Option<Rev<Usage>>),
    Network(VclusterId, Option<Rev<Network>>),
    /// The revision of `alloc/networks`.
    NetworkAlloc(Option<i64>),
    /// The revision of `alloc/hosts/<host>`.
    HostAlloc(HostName, Option<i64>),
    /// The revision of `alloc/vclusters/<id>`.
    VclusterAlloc(VclusterId, Option<i64>),
    NodePlan(HostName, NodeId, Option<Rev<NodePlan>>),
    VclusterPlan(HostName, VclusterId, Option<Rev<VclusterPlan>>),
    NodeReport(HostName, NodeId, Option<Rev<NodeReport>>),
    VclusterReport(HostName, VclusterId, Option<Rev<VclusterReport>>),
    Host(HostName, Option<Rev<HostReport>>),
    HostSettings(HostName, Option<Rev<HostSettings>>),
    Alive(HostName, bool),
    Move(NodeId, Option<Rev<Move>>),
    Lost(HostName, Option<Rev<Lost>>),
    /// The number of the [`Lost`] that the host has answered.
    Cleared(HostName, Option<u64>),
}

/// What one host should hold of a node, and what it says that it holds.
#[derive(Debug, Clone, Default)]
pub struct Half {
    pub plan: Option<Rev<NodePlan>>,
    pub report: Option<Rev<NodeReport>>,
}

impl Half {
    fn tally(&self) -> Tally {
        let Some(plan) = &self.plan else { return Tally::default() };
        let is = |state| self.report.as_ref().is_some_and(|r| r.value.state == state);
        Tally {
            ready: u32::from(is(NodeState::Ready)),
            warm: u32::from(plan.value.frozen),
            frozen: u32::from(plan.value.frozen && is(NodeState::Frozen)),
        }
    }
}

/// How many nodes of a host are how, counted as they change: a list of thousands of hosts looks at no node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Up.
    pub ready: u32,
    /// To be kept warm.
    pub warm: u32,
    /// Kept warm, up and frozen.
    pub frozen: u32,
}

impl Tally {
    /// One of them is another now.
    fn replace(&mut self, before: Self, after: Self) {
        let change = |sum: &mut u32, before: u32, after: u32| *sum = (*sum + after).saturating_sub(before);
        change(&mut self.ready, before.ready, after.ready);
        change(&mut self.warm, before.warm, after.warm);
        change(&mut self.frozen, before.frozen, after.frozen);
    }
}

/// A node's place and how it is there.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    pub vcluster: Option<VclusterId>,
    /// The plan of the host that the node is on: while it moves that is its old host until the whole disk has arrived.
    pub plan: Option<(HostName, Rev<NodePlan>)>,
    /// What that host says.
    pub report: Option<(HostName, Rev<NodeReport>)>,
    /// Every host that has a plan or a report of it: two while it moves.
    pub halves: BTreeMap<HostName, Half>,
}

impl Placed {
    /// Finds its place among the halves: not where it only arrives, and where it leaves only if it is nowhere else.
    fn settle(&mut self) {
        let home = self
            .halves
            .iter()
            .filter_map(|(host, half)| Some((host, half.plan.as_ref()?)))
            .filter(|(_, plan)| !plan.value.is_incoming())
            .max_by_key(|(_, plan)| (plan.value.wanted != Wanted::Absent, plan.value.generation))
            .map(|(host, plan)| (host.clone(), plan.clone()));
        let spoken = |(host, half): (&HostName, &Half)| Some((host.clone(), half.report.clone()?));
        self.report = match &home {
            Some((host, _)) => self.halves.get_key_value(host).and_then(spoken),
            None => self.halves.iter().find_map(spoken),
        };
        self.plan = home;
    }
}

/// A vcluster's share of one host.
#[derive(Debug, Clone, Default)]
pub struct Share {
    pub plan: Option<Rev<VclusterPlan>>,
    pub report: Option<Rev<VclusterReport>>,
}

#[derive(Debug, Clone, Default)]
pub struct HostState {
    pub report: Option<Rev<HostReport>>,
    pub settings: Option<Rev<HostSettings>>,
    pub alive: bool,
    pub alloc_revision: Option<i64>,
    /// The sum of the limits of all nodes planned there.
    pub allocated: Capacity,
    /// Nodes with a plan there: also those that are about to come or to go.
    pub nodes: BTreeSet<NodeId>,
    pub tally: Tally,
    /// Vclusters with a share there, or a report of one.
    pub shares: BTreeSet<VclusterId>,
    /// What it held was declared lost, and it has not said yet that it let go of it.
    pub lost: Option<Rev<Lost>>,
    pub cleared: Option<u64>,
}

impl HostState {
    /// Whether an administrator keeps new nodes off it.
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.settings.as_ref().is_some_and(|s| s.value.cordoned || s.value.draining)
    }

    /// Whether its nodes are to be moved to other hosts.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.settings.as_ref().is_some_and(|s| s.value.draining)
    }

    /// Whether disks of nodes can be copied from and to it.
    #[must_use]
    pub fn can_move(&self) -> bool {
        self.report.as_ref().is_some_and(|r| r.value.storage == "btrfs")
    }

    /// Whether it has all of these labels.
    #[must_use]
    pub fn has_labels(&self, asked: &Labels) -> bool {
        let has = |key, value| self.settings.as_ref().is_some_and(|s| s.value.labels.get(key) == Some(value));
        asked.iter().all(|(key, value)| has(key, value))
    }
}

/// Vclusters that are gone and whose last change is still remembered.
const GONE_KEPT: usize = 10_000;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    specs: HashMap<VclusterId, Rev<VclusterSpec>>,
    /// By owner and name, in order for lists.
    names: BTreeMap<UserName, BTreeMap<VclusterName, VclusterId>>,
    usage: HashMap<UserName, Rev<Usage>>,
    /// Vclusters that nobody asked for yet, by the owner they are kept for.
    warm: BTreeMap<UserName, BTreeSet<VclusterId>>,
    /// Published ports, and who has them.
    ports: HashMap<(Protocol, u16), VclusterId>,
    networks: HashMap<VclusterId, Rev<Network>>,
    /// Network bases in order, to find overlaps fast.
    subnets: BTreeMap<u32, docklet_types::net::Subnet>,
    network_alloc: Option<i64>,
    vcluster_allocs: HashMap<VclusterId, i64>,
    nodes: HashMap<NodeId, Placed>,
    /// Nodes with a plan or a report, by vcluster.
    nodes_of: HashMap<VclusterId, BTreeSet<NodeId>>,
    shares: HashMap<VclusterId, BTreeMap<HostName, Share>>,
    moves: BTreeMap<NodeId, Rev<Move>>,
    hosts: BTreeMap<HostName, HostState>,
    dirty: BTreeSet<VclusterId>,
    /// Those that wait for room or for their turn, as far as they are not dirty: what comes free is offered to them.
    hungry: BTreeSet<VclusterId>,
    /// Counts changes; each vcluster stands at its last one.
    clock: u64,
    changed: BTreeMap<u64, VclusterId>,
    changed_at: HashMap<VclusterId, u64>,
    /// The last changes of those that are gone.
    gone: VecDeque<u64>,
}

impl Cluster {
    #[must_use]
    pub fn spec(&self, id: VclusterId) -> Option<&Rev<VclusterSpec>> {
        self.specs.get(&id)
    }

    #[must_use]
    pub fn find(&self, owner: &UserName, name: &VclusterName) -> Option<&Rev<VclusterSpec>> {
        self.names.get(owner)?.get(name).and_then(|id| self.specs.get(id))
    }

    /// A user's vclusters in order of name.
    pub fn specs_of<'a>(&'a self, owner: &UserName) -> impl Iterator<Item = &'a Rev<VclusterSpec>> + use<'a> {
        self.names.get(owner).into_iter().flat_map(|names| names.values()).filter_map(|id| self.specs.get(id))
    }

    /// All vclusters in order of owner and name.
    pub fn specs(&self) -> impl Iterator<Item = &Rev<VclusterSpec>> {
        self.names.values().flat_map(|names| names.values()).filter_map(|id| self.specs.get(id))
    }

    /// Vclusters that are kept warm for a user. They are in no other list.
    pub fn warm_of<'a>(&'a self, owner: &UserName) -> impl Iterator<Item = &'a Rev<VclusterSpec>> + use<'a> {
        self.warm.get(owner).into_iter().flatten().filter_map(|id| self.specs.get(id))
    }

    /// All that are kept warm.
    pub fn warm(&self) -> impl Iterator<Item = &Rev<VclusterSpec>> {
        self.warm.values().flatten().filter_map(|id| self.specs.get(id))
    }

    #[must_use]
    pub fn specs_count(&self) -> usize {
        self.specs.len()
    }

    #[must_use]
    pub fn usage(&self, owner: &UserName) -> Option<&Rev<Usage>> {
        self.usage.get(owner)
    }

    /// The vcluster that has published that port.
    #[must_use]
    pub fn port_owner(&self, protocol: Protocol, public: u16) -> Option<VclusterId> {
        self.ports.get(&(protocol, public)).copied()
    }

    #[must_use]
    pub fn network(&self, id: VclusterId) -> Option<&Rev<Network>> {
        self.networks.get(&id)
    }

    #[must_use]
    pub fn network_alloc_revision(&self) -> Option<i64> {
        self.network_alloc
    }

    #[must_use]
    pub fn vcluster_alloc_revision(&self, id: VclusterId) -> Option<i64> {
        self.vcluster_allocs.get(&id).copied()
    }

    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Placed> {
        self.nodes.get(&id)
    }

    /// Nodes of a vcluster that have a plan or a report, whether or not its spec still names them.
    pub fn placed_nodes(&self, id: VclusterId) -> impl Iterator<Item = (NodeId, &Placed)> {
        self.nodes_of.get(&id).into_iter().flatten().filter_map(|node| self.nodes.get(node).map(|p| (*node, p)))
    }

    /// The hosts that hold, or still have to let go of, a share of the vcluster.
    pub fn shares(&self, id: VclusterId) -> impl Iterator<Item = (&HostName, &Share)> {
        self.shares.get(&id).into_iter().flatten()
    }

    /// The vcluster's share of one host.
    #[must_use]
    pub fn share(&self, id: VclusterId, host: &HostName) -> Option<&Share> {
        self.shares.get(&id)?.get(host)
    }

    #[must_use]
    pub fn moving(&self, id: NodeId) -> Option<&Rev<Move>> {
        self.moves.get(&id)
    }

    /// Every node that is to be on another host.
    pub fn moves(&self) -> impl Iterator<Item = &Rev<Move>> {
        self.moves.values()
    }

    #[must_use]
    pub fn host(&self, name: &HostName) -> Option<&HostState> {
        self.hosts.get(name)
    }

    pub fn hosts(&self) -> impl Iterator<Item = (&HostName, &HostState)> {
        self.hosts.iter()
    }

    /// The running place of a node by names, for routes: its id and host.
    #[must_use]
    pub fn route(&self, owner: &UserName, vcluster: &VclusterName, node: &NodeName) -> Option<(NodeId, HostName)> {
        let spec = self.find(owner, vcluster)?;
        let node = spec.value.nodes.iter().find(|n| n.name == *node)?;
        let (host, _) = self.nodes.get(&node.id)?.plan.as_ref()?;
        Some((node.id, host.clone()))
    }

    /// Whether no vcluster's network overlaps this one.
    #[must_use]
    pub fn subnet_is_free(&self, subnet: docklet_types::net::Subnet) -> bool {
        let base = u32::from(subnet.base());
        let below = self.subnets.range(..=base).next_back();
        let above = self.subnets.range(base..).next();
        ![below, above].into_iter().flatten().any(|(_, taken)| taken.overlaps(&subnet))
    }

    /// Vclusters to plan again since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<VclusterId> {
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty {
            if self.specs.get(id).is_some_and(|spec| self.waits_for_room(&spec.value)) {
                self.hungry.insert(*id);
            } else {
                self.hungry.remove(id);
            }
        }
        dirty
    }

    /// Asks for a vcluster to be planned again.
    pub fn mark_dirty(&mut self, id: VclusterId) {
        self.dirty.insert(id);
    }

    /// Where the count of changes stands.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock
    }

    /// When a vcluster last came to look different; `None` once nothing of it is left.
    #[must_use]
    pub fn changed_at(&self, id: VclusterId) -> Option<u64> {
        self.changed_at.get(&id).copied()
    }

    /// Vclusters that came to look different after that moment. Of those that are gone only the last are remembered.
    pub fn changed_since(&self, clock: u64) -> impl Iterator<Item = VclusterId> {
        self.changed.range(clock + 1..).map(|(_, id)| *id)
    }

    fn touch(&mut self, id: VclusterId) {
        self.dirty.insert(id);
        self.mark_changed(id);
    }

    /// Notes that a vcluster looks different.
    pub fn mark_changed(&mut self, id: VclusterId) {
        self.clock += 1;
        if let Some(before) = self.changed_at.remove(&id) {
            self.changed.remove(&before);
        }
        self.changed.insert(self.clock, id);
        if self.specs.contains_key(&id) || self.nodes_of.contains_key(&id) || self.shares.contains_key(&id) {
            self.changed_at.insert(id, self.clock);
            return;
        }
        // What is gone has no later change that would take the place of this one.
        self.gone.push_back(self.clock);
        if self.gone.len() > GONE_KEPT
            && let Some(oldest) = self.gone.pop_front()
        {
            self.changed.remove(&oldest);
        }
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Spec(id, spec) => self.apply_spec(id, spec),
            Change::Usage(user, usage) => set(&mut self.usage, user, usage),
            Change::Network(id, network) => self.apply_network(id, network),
            Change::NetworkAlloc(revision) => self.network_alloc = revision,
            Change::HostAlloc(host, revision) => self.hosts.entry(host).or_default().alloc_revision = revision,
            Change::VclusterAlloc(id, revision) => {
                set(&mut self.vcluster_allocs, id, revision);
                // What it counts comes with it and leads to another plan; alone it is what is left of something.
                if !self.specs.contains_key(&id) {
                    self.dirty.insert(id);
                }
            }
            Change::NodePlan(host, id, plan) => self.apply_node_plan(host, id, plan),
            Change::VclusterPlan(host, id, plan) => {
                self.shares.entry(id).or_default().entry(host.clone()).or_default().plan = plan;
                self.tidy_shares(&host, id);
                self.touch(id);
            }
            Change::NodeReport(host, id, report) => self.apply_node_report(host, id, report),
            Change::VclusterReport(host, id, report) => {
                // Only that a host let go of its share leads to another plan.
                let decides = report.as_ref().is_none_or(|r| !r.value.present);
                self.shares.entry(id).or_default().entry(host.clone()).or_default().report = report;
                self.tidy_shares(&host, id);
                self.mark_changed(id);
                if decides {
                    self.dirty.insert(id);
                }
            }
            Change::Host(host, report) => {
                self.hosts.entry(host.clone()).or_default().report = report;
                self.host_changed(&host);
            }
            Change::HostSettings(host, settings) => {
                self.hosts.entry(host.clone()).or_default().settings = settings;
                self.host_changed(&host);
            }
            Change::Alive(host, alive) => {
                let state = self.hosts.entry(host.clone()).or_default();
                if state.alive != alive {
                    state.alive = alive;
                    // Nothing is planned otherwise for who is there: a host that is away keeps its nodes.
                    for id in self.vclusters_on(&host) {
                        self.mark_changed(id);
                    }
                    self.room_came();
                }
            }
            Change::Move(id, change) => self.apply_move(id, change),
            Change::Lost(host, lost) => {
                self.hosts.entry(host.clone()).or_default().lost = lost;
                self.host_changed(&host);
            }
            Change::Cleared(host, cleared) => self.hosts.entry(host).or_default().cleared = cleared,
        }
    }

    /// A host came, grew or is to be used otherwise: whoever is there or waits for room is planned again.
    fn host_changed(&mut self, host: &HostName) {
        for id in self.vclusters_on(host) {
            self.touch(id);
        }
        self.room_came();
    }

    /// Vclusters with a node or a share on a host.
    fn vclusters_on(&self, host: &HostName) -> BTreeSet<VclusterId> {
        let Some(state) = self.hosts.get(host) else { return BTreeSet::new() };
        let of_nodes = state.nodes.iter().filter_map(|id| self.nodes.get(id)?.vcluster);
        of_nodes.chain(state.shares.iter().copied()).collect()
    }

    /// There may be room, a network or a turn for those who wait.
    fn room_came(&mut self) {
        self.dirty.extend(self.hungry.iter().copied());
    }

    fn apply_spec(&mut self, id: VclusterId, spec: Option<Rev<VclusterSpec>>) {
        if let Some(old) = self.specs.remove(&id) {
            self.forget_names(&old.value, id);
        }
        if let Some(spec) = spec {
            self.ports.extend(spec.value.ports.iter().map(|p| ((p.protocol, p.public), id)));
            if spec.value.warm.is_some() {
                self.warm.entry(spec.value.owner.clone()).or_default().insert(id);
            } else {
                self.names.entry(spec.value.owner.clone()).or_default().insert(spec.value.name.clone(), id);
            }
            self.specs.insert(id, spec);
        }
        self.touch(id);
    }

    fn forget_names(&mut self, old: &VclusterSpec, id: VclusterId) {
        // Somebody else may already have taken what was freed.
        for key in old.ports.iter().map(|p| (p.protocol, p.public)) {
            if self.ports.get(&key) == Some(&id) {
                self.ports.remove(&key);
            }
        }
        if old.warm.is_some() {
            if let Some(warm) = self.warm.get_mut(&old.owner) {
                warm.remove(&id);
                if warm.is_empty() {
                    self.warm.remove(&old.owner);
                }
            }
        } else if let Some(names) = self.names.get_mut(&old.owner) {
            if names.get(&old.name) == Some(&id) {
                names.remove(&old.name);
            }
            if names.is_empty() {
                self.names.remove(&old.owner);
            }
        }
    }

    fn apply_network(&mut self, id: VclusterId, network: Option<Rev<Network>>) {
        if let Some(old) = self.networks.remove(&id) {
            self.subnets.remove(&u32::from(old.value.subnet.base()));
            self.room_came();
        }
        if let Some(network) = network {
            self.subnets.insert(u32::from(network.value.subnet.base()), network.value.subnet);
            self.networks.insert(id, network);
        }
        self.touch(id);
    }

    fn apply_node_plan(&mut self, host: HostName, id: NodeId, plan: Option<Rev<NodePlan>>) {
        let gone = plan.is_none();
        let placed = self.nodes.entry(id).or_default();
        let half = placed.halves.entry(host.clone()).or_default();
        let before = half.tally();
        let old = std::mem::replace(&mut half.plan, plan.clone());
        let after = half.tally();
        let state = self.hosts.entry(host).or_default();
        state.tally.replace(before, after);
        if let Some(old) = &old {
            state.nodes.remove(&id);
            let (size, sum) = (old.value.size, &mut state.allocated);
            sum.cpu_millis = sum.cpu_millis.saturating_sub(u64::from(size.cpu.millis()));
            sum.memory_mib = sum.memory_mib.saturating_sub(u64::from(size.memory_mib));
            sum.disk_mib = sum.disk_mib.saturating_sub(u64::from(size.disk_mib));
        }
        if let Some(plan) = &plan {
            state.nodes.insert(id);
            let (size, sum) = (plan.value.size, &mut state.allocated);
            sum.cpu_millis += u64::from(size.cpu.millis());
            sum.memory_mib += u64::from(size.memory_mib);
            sum.disk_mib += u64::from(size.disk_mib);
            placed.vcluster = Some(plan.value.vcluster);
            self.nodes_of.entry(plan.value.vcluster).or_default().insert(id);
        }
        if let Some(plan) = plan.as_ref().or(old.as_ref()) {
            self.touch(plan.value.vcluster);
        }
        self.settle_node(id);
        if gone && old.is_some() {
            self.room_came();
        }
    }

    fn waits_for_room(&self, spec: &VclusterSpec) -> bool {
        let waits = |id| match self.nodes.get(&id).and_then(|p| p.plan.as_ref()) {
            None => true,
            Some((host, plan)) => {
                self.hosts.get(host).is_some_and(|h| h.is_draining() || h.lost.is_some())
                    || self.moves.contains_key(&id)
                    // It is to be made anew.
                    || plan.value.wanted == Wanted::Absent
            }
        };
        spec.wanted != Wanted::Absent && spec.nodes.iter().any(|n| waits(n.id))
    }

    fn apply_node_report(&mut self, host: HostName, id: NodeId, report: Option<Rev<NodeReport>>) {
        let placed = self.nodes.entry(id).or_default();
        let half = placed.halves.entry(host.clone()).or_default();
        let before = half.tally();
        let old = std::mem::replace(&mut half.report, report.clone());
        let after = half.tally();
        if before != after {
            self.hosts.entry(host).or_default().tally.replace(before, after);
        }
        if let Some(report) = &report {
            placed.vcluster = Some(report.value.vcluster);
            self.nodes_of.entry(report.value.vcluster).or_default().insert(id);
        }
        // How a node comes up leads to no other plan; that it stopped or is gone may.
        let decides = report.as_ref().is_none_or(|r| matches!(r.value.state, NodeState::Stopped | NodeState::Absent));
        self.settle_node(id);
        if let Some(report) = report.or(old) {
            self.mark_changed(report.value.vcluster);
            if decides || self.moves.contains_key(&id) {
                self.dirty.insert(report.value.vcluster);
            }
        }
    }

    /// A move went on or ended: the next node of the same host may begin its own.
    fn apply_move(&mut self, id: NodeId, change: Option<Rev<Move>>) {
        let old = match &change {
            Some(new) => self.moves.insert(id, new.clone()),
            None => self.moves.remove(&id),
        };
        let concerned: Vec<&Rev<Move>> = old.iter().chain(&change).collect();
        let vclusters: BTreeSet<VclusterId> = concerned.iter().map(|m| m.value.vcluster).collect();
        let ended = old.is_some_and(|m| m.value.stage.is_under_way())
            && change.as_ref().is_none_or(|m| !m.value.stage.is_under_way());
        for id in vclusters {
            self.touch(id);
        }
        if ended {
            self.room_came();
        }
    }

    /// Finds the node's place anew, and drops what nothing is known of any more.
    fn settle_node(&mut self, id: NodeId) {
        let Some(placed) = self.nodes.get_mut(&id) else { return };
        placed.halves.retain(|_, half| half.plan.is_some() || half.report.is_some());
        placed.settle();
        if placed.halves.is_empty() {
            let vcluster = self.nodes.remove(&id).and_then(|p| p.vcluster);
            if let Some(vcluster) = vcluster
                && let Some(nodes) = self.nodes_of.get_mut(&vcluster)
            {
                nodes.remove(&id);
                if nodes.is_empty() {
                    self.nodes_of.remove(&vcluster);
                }
            }
        }
    }

    /// Drops the share that nothing is known of any more, and notes on its host whether there is one.
    fn tidy_shares(&mut self, host: &HostName, id: VclusterId) {
        let Some(shares) = self.shares.get_mut(&id) else { return };
        let there = shares.get(host).is_some_and(|share| share.plan.is_some() || share.report.is_some());
        if !there {
            shares.remove(host);
            if shares.is_empty() {
                self.shares.remove(&id);
            }
        }
        let state = self.hosts.entry(host.clone()).or_default();
        if there {
            state.shares.insert(id)
        } else {
            state.shares.remove(&id)
        };
    }
}

fn set<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
