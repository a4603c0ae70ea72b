//! The Linux host.
//!
//! `linux.rs` holds what the operations share, and the quick ones: images, disks, networks. `linux/boot.rs` starts and stops
//! nodes, `linux/moves.rs` sends and takes their disks, `linux/enter.rs` leads into them, `linux/survey.rs` prepares and looks at the host. What liblxc must do, a
//! helper process does (`linux/helper.rs`).

mod access;
mod apparmor;
mod boot;
mod btrfs;
mod cgroup;
mod container;
mod disk;
mod enter;
mod exec;
pub mod helper;
pub mod image;
mod inventory;
mod listeners;
mod lxc;
mod machine;
mod moves;
mod network;
mod nft;
mod pool;
mod proc;
mod publish;
mod rootfs;
mod run;
mod share;
mod shell;
mod survey;
mod sys;
mod tunnel;

use async_trait::async_trait;
use docklet_types::config::Config;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::kernel_names;
use docklet_types::name::{HostName, ImageName};
use docklet_types::net::Subnet;
use docklet_types::paths::Paths;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::Forward;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::UnixDatagram;
use tokio::sync::Semaphore;

use crate::reason::failed;
use crate::{Disks, HostError, Images, Networks, Result};

/// The host that this program runs on.
#[derive(Clone)]
pub struct LinuxHost {
    /// The program that has `helper <op>`; this one unless a test says otherwise.
    pub program: PathBuf,
    inner: Arc<Inner>,
}

/// Held by the one whose turn it is.
type Turn = Arc<tokio::sync::Mutex<()>>;

struct Inner {
    paths: Paths,
    /// This host as plans name it.
    name: HostName,
    cluster_net: Subnet,
    network_device: Option<String>,
    share: share::Share,
    images: image::ImageStore,
    pool: pool::Pool,
    firewall: nft::Firewall,
    /// Public ports that lead to nodes here.
    published: publish::Holder,
    doorman: access::Doorman,
    /// Sockets that init reports to, of nodes that are on their way up.
    reports: Mutex<HashMap<NodeId, Arc<UnixDatagram>>>,
    /// One terminal session is opened by one caller at a time.
    terminals: Mutex<HashMap<(NodeId, String), Turn>>,
    /// Nodes that this worker has had to do with, so that what they leave behind can be told from others'.
    seen: Mutex<HashSet<NodeId>>,
    /// Nodes that are being stopped right now.
    stopping: Mutex<HashSet<NodeId>>,
    /// When the packet filter's elements were last read, and which ports were there.
    ports: tokio::sync::Mutex<Option<(Instant, HashSet<String>)>>,
    /// Nodes whose disks are on their way.
    moving: Mutex<HashMap<NodeId, moves::Slot>>,
    /// Bounds how many helpers run at once: a start takes some processor time, and a hundred at once only wait for each other.
    helpers: Semaphore,
}

/// What is kept of a node's plan beside its disk, for a worker that comes later.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct NodeNote {
    ip: Ipv4Addr,
    first_id: u32,
}

const NOTE: &str = "node.json";
const GENERATION: &str = "generation";

impl LinuxHost {
    #[must_use]
    pub fn new(config: &Config, name: HostName, paths: Paths) -> Self {
        let table = kernel_names::nft_table(&config.cluster_name);
        let base = nft::Base {
            table: table.clone(),
            cluster_net: config.cluster_net,
            resolvers: disk::resolvers(),
            connected: network::subnets(network::connected()),
        };
        let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let inner = Inner {
            name,
            cluster_net: config.cluster_net,
            network_device: config.network_device.clone(),
            share: share::Share::new(&paths, config.cluster_name.clone()),
            images: image::ImageStore::new(paths.clone()),
            pool: pool::Pool::new(paths.clone(), config.storage.clone(), config.diskpool_mib, table),
            firewall: nft::Firewall::new(base),
            published: publish::Holder::default(),
            doorman: access::Doorman::new(),
            reports: Mutex::default(),
            terminals: Mutex::default(),
            seen: Mutex::default(),
            stopping: Mutex::default(),
            ports: tokio::sync::Mutex::default(),
            moving: Mutex::default(),
            helpers: Semaphore::new((cpus * 4).max(8)),
            paths,
        };
        Self { program: PathBuf::from("/proc/self/exe"), inner: Arc::new(inner) }
    }

    /// Removes what belongs to the host as such: packet filter, route, pool mount. Nodes must be gone. What is stored
    /// stays. For leaving a machine as it was found.
    ///
    /// # Errors
    /// The first thing that could not be removed; the others were tried.
    pub async fn release(&self) -> Result<()> {
        let filter = self
            .inner
            .firewall
            .destroy()
            .await
            .map_err(|e| failed("network_failed", "The packet filter could not be removed", &e));
        let route = network::remove_unreachable(self.inner.cluster_net).await;
        let route = route.map_err(|e| failed("network_failed", "The route could not be removed", &e));
        let root = self.inner.paths.pool();
        let unmount =
            if pool::is_mount_point(&root) { nix::mount::umount(&root).map_err(io::Error::from) } else { Ok(()) };
        let unmount = unmount.map_err(|e| failed("disk_failed", "The pool could not be unmounted", &e));
        filter.and(route).and(unmount)
    }

    fn state(&self, id: NodeId) -> PathBuf {
        self.inner.paths.node_state(id)
    }

    fn note(&self, id: NodeId) -> Option<NodeNote> {
        serde_json::from_slice(&fs::read(self.state(id).join(NOTE)).ok()?).ok()
    }

    fn title(&self, id: NodeId) -> String {
        access::title(&self.inner.paths.lxc(), &kernel_names::container(id))
    }

    /// Runs a blocking piece of work on a thread for such.
    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> T + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|e| failed("host_failed", "The worker gave up an operation", &e))
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes a directory with all that is in it; already gone is success.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Inner {
    /// The node's state directory, with what other parts put files into.
    fn make_state(&self, node: &NodePlan) -> io::Result<PathBuf> {
        let state = self.paths.node_state(node.id);
        private_directory(&state)?;
        private_directory(&state.join("terminals"))?;
        // The node's root, who is nobody on the host, must reach the socket through a bind of this directory.
        let notify = state.join("notify");
        private_directory(&notify)?;
        fs::set_permissions(&notify, fs::Permissions::from_mode(0o755))?;
        let note = NodeNote { ip: node.ip, first_id: node.range.first_id() };
        fs::write(state.join(NOTE), serde_json::to_vec(&note)?)?;
        Ok(state)
    }

    /// Every host-side file of a node but its disk.
    fn remove_files(&self, id: NodeId) -> io::Result<()> {
        let container = kernel_names::container(id);
        let lxcpath = self.paths.lxc();
        let state = remove_tree(&self.paths.node_state(id));
        let lxc = remove_tree(&lxcpath.join(&container));
        // liblxc keeps a lock file per container and never removes it.
        let lock = PathBuf::from("/run/lxc/lock")
            .join(lxcpath.strip_prefix("/").unwrap_or(&lxcpath))
            .join(format!(".{container}"));
        let lock = match fs::remove_file(lock) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        state.and(lxc).and(lock)
    }
}

#[async_trait]
impl Images for LinuxHost {
    async fn ensure_image(&self, image: &ImageRef) -> Result<()> {
        let Inner { images, share, .. } = &*self.inner;
        images.ensure(image, &self.program, share).await
    }

    async fn newest_image(&self, name: &ImageName) -> Result<Option<ImageRef>> {
        let Inner { images, share, .. } = &*self.inner;
        images.newest(name, &self.program, share).await
    }
}

#[async_trait]
impl Disks for LinuxHost {
    async fn ensure_disk(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<()> {
        self.inner.seen.lock().insert(node.id);
        let what = format!("The disk of node {} could not be made", node.name);
        let (node, vcluster) = (node.clone(), vcluster.clone());
        let done = self.blocking(move |inner| {
            inner.make_state(&node).map_err(|source| disk::DiskError::Write {
                path: inner.paths.node_state(node.id).display().to_string(),
                source,
            })?;
            disk::ensure(&inner.pool, &node, &vcluster, &disk::resolvers())
        });
        done.await?.map_err(|e| failed("disk_failed", &what, &e))
    }

    async fn remove_disk(&self, id: NodeId) -> Result<()> {
        // Also what may come to run: with its files gone nobody would know of it.
        if run::look(&self.state(id)) != run::State::Stopped {
            return Err(HostError::new("still_running", "The node runs, or may; its disk is not removed under it."));
        }
        self.inner.terminals.lock().retain(|(node, _), _| *node != id);
        let copies = self.clear_move(id).await;
        let (disk, files) = self.blocking(move |inner| (inner.pool.remove(id), inner.remove_files(id))).await?;
        // Accounting is cleaned up behind the caller's back: nobody waits for it.
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.pool.sweep());
        disk.map_err(|e| failed("disk_failed", "The node's disk could not be removed", &e))?;
        copies?;
        files.map_err(|e| failed("disk_failed", "The node's files could not be removed", &e))
    }
}

#[async_trait]
impl Networks for LinuxHost {
    async fn ensure_vcluster(&self, vcluster: &VclusterPlan) -> Result<Vec<Forward>> {
        let what = format!("The network of vcluster {} could not be made", vcluster.name);
        let fail = |e: &(dyn std::error::Error + 'static)| failed("network_failed", &what, e);
        let plan = vcluster.clone();
        let written = self.blocking(move |inner| {
            let state = inner.paths.vcluster_state(plan.id);
            let made = private_directory(&state);
            made.map_err(|source| network::NetworkError::Write { path: state.display().to_string(), source })?;
            network::write_hosts(&state.join("hosts"), &network::hosts(&plan))?;
            Ok::<_, network::NetworkError>(network::uplink_mtu(inner.network_device.as_deref()))
        });
        let mtu = written.await?.map_err(|e| fail(&e))?;
        let bridge = kernel_names::bridge(vcluster.id);
        // The filter before the bridge: nothing may pass unjudged in between.
        self.inner.firewall.add_bridge(&bridge).await.map_err(|e| fail(&e))?;
        // Room for a tunnel from the start: a vcluster may spread over hosts later, and its nodes keep what they have.
        let mtu = mtu - tunnel::OVERHEAD;
        network::ensure_bridge(vcluster.id, vcluster.network.subnet, mtu).await.map_err(|e| match &e {
            network::NetworkError::Taken { .. } => failed("network_in_use", &what, &e),
            _ => fail(&e),
        })?;
        let address = network::underlay_address(self.inner.network_device.as_deref());
        let forwards = self.inner.published.hold(&bridge, &vcluster.forwards).map_err(|e| fail(&e))?;
        let refused = vcluster.forwards.iter().filter(|f| !forwards.contains(f)).copied().collect();
        let tunnel = tunnel::senders(vcluster, &self.inner.name, address).map(|hosts| (vcluster.network.vni, hosts));
        let share = nft::share::Share { forwards: forwards.into_iter().collect(), tunnel, limits: vcluster.limits };
        // Before the tunnel: nobody else may ever speak into it.
        self.inner.firewall.set_share(&bridge, share).await.map_err(|e| fail(&e))?;
        let state = self.inner.paths.vcluster_state(vcluster.id);
        tunnel::ensure(vcluster, &self.inner.name, address, &state).await.map_err(|e| fail(&e))?;
        // Last: it says that everything of this generation is in place.
        let path = self.inner.paths.vcluster_state(vcluster.id).join(GENERATION);
        fs::write(&path, vcluster.generation.to_string()).map_err(|e| fail(&e))?;
        Ok(refused)
    }

    async fn remove_vcluster(&self, id: VclusterId) -> Result<()> {
        let what = "The vcluster's network could not be removed";
        let bridge = kernel_names::bridge(id);
        let state = self.inner.paths.vcluster_state(id);
        let tunnel = tunnel::remove(id, &state).await.map_err(|e| failed("network_failed", what, &e));
        let link = network::remove_link(&bridge).await.map_err(|e| failed("network_failed", what, &e));
        let filter = self.inner.firewall.remove_bridge(&bridge).await.map_err(|e| failed("network_failed", what, &e));
        self.inner.published.release(&bridge);
        let files = self.blocking(move |inner| remove_tree(&inner.paths.vcluster_state(id))).await?;
        let files = files.map_err(|e| failed("network_failed", what, &e));
        all([tunnel, link, filter, files])
    }

    async fn ensure_port(&self, node: &NodePlan) -> Result<()> {
        self.inner.seen.lock().insert(node.id);
        let link = kernel_names::veth(node.id);
        let added = self.inner.firewall.add_port(&link, nft::Binding { mac: node.mac, ip: node.ip }).await;
        added.map_err(|e| {
            failed("network_failed", &format!("The network of node {} could not be made", node.name), &e)
        })?;
        if let Some((_, ports)) = self.inner.ports.lock().await.as_mut() {
            ports.insert(link);
        }
        Ok(())
    }

    async fn remove_port(&self, id: NodeId) -> Result<()> {
        let link = kernel_names::veth(id);
        let what = "The node's network could not be removed";
        let cable = network::remove_link(&link).await.map_err(|e| failed("network_failed", what, &e));
        let filter = self.inner.firewall.remove_port(&link).await.map_err(|e| failed("network_failed", what, &e));
        if let Some((_, ports)) = self.inner.ports.lock().await.as_mut() {
            ports.remove(&link);
        }
        all([cable, filter])
    }
}

/// Every failure of a teardown as one.
fn all<const N: usize>(results: [Result<()>; N]) -> Result<()> {
    let mut errors = results.into_iter().filter_map(std::result::Result::err);
    let Some(mut first) = errors.next() else { return Ok(()) };
    for other in errors {
        first.0.message = format!("{} {}", first.0.message, other.0.message);
    }
    Err(HostError(first.0))
}
