//! Nodes that move: from a wish to a node at its new place, one transaction at a time.
//!
//! A move has two halves, a plan on either host. The node *is* where its plan is not an incoming one; only one write
//! changes that, and it is the one that takes the old place away. Until then whatever fails ends with the node where it
//! was. What plans and reports cannot say (how much was copied, that it took too long) stands in the move's own document,
//! by whoever carries the bytes; [`haul`] says what is to be carried.

use docklet_types::moves::{Move, Stage, Trip};
use docklet_types::name::HostName;
use docklet_types::plan::{Moving, NodePlan, Side};
use docklet_types::report::{NodeState, Reason};
use docklet_types::spec::{NodeSpec, VclusterSpec, Wanted};

use crate::cluster::{Cluster, HostState, Placed, Rev};
use crate::place::Places;
use crate::plan::{BATCH, Decision, Planned, put_again, retire_half, updated};

/// What is to be done for a moving node outside of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Haul {
    /// Copy the disk of the node that runs.
    First(Trip),
    /// Copy what has changed since; the node has stopped.
    Last(Trip),
    /// Its old host is asked to stop it.
    AwaitStop(Trip),
}

impl Haul {
    #[must_use]
    pub const fn trip(&self) -> &Trip {
        match self {
            Self::First(trip) | Self::Last(trip) | Self::AwaitStop(trip) => trip,
        }
    }
}

/// What is to be carried for a move now.
#[must_use]
pub fn haul(cluster: &Cluster, moving: &Move) -> Option<Haul> {
    let trip = moving.trip.clone()?;
    let halves = Halves::of(cluster.node(moving.node)?, &trip)?;
    match moving.stage {
        Stage::Copying => Some(Haul::First(trip)),
        Stage::Copied if halves.has_stopped() => Some(Haul::Last(trip)),
        Stage::Copied => Some(Haul::AwaitStop(trip)),
        Stage::Waiting | Stage::Arrived | Stage::Failed => None,
    }
}

/// The two plans of a move.
struct Halves<'a> {
    placed: &'a Placed,
    source: &'a Rev<NodePlan>,
    target: &'a Rev<NodePlan>,
}

impl<'a> Halves<'a> {
    fn of(placed: &'a Placed, trip: &Trip) -> Option<Self> {
        let part = |host: &HostName, side| {
            let plan = placed.halves.get(host)?.plan.as_ref()?;
            let expected = Some(Moving { number: trip.number, side });
            (plan.value.moving == expected && plan.value.wanted != Wanted::Absent).then_some(plan)
        };
        Some(Self { placed, source: part(&trip.from, Side::Source)?, target: part(&trip.to, Side::Target)? })
    }

    /// The source was told to stop the node, and says that it has.
    fn has_stopped(&self) -> bool {
        self.source.value.wanted == Wanted::Stopped
            && self.placed.report.as_ref().is_some_and(|(_, r)| {
                r.value.state == NodeState::Stopped && r.value.generation >= self.source.value.generation
            })
    }
}

/// Takes the next step of a node that is planned somewhere. `true`: its plans are this module's business for now.
pub(crate) fn advance(
    places: &mut Places<'_, '_>,
    spec: &VclusterSpec,
    node: &NodeSpec,
    planned: &mut Planned,
) -> bool {
    let cluster = places.cluster;
    let Some(placed) = cluster.node(node.id) else { return false };
    let Some((home, plan)) = &placed.plan else { return false };
    let moving = cluster.moving(node.id);
    let stage = moving.map(|m| m.value.stage);
    match (stage, moving.and_then(|m| Some((m, m.value.trip.as_ref()?)))) {
        (Some(Stage::Copying | Stage::Copied | Stage::Arrived), Some((moving, trip))) => {
            match Halves::of(placed, trip) {
                Some(halves) => go_on(spec, node, moving, trip, &halves, planned),
                // Something else took a half away, such as an operator's word that a host is lost.
                None => fail(moving, broken(), planned),
            }
            true
        }
        _ if plan.value.moving.is_some() => {
            put_back(cluster, spec, node, placed, planned);
            true
        }
        (None | Some(Stage::Waiting), _) => {
            // What an earlier try left has to go first.
            drop_twins(cluster, placed, home, planned);
            if drop_incoming(cluster, placed, planned) || placed.halves.len() > 1 {
                return false;
            }
            let draining = cluster.host(home).is_some_and(HostState::is_draining);
            if moving.is_none() && !draining {
                return false;
            }
            begin(places, spec, node, (home, plan), planned)
        }
        _ => {
            drop_twins(cluster, placed, home, planned);
            drop_incoming(cluster, placed, planned);
            false
        }
    }
}

fn broken() -> Reason {
    Reason::new("move_broken", "One of the two hosts let go of its part of the node. The node stays where it is.")
}

fn put_move(moving: &Rev<Move>, changed: Move, planned: &mut Planned) {
    planned.decisions.push(Decision::PutMove { doc: Box::new(changed), revision: Some(moving.revision) });
}

fn fail(moving: &Rev<Move>, reason: Reason, planned: &mut Planned) {
    let failed = Move { stage: Stage::Failed, reason: Some(reason), ..(*moving.value).clone() };
    put_move(moving, failed, planned);
}

/// Ends wishes for nodes that are not to be moved any more.
pub(crate) fn forget_moves(cluster: &Cluster, which: impl Fn(&Move) -> bool, planned: &mut Planned) {
    for moving in cluster.moves().filter(|m| which(&m.value)) {
        if planned.decisions.len() < BATCH {
            let node = moving.value.node;
            planned.decisions.push(Decision::DeleteMove { node, revision: moving.revision });
        }
    }
}

/// Reserves room on another host and tells both. `false`: it waits, and is otherwise as any node.
fn begin(
    places: &mut Places<'_, '_>,
    spec: &VclusterSpec,
    node: &NodeSpec,
    (home, plan): (&HostName, &Rev<NodePlan>),
    planned: &mut Planned,
) -> bool {
    let cluster = places.cluster;
    let asked = cluster.moving(node.id);
    let wanted = asked.and_then(|m| m.value.wanted.as_ref());
    if wanted == Some(home) {
        forget_moves(cluster, |m| m.node == node.id, planned);
        return false;
    }
    let source = cluster.host(home);
    if !source.is_some_and(|h| h.alive) {
        planned.waiting.insert(node.id, away(home));
        return false;
    }
    if !source.is_some_and(HostState::can_move) {
        planned.waiting.insert(node.id, needs_btrfs(home));
        return false;
    }
    // One at a time leaves a host: they would only make each other slower, and every one of them is down for a moment.
    let busy = cluster
        .moves()
        .filter(|m| m.value.stage.is_under_way())
        .filter_map(|m| m.value.trip.as_ref())
        .any(|trip| trip.from == *home);
    let begun =
        |d: &Decision| matches!(d, Decision::PutMove { doc, .. } if doc.trip.as_ref().is_some_and(|t| t.from == *home));
    if busy || planned.decisions.iter().any(begun) || planned.decisions.len() + 3 > BATCH {
        return false;
    }
    let to = match places.take_elsewhere(node.size, home, wanted) {
        Ok(to) => to,
        Err(reason) => {
            planned.waiting.insert(node.id, reason);
            return false;
        }
    };
    let number = plan.value.generation + 1;
    let mut source = updated(spec, node, &plan.value);
    source.generation = number;
    source.moving = Some(Moving { number, side: Side::Source });
    let target =
        NodePlan { wanted: Wanted::Stopped, moving: Some(Moving { number, side: Side::Target }), ..source.clone() };
    let trip = Trip { number, from: home.clone(), to: to.clone(), bytes: 0, based: false };
    let doc = Move {
        node: node.id,
        vcluster: spec.id,
        wanted: wanted.cloned(),
        actor: asked.and_then(|m| m.value.actor.clone()),
        // A node that does not run needs no first copy.
        stage: if source.wanted == Wanted::Running { Stage::Copying } else { Stage::Copied },
        trip: Some(trip),
        reason: None,
    };
    // Both counters: nobody else takes the room, and nobody else begins to move a node of this host.
    for host in [home, &to] {
        planned.placed_on.insert(host.clone(), cluster.host(host).and_then(|h| h.alloc_revision));
    }
    planned.decisions.push(Decision::PutNode {
        host: home.clone(),
        plan: Box::new(source),
        revision: Some(plan.revision),
    });
    planned.decisions.push(Decision::PutNode { host: to, plan: Box::new(target), revision: None });
    planned.decisions.push(Decision::PutMove { doc: Box::new(doc), revision: asked.map(|m| m.revision) });
    true
}

fn away(home: &HostName) -> Reason {
    Reason::new(
        "host_unreachable",
        format!(
            "The host {home} cannot be reached, so that nothing can be copied from it. It goes on when the host is back."
        ),
    )
}

/// Why disks cannot be copied from or to a host.
#[must_use]
pub fn needs_btrfs(host: &HostName) -> Reason {
    Reason::new(
        "move_needs_btrfs",
        format!(
            "The host {host} keeps disks in a plain directory (STORAGE=directory). Nodes move only between hosts with STORAGE=file or disk."
        ),
    )
}

fn go_on(
    spec: &VclusterSpec,
    node: &NodeSpec,
    moving: &Rev<Move>,
    trip: &Trip,
    halves: &Halves<'_>,
    planned: &mut Planned,
) {
    let (source, target) = (halves.source, halves.target);
    match moving.value.stage {
        Stage::Arrived if planned.decisions.len() + 3 <= BATCH => {
            let generation = source.value.generation.max(target.value.generation) + 1;
            let mut there = updated(spec, node, &target.value);
            there.generation = generation;
            there.moving = None;
            let mut gone = (*source.value).clone();
            gone.wanted = Wanted::Absent;
            gone.generation = generation;
            gone.moving = None;
            put_again(&trip.to, target, there, planned);
            put_again(&trip.from, source, gone, planned);
            planned.decisions.push(Decision::DeleteMove { node: node.id, revision: moving.revision });
        }
        // Stopped by its owner meanwhile: the rest is as for any node that does not run.
        Stage::Copying if spec.wanted == Wanted::Stopped => {
            put_move(moving, Move { stage: Stage::Copied, ..(*moving.value).clone() }, planned);
        }
        Stage::Copying => {
            let mut next = updated(spec, node, &source.value);
            if next != *source.value && planned.decisions.len() < BATCH {
                next.generation += 1;
                put_again(&trip.from, source, next, planned);
            }
        }
        Stage::Copied if source.value.wanted != Wanted::Stopped && planned.decisions.len() < BATCH => {
            let mut held = (*source.value).clone();
            held.wanted = Wanted::Stopped;
            held.generation += 1;
            put_again(&trip.from, source, held, planned);
        }
        _ => {}
    }
}

/// A move that failed: the node is again as its spec says, where it was, and the other half goes.
fn put_back(cluster: &Cluster, spec: &VclusterSpec, node: &NodeSpec, placed: &Placed, planned: &mut Planned) {
    drop_incoming(cluster, placed, planned);
    if let Some((home, plan)) = &placed.plan
        && planned.decisions.len() < BATCH
    {
        let mut back = updated(spec, node, &plan.value);
        back.generation += 1;
        back.moving = None;
        put_again(home, plan, back, planned);
    }
}

/// Takes halves away that nothing is to arrive at any more; whether there was one.
pub(crate) fn drop_incoming(cluster: &Cluster, placed: &Placed, planned: &mut Planned) -> bool {
    let mut any = false;
    for (host, half) in &placed.halves {
        if let Some(plan) = half.plan.as_ref().filter(|p| p.value.is_incoming()) {
            any = true;
            retire_half(cluster, host, plan, planned);
        }
    }
    any
}

/// Takes every place of a node away but the one that it is at. No move leaves two; a store that was written to by other
/// means than the planner's may have them, and each would run.
fn drop_twins(cluster: &Cluster, placed: &Placed, home: &HostName, planned: &mut Planned) {
    let before = planned.decisions.len();
    for (host, half) in &placed.halves {
        if let Some(plan) = half.plan.as_ref().filter(|p| host != home && !p.value.is_incoming()) {
            retire_half(cluster, host, plan, planned);
        }
    }
    // Of two planners that see one place each as the node's, one is refused: else both would go.
    planned.chosen |= planned.decisions.len() > before;
}
