//! The task that owns all state of the loop, and what it does for nodes. For vclusters see [`super::share`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use docklet_store::Store;
use docklet_store::keys::{Key, Keys};
use docklet_store::mirror::Mirror;
use docklet_types::host::{Capacity, Check};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::plan::NodePlan;
use docklet_types::report::{NodeReport, NodeState, Reason, Step};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_plan::node::{NOTHING, Seen};
use docklet_worker_plan::{NodeAction, NodeTodo, Trouble, VclusterHistory, node};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::entry::{InFlight, InitWatch, Node, Vcluster};
use super::task::{self, Context, NodeOutcome, NodeResult, NodeTask};
use super::{Event, Settings};
use crate::clock::Steady;
use crate::ledger::Ledger;
use crate::plans::Plans;
use crate::report::Reporter;

/// What a timer wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    Node(NodeId),
    Vcluster(VclusterId),
}

pub(super) struct Loop {
    pub settings: Settings,
    pub context: Arc<Context>,
    pub store: Arc<dyn Store>,
    pub keys: Keys,
    pub plans: Arc<Mirror<Plans>>,
    pub reporter: Reporter,
    pub clock: Steady,
    pub nodes: HashMap<NodeId, Node>,
    pub vclusters: HashMap<VclusterId, Vcluster>,
    /// Nodes with a plan, by vcluster.
    pub members: HashMap<VclusterId, HashSet<NodeId>>,
    pub dirty_nodes: HashSet<NodeId>,
    pub dirty_vclusters: HashSet<VclusterId>,
    pub timers: BTreeSet<(Micros, Object)>,
    /// Tasks end with the loop.
    pub tasks: JoinSet<()>,
    /// Counts what happens to objects, so that one knows what an observation can have seen.
    pub count: u64,
    pub looking: bool,
    pub look_again: bool,
    pub checking: bool,
    pub looking_at_limits: bool,
    pub checks: Vec<Check>,
    pub capacity: Option<Capacity>,
    pub address: Option<Ipv4Addr>,
    /// Why no node can be started here.
    pub unfit: Option<Reason>,
    pub started_at: Micros,
    /// From here on the local copy of the plans is followed where the store does not answer.
    pub contact_by: tokio::time::Instant,
    /// Counts changes of what the ledger holds.
    pub ledger_version: u64,
    pub ledger_saving: bool,
    /// Somebody waits for a change that must be on disk first.
    pub ledger_hurry: bool,
    /// Ends the rest after the last save.
    pub ledger_wake: Arc<Notify>,
    pub ledger_saved: watch::Sender<u64>,
    pub stopping: bool,
    /// The loss that is being answered, and whether the host was looked at since.
    pub seen_loss: Option<(u64, bool)>,
    /// What is being removed because of it, or as remains.
    pub clearing: BTreeSet<Object>,
    /// The loss that was answered.
    pub cleared: Option<u64>,
}

impl Loop {
    #[expect(clippy::too_many_arguments, reason = "called once, by the one who makes all of these")]
    pub(super) fn new(
        settings: Settings,
        context: Arc<Context>,
        store: Arc<dyn Store>,
        keys: Keys,
        plans: Arc<Mirror<Plans>>,
        reporter: Reporter,
        ledger: Ledger,
        clock: Steady,
    ) -> Self {
        let mut nodes = HashMap::new();
        for record in ledger.nodes {
            let mut node = Node::default();
            node.history.seen = Some(Seen { generation: record.plan.generation, attempt: record.attempt });
            node.history.replacing = record.replacing;
            nodes.insert(record.plan.id, node);
        }
        let mut vclusters = HashMap::new();
        for plan in ledger.vclusters {
            let vcluster = Vcluster { history: VclusterHistory::of(&plan), ..Vcluster::default() };
            vclusters.insert(plan.id, vcluster);
        }
        let contact_by = tokio::time::Instant::now() + settings.timing.first_contact;
        Self {
            settings,
            context,
            store,
            keys,
            plans,
            reporter,
            clock,
            nodes,
            vclusters,
            members: HashMap::new(),
            dirty_nodes: HashSet::new(),
            dirty_vclusters: HashSet::new(),
            timers: BTreeSet::new(),
            tasks: JoinSet::new(),
            count: 0,
            looking: false,
            look_again: false,
            checking: false,
            looking_at_limits: false,
            checks: Vec::new(),
            capacity: None,
            address: None,
            unfit: None,
            started_at: Micros::now(),
            contact_by,
            ledger_version: 0,
            ledger_saving: false,
            ledger_hurry: false,
            ledger_wake: Arc::default(),
            ledger_saved: watch::Sender::new(0),
            stopping: false,
            seen_loss: None,
            clearing: BTreeSet::new(),
            cleared: None,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Event>, started: watch::Sender<bool>) {
        self.begin().await;
        started.send_replace(true);
        self.prefetch();
        self.watch_host();
        self.watch_limits();
        let mut plans_changed = self.plans.subscribe();
        let mut look = tokio::time::interval(self.settings.timing.look_every);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        look.reset();
        let mut done = None;
        loop {
            self.read_plans();
            self.wake_due();
            self.clear_lost();
            self.look_at_dirty();
            if self.stopping && done.is_some() {
                break;
            }
            let next = self.timers.first().map(|(at, _)| self.clock.instant(*at));
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = inbox.recv() => {
                    let mut event = Some(event);
                    // All that has come is taken in before anything is compared.
                    while let Some(e) = event.take() {
                        if let Event::Stop(reply) = e {
                            self.stopping = true;
                            done = Some(reply);
                        } else {
                            self.take_in(e);
                        }
                        event = inbox.try_recv().ok();
                    }
                }
                Ok(()) = plans_changed.changed() => {}
                () = timer => {}
                _ = look.tick() => self.look_at_everything(),
                Some(_) = self.tasks.join_next(), if !self.tasks.is_empty() => {}
            }
        }
        self.finish(&mut inbox).await;
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    pub(super) fn take_in(&mut self, event: Event) {
        match event {
            Event::StepBegan(id, step, at) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.step_began(step, at);
                    self.dirty_nodes.insert(id);
                }
            }
            Event::StepEnded(id, step, at) => {
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.step_ended(step, at);
                    self.dirty_nodes.insert(id);
                }
            }
            Event::NodeDone(id, outcome) => self.node_done(id, outcome),
            Event::VclusterDone(id, outcome) => self.vcluster_done(id, outcome),
            Event::InitEnded { id, pid, log } => self.init_ended(id, pid, log),
            Event::Looked { began, seen } => self.looked(began, seen),
            Event::Checked(checks, capacity) => self.checked(checks, capacity),
            Event::Watched(checks) => self.watched(checks),
            Event::LimitsDue => self.look_at_limits(),
            Event::LimitsHit(inits, hits) => self.limits_hit(&inits, &hits),
            Event::Saved(version) => {
                self.ledger_saving = false;
                self.ledger_saved.send_replace(version);
                self.save_ledger();
            }
            Event::NodeCleared(id, gone) => self.node_cleared(id, gone),
            Event::VclusterCleared(id, gone) => self.vcluster_cleared(id, gone),
            Event::Stop(_) => {}
        }
    }

    /// Takes over the plans that changed.
    pub(super) fn read_plans(&mut self) {
        let changes = self.plans.write(Plans::take_changes);
        if changes.nodes.is_empty() && changes.vclusters.is_empty() {
            return;
        }
        for id in changes.vclusters {
            self.vcluster_plan_changed(id);
        }
        for id in changes.nodes {
            self.node_plan_changed(id);
        }
        self.ledger_changed();
    }

    fn node_plan_changed(&mut self, id: NodeId) {
        let Some(plan) = self.plans.read(|p| p.node(id)) else {
            self.node_plan_gone(id);
            return;
        };
        let node = self.nodes.entry(id).or_default();
        if let Err(refused) = node.history.accept(&plan, &node.observed) {
            tracing::warn!(node = %id, %refused, "a plan was refused");
            return;
        }
        self.members.entry(plan.vcluster).or_default().insert(id);
        self.dirty_vclusters.insert(plan.vcluster);
        // A restart that somebody waits for is put on disk at once.
        self.ledger_hurry |= node.history.replacing.is_some() && node.history.replacing == node.observed.init_pid;
        node.plan = Some(plan);
        node.interrupt_if_outdated();
        self.dirty_nodes.insert(id);
    }

    fn node_plan_gone(&mut self, id: NodeId) {
        self.reporter.delete(self.keys.write(&Key::NodeReport(self.settings.host.clone(), id)));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some(plan) = node.plan.take() {
            if let Some(members) = self.members.get_mut(&plan.vcluster) {
                members.remove(&id);
                if members.is_empty() {
                    self.members.remove(&plan.vcluster);
                }
            }
            self.dirty_vclusters.insert(plan.vcluster);
        }
        node.watch = None;
        node.reported = None;
        node.interrupt_if_outdated();
        if node.task.is_some() {
            return;
        }
        if node.observed == NOTHING {
            self.nodes.remove(&id);
        } else {
            tracing::warn!(node = %id, "the plan of a node is gone, but not the node; it is left alone");
        }
    }

    fn wake_due(&mut self) {
        let now = self.clock.now();
        while let Some((at, object)) = self.timers.first().copied() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            match object {
                Object::Node(id) => self.dirty_nodes.insert(id),
                Object::Vcluster(id) => self.dirty_vclusters.insert(id),
            };
        }
    }

    pub(super) fn look_at_dirty(&mut self) {
        // Nodes first: a vcluster goes after its nodes. Vclusters may make nodes dirty, hence the outer loop.
        while !self.dirty_nodes.is_empty() || !self.dirty_vclusters.is_empty() {
            for id in std::mem::take(&mut self.dirty_nodes) {
                self.look_at_node(id);
            }
            for id in std::mem::take(&mut self.dirty_vclusters) {
                self.look_at_vcluster(id);
            }
        }
    }

    fn look_at_node(&mut self, id: NodeId) {
        let now = self.clock.now();
        let lost = self.loss().is_some();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(plan) = node.plan.clone() else { return };
        let idle = node.task.is_none() && !self.clearing.contains(&Object::Node(id));
        if idle && !self.stopping && (!lost || plan.wanted == Wanted::Absent) {
            if node.stale {
                self.look();
            } else {
                let vcluster = self.vclusters.get(&plan.vcluster).and_then(|v| v.plan.as_deref());
                match node::diff(&plan, vcluster, &node.observed, &node.history, now) {
                    NodeTodo::Nothing => {
                        if plan.wanted == Wanted::Running && node.observed.ready && node.history.up_since.is_none() {
                            node.history.became_ready(now);
                        }
                    }
                    NodeTodo::NeedsVcluster => {}
                    NodeTodo::Later(at) => {
                        self.timers.insert((at, Object::Node(id)));
                    }
                    NodeTodo::Do(actions) => match &self.unfit {
                        Some(reason) if actions.contains(&NodeAction::Boot) => {
                            let trouble = Trouble::starting(0, Step::Boot, reason.clone(), true, now);
                            self.timers.insert((trouble.retry_at, Object::Node(id)));
                            node.history.trouble = Some(trouble);
                        }
                        _ => self.act_on_node(id, plan, actions),
                    },
                }
            }
        }
        self.watch_node(id);
        self.report_node(id);
    }

    fn act_on_node(&mut self, id: NodeId, plan: Arc<NodePlan>, actions: Vec<NodeAction>) {
        let vcluster = self.vclusters.get(&plan.vcluster).and_then(|v| Some((v.plan.clone()?, v.gate.clone())));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.count += 1;
        node.touched = self.count;
        node.ended = None;
        if actions
            .iter()
            .any(|a| matches!(a, NodeAction::Boot | NodeAction::Thaw | NodeAction::Stop | NodeAction::Remove))
        {
            node.steps.clear();
            node.limits_hit.clear();
        }
        tracing::debug!(node = %id, name = %plan.name, ?actions, "acting");
        let cancel = CancellationToken::new();
        let attempt = node.history.seen.map_or(plan.attempt, |s| s.attempt);
        node.task = Some(InFlight { cancel: cancel.clone(), wanted: plan.wanted, attempt, frozen: plan.frozen });
        let restarts = node.history.replacing.is_some() && actions.first() == Some(&NodeAction::Stop);
        let saved = restarts.then(|| (self.ledger_saved.subscribe(), self.ledger_version));
        let task = NodeTask { plan, vcluster, actions, observed: node.observed.clone(), cancel, saved };
        self.tasks.spawn(task::run_node(self.context.clone(), task));
    }

    fn node_done(&mut self, id: NodeId, outcome: NodeOutcome) {
        let now = self.clock.now();
        self.count += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let task = node.task.take();
        node.touched = self.count;
        node.observed = outcome.observed;
        let plan = node.plan.clone();
        let replacing = node.history.replacing;
        match outcome.result {
            NodeResult::Interrupted => {}
            NodeResult::Done => {
                if outcome.did.contains(&NodeAction::Ready) {
                    node.history.became_ready(now);
                }
                node.history.cleaned |= outcome.did.contains(&NodeAction::Remove);
                if plan.as_ref().is_some_and(|p| p.wanted != Wanted::Running) {
                    node.history.trouble = None;
                }
            }
            NodeResult::Failed { action, reason } => {
                node.stale = true;
                let same_wish = plan.as_ref().zip(task).is_some_and(|(p, t)| p.wanted == t.wanted);
                if let (true, Some(plan)) = (same_wish, &plan) {
                    tracing::warn!(node = %id, name = %plan.name, owner = %plan.owner, step = %action.step(), code = reason.code, reason = reason.message, "a step failed");
                    node.history.failed(plan.wanted, action, reason, &node.observed, now);
                }
            }
        }
        let restarted = node.history.replacing != replacing;
        if node.ended.take().is_some_and(|pid| node.observed.init_pid == Some(pid)) {
            self.init_is_gone(id, None);
        }
        if restarted {
            // Nothing else that a task changes is in the local copy.
            self.ledger_changed();
        }
        if let Some(plan) = &plan {
            self.dirty_vclusters.insert(plan.vcluster);
        } else if self.nodes.get(&id).is_some_and(|n| n.observed == NOTHING) {
            self.nodes.remove(&id);
        }
        self.dirty_nodes.insert(id);
    }

    fn init_ended(&mut self, id: NodeId, pid: i32, log: Option<String>) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.watch.as_ref().is_some_and(|w| w.pid == pid) {
            node.watch = None;
        }
        if node.task.is_some() {
            node.ended = Some(pid);
        } else if node.observed.init_pid == Some(pid) {
            self.init_is_gone(id, log);
        }
    }

    pub(super) fn init_is_gone(&mut self, id: NodeId, log: Option<String>) {
        let now = self.clock.now();
        self.count += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.observed.init_pid = None;
        node.observed.ready = false;
        node.observed.frozen = false;
        node.stale = true;
        node.touched = self.count;
        if let Some(plan) = node.plan.as_ref().filter(|p| p.wanted == Wanted::Running) {
            tracing::warn!(node = %id, name = %plan.name, owner = %plan.owner, "the node's init ended by itself");
            let mut reason = Reason::new(
                "init_ended",
                "The node's init ended by itself (a shutdown inside the node, or a crash). It is started again.",
            );
            reason.log = log;
            node.history.ended(reason, now);
        }
        self.dirty_nodes.insert(id);
    }

    /// Has somebody wait for the end of the init that runs now.
    fn watch_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        match node.observed.init_pid {
            Some(pid) if node.watch.as_ref().is_none_or(|w| w.pid != pid) && node.task.is_none() => {
                let task = self.tasks.spawn(task::watch_init(self.context.clone(), id, pid));
                node.watch = Some(InitWatch { pid, task });
            }
            None => node.watch = None,
            Some(_) => {}
        }
    }

    fn report_node(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let (Some(plan), Some(seen)) = (&node.plan, node.history.seen) else { return };
        let (state, reason) = node::state(plan, &node.observed, &node.history, node.task.is_some());
        let mut report = NodeReport {
            id,
            vcluster: plan.vcluster,
            generation: seen.generation,
            attempt: seen.attempt,
            state,
            reason,
            init_pid: node.observed.init_pid,
            steps: node.steps.clone(),
            limits_hit: node.limits_hit.clone(),
            at: Micros::now(),
        };
        let before = node.reported.as_ref();
        if let Some(before) = before {
            let at = std::mem::replace(&mut report.at, before.at);
            if *before == report {
                return;
            }
            report.at = at;
        }
        if before.is_some_and(|b| b.state != state) && !matches!(state, NodeState::Starting | NodeState::Stopping) {
            let millis = report.steps.first().map(|s| report.at.millis_since(s.started_at));
            tracing::info!(node = %id, name = %plan.name, owner = %plan.owner, ?state, millis, "a node changed");
        }
        let urgent = before.is_none_or(|b| b.state != report.state)
            && !matches!(state, NodeState::Starting | NodeState::Stopping);
        if let Ok(document) = serde_json::to_vec(&report) {
            self.reporter.put(self.keys.write(&Key::NodeReport(self.settings.host.clone(), id)), document, urgent);
        }
        node.reported = Some(report);
    }
}
