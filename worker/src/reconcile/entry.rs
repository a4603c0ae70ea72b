//! What the loop knows of one node and of one vcluster.

use std::sync::Arc;

use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::Forward;
use docklet_types::report::{LimitHit, NodeReport, Step, StepTiming, VclusterReport};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_host::{ObservedNode, ObservedVcluster};
use docklet_worker_plan::{NodeHistory, VclusterHistory};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::task::Gate;

/// One node.
#[derive(Default)]
pub(super) struct Node {
    /// The plan in force; absent for what is on the host without one, which is left alone.
    pub plan: Option<Arc<NodePlan>>,
    pub observed: ObservedNode,
    pub history: NodeHistory,
    pub task: Option<InFlight>,
    /// `observed` may be wrong: look before acting.
    pub stale: bool,
    /// The loop's count when this was last touched; what was seen earlier says nothing about it now.
    pub touched: u64,
    pub watch: Option<InitWatch>,
    /// This init ended while a task was under way.
    pub ended: Option<i32>,
    pub steps: Vec<StepTiming>,
    pub reported: Option<NodeReport>,
    pub limits_hit: Vec<LimitHit>,
    /// Since when it has been seen to be nothing but remains.
    pub remains_since: Option<tokio::time::Instant>,
}

/// A task under way, and the wish it serves.
pub(super) struct InFlight {
    pub cancel: CancellationToken,
    pub wanted: Wanted,
    pub attempt: u32,
    pub frozen: bool,
}

/// Somebody waits for this init to end.
pub(super) struct InitWatch {
    pub pid: i32,
    pub task: AbortHandle,
}

impl Drop for InitWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Node {
    pub(super) fn step_began(&mut self, step: Step, at: Micros) {
        // A step done again counts from its last time, so that the list cannot grow.
        self.steps.retain(|t| t.step != step);
        self.steps.push(StepTiming { step, started_at: at, ended_at: None });
    }

    pub(super) fn step_ended(&mut self, step: Step, at: Micros) {
        if let Some(timing) = self.steps.iter_mut().rfind(|t| t.step == step && t.ended_at.is_none()) {
            timing.ended_at = Some(at);
        }
    }

    /// Tells a task that serves another wish than the plan in force to stop where it can.
    pub(super) fn interrupt_if_outdated(&self) {
        if let Some(task) = &self.task {
            let attempt = self.history.seen.map_or(0, |s| s.attempt);
            let same = |p: &Arc<NodePlan>| p.wanted == task.wanted && p.frozen == task.frozen;
            if !self.plan.as_ref().is_some_and(same) || attempt != task.attempt {
                task.cancel.cancel();
            }
        }
    }
}

/// One vcluster's share of this host.
#[derive(Default)]
pub(super) struct Vcluster {
    pub plan: Option<Arc<VclusterPlan>>,
    pub observed: Option<ObservedVcluster>,
    pub history: VclusterHistory,
    pub gate: Gate,
    /// Published ports that the host itself uses.
    pub refused: Vec<Forward>,
    pub busy: bool,
    pub touched: u64,
    pub reported: Option<VclusterReport>,
}
