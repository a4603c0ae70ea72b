//! What a host is and how it is: written by its worker.

use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use utoipa::ToSchema;

use crate::label::Labels;
use crate::name::HostName;
use crate::time::Micros;

/// A host as its worker describes it. Key: `hosts/<name>`. Whether it is alive is a leased key apart (`alive/<name>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    pub name: HostName,
    /// Where other hosts reach it; absent where it has no way out.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Where its worker listens for masters of other hosts; absent where it does not.
    #[serde(default)]
    pub agent_port: Option<u16>,
    pub version: String,
    pub kernel: String,
    /// `v1` or `v2`.
    pub cgroup: String,
    /// `btrfs` (disk limits hold) or `directory` (they do not).
    pub storage: String,
    pub capacity: Capacity,
    pub checks: Vec<Check>,
    pub started_at: Micros,
}

impl HostReport {
    /// Where masters of other hosts reach its worker.
    #[must_use]
    pub fn agent(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from((self.address?, self.agent_port?)))
    }
}

/// What an administrator decided about a host. Key: `hostsettings/<name>`; none is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSettings {
    /// No node is placed there any more; those that are there stay.
    pub cordoned: bool,
    /// For vclusters that ask for them.
    pub labels: Labels,
    /// The nodes that are there are moved to other hosts, one by one. No node is placed there either.
    pub draining: bool,
}

/// Totals, or sums of limits: thousandths of a CPU and MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
}

/// One thing the preflight looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// Stable, snake_case: `idmapped_mounts`.
    pub name: String,
    pub outcome: CheckOutcome,
    /// What was found; for a warning or failure also what to do.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckOutcome {
    Ok,
    /// Works, with something missing.
    Warning,
    /// Nodes cannot run here.
    Failed,
}
