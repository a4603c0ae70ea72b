//! The planner against hosts that behave, in random order: whatever is asked for comes true and nothing is left over.

use docklet_types::host::{Capacity, HostReport, HostSettings};
use docklet_types::id::{IdRange, NodeId, OperationId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::moves::{Lost, Move, Stage};
use docklet_types::name::{HostName, NodeName};
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::{PortMapping, Protocol};
use docklet_types::report::{NodeReport, NodeState, Reason, VclusterReport};
use docklet_types::size::Size;
use docklet_types::spec::{NodeSpec, SshKeyPair, VclusterKeys, VclusterSpec, Wanted, Warm};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use uuid::Uuid;

use crate::cluster::{Change, Cluster, Half, Rev, Tally};
use crate::moving::{Haul, haul};
use crate::place::Policy;
use crate::plan::{Decision, MAX_WRITES, Pass, Planned, plan, settled_losses};
use crate::warm::{self as kept, Asked};
use crate::{status, view};

fn policy() -> Policy {
    Policy {
        preboot_below: 0.5,
        cluster_net: "172.16.0.0/20".parse().unwrap(),
        cpu_overcommit: 1.0,
        memory_overcommit: 1.0,
        disk_overcommit: 1.0,
    }
}

fn host(number: u32) -> HostName {
    format!("host{number}").parse().unwrap()
}

/// Where a host is, after it has moved so many times.
fn address(number: u32, moves: u8) -> Ipv4Addr {
    let [_, _, high, low] = number.to_be_bytes();
    [10, moves, high, low].into()
}

fn pair() -> SshKeyPair {
    SshKeyPair { private: "private".into(), public: "public".into() }
}

/// A store, hosts and a clock, in one value.
struct World {
    cluster: Cluster,
    revision: i64,
    node_plans: BTreeMap<(HostName, NodeId), NodePlan>,
    shares: BTreeMap<(HostName, VclusterId), VclusterPlan>,
    next_id: u128,
}

impl World {
    fn new(hosts: u32, nodes_each: u64) -> Self {
        let mut world = Self {
            cluster: Cluster::default(),
            revision: 1,
            node_plans: BTreeMap::new(),
            shares: BTreeMap::new(),
            next_id: 1,
        };
        for number in 0..hosts {
            let report = HostReport {
                name: host(number),
                address: Some(address(number, 0)),
                agent_port: None,
                version: "0".into(),
                kernel: "6".into(),
                cgroup: "v2".into(),
                storage: "btrfs".into(),
                capacity: Capacity {
                    cpu_millis: nodes_each * 1000,
                    memory_mib: nodes_each * 100,
                    disk_mib: nodes_each * 100,
                },
                checks: vec![],
                started_at: Micros(0),
            };
            let rev = world.rev(report);
            world.cluster.apply(Change::Host(host(number), Some(rev)));
            world.cluster.apply(Change::Alive(host(number), true));
        }
        world
    }

    fn rev<T>(&mut self, value: T) -> Rev<T> {
        self.revision += 1;
        Rev::new(value, self.revision)
    }

    fn id(&mut self) -> Uuid {
        self.next_id += 1;
        // Spread the way version 7 UUIDs are: the end differs.
        Uuid::from_u128(self.next_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) | (7 << 76))
    }

    fn node_specs(&mut self, first: u32, count: u32) -> Vec<NodeSpec> {
        (first..first + count)
            .map(|n| NodeSpec {
                id: NodeId::from_uuid(self.id()),
                name: NodeName::numbered(n),
                image: image(),
                size: Size::new(1.0, 100, 100).unwrap(),
                attempt: 0,
            })
            .collect()
    }

    fn create(&mut self, name: &str, nodes: u32) -> VclusterId {
        let id = VclusterId::from_uuid(self.id());
        let nodes = self.node_specs(1, nodes);
        // Its first node can be reached from outside.
        let public = 20_000 + u16::try_from(self.next_id % 10_000).unwrap();
        let publish = |protocol| PortMapping { protocol, public, node: nodes[0].id, port: 80 };
        let ports = vec![publish(Protocol::Tcp), publish(Protocol::Udp)];
        let spec = VclusterSpec {
            id,
            owner: "alice".parse().unwrap(),
            range: IdRange::new(1).unwrap(),
            name: name.parse().unwrap(),
            image: image(),
            size: Size::new(1.0, 100, 100).unwrap(),
            nodes,
            ports,
            limits: docklet_types::rate::RateLimits::default(),
            host_labels: docklet_types::label::Labels::new(),
            wanted: Wanted::Running,
            generation: 1,
            created_at: Micros(0),
            changed_at: Micros(0),
            operation: OperationId::from_uuid(self.id()),
            keys: VclusterKeys { user: pair(), host: pair() },
            warm: None,
            asked_as: None,
            admitted_at: None,
        };
        self.put_spec(spec);
        id
    }

    fn put_spec(&mut self, spec: VclusterSpec) {
        let id = spec.id;
        let rev = self.rev(spec);
        self.cluster.apply(Change::Spec(id, Some(rev)));
    }

    fn edit(&mut self, id: VclusterId, edit: impl FnOnce(&mut Self, &mut VclusterSpec)) {
        let Some(spec) = self.cluster.spec(id) else { return };
        let mut spec = (*spec.value).clone();
        edit(self, &mut spec);
        spec.generation += 1;
        self.put_spec(spec);
    }

    /// One transaction of the planner; whether there was anything to write.
    fn plan_once(&mut self, id: VclusterId) -> bool {
        let planned = plan(&self.cluster, &policy(), id);
        self.commit_all(planned)
    }

    /// As the masters do it when several wait: decided one after the other from one picture, then committed.
    fn plan_together(&mut self, ids: &BTreeSet<VclusterId>) -> bool {
        let policy = policy();
        let planned: Vec<Planned> = {
            let mut pass = Pass::new(&self.cluster, &policy, ids.len() > 1);
            ids.iter().map(|id| pass.plan(*id)).collect()
        };
        let mut any = false;
        let mut moved = false;
        for (id, planned) in ids.iter().zip(planned) {
            // Of two that begin to move nodes one comes later: masters commit no two at once from the same host.
            if planned.moves() && std::mem::replace(&mut moved, true) {
                self.cluster.mark_dirty(*id);
                continue;
            }
            any |= self.commit_all(planned);
        }
        any
    }

    fn commit_all(&mut self, planned: Planned) -> bool {
        assert!(planned.writes() <= MAX_WRITES, "{} writes in one transaction", planned.writes());
        let any = !planned.decisions.is_empty();
        for decision in planned.decisions {
            self.commit(decision);
        }
        any
    }

    fn commit(&mut self, decision: Decision) {
        match decision {
            Decision::PutNetwork { id, network } => {
                let rev = self.rev(network);
                self.cluster.apply(Change::Network(id, Some(rev)));
            }
            Decision::DeleteNetwork { id, .. } => self.cluster.apply(Change::Network(id, None)),
            Decision::PutNode { host, plan, .. } => {
                let old = self.node_plans.insert((host.clone(), plan.id), (*plan).clone());
                assert!(
                    old.is_none_or(|old| old.generation < plan.generation),
                    "a plan changed without a new generation"
                );
                let rev = self.rev(*plan);
                self.cluster.apply(Change::NodePlan(host, rev.value.id, Some(rev)));
            }
            Decision::ForgetNode { host, id, .. } => {
                self.node_plans.remove(&(host.clone(), id));
                self.cluster.apply(Change::NodePlan(host.clone(), id, None));
                self.cluster.apply(Change::NodeReport(host, id, None));
            }
            Decision::PutShare { host, plan, .. } => {
                self.shares.insert((host.clone(), plan.id), (*plan).clone());
                let rev = self.rev(*plan);
                self.cluster.apply(Change::VclusterPlan(host, rev.value.id, Some(rev)));
            }
            Decision::ForgetShare { host, id, .. } => {
                self.shares.remove(&(host.clone(), id));
                self.cluster.apply(Change::VclusterPlan(host.clone(), id, None));
                self.cluster.apply(Change::VclusterReport(host, id, None));
            }
            Decision::PutMove { doc, .. } => {
                let rev = self.rev(*doc);
                self.cluster.apply(Change::Move(rev.value.node, Some(rev)));
            }
            Decision::DeleteMove { node, .. } => self.cluster.apply(Change::Move(node, None)),
            Decision::RaiseCounter { id, revision } => {
                assert_eq!(revision, self.cluster.vcluster_alloc_revision(id));
                self.revision += 1;
                self.cluster.apply(Change::VclusterAlloc(id, Some(self.revision)));
            }
            Decision::ForgetCounter { id, revision } => {
                assert_eq!(revision, self.cluster.vcluster_alloc_revision(id));
                self.cluster.apply(Change::VclusterAlloc(id, None));
            }
            Decision::ForgetVcluster { spec } => self.cluster.apply(Change::Spec(spec.value.id, None)),
        }
    }

    /// A host does what the plan of one node says and reports it.
    fn host_acts(&mut self, at: &(HostName, NodeId)) {
        let Some(plan) = self.node_plans.get(at).cloned() else { return };
        let state = match plan.wanted {
            Wanted::Running if plan.frozen => NodeState::Frozen,
            Wanted::Running => NodeState::Ready,
            Wanted::Stopped => NodeState::Stopped,
            Wanted::Absent => NodeState::Absent,
        };
        let report = NodeReport {
            id: plan.id,
            vcluster: plan.vcluster,
            generation: plan.generation,
            limits_hit: Vec::new(),
            attempt: plan.attempt,
            state,
            reason: None,
            init_pid: None,
            steps: vec![],
            at: Micros(0),
        };
        let rev = self.rev(report);
        self.cluster.apply(Change::NodeReport(at.0.clone(), plan.id, Some(rev)));
    }

    fn share_acts(&mut self, at: &(HostName, VclusterId)) {
        let Some(plan) = self.shares.get(at).cloned() else { return };
        let nodes_there = self
            .node_plans
            .iter()
            .any(|((host, _), p)| *host == at.0 && p.vcluster == at.1 && p.wanted != Wanted::Absent);
        let present = plan.wanted != Wanted::Absent || nodes_there;
        let report = VclusterReport {
            id: plan.id,
            generation: plan.generation,
            present,
            reason: None,
            refused: vec![],
            at: Micros(0),
        };
        let rev = self.rev(report);
        self.cluster.apply(Change::VclusterReport(at.0.clone(), plan.id, Some(rev)));
    }

    fn ask(&mut self, node: NodeId, to: u32) {
        let Some(vcluster) = self.cluster.node(node).and_then(|p| p.vcluster) else { return };
        if self.cluster.moving(node).is_some_and(|m| m.value.stage.is_under_way()) {
            return;
        }
        let (wanted, actor) = (Some(host(to)), Some("root".parse().unwrap()));
        let doc = Move { node, vcluster, wanted, actor, stage: Stage::Waiting, trip: None, reason: None };
        let rev = self.rev(doc);
        self.cluster.apply(Change::Move(node, Some(rev)));
    }

    /// Whoever carries bytes does what there is to do for one move: it goes well, or it fails.
    fn carry(&mut self, node: NodeId, well: bool) -> bool {
        let Some(doc) = self.cluster.moving(node).map(|m| (*m.value).clone()) else { return false };
        let Some(haul) = haul(&self.cluster, &doc) else { return false };
        let stage = match haul {
            _ if !well => Stage::Failed,
            Haul::First(_) => Stage::Copied,
            Haul::Last(ref trip) => {
                let stopped = self.cluster.node(node).unwrap().halves[&trip.from].report.as_ref().unwrap();
                assert_eq!(stopped.value.state, NodeState::Stopped, "the last copy is one of a node that runs");
                Stage::Arrived
            }
            Haul::AwaitStop(_) => return false,
        };
        let reason = (stage == Stage::Failed).then(|| Reason::new("test", "It was told to fail."));
        let rev = self.rev(Move { stage, reason, ..doc });
        self.cluster.apply(Change::Move(node, Some(rev)));
        true
    }

    fn carry_all(&mut self, well: bool) -> bool {
        let nodes: Vec<NodeId> = self.cluster.moves().map(|m| m.value.node).collect();
        let mut any = false;
        for node in nodes {
            any |= self.carry(node, well);
        }
        any
    }

    /// A host starts again at another address, and says so.
    fn readdress(&mut self, number: u32, moves: u8) {
        let report = self.cluster.host(&host(number)).and_then(|h| h.report.as_ref());
        let Some(mut report) = report.map(|r| (*r.value).clone()) else { return };
        report.address = Some(address(number, moves));
        let rev = self.rev(report);
        self.cluster.apply(Change::Host(host(number), Some(rev)));
    }

    /// What an administrator asks for, or takes back.
    fn drain(&mut self, number: u32, draining: bool) {
        let rev = self.rev(HostSettings { draining, ..HostSettings::default() });
        self.cluster.apply(Change::HostSettings(host(number), Some(rev)));
    }

    /// Failed moves are tried again after a while.
    fn forget_failures(&mut self) {
        let failed: Vec<NodeId> =
            self.cluster.moves().filter(|m| m.value.stage == Stage::Failed).map(|m| m.value.node).collect();
        for node in failed {
            self.cluster.apply(Change::Move(node, None));
        }
    }

    /// An operator's word: the host is gone. What it was planned to do is nobody's business any more.
    fn give_up(&mut self, number: u32) {
        self.cluster.apply(Change::Alive(host(number), false));
        let number_of_loss = u64::try_from(self.revision).unwrap();
        let rev = self.rev(Lost { number: number_of_loss, actor: "root".parse().unwrap(), at: Micros(0) });
        self.cluster.apply(Change::Lost(host(number), Some(rev)));
    }

    /// A lost host comes back and lets go of everything that no plan names.
    fn come_back(&mut self, number: u32) {
        self.cluster.apply(Change::Alive(host(number), true));
        let lost = self.cluster.host(&host(number)).and_then(|h| h.lost.as_ref()).map(|l| l.value.number);
        self.cluster.apply(Change::Cleared(host(number), lost));
    }

    /// Where a node is by the rules, and where it runs: never in two places.
    fn places(&self, id: NodeId) -> Vec<HostName> {
        self.node_plans
            .iter()
            .filter(|((host, node), plan)| {
                let lost = self.cluster.host(host).is_some_and(|h| h.lost.is_some());
                *node == id && plan.wanted == Wanted::Running && !lost
            })
            .map(|((host, _), _)| host.clone())
            .collect()
    }

    fn tidy_losses(&mut self) -> bool {
        let settled = settled_losses(&self.cluster);
        for (host, _) in &settled {
            self.cluster.apply(Change::Lost(host.clone(), None));
        }
        !settled.is_empty()
    }

    /// Planner and hosts take turns until nobody has anything left to do.
    fn settle(&mut self) {
        for round in 0..200 {
            let mut any = false;
            let dirty = self.cluster.take_dirty();
            if round % 2 == 0 {
                any |= self.plan_together(&dirty);
                self.check_invariants();
            } else {
                for id in dirty {
                    any |= self.plan_once(id);
                    self.check_invariants();
                }
            }
            any |= self.carry_all(true) | self.tidy_losses();
            let before = self.revision;
            let nodes: Vec<_> = self.node_plans.keys().cloned().collect();
            for at in &nodes {
                let half = self.cluster.node(at.1).and_then(|p| p.halves.get(&at.0));
                let reported = half.and_then(|h| h.report.as_ref()).map(|r| r.value.generation);
                if reported != Some(self.node_plans[at].generation) {
                    self.host_acts(at);
                }
            }
            let shares: Vec<_> = self.shares.keys().cloned().collect();
            for at in &shares {
                let share =
                    self.cluster.shares(at.1).find(|(host, _)| **host == at.0).and_then(|(_, s)| s.report.as_ref());
                if share.is_none_or(|r| r.value.generation != self.shares[at].generation || r.value.present) {
                    self.share_acts(at);
                }
            }
            let present = self.shares.values().filter(|s| s.wanted != Wanted::Absent).count();
            if !any && before + i64::try_from(present).unwrap() == self.revision {
                return;
            }
        }
        panic!("planner and hosts do not come to rest");
    }

    fn status(&self, id: VclusterId) -> Option<Status> {
        let spec = self.cluster.spec(id)?;
        Some(status::of_vcluster(&self.cluster, &spec.value, &plan(&self.cluster, &policy(), id).waiting).status)
    }

    /// The hosts where a port is published.
    fn forwarding(&self, id: VclusterId, mapping: &PortMapping) -> Vec<&HostName> {
        let port = (mapping.protocol, mapping.public);
        let there = |share: &VclusterPlan| share.forwards.iter().any(|f| (f.protocol, f.public) == port);
        self.shares.iter().filter(|((_, of), share)| *of == id && there(share)).map(|((host, _), _)| host).collect()
    }

    /// At rest every published port is at the host of its node, and nowhere where the node has no place.
    fn check_ports(&self) {
        for spec in self.cluster.specs() {
            for mapping in &spec.value.ports {
                let holders: Vec<_> =
                    self.node_plans.keys().filter(|(_, node)| *node == mapping.node).map(|(host, _)| host).collect();
                assert_eq!(self.forwarding(spec.value.id, mapping), holders, "{mapping:?}");
            }
        }
    }

    /// At rest all hosts of a vcluster know where each of its nodes is reached, as far as it is on several.
    fn check_addresses(&self) {
        for ((at, _), share) in self.shares.iter().filter(|(_, share)| share.wanted != Wanted::Absent) {
            let hosts: BTreeSet<_> = share.peers.iter().map(|peer| &peer.host).collect();
            for host in hosts.iter().filter(|_| hosts.len() > 1) {
                let said = self.cluster.host(host).and_then(|h| h.report.as_ref()?.value.address);
                assert_eq!(share.hosts.get(*host).copied(), said, "where {host} is, as {at} knows it");
            }
        }
    }

    fn check_invariants(&self) {
        let mut published = BTreeMap::new();
        for ((host, id), share) in &self.shares {
            if self.cluster.host(host).is_some_and(|h| h.lost.is_some()) {
                continue;
            }
            for forward in &share.forwards {
                let other = published.insert((forward.protocol, forward.public), host);
                assert_eq!(other, None, "port {} is published at {host}, too", forward.public);
                // A node that is being removed may go before its port; what is elsewhere must not be sent here.
                let elsewhere = self.node_plans.iter().find(|((at, _), plan)| {
                    let lost = self.cluster.host(at).is_some_and(|h| h.lost.is_some());
                    let there = plan.wanted != Wanted::Absent && !plan.is_incoming() && !lost;
                    at != host && plan.vcluster == *id && plan.ip == forward.ip && there
                });
                assert_eq!(elsewhere, None, "port {} of {host} leads to a node that is not there", forward.public);
            }
        }
        let mut addresses = BTreeMap::new();
        for plan in self.node_plans.values() {
            let holder = addresses.insert(plan.ip, plan.id);
            assert!(holder.is_none_or(|id| id == plan.id), "{} twice", plan.ip);
            let places = self.places(plan.id);
            assert!(places.len() <= 1, "{} is to run on {places:?}", plan.name);
            let network = self.cluster.network(plan.vcluster).expect("a node's vcluster has a network");
            assert!(network.value.subnet.contains(plan.ip));
        }
        for (name, state) in self.cluster.hosts() {
            let sum: u64 =
                self.node_plans.iter().filter(|((h, _), _)| h == name).map(|(_, p)| u64::from(p.size.memory_mib)).sum();
            assert_eq!(state.allocated.memory_mib, sum, "allocation of {name}");
            let halves = state.nodes.iter().filter_map(|id| self.cluster.node(*id)?.halves.get(name));
            let is = |half: &Half, wanted| half.report.as_ref().is_some_and(|r| r.value.state == wanted);
            let tally = halves.fold(Tally::default(), |sum, half| {
                let frozen = half.plan.as_ref().is_some_and(|plan| plan.value.frozen);
                Tally {
                    ready: sum.ready + u32::from(is(half, NodeState::Ready)),
                    warm: sum.warm + u32::from(frozen),
                    frozen: sum.frozen + u32::from(frozen && is(half, NodeState::Frozen)),
                }
            });
            assert_eq!(state.tally, tally, "what {name} counts");
            let capacity = state.report.as_ref().unwrap().value.capacity;
            assert!(sum <= capacity.memory_mib, "{name} is overfull");
        }
    }
}

fn image() -> ImageRef {
    ImageRef { name: "base".parse().unwrap(), digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap() }
}

#[test]
fn a_vcluster_comes_and_goes() {
    let mut world = World::new(3, 10);
    let id = world.create("demo", 9);
    assert_eq!(world.status(id), Some(Status::Pending));
    world.settle();
    world.check_invariants();
    assert_eq!(world.status(id), Some(Status::Running));
    let spread: BTreeSet<_> = world.node_plans.keys().map(|(host, _)| host.clone()).collect();
    assert_eq!(spread.len(), 3, "nodes are spread over the hosts");
    assert!(world.shares.values().all(|s| s.peers.len() == 9), "every host knows all nine");
    world.edit(id, |_, spec| spec.wanted = Wanted::Absent);
    assert_eq!(world.status(id), Some(Status::Deleting));
    world.settle();
    assert!(world.cluster.spec(id).is_none());
    assert!(world.node_plans.is_empty() && world.shares.is_empty(), "nothing is left");
    assert!(world.cluster.network(id).is_none());
}

#[test]
fn a_large_vcluster_takes_several_transactions() {
    let mut world = World::new(2, 500);
    let id = world.create("big", 700);
    world.settle();
    world.check_invariants();
    assert_eq!(world.status(id), Some(Status::Running));
}

/// Each of its hosts is told of all its nodes, in transactions that any etcd takes, and once.
#[test]
fn a_vcluster_over_many_hosts_is_told_once() {
    let mut world = World::new(300, 10);
    let id = world.create("wide", 260);
    world.settle();
    world.check_invariants();
    assert_eq!(world.status(id), Some(Status::Running));
    assert_eq!(world.shares.len(), 260, "a host for each node");
    assert!(world.shares.values().all(|share| share.peers.len() == 260 && share.generation == 1));
    world.edit(id, |_, spec| spec.wanted = Wanted::Absent);
    world.settle();
    assert!(world.cluster.spec(id).is_none() && world.shares.is_empty(), "nothing is left");
}

/// Nothing of a vcluster is planned twice, and none is forgotten, by who has missed what another planned of it.
#[test]
fn whoever_missed_a_plan_compares_another_counter() {
    let mut world = World::new(2, 4);
    let id = world.create("demo", 1);
    let policy = policy();
    let network = Pass::new(&world.cluster, &policy, true).plan(id);
    world.commit_all(network);
    let mut behind = world.cluster.clone();
    world.plan_once(id);
    let compared = |cluster: &Cluster| {
        let decisions = plan(cluster, &policy, id).decisions;
        decisions.into_iter().find_map(|decision| match decision {
            Decision::RaiseCounter { revision, .. } | Decision::ForgetCounter { revision, .. } => Some(revision),
            _ => None,
        })
    };
    let counter = world.cluster.vcluster_alloc_revision(id);
    assert!(counter.is_some());
    assert_eq!(compared(&world.cluster), None, "who knows all has nothing to do");
    assert_eq!(compared(&behind), Some(None), "it would place the node again");
    let mut spec = (*behind.spec(id).unwrap().value).clone();
    spec.wanted = Wanted::Absent;
    behind.apply(Change::Spec(id, Some(Rev::new(spec, 1000))));
    assert!(plan(&behind, &policy, id).decisions.iter().any(|d| matches!(d, Decision::ForgetVcluster { .. })));
    assert_eq!(compared(&behind), Some(None), "it would forget a vcluster that has a node");
}

/// Whatever went wrong: what comes to light of a vcluster that is gone goes after it.
#[test]
fn what_is_left_of_a_vcluster_without_a_spec_goes() {
    let mut world = World::new(2, 4);
    let id = world.create("demo", 3);
    let policy = policy();
    let network = Pass::new(&world.cluster, &policy, true).plan(id);
    world.commit_all(network);
    let behind = world.cluster.clone();
    world.plan_once(id);
    assert_eq!(world.node_plans.len(), 3);
    world.cluster = behind;
    world.edit(id, |_, spec| spec.wanted = Wanted::Absent);
    world.plan_once(id);
    assert!(world.cluster.spec(id).is_none() && world.cluster.network(id).is_none());
    // Now everything is listed again.
    for ((host, node), plan) in world.node_plans.clone() {
        let rev = world.rev(plan);
        world.cluster.apply(Change::NodePlan(host, node, Some(rev)));
    }
    for ((host, vcluster), share) in world.shares.clone() {
        let rev = world.rev(share);
        world.cluster.apply(Change::VclusterPlan(host, vcluster, Some(rev)));
    }
    world.cluster.apply(Change::VclusterAlloc(id, Some(world.revision)));
    for _ in 0..5 {
        for id in world.cluster.take_dirty() {
            world.plan_once(id);
        }
        for at in world.node_plans.keys().cloned().collect::<Vec<_>>() {
            world.host_acts(&at);
        }
        for at in world.shares.keys().cloned().collect::<Vec<_>>() {
            world.share_acts(&at);
        }
    }
    assert!(world.node_plans.is_empty() && world.shares.is_empty(), "{:?} {:?}", world.node_plans, world.shares);
    assert_eq!(world.cluster.vcluster_alloc_revision(id), None);
    assert!(world.cluster.hosts().all(|(_, host)| host.allocated == Capacity::default()), "its room is free");
    assert!(!world.plan_once(id), "nothing is left to do");
}

#[test]
fn of_two_places_of_a_node_one_goes() {
    for later in [0, 5] {
        let mut world = World::new(2, 4);
        let id = world.create("demo", 1);
        world.settle();
        let ((at, node), mut plan) =
            world.node_plans.first_key_value().map(|(at, plan)| (at.clone(), plan.clone())).unwrap();
        let other = (0..2).map(host).find(|host| *host != at).unwrap();
        plan.generation += later;
        world.commit(Decision::PutNode { host: other, plan: Box::new(plan), revision: None });
        let chosen = super::plan::plan(&world.cluster, &policy(), id);
        assert!(
            chosen.decisions.iter().any(|d| matches!(d, Decision::RaiseCounter { .. })),
            "of two choices one holds"
        );
        world.settle();
        assert_eq!(world.node_plans.len(), 1, "{:?}", world.node_plans.keys());
        assert_eq!(world.node_plans.values().next().map(|p| p.id), Some(node));
        assert_eq!(world.shares.len(), 1);
        assert_eq!(world.status(id), Some(Status::Running));
    }
}

#[test]
fn nodes_without_room_wait_with_a_reason_and_follow() {
    let mut world = World::new(1, 4);
    let first = world.create("first", 3);
    world.settle();
    let second = world.create("second", 3);
    world.settle();
    world.check_invariants();
    assert_eq!(world.status(second), Some(Status::Degraded));
    let waiting = plan(&world.cluster, &policy(), second).waiting;
    assert_eq!(waiting.len(), 2);
    assert!(waiting.values().all(|r| r.code == "no_room"), "{waiting:?}");
    world.edit(first, |_, spec| spec.wanted = Wanted::Absent);
    world.settle();
    assert_eq!(world.status(second), Some(Status::Running), "room came free");
}

#[test]
fn a_node_on_a_lost_host_is_not_started_twice() {
    let mut world = World::new(2, 10);
    let id = world.create("demo", 2);
    world.settle();
    let before = world.node_plans.clone();
    world.cluster.apply(Change::Alive(host(0), false));
    world.settle();
    assert_eq!(world.node_plans, before);
    assert_eq!(world.status(id), Some(Status::Degraded));
    let spec = world.cluster.spec(id).unwrap().value.clone();
    let lost = view::nodes(&world.cluster, &spec, &BTreeMap::new())
        .into_iter()
        .find(|n| n.status == Status::Degraded)
        .unwrap();
    assert_eq!(lost.reason.unwrap().code, "host_unreachable");
}

/// A vcluster that is kept warm until `until` µs.
fn warm(world: &mut World, nodes: u32, until: i64) -> VclusterId {
    let id = world.create("warm", nodes);
    world.edit(id, |_, spec| spec.warm = Some(Warm { until: Micros(until) }));
    world.settle();
    id
}

#[test]
fn a_warm_vcluster_is_booted_frozen_and_taken_over() {
    let mut world = World::new(2, 10);
    let id = warm(&mut world, 3, 10);
    world.check_invariants();
    assert!(world.node_plans.len() == 3 && world.node_plans.values().all(|p| p.frozen));
    assert_eq!(world.cluster.specs().count(), 0, "nobody sees it");
    let alice = "alice".parse().unwrap();
    let found = |world: &World, nodes, cpu, memory| {
        let size = Size::new(cpu, memory, 100).unwrap();
        let of = Asked { owner: &alice, image: &image(), size, nodes };
        kept::find(&world.cluster, &policy(), of).is_some()
    };
    assert!(found(&world, 1, 1.0, 100) && found(&world, 61, 1.0, 100));
    assert!(!found(&world, 62, 1.0, 100), "its network is too small");
    assert!(found(&world, 3, 0.5, 300), "its hosts have room for larger nodes");
    assert!(!found(&world, 3, 0.5, 3000), "but not for any size");
    assert!(!found(&world, 3, 1.0, 64), "what is up may hold more than a small one may");
    let taken = world.cluster.warm().next().unwrap().clone();
    world.edit(id, |world, spec| {
        spec.warm = None;
        let added = world.node_specs(4, 2);
        let make = |n: u32| added[n as usize - 4].clone();
        spec.nodes = kept::nodes(&taken.value, taken.value.size, 5, make);
    });
    world.settle();
    world.check_invariants();
    assert_eq!(world.status(id), Some(Status::Running));
    assert!(world.node_plans.len() == 5 && world.node_plans.values().all(|p| !p.frozen));
    assert!(world.cluster.warm().next().is_none());
}

#[test]
fn what_is_kept_warm_leaves_room_and_goes_in_time() {
    // Ten nodes find room here, and half of it may be taken ahead.
    let mut world = World::new(1, 10);
    let id = warm(&mut world, 8, 10);
    assert_eq!(world.node_plans.len(), 5);
    let outdated = |world: &World, now, pressed| kept::outdated(&world.cluster, Micros(now), pressed).len();
    assert_eq!((outdated(&world, 9, false), outdated(&world, 10, false), outdated(&world, 9, true)), (0, 1, 1));
    assert_eq!(kept::next_end(&world.cluster), Some(Micros(10)));
    world.drain(0, true);
    assert_eq!(outdated(&world, 9, false), 1, "it is not worth moving");
    world.drain(0, false);
    world.edit(id, |_, spec| spec.wanted = Wanted::Absent);
    world.settle();
    assert!(world.cluster.spec(id).is_none() && world.node_plans.is_empty() && world.shares.is_empty());
    assert_eq!((outdated(&world, 99, true), kept::next_end(&world.cluster)), (0, None));
}

#[test]
fn with_no_host_a_vcluster_is_pending_and_says_why() {
    let mut world = World::new(0, 0);
    let id = world.create("demo", 2);
    world.settle();
    assert_eq!(world.status(id), Some(Status::Pending));
    assert!(plan(&world.cluster, &policy(), id).waiting.values().all(|r| r.code == "no_host"));
}

#[test]
fn a_host_is_emptied_one_node_at_a_time() {
    let mut world = World::new(3, 10);
    let id = world.create("demo", 6);
    world.settle();
    let before: BTreeMap<_, _> = world.node_plans.values().map(|p| (p.id, (p.ip, p.mac, p.name.clone()))).collect();
    world.drain(0, true);
    let mut most = 0;
    for _ in 0..20 {
        for id in world.cluster.take_dirty() {
            world.plan_once(id);
        }
        most = most.max(world.cluster.moves().filter(|m| m.value.stage.is_under_way()).count());
        world.carry_all(true);
        for at in world.node_plans.keys().cloned().collect::<Vec<_>>() {
            world.host_acts(&at);
        }
        world.check_invariants();
    }
    assert_eq!(most, 1);
    world.settle();
    assert!(world.node_plans.keys().all(|(at, _)| *at != host(0)));
    assert!(world.shares.keys().all(|(at, _)| *at != host(0)), "its share went with the last node");
    let after: BTreeMap<_, _> = world.node_plans.values().map(|p| (p.id, (p.ip, p.mac, p.name.clone()))).collect();
    assert_eq!(before, after);
    assert_eq!(world.status(id), Some(Status::Running));
    assert_eq!(
        view::host(&world.cluster, &host(0), world.cluster.host(&host(0)).unwrap(), |_| BTreeMap::new())
            .unwrap()
            .status,
        "drained"
    );
    assert!(world.shares.values().all(|s| s.peers.iter().all(|p| p.host != host(0))));
}

#[test]
fn without_room_a_drained_host_keeps_its_nodes_and_says_why() {
    let mut world = World::new(2, 3);
    let id = world.create("demo", 6);
    world.settle();
    world.drain(0, true);
    world.settle();
    assert_eq!(world.status(id), Some(Status::Running));
    let waiting = plan(&world.cluster, &policy(), id).waiting;
    assert_eq!(waiting.len(), 3);
    assert!(waiting.values().all(|r| r.code == "no_room"), "{waiting:?}");
    let moves = view::moves_from(&world.cluster, &host(0), |id| plan(&world.cluster, &policy(), id).waiting);
    assert_eq!(moves.len(), 3);
    // Room appears: it goes on by itself.
    world.edit(id, |_, spec| {
        spec.nodes.truncate(3);
    });
    world.settle();
    assert!(world.node_plans.keys().all(|(at, _)| *at == host(1)), "{:?}", world.node_plans.keys());
}

#[test]
fn a_move_that_fails_leaves_the_node_where_it_was() {
    for fails_at in [Stage::Copying, Stage::Copied] {
        let mut world = World::new(2, 10);
        let id = world.create("demo", 1);
        world.settle();
        let (at, node) = world.node_plans.keys().next().cloned().unwrap();
        let to = (0..2).find(|n| host(*n) != at).unwrap();
        world.ask(node, to);
        for _ in 0..10 {
            for id in world.cluster.take_dirty() {
                world.plan_once(id);
            }
            let stage = world.cluster.moving(node).unwrap().value.stage;
            for at in world.node_plans.keys().cloned().collect::<Vec<_>>() {
                world.host_acts(&at);
            }
            world.carry(node, stage != fails_at);
            world.check_invariants();
        }
        world.settle();
        assert_eq!(world.cluster.moving(node).unwrap().value.stage, Stage::Failed);
        assert_eq!(world.node_plans.keys().cloned().collect::<Vec<_>>(), [(at, node)], "failed at {fails_at:?}");
        assert_eq!(world.status(id), Some(Status::Running));
        // Asked again, it goes.
        world.ask(node, to);
        world.settle();
        assert_eq!(world.node_plans.keys().cloned().collect::<Vec<_>>(), [(host(to), node)]);
        assert!(world.cluster.moving(node).is_none());
    }
}

#[test]
fn a_host_at_another_address_is_found_there() {
    let mut world = World::new(3, 10);
    let id = world.create("demo", 3);
    world.settle();
    world.check_addresses();
    let before = world.shares.clone();
    world.readdress(1, 1);
    // Until the planner has heard of it, its own share has the old address, too: it is the host that must know better.
    assert_eq!(world.shares[&(host(1), id)].hosts[&host(1)], address(1, 0));
    world.settle();
    world.check_addresses();
    assert!(world.shares.iter().all(|(at, share)| share.generation > before[at].generation));
    assert_eq!(world.shares[&(host(0), id)].hosts[&host(1)], address(1, 1));
    assert_eq!(world.status(id), Some(Status::Running));
}

#[test]
fn published_ports_go_with_their_node() {
    let mut world = World::new(2, 10);
    let id = world.create("demo", 2);
    world.settle();
    let ports = world.cluster.spec(id).unwrap().value.ports.clone();
    let at = |world: &World| {
        let hosts: BTreeSet<_> = ports.iter().flat_map(|port| world.forwarding(id, port)).cloned().collect();
        hosts.into_iter().collect::<Vec<_>>()
    };
    let from = world.places(ports[0].node);
    assert_eq!(at(&world), from);
    let to = (0..2).find(|n| host(*n) != from[0]).unwrap();
    world.ask(ports[0].node, to);
    world.settle();
    assert_eq!(world.places(ports[0].node), [host(to)]);
    assert_eq!(at(&world), [host(to)]);
    assert_eq!(ports.len(), 2, "of TCP and of UDP");
    // Its host is lost: they are where the node is made anew.
    world.give_up(to);
    world.settle();
    world.come_back(to);
    world.settle();
    assert_eq!(at(&world), from);
    world.check_ports();
}

#[test]
fn disks_in_directories_do_not_move() {
    let mut world = World::new(2, 10);
    let id = world.create("demo", 1);
    world.settle();
    let (at, node) = world.node_plans.keys().next().cloned().unwrap();
    let mut report = (*world.cluster.host(&at).unwrap().report.as_ref().unwrap().value).clone();
    report.storage = "directory".into();
    let rev = world.rev(report);
    world.cluster.apply(Change::Host(at.clone(), Some(rev)));
    world.ask(node, (0..2).find(|n| host(*n) != at).unwrap());
    world.settle();
    assert_eq!(plan(&world.cluster, &policy(), id).waiting[&node].code, "move_needs_btrfs");
    assert_eq!(world.node_plans.len(), 1);
}

#[test]
fn nodes_of_a_lost_host_are_made_anew_at_their_addresses() {
    let mut world = World::new(3, 10);
    let id = world.create("demo", 6);
    world.settle();
    let before: BTreeMap<_, _> = world.node_plans.values().map(|p| (p.id, (p.ip, p.generation))).collect();
    world.cluster.apply(Change::Alive(host(0), false));
    world.settle();
    assert_eq!(world.node_plans.keys().filter(|(at, _)| *at == host(0)).count(), 2, "nothing happens without the word");
    world.give_up(0);
    world.settle();
    assert!(world.node_plans.keys().all(|(at, _)| *at != host(0)));
    assert!(world.shares.keys().all(|(at, _)| *at != host(0)));
    for plan in world.node_plans.values() {
        let (ip, generation) = before[&plan.id];
        assert_eq!(plan.ip, ip);
        assert!(plan.generation >= generation);
    }
    assert_eq!(world.status(id), Some(Status::Running));
    // It takes nothing before it has let go of what it held.
    world.cluster.apply(Change::Alive(host(0), true));
    world.edit(id, |world, spec| spec.nodes.extend(world.node_specs(7, 3)));
    world.settle();
    assert!(world.node_plans.keys().all(|(at, _)| *at != host(0)));
    world.come_back(0);
    world.settle();
    assert!(world.cluster.host(&host(0)).unwrap().lost.is_none());
}

#[test]
fn a_lost_node_without_room_keeps_its_address_until_there_is() {
    let mut world = World::new(2, 3);
    let id = world.create("demo", 6);
    world.settle();
    let before: BTreeSet<_> = world.node_plans.values().map(|p| p.ip).collect();
    world.give_up(0);
    world.settle();
    assert_eq!(world.status(id), Some(Status::Degraded));
    assert!(world.node_plans.iter().all(|((at, _), p)| *at != host(0) || p.wanted == Wanted::Absent));
    // The very host comes back, empty.
    world.come_back(0);
    world.settle();
    assert_eq!(world.status(id), Some(Status::Running));
    assert_eq!(world.node_plans.values().map(|p| p.ip).collect::<BTreeSet<_>>(), before);
}

#[derive(Debug, Clone)]
enum Act {
    Create(u32),
    Scale(usize, u32),
    Stop(usize),
    Start(usize),
    Delete(usize),
    Plan(usize),
    HostActs(usize),
    ShareActs(usize),
    Lose(u32),
    Return(u32),
    Drain(u32, bool),
    Move(usize, u32),
    Carry(usize, bool),
    GiveUp(u32),
    ComeBack(u32),
    Readdress(u32, u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1u32..8).prop_map(Act::Create),
        (any::<usize>(), 1u32..8).prop_map(|(v, n)| Act::Scale(v, n)),
        any::<usize>().prop_map(Act::Stop),
        any::<usize>().prop_map(Act::Start),
        any::<usize>().prop_map(Act::Delete),
        any::<usize>().prop_map(Act::Plan),
        any::<usize>().prop_map(Act::HostActs),
        any::<usize>().prop_map(Act::ShareActs),
        (0u32..3).prop_map(Act::Lose),
        (0u32..3).prop_map(Act::Return),
        (0u32..3, any::<bool>()).prop_map(|(h, d)| Act::Drain(h, d)),
        (any::<usize>(), 0u32..3).prop_map(|(n, h)| Act::Move(n, h)),
        (any::<usize>(), any::<bool>()).prop_map(|(n, w)| Act::Carry(n, w)),
        (0u32..3).prop_map(Act::GiveUp),
        (0u32..3).prop_map(Act::ComeBack),
        (0u32..3, 0u8..3).prop_map(|(h, moves)| Act::Readdress(h, moves)),
    ]
}

fn nth<T: Clone>(items: impl Iterator<Item = T>, index: usize) -> Option<T> {
    let all: Vec<T> = items.collect();
    if all.is_empty() { None } else { Some(all[index % all.len()].clone()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_cluster_comes_to_what_is_wanted(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new(3, 20);
        let mut ids: Vec<VclusterId> = Vec::new();
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Create(n) => ids.push(world.create(&format!("v{number}"), n)),
                Act::Scale(v, n) => if let Some(id) = nth(ids.iter().copied(), v) {
                    world.edit(id, |world, spec| {
                        let have = u32::try_from(spec.nodes.len()).unwrap();
                        if n < have { spec.nodes.truncate(n as usize) } else { spec.nodes.extend(world.node_specs(have + 1, n - have)) }
                    });
                },
                Act::Stop(v) => if let Some(id) = nth(ids.iter().copied(), v) {
                    world.edit(id, |_, spec| if spec.wanted != Wanted::Absent { spec.wanted = Wanted::Stopped });
                },
                Act::Start(v) => if let Some(id) = nth(ids.iter().copied(), v) {
                    world.edit(id, |_, spec| if spec.wanted != Wanted::Absent { spec.wanted = Wanted::Running });
                },
                Act::Delete(v) => if let Some(id) = nth(ids.iter().copied(), v) {
                    world.edit(id, |_, spec| spec.wanted = Wanted::Absent);
                },
                Act::Plan(v) => if let Some(id) = nth(ids.iter().copied(), v) { world.plan_once(id); },
                Act::HostActs(n) => if let Some(at) = nth(world.node_plans.keys().cloned(), n) { world.host_acts(&at) },
                Act::ShareActs(n) => if let Some(at) = nth(world.shares.keys().cloned(), n) { world.share_acts(&at) },
                Act::Lose(h) => world.cluster.apply(Change::Alive(host(h), false)),
                Act::Return(h) => world.cluster.apply(Change::Alive(host(h), true)),
                Act::Drain(h, draining) => world.drain(h, draining),
                Act::Move(n, h) => if let Some((_, id)) = nth(world.node_plans.keys().cloned(), n) { world.ask(id, h) },
                Act::Carry(n, well) => if let Some(id) = nth(world.cluster.moves().map(|m| m.value.node), n) { world.carry(id, well); },
                Act::GiveUp(h) => world.give_up(h),
                Act::ComeBack(h) => world.come_back(h),
                Act::Readdress(h, moves) => world.readdress(h, moves),
            }
            world.check_invariants();
        }
        for number in 0..3 {
            world.come_back(number);
            world.drain(number, false);
        }
        world.settle();
        world.forget_failures();
        world.settle();
        prop_assert!(world.cluster.moves().all(|m| m.value.stage == Stage::Waiting), "a move hangs");
        prop_assert!(world.node_plans.values().all(|p| p.moving.is_none()), "half a node is left");
        prop_assert!(world.cluster.hosts().all(|(_, h)| h.lost.is_none()), "a loss is never settled");
        world.check_invariants();
        world.check_ports();
        world.check_addresses();
        let mut expected = 0;
        for id in ids {
            let Some(spec) = world.cluster.spec(id).map(|s| s.value.clone()) else { continue };
            let want = if spec.wanted == Wanted::Running { Status::Running } else { Status::Stopped };
            let full = world.node_plans.len() >= 60;
            prop_assert!(full || world.status(id) == Some(want), "{:?} is not {want}", world.status(id));
            prop_assert!(spec.wanted != Wanted::Absent);
            expected += spec.nodes.len();
        }
        prop_assert!(world.node_plans.len() <= expected.min(60));
    }
}
