//! Whether a request may be written down: within the user's cap, within what any host and the network could ever hold.

use docklet_types::config::UserCap;
use docklet_types::net::Subnet;
use docklet_types::port::PortRange;
use docklet_types::size::{Size, binary_mib};
use docklet_types::spec::Usage;

use crate::cluster::Cluster;
use crate::place::Policy;

/// The largest vcluster; also the largest step. More is a mistake in a script sooner than a wish.
pub const MAX_NODES: u32 = 10_000;
/// The most published ports of a vcluster: all go in the one transaction that deletes it.
pub const MAX_PORTS: usize = 100;

/// Why a request is refused. The message says the numbers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a vcluster has 1 to {MAX_NODES} nodes; {asked} were asked for")]
    NodeCount { asked: i64 },
    #[error("this would be {would} nodes; your quota is {cap}, and {used} are in use")]
    QuotaNodes { would: u32, cap: u32, used: u32 },
    #[error("this would be {would} CPUs; your quota is {cap}, and {used} are in use")]
    QuotaCpu { would: String, cap: String, used: String },
    #[error("this would be {would} of memory; your quota is {cap}, and {used} are in use")]
    QuotaMemory { would: String, cap: String, used: String },
    #[error("this would be {would} published ports; your quota is {cap}, and {used} are in use")]
    QuotaPorts { would: u32, cap: u32, used: u32 },
    #[error("a vcluster publishes at most {MAX_PORTS} ports")]
    PortCount,
    #[error("port {port} cannot be published: it is not in {range}")]
    PortOutside { port: i64, range: PortRange },
    #[error("port {port} cannot be published: Docklet uses it itself")]
    PortOfOurs { port: u16 },
    #[error("every port of {range} is published; one must be given back first")]
    NoPort { range: PortRange },
    #[error("no host is that large: a node may have at most {max} CPUs here")]
    HostCpu { max: String },
    #[error("no host is that large: a node may have at most {max} of memory here")]
    HostMemory { max: String },
    #[error("no host is that large: a node may have at most {max} of disk here")]
    HostDisk { max: String },
    #[error("the vcluster's network {subnet} has room for {max} nodes; make a new vcluster of the size you need")]
    NetworkSize { subnet: Subnet, max: u32 },
    #[error("the cluster network {net} has room for vclusters of at most {max} nodes")]
    ClusterNet { net: Subnet, max: u32 },
}

impl Refusal {
    /// The request's field that is too large.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::HostCpu { .. } => "size.cpu",
            Self::HostMemory { .. } => "size.memory_mib",
            Self::HostDisk { .. } => "size.disk_mib",
            Self::QuotaPorts { .. } | Self::PortCount => "port",
            Self::PortOutside { .. } | Self::PortOfOurs { .. } | Self::NoPort { .. } => "public_port",
            _ => "nodes",
        }
    }

    /// Whether the user's own cap stands in the way, rather than the value itself.
    #[must_use]
    pub const fn is_quota(&self) -> bool {
        matches!(
            self,
            Self::QuotaNodes { .. } | Self::QuotaCpu { .. } | Self::QuotaMemory { .. } | Self::QuotaPorts { .. }
        )
    }
}

/// # Errors
/// Where the number is none that a vcluster can have.
pub fn node_count(asked: i64) -> Result<u32, Refusal> {
    u32::try_from(asked).ok().filter(|n| (1..=MAX_NODES).contains(n)).ok_or(Refusal::NodeCount { asked })
}

fn cpus(millis: u64) -> String {
    (millis as f64 / 1000.0).to_string()
}

fn memory(mib: u64) -> String {
    binary_mib(u32::try_from(mib).unwrap_or(u32::MAX))
}

/// Whether `used` may become `would`. Giving things back is always allowed.
///
/// # Errors
/// The first cap that would be passed.
pub fn within_cap(cap: Option<&UserCap>, used: Usage, would: Usage) -> Result<(), Refusal> {
    let Some(cap) = cap else { return Ok(()) };
    if would.nodes > cap.nodes && would.nodes > used.nodes {
        return Err(Refusal::QuotaNodes { would: would.nodes, cap: cap.nodes, used: used.nodes });
    }
    if would.cpu_millis > cap.cpu_millis && would.cpu_millis > used.cpu_millis {
        return Err(Refusal::QuotaCpu {
            would: cpus(would.cpu_millis),
            cap: cpus(cap.cpu_millis),
            used: cpus(used.cpu_millis),
        });
    }
    if would.memory_mib > cap.memory_mib && would.memory_mib > used.memory_mib {
        return Err(Refusal::QuotaMemory {
            would: memory(would.memory_mib),
            cap: memory(cap.memory_mib),
            used: memory(used.memory_mib),
        });
    }
    if would.ports > cap.ports && would.ports > used.ports {
        return Err(Refusal::QuotaPorts { would: would.ports, cap: cap.ports, used: used.ports });
    }
    Ok(())
}

/// Whether a node of that size could ever be placed: no larger than the largest host that is known. With no host known
/// anything is accepted; it waits for one.
///
/// # Errors
/// The first limit that no host has.
pub fn fits_some_host(cluster: &Cluster, size: Size) -> Result<(), Refusal> {
    let known = || cluster.hosts().filter_map(|(_, h)| h.report.as_ref().map(|r| r.value.capacity));
    let Some(cpu) = known().map(|c| c.cpu_millis).max() else { return Ok(()) };
    let memory_mib = known().map(|c| c.memory_mib).max().unwrap_or(0);
    let disk_mib = known().map(|c| c.disk_mib).max().unwrap_or(0);
    if u64::from(size.cpu.millis()) > cpu {
        return Err(Refusal::HostCpu { max: cpus(cpu) });
    }
    if u64::from(size.memory_mib) > memory_mib {
        return Err(Refusal::HostMemory { max: memory(memory_mib) });
    }
    if u64::from(size.disk_mib) > disk_mib {
        return Err(Refusal::HostDisk { max: memory(disk_mib) });
    }
    Ok(())
}

/// Whether the network has addresses for that many nodes: the vcluster's own where it has one, else the largest that
/// could be cut.
///
/// # Errors
/// With the number that would fit.
pub fn fits_network(policy: &Policy, present: Option<Subnet>, nodes: u32) -> Result<(), Refusal> {
    match present {
        Some(subnet) if nodes > subnet.capacity() => Err(Refusal::NetworkSize { subnet, max: subnet.capacity() }),
        None if crate::plan::subnet_prefix(policy.cluster_net, nodes).is_none() => {
            // Half of it: one vcluster must not take the whole.
            let max = (1u32 << (32 - policy.cluster_net.prefix() - 1)) - 3;
            Err(Refusal::ClusterNet { net: policy.cluster_net, max })
        }
        _ => Ok(()),
    }
}
