//! Which host a node goes to: one that is alive and has room, the emptiest first, spread within a vcluster.

use docklet_types::host::{Capacity, CheckOutcome};
use docklet_types::name::HostName;
use docklet_types::net::Subnet;
use docklet_types::report::Reason;
use docklet_types::size::Size;
use std::collections::BTreeMap;

use crate::cluster::Cluster;

/// What the operator decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    pub cluster_net: Subnet,
    pub cpu_overcommit: f64,
    pub memory_overcommit: f64,
    pub disk_overcommit: f64,
}

/// Free room on hosts that may take nodes, reduced as nodes are placed.
#[derive(Debug, Clone)]
pub struct Room {
    hosts: BTreeMap<HostName, HostRoom>,
    /// Why hosts were left out, for the message when nothing fits.
    unreachable: usize,
    unfit: usize,
    cordoned: usize,
}

#[derive(Debug, Clone, Copy)]
struct HostRoom {
    total: Capacity,
    used: Capacity,
    /// Nodes of the vcluster in question that are there.
    siblings: u32,
}

fn scaled(capacity: &Capacity, policy: &Policy) -> Capacity {
    // Capacities are far below 2^53: the products are exact enough.
    let times = |value: u64, factor: f64| (value as f64 * factor) as u64;
    Capacity {
        cpu_millis: times(capacity.cpu_millis, policy.cpu_overcommit),
        memory_mib: times(capacity.memory_mib, policy.memory_overcommit),
        disk_mib: times(capacity.disk_mib, policy.disk_overcommit),
    }
}

impl Room {
    /// The room there is now, with `siblings` telling how many nodes of the vcluster each host already holds.
    #[must_use]
    pub fn of(cluster: &Cluster, policy: &Policy, siblings: &BTreeMap<HostName, u32>) -> Self {
        let mut room = Self { hosts: BTreeMap::new(), unreachable: 0, unfit: 0, cordoned: 0 };
        for (name, host) in cluster.hosts() {
            let Some(report) = &host.report else { continue };
            if !host.alive {
                room.unreachable += 1;
            } else if host.is_cordoned() {
                room.cordoned += 1;
            } else if report.value.checks.iter().any(|c| c.outcome == CheckOutcome::Failed) {
                room.unfit += 1;
            } else {
                let state = HostRoom {
                    total: scaled(&report.value.capacity, policy),
                    used: host.allocated,
                    siblings: siblings.get(name).copied().unwrap_or(0),
                };
                room.hosts.insert(name.clone(), state);
            }
        }
        room
    }

    /// Takes room for one node on the best host.
    ///
    /// # Errors
    /// Why nothing fits, for the person who waits.
    pub fn take(&mut self, size: Size) -> Result<HostName, Reason> {
        let best = self
            .hosts
            .iter()
            .filter(|(_, host)| host.fits(size))
            .max_by(|(_, a), (_, b)| {
                b.siblings.cmp(&a.siblings).then(a.free_share(size).total_cmp(&b.free_share(size)))
            })
            .map(|(name, _)| name.clone());
        let Some(name) = best else { return Err(self.why_not(size)) };
        if let Some(host) = self.hosts.get_mut(&name) {
            host.used.cpu_millis += u64::from(size.cpu.millis());
            host.used.memory_mib += u64::from(size.memory_mib);
            host.used.disk_mib += u64::from(size.disk_mib);
            host.siblings += 1;
        }
        Ok(name)
    }

    fn why_not(&self, size: Size) -> Reason {
        if self.hosts.is_empty() && self.unreachable + self.unfit + self.cordoned == 0 {
            return Reason::new(
                "no_host",
                "No host has joined yet. Start docklet-worker on a machine; the nodes follow by themselves.",
            );
        }
        if self.hosts.is_empty() && self.unfit > 0 {
            return Reason::new(
                "no_fit_host",
                format!(
                    "{} of the hosts cannot run nodes: their checks failed. An administrator sees why on the host's page.",
                    self.unfit
                ),
            );
        }
        if self.hosts.is_empty() && self.cordoned > 0 {
            return Reason::new(
                "no_fit_host",
                "The hosts that can be reached take no new nodes just now: an administrator has cordoned them. The nodes follow when one is open again.",
            );
        }
        if self.hosts.is_empty() {
            return Reason::new(
                "no_host",
                format!(
                    "None of the {} known hosts can be reached now. The nodes follow when one is back.",
                    self.unreachable
                ),
            );
        }
        let short = |enough: fn(&HostRoom, Size) -> bool| !self.hosts.values().any(|h| enough(h, size));
        let what = if short(HostRoom::has_memory) {
            "memory"
        } else if short(HostRoom::has_cpu) {
            "CPU"
        } else if short(HostRoom::has_disk) {
            "disk"
        } else {
            "room in every respect"
        };
        Reason::new(
            "no_room",
            format!(
                "No host has enough {what} left for a node of {size}. It is placed as soon as there is room; fewer or smaller nodes may fit now."
            ),
        )
    }
}

impl HostRoom {
    fn has_cpu(&self, size: Size) -> bool {
        self.used.cpu_millis + u64::from(size.cpu.millis()) <= self.total.cpu_millis
    }

    fn has_memory(&self, size: Size) -> bool {
        self.used.memory_mib + u64::from(size.memory_mib) <= self.total.memory_mib
    }

    fn has_disk(&self, size: Size) -> bool {
        self.used.disk_mib + u64::from(size.disk_mib) <= self.total.disk_mib
    }

    fn fits(&self, size: Size) -> bool {
        self.has_cpu(size) && self.has_memory(size) && self.has_disk(size)
    }

    /// The smallest free fraction over the resources after taking `size`.
    fn free_share(&self, size: Size) -> f64 {
        let share = |total: u64, used: u64, more: u64| 1.0 - (used + more) as f64 / (total.max(1)) as f64;
        share(self.total.cpu_millis, self.used.cpu_millis, u64::from(size.cpu.millis()))
            .min(share(self.total.memory_mib, self.used.memory_mib, u64::from(size.memory_mib)))
            .min(share(self.total.disk_mib, self.used.disk_mib, u64::from(size.disk_mib)))
    }
}
