//! One vcluster: its state, nodes, apps, history, and what to do next.

use crate::shell::Shell;
use crate::{Fragment, assets, html, link};
use askama::Template;
use docklet_types::rate::RateLimits;
use docklet_types::report::Reason;
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{AppStatus, AppView, NodeView, OperationView, PortView, StepView, VclusterView};

use super::jupyter::JupyterProgress;

/// An app with the node it runs in.
#[derive(Debug, Clone)]
pub struct NodeApp {
    pub node: String,
    pub app: AppView,
}

/// Everything about a vcluster that changes while its page is open.
#[derive(Debug, Clone)]
pub struct VclusterState {
    pub view: VclusterView,
    pub nodes: Vec<NodeView>,
    /// Apps that were ever started; a node that is not named has none.
    pub apps: Vec<NodeApp>,
    /// By protocol and number.
    pub ports: Vec<PortView>,
    /// Newest first.
    pub operations: Vec<OperationView>,
    /// The viewer's user name.
    pub viewer: String,
    pub now: Micros,
}

/// The one thing that the page offers first.
enum Primary<'a> {
    Open(&'a str),
    /// The progress page's address.
    Opening(String),
    /// POST there.
    StartJupyter(String),
    Start(String),
    Retry(String),
    /// Nothing now; it will be "Open Jupyter".
    Wait,
}

impl VclusterState {
    /// All fragments of the page, among them one for each app's progress page.
    ///
    /// # Errors
    /// None in practice: the templates write into memory.
    pub fn fragments(&self) -> askama::Result<Vec<Fragment>> {
        let mut fragments = vec![
            Fragment { id: VclusterHeader::ID.to_owned(), html: VclusterHeader { state: self }.render()? },
            Fragment { id: VclusterNext::ID.to_owned(), html: VclusterNext { state: self }.render()? },
            Fragment { id: VclusterApps::ID.to_owned(), html: VclusterApps { state: self }.render()? },
            Fragment { id: VclusterPorts::ID.to_owned(), html: VclusterPorts { state: self }.render()? },
            Fragment { id: VclusterNodes::ID.to_owned(), html: VclusterNodes { state: self }.render()? },
            Fragment { id: VclusterTimeline::ID.to_owned(), html: VclusterTimeline { state: self }.render()? },
        ];
        for NodeApp { node, app } in &self.apps {
            let progress = JupyterProgress { app, node, view: &self.view, viewer: &self.viewer };
            fragments.push(Fragment { id: progress.id(), html: progress.render()? });
        }
        Ok(fragments)
    }

    fn url(&self, tail: &str) -> String {
        link::vcluster(&self.view.name, &self.view.owner, &self.viewer, tail)
    }

    fn terminal(&self, node: &str) -> String {
        link::terminal(&self.view.name, &self.view.owner, &self.viewer, node)
    }

    fn jupyter(&self, node: &str) -> String {
        link::jupyter(&self.view.name, &self.view.owner, &self.viewer, node)
    }

    fn live(&self) -> String {
        link::live_vcluster(&self.view.name, &self.view.owner, &self.viewer)
    }

    fn is_foreign(&self) -> bool {
        self.view.owner != self.viewer
    }

    fn app(&self, node: &str) -> Option<&AppView> {
        self.apps.iter().find(|a| a.node == node).map(|a| &a.app)
    }

    fn running_app(&self, node: &str) -> Option<&AppView> {
        self.app(node).filter(|a| a.status == AppStatus::Running)
    }

    fn starting_app(&self, node: &str) -> bool {
        self.app(node).is_some_and(|a| a.status == AppStatus::Starting)
    }

    /// The first node that can be used.
    fn first_up(&self) -> Option<&str> {
        self.nodes.iter().find(|n| n.status == Status::Running).map(|n| n.name.as_str())
    }

    fn is_up(&self) -> bool {
        matches!(self.view.status, Status::Running | Status::Degraded)
    }

    fn can_stop(&self) -> bool {
        matches!(
            self.view.status,
            Status::Running | Status::Degraded | Status::Starting | Status::Pending | Status::Failed
        )
    }

    fn is_deleting(&self) -> bool {
        self.view.status == Status::Deleting
    }

    fn primary(&self) -> Primary<'_> {
        match self.view.status {
            Status::Stopped => Primary::Start(self.url("start")),
            Status::Failed => Primary::Retry(self.url("retry")),
            Status::Running | Status::Degraded => {
                let node = self.first_up();
                let app = node.and_then(|n| self.app(n));
                match (node, app.map(|a| (a.status, a.url.as_str()))) {
                    (None, _) => Primary::Wait,
                    (Some(_), Some((AppStatus::Running, url))) => Primary::Open(url),
                    (Some(node), Some((AppStatus::Starting, _))) => Primary::Opening(self.jupyter(node)),
                    (Some(node), _) => Primary::StartJupyter(self.jupyter(node)),
                }
            }
            Status::Pending | Status::Starting | Status::Stopping | Status::Deleting => Primary::Wait,
        }
    }

    /// The reason to show: the vcluster's, or that of its newest operation when it failed.
    fn reason(&self) -> Option<&Reason> {
        self.view
            .reason
            .as_ref()
            .or_else(|| self.operations.first().filter(|op| op.outcome == "failed").and_then(|op| op.reason.as_ref()))
    }

    fn cli(&self, command: &str, rest: &str) -> String {
        let owner = if self.is_foreign() { format!(" --owner {}", self.view.owner) } else { String::new() };
        let node = self.first_up().unwrap_or("node1");
        format!("docklet {command}{owner} {}/{node}{rest}", self.view.name)
    }

    fn cli_connect(&self) -> String {
        self.cli("connect", "")
    }

    fn cli_exec(&self) -> String {
        self.cli("exec", " -- uname -a")
    }

    /// `10.0.0.5:10080`, or the port alone while its address is not known.
    fn reached(&self, port: &PortView) -> String {
        let at = port.address.as_deref().or(port.host.as_deref());
        at.map_or_else(|| format!("port {}", port.public_port), |at| format!("{at}:{}", port.public_port))
    }

    fn unpublish(&self, port: &PortView) -> String {
        self.url(&format!("ports/{}/{}/remove", port.protocol, port.public_port))
    }

    /// `10 Mbit/s in, no limit out`; nothing where there is none.
    fn limits(&self) -> Option<String> {
        let RateLimits { ingress_kbit, egress_kbit } = self.view.limits;
        let rate = |kbit: Option<u32>| match kbit {
            None => "no limit".to_owned(),
            Some(kbit) if kbit.is_multiple_of(1000) => format!("{} Mbit/s", kbit / 1000),
            Some(kbit) => format!("{kbit} kbit/s"),
        };
        let any = ingress_kbit.or(egress_kbit).is_some();
        any.then(|| format!("{} in, {} out", rate(ingress_kbit), rate(egress_kbit)))
    }

    fn host_labels(&self) -> String {
        html::labels(&self.view.host_labels)
    }

    fn started_in(&self, node: &NodeView) -> String {
        node.ready_millis.map_or_else(|| "–".to_owned(), html::millis)
    }

    /// Where a step's bar begins and how long it is, in percent of the whole change.
    fn span(&self, operation: &OperationView, step: &StepView) -> (u64, u64) {
        let whole = operation.steps.iter().map(|s| s.started_millis + s.millis).max().unwrap_or(0).max(1);
        let begins = (step.started_millis * 100 / whole).min(99);
        (begins, (step.millis * 100 / whole).clamp(1, 100 - begins))
    }
}

/// Title, status and actions. Event and element id: `vcluster-header`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_header.html")]
pub struct VclusterHeader<'a> {
    pub state: &'a VclusterState,
}

impl VclusterHeader<'_> {
    pub const ID: &'static str = "vcluster-header";
}

/// What is wrong or what to do now. Event and element id: `vcluster-next`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_next.html")]
pub struct VclusterNext<'a> {
    pub state: &'a VclusterState,
}

impl VclusterNext<'_> {
    pub const ID: &'static str = "vcluster-next";
}

/// The tiles of the apps. Event and element id: `vcluster-apps`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_apps.html")]
pub struct VclusterApps<'a> {
    pub state: &'a VclusterState,
}

impl VclusterApps<'_> {
    pub const ID: &'static str = "vcluster-apps";
}

/// Published ports. Event and element id: `vcluster-ports`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_ports.html")]
pub struct VclusterPorts<'a> {
    pub state: &'a VclusterState,
}

impl VclusterPorts<'_> {
    pub const ID: &'static str = "vcluster-ports";
}

/// The table of the nodes. Event and element id: `vcluster-nodes`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_nodes.html")]
pub struct VclusterNodes<'a> {
    pub state: &'a VclusterState,
}

impl VclusterNodes<'_> {
    pub const ID: &'static str = "vcluster-nodes";
}

/// Operations with their steps. Event and element id: `vcluster-timeline`.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/vcluster_timeline.html")]
pub struct VclusterTimeline<'a> {
    pub state: &'a VclusterState,
}

impl VclusterTimeline<'_> {
    pub const ID: &'static str = "vcluster-timeline";
}

/// An operation's headline: `Created`, `Scaling`, `Start failed`.
pub(crate) fn operation_title(operation: &OperationView) -> String {
    let (doing, done, noun) = match operation.action.as_str() {
        "create" => ("Creating", "Created", "Create"),
        "start" => ("Starting", "Started", "Start"),
        "stop" => ("Stopping", "Stopped", "Stop"),
        "scale" => ("Scaling", "Scaled", "Scaling"),
        "delete" => ("Deleting", "Deleted", "Delete"),
        "retry" => ("Trying again", "Tried again", "Retry"),
        other => (other, other, other),
    };
    match operation.outcome.as_str() {
        "running" => doing.to_owned(),
        "done" => done.to_owned(),
        "failed" => format!("{noun} failed"),
        "superseded" => format!("{noun} replaced by a later change"),
        other => format!("{noun}: {other}"),
    }
}

/// An operation's icon and colour's class.
pub(crate) fn operation_look(operation: &OperationView) -> (&'static str, &'static str) {
    match operation.outcome.as_str() {
        "running" => ("busy", "busy"),
        "done" => ("running", "ok"),
        "failed" => ("failed", "bad"),
        _ => ("stopped", "idle"),
    }
}

/// The scale form.
#[derive(Debug, Clone, Default)]
pub struct ScaleForm {
    /// As typed, or what is wanted now.
    pub nodes: String,
    pub error: Option<String>,
    /// The most that the quota allows for this vcluster; absent without a quota.
    pub max: Option<u32>,
}

/// The form that publishes a port.
#[derive(Debug, Clone, Default)]
pub struct PortForm {
    /// As typed.
    pub node: String,
    pub port: String,
    pub public_port: String,
    pub udp: bool,
    pub error: Option<String>,
}

/// `GET /vclusters/{name}`, and with an error the answer (422) to a refused `POST …/scale` or `POST …/ports`.
#[derive(Debug, Clone, Template)]
#[template(path = "vcluster.html")]
pub struct VclusterPage {
    pub shell: Shell,
    pub state: VclusterState,
    pub scale: ScaleForm,
    pub publish: PortForm,
}

/// `GET /vclusters/{name}/delete`: says what is lost and asks once.
#[derive(Debug, Clone, Template)]
#[template(path = "vcluster_delete.html")]
pub struct VclusterDeletePage {
    pub shell: Shell,
    pub view: VclusterView,
    pub nodes: Vec<NodeView>,
    /// Why the last attempt was refused.
    pub error: Option<String>,
}

impl VclusterDeletePage {
    fn url(&self, tail: &str) -> String {
        link::vcluster(&self.view.name, &self.view.owner, self.shell.username(), tail)
    }
}
