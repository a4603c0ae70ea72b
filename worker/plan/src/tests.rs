//! Any state of a host leads to its plan, and nothing is touched that no plan names.

use docklet_types::id::IdRange;
use docklet_types::image::ImageRef;
use docklet_types::net::Mac;
use docklet_types::plan::{Moving, Network, Side};
use docklet_types::report::{NodeState, Reason};
use docklet_types::size::Size;
use docklet_types::spec::{SshKeyPair, VclusterKeys, Wanted};
use docklet_worker_host::{ObservedNode, ObservedVcluster};
use proptest::prelude::*;

use super::*;

fn node_id(n: u8) -> NodeId {
    format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

fn vcluster_id(n: u8) -> VclusterId {
    format!("00000000-0000-7000-9000-0000000000{n:02x}").parse().unwrap()
}

fn node(n: u8, vcluster: u8, wanted: Wanted, generation: u64, attempt: u32) -> NodePlan {
    let id = node_id(n);
    NodePlan {
        id,
        vcluster: vcluster_id(vcluster),
        owner: "alice".parse().unwrap(),
        name: format!("node{n}").parse().unwrap(),
        generation,
        wanted,
        attempt,
        image: ImageRef {
            name: "base".parse().unwrap(),
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        },
        size: Size::new(1.0, 64, 64).unwrap(),
        range: IdRange::new(0).unwrap(),
        ip: [172, 16, 0, 2 + n].into(),
        mac: Mac::of_address([172, 16, 0, 2 + n].into()),
        moving: None,
        frozen: false,
        planned_at: None,
    }
}

fn vcluster(n: u8, wanted: Wanted, generation: u64) -> VclusterPlan {
    let pair = SshKeyPair { private: String::new(), public: String::new() };
    VclusterPlan {
        id: vcluster_id(n),
        owner: "alice".parse().unwrap(),
        name: "demo".parse().unwrap(),
        generation,
        wanted,
        range: IdRange::new(0).unwrap(),
        network: Network { subnet: "172.16.0.0/24".parse().unwrap(), vni: 1 },
        peers: Vec::new(),
        hosts: BTreeMap::new(),
        forwards: Vec::new(),
        limits: docklet_types::rate::RateLimits::default(),
        keys: VclusterKeys { user: pair.clone(), host: pair },
    }
}

const T0: Micros = Micros(1_000_000_000);

/// A host that does what it is told, and refuses what makes no sense.
#[derive(Debug, Clone)]
struct Model {
    desired: DesiredHost,
    observed: Observed,
    history: History,
    next_pid: i32,
}

impl Model {
    fn new(desired: DesiredHost, observed: Observed) -> Self {
        let mut history = History::default();
        for (id, plan) in &desired.nodes {
            let seen = observed.nodes.get(id).cloned().unwrap_or_default();
            history.nodes.entry(*id).or_default().accept(plan, &seen).unwrap();
        }
        for (id, plan) in &desired.vclusters {
            history.vclusters.entry(*id).or_default().accept(plan).unwrap();
        }
        Self { desired, observed, history, next_pid: 1000 }
    }

    fn diff(&self) -> HostDiff {
        diff(&self.desired, &self.observed, &self.history, T0)
    }

    fn act(&mut self, id: NodeId, action: NodeAction) {
        let wanted = self.desired.nodes[&id].wanted;
        let vcluster = self.desired.nodes[&id].vcluster;
        let seen = self.observed.nodes.entry(id).or_default();
        let past = self.history.nodes.get_mut(&id).unwrap();
        match action {
            NodeAction::Image => {}
            NodeAction::Disk => seen.disk = true,
            NodeAction::Network => {
                self.observed.vclusters.entry(vcluster).or_default().bridge = true;
                self.history
                    .vclusters
                    .entry(vcluster)
                    .or_default()
                    .applied(self.desired.vclusters[&vcluster].generation);
                seen.port = true;
            }
            NodeAction::Boot => {
                assert_eq!(wanted, Wanted::Running, "only a plan for a running node starts one");
                assert!(seen.disk && seen.port && seen.init_pid.is_none());
                assert!(self.observed.vclusters[&vcluster].bridge);
                self.next_pid += 1;
                seen.init_pid = Some(self.next_pid);
                seen.unsettled = false;
            }
            NodeAction::Ready => {
                assert!(seen.init_pid.is_some() && !seen.frozen, "what stands still never becomes ready");
                seen.ready = true;
                past.became_ready(T0);
            }
            NodeAction::Stop => {
                seen.init_pid = None;
                seen.ready = false;
                seen.frozen = false;
                seen.unsettled = false;
            }
            NodeAction::Freeze => {
                assert!(seen.ready && self.desired.nodes[&id].frozen);
                seen.frozen = true;
            }
            NodeAction::Thaw => {
                assert!(seen.frozen);
                seen.frozen = false;
            }
            NodeAction::BeginMove => seen.moving = self.desired.nodes[&id].moving.map(|m| m.number),
            NodeAction::EndMove => {
                assert!(self.desired.nodes[&id].moving.is_none(), "copies go when the move is over");
                seen.moving = None;
            }
            NodeAction::Remove => {
                assert_eq!(wanted, Wanted::Absent, "only an absent plan removes");
                assert!(seen.init_pid.is_none() && !seen.unsettled, "its disk would go under it");
                *seen = node::NOTHING;
                past.cleaned = true;
            }
        }
        if self.observed.nodes[&id] == node::NOTHING {
            self.observed.nodes.remove(&id);
        }
    }

    /// Executes diffs until nothing is left to do, or nothing can be done.
    fn converge(&mut self) {
        for _ in 0..6 {
            let todo = self.diff();
            for (id, todo) in todo.nodes {
                if let NodeTodo::Do(actions) = todo {
                    actions.into_iter().for_each(|a| self.act(id, a));
                }
            }
            for (id, todo) in todo.vclusters {
                match todo {
                    VclusterTodo::Ensure => {
                        self.observed.vclusters.entry(id).or_default().bridge = true;
                        let generation = self.desired.vclusters[&id].generation;
                        self.history.vclusters.entry(id).or_default().applied(generation);
                    }
                    VclusterTodo::Remove => {
                        let held = self
                            .desired
                            .nodes
                            .values()
                            .any(|n| n.vcluster == id && self.observed.nodes.contains_key(&n.id));
                        assert!(!held, "nodes go before their bridge");
                        self.observed.vclusters.remove(&id);
                        self.history.vclusters.entry(id).or_default().removed();
                    }
                    _ => {}
                }
            }
        }
    }
}

fn any_wanted() -> impl Strategy<Value = Wanted> {
    prop_oneof![Just(Wanted::Running), Just(Wanted::Stopped), Just(Wanted::Absent)]
}

fn any_observed_node() -> impl Strategy<Value = ObservedNode> {
    let moving = proptest::option::of(1..3u64);
    let init = (proptest::option::of(1..900i32), any::<[bool; 3]>());
    (any::<bool>(), any::<bool>(), init, moving).prop_map(
        |(disk, port, (init_pid, [ready, frozen, unsettled]), moving)| ObservedNode {
            disk: disk || init_pid.is_some(),
            port,
            init_pid,
            ready: ready && init_pid.is_some(),
            frozen: frozen && init_pid.is_some(),
            unsettled: unsettled && init_pid.is_none(),
            moving,
        },
    )
}

fn any_moving() -> impl Strategy<Value = Option<Moving>> {
    let side = prop_oneof![Just(Side::Source), Just(Side::Target)];
    proptest::option::of((1..3u64, side).prop_map(|(number, side)| Moving { number, side }))
}

prop_compose! {
    /// Up to eight nodes in two vclusters, some with plans, some on the host, some both.
    fn any_host()(
        plans in proptest::collection::btree_map(0u8..8, (any_wanted(), 1u64..5, any_moving(), any::<bool>()), 0..8),
        here in proptest::collection::btree_map(0u8..8, any_observed_node(), 0..8),
        vclusters in proptest::collection::btree_map(0u8..2, any_wanted(), 2..=2),
        bridges in proptest::collection::btree_map(0u8..2, (any::<bool>(), proptest::option::of(1u64..5)), 0..=2),
    ) -> (DesiredHost, Observed) {
        let desired = DesiredHost {
            nodes: plans.into_iter().map(|(n, (wanted, generation, moving, frozen))| {
                (node_id(n), NodePlan { moving, frozen, ..node(n, n % 2, wanted, generation, 0) })
            }).collect(),
            vclusters: vclusters.into_iter().map(|(n, wanted)| (vcluster_id(n), vcluster(n, wanted, 1))).collect(),
        };
        let observed = Observed {
            nodes: here.into_iter().filter(|(_, o)| *o != node::NOTHING).map(|(n, o)| (node_id(n), o)).collect(),
            vclusters: bridges.into_iter().map(|(n, (bridge, generation))| (vcluster_id(n), ObservedVcluster { bridge, generation })).collect(),
        };
        (desired, observed)
    }
}

proptest! {
    #[test]
    fn any_host_comes_to_its_plan_and_stays((desired, observed) in any_host()) {
        let before = observed.clone();
        let mut host = Model::new(desired, observed);
        host.converge();
        for (id, plan) in &host.desired.nodes {
            let seen = host.observed.nodes.get(id).cloned().unwrap_or_default();
            let vcluster_stays = host.desired.vclusters[&plan.vcluster].wanted != Wanted::Absent;
            match plan.wanted {
                Wanted::Running if vcluster_stays => {
                    prop_assert!(seen.ready && seen.port && seen.init_pid.is_some());
                    prop_assert_eq!(seen.frozen, plan.frozen);
                }
                Wanted::Running => {}
                Wanted::Stopped => prop_assert!(seen.init_pid.is_none() && !seen.unsettled),
                Wanted::Absent => prop_assert_eq!(&seen, &node::NOTHING),
            }
            if plan.wanted == Wanted::Stopped || plan.wanted == Wanted::Running && vcluster_stays {
                prop_assert_eq!(seen.moving, plan.moving.map(|m| m.number));
            }
            // Adoption: what ran and should run was not restarted.
            if let (Wanted::Running, Some(pid)) = (plan.wanted, before.nodes.get(id).and_then(|o| o.init_pid)) {
                prop_assert_eq!(host.observed.nodes[id].init_pid, Some(pid));
            }
        }
        let left = host.diff();
        prop_assert!(left.nodes.values().all(|t| *t == NodeTodo::NeedsVcluster), "{:?}", left.nodes);
        prop_assert!(left.vclusters.values().all(|t| *t == VclusterTodo::NodesFirst), "{:?}", left.vclusters);
    }

    #[test]
    fn what_no_plan_names_is_not_touched((desired, observed) in any_host()) {
        let before = observed.clone();
        let mut host = Model::new(desired, observed);
        host.converge();
        for (id, seen) in before.nodes {
            if !host.desired.nodes.contains_key(&id) {
                prop_assert_eq!(host.observed.nodes.get(&id), Some(&seen));
            }
        }
    }

    #[test]
    fn no_plans_no_steps((_, observed) in any_host()) {
        prop_assert!(Model::new(DesiredHost::default(), observed).diff().is_empty());
    }

    #[test]
    fn an_absent_or_stopped_plan_never_starts(seen in any_observed_node(), wanted in any_wanted(), failures in 0u32..5) {
        let plan = node(1, 0, wanted, 1, 0);
        let mut past = NodeHistory::default();
        past.accept(&plan, &seen).unwrap();
        for _ in 0..failures {
            past.failed(wanted, NodeAction::Remove, Reason::new("x", "x"), &seen, T0);
        }
        let late = T0.plus_seconds(100_000);
        if let NodeTodo::Do(actions) = node::diff(&plan, Some(&vcluster(0, Wanted::Running, 1)), &seen, &past, late) {
            let starts = actions.contains(&NodeAction::Boot);
            prop_assert!(!starts || wanted == Wanted::Running);
            let removes = actions.contains(&NodeAction::Remove);
            prop_assert_eq!(removes, wanted == Wanted::Absent);
        }
    }

    #[test]
    fn generations_only_grow(offers in proptest::collection::vec(1u64..20, 1..20)) {
        let mut past = NodeHistory::default();
        let mut highest = 0;
        for generation in offers {
            let taken = past.accept(&node(1, 0, Wanted::Running, generation, 0), &node::NOTHING).is_ok();
            prop_assert_eq!(taken, generation >= highest);
            highest = highest.max(generation);
            prop_assert_eq!(past.seen.unwrap().generation, highest);
        }
    }
}

fn up(pid: i32) -> ObservedNode {
    ObservedNode {
        disk: true,
        port: true,
        init_pid: Some(pid),
        ready: true,
        frozen: false,
        unsettled: false,
        moving: None,
    }
}

/// What a start that was cut off has left counts as running until it was stopped.
#[test]
fn a_start_of_unknown_outcome_is_stopped_before_anything_is_said_or_removed() {
    let cut = ObservedNode { init_pid: None, ready: false, unsettled: true, ..up(0) };
    for (wanted, actions, said) in [
        (Wanted::Stopped, vec![NodeAction::Stop], NodeState::Stopping),
        (Wanted::Absent, vec![NodeAction::Stop, NodeAction::Remove], NodeState::Stopping),
    ] {
        let (plan, past) = (node(1, 0, wanted, 1, 0), NodeHistory::default());
        assert_eq!(node::diff(&plan, None, &cut, &past, T0), NodeTodo::Do(actions));
        assert_eq!(node::state(&plan, &cut, &past, false).0, said);
    }
}

#[test]
fn only_what_has_lost_its_disk_is_remains() {
    let remains = ObservedNode { unsettled: true, ..node::NOTHING };
    assert!(node::is_remains(&remains));
    assert!(!node::is_remains(&ObservedNode { disk: true, ..remains.clone() }));
    assert!(!node::is_remains(&ObservedNode { moving: Some(1), ..remains }));
    assert!(!node::is_remains(&up(7)) && !node::is_remains(&node::NOTHING));
}

#[test]
fn an_attempt_restarts_a_running_node_once() {
    let v = vcluster(0, Wanted::Running, 1);
    let mut past = NodeHistory::default();
    past.accept(&node(1, 0, Wanted::Running, 1, 0), &up(7)).unwrap();
    let again = node(1, 0, Wanted::Running, 1, 1);
    past.accept(&again, &up(7)).unwrap();
    let todo = node::diff(&again, Some(&v), &up(7), &past, T0);
    assert!(matches!(&todo, NodeTodo::Do(a) if a[0] == NodeAction::Stop && a.contains(&NodeAction::Boot)), "{todo:?}");
    assert_eq!(node::state(&again, &up(7), &past, true).0, NodeState::Starting);
    // The new init is another process: done, also for a worker that was killed in between and only knows `replacing`.
    assert_eq!(node::diff(&again, Some(&v), &up(8), &past, T0), NodeTodo::Nothing);
    assert_eq!(node::state(&again, &up(8), &past, false).0, NodeState::Ready);
}

#[test]
fn a_frozen_node_is_thawed_as_it_is() {
    let v = vcluster(0, Wanted::Running, 1);
    let frozen = ObservedNode { frozen: true, ..up(7) };
    let warm = NodePlan { frozen: true, ..node(1, 0, Wanted::Running, 1, 0) };
    let claimed = NodePlan { generation: 2, frozen: false, ..warm.clone() };
    let past = NodeHistory::default();
    assert_eq!(node::state(&warm, &frozen, &past, false).0, NodeState::Frozen);
    assert_eq!(node::state(&warm, &up(7), &past, false).0, NodeState::Starting);
    assert_eq!(node::diff(&warm, Some(&v), &up(7), &past, T0), NodeTodo::Do(vec![NodeAction::Freeze]));
    assert_eq!(node::state(&claimed, &frozen, &past, false).0, NodeState::Starting);
    assert_eq!(node::diff(&claimed, Some(&v), &frozen, &past, T0), NodeTodo::Do(vec![NodeAction::Thaw]));
}

#[test]
fn a_start_is_tried_three_times_and_then_failed() {
    let plan = node(1, 0, Wanted::Running, 1, 0);
    let v = vcluster(0, Wanted::Running, 1);
    let mut past = NodeHistory::default();
    past.accept(&plan, &node::NOTHING).unwrap();
    let mut now = T0;
    for tried in 1..=3 {
        past.failed(Wanted::Running, NodeAction::Disk, Reason::new("disk_failed", "no"), &node::NOTHING, now);
        let (state, reason) = node::state(&plan, &node::NOTHING, &past, false);
        assert_eq!(state, if tried < 3 { NodeState::Starting } else { NodeState::Failed });
        assert_eq!(reason.unwrap().code, "disk_failed");
        let NodeTodo::Later(at) = node::diff(&plan, Some(&v), &node::NOTHING, &past, now) else {
            panic!("not at once")
        };
        now = at;
        assert!(matches!(node::diff(&plan, Some(&v), &node::NOTHING, &past, now), NodeTodo::Do(_)));
    }
    assert!(now.millis_since(T0) > 250_000, "after three tries it waits for minutes");
    past.accept(&node(1, 0, Wanted::Running, 1, 1), &node::NOTHING).unwrap();
    assert!(
        matches!(node::diff(&plan, Some(&v), &node::NOTHING, &past, T0), NodeTodo::Do(_)),
        "an attempt begins anew"
    );
}

#[test]
fn what_a_second_try_cannot_mend_fails_at_once() {
    let mut past = NodeHistory::default();
    past.failed(Wanted::Running, NodeAction::Disk, Reason::new("out_of_space", "full"), &node::NOTHING, T0);
    assert!(past.trouble.as_ref().unwrap().given_up);
    // Up but never ready: it is left running, and counts as ready should it become so.
    let plan = node(1, 0, Wanted::Running, 1, 0);
    let mut past = NodeHistory::default();
    let booting = ObservedNode { ready: false, ..up(9) };
    past.failed(Wanted::Running, NodeAction::Ready, Reason::new("not_ready", "sshd is missing"), &booting, T0);
    assert_eq!(node::state(&plan, &booting, &past, false).0, NodeState::Failed);
    assert_eq!(node::state(&plan, &up(9), &past, false).0, NodeState::Ready);
}

#[test]
fn a_crash_loop_ends_failed_and_a_rare_crash_does_not() {
    let plan = node(1, 0, Wanted::Running, 1, 0);
    let mut past = NodeHistory::default();
    past.accept(&plan, &up(1)).unwrap();
    let mut now = T0;
    for _ in 0..3 {
        past.became_ready(now);
        now = now.plus_seconds(5);
        past.ended(Reason::new("init_ended", "ended"), now);
    }
    assert_eq!(node::state(&plan, &node::NOTHING, &past, false).0, NodeState::Failed);
    let mut past = NodeHistory::default();
    for _ in 0..9 {
        past.became_ready(now);
        now = now.plus_seconds(3600);
        past.ended(Reason::new("init_ended", "ended"), now);
        assert_eq!(node::state(&plan, &node::NOTHING, &past, false).0, NodeState::Starting);
    }
}

#[test]
fn removing_is_tried_for_ever() {
    let plan = node(1, 0, Wanted::Absent, 1, 0);
    let mut past = NodeHistory::default();
    past.accept(&plan, &up(1)).unwrap();
    let mut now = T0;
    for _ in 0..50 {
        past.failed(Wanted::Absent, NodeAction::Stop, Reason::new("stop_failed", "no"), &up(1), now);
        assert_eq!(node::state(&plan, &up(1), &past, false).0, NodeState::Failed);
        let NodeTodo::Later(at) = node::diff(&plan, None, &up(1), &past, now) else { panic!() };
        assert!(at.millis_since(now) <= 60_000);
        now = at;
    }
    assert!(matches!(node::diff(&plan, None, &up(1), &past, now), NodeTodo::Do(_)));
}

#[test]
fn a_node_without_its_vcluster_waits() {
    let plan = node(1, 0, Wanted::Running, 1, 0);
    let past = NodeHistory::default();
    assert_eq!(node::diff(&plan, None, &node::NOTHING, &past, T0), NodeTodo::NeedsVcluster);
    assert_eq!(
        node::diff(&plan, Some(&vcluster(0, Wanted::Absent, 1)), &node::NOTHING, &past, T0),
        NodeTodo::NeedsVcluster
    );
    assert_eq!(node::diff(&plan, None, &up(1), &past, T0), NodeTodo::Nothing);
}

/// Its plan was taken away after it was reported gone, and another one put, while this host did not look.
#[test]
fn a_share_that_ended_may_begin_anew() {
    let again = vcluster(0, Wanted::Running, 1);
    let mut past = VclusterHistory::default();
    past.accept(&vcluster(0, Wanted::Running, 2)).unwrap();
    past.applied(2);
    past.accept(&vcluster(0, Wanted::Absent, 3)).unwrap();
    past.removed();
    past.accept(&again).unwrap();
    assert_eq!(vcluster::diff(&again, None, &past, true, T0), VclusterTodo::Ensure);
    // The same by a worker that knows of the end from its own disk alone.
    let mut past = VclusterHistory::of(&vcluster(0, Wanted::Absent, 3));
    past.accept(&again).unwrap();
    assert_eq!(vcluster::diff(&again, None, &past, true, T0), VclusterTodo::Ensure);
    // From then on it counts as ever.
    past.accept(&vcluster(0, Wanted::Running, 4)).unwrap();
    assert!(past.accept(&vcluster(0, Wanted::Running, 3)).is_err());
    assert!(past.accept(&vcluster(0, Wanted::Absent, 3)).is_err());
}
