//! The planner against hosts that behave, in random order: whatever is asked for comes true and nothing is left over.

use docklet_types::host::{Capacity, HostReport};
use docklet_types::id::{IdRange, NodeId, OperationId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::name::{HostName, NodeName};
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::{NodeReport, NodeState, VclusterReport};
use docklet_types::size::Size;
use docklet_types::spec::{NodeSpec, SshKeyPair, VclusterKeys, VclusterSpec, Wanted};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

use crate::cluster::{Change, Cluster, Rev};
use crate::place::Policy;
use crate::plan::{BATCH, Decision, plan};
use crate::{status, view};

fn policy() -> Policy {
    Policy {
        cluster_net: "172.16.0.0/20".parse().unwrap(),
        cpu_overcommit: 1.0,
        memory_overcommit: 1.0,
        disk_overcommit: 1.0,
    }
}

fn host(number: u32) -> HostName {
    format!("host{number}").parse().unwrap()
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
                address: None,
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
        let spec = VclusterSpec {
            id,
            owner: "alice".parse().unwrap(),
            range: IdRange::new(1).unwrap(),
            name: name.parse().unwrap(),
            image: image(),
            size: Size::new(1.0, 100, 100).unwrap(),
            nodes,
            ports: vec![],
            limits: docklet_types::rate::RateLimits::default(),
            host_labels: docklet_types::label::Labels::new(),
            wanted: Wanted::Running,
            generation: 1,
            created_at: Micros(0),
            changed_at: Micros(0),
            operation: OperationId::from_uuid(self.id()),
            keys: VclusterKeys { user: pair(), host: pair() },
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
        assert!(planned.decisions.len() <= BATCH + 8, "{} writes in one transaction", planned.decisions.len());
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
            Decision::ForgetVcluster { spec } => self.cluster.apply(Change::Spec(spec.value.id, None)),
        }
    }

    /// A host does what the plan of one node says and reports it.
    fn host_acts(&mut self, at: &(HostName, NodeId)) {
        let Some(plan) = self.node_plans.get(at).cloned() else { return };
        let state = match plan.wanted {
            Wanted::Running => NodeState::Ready,
            Wanted::Stopped => NodeState::Stopped,
            Wanted::Absent => NodeState::Absent,
        };
        let report = NodeReport {
            id: plan.id,
            vcluster: plan.vcluster,
            generation: plan.generation,
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

    /// Planner and hosts take turns until nobody has anything left to do.
    fn settle(&mut self) {
        for _ in 0..200 {
            let mut any = false;
            for id in self.cluster.take_dirty() {
                any |= self.plan_once(id);
            }
            let before = self.revision;
            let nodes: Vec<_> = self.node_plans.keys().cloned().collect();
            for at in &nodes {
                let reported = self.cluster.node(at.1).and_then(|p| p.report.as_ref()).map(|(_, r)| r.value.generation);
                if reported != Some(self.node_plans[at].generation) {
                    self.host_acts(at);
                }
            }
            let shares: Vec<_> = self.shares.keys().cloned().collect();
            for at in &shares {
                self.share_acts(at);
            }
            if !any && before + i64::try_from(shares.len()).unwrap() == self.revision {
                return;
            }
        }
        panic!("planner and hosts do not come to rest");
    }

    fn status(&self, id: VclusterId) -> Option<Status> {
        let spec = self.cluster.spec(id)?;
        Some(status::of_vcluster(&self.cluster, &spec.value, &plan(&self.cluster, &policy(), id).waiting).status)
    }

    fn check_invariants(&self) {
        let mut addresses = BTreeSet::new();
        for plan in self.node_plans.values() {
            assert!(addresses.insert(plan.ip), "{} twice", plan.ip);
            let network = self.cluster.network(plan.vcluster).expect("a node's vcluster has a network");
            assert!(network.value.subnet.contains(plan.ip));
        }
        for (name, state) in self.cluster.hosts() {
            let sum: u64 =
                self.node_plans.iter().filter(|((h, _), _)| h == name).map(|(_, p)| u64::from(p.size.memory_mib)).sum();
            assert_eq!(state.allocated.memory_mib, sum, "allocation of {name}");
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

#[test]
fn with_no_host_a_vcluster_is_pending_and_says_why() {
    let mut world = World::new(0, 0);
    let id = world.create("demo", 2);
    world.settle();
    assert_eq!(world.status(id), Some(Status::Pending));
    assert!(plan(&world.cluster, &policy(), id).waiting.values().all(|r| r.code == "no_host"));
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
    ]
}

fn nth<T: Clone>(items: impl Iterator<Item = T>, index: usize) -> Option<T> {
    let all: Vec<T> = items.collect();
    if all.is_empty() { None } else { Some(all[index % all.len()].clone()) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_happens_the_cluster_comes_to_what_is_wanted(acts in prop::collection::vec(act(), 1..60)) {
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
            }
            world.check_invariants();
        }
        for number in 0..3 {
            world.cluster.apply(Change::Alive(host(number), true));
        }
        world.settle();
        world.check_invariants();
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
