//! A host in memory, for the tests of everything above it.
//!
//! It holds state and refuses what the real one refuses: a node does not start without its disk, image and bridge, and
//! nothing leads into one that does not run. Clones share one state, so that a test can look at it, fail single
//! operations ([`FakeHost::fail`]), slow them down, let nodes die or the whole machine reboot, and count calls.

mod access;
mod moves;
mod terminal;

use async_trait::async_trait;
use docklet_types::host::{Capacity, Check, CheckOutcome};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::image::{Digest, ImageRef};
use docklet_types::kernel_names;
use docklet_types::name::{ImageName, NodeName};
use docklet_types::net::Subnet;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::{Forward, Protocol};
use docklet_types::rate::RateLimits;
use docklet_types::report::Reason;
use docklet_types::size::Size;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use crate::{
    Containers, Disks, Hits, HostError, Images, Machine, Networks, Observed, ObservedNode, ObservedVcluster, Owned,
    Owner, Result,
};
pub use moves::FakeMove;
use terminal::Session;

/// The operations of the traits, by which failures and delays are set and calls are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    EnsureImage,
    EnsureDisk,
    RemoveDisk,
    EnsureVcluster,
    RemoveVcluster,
    EnsurePort,
    RemovePort,
    Start,
    WaitReady,
    Stop,
    Freeze,
    Thaw,
    BeginMove,
    EndMove,
    SendDisk,
    TakeDisk,
    Dial,
    WaitPort,
    Terminal,
    Exec,
    Logs,
    Prepare,
    Capacity,
    Observe,
    Inventory,
}

/// One node of the fake.
#[derive(Debug, Clone)]
pub struct FakeNode {
    pub name: Option<NodeName>,
    pub disk: bool,
    pub port: bool,
    /// The process id while it runs.
    pub init: Option<i32>,
    pub ready: bool,
    pub frozen: bool,
    /// A start was cut off; something of it is still on its way.
    pub unsettled: bool,
    /// What it is held to.
    pub size: Option<Size>,
    /// Ports that something listens on while it runs.
    pub listening: BTreeSet<u16>,
    pub console: String,
    /// What it has written.
    pub content: Vec<u8>,
    pub moving: Option<FakeMove>,
    /// Since its init was started.
    pub hits: Hits,
    /// Changes with every end of init.
    ended: watch::Sender<u64>,
}

impl FakeNode {
    fn new() -> Self {
        Self {
            name: None,
            disk: false,
            port: false,
            init: None,
            ready: false,
            frozen: false,
            unsettled: false,
            size: None,
            listening: BTreeSet::from([22]),
            console: String::new(),
            content: Vec::new(),
            moving: None,
            hits: Hits::default(),
            ended: watch::Sender::new(0),
        }
    }

    fn end(&mut self) {
        if self.init.take().is_some() {
            self.ended.send_modify(|n| *n += 1);
        }
        self.ready = false;
        self.frozen = false;
        self.unsettled = false;
        self.listening = BTreeSet::from([22]);
        self.hits = Hits::default();
    }

    fn is_nothing(&self) -> bool {
        !self.disk && !self.port && self.init.is_none() && !self.unsettled && self.moving.is_none()
    }
}

/// One vcluster's share of the fake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeVcluster {
    pub subnet: Subnet,
    pub bridge: bool,
    pub generation: u64,
    /// Node names by address, as the hosts file has them.
    pub hosts: BTreeMap<Ipv4Addr, NodeName>,
    /// Public ports that lead to its nodes.
    pub forwards: BTreeSet<Forward>,
    pub limits: RateLimits,
}

struct Failure {
    times: u64,
    node: Option<NodeId>,
    error: HostError,
}

/// Everything the fake holds.
pub struct State {
    pub nodes: BTreeMap<NodeId, FakeNode>,
    pub vclusters: BTreeMap<VclusterId, FakeVcluster>,
    /// Images that were unpacked.
    pub images: BTreeSet<Digest>,
    /// Images there are to unpack; all that are asked for where absent.
    pub available: Option<BTreeSet<Digest>>,
    /// Objects that were left behind, for audits to find.
    pub leaked: Vec<Owned>,
    /// The newest versions in the shared directory.
    pub newest: BTreeMap<ImageName, Digest>,
    /// The shared directory does not answer.
    pub share_hangs: bool,
    pub capacity: Capacity,
    /// Ports that programs of the host listen on.
    pub own_ports: BTreeSet<(Protocol, u16)>,
    pub prepared: bool,
    failures: BTreeMap<Op, Vec<Failure>>,
    /// Nodes whose next start is cut off.
    cuts: BTreeSet<NodeId>,
    delays: BTreeMap<Op, Duration>,
    calls: BTreeMap<Op, u64>,
    next_pid: i32,
    sessions: BTreeMap<(NodeId, String), Arc<Session>>,
}

impl State {
    fn share(&self) -> Result<()> {
        let hangs = || HostError::new("shared_directory", "The shared directory does not answer.");
        if self.share_hangs { Err(hangs()) } else { Ok(()) }
    }

    fn share_check(&self) -> Check {
        let (outcome, message) = match self.share() {
            Ok(()) => (CheckOutcome::Ok, "it answers".to_owned()),
            Err(HostError(reason)) => (CheckOutcome::Failed, reason.message),
        };
        Check { name: "shared_directory".to_owned(), outcome, message }
    }

    /// Drops a node of which nothing is left.
    fn forget_empty(&mut self, id: NodeId) {
        if self.nodes.get(&id).is_some_and(FakeNode::is_nothing) {
            self.nodes.remove(&id);
        }
    }

    fn end(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.end();
        }
        self.sessions.retain(|(node, _), session| {
            if *node == id {
                session.end(128 + 9);
            }
            *node != id
        });
    }
}

/// A handle of the fake. Clones see the same host.
#[derive(Clone)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// An empty host of 64 CPUs, 256 GiB and 1 TiB, that has every image.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            nodes: BTreeMap::new(),
            vclusters: BTreeMap::new(),
            images: BTreeSet::new(),
            available: None,
            leaked: Vec::new(),
            newest: BTreeMap::new(),
            share_hangs: false,
            capacity: Capacity { cpu_millis: 64_000, memory_mib: 256 << 10, disk_mib: 1 << 20 },
            own_ports: BTreeSet::new(),
            prepared: false,
            failures: BTreeMap::new(),
            cuts: BTreeSet::new(),
            delays: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_pid: 1000,
            sessions: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The state, to look at and to change. Do not hold it across an await.
    pub fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The next `times` calls of the operation fail with this error (`u64::MAX`: until [`FakeHost::heal`]).
    pub fn fail(&self, op: Op, times: u64, error: HostError) {
        self.state().failures.entry(op).or_default().push(Failure { times, node: None, error });
    }

    /// As [`FakeHost::fail`], for one node only.
    pub fn fail_node(&self, op: Op, node: NodeId, times: u64, error: HostError) {
        self.state().failures.entry(op).or_default().push(Failure { times, node: Some(node), error });
    }

    /// Takes back every failure and delay.
    pub fn heal(&self) {
        let mut state = self.state();
        state.failures.clear();
        state.delays.clear();
    }

    /// Lets every call of the operation take so long (in tokio's time, which tests may pause).
    pub fn delay(&self, op: Op, time: Duration) {
        self.state().delays.insert(op, time);
    }

    /// How often the operation was called.
    #[must_use]
    pub fn calls(&self, op: Op) -> u64 {
        self.state().calls.get(&op).copied().unwrap_or(0)
    }

    /// Init of the node ends by itself.
    pub fn kill(&self, id: NodeId) {
        self.state().end(id);
    }

    /// The node's next start is cut off halfway, as when its helper is killed: it fails, and something goes on.
    pub fn cut_start(&self, id: NodeId) {
        self.state().cuts.insert(id);
    }

    /// Something runs of a node of which nothing else is there.
    pub fn leave_remains(&self, id: NodeId) {
        self.state().nodes.entry(id).or_insert_with(FakeNode::new).unsettled = true;
    }

    /// Something begins to listen in the node.
    pub fn listen(&self, id: NodeId, port: u16) {
        if let Some(node) = self.state().nodes.get_mut(&id) {
            node.listening.insert(port);
        }
    }

    /// The machine goes down and comes up: disks stay, everything of the kernel is gone.
    pub fn reboot(&self) {
        let mut state = self.state();
        let ids: Vec<NodeId> = state.nodes.keys().copied().collect();
        for id in ids {
            state.end(id);
            if let Some(node) = state.nodes.get_mut(&id) {
                node.port = false;
            }
            state.forget_empty(id);
        }
        for vcluster in state.vclusters.values_mut() {
            vcluster.bridge = false;
            vcluster.forwards.clear();
            vcluster.limits = RateLimits::default();
        }
        state.prepared = false;
    }

    /// Counts the call, waits its delay, and fails where a failure is set.
    async fn enter(&self, op: Op, node: Option<NodeId>) -> Result<()> {
        let delay = {
            let mut state = self.state();
            *state.calls.entry(op).or_default() += 1;
            state.delays.get(&op).copied()
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let mut state = self.state();
        let Some(failures) = state.failures.get_mut(&op) else { return Ok(()) };
        let hit = failures.iter_mut().find(|f| f.times > 0 && f.node.is_none_or(|n| Some(n) == node));
        match hit {
            Some(failure) => {
                if failure.times != u64::MAX {
                    failure.times -= 1;
                }
                Err(failure.error.clone())
            }
            None => Ok(()),
        }
    }
}

fn missing_image(image: &ImageRef) -> HostError {
    HostError::new("image_missing", format!("Image {} is not available on this host.", image.name))
}

#[async_trait]
impl Images for FakeHost {
    async fn ensure_image(&self, image: &ImageRef) -> Result<()> {
        self.enter(Op::EnsureImage, None).await?;
        let mut state = self.state();
        if state.available.as_ref().is_some_and(|a| !a.contains(&image.digest)) {
            return Err(missing_image(image));
        }
        state.images.insert(image.digest.clone());
        Ok(())
    }

    async fn newest_image(&self, name: &ImageName) -> Result<Option<ImageRef>> {
        let state = self.state();
        state.share()?;
        Ok(state.newest.get(name).map(|digest| ImageRef { name: name.clone(), digest: digest.clone() }))
    }
}

#[async_trait]
impl Disks for FakeHost {
    async fn ensure_disk(&self, node: &NodePlan, _vcluster: &VclusterPlan) -> Result<()> {
        self.enter(Op::EnsureDisk, Some(node.id)).await?;
        let mut state = self.state();
        let entry = state.nodes.entry(node.id).or_insert_with(FakeNode::new);
        entry.disk = true;
        entry.name = Some(node.name.clone());
        Ok(())
    }

    async fn remove_disk(&self, id: NodeId) -> Result<()> {
        self.enter(Op::RemoveDisk, Some(id)).await?;
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&id) {
            if node.init.is_some() || node.unsettled {
                return Err(HostError::new(
                    "still_running",
                    "The node runs, or may; its disk is not removed under it.",
                ));
            }
            node.disk = false;
            node.moving = None;
        }
        state.forget_empty(id);
        Ok(())
    }
}

#[async_trait]
impl Networks for FakeHost {
    async fn ensure_vcluster(&self, vcluster: &VclusterPlan) -> Result<Vec<Forward>> {
        self.enter(Op::EnsureVcluster, None).await?;
        let hosts = vcluster.peers.iter().map(|p| (p.ip, p.name.clone())).collect();
        let (subnet, mut state) = (vcluster.network.subnet, self.state());
        if state.vclusters.iter().any(|(id, other)| *id != vcluster.id && other.subnet.contains(subnet.gateway())) {
            return Err(HostError::new("network_in_use", format!("{subnet} is in use by another vcluster.")));
        }
        let taken = |f: &&Forward| state.own_ports.contains(&(f.protocol, f.public));
        let (refused, forwards): (Vec<&Forward>, Vec<&Forward>) = vcluster.forwards.iter().partition(taken);
        let refused = refused.into_iter().copied().collect();
        let forwards: BTreeSet<Forward> = forwards.into_iter().copied().collect();
        // A port leads to one vcluster: the one that said so last.
        for other in state.vclusters.values_mut() {
            other.forwards.retain(|f| !forwards.iter().any(|n| (n.protocol, n.public) == (f.protocol, f.public)));
        }
        let limits = vcluster.limits;
        let made = FakeVcluster { subnet, bridge: true, generation: vcluster.generation, hosts, forwards, limits };
        state.vclusters.insert(vcluster.id, made);
        Ok(refused)
    }

    async fn remove_vcluster(&self, id: VclusterId) -> Result<()> {
        self.enter(Op::RemoveVcluster, None).await?;
        self.state().vclusters.remove(&id);
        Ok(())
    }

    async fn ensure_port(&self, node: &NodePlan) -> Result<()> {
        self.enter(Op::EnsurePort, Some(node.id)).await?;
        self.state().nodes.entry(node.id).or_insert_with(FakeNode::new).port = true;
        Ok(())
    }

    async fn remove_port(&self, id: NodeId) -> Result<()> {
        self.enter(Op::RemovePort, Some(id)).await?;
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&id) {
            node.port = false;
        }
        state.forget_empty(id);
        Ok(())
    }
}

#[async_trait]
impl Containers for FakeHost {
    async fn start(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<i32> {
        self.enter(Op::Start, Some(node.id)).await?;
        let mut state = self.state();
        if let Some(pid) = state.nodes.get(&node.id).and_then(|n| n.init) {
            return Ok(pid);
        }
        if !state.images.contains(&node.image.digest) {
            return Err(missing_image(&node.image));
        }
        state.share()?;
        let boot_failed =
            |what: &str| HostError::new("boot_failed", format!("Node {} could not be started: {what}.", node.name));
        if !state.vclusters.get(&vcluster.id).is_some_and(|v| v.bridge) {
            return Err(boot_failed("its vcluster has no bridge"));
        }
        let (pid, cut) = (state.next_pid, state.cuts.remove(&node.id));
        let entry = state.nodes.get_mut(&node.id).filter(|n| n.disk).ok_or_else(|| boot_failed("it has no disk"))?;
        entry.unsettled = cut;
        if cut {
            return Err(HostError::new("helper_failed", "The helper process was killed."));
        }
        entry.init = Some(pid);
        entry.size = Some(node.size);
        entry.console.push_str(&format!("{} boots\n", node.name));
        state.next_pid += 1;
        Ok(pid)
    }

    async fn wait_ready(&self, id: NodeId, deadline: Duration) -> Result<()> {
        // A boot that takes longer than the deadline is a boot that failed.
        let Ok(entered) = tokio::time::timeout(deadline, self.enter(Op::WaitReady, Some(id))).await else {
            return Err(self.not_ready(id, "The node did not come up in time."));
        };
        entered?;
        let frozen = self.state().nodes.get(&id).is_some_and(|n| n.frozen);
        if frozen {
            return Err(self.not_ready(id, "The node did not come up in time."));
        }
        let up = self.state().nodes.get_mut(&id).filter(|n| n.init.is_some()).map(|n| n.ready = true);
        up.ok_or_else(|| self.not_ready(id, "The node ended while it booted."))
    }

    async fn wait_end(&self, id: NodeId) {
        let waiting = self.state().nodes.get(&id).filter(|n| n.init.is_some()).map(|n| n.ended.subscribe());
        if let Some(mut ended) = waiting {
            // An error says that the node is gone altogether.
            let _ = ended.changed().await;
        }
    }

    async fn stop(&self, id: NodeId, _grace: Duration) -> Result<()> {
        self.enter(Op::Stop, Some(id)).await?;
        self.state().end(id);
        Ok(())
    }

    async fn freeze(&self, id: NodeId) -> Result<()> {
        self.enter(Op::Freeze, Some(id)).await?;
        let mut state = self.state();
        let running = state.nodes.get_mut(&id).filter(|n| n.init.is_some());
        let node = running.ok_or_else(|| HostError::new("freeze_failed", "The node does not run."))?;
        node.frozen = true;
        Ok(())
    }

    async fn thaw(&self, node: &NodePlan) -> Result<()> {
        self.enter(Op::Thaw, Some(node.id)).await?;
        let mut state = self.state();
        let running = state.nodes.get_mut(&node.id).filter(|n| n.init.is_some());
        let entry = running.ok_or_else(|| HostError::new("thaw_failed", "The node does not run."))?;
        entry.frozen = false;
        entry.size = Some(node.size);
        Ok(())
    }
}

impl FakeHost {
    fn not_ready(&self, id: NodeId, what: &str) -> HostError {
        let console = self.state().nodes.get(&id).map(|n| n.console.clone()).unwrap_or_default();
        HostError(Reason::new("not_ready", what).with_log(console))
    }
}

#[async_trait]
impl Machine for FakeHost {
    async fn prepare(&self) -> Result<Vec<Check>> {
        self.enter(Op::Prepare, None).await?;
        self.state().prepared = true;
        let fake = Check { name: "fake".to_owned(), outcome: CheckOutcome::Ok, message: "a host in memory".to_owned() };
        Ok(vec![fake, self.state().share_check()])
    }

    async fn watch(&self) -> Vec<Check> {
        vec![self.state().share_check()]
    }

    async fn capacity(&self) -> Result<Capacity> {
        self.enter(Op::Capacity, None).await?;
        Ok(self.state().capacity)
    }

    fn address(&self) -> Option<Ipv4Addr> {
        None
    }

    async fn observe(&self) -> Result<Observed> {
        self.enter(Op::Observe, None).await?;
        let state = self.state();
        let node = |n: &FakeNode| ObservedNode {
            disk: n.disk,
            port: n.port,
            init_pid: n.init,
            ready: n.ready,
            frozen: n.frozen,
            unsettled: n.unsettled,
            moving: n.moving.as_ref().map(|m| m.number),
        };
        Ok(Observed {
            // As on the real host, a port alone is no node: only a disk or a process makes one known.
            nodes: state
                .nodes
                .iter()
                .filter(|(_, n)| n.disk || n.init.is_some() || n.unsettled || n.moving.is_some())
                .map(|(id, n)| (*id, node(n)))
                .collect(),
            vclusters: state
                .vclusters
                .iter()
                .map(|(id, v)| (*id, ObservedVcluster { bridge: v.bridge, generation: Some(v.generation) }))
                .collect(),
        })
    }

    async fn limits_hit(&self, nodes: Vec<NodeId>) -> BTreeMap<NodeId, Hits> {
        let state = self.state();
        let running = |id: NodeId| state.nodes.get(&id).filter(|n| n.init.is_some()).map(|n| (id, n.hits));
        nodes.into_iter().filter_map(running).collect()
    }

    async fn inventory(&self) -> Result<Vec<Owned>> {
        self.enter(Op::Inventory, None).await?;
        let state = self.state();
        let mut found = state.leaked.clone();
        for (id, node) in &state.nodes {
            let owner = Owner::Node(*id);
            let mut add = |kind, label| found.push(Owned { kind, label, owner });
            if node.disk {
                add("directory", format!("nodes/{id}"));
            }
            if node.moving.is_some() {
                add("directory", format!("moves/{id}"));
            }
            if node.port {
                add("nft_element", format!("bound {}", kernel_names::veth(*id)));
            }
            if let Some(pid) = node.init {
                add("link", kernel_names::veth(*id));
                add("cgroup", kernel_names::container(*id));
                add("process", pid.to_string());
            }
            if node.unsettled {
                add("process", "a start that was cut off".to_owned());
            }
        }
        for (id, vcluster) in &state.vclusters {
            let owner = Owner::Vcluster(*id);
            found.push(Owned { kind: "directory", label: format!("vclusters/{id}"), owner });
            if vcluster.bridge {
                found.push(Owned { kind: "link", label: kernel_names::bridge(*id), owner });
            }
            let limits = &vcluster.limits;
            for (direction, kbit) in [("ingress", limits.ingress_kbit), ("egress", limits.egress_kbit)] {
                if let Some(kbit) = kbit {
                    let label = format!("{direction} {} {kbit} kbit/s", kernel_names::bridge(*id));
                    found.push(Owned { kind: "nft_element", label, owner });
                }
            }
            for Forward { protocol, public, ip, port } in &vcluster.forwards {
                let label = format!("forwards {public}/{protocol} {ip}:{port}");
                found.push(Owned { kind: "nft_element", label, owner });
            }
        }
        found.sort();
        Ok(found)
    }
}
