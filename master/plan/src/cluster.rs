//! The masters' picture of everything: specs, plans, reports, hosts, with the indices that decisions need.
//!
//! It is folded together from single changes, in any order and as often as they are heard. What a change may affect is
//! collected in a set of vclusters to plan again.

use docklet_types::host::{Capacity, HostReport, HostSettings};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::label::Labels;
use docklet_types::name::{HostName, NodeName, UserName, VclusterName};
use docklet_types::plan::{Network, NodePlan, VclusterPlan};
use docklet_types::port::Protocol;
use docklet_types::report::{NodeReport, VclusterReport};
use docklet_types::spec::{Usage, VclusterSpec};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    NodePlan(HostName, NodeId, Option<Rev<NodePlan>>),
    VclusterPlan(HostName, VclusterId, Option<Rev<VclusterPlan>>),
    NodeReport(HostName, NodeId, Option<Rev<NodeReport>>),
    VclusterReport(HostName, VclusterId, Option<Rev<VclusterReport>>),
    Host(HostName, Option<Rev<HostReport>>),
    HostSettings(HostName, Option<Rev<HostSettings>>),
    Alive(HostName, bool),
}

/// A node's place and how it is there.
#[derive(Debug, Clone, Default)]
pub struct Placed {
    pub vcluster: Option<VclusterId>,
    pub plan: Option<(HostName, Rev<NodePlan>)>,
    pub report: Option<(HostName, Rev<NodeReport>)>,
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
    pub nodes: BTreeSet<NodeId>,
}

impl HostState {
    /// Whether an administrator keeps new nodes off it.
    #[must_use]
    pub fn is_cordoned(&self) -> bool {
        self.settings.as_ref().is_some_and(|s| s.value.cordoned)
    }

    /// Whether it has all of these labels.
    #[must_use]
    pub fn has_labels(&self, asked: &Labels) -> bool {
        let has = |key, value| self.settings.as_ref().is_some_and(|s| s.value.labels.get(key) == Some(value));
        asked.iter().all(|(key, value)| has(key, value))
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    specs: HashMap<VclusterId, Rev<VclusterSpec>>,
    /// By owner and name, in order for lists.
    names: BTreeMap<UserName, BTreeMap<VclusterName, VclusterId>>,
    usage: HashMap<UserName, Rev<Usage>>,
    /// Published ports, and who has them.
    ports: HashMap<(Protocol, u16), VclusterId>,
    networks: HashMap<VclusterId, Rev<Network>>,
    /// Network bases in order, to find overlaps fast.
    subnets: BTreeMap<u32, docklet_types::net::Subnet>,
    network_alloc: Option<i64>,
    nodes: HashMap<NodeId, Placed>,
    /// Nodes with a plan or a report, by vcluster.
    nodes_of: HashMap<VclusterId, BTreeSet<NodeId>>,
    shares: HashMap<VclusterId, BTreeMap<HostName, Share>>,
    hosts: BTreeMap<HostName, HostState>,
    dirty: BTreeSet<VclusterId>,
    changed: BTreeSet<VclusterId>,
    hosts_changed: bool,
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
        std::mem::take(&mut self.dirty)
    }

    /// Asks for a vcluster to be planned again.
    pub fn mark_dirty(&mut self, id: VclusterId) {
        self.dirty.insert(id);
    }

    /// Vclusters that look different since the last call, and whether any host does.
    pub fn take_changed(&mut self) -> (BTreeSet<VclusterId>, bool) {
        (std::mem::take(&mut self.changed), std::mem::take(&mut self.hosts_changed))
    }

    fn touch(&mut self, id: VclusterId) {
        self.dirty.insert(id);
        self.changed.insert(id);
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Spec(id, spec) => self.apply_spec(id, spec),
            Change::Usage(user, usage) => set(&mut self.usage, user, usage),
            Change::Network(id, network) => self.apply_network(id, network),
            Change::NetworkAlloc(revision) => self.network_alloc = revision,
            Change::HostAlloc(host, revision) => self.hosts.entry(host).or_default().alloc_revision = revision,
            Change::NodePlan(host, id, plan) => self.apply_node_plan(host, id, plan),
            Change::VclusterPlan(host, id, plan) => {
                self.shares.entry(id).or_default().entry(host).or_default().plan = plan;
                self.tidy_shares(id);
                self.touch(id);
            }
            Change::NodeReport(host, id, report) => self.apply_node_report(host, id, report),
            Change::VclusterReport(host, id, report) => {
                self.shares.entry(id).or_default().entry(host).or_default().report = report;
                self.tidy_shares(id);
                self.touch(id);
            }
            Change::Host(host, report) => {
                self.hosts.entry(host).or_default().report = report;
                self.host_changed();
            }
            Change::HostSettings(host, settings) => {
                self.hosts.entry(host).or_default().settings = settings;
                self.host_changed();
            }
            Change::Alive(host, alive) => {
                let state = self.hosts.entry(host).or_default();
                if state.alive != alive {
                    state.alive = alive;
                    self.host_changed();
                }
            }
        }
    }

    /// A host came, went or grew: whoever waits for room is planned again.
    fn host_changed(&mut self) {
        self.hosts_changed = true;
        let all: Vec<VclusterId> = self.specs.keys().copied().collect();
        self.changed.extend(all.iter().copied());
        self.dirty.extend(all);
    }

    fn apply_spec(&mut self, id: VclusterId, spec: Option<Rev<VclusterSpec>>) {
        if let Some(old) = self.specs.remove(&id) {
            self.forget_names(&old.value, id);
        }
        if let Some(spec) = spec {
            self.ports.extend(spec.value.ports.iter().map(|p| ((p.protocol, p.public), id)));
            self.names.entry(spec.value.owner.clone()).or_default().insert(spec.value.name.clone(), id);
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
        if let Some(names) = self.names.get_mut(&old.owner) {
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
        }
        if let Some(network) = network {
            self.subnets.insert(u32::from(network.value.subnet.base()), network.value.subnet);
            self.networks.insert(id, network);
        }
        self.touch(id);
    }

    fn apply_node_plan(&mut self, host: HostName, id: NodeId, plan: Option<Rev<NodePlan>>) {
        let placed = self.nodes.entry(id).or_default();
        let old = match &placed.plan {
            // The plan of another host is not this key's.
            Some((at, _)) if *at != host && plan.is_none() => return,
            _ => placed.plan.take(),
        };
        let mut freed = false;
        if let Some((at, old)) = old {
            let state = self.hosts.entry(at).or_default();
            state.nodes.remove(&id);
            state.allocated.cpu_millis =
                state.allocated.cpu_millis.saturating_sub(u64::from(old.value.size.cpu.millis()));
            state.allocated.memory_mib =
                state.allocated.memory_mib.saturating_sub(u64::from(old.value.size.memory_mib));
            state.allocated.disk_mib = state.allocated.disk_mib.saturating_sub(u64::from(old.value.size.disk_mib));
            self.touch(old.value.vcluster);
            freed = plan.is_none();
        }
        if let Some(plan) = plan {
            let vcluster = plan.value.vcluster;
            let state = self.hosts.entry(host.clone()).or_default();
            state.nodes.insert(id);
            state.allocated.cpu_millis += u64::from(plan.value.size.cpu.millis());
            state.allocated.memory_mib += u64::from(plan.value.size.memory_mib);
            state.allocated.disk_mib += u64::from(plan.value.size.disk_mib);
            let placed = self.nodes.entry(id).or_default();
            placed.vcluster = Some(vcluster);
            placed.plan = Some((host, plan));
            self.nodes_of.entry(vcluster).or_default().insert(id);
            self.touch(vcluster);
        }
        self.tidy_node(id);
        if freed {
            // Room came free: those who wait for it are planned again.
            let waiting: Vec<VclusterId> =
                self.specs.iter().filter(|(_, s)| self.waits_for_room(&s.value)).map(|(id, _)| *id).collect();
            self.dirty.extend(waiting);
        }
    }

    fn waits_for_room(&self, spec: &VclusterSpec) -> bool {
        spec.nodes.iter().any(|n| self.nodes.get(&n.id).is_none_or(|p| p.plan.is_none()))
    }

    fn apply_node_report(&mut self, host: HostName, id: NodeId, report: Option<Rev<NodeReport>>) {
        let placed = self.nodes.entry(id).or_default();
        match report {
            Some(report) => {
                let vcluster = report.value.vcluster;
                placed.vcluster = Some(vcluster);
                placed.report = Some((host, report));
                self.nodes_of.entry(vcluster).or_default().insert(id);
                self.touch(vcluster);
            }
            None => {
                if placed.report.as_ref().is_some_and(|(at, _)| *at == host)
                    && let Some((_, old)) = placed.report.take()
                {
                    self.touch(old.value.vcluster);
                }
            }
        }
        self.tidy_node(id);
    }

    fn tidy_node(&mut self, id: NodeId) {
        if self.nodes.get(&id).is_some_and(|p| p.plan.is_none() && p.report.is_none()) {
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

    fn tidy_shares(&mut self, id: VclusterId) {
        if let Some(shares) = self.shares.get_mut(&id) {
            shares.retain(|_, share| share.plan.is_some() || share.report.is_some());
            if shares.is_empty() {
                self.shares.remove(&id);
            }
        }
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
