//! Hosts, for administrators.

use crate::form::Errors;
use crate::shell::Shell;
use crate::{assets, html, link};
use askama::Template;
use docklet_types::host::{Check, CheckOutcome};
use docklet_types::moves::Stage;
use docklet_types::view::{HostView, MasterView, MoveView, NodeView};

/// `GET /hosts`
#[derive(Debug, Clone, Template)]
#[template(path = "hosts.html")]
pub struct HostsPage {
    pub shell: Shell,
    pub hosts: Vec<HostView>,
    /// The masters that are at work; shown where there are several.
    pub masters: Vec<MasterView>,
    pub maintenance: MaintenanceForm,
}

impl HostsPage {
    fn general_errors(&self) -> Vec<&str> {
        self.maintenance.errors.general(&["message", "minutes"])
    }
}

/// The form that begins maintenance, as it was typed.
#[derive(Debug, Clone, Default)]
pub struct MaintenanceForm {
    pub message: String,
    pub minutes: String,
    pub errors: Errors,
}

/// A node with whom it belongs to.
#[derive(Debug, Clone)]
pub struct HostNode {
    pub owner: String,
    pub vcluster: String,
    pub node: NodeView,
}

/// `GET /hosts/{name}`
#[derive(Debug, Clone, Template)]
#[template(path = "host.html")]
pub struct HostPage {
    pub shell: Shell,
    pub host: HostView,
    pub nodes: Vec<HostNode>,
}

impl HostPage {
    fn vcluster_url(&self, node: &HostNode) -> String {
        link::vcluster(&node.vcluster, &node.owner, self.shell.username(), "")
    }

    fn move_url(&self, moving: &MoveView) -> String {
        link::vcluster(&moving.vcluster, &moving.owner, self.shell.username(), "")
    }

    fn problems(&self) -> usize {
        self.host.checks.iter().filter(|c| c.outcome != CheckOutcome::Ok).count()
    }

    /// Failures first, then warnings.
    fn checks(&self) -> Vec<&Check> {
        let mut checks: Vec<_> = self.host.checks.iter().collect();
        checks.sort_by_key(|c| match c.outcome {
            CheckOutcome::Failed => 0,
            CheckOutcome::Warning => 1,
            CheckOutcome::Ok => 2,
        });
        checks
    }
}

/// A host's status as icon and word.
pub(crate) fn host_status(host: &HostView) -> html::Html {
    match host.status.as_str() {
        "ready" => html::mark("running", "ok", "Ready"),
        "cordoned" => html::mark("warning", "warn", "Cordoned"),
        "draining" => html::mark("warning", "warn", "Draining"),
        "drained" => html::mark("running", "ok", "Drained"),
        "clearing" => html::mark("warning", "warn", "Clearing"),
        "unreachable" => html::mark("offline", "bad", "Unreachable"),
        "failed" => html::mark("failed", "bad", "Failed"),
        other => html::mark("info", "idle", other),
    }
}

/// How far a node is on its way.
pub(crate) fn move_stage(moving: &MoveView) -> html::Html {
    match moving.stage {
        Stage::Waiting => html::mark("info", "idle", "Waiting"),
        Stage::Copying => html::mark("info", "busy", "Copying while it runs"),
        Stage::Copied => html::mark("info", "busy", "Stopped, copying the rest"),
        Stage::Arrived => html::mark("info", "busy", "Starting"),
        Stage::Failed => html::mark("failed", "bad", "Failed"),
    }
}

pub(crate) fn copied(moving: &MoveView) -> String {
    html::mib(moving.bytes >> 20)
}

pub(crate) fn check_mark(check: &Check) -> html::Html {
    match check.outcome {
        CheckOutcome::Ok => html::mark("running", "ok", "OK"),
        CheckOutcome::Warning => html::mark("warning", "warn", "Warning"),
        CheckOutcome::Failed => html::mark("failed", "bad", "Failed"),
    }
}

/// `idmapped_mounts` becomes `idmapped mounts`.
pub(crate) fn check_name(check: &Check) -> String {
    check.name.replace('_', " ")
}

pub(crate) fn cpu_meter(host: &HostView) -> html::Html {
    let (used, whole) = (host.allocated.cpu_millis as f64 / 1000.0, host.capacity.cpu_millis as f64 / 1000.0);
    html::meter("CPU", used, whole, &format!("{} of {}", html::cpus(used), html::cpus(whole)))
}

pub(crate) fn memory_meter(host: &HostView) -> html::Html {
    let (used, whole) = (host.allocated.memory_mib, host.capacity.memory_mib);
    html::meter("Memory", used as f64, whole as f64, &format!("{} of {}", html::mib(used), html::mib(whole)))
}

pub(crate) fn disk_meter(host: &HostView) -> html::Html {
    let (used, whole) = (host.allocated.disk_mib, host.capacity.disk_mib);
    html::meter("Disk", used as f64, whole as f64, &format!("{} of {}", html::mib(used), html::mib(whole)))
}
