//! What the loop does besides following plans: its start and end, looking at the host, checking it, the local copy.

use std::collections::BTreeMap;
use std::time::Duration;

use docklet_store::keys::Key;
use docklet_types::host::{Capacity, Check, CheckOutcome};
use docklet_types::id::NodeId;
use docklet_types::report::NodeState;
use docklet_types::time::Micros;
use docklet_worker_host::{Hits, HostError, Observed};
use docklet_worker_plan::limits;
use docklet_worker_plan::node::is_remains;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Event;
use super::actor::Loop;
use super::entry::Node;
use super::task::Context;
use crate::ledger::{Ledger, NodeRecord};
use crate::machine;

/// Troubles of nodes that end with the host's.
const HOSTS_OWN: [&str; 2] = ["host_check_failed", "shared_directory"];
/// Changes of plans come in crowds; the local copy is written this long after the last time.
const GATHER: Duration = Duration::from_millis(200);
/// It is written as a whole: the more nodes there are, the seldomer. Of the time goes to that one part of so many.
const SAVING_SHARE: u32 = 50;
/// It is behind for no longer than this because of that.
const LONGEST_REST: Duration = Duration::from_secs(2);

impl Loop {
    /// Before the first plan is followed: check the host, see what is on it, hear from the store.
    pub(super) async fn begin(&mut self) {
        let (checks, capacity) = check(&self.context).await;
        self.checked(checks, capacity);
        let seen = loop {
            match self.context.host.observe().await {
                Ok(seen) => break seen,
                Err(HostError(reason)) => {
                    tracing::error!(
                        code = reason.code,
                        reason = reason.message,
                        "cannot see what is on this host; trying again"
                    );
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        tracing::info!(host = %self.settings.host, nodes = seen.nodes.len(), running = seen.nodes.values().filter(|n| n.init_pid.is_some()).count(), "looked at the host");
        for (id, observed) in seen.nodes {
            self.nodes.entry(id).or_default().observed = observed;
        }
        for (id, observed) in seen.vclusters {
            self.vclusters.entry(id).or_default().observed = Some(observed);
        }
        // An old copy must not start what was deleted meanwhile, so the store comes first where it answers.
        if tokio::time::timeout_at(self.contact_by, self.plans.wait_live()).await.is_err() {
            tracing::warn!("the store does not answer; following the local copy of the plans");
        }
        self.adopt_reports().await;
        self.clear_remains();
    }

    /// Takes over what an earlier run reported, so that nothing is reported anew that has not changed.
    async fn adopt_reports(&mut self) {
        if !self.plans.is_live() {
            return;
        }
        let Ok(listing) = self.store.list(&self.keys.reports_of(&self.settings.host)).await else { return };
        for entry in &listing.entries {
            let Some(Key::NodeReport(_, id)) = self.keys.read(&entry.key) else { continue };
            let Ok(report) = serde_json::from_slice::<docklet_types::report::NodeReport>(&entry.value) else {
                continue;
            };
            if let Some(node) = self.nodes.get_mut(&id) {
                let same_init = report.init_pid.is_some() && report.init_pid == node.observed.init_pid;
                if same_init || matches!(report.state, NodeState::Stopped) {
                    node.steps.clone_from(&report.steps);
                }
                if same_init {
                    node.limits_hit.clone_from(&report.limits_hit);
                }
            }
        }
    }

    /// The default image is unpacked before anybody asks, so that the first vcluster is as fast as the second; a newer
    /// version likewise, once there is one.
    pub(super) fn prefetch(&mut self) {
        let (context, name) = (self.context.clone(), self.settings.default_image.clone());
        let every = self.settings.timing.look_every;
        self.tasks.spawn(async move {
            let mut unpacked = None;
            loop {
                // Where it cannot be told, a check of the host says why.
                let found = context.host.newest_image(&name).await.ok().flatten();
                if let Some(image) = found.filter(|image| unpacked.as_ref() != Some(image)) {
                    match context.host.ensure_image(&image).await {
                        Ok(()) => tracing::info!(image = %image.name, digest = %image.digest, "the default image is unpacked"),
                        Err(HostError(reason)) => tracing::warn!(image = %image.name, code = reason.code, reason = reason.message, "the default image cannot be unpacked"),
                    }
                    unpacked = Some(image);
                }
                tokio::time::sleep(every).await;
            }
        });
    }

    /// What may fail while nodes run, such as the shared directory, is looked at more often than the rest.
    pub(super) fn watch_host(&mut self) {
        let (context, every) = (self.context.clone(), self.settings.timing.look_every / 6);
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                context.tell(Event::Watched(context.host.watch().await));
            }
        });
    }

    /// What nodes run into is looked at twice as often as the host.
    pub(super) fn watch_limits(&mut self) {
        let (context, every) = (self.context.clone(), self.settings.timing.look_every / 2);
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(every).await;
                context.tell(Event::LimitsDue);
            }
        });
    }

    pub(super) fn look_at_limits(&mut self) {
        // One look after the other: what is looked through is made by those who are root in nodes.
        if std::mem::replace(&mut self.looking_at_limits, true) {
            return;
        }
        let running = self.nodes.iter().filter(|(_, node)| node.task.is_none());
        let inits: Vec<_> = running.filter_map(|(id, node)| Some((*id, node.observed.init_pid?))).collect();
        let context = self.context.clone();
        self.tasks.spawn(async move {
            let hits = context.host.limits_hit(inits.iter().map(|(id, _)| *id).collect()).await;
            context.tell(Event::LimitsHit(inits, hits));
        });
    }

    pub(super) fn limits_hit(&mut self, inits: &[(NodeId, i32)], hits: &BTreeMap<NodeId, Hits>) {
        self.looking_at_limits = false;
        let now = Micros::now();
        for (id, pid) in inits {
            let still = |node: &&mut Node| node.task.is_none() && node.observed.init_pid == Some(*pid);
            let (Some(node), Some(hits)) = (self.nodes.get_mut(id).filter(still), hits.get(id)) else { continue };
            let told = limits::told(&node.limits_hit, *hits, now);
            if told == node.limits_hit {
                continue;
            }
            for hit in told.iter().filter(|hit| !node.limits_hit.contains(hit)) {
                let name = node.plan.as_ref().map(|plan| plan.name.to_string());
                tracing::info!(node = %id, name, limit = ?hit.limit, times = hit.times, "a node ran into a limit");
            }
            node.limits_hit = told;
            self.dirty_nodes.insert(*id);
        }
    }

    pub(super) fn watched(&mut self, watched: Vec<Check>) {
        let mut checks = self.checks.clone();
        for check in watched {
            match checks.iter_mut().find(|c| c.name == check.name) {
                Some(known) => *known = check,
                None => checks.push(check),
            }
        }
        self.judge(checks, None);
    }

    /// Once in a while everything: whatever was missed is noticed here.
    pub(super) fn look_at_everything(&mut self) {
        self.look();
        if !self.checking {
            self.checking = true;
            let context = self.context.clone();
            let unfit = self.unfit.is_some();
            self.tasks.spawn(async move {
                // What is well stays well while nodes run; what was not may have been mended.
                let (checks, capacity) =
                    if unfit { check(&context).await } else { (None, context.host.capacity().await.ok()) };
                context.tell(Event::Checked(checks, capacity));
            });
        }
        for vcluster in self.vclusters.values_mut().filter(|v| !v.refused.is_empty()) {
            // The port may be free by now.
            if let Ok(mut applied) = vcluster.gate.try_lock() {
                *applied = None;
                vcluster.history.ensured = None;
            }
        }
        self.dirty_nodes.extend(self.nodes.keys());
        self.dirty_vclusters.extend(self.vclusters.keys());
        self.compare_reports();
    }

    fn compare_reports(&mut self) {
        if !self.plans.is_live() {
            return;
        }
        let (store, prefix, reports) =
            (self.store.clone(), self.keys.reports_of(&self.settings.host), self.reporter.handle());
        self.tasks.spawn(async move {
            let asked = reports.version();
            if let Ok(listing) = store.list(&prefix).await {
                reports.compare(&listing.entries, &prefix, asked);
            }
        });
    }

    /// Has the host looked at; what was seen comes as an event.
    pub(super) fn look(&mut self) {
        if self.looking {
            self.look_again = true;
            return;
        }
        self.looking = true;
        self.look_again = false;
        let (context, began) = (self.context.clone(), self.count);
        self.tasks.spawn(async move {
            let seen = context.host.observe().await;
            if seen.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            context.tell(Event::Looked { began, seen });
        });
    }

    pub(super) fn looked(&mut self, began: u64, seen: Result<Observed, HostError>) {
        self.looking = false;
        let mut seen = match seen {
            Ok(seen) => seen,
            Err(HostError(reason)) => {
                tracing::error!(code = reason.code, reason = reason.message, "cannot see what is on this host");
                if self.nodes.values().any(|n| n.stale) {
                    self.look();
                }
                return;
            }
        };
        if let Some((_, looked)) = &mut self.seen_loss {
            *looked = true;
        }
        let mut ended = Vec::new();
        for (id, node) in &mut self.nodes {
            let now = seen.nodes.remove(id).unwrap_or_default();
            if node.task.is_some() || node.touched > began {
                continue;
            }
            let lost = node.observed.init_pid.is_some() && now.init_pid.is_none();
            if node.stale || now != node.observed {
                self.dirty_nodes.insert(*id);
            }
            if lost {
                ended.push(*id);
            }
            node.observed = now;
            node.stale = false;
        }
        for (id, observed) in seen.nodes {
            // Ours by name, and no plan names it.
            if is_remains(&observed) {
                tracing::warn!(node = %id, "something runs of a node that was removed");
            } else {
                tracing::warn!(node = %id, "a node without a plan is on this host; it is left alone");
            }
            self.nodes.entry(id).or_default().observed = observed;
        }
        for id in ended {
            self.init_is_gone(id, None);
            if let Some(node) = self.nodes.get_mut(&id) {
                // This was just looked at.
                node.stale = false;
            }
        }
        for (id, entry) in &mut self.vclusters {
            let now = seen.vclusters.remove(id);
            if !entry.busy && entry.touched <= began && entry.observed != now {
                entry.observed = now;
                self.dirty_vclusters.insert(*id);
            }
        }
        for (id, observed) in seen.vclusters {
            self.vclusters.entry(id).or_default().observed = Some(observed);
        }
        self.clear_remains();
        let (nodes, plans) = (&mut self.nodes, &self.plans);
        nodes.retain(|id, n| {
            n.plan.is_some()
                || n.task.is_some()
                || n.observed != docklet_worker_plan::node::NOTHING
                || plans.read(|p| p.node(*id).is_some())
        });
        if self.look_again || self.nodes.values().any(|n| n.stale && n.task.is_none()) {
            self.look();
        }
    }

    /// `checks` is nothing where they were not made again.
    pub(super) fn checked(&mut self, checks: Option<Vec<Check>>, capacity: Option<Capacity>) {
        self.checking = false;
        self.judge(checks.unwrap_or_else(|| self.checks.clone()), capacity);
    }

    fn judge(&mut self, checks: Vec<Check>, capacity: Option<Capacity>) {
        for check in checks.iter().filter(|c| !self.checks.contains(c)) {
            match check.outcome {
                CheckOutcome::Ok => tracing::debug!(check = check.name, "{}", check.message),
                CheckOutcome::Warning => tracing::warn!(check = check.name, "{}", check.message),
                CheckOutcome::Failed => tracing::error!(check = check.name, "{}", check.message),
            }
        }
        let was_unfit = self.unfit.take().is_some();
        self.unfit = machine::failure(&checks);
        if self.unfit.is_none() {
            for (id, node) in &mut self.nodes {
                if node.history.trouble.as_ref().is_some_and(|t| HOSTS_OWN.contains(&t.reason.code.as_str())) {
                    node.history.trouble = None;
                    self.dirty_nodes.insert(*id);
                }
            }
        }
        let capacity = capacity.or(self.capacity);
        let address = self.context.host.address();
        if (self.capacity, self.address) != (capacity, address)
            || self.checks != checks
            || was_unfit != self.unfit.is_some()
        {
            self.checks = checks;
            self.address = address;
            self.capacity = capacity;
            let capacity = capacity.unwrap_or(Capacity { cpu_millis: 0, memory_mib: 0, disk_mib: 0 });
            let report = machine::host_report(
                self.settings.host.clone(),
                address,
                self.settings.agent_port,
                &self.settings.paths,
                capacity,
                self.checks.clone(),
                self.started_at,
            );
            if let Ok(document) = serde_json::to_vec(&report) {
                self.reporter.put(self.keys.write(&Key::Host(self.settings.host.clone())), document, true);
            }
        }
    }

    pub(super) fn ledger_changed(&mut self) {
        self.ledger_version += 1;
        self.save_ledger();
    }

    /// Writes the local copy where it is behind; one writer at a time.
    pub(super) fn save_ledger(&mut self) {
        if self.ledger_saving {
            if self.ledger_hurry {
                self.ledger_wake.notify_one();
            }
            return;
        }
        if *self.ledger_saved.borrow() >= self.ledger_version {
            return;
        }
        self.ledger_saving = true;
        let hurry = std::mem::take(&mut self.ledger_hurry);
        let (ledger, version, directory) = (self.ledger(), self.ledger_version, self.settings.paths.worker_state());
        let (context, wake) = (self.context.clone(), self.ledger_wake.clone());
        self.tasks.spawn(async move {
            let began = Instant::now();
            let saved = tokio::task::spawn_blocking(move || ledger.save(&directory)).await;
            if let Ok(Err(error)) = saved {
                tracing::error!(%error, source = std::error::Error::source(&error).map(ToString::to_string), "the local copy of the plans is out of date");
            }
            if !hurry {
                let rest = (began.elapsed() * SAVING_SHARE).clamp(GATHER, LONGEST_REST);
                let _ = tokio::time::timeout(rest, wake.notified()).await;
            }
            context.tell(Event::Saved(version));
        });
    }

    fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::new(self.settings.host.clone());
        for node in self.nodes.values() {
            if let (Some(plan), Some(seen)) = (&node.plan, node.history.seen) {
                ledger.nodes.push(NodeRecord {
                    plan: plan.clone(),
                    attempt: seen.attempt,
                    replacing: node.history.replacing,
                });
            }
        }
        ledger.vclusters = self.vclusters.values().filter_map(|v| v.plan.clone()).collect();
        ledger
    }

    /// Lets what is under way come to an end, reports, and writes the local copy.
    pub(super) async fn finish(&mut self, inbox: &mut mpsc::UnboundedReceiver<Event>) {
        for node in self.nodes.values() {
            if let Some(task) = &node.task {
                task.cancel.cancel();
            }
        }
        let deadline = Instant::now() + Duration::from_secs(8);
        while self.nodes.values().any(|n| n.task.is_some()) || self.vclusters.values().any(|v| v.busy) {
            match tokio::time::timeout_at(deadline, inbox.recv()).await {
                Ok(Some(event)) => self.take_in_last(event),
                _ => break,
            }
        }
        let ledger = self.ledger();
        let directory = self.settings.paths.worker_state();
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || ledger.save(&directory)).await {
            tracing::error!(%error, "the local copy of the plans is out of date");
        }
        self.reporter.flush(Duration::from_secs(1)).await;
    }

    fn take_in_last(&mut self, event: Event) {
        match event {
            Event::NodeDone(..) | Event::VclusterDone(..) | Event::StepBegan(..) | Event::StepEnded(..) => {
                self.take_in(event);
                self.look_at_dirty();
            }
            _ => {}
        }
    }
}

async fn check(context: &Context) -> (Option<Vec<Check>>, Option<Capacity>) {
    let checks = match context.host.prepare().await {
        Ok(checks) => checks,
        Err(HostError(reason)) => {
            vec![Check { name: "prepare".to_owned(), outcome: CheckOutcome::Failed, message: reason.message }]
        }
    };
    let capacity = match context.host.capacity().await {
        Ok(capacity) => Some(capacity),
        Err(HostError(reason)) => {
            tracing::error!(code = reason.code, reason = reason.message, "cannot tell how big this host is");
            None
        }
    };
    (Some(checks), capacity)
}
