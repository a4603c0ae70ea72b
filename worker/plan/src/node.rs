//! One node: what to do next, what to remember, what to report.

use docklet_types::plan::{NodePlan, Side, VclusterPlan};
use docklet_types::report::{NodeState, Reason, Step};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_host::ObservedNode;

use crate::Refused;
use crate::trouble::{STEADY_S, Trouble};

/// One thing to do for a node. The order in which they come is the order in which they must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeAction {
    /// Unpack the image.
    Image,
    /// Make the disk.
    Disk,
    /// The vcluster's bridge, then the node's port.
    Network,
    /// Start init.
    Boot,
    /// Wait until init says that it is up.
    Ready,
    /// End init.
    Stop,
    /// Make ready to send the disk to another host, or to take it from one.
    BeginMove,
    /// Remove the copies of a move that is over.
    EndMove,
    /// Let its processes stand still.
    Freeze,
    /// Let them run on, within the plan's size.
    Thaw,
    /// Take away port, disk and every file.
    Remove,
}

impl NodeAction {
    /// In the words of reports.
    #[must_use]
    pub const fn step(self) -> Step {
        match self {
            Self::Image => Step::Image,
            Self::Disk => Step::Disk,
            Self::Network => Step::Network,
            Self::Boot => Step::Boot,
            Self::Ready => Step::Ready,
            Self::Stop => Step::Stop,
            Self::BeginMove | Self::EndMove => Step::Move,
            Self::Freeze => Step::Freeze,
            Self::Thaw => Step::Thaw,
            Self::Remove => Step::Remove,
        }
    }
}

/// What is to be done for one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeTodo {
    Nothing,
    Do(Vec<NodeAction>),
    /// After a failure: not before then.
    Later(Micros),
    /// The plan of its vcluster has not come yet, or says that the vcluster is to go.
    NeedsVcluster,
}

/// A node of which nothing is on the host.
pub const NOTHING: ObservedNode = ObservedNode {
    disk: false,
    port: false,
    init_pid: None,
    ready: false,
    frozen: false,
    unsettled: false,
    moving: None,
};

/// Whether something of the node runs, or may come to run by itself.
const fn is_alive(observed: &ObservedNode) -> bool {
    observed.init_pid.is_some() || observed.unsettled
}

/// Whether what is on the host is only what a removal has missed: processes whose disk is gone. Nobody can want them, so
/// that they go without a plan; a node that has its disk never does.
#[must_use]
pub const fn is_remains(observed: &ObservedNode) -> bool {
    is_alive(observed) && !observed.disk && observed.moving.is_none()
}

/// The newest plan that was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub generation: u64,
    pub attempt: u32,
}

/// What the worker remembers of a node. `seen` and `replacing` outlive the worker; the rest begins anew with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeHistory {
    pub seen: Option<Seen>,
    /// The init that an attempt asks to end. Another process id means that this has been done.
    pub replacing: Option<i32>,
    pub trouble: Option<Trouble>,
    /// Everything was taken away once since the plan said `Absent`, so that traces which observing does not show are gone too.
    pub cleaned: bool,
    /// When it was last seen to become ready.
    pub up_since: Option<Micros>,
}

impl NodeHistory {
    /// Takes a plan as the one to follow. A running node that was never seen before is adopted as it is.
    ///
    /// # Errors
    /// Where the plan is older than one already taken; the history is as before.
    pub fn accept(&mut self, plan: &NodePlan, observed: &ObservedNode) -> Result<(), Refused> {
        if let Some(seen) = self.seen {
            if plan.generation < seen.generation {
                return Err(Refused { offered: plan.generation, held: seen.generation });
            }
            if plan.attempt > seen.attempt {
                self.replacing = observed.init_pid;
            }
            if plan.attempt > seen.attempt || plan.generation > seen.generation {
                self.trouble = None;
            }
        }
        if plan.wanted != Wanted::Absent {
            self.cleaned = false;
        }
        let attempt = self.seen.map_or(plan.attempt, |s| s.attempt.max(plan.attempt));
        self.seen = Some(Seen { generation: plan.generation, attempt });
        Ok(())
    }

    /// An action failed. `observed` is what the host holds after it.
    pub fn failed(&mut self, wanted: Wanted, action: NodeAction, reason: Reason, observed: &ObservedNode, now: Micros) {
        let earlier = self.failures_in_a_row(now);
        self.trouble = Some(match wanted {
            // An init that is there but does not become ready would not become so by a second start; it may yet.
            Wanted::Running => {
                let hopeless = action == NodeAction::Ready && observed.init_pid.is_some();
                Trouble::starting(earlier, action.step(), reason, hopeless, now)
            }
            Wanted::Stopped | Wanted::Absent => Trouble::lasting(earlier, action.step(), reason, now),
        });
        self.up_since = None;
    }

    /// Its init ended though nobody asked it to.
    pub fn ended(&mut self, reason: Reason, now: Micros) {
        let earlier = self.failures_in_a_row(now);
        self.trouble = Some(Trouble::starting(earlier, Step::Boot, reason, false, now));
        self.up_since = None;
    }

    /// It was seen ready. The failures so far count on until it has been up for a while: that is how a crash loop shows.
    pub fn became_ready(&mut self, now: Micros) {
        self.up_since.get_or_insert(now);
        self.replacing = None;
    }

    fn failures_in_a_row(&self, now: Micros) -> u32 {
        let steady = self.up_since.is_some_and(|since| since.plus_seconds(STEADY_S) <= now);
        if steady { 0 } else { self.trouble.as_ref().map_or(0, |t| t.count) }
    }

    /// Whether its init must end before the node counts as started.
    fn must_restart(&self, observed: &ObservedNode) -> bool {
        self.replacing.is_some() && self.replacing == observed.init_pid
    }
}

/// Whether nothing of the node is left, as its plan asks.
#[must_use]
pub fn is_gone(plan: &NodePlan, observed: &ObservedNode, cleaned: bool) -> bool {
    plan.wanted == Wanted::Absent && *observed == NOTHING && cleaned
}

/// What to do next for a node.
#[must_use]
pub fn diff(
    plan: &NodePlan,
    vcluster: Option<&VclusterPlan>,
    observed: &ObservedNode,
    history: &NodeHistory,
    now: Micros,
) -> NodeTodo {
    let actions = match plan.wanted {
        Wanted::Absent => absent(plan, observed, history),
        Wanted::Stopped => [stopped(observed), moved(plan, observed)].concat(),
        Wanted::Running => {
            let actions = running(plan, observed, history);
            let vcluster_stays = vcluster.is_some_and(|v| v.wanted != Wanted::Absent);
            if !vcluster_stays && !actions.iter().all(|a| needs_no_vcluster(*a)) {
                return NodeTodo::NeedsVcluster;
            }
            // Last: nobody who waits for the node waits for this.
            [actions, moved(plan, observed)].concat()
        }
    };
    if actions.is_empty() {
        return NodeTodo::Nothing;
    }
    match &history.trouble {
        Some(trouble) if trouble.retry_at > now => NodeTodo::Later(trouble.retry_at),
        _ => NodeTodo::Do(actions),
    }
}

fn absent(plan: &NodePlan, observed: &ObservedNode, history: &NodeHistory) -> Vec<NodeAction> {
    if is_gone(plan, observed, history.cleaned) {
        Vec::new()
    } else if is_alive(observed) {
        vec![NodeAction::Stop, NodeAction::Remove]
    } else {
        vec![NodeAction::Remove]
    }
}

fn stopped(observed: &ObservedNode) -> Vec<NodeAction> {
    // A node that never ran gets its disk when it is first started.
    if is_alive(observed) { vec![NodeAction::Stop] } else { Vec::new() }
}

fn moved(plan: &NodePlan, observed: &ObservedNode) -> Vec<NodeAction> {
    match plan.moving {
        Some(moving) if observed.moving == Some(moving.number) => Vec::new(),
        // Whoever sends the disk waits for the first; the image is there when the disk has come.
        Some(moving) if moving.side == Side::Target => vec![NodeAction::BeginMove, NodeAction::Image],
        Some(_) => vec![NodeAction::BeginMove],
        None if observed.moving.is_some() => vec![NodeAction::EndMove],
        None => Vec::new(),
    }
}

const fn needs_no_vcluster(action: NodeAction) -> bool {
    matches!(action, NodeAction::Ready | NodeAction::Freeze | NodeAction::Thaw)
}

fn running(plan: &NodePlan, observed: &ObservedNode, history: &NodeHistory) -> Vec<NodeAction> {
    // Image, disk and port are ensured before every start: a reboot empties the packet filter, and a start that was cut
    // short may have left a disk half made. Where all is there already this costs next to nothing.
    const UP: [NodeAction; 5] =
        [NodeAction::Image, NodeAction::Disk, NodeAction::Network, NodeAction::Boot, NodeAction::Ready];
    let mut actions = Vec::with_capacity(UP.len() + 2);
    let runs_on = observed.init_pid.is_some() && !history.must_restart(observed);
    if runs_on {
        // What stands still never becomes ready.
        if observed.frozen && (!plan.frozen || !observed.ready) {
            actions.push(NodeAction::Thaw);
        }
        if !observed.port {
            actions.push(NodeAction::Network);
        }
        if !observed.ready {
            actions.push(NodeAction::Ready);
        }
    } else {
        if observed.init_pid.is_some() {
            actions.push(NodeAction::Stop);
        }
        actions.extend(UP);
    }
    if plan.frozen && !(runs_on && observed.frozen && observed.ready) {
        actions.push(NodeAction::Freeze);
    }
    actions
}

/// The state to report, and why it is not as wanted. `busy`: actions are under way.
#[must_use]
pub fn state(
    plan: &NodePlan,
    observed: &ObservedNode,
    history: &NodeHistory,
    busy: bool,
) -> (NodeState, Option<Reason>) {
    let reason = history.trouble.as_ref().map(|t| t.reason.clone());
    let given_up = history.trouble.as_ref().is_some_and(|t| t.given_up);
    match plan.wanted {
        Wanted::Absent if is_gone(plan, observed, history.cleaned) && !busy => (NodeState::Absent, None),
        Wanted::Stopped if !is_alive(observed) && !busy => (NodeState::Stopped, None),
        Wanted::Absent | Wanted::Stopped if given_up => (NodeState::Failed, reason),
        Wanted::Absent | Wanted::Stopped => (NodeState::Stopping, reason),
        Wanted::Running
            if observed.init_pid.is_some()
                && observed.ready
                && observed.frozen == plan.frozen
                && !history.must_restart(observed) =>
        {
            (if plan.frozen { NodeState::Frozen } else { NodeState::Ready }, None)
        }
        Wanted::Running if given_up => (NodeState::Failed, reason),
        Wanted::Running => (NodeState::Starting, reason),
    }
}
