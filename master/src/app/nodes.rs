//! Commands and logs of single nodes, through the worker of their host.

use std::sync::Arc;
use std::time::Duration;

use docklet_types::id::NodeId;
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::view::{Exec, ExecResult};

use super::create::FieldError;
use crate::proxy::agent::{AccessError, NodeAccess};
use crate::proxy::routes::RouteTarget;
use crate::reconcile::ClusterView;

/// Seconds a command may take where the request does not say.
const DEFAULT_TIMEOUT_S: u32 = 60;
const MAX_TIMEOUT_S: u32 = 3600;
/// Lines of a log where the request does not say.
pub const DEFAULT_LINES: u32 = 200;
pub const MAX_LINES: u32 = 10_000;
/// As much as the kernel takes for one argument and for all of them, nearly.
const MAX_ARGUMENTS: usize = 1024;
const MAX_ARGUMENT: usize = 128 << 10;
/// Standard input that a request may carry.
const MAX_STDIN: usize = 1 << 20;

/// Why there is no answer from a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("there is no such vcluster")]
    NoVcluster,
    #[error("there is no such node")]
    NoNode,
    /// It has no host yet.
    #[error("the node has no host yet")]
    NotPlaced,
    #[error(transparent)]
    Field(FieldError),
    #[error(transparent)]
    Access(AccessError),
}

/// See the module.
pub struct Nodes {
    view: Arc<ClusterView>,
    access: Arc<dyn NodeAccess>,
}

impl Nodes {
    #[must_use]
    pub fn new(view: Arc<ClusterView>, access: Arc<dyn NodeAccess>) -> Self {
        Self { view, access }
    }

    pub(super) fn target(
        &self,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
    ) -> Result<RouteTarget, NodeError> {
        self.view.read(|cluster| {
            let spec = cluster.find(owner, vcluster).ok_or(NodeError::NoVcluster)?;
            if !spec.value.nodes.iter().any(|n| n.name == *node) {
                return Err(NodeError::NoNode);
            }
            let (node, host) = cluster.route(owner, vcluster, node).ok_or(NodeError::NotPlaced)?;
            let agent = cluster.host(&host).and_then(|h| h.report.as_ref()).and_then(|r| r.value.agent());
            Ok(RouteTarget { node, host, agent })
        })
    }

    /// Differs between two starts of a node.
    pub(super) fn start_of(&self, node: NodeId) -> u64 {
        self.view.read(|cluster| {
            cluster.node(node).and_then(|placed| placed.plan.as_ref()).map_or(0, |(_, plan)| plan.value.generation)
        })
    }

    pub(super) fn access(&self) -> &dyn NodeAccess {
        self.access.as_ref()
    }

    /// Runs a command in the node to its end.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn exec(
        &self,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
        request: Exec,
    ) -> Result<ExecResult, NodeError> {
        let target = self.target(owner, vcluster, node)?;
        let within = checked(&request).map_err(NodeError::Field)?;
        let output = self.access.exec(&target, request.argv, request.stdin, within).await.map_err(NodeError::Access)?;
        Ok(ExecResult {
            exit_code: output.exit_code,
            stdout: output.stdout,
            stderr: output.stderr,
            truncated: output.truncated,
        })
    }

    /// The end of the node's console log.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn logs(
        &self,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
        lines: u32,
    ) -> Result<String, NodeError> {
        let target = self.target(owner, vcluster, node)?;
        self.access.logs(&target, lines.clamp(1, MAX_LINES)).await.map_err(NodeError::Access)
    }
}

/// How long the command may take, where all of the request is in order.
fn checked(request: &Exec) -> Result<Duration, FieldError> {
    match request.argv.first() {
        None => return Err(FieldError::new("argv", "argv holds the command and its arguments; it is empty")),
        Some(program) if program.is_empty() => return Err(FieldError::new("argv", "the command is an empty text")),
        Some(_) => {}
    }
    if request.argv.len() > MAX_ARGUMENTS || request.argv.iter().any(|a| a.len() > MAX_ARGUMENT) {
        return Err(FieldError::new(
            "argv",
            format!("at most {MAX_ARGUMENTS} arguments of at most {MAX_ARGUMENT} bytes"),
        ));
    }
    if request.argv.iter().any(|a| a.contains('\0')) {
        return Err(FieldError::new("argv", "an argument cannot hold a NUL character"));
    }
    if request.stdin.len() > MAX_STDIN {
        return Err(FieldError::new("stdin", format!("at most {MAX_STDIN} bytes")));
    }
    let seconds = request.timeout_s.unwrap_or(DEFAULT_TIMEOUT_S);
    if !(1..=MAX_TIMEOUT_S).contains(&seconds) {
        return Err(FieldError::new("timeout_s", format!("timeout_s is from 1 to {MAX_TIMEOUT_S} seconds")));
    }
    Ok(Duration::from_secs(seconds.into()))
}
