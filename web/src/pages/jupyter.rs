//! Jupyter on its way up: a page that turns into the app by itself.

use crate::shell::Shell;
use crate::{assets, html, link};
use askama::Template;
use docklet_types::status::Status;
use docklet_types::view::{AppStatus, AppView, VclusterView};

/// The part that lives. Event and element id: `jupyter-<node>`. Once the app answers it carries `data-go` with the
/// app's address, and the browser goes there.
#[derive(Debug, Clone, Copy, Template)]
#[template(path = "parts/jupyter_progress.html")]
pub struct JupyterProgress<'a> {
    pub app: &'a AppView,
    pub node: &'a str,
    pub view: &'a VclusterView,
    /// The viewer's user name.
    pub viewer: &'a str,
}

impl JupyterProgress<'_> {
    #[must_use]
    pub fn id(&self) -> String {
        format!("jupyter-{}", self.node)
    }

    fn vcluster_url(&self) -> String {
        link::vcluster(&self.view.name, &self.view.owner, self.viewer, "")
    }

    fn start_url(&self) -> String {
        link::jupyter(&self.view.name, &self.view.owner, self.viewer, self.node)
    }

    fn is_running(&self) -> bool {
        self.app.status == AppStatus::Running
    }

    fn is_starting(&self) -> bool {
        self.app.status == AppStatus::Starting
    }

    fn is_failed(&self) -> bool {
        self.app.status == AppStatus::Failed
    }

    fn vcluster_is_up(&self) -> bool {
        matches!(self.view.status, Status::Running | Status::Degraded)
    }
}

/// `GET /vclusters/{name}/nodes/{node}/jupyter` while the app does not answer yet.
#[derive(Debug, Clone, Template)]
#[template(path = "jupyter.html")]
pub struct JupyterPage {
    pub shell: Shell,
    pub view: VclusterView,
    pub node: String,
    pub app: AppView,
}

impl JupyterPage {
    fn progress(&self) -> JupyterProgress<'_> {
        JupyterProgress { app: &self.app, node: &self.node, view: &self.view, viewer: self.shell.username() }
    }

    fn live(&self) -> String {
        link::live_vcluster(&self.view.name, &self.view.owner, self.shell.username())
    }

    fn vcluster_url(&self) -> String {
        link::vcluster(&self.view.name, &self.view.owner, self.shell.username(), "")
    }
}
