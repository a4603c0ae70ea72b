//! Carrying out the actions of one node, one after the other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use docklet_daemon::fail;
use docklet_types::id::NodeId;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::Forward;
use docklet_types::report::{Reason, Step};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_host::{Host, HostError, ObservedNode};
use docklet_worker_plan::node::NOTHING;
use docklet_worker_plan::{NodeAction, VclusterTodo};
use futures::FutureExt;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Event, Timing};

/// Scripts in a node that are run before it is stopped for a move, and when it is up again.
const BEFORE_MOVE: &str = "/etc/docklet/hooks/before-move";
const AFTER_MOVE: &str = "/etc/docklet/hooks/after-move";
/// A hook may take this long.
const HOOK: Duration = Duration::from_secs(30);

/// What every task of the loop uses.
pub(super) struct Context {
    pub host: Arc<dyn Host>,
    pub timing: Timing,
    /// How much is done to the host at once.
    pub work: Semaphore,
    /// How many inits boot at once; more would only make each slower.
    pub boots: Arc<Semaphore>,
    pub events: mpsc::UnboundedSender<Event>,
}

impl Context {
    pub(super) fn tell(&self, event: Event) {
        // The loop ends before its tasks only when the worker ends.
        let _ = self.events.send(event);
    }
}

/// Makes sure that a vcluster is set up once, whoever needs it first: a node's task or the vcluster's own. Holds the
/// generation that was applied, with the published ports that the host refused.
pub(super) type Gate = Arc<Mutex<Option<(u64, Vec<Forward>)>>>;

/// Actions for one node under one plan.
pub(super) struct NodeTask {
    pub plan: Arc<NodePlan>,
    pub vcluster: Option<(Arc<VclusterPlan>, Gate)>,
    pub actions: Vec<NodeAction>,
    pub observed: ObservedNode,
    pub cancel: CancellationToken,
    /// Reaches the number when what must outlive the worker is on disk.
    pub saved: Option<(watch::Receiver<u64>, u64)>,
}

#[derive(Debug)]
pub(super) enum NodeResult {
    Done,
    /// The plan changed; look again.
    Interrupted,
    Failed {
        action: NodeAction,
        reason: Reason,
    },
}

/// What became of the actions, and what the host holds of the node now as far as they can tell.
#[derive(Debug)]
pub(super) struct NodeOutcome {
    pub observed: ObservedNode,
    pub did: Vec<NodeAction>,
    pub result: NodeResult,
}

enum Interruption {
    Plan,
    Host(HostError),
}

impl From<HostError> for Interruption {
    fn from(error: HostError) -> Self {
        Self::Host(error)
    }
}

pub(super) async fn run_node(context: Arc<Context>, task: NodeTask) {
    let id = task.plan.id;
    let mut outcome = NodeOutcome { observed: task.observed.clone(), did: Vec::new(), result: NodeResult::Done };
    if let Some((mut saved, version)) = task.saved.clone() {
        // A full disk must not keep anybody from restarting a node.
        let _ = tokio::time::timeout(Duration::from_secs(2), saved.wait_for(|v| *v >= version)).await;
    }
    let mut boot_permit = None;
    for action in &task.actions {
        let acted = AssertUnwindSafe(act(&context, &task, *action, &mut outcome.observed, &mut boot_permit))
            .catch_unwind()
            .await;
        outcome.result = match acted {
            Ok(Ok(())) => {
                outcome.did.push(*action);
                continue;
            }
            Ok(Err(Interruption::Plan)) => NodeResult::Interrupted,
            Ok(Err(Interruption::Host(HostError(reason)))) => NodeResult::Failed { action: *action, reason },
            Err(_) => NodeResult::Failed {
                action: *action,
                reason: Reason::new("internal", "The worker ran into an error of its own; see its log."),
            },
        };
        break;
    }
    context.tell(Event::NodeDone(id, outcome));
}

async fn act(
    context: &Context,
    task: &NodeTask,
    action: NodeAction,
    observed: &mut ObservedNode,
    boot_permit: &mut Option<OwnedSemaphorePermit>,
) -> Result<(), Interruption> {
    let cancelled = || async {
        task.cancel.cancelled().await;
        Interruption::Plan
    };
    if task.cancel.is_cancelled() {
        return Err(Interruption::Plan);
    }
    if action == NodeAction::Boot {
        let permit = tokio::select! {
            permit = context.boots.clone().acquire_owned() => permit.ok(),
            stopped = cancelled() => return Err(stopped),
        };
        *boot_permit = permit;
    }
    // Waiting for init is no work of ours.
    let _work = if action == NodeAction::Ready {
        None
    } else {
        tokio::select! {
            permit = context.work.acquire() => permit.ok(),
            stopped = cancelled() => return Err(stopped),
        }
    };
    let (id, host, plan) = (task.plan.id, &context.host, &task.plan);
    let step = StepClock::start(context, id, action.step());
    let point = fail_point(action);
    fail::before(&point);
    match action {
        NodeAction::Image => {
            // On its own, so that a deletion need not wait for the unpacking and other nodes still get it.
            let (host, image) = (host.clone(), plan.image.clone());
            let unpacking = tokio::spawn(async move { host.ensure_image(&image).await });
            tokio::select! {
                unpacked = unpacking => unpacked.unwrap_or_else(|e| Err(HostError(Reason::new("internal", format!("Unpacking the image broke off: {e}.")))))?,
                stopped = cancelled() => return Err(stopped),
            }
        }
        NodeAction::Disk => {
            if let Some((vcluster, _)) = &task.vcluster {
                observed.disk = true;
                host.ensure_disk(plan, vcluster).await?;
            }
        }
        NodeAction::Network => {
            if let Some((vcluster, gate)) = &task.vcluster {
                ensure_vcluster(host.as_ref(), vcluster, gate).await?;
                observed.port = true;
                host.ensure_port(plan).await?;
            }
        }
        NodeAction::Boot => {
            if let Some((vcluster, _)) = &task.vcluster {
                observed.init_pid = Some(host.start(plan, vcluster).await?);
                observed.ready = false;
                observed.frozen = false;
                observed.unsettled = false;
            }
        }
        NodeAction::Ready => {
            tokio::select! {
                ready = wait_ready(context, id, boot_permit) => {
                    if let Err((error, init_lives)) = ready {
                        if !init_lives {
                            observed.init_pid = None;
                        }
                        return Err(error.into());
                    }
                }
                stopped = cancelled() => return Err(stopped),
            }
            observed.ready = true;
        }
        NodeAction::BeginMove => {
            if let Some(moving) = plan.moving {
                observed.moving = Some(moving.number);
                host.begin_move(plan, moving.number).await?;
            }
        }
        NodeAction::EndMove => {
            // It was stopped to be moved and is up again, here or at its old place.
            if task.actions.contains(&NodeAction::Boot) {
                run_hook(context, plan, AFTER_MOVE).await;
            }
            host.end_move(id).await?;
            observed.moving = None;
        }
        NodeAction::Freeze => {
            host.freeze(id).await?;
            observed.frozen = true;
        }
        NodeAction::Thaw => {
            host.thaw(plan).await?;
            observed.frozen = false;
        }
        NodeAction::Stop => {
            if plan.moving.is_some() {
                run_hook(context, plan, BEFORE_MOVE).await;
            }
            let grace = if plan.wanted == Wanted::Absent { Duration::ZERO } else { context.timing.stop_grace };
            host.stop(id, grace).await?;
            observed.init_pid = None;
            observed.ready = false;
            observed.frozen = false;
            observed.unsettled = false;
        }
        NodeAction::Remove => {
            // Both, whatever becomes of the first: what can go should go.
            let port = host.remove_port(id).await;
            let disk = host.remove_disk(id).await;
            port.and(disk)?;
            *observed = NOTHING;
        }
    }
    fail::after(&point);
    drop(step);
    Ok(())
}

/// What the action is called where the worker is made to end at it.
fn fail_point(action: NodeAction) -> String {
    match action {
        // Two ends of one step.
        NodeAction::BeginMove => "begin-move".to_owned(),
        NodeAction::EndMove => "end-move".to_owned(),
        _ => action.step().to_string(),
    }
}

/// Runs a script that the node's owner may have put there. What becomes of it changes nothing.
async fn run_hook(context: &Context, plan: &NodePlan, script: &str) {
    // What exec says where there is no such program, or no right to run it.
    const NOT_THERE: [i32; 2] = [126, 127];
    let (node, name) = (plan.id, &plan.name);
    match context.host.exec(plan.id, &[script.to_owned()], "", HOOK).await {
        Ok(Some(output)) if NOT_THERE.contains(&output.exit_code) => {}
        Ok(Some(output)) if output.exit_code == 0 => tracing::info!(%node, %name, script, "a hook ran"),
        Ok(Some(output)) => {
            let said = output.stderr.lines().last().unwrap_or_default();
            tracing::warn!(%node, %name, script, exit_code = output.exit_code, said, "a hook failed; the node moves even so");
        }
        Ok(None) => {
            tracing::warn!(%node, %name, script, seconds = HOOK.as_secs(), "a hook did not end in time and was killed")
        }
        Err(HostError(reason)) => {
            tracing::warn!(%node, %name, script, code = reason.code, reason = reason.message, "a hook could not be run");
        }
    }
}

/// Waits for init to be up. An error comes with whether init is still there.
async fn wait_ready(
    context: &Context,
    id: NodeId,
    boot_permit: &mut Option<OwnedSemaphorePermit>,
) -> Result<(), (HostError, bool)> {
    let host = &context.host;
    let ready = host.wait_ready(id, context.timing.ready_deadline);
    tokio::pin!(ready);
    let ended = host.wait_end(id);
    tokio::pin!(ended);
    // A node that takes its time must not keep others from booting.
    let patience = tokio::time::sleep(context.timing.boot_patience);
    tokio::pin!(patience);
    let mut waited = false;
    loop {
        tokio::select! {
            biased;
            outcome = &mut ready => {
                let Err(error) = outcome else { return Ok(()) };
                let gone = tokio::time::timeout(Duration::from_millis(100), &mut ended).await.is_ok();
                return Err((error, !gone));
            }
            () = &mut ended => {
                // The host may have the better story of why.
                if let Ok(Err(error)) = tokio::time::timeout(Duration::from_millis(500), &mut ready).await {
                    return Err((error, false));
                }
                let mut reason = Reason::new("init_ended", "The node's init ended while it booted.");
                if let Ok(log) = host.logs(id, 20).await {
                    reason = reason.with_log(log);
                }
                return Err((HostError(reason), false));
            }
            () = &mut patience, if !waited => {
                waited = true;
                boot_permit.take();
            }
        }
    }
}

/// Returns the published ports that the host refused.
async fn ensure_vcluster(host: &dyn Host, plan: &VclusterPlan, gate: &Gate) -> Result<Vec<Forward>, HostError> {
    let mut applied = gate.lock().await;
    if let Some((generation, refused)) = applied.as_ref()
        && *generation >= plan.generation
    {
        return Ok(refused.clone());
    }
    fail::before("vcluster");
    let refused = host.ensure_vcluster(plan).await?;
    fail::after("vcluster");
    *applied = Some((plan.generation, refused.clone()));
    Ok(refused)
}

pub(super) async fn run_vcluster(context: Arc<Context>, plan: Arc<VclusterPlan>, gate: Gate, todo: VclusterTodo) {
    let work = async {
        let _permit = context.work.acquire().await;
        if todo == VclusterTodo::Remove {
            let mut applied = gate.lock().await;
            fail::before("vcluster-removal");
            context.host.remove_vcluster(plan.id).await?;
            fail::after("vcluster-removal");
            *applied = None;
            Ok(Vec::new())
        } else {
            ensure_vcluster(context.host.as_ref(), &plan, &gate).await
        }
    };
    let result = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(result) => result.map_err(|HostError(reason)| reason),
        Err(_) => Err(Reason::new("internal", "The worker ran into an error of its own; see its log.")),
    };
    context.tell(Event::VclusterDone(
        plan.id,
        VclusterOutcome { generation: plan.generation, removed: todo == VclusterTodo::Remove, result },
    ));
}

#[derive(Debug)]
pub(super) struct VclusterOutcome {
    pub generation: u64,
    pub removed: bool,
    /// With the published ports that the host refused.
    pub result: Result<Vec<Forward>, Reason>,
}

pub(super) async fn watch_init(context: Arc<Context>, id: NodeId, pid: i32) {
    context.host.wait_end(id).await;
    let log = context.host.logs(id, 20).await.ok().filter(|l| !l.is_empty());
    context.tell(Event::InitEnded { id, pid, log });
}

/// Tells the loop when a step began and, however it went, when it ended.
struct StepClock<'a> {
    context: &'a Context,
    id: NodeId,
    step: Step,
}

impl<'a> StepClock<'a> {
    fn start(context: &'a Context, id: NodeId, step: Step) -> Self {
        context.tell(Event::StepBegan(id, step, Micros::now()));
        Self { context, id, step }
    }
}

impl Drop for StepClock<'_> {
    fn drop(&mut self) {
        self.context.tell(Event::StepEnded(self.id, self.step, Micros::now()));
    }
}
