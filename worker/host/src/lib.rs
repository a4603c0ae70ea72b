//! What a worker needs of its host, as narrow traits; the Linux implementation; and a fake that holds state.
//!
//! Both implementations pass the same suite (`tests/`). Every operation is idempotent: "already so" is success, and a
//! teardown goes on past a failure and returns every error. Nothing here decides; `worker/plan` does.

use async_trait::async_trait;
use docklet_types::agent::{ExecOutput, Part};
use docklet_types::host::{Capacity, Check};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::name::ImageName;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::Forward;
use docklet_types::report::Reason;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::Duration;

mod courier;
pub mod fake;
pub mod linux;
pub mod reason;

/// Everything of ours that the host holds now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    pub nodes: BTreeMap<NodeId, ObservedNode>,
    /// Vclusters with a bridge or state directory here.
    pub vclusters: BTreeMap<VclusterId, ObservedVcluster>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedNode {
    /// Its disk exists.
    pub disk: bool,
    /// Its packet filter entries exist.
    pub port: bool,
    /// Its init's process id, while it runs.
    pub init_pid: Option<i32>,
    /// Init has said that it is up since it was started.
    pub ready: bool,
    /// Its processes stand still.
    pub frozen: bool,
    /// Its init does not run, but something of it does or may: a start whose outcome nobody knows, or an end that is not
    /// over. It may come to run by itself, until it is stopped or started anew.
    pub unsettled: bool,
    /// The number of the move that copies of its disk are here for.
    pub moving: Option<u64>,
}

/// How often a node ran into its limits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// Processes that were ended for want of memory.
    pub memory: u64,
    /// Processes that could not be started.
    pub processes: u64,
    pub disk_full: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedVcluster {
    pub bridge: bool,
    /// The generation of the plan that was last applied to it, if known.
    pub generation: Option<u64>,
}

/// Why an operation on the host failed: a reason for people, with the cause kept in it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", .0.message)]
pub struct HostError(pub Reason);

pub type Result<T> = std::result::Result<T, HostError>;

/// Images, unpacked once per host and shared read-only by all nodes.
#[async_trait]
pub trait Images: Send + Sync {
    /// Unpacks the image where it is not yet; concurrent calls for one image do the work once.
    async fn ensure_image(&self, image: &ImageRef) -> Result<()>;
    /// The newest version of an image in the shared directory, if it is there.
    async fn newest_image(&self, name: &ImageName) -> Result<Option<ImageRef>>;
}

/// What nodes write.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Makes the node's disk (limited to its size where the pool can), with the files that make it this node: host name, keys.
    async fn ensure_disk(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<()>;
    /// Removes the disk and every host-side file of the node.
    async fn remove_disk(&self, id: NodeId) -> Result<()>;
}

#[async_trait]
pub trait Networks: Send + Sync {
    /// The vcluster's bridge with the gateway address, its hosts file, its sets in the packet filter and its published
    /// ports. Returns those of its ports that the host itself uses: they lead nowhere until they are free.
    async fn ensure_vcluster(&self, vcluster: &VclusterPlan) -> Result<Vec<Forward>>;
    async fn remove_vcluster(&self, id: VclusterId) -> Result<()>;
    /// Lets the node's cable carry exactly its MAC and address.
    async fn ensure_port(&self, node: &NodePlan) -> Result<()>;
    async fn remove_port(&self, id: NodeId) -> Result<()>;
}

#[async_trait]
pub trait Containers: Send + Sync {
    /// Starts the node's init and returns its process id. The node runs on when the worker ends.
    async fn start(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<i32>;
    /// Returns when init has said that it is up and sshd listens. An error carries the console's last lines.
    async fn wait_ready(&self, id: NodeId, deadline: Duration) -> Result<()>;
    /// Returns when the node's init ends (at once where it does not run). Never fails: an unknown node has ended.
    async fn wait_end(&self, id: NodeId);
    /// Asks init to shut down; kills what is left after `grace`. `grace` zero kills at once. A frozen node is thawed.
    async fn stop(&self, id: NodeId, grace: Duration) -> Result<()>;
    /// Lets all processes of a running node stand still, and returns when they do. Nothing of it takes time from then on.
    async fn freeze(&self, id: NodeId) -> Result<()>;
    /// Holds a running node to its plan's size, which may be another than it was started with, and lets it run on.
    async fn thaw(&self, node: &NodePlan) -> Result<()>;
}

/// Disks on their way between hosts. Each move of a node has a number; what an earlier one left never serves another.
#[async_trait]
pub trait Moves: Send + Sync {
    /// Makes ready to send or to take the node's disk. What an earlier move left goes.
    async fn begin_move(&self, node: &NodePlan, number: u64) -> Result<()>;
    /// Removes all copies, and ends what is under way; the node's disk stays.
    async fn end_move(&self, id: NodeId) -> Result<()>;
    /// A stream of the disk (see `docklet_types::agent::disk`), which goes on after the return. The last part needs the
    /// node stopped. One at a time of a node: `move_busy` else.
    async fn send_disk(&self, id: NodeId, number: u64, part: Part, based: bool) -> Result<OwnedFd>;
    /// Where to write such a stream. `Ok(None)`: this part has been taken.
    async fn take_disk(&self, id: NodeId, number: u64, part: Part) -> Result<Option<OwnedFd>>;
}

/// Ways into a running node.
#[async_trait]
pub trait Access: Send + Sync {
    /// A TCP socket connected to 127.0.0.1:`port` inside the node. `Ok(None)`: nothing listens there.
    async fn dial(&self, id: NodeId, port: u16) -> Result<Option<OwnedFd>>;
    /// Whether something listened on the port (any address) before `timeout` passed.
    async fn wait_port(&self, id: NodeId, port: u16, timeout: Duration) -> Result<bool>;
    /// A unix stream to the session's shell holder (see `docklet_types::agent::frame`), started where there is none.
    async fn terminal(&self, id: NodeId, session: &str, cols: u16, rows: u16) -> Result<OwnedFd>;
    /// Runs `argv` to its end. `Ok(None)`: it did not end within `timeout` and was killed.
    async fn exec(&self, id: NodeId, argv: &[String], stdin: &str, timeout: Duration) -> Result<Option<ExecOutput>>;
    /// The last `lines` lines of the node's console.
    async fn logs(&self, id: NodeId, lines: u32) -> Result<String>;
}

/// The host itself.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Checks kernel features and sets what nodes need: sysctls, id ranges, the `unreachable` route, the pool, the
    /// packet filter's base. Safe to run again while nodes run. Every finding is in the list; a failed check is no error.
    async fn prepare(&self) -> Result<Vec<Check>>;
    /// The checks of [`Machine::prepare`] whose outcome may change while nodes run. Changes nothing, and answers within
    /// seconds even where what it looks at hangs.
    async fn watch(&self) -> Vec<Check>;
    async fn capacity(&self) -> Result<Capacity>;
    /// Where other hosts reach this one; `None` where it has no way out.
    fn address(&self) -> Option<Ipv4Addr>;
    async fn observe(&self) -> Result<Observed>;
    /// The limits that nodes ran into since their init was started, of those that run. What cannot be read counts as none.
    async fn limits_hit(&self, nodes: Vec<NodeId>) -> BTreeMap<NodeId, Hits>;
    /// Every object of ours that exists, by kind (`link`, `nft_element`, `mount`, `cgroup`, `process`, `loop`,
    /// `directory`, `netns`), so that an audit can say what belongs to nothing. The label names the object.
    async fn inventory(&self) -> Result<Vec<Owned>>;
}

/// One object found by [`Machine::inventory`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owned {
    pub kind: &'static str,
    pub label: String,
    pub owner: Owner,
}

/// Whom an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    Node(NodeId),
    Vcluster(VclusterId),
    /// Docklet on this host as such: its pool, its base tables, its route.
    Host,
    /// Ours by name, but of nothing that is known.
    Unknown,
}

/// All of a host.
pub trait Host: Images + Disks + Networks + Containers + Moves + Access + Machine + 'static {}
impl<T: Images + Disks + Networks + Containers + Moves + Access + Machine + 'static> Host for T {}
