//! Which host a node goes to.
//!
//! The rule: of the hosts that are alive, open, fit, labelled as asked and have room, those with the fewest nodes of the
//! same vcluster; among them the one whose tightest resource is the emptiest once the node is there. So a vcluster is
//! spread as widely as it can be, and hosts fill evenly.

use docklet_types::host::{Capacity, CheckOutcome, HostReport};
use docklet_types::label::{self, Labels};
use docklet_types::name::HostName;
use docklet_types::net::Subnet;
use docklet_types::report::Reason;
use docklet_types::size::{Size, binary_mib};
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, HashMap};

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

/// Free room on hosts that may take nodes, reduced as nodes are placed: for any number of vclusters, one after the other.
///
/// Hosts are kept in order of how empty they are, for each size and choice of labels that was asked for, so that a place
/// is found without looking at all of them. It looks at nothing before the first node needs a place: most calls place none.
#[derive(Debug, Clone)]
pub struct Room<'a> {
    cluster: &'a Cluster,
    policy: &'a Policy,
    looked: bool,
    /// In order of name.
    hosts: Vec<HostRoom<'a>>,
    orders: Vec<Order<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct HostRoom<'a> {
    name: &'a HostName,
    state: &'a HostState,
    total: Capacity,
    /// What of it may be given out to nodes that nobody asked for yet.
    ahead: Capacity,
    used: Capacity,
}

/// What is asked of a host's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    size: Size,
    /// Nobody asked for the node yet.
    ahead: bool,
}

/// The hosts that have some labels, by how empty they are once a node of one kind is there.
#[derive(Debug, Clone)]
struct Order<'a> {
    need: Need,
    asked: &'a Labels,
    /// Entries may be old: a host that was given a node since is emptier here than it is.
    heap: BinaryHeap<Free>,
    /// Why nothing fits, once that was found.
    refusal: Option<Reason>,
}

/// How much of its tightest resource a host has left, and which host it is: of two alike the later name goes first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Free {
    share: f64,
    index: usize,
}

impl Eq for Free {}

impl Ord for Free {
    fn cmp(&self, other: &Self) -> Ordering {
        self.share.total_cmp(&other.share).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Free {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
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

/// Why a host takes no nodes, whatever its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shut {
    Unreachable,
    Cordoned,
    Unfit,
}

fn shut(host: &HostState, report: &HostReport) -> Option<Shut> {
    if !host.alive {
        Some(Shut::Unreachable)
    } else if host.is_cordoned() || host.lost.is_some() {
        Some(Shut::Cordoned)
    } else if report.checks.iter().any(|c| c.outcome == CheckOutcome::Failed) {
        Some(Shut::Unfit)
    } else {
        None
    }
}

impl<'a> Room<'a> {
    /// The room there is now.
    #[must_use]
    pub const fn of(cluster: &'a Cluster, policy: &'a Policy) -> Self {
        Self { cluster, policy, looked: false, hosts: Vec::new(), orders: Vec::new() }
    }

    fn look(&mut self) {
        if std::mem::replace(&mut self.looked, true) {
            return;
        }
        let preboot = self.policy.preboot();
        let open = self.cluster.hosts().filter_map(|(name, state)| {
            let report = &state.report.as_ref()?.value;
            let total = scaled(&report.capacity, self.policy);
            let ahead = scaled(&report.capacity, &preboot);
            shut(state, report).is_none().then_some(HostRoom { name, state, total, ahead, used: state.allocated })
        });
        self.hosts = open.collect();
    }

    fn index(&self, name: &HostName) -> Option<usize> {
        self.hosts.binary_search_by(|host| host.name.cmp(name)).ok()
    }

    /// The order for nodes of that size on hosts with those labels.
    fn order(&mut self, need: Need, asked: &'a Labels) -> usize {
        if let Some(index) = self.orders.iter().position(|o| o.need == need && o.asked == asked) {
            return index;
        }
        let labelled = self.hosts.iter().enumerate().filter(|(_, host)| host.state.has_labels(asked));
        let heap = labelled.map(|(index, host)| Free { share: host.free_share(need), index }).collect();
        self.orders.push(Order { need, asked, heap, refusal: None });
        self.orders.len() - 1
    }

    fn push(&mut self, order: usize, index: usize) {
        let share = self.hosts[index].free_share(self.orders[order].need);
        self.orders[order].heap.push(Free { share, index });
    }

    fn use_up(&mut self, index: usize, size: Size) {
        let used = &mut self.hosts[index].used;
        used.cpu_millis += u64::from(size.cpu.millis());
        used.memory_mib += u64::from(size.memory_mib);
        used.disk_mib += u64::from(size.disk_mib);
    }

    /// Counts a node no more that its host says is gone, though its plan is still there.
    fn give_back(&mut self, host: &HostName, size: Size) {
        let Some(index) = self.index(host) else { return };
        let used = &mut self.hosts[index].used;
        used.cpu_millis = used.cpu_millis.saturating_sub(u64::from(size.cpu.millis()));
        used.memory_mib = used.memory_mib.saturating_sub(u64::from(size.memory_mib));
        used.disk_mib = used.disk_mib.saturating_sub(u64::from(size.disk_mib));
        for order in 0..self.orders.len() {
            self.orders[order].refusal = None;
            if self.hosts[index].state.has_labels(self.orders[order].asked) {
                self.push(order, index);
            }
        }
    }

    /// How many more nodes of that size would find room.
    fn count(&self, size: Size, asked: &Labels) -> u32 {
        let all: u64 = self.hosts.iter().filter(|host| host.state.has_labels(asked)).map(|host| host.count(size)).sum();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    fn why_not(&mut self, order: usize) -> Reason {
        if let Some(reason) = &self.orders[order].refusal {
            return reason.clone();
        }
        let reason = self.look_why_not(self.orders[order].need, self.orders[order].asked);
        self.orders[order].refusal = Some(reason.clone());
        reason
    }

    fn look_why_not(&self, need: Need, asked: &Labels) -> Reason {
        let size = need.size;
        let (mut unlabelled, mut unreachable, mut cordoned, mut unfit) = (0, 0, 0, 0);
        for (_, host) in self.cluster.hosts() {
            let Some(report) = &host.report else { continue };
            match shut(host, &report.value) {
                _ if !host.has_labels(asked) => unlabelled += 1,
                Some(Shut::Unreachable) => unreachable += 1,
                Some(Shut::Cordoned) => cordoned += 1,
                Some(Shut::Unfit) => unfit += 1,
                None => {}
            }
        }
        let left_out = unlabelled + unreachable + cordoned + unfit;
        let mut short: BTreeMap<Resource, usize> = BTreeMap::new();
        for host in self.hosts.iter().filter(|host| host.state.has_labels(asked)) {
            *short.entry(host.tightest(need)).or_default() += 1;
        }
        if short.is_empty() && left_out == 0 {
            return Reason::new(
                "no_host",
                "No host has joined yet. Start docklet-worker on a machine; the nodes follow by themselves.",
            );
        }
        let any_open = !short.is_empty();
        let lack = |count: usize| if count == 1 { "lacks" } else { "lack" };
        let be = |count: usize| if count == 1 { "is" } else { "are" };
        let mut groups: Vec<(usize, String)> = short
            .into_iter()
            .map(|(resource, count)| (count, format!("{} {}", lack(count), resource.of(size))))
            .collect();
        groups.push((cordoned, format!("{} cordoned", be(cordoned))));
        groups.push((unreachable, "cannot be reached".to_owned()));
        groups.push((unfit, "cannot run nodes (their checks failed)".to_owned()));
        groups.push((unlabelled, format!("{} not labelled {}", be(unlabelled), label::listed(asked))));
        let groups = told(groups);
        if any_open {
            return Reason::new(
                "no_room",
                format!(
                    "No host has room for a node of {size}: {groups}. It is placed as soon as there is room; fewer or smaller nodes may fit now."
                ),
            );
        }
        let code = if unreachable == left_out { "no_host" } else { "no_fit_host" };
        Reason::new(code, format!("No host takes the node now: {groups}. It follows when one does."))
    }
}

/// `2 hosts are cordoned, 1 cannot be reached, 3 lack 512 MiB of memory`
fn told(groups: Vec<(usize, String)>) -> String {
    let told = groups.into_iter().filter(|(count, _)| *count > 0).enumerate();
    let told = told.map(|(index, (count, what))| match (index, count) {
        (0, 1) => format!("1 host {what}"),
        (0, _) => format!("{count} hosts {what}"),
        _ => format!("{count} {what}"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// The places that one vcluster finds in the room.
pub(crate) struct Places<'r, 'a> {
    pub cluster: &'a Cluster,
    room: &'r mut Room<'a>,
    /// Nodes of the vcluster on each host, until the room was looked at.
    names: BTreeMap<HostName, u32>,
    /// The same by the host's index.
    siblings: HashMap<usize, u32>,
    /// The labels that hosts must have.
    asked: &'a Labels,
    /// Nobody asked for the vcluster yet.
    ahead: bool,
    /// The order in use, the hosts that were taken out of it because the vcluster has nodes there, and these by the
    /// fewest nodes and how empty they are.
    order: Option<usize>,
    aside: Vec<usize>,
    own: BinaryHeap<(Reverse<u32>, Free)>,
}

impl<'r, 'a> Places<'r, 'a> {
    /// `siblings` tells how many nodes of the vcluster each host already holds.
    pub fn new(room: &'r mut Room<'a>, siblings: BTreeMap<HostName, u32>, asked: &'a Labels, ahead: bool) -> Self {
        Self {
            cluster: room.cluster,
            room,
            names: siblings,
            siblings: HashMap::new(),
            asked,
            ahead,
            order: None,
            aside: Vec::new(),
            own: BinaryHeap::new(),
        }
    }

    fn look(&mut self) {
        self.room.look();
        for (name, count) in std::mem::take(&mut self.names) {
            if let Some(index) = self.room.index(&name) {
                self.siblings.insert(index, count);
            }
        }
    }

    /// Gives the room back in order. The next vcluster has no nodes where this one has.
    pub fn finish(&mut self) {
        self.own.clear();
        if let Some(order) = self.order.take() {
            for index in std::mem::take(&mut self.aside) {
                self.room.push(order, index);
            }
        }
    }

    const fn need(&self, size: Size) -> Need {
        Need { size, ahead: self.ahead }
    }

    fn select(&mut self, size: Size) -> usize {
        self.look();
        let order = self.room.order(self.need(size), self.asked);
        if self.order != Some(order) {
            self.finish();
            self.order = Some(order);
        }
        order
    }

    fn put_aside(&mut self, index: usize, size: Size) {
        let siblings = self.siblings.get(&index).copied().unwrap_or(0);
        let share = self.room.hosts[index].free_share(self.need(size));
        self.own.push((Reverse(siblings), Free { share, index }));
    }

    fn settle_on(&mut self, index: usize, size: Size) -> HostName {
        self.room.use_up(index, size);
        *self.siblings.entry(index).or_default() += 1;
        self.room.hosts[index].name.clone()
    }

    /// Takes room for one node on the best host.
    ///
    /// # Errors
    /// Why nothing fits, for the person who waits.
    pub fn take(&mut self, size: Size) -> Result<HostName, Reason> {
        let (order, need) = (self.select(size), self.need(size));
        // First hosts that the vcluster has no node on.
        while let Some(free) = self.room.orders[order].heap.pop() {
            let host = self.room.hosts[free.index];
            if host.free_share(need) != free.share {
                self.room.push(order, free.index);
            } else if self.siblings.contains_key(&free.index) {
                self.aside.push(free.index);
                self.put_aside(free.index, size);
            } else if host.fits(need) {
                let name = self.settle_on(free.index, size);
                self.aside.push(free.index);
                self.put_aside(free.index, size);
                return Ok(name);
            } else {
                // What follows has even less.
                self.room.orders[order].heap.push(free);
                break;
            }
        }
        while let Some((Reverse(siblings), free)) = self.own.pop() {
            let host = self.room.hosts[free.index];
            if self.siblings.get(&free.index) != Some(&siblings) {
                continue;
            }
            if host.free_share(need) != free.share {
                self.put_aside(free.index, size);
            } else if host.fits(need) {
                let name = self.settle_on(free.index, size);
                self.put_aside(free.index, size);
                return Ok(name);
            }
        }
        Err(self.room.why_not(order))
    }

    /// The same for a node that leaves `from`: on a host that its disk can be copied to, or the one that was asked for.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take_elsewhere(
        &mut self,
        size: Size,
        from: &HostName,
        wanted: Option<&HostName>,
    ) -> Result<HostName, Reason> {
        if let Some(host) = wanted
            && self.cluster.host(host).is_some_and(|state| !state.can_move())
        {
            return Err(needs_btrfs(host));
        }
        self.look();
        let need = self.need(size);
        // Moves are few: all hosts are looked at.
        let may = |host: &HostRoom<'_>| {
            host.name != from
                && wanted.is_none_or(|wanted| wanted == host.name)
                && host.state.can_move()
                && host.state.has_labels(self.asked)
        };
        let candidates: Vec<(usize, &HostRoom<'_>)> =
            self.room.hosts.iter().enumerate().filter(|(_, host)| may(host)).collect();
        if candidates.is_empty() {
            let what = match wanted {
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
        let siblings = |index| Reverse(self.siblings.get(&index).copied().unwrap_or(0));
        let fitting = candidates.into_iter().filter(|(_, host)| host.fits(need));
        let best = fitting
            .max_by_key(|(index, host)| (siblings(*index), Free { share: host.free_share(need), index: *index }));
        match best {
            Some((index, _)) => Ok(self.settle_on(index, size)),
            None => {
                let order = self.select(size);
                Err(self.room.why_not(order))
            }
        }
    }

    /// Counts a node no more that its host says is gone, though its plan is still there.
    pub fn give_back(&mut self, host: &HostName, size: Size) {
        self.look();
        self.room.give_back(host, size);
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
pub fn what_if(cluster: &Cluster, policy: &Policy, asked: &Labels, size: Size, nodes: u32) -> Fit {
    let mut room = Room::of(cluster, policy);
    room.look();
    // Were nothing kept warm: that goes where others need its room.
    for node in cluster.warm().flat_map(|spec| &spec.value.nodes) {
        if let Some((host, plan)) = cluster.node(node.id).and_then(|p| p.plan.as_ref()) {
            room.give_back(host, plan.value.size);
        }
    }
    let mut places = Places::new(&mut room, BTreeMap::new(), asked, false);
    let mut hosts: BTreeMap<HostName, u32> = BTreeMap::new();
    for _ in 0..nodes {
        match places.take(size) {
            Ok(host) => *hosts.entry(host).or_default() += 1,
            Err(reason) => return Fit { hosts, reason: Some(reason), more: 0 },
        }
    }
    Fit { hosts, reason: None, more: room.count(size, asked) }
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

impl HostRoom<'_> {
    const fn total(&self, need: Need) -> Capacity {
        if need.ahead { self.ahead } else { self.total }
    }

    fn fits(&self, need: Need) -> bool {
        let (total, size) = (self.total(need), need.size);
        self.used.cpu_millis + u64::from(size.cpu.millis()) <= total.cpu_millis
            && self.used.memory_mib + u64::from(size.memory_mib) <= total.memory_mib
            && self.used.disk_mib + u64::from(size.disk_mib) <= total.disk_mib
    }

    /// What keeps the node out most: of what is short, the resource that would be overdrawn furthest.
    fn tightest(&self, need: Need) -> Resource {
        let over = |total: u64, used: u64, more: u64| (used + more) as f64 / total.max(1) as f64;
        let (used, total, size) = (&self.used, self.total(need), need.size);
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

    /// The smallest free fraction over the resources once the node is there.
    fn free_share(&self, need: Need) -> f64 {
        let share = |total: u64, used: u64, more: u64| 1.0 - (used + more) as f64 / (total.max(1)) as f64;
        let (used, total, size) = (&self.used, self.total(need), need.size);
        share(total.cpu_millis, used.cpu_millis, u64::from(size.cpu.millis()))
            .min(share(total.memory_mib, used.memory_mib, u64::from(size.memory_mib)))
            .min(share(total.disk_mib, used.disk_mib, u64::from(size.disk_mib)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Change, Rev};
    use docklet_types::host::{Check, HostSettings};
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

    fn take(cluster: &Cluster, asked: &Labels, size: Size) -> Result<HostName, Reason> {
        let policy = policy();
        let mut room = Room::of(cluster, &policy);
        Places::new(&mut room, BTreeMap::new(), asked, false).take(size)
    }

    #[test]
    fn a_vcluster_is_spread_and_what_fits_beside_it_is_counted() {
        let cluster = cluster(vec![host("a", 4, 4096), host("b", 4, 4096), host("c", 2, 2048)]);
        let size = Size::new(1.0, 1024, 100).unwrap();
        let fit = what_if(&cluster, &policy(), &Labels::new(), size, 5);
        assert_eq!(fit.reason, None);
        assert_eq!(fit.hosts.values().copied().collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(fit.more, 5);
        let all = what_if(&cluster, &policy(), &Labels::new(), size, 11);
        assert_eq!((all.hosts.values().sum::<u32>(), all.more), (10, 0));
        assert_eq!(all.reason.unwrap().code, "no_room");
    }

    /// The rule, by looking at all hosts.
    fn best(room: &Room<'_>, siblings: &BTreeMap<HostName, u32>, size: Size) -> Option<HostName> {
        let need = Need { size, ahead: false };
        let fitting = room.hosts.iter().enumerate().filter(|(_, host)| host.fits(need));
        let rank = |(index, host): &(usize, &HostRoom<'_>)| {
            let there = siblings.get(host.name).copied().unwrap_or(0);
            (Reverse(there), Free { share: host.free_share(need), index: *index })
        };
        fitting.max_by_key(rank).map(|(_, host)| host.name.clone())
    }

    #[test]
    fn the_order_of_hosts_gives_what_a_look_at_all_of_them_gives() {
        let names: Vec<String> = (0..12).map(|n| format!("h{n:02}")).collect();
        let hosts = names.iter().enumerate().map(|(n, name)| {
            let name: &'static str = String::leak(name.clone());
            host(name, 4 + (n as u64 * 7) % 5, 2048 + 512 * ((n as u64 * 5) % 4))
        });
        let (cluster, policy, asked) = (cluster(hosts.collect()), policy(), Labels::new());
        let sizes = [Size::new(1.0, 256, 100).unwrap(), Size::new(0.5, 512, 100).unwrap()];
        let mut room = Room::of(&cluster, &policy);
        let mut placed = 0;
        // Until nothing fits any more: vclusters of 1 to 17 nodes, whose sizes change on the way.
        for number in 0..20 {
            let mut siblings: BTreeMap<HostName, u32> = BTreeMap::new();
            let mut places = Places::new(&mut room, BTreeMap::new(), &asked, false);
            places.look();
            for node in 0..1 + (number * 5) % 17 {
                let size = sizes[(node / 6) % 2];
                let expected = best(places.room, &siblings, size);
                let found = places.take(size).ok();
                assert_eq!(found, expected, "node {node} of vcluster {number}");
                placed += usize::from(found.is_some());
                if let Some(host) = found {
                    *siblings.entry(host).or_default() += 1;
                }
            }
            places.finish();
        }
        assert!((60..150).contains(&placed), "{placed} found a place, and then there was none left");
    }

    #[test]
    fn only_hosts_with_every_label_that_is_asked_for() {
        let mut gpu = host("gpu", 4, 4096);
        gpu.settings.labels = labels(&[("gpu", "yes"), ("rack", "1")]);
        let mut other = host("other", 64, 65_536);
        other.settings.labels = labels(&[("gpu", "no"), ("rack", "1")]);
        let cluster = cluster(vec![gpu, other, host("none", 64, 65_536)]);
        let size = Size::new(1.0, 1024, 100).unwrap();
        let on = |asked: &[(&str, &str)]| take(&cluster, &labels(asked), size).map(|h| h.to_string());
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
        let reason = take(&cluster, &Labels::new(), size).unwrap_err();
        assert_eq!(reason.code, "no_room");
        let told =
            "2 hosts lack 512 MiB of memory, 1 lacks 2 CPU, 2 are cordoned, 1 cannot be reached, 1 cannot run nodes";
        assert!(reason.message.contains(told), "{}", reason.message);
    }
}
