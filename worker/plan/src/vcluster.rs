//! One vcluster's share of the host: its bridge, its hosts file, its sets in the packet filter.

use docklet_types::plan::VclusterPlan;
use docklet_types::report::{Reason, Step};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_host::ObservedVcluster;

use crate::Refused;
use crate::trouble::Trouble;

/// What is to be done for one vcluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VclusterTodo {
    Nothing,
    Ensure,
    Remove,
    /// After a failure: not before then.
    Later(Micros),
    /// It is to go, but nodes of it are still here.
    NodesFirst,
}

/// What the worker remembers of a vcluster. `seen` and `ends` outlive the worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VclusterHistory {
    /// The newest generation that was followed.
    pub seen: Option<u64>,
    /// It said that the share is to go.
    pub ends: bool,
    /// The generation that this run of the worker has applied. A new run applies once more, which mends what was
    /// broken meanwhile.
    pub ensured: Option<u64>,
    pub trouble: Option<Trouble>,
    /// Everything was taken away once since the plan said `Absent`.
    pub cleaned: bool,
}

impl VclusterHistory {
    /// As a plan of an earlier run leaves it.
    #[must_use]
    pub fn of(plan: &VclusterPlan) -> Self {
        Self { seen: Some(plan.generation), ends: plan.wanted == Wanted::Absent, ..Self::default() }
    }

    /// Takes a plan as the one to follow. A share that ended may begin anew, and then counts from the start: that the plan
    /// was gone in between need not have been seen.
    ///
    /// # Errors
    /// Where the plan is older than one already taken; the history is as before.
    pub fn accept(&mut self, plan: &VclusterPlan) -> Result<(), Refused> {
        let anew = self.ends && plan.wanted != Wanted::Absent;
        if anew {
            self.trouble = None;
            self.ensured = None;
        }
        if let Some(held) = self.seen.filter(|_| !anew) {
            if plan.generation < held {
                return Err(Refused { offered: plan.generation, held });
            }
            if plan.generation > held {
                self.trouble = None;
            }
        }
        if plan.wanted != Wanted::Absent {
            self.cleaned = false;
        }
        self.seen = Some(plan.generation);
        self.ends = plan.wanted == Wanted::Absent;
        Ok(())
    }

    pub fn failed(&mut self, wanted: Wanted, reason: Reason, now: Micros) {
        let step = if wanted == Wanted::Absent { Step::Remove } else { Step::Network };
        let earlier = self.trouble.as_ref().map_or(0, |t| t.count);
        self.trouble = Some(Trouble::lasting(earlier, step, reason, now));
    }

    pub fn applied(&mut self, generation: u64) {
        self.ensured = Some(generation);
        self.trouble = None;
    }

    pub fn removed(&mut self) {
        self.ensured = None;
        self.trouble = None;
        self.cleaned = true;
    }
}

/// What to do next for a vcluster. `nodes_left`: some node of it is on this host or is to be.
#[must_use]
pub fn diff(
    plan: &VclusterPlan,
    observed: Option<&ObservedVcluster>,
    history: &VclusterHistory,
    nodes_left: bool,
    now: Micros,
) -> VclusterTodo {
    let todo = match plan.wanted {
        Wanted::Absent if observed.is_none() && history.cleaned => return VclusterTodo::Nothing,
        Wanted::Absent if nodes_left => return VclusterTodo::NodesFirst,
        Wanted::Absent => VclusterTodo::Remove,
        Wanted::Running | Wanted::Stopped => {
            let bridge = observed.is_some_and(|o| o.bridge);
            if bridge && history.ensured == Some(plan.generation) {
                return VclusterTodo::Nothing;
            }
            VclusterTodo::Ensure
        }
    };
    match &history.trouble {
        Some(trouble) if trouble.retry_at > now => VclusterTodo::Later(trouble.retry_at),
        _ => todo,
    }
}
