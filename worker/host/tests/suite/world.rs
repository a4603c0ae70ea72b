//! A host to test on, with plans that fit it.

use docklet_types::agent::disk::Control;
use docklet_types::id::{IdRange, NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::net::{Mac, Subnet};
use docklet_types::plan::{Network, NodePlan, Peer, VclusterPlan};
use docklet_types::size::Size;
use docklet_types::spec::{SshKeyPair, VclusterKeys, Wanted};
use docklet_worker_host::{Access, Containers, Disks, Host, Images, Machine, Moves, Networks, Owner};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

pub const READY: Duration = Duration::from_secs(30);

/// A host and how a second worker would see it.
pub struct World {
    pub host: Arc<dyn Everything>,
    pub image: ImageRef,
    pub net: Subnet,
    /// A handle with nothing remembered, as after the worker was killed.
    pub restarted: Box<dyn Fn() -> Arc<dyn Everything> + Send + Sync>,
    /// Undoes the world; runs also when a test fails.
    pub end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// `Host` is not usable as a trait object with its blanket implementation alone.
pub trait Everything: Images + Disks + Networks + Containers + Moves + Access + Machine {}
impl<T: Host> Everything for T {}

fn key(name: &str) -> SshKeyPair {
    SshKeyPair { private: format!("private key of {name}"), public: format!("ssh-ed25519 AAAA{name} {name}") }
}

pub fn vcluster(net: Subnet, index: usize) -> VclusterPlan {
    let subnet = net.split(26).nth(index).expect("the network has room");
    VclusterPlan {
        id: VclusterId::from_uuid(Uuid::now_v7()),
        owner: "alice".parse().unwrap(),
        name: "demo".parse().unwrap(),
        generation: 1,
        wanted: Wanted::Running,
        range: IdRange::new(7).unwrap(),
        network: Network { subnet, vni: 100 + index as u32 },
        peers: Vec::new(),
        hosts: std::collections::BTreeMap::new(),
        forwards: Vec::new(),
        limits: docklet_types::rate::RateLimits::default(),
        keys: VclusterKeys { user: key("user"), host: key("host") },
    }
}

pub fn node(vcluster: &VclusterPlan, number: u32, image: &ImageRef) -> NodePlan {
    let id = NodeId::from_uuid(Uuid::now_v7());
    let ip = vcluster.network.subnet.node_addresses().nth(number as usize - 1).unwrap();
    NodePlan {
        id,
        vcluster: vcluster.id,
        owner: vcluster.owner.clone(),
        name: docklet_types::name::NodeName::numbered(number),
        generation: 1,
        wanted: Wanted::Running,
        attempt: 0,
        image: image.clone(),
        size: Size::new(1.0, 256, 256).unwrap(),
        range: vcluster.range,
        ip,
        mac: Mac::of_address(ip),
        moving: None,
        frozen: false,
        planned_at: None,
    }
}

/// A vcluster with so many nodes, none of them made yet.
pub fn cluster(world: &World, index: usize, count: u32) -> (VclusterPlan, Vec<NodePlan>) {
    let mut vcluster = vcluster(world.net, index);
    let nodes: Vec<NodePlan> = (1..=count).map(|n| node(&vcluster, n, &world.image)).collect();
    let host: docklet_types::name::HostName = "here".parse().unwrap();
    vcluster.peers =
        nodes.iter().map(|n| Peer { name: n.name.clone(), ip: n.ip, mac: n.mac, host: host.clone() }).collect();
    (vcluster, nodes)
}

impl World {
    /// Everything up to a ready node.
    pub async fn bring_up(&self, vcluster: &VclusterPlan, node: &NodePlan) -> i32 {
        self.make(vcluster, node).await;
        let pid = self.host.start(node, vcluster).await.unwrap();
        self.host.wait_ready(node.id, READY).await.unwrap();
        pid
    }

    /// Everything a node needs before it is started.
    pub async fn make(&self, vcluster: &VclusterPlan, node: &NodePlan) {
        self.host.ensure_image(&node.image).await.unwrap();
        self.host.ensure_vcluster(vcluster).await.unwrap();
        self.host.ensure_disk(node, vcluster).await.unwrap();
        self.host.ensure_port(node).await.unwrap();
    }

    pub async fn take_down(&self, vcluster: &VclusterPlan, nodes: &[NodePlan]) {
        for node in nodes {
            self.host.stop(node.id, Duration::ZERO).await.unwrap();
            self.host.remove_port(node.id).await.unwrap();
            self.host.remove_disk(node.id).await.unwrap();
        }
        self.host.remove_vcluster(vcluster.id).await.unwrap();
    }

    /// The audit: nothing is there but what belongs to the host as such.
    pub async fn assert_clean(&self) {
        let left: Vec<_> =
            self.host.inventory().await.unwrap().into_iter().filter(|o| o.owner != Owner::Host).collect();
        assert!(left.is_empty(), "left behind: {left:#?}");
        let observed = self.host.observe().await.unwrap();
        assert!(observed.nodes.is_empty() && observed.vclusters.is_empty(), "{observed:?}");
    }
}

/// Carries a stream from one host to another, as a master does; what the receiver said at the end. `cut`: the line breaks
/// after so many bytes.
pub async fn carry(from: OwnedFd, to: OwnedFd, cut: Option<u64>) -> Option<Control> {
    let stream = |fd: OwnedFd| {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true).unwrap();
        tokio::net::UnixStream::from_std(stream).unwrap()
    };
    let (from, mut to) = (stream(from), stream(to));
    // A receiver that gives up early says so, too.
    let _ = tokio::io::copy(&mut from.take(cut.unwrap_or(u64::MAX)), &mut to).await;
    if cut.is_some() {
        return None;
    }
    to.shutdown().await.ok();
    let mut answer = Vec::new();
    to.read_to_end(&mut answer).await.unwrap();
    let json = answer.get(docklet_types::agent::frame::HEADER..)?;
    Some(serde_json::from_slice(json).unwrap())
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            // A thread of its own: the test's runtime may be the one that is unwinding.
            let ended = std::thread::spawn(move || tokio::runtime::Runtime::new().unwrap().block_on(end)).join();
            assert!(ended.is_ok() || std::thread::panicking(), "the world could not be undone");
        }
    }
}

/// Waits for a condition; fails the test after ten seconds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
