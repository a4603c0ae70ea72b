//! What the loop does for vclusters: this host's share of each.

use docklet_store::keys::Key;
use docklet_types::id::VclusterId;
use docklet_types::report::VclusterReport;
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_plan::{VclusterTodo, node, vcluster};

use super::actor::{Loop, Object};
use super::task::{self, VclusterOutcome};

impl Loop {
    pub(super) fn vcluster_plan_changed(&mut self, id: VclusterId) {
        let Some(plan) = self.plans.read(|p| p.vcluster(id)) else {
            self.reporter.delete(self.keys.write(&Key::VclusterReport(self.settings.host.clone(), id)));
            if let Some(vcluster) = self.vclusters.get_mut(&id) {
                vcluster.plan = None;
                vcluster.reported = None;
                if vcluster.observed.is_none() && !vcluster.busy {
                    self.vclusters.remove(&id);
                }
            }
            return;
        };
        let vcluster = self.vclusters.entry(id).or_default();
        match vcluster.history.accept(&plan) {
            Ok(()) => {
                vcluster.plan = Some(plan);
                self.dirty_vclusters.insert(id);
                self.dirty_nodes.extend(self.members.get(&id).into_iter().flatten());
            }
            Err(refused) => tracing::warn!(vcluster = %id, %refused, "a plan was refused"),
        }
    }

    pub(super) fn look_at_vcluster(&mut self, id: VclusterId) {
        let now = self.clock.now();
        let nodes_left = self.members.get(&id).into_iter().flatten().any(|n| {
            let Some(node) = self.nodes.get(n) else { return false };
            node.task.is_some()
                || node.plan.as_ref().is_some_and(|p| !node::is_gone(p, &node.observed, node.history.cleaned))
        });
        let lost = self.loss().is_some();
        let Some(entry) = self.vclusters.get_mut(&id) else { return };
        let Some(plan) = entry.plan.clone() else { return };
        if !entry.busy && !self.stopping && !lost {
            let todo = vcluster::diff(&plan, entry.observed.as_ref(), &entry.history, nodes_left, now);
            match todo {
                VclusterTodo::Nothing | VclusterTodo::NodesFirst => {}
                VclusterTodo::Later(at) => {
                    self.timers.insert((at, Object::Vcluster(id)));
                }
                VclusterTodo::Ensure | VclusterTodo::Remove => {
                    self.count += 1;
                    entry.touched = self.count;
                    entry.busy = true;
                    // The bridge is missing though it was made: what was applied counts no more.
                    let lost = entry.history.ensured.is_some() && entry.observed.as_ref().is_none_or(|o| !o.bridge);
                    if let (true, Ok(mut applied)) = (lost, entry.gate.try_lock()) {
                        *applied = None;
                    }
                    self.tasks.spawn(task::run_vcluster(self.context.clone(), plan.clone(), entry.gate.clone(), todo));
                }
            }
        }
        self.report_vcluster(id);
    }

    pub(super) fn vcluster_done(&mut self, id: VclusterId, outcome: VclusterOutcome) {
        let now = self.clock.now();
        self.count += 1;
        let Some(entry) = self.vclusters.get_mut(&id) else { return };
        entry.busy = false;
        entry.touched = self.count;
        match outcome.result {
            Ok(_) if outcome.removed => {
                entry.observed = None;
                entry.history.removed();
            }
            Ok(refused) => {
                if refused != entry.refused {
                    tracing::warn!(vcluster = %id, ports = ?refused.iter().map(|f| f.public).collect::<Vec<_>>(), "published ports that the host itself uses changed");
                }
                entry.refused = refused;
                let observed = entry.observed.get_or_insert_default();
                observed.bridge = true;
                observed.generation = Some(outcome.generation);
                entry.history.applied(outcome.generation);
            }
            Err(reason) => {
                tracing::warn!(vcluster = %id, code = reason.code, reason = reason.message, "a vcluster's network could not be changed");
                let wanted = if outcome.removed { Wanted::Absent } else { Wanted::Running };
                entry.history.failed(wanted, reason, now);
            }
        }
        if entry.plan.is_none() && entry.observed.is_none() {
            self.vclusters.remove(&id);
        } else {
            self.dirty_vclusters.insert(id);
        }
    }

    fn report_vcluster(&mut self, id: VclusterId) {
        let Some(entry) = self.vclusters.get_mut(&id) else { return };
        let Some(plan) = &entry.plan else { return };
        let gone = plan.wanted == Wanted::Absent && entry.observed.is_none() && entry.history.cleaned;
        let mut report = VclusterReport {
            id,
            generation: if gone { plan.generation } else { entry.history.ensured.unwrap_or(0) },
            present: entry.observed.is_some(),
            reason: entry.history.trouble.as_ref().map(|t| t.reason.clone()),
            refused: entry.refused.clone(),
            at: Micros::now(),
        };
        if let Some(before) = &entry.reported {
            let at = std::mem::replace(&mut report.at, before.at);
            if *before == report {
                return;
            }
            report.at = at;
        }
        if let Ok(document) = serde_json::to_vec(&report) {
            self.reporter.put(self.keys.write(&Key::VclusterReport(self.settings.host.clone(), id)), document, gone);
        }
        entry.reported = Some(report);
    }
}
