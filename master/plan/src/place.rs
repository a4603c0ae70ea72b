//! Which host a node goes to.
//!
//! The rule: of the hosts that are alive, open, fit, labelled as asked and have room, those with the fewest nodes of the
//! same vcluster; among them the one whose tightest resource is the emptiest once the node is there. So a vcluster is
//! spread as widely as it can be, and hosts fill evenly.

use docklet_types::host::{Capacity, CheckOutcome};
use docklet_types::label::{self, Labels};
use docklet_types::name::HostName;
use docklet_types::net::Subnet;
use docklet_types::report::Reason;
use docklet_types::size::{Size, binary_mib};
use std::collections::BTreeMap;

use crate::cluster::{Cluster, HostState};
use crate::moving::needs_btrfs;

/// What the operator decided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    pub cluster_net: Subnet,
    pub cpu_overcommit: f64,
    pub memory_overcommit: f64,
    pub disk_overcommit: f64,
    /// Largest share of a host that is given out while it takes nodes that nobody asked for yet, 0 to 1.
    pub preboot_below: f64,
}

impl Policy {
    /// The policy for nodes that nobody asked for yet.
    #[must_use]
    pub fn preboot(&self) -> Self {
        Self {
            cpu_overcommit: self.cpu_overcommit * self.preboot_below,
            memory_overcommit: self.memory_overcommit * self.preboot_below,
            disk_overcommit: self.disk_overcommit * self.preboot_below,
            ..*self
        }
    }
}

/// The room that one vcluster finds, looked up when the first node needs it: most calls place nothing.
pub(crate) struct Places<'a> {
    pub cluster: &'a Cluster,
    policy: &'a Policy,
    siblings: BTreeMap<HostName, u32>,
    /// The labels that hosts must have.
    asked: &'a Labels,
    room: Option<Room>,
}

impl<'a> Places<'a> {
    pub const fn new(
        cluster: &'a Cluster,
        policy: &'a Policy,
        siblings: BTreeMap<HostName, u32>,
        asked: &'a Labels,
    ) -> Self {
        Self { cluster, policy, siblings, asked, room: None }
    }

    pub fn room(&mut self) -> &mut Room {
        self.room.get_or_insert_with(|| Room::of(self.cluster, self.policy, &self.siblings, self.asked))
    }
}

/// Free room on hosts that may take nodes, reduced as nodes are placed.
#[derive(Debug, Clone)]
pub struct Room {
    hosts: BTreeMap<HostName, HostRoom>,
    /// Why hosts were left out, for the message when nothing fits.
    unreachable: usize,
    unfit: usize,
    cordoned: usize,
    unlabelled: usize,
    /// The labels that were asked for, in words.
    selector: String,
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

/// Whether a host may give out so much more.
pub(crate) fn has_room(host: &HostState, policy: &Policy, more: &Capacity) -> bool {
    let Some(report) = &host.report else { return false };
    let (total, used) = (scaled(&report.value.capacity, policy), host.allocated);
    let fits = |used: u64, more: u64, total: u64| more == 0 || used + more <= total;
    fits(used.cpu_millis, more.cpu_millis, total.cpu_millis)
        && fits(used.memory_mib, more.memory_mib, total.memory_mib)
        && fits(used.disk_mib, more.disk_mib, total.disk_mib)
}

impl Room {
    /// The room there is now on hosts that have the labels `asked`, with `siblings` telling how many nodes of the
    /// vcluster each host already holds.
    #[must_use]
    pub fn of(cluster: &Cluster, policy: &Policy, siblings: &BTreeMap<HostName, u32>, asked: &Labels) -> Self {
        let mut room = Self {
            hosts: BTreeMap::new(),
            unreachable: 0,
            unfit: 0,
            cordoned: 0,
            unlabelled: 0,
            selector: label::listed(asked),
        };
        for (name, host) in cluster.hosts() {
            let Some(report) = &host.report else { continue };
            if !host.has_labels(asked) {
                room.unlabelled += 1;
            } else if !host.alive {
                room.unreachable += 1;
            } else if host.is_cordoned() || host.lost.is_some() {
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
        self.take_on(size, |_| true)
    }

    /// The same for a node that leaves `from`: on a host that its disk can be copied to, or the one that was asked for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take_elsewhere(
        &mut self,
        cluster: &Cluster,
        size: Size,
        from: &HostName,
        asked: Option<&HostName>,
    ) -> Result<HostName, Reason> {
        if let Some(host) = asked
            && cluster.host(host).is_some_and(|state| !state.can_move())
        {
            return Err(needs_btrfs(host));
        }
        let fits = |name: &HostName| {
            name != from && asked.is_none_or(|a| a == name) && cluster.host(name).is_some_and(HostState::can_move)
        };
        if !self.hosts.keys().any(fits) {
            let what = match asked {
                Some(host) => format!("The host {host} takes no nodes just now"),
                None => "No other host takes nodes just now".to_owned(),
            };
            return Err(Reason::new(
                "no_other_host",
                format!(
                    "{what}: it must be reachable, open to new nodes, well, and keep its disks on btrfs. The node stays where it is until then."
                ),
            ));
        }
        self.take_on(size, fits)
    }

    /// The same, were nothing kept warm: that goes where others need its room.
    #[must_use]
    pub fn without_warm(mut self, cluster: &Cluster) -> Self {
        for node in cluster.warm().flat_map(|spec| &spec.value.nodes) {
            if let Some((host, plan)) = cluster.node(node.id).and_then(|p| p.plan.as_ref()) {
                self.give_back(host, plan.value.size);
            }
        }
        self
    }

    /// Counts a node no more that its host says is gone, though its plan is still there.
    pub(crate) fn give_back(&mut self, host: &HostName, size: Size) {
        if let Some(host) = self.hosts.get_mut(host) {
            host.used.cpu_millis = host.used.cpu_millis.saturating_sub(u64::from(size.cpu.millis()));
            host.used.memory_mib = host.used.memory_mib.saturating_sub(u64::from(size.memory_mib));
            host.used.disk_mib = host.used.disk_mib.saturating_sub(u64::from(size.disk_mib));
        }
    }

    fn take_on(&mut self, size: Size, may: impl Fn(&HostName) -> bool) -> Result<HostName, Reason> {
        let best = self
            .hosts
            .iter()
            .filter(|(name, host)| may(name) && host.fits(size))
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

    /// How many more nodes of that size would find room.
    #[must_use]
    pub fn count(&self, size: Size) -> u32 {
        let all: u64 = self.hosts.values().map(|host| host.count(size)).sum();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    fn why_not(&self, size: Size) -> Reason {
        let left_out = self.unreachable + self.unfit + self.cordoned + self.unlabelled;
        if self.hosts.is_empty() && left_out == 0 {
            return Reason::new(
                "no_host",
                "No host has joined yet. Start docklet-worker on a machine; the nodes follow by themselves.",
            );
        }
        let groups = self.groups(size);
        if !self.hosts.is_empty() {
            return Reason::new(
                "no_room",
                format!(
                    "No host has room for a node of {size}: {groups}. It is placed as soon as there is room; fewer or smaller nodes may fit now."
                ),
            );
        }
        let code = if self.unreachable == left_out { "no_host" } else { "no_fit_host" };
        Reason::new(code, format!("No host takes the node now: {groups}. It follows when one does."))
    }

    /// `2 hosts are cordoned, 1 cannot be reached, 3 lack 512 MiB of memory`
    fn groups(&self, size: Size) -> String {
        let mut short: BTreeMap<Resource, usize> = BTreeMap::new();
        for host in self.hosts.values() {
            *short.entry(host.tightest(size)).or_default() += 1;
        }
        let lack = |count: &usize| if *count == 1 { "lacks" } else { "lack" };
        let mut groups: Vec<(usize, String)> =
            short.iter().map(|(resource, count)| (*count, format!("{} {}", lack(count), resource.of(size)))).collect();
        let be = |count: usize| if count == 1 { "is" } else { "are" };
        groups.push((self.cordoned, format!("{} cordoned", be(self.cordoned))));
        groups.push((self.unreachable, "cannot be reached".to_owned()));
        groups.push((self.unfit, "cannot run nodes (their checks failed)".to_owned()));
        groups.push((self.unlabelled, format!("{} not labelled {}", be(self.unlabelled), self.selector)));
        let told = groups.into_iter().filter(|(count, _)| *count > 0).enumerate();
        let told = told.map(|(index, (count, what))| match (index, count) {
            (0, 1) => format!("1 host {what}"),
            (0, _) => format!("{count} hosts {what}"),
            _ => format!("{count} {what}"),
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

/// Where nodes would go, as the planner would put them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit {
    /// Nodes by host, up to the first that finds no room.
    pub hosts: BTreeMap<HostName, u32>,
    /// Why not all fit.
    pub reason: Option<Reason>,
    /// Nodes that would fit beside them.
    pub more: u32,
}

/// What would become of a new vcluster of so many nodes.
#[must_use]
pub fn what_if(mut room: Room, size: Size, nodes: u32) -> Fit {
    let mut hosts: BTreeMap<HostName, u32> = BTreeMap::new();
    for _ in 0..nodes {
        match room.take(size) {
            Ok(host) => *hosts.entry(host).or_default() += 1,
            Err(reason) => return Fit { hosts, reason: Some(reason), more: 0 },
        }
    }
    Fit { hosts, reason: None, more: room.count(size) }
}

/// What a host may be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Resource {
    Memory,
    Cpu,
    Disk,
}

impl Resource {
    /// `512 MiB of memory`
    fn of(self, size: Size) -> String {
        match self {
            Self::Memory => format!("{} of memory", binary_mib(size.memory_mib)),
            Self::Cpu => format!("{} CPU", size.cpu),
            Self::Disk => format!("{} of disk", binary_mib(size.disk_mib)),
        }
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

    /// What keeps the node out most: of what is short, the resource that would be overdrawn furthest.
    fn tightest(&self, size: Size) -> Resource {
        let over = |total: u64, used: u64, more: u64| (used + more) as f64 / total.max(1) as f64;
        let (used, total) = (&self.used, &self.total);
        let all = [
            (Resource::Memory, over(total.memory_mib, used.memory_mib, u64::from(size.memory_mib))),
            (Resource::Cpu, over(total.cpu_millis, used.cpu_millis, u64::from(size.cpu.millis()))),
            (Resource::Disk, over(total.disk_mib, used.disk_mib, u64::from(size.disk_mib))),
        ];
        let worst = all.into_iter().reduce(|worst, next| if next.1 > worst.1 { next } else { worst });
        worst.map_or(Resource::Memory, |(resource, _)| resource)
    }

    /// How many nodes of that size fit.
    fn count(&self, size: Size) -> u64 {
        let times = |total: u64, used: u64, each: u64| total.saturating_sub(used) / each.max(1);
        times(self.total.cpu_millis, self.used.cpu_millis, u64::from(size.cpu.millis()))
            .min(times(self.total.memory_mib, self.used.memory_mib, u64::from(size.memory_mib)))
            .min(times(self.total.disk_mib, self.used.disk_mib, u64::from(size.disk_mib)))
    }

    /// The smallest free fraction over the resources after taking `size`.
    fn free_share(&self, size: Size) -> f64 {
        let share = |total: u64, used: u64, more: u64| 1.0 - (used + more) as f64 / (total.max(1)) as f64;
        share(self.total.cpu_millis, self.used.cpu_millis, u64::from(size.cpu.millis()))
            .min(share(self.total.memory_mib, self.used.memory_mib, u64::from(size.memory_mib)))
            .min(share(self.total.disk_mib, self.used.disk_mib, u64::from(size.disk_mib)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Change, Rev};
    use docklet_types::host::{Check, HostReport, HostSettings};
    use docklet_types::time::Micros;

    fn policy() -> Policy {
        Policy {
            preboot_below: 0.5,
            cluster_net: "172.16.0.0/20".parse().unwrap(),
            cpu_overcommit: 1.0,
            memory_overcommit: 1.0,
            disk_overcommit: 1.0,
        }
    }

    struct Host {
        name: &'static str,
        cpus: u64,
        memory_mib: u64,
        settings: HostSettings,
        alive: bool,
        fit: bool,
    }

    fn host(name: &'static str, cpus: u64, memory_mib: u64) -> Host {
        Host { name, cpus, memory_mib, settings: HostSettings::default(), alive: true, fit: true }
    }

    fn labels(texts: &[(&str, &str)]) -> Labels {
        texts.iter().map(|(key, value)| (key.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn cluster(hosts: Vec<Host>) -> Cluster {
        let mut cluster = Cluster::default();
        for Host { name, cpus, memory_mib, settings, alive, fit } in hosts {
            let name: HostName = name.parse().unwrap();
            let outcome = if fit { CheckOutcome::Ok } else { CheckOutcome::Failed };
            let report = HostReport {
                name: name.clone(),
                agent_port: None,
                address: None,
                version: "0".into(),
                kernel: "6".into(),
                cgroup: "v2".into(),
                storage: "btrfs".into(),
                capacity: Capacity { cpu_millis: cpus * 1000, memory_mib, disk_mib: 100_000 },
                checks: vec![Check { name: "x".into(), outcome, message: String::new() }],
                started_at: Micros(0),
            };
            cluster.apply(Change::Host(name.clone(), Some(Rev::new(report, 1))));
            cluster.apply(Change::HostSettings(name.clone(), Some(Rev::new(settings, 1))));
            cluster.apply(Change::Alive(name, alive));
        }
        cluster
    }

    fn room(cluster: &Cluster, asked: &Labels) -> Room {
        Room::of(cluster, &policy(), &BTreeMap::new(), asked)
    }

    #[test]
    fn a_vcluster_is_spread_and_what_fits_beside_it_is_counted() {
        let cluster = cluster(vec![host("a", 4, 4096), host("b", 4, 4096), host("c", 2, 2048)]);
        let size = Size::new(1.0, 1024, 100).unwrap();
        let fit = what_if(room(&cluster, &Labels::new()), size, 5);
        assert_eq!(fit.reason, None);
        assert_eq!(fit.hosts.values().copied().collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(fit.more, 5);
        let all = what_if(room(&cluster, &Labels::new()), size, 11);
        assert_eq!((all.hosts.values().sum::<u32>(), all.more), (10, 0));
        assert_eq!(all.reason.unwrap().code, "no_room");
    }

    #[test]
    fn only_hosts_with_every_label_that_is_asked_for() {
        let mut gpu = host("gpu", 4, 4096);
        gpu.settings.labels = labels(&[("gpu", "yes"), ("rack", "1")]);
        let mut other = host("other", 64, 65_536);
        other.settings.labels = labels(&[("gpu", "no"), ("rack", "1")]);
        let cluster = cluster(vec![gpu, other, host("none", 64, 65_536)]);
        let size = Size::new(1.0, 1024, 100).unwrap();
        let on = |asked: &[(&str, &str)]| room(&cluster, &labels(asked)).take(size).map(|h| h.to_string());
        assert_eq!(on(&[("gpu", "yes"), ("rack", "1")]).unwrap(), "gpu");
        assert_eq!(on(&[("rack", "1"), ("gpu", "no")]).unwrap(), "other");
        assert!(on(&[("rack", "2")]).is_err());
    }

    #[test]
    fn the_reason_names_what_each_group_of_hosts_lacks() {
        let shut = |mut host: Host| {
            host.settings.cordoned = true;
            host
        };
        let cluster = cluster(vec![
            shut(host("a", 8, 8192)),
            shut(host("b", 8, 8192)),
            Host { alive: false, ..host("c", 8, 8192) },
            host("d", 8, 256),
            host("e", 8, 300),
            host("f", 1, 8192),
            Host { fit: false, ..host("g", 8, 8192) },
        ]);
        let size = Size::new(2.0, 512, 100).unwrap();
        let reason = room(&cluster, &Labels::new()).take(size).unwrap_err();
        assert_eq!(reason.code, "no_room");
        let told =
            "2 hosts lack 512 MiB of memory, 1 lacks 2 CPU, 2 are cordoned, 1 cannot be reached, 1 cannot run nodes";
        assert!(reason.message.contains(told), "{}", reason.message);
    }
}
