//! The terminal page: full height, a tab per node.

use crate::shell::Shell;
use crate::{assets, html, link};
use askama::Template;
use docklet_types::status::Status;
use docklet_types::view::{NodeView, VclusterView};

/// `GET /vclusters/{name}/terminal?node=`
#[derive(Debug, Clone, Template)]
#[template(path = "terminal.html")]
pub struct TerminalPage {
    pub shell: Shell,
    pub view: VclusterView,
    pub nodes: Vec<NodeView>,
    /// The node whose tab is open.
    pub node: String,
}

impl TerminalPage {
    fn url(&self, tail: &str) -> String {
        link::vcluster(&self.view.name, &self.view.owner, self.shell.username(), tail)
    }

    fn node_url(&self, node: &str) -> String {
        link::terminal(&self.view.name, &self.view.owner, self.shell.username(), node)
    }

    fn is_current(&self, node: &NodeView) -> bool {
        node.name == self.node
    }

    fn current(&self) -> Option<&NodeView> {
        self.nodes.iter().find(|n| n.name == self.node)
    }

    fn is_stopped(&self) -> bool {
        matches!(self.view.status, Status::Stopped | Status::Stopping)
    }

    fn can_connect(&self) -> bool {
        self.current().is_some_and(|n| !matches!(n.status, Status::Stopped | Status::Stopping | Status::Deleting))
    }

    /// The WebSocket's path, without the session.
    fn socket(&self) -> String {
        let base = format!(
            "/api/v1/vclusters/{}/nodes/{}/terminal?flow=ack",
            link::encode(&self.view.name),
            link::encode(&self.node)
        );
        self.with_owner(base, '&')
    }

    /// Where the element asks why it cannot connect.
    fn nodes_api(&self) -> String {
        self.with_owner(format!("/api/v1/vclusters/{}/nodes", link::encode(&self.view.name)), '?')
    }

    fn with_owner(&self, url: String, joint: char) -> String {
        if self.view.owner == self.shell.username() {
            url
        } else {
            format!("{url}{joint}owner={}", link::encode(&self.view.owner))
        }
    }
}
