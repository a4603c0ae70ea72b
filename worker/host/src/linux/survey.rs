//! Preparing and looking at the host, as the worker asks for it.

use async_trait::async_trait;
use docklet_types::host::{Capacity, Check};
use docklet_types::id::NodeId;
use docklet_types::join::{self, HostNetwork};
use docklet_types::kernel_names;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::machine::{self, ProbeRequest};
use super::run::{self, State};
use super::{
    GENERATION, LinuxHost, access, apparmor, cgroup, container, disk, helper, inventory, moves, network,
    private_directory,
};
use crate::reason::chain;
use crate::{Hits, Machine, Observed, ObservedNode, ObservedVcluster, Owned, Result};

/// How long a reading of the packet filter is believed. Our own changes enter it at once; this is for those of others.
const BELIEVED: Duration = Duration::from_secs(30);

/// The names in a directory that are ids.
pub fn ids<T: FromStr>(directory: &Path) -> Vec<T> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

impl LinuxHost {
    async fn checks(&self) -> Result<Vec<Check>> {
        let mut checks = vec![machine::root(), machine::programs(), machine::cgroups()];
        checks.extend(machine::sysctls());
        checks.extend(machine::subordinate_ids());
        checks.push(self.directories());
        checks.push(self.blocking(|_| apparmor::load()).await?);
        checks.push(self.pool().await?);
        checks.push(self.inner.share.check(&self.program).await);
        checks.push(self.probe().await);
        let connected = network::connected();
        checks.extend(self.cluster_net(&connected).await);
        let resolvers = disk::resolvers();
        checks.push(if resolvers.is_empty() {
            machine::warning(
                "resolvers",
                "the host has no name server that nodes could use; names of the Internet will not resolve in nodes",
            )
        } else {
            machine::ok("resolvers", format!("nodes ask {}", resolvers.join(", ")))
        });
        checks.push(match self.inner.firewall.prepare(resolvers, network::subnets(connected)).await {
            Ok(()) => machine::ok("packet_filter", "the tables are in place"),
            Err(e) => machine::failed("packet_filter", chain(&e)),
        });
        checks.push(machine::lxcfs());
        Ok(checks)
    }

    /// The route only where nothing else of the host is in the network: else it would cut the host off from that.
    async fn cluster_net(&self, connected: &[HostNetwork]) -> Vec<Check> {
        let net = self.inner.cluster_net;
        if let Some(message) = join::overlap(connected, net) {
            return vec![machine::failed("cluster_net", message)];
        }
        let free = machine::ok("cluster_net", format!("no network of this host overlaps {net}"));
        let route = match network::ensure_unreachable(net).await {
            Ok(()) => machine::ok("route", format!("{net} cannot leave the host")),
            Err(e) => machine::failed("route", chain(&e)),
        };
        vec![free, route]
    }

    /// Directories and files that helpers find in place.
    fn directories(&self) -> Check {
        let paths = &self.inner.paths;
        let make = || {
            for directory in [
                paths.local(),
                paths.lxc(),
                paths.node_states(),
                paths.vcluster_states(),
                paths.unpacked_images(),
                paths.run(),
            ] {
                private_directory(&directory)?;
            }
            fs::create_dir_all(super::rootfs::STAGE)?;
            // Only costs space, so that it is no reason to fail.
            let _ = super::image::clear_partial(&paths.unpacked_images());
            fs::write(paths.lxc().join("node.seccomp"), container::SECCOMP)
        };
        let open = || machine::let_others_search(&paths.lxc(), paths.prefix());
        match make().and_then(|()| open()) {
            Ok(None) => machine::ok("directories", format!("{} is in place", paths.local().display())),
            Ok(Some(closed)) => {
                let closed = closed.display();
                machine::failed(
                    "directories",
                    format!(
                        "{closed} cannot be searched by others, which liblxc wants for unprivileged nodes: chmod o+x {closed}"
                    ),
                )
            }
            Err(e) => machine::failed("directories", format!("{} could not be set up: {e}", paths.local().display())),
        }
    }

    async fn pool(&self) -> Result<Check> {
        self.blocking(|inner| match inner.pool.prepare() {
            Err(e) => machine::failed("pool", chain(&e)),
            Ok(()) if inner.pool.is_low() => machine::warning(
                "pool",
                format!("{} MiB are left of {} MiB", inner.pool.free_mib(), inner.pool.capacity_mib()),
            ),
            Ok(()) if !inner.pool.has_limits() => machine::warning(
                "pool",
                "STORAGE=directory: the disk limits of nodes do NOT hold. Use STORAGE=file or disk",
            ),
            Ok(()) => machine::ok(
                "pool",
                format!("btrfs, {} MiB of {} MiB free", inner.pool.free_mib(), inner.pool.capacity_mib()),
            ),
        })
        .await
    }

    /// Mounts a root file system as nodes have it, in a helper that ends with it.
    async fn probe(&self) -> Check {
        const NAME: &str = "idmapped_mounts";
        let layers = self.inner.paths.unpacked_images();
        let disk = match machine::probe_disk(&self.inner.paths.pool()) {
            Ok(disk) => disk,
            Err(e) => return machine::failed(NAME, format!("the pool cannot be written: {e}")),
        };
        let request = ProbeRequest { layers: layers.clone(), disk: disk.clone() };
        let answer: Result<Option<String>> =
            helper::call(&self.program, "probe", "docklet-probe", &request, Duration::from_secs(20)).await;
        let _ = fs::remove_dir_all(disk);
        match answer {
            Ok(None) => machine::ok(NAME, "images are shared by idmapped mounts and overlayfs"),
            Ok(Some(said)) => machine::failed(
                NAME,
                format!(
                    "{said}. The file system of {} must allow idmapped mounts (ext4, xfs, btrfs; Linux 6.1 or later)",
                    layers.display()
                ),
            ),
            Err(e) => machine::failed(NAME, e.0.message),
        }
    }

    /// Cables that the packet filter lets through.
    async fn ports(&self) -> HashSet<String> {
        let mut known = self.inner.ports.lock().await;
        if let Some((at, ports)) = known.as_ref()
            && at.elapsed() < BELIEVED
        {
            return ports.clone();
        }
        let ports: HashSet<String> = match self.inner.firewall.read().await {
            Ok(elements) => elements.ports.into_keys().collect(),
            // Unknown is absent: making a port twice does no harm.
            Err(_) => return HashSet::new(),
        };
        *known = Some((Instant::now(), ports.clone()));
        ports
    }
}

#[async_trait]
impl Machine for LinuxHost {
    async fn prepare(&self) -> Result<Vec<Check>> {
        self.checks().await
    }

    async fn watch(&self) -> Vec<Check> {
        vec![self.inner.share.check(&self.program).await]
    }

    fn address(&self) -> Option<Ipv4Addr> {
        network::underlay_address(self.inner.network_device.as_deref())
    }

    async fn capacity(&self) -> Result<Capacity> {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib =
            memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        Ok(Capacity {
            cpu_millis: cpus * 1000,
            memory_mib: kib.unwrap_or(0) / 1024,
            disk_mib: self.inner.pool.capacity_mib(),
        })
    }

    async fn observe(&self) -> Result<Observed> {
        let ports = self.ports().await;
        self.blocking(move |inner| {
            let paths = &inner.paths;
            let mut nodes: BTreeMap<_, ObservedNode> = BTreeMap::new();
            for id in ids(&paths.node_disks()) {
                nodes.entry(id).or_default().disk = disk::is_complete(&paths.node_disk(id));
            }
            for id in ids(&paths.node_states()) {
                let node = nodes.entry(id).or_default();
                let state = paths.node_state(id);
                match run::look(&state) {
                    State::Running(run) => {
                        node.init_pid = Some(run.init.pid);
                        node.ready = run::is_ready(&state, run.init);
                        node.frozen = cgroup::is_frozen(&kernel_names::container(id));
                    }
                    State::Unclear | State::Changing(_) => node.unsettled = true,
                    State::Stopped => {}
                }
            }
            for id in ids(&paths.node_moves()) {
                nodes.entry(id).or_default().moving = moves::number(paths, id);
            }
            // One that came meanwhile has its directory before its processes.
            let known = |id| nodes.contains_key(&id) || paths.node_state(id).exists();
            for id in access::without_files(&paths.lxc(), known) {
                nodes.entry(id).or_default().unsettled = true;
            }
            for (id, node) in &mut nodes {
                node.port = ports.contains(&kernel_names::veth(*id));
            }
            inner.seen.lock().extend(nodes.keys());
            let mut vclusters = BTreeMap::new();
            for id in ids(&paths.vcluster_states()) {
                let generation =
                    fs::read_to_string(paths.vcluster_state(id).join(GENERATION)).ok().and_then(|t| t.parse().ok());
                vclusters.insert(
                    id,
                    ObservedVcluster { bridge: network::link_index(&kernel_names::bridge(id)).is_some(), generation },
                );
            }
            Observed { nodes, vclusters }
        })
        .await
    }

    async fn limits_hit(&self, nodes: Vec<NodeId>) -> BTreeMap<NodeId, Hits> {
        self.blocking(move |inner| {
            let full = inner.pool.full_groups();
            let look = |id| {
                let counted = cgroup::hits(&kernel_names::container(id));
                (id, Hits { disk_full: !full.is_empty() && inner.pool.is_in(id, &full), ..counted })
            };
            nodes.into_iter().map(look).collect()
        })
        .await
        .unwrap_or_default()
    }

    async fn inventory(&self) -> Result<Vec<Owned>> {
        let elements = self.inner.firewall.read().await.unwrap_or_default();
        self.blocking(move |inner| inventory::take(inner, &elements)).await
    }
}
