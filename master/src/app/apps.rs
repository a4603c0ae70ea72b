//! Apps that Docklet itself can start in a node. Jupyter is the one there is.
//!
//! What a node runs is not stored: the port tells. A task per start waits for the port and keeps the outcome for the
//! portal; what was started before this master came up, or by another one, is found by asking the port, and where a
//! person asks, the node.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use docklet_types::id::NodeId;
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::report::Reason;
use docklet_types::view::{AppStatus, AppView};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::nodes::{NodeError, Nodes};
use crate::proxy::address::{AppAddress, Public};
use crate::proxy::agent::AccessError;
use crate::proxy::routes::RouteTarget;

/// The name of the one app.
pub const JUPYTER: &str = "jupyter";
const JUPYTER_PORT: NonZeroU16 = match NonZeroU16::new(8888) {
    Some(port) => port,
    None => NonZeroU16::MIN,
};
/// In every image that has Jupyter. It returns at once, and again does nothing.
const START: &str = "/usr/local/bin/start_jupyter.sh";
/// Tells whether the start is under way: its unit is there before the port answers.
const IS_STARTED: [&str; 4] = ["systemctl", "show", "--property=ActiveState", "docklet-jupyter.service"];
/// How long the first start of Jupyter may take.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A port that answers does so at once.
const PROBE: Duration = Duration::from_millis(300);
/// How long an answer of the port is believed.
const FRESH: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
struct Known {
    /// The plan's generation: what was known of an earlier start of the node does not count.
    start: u64,
    status: AppStatus,
    reason: Option<Reason>,
    at: Instant,
}

/// See the module.
pub struct Apps {
    nodes: Arc<Nodes>,
    public: Public,
    known: Mutex<HashMap<NodeId, Known>>,
    changed: watch::Sender<u64>,
}

impl Apps {
    #[must_use]
    pub fn new(nodes: Arc<Nodes>, public: Public) -> Arc<Self> {
        Arc::new(Self { nodes, public, known: Mutex::default(), changed: watch::Sender::new(0) })
    }

    /// Wakes when an app is up, or will not come up.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn learn(&self, node: NodeId, status: AppStatus, reason: Option<Reason>) {
        let learned = Known { start: self.nodes.start_of(node), status, reason, at: Instant::now() };
        let before = self.known.lock().insert(node, learned);
        if before.is_none_or(|before| before.status != status) {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    fn recall(&self, node: NodeId) -> Option<Known> {
        let start = self.nodes.start_of(node);
        self.known.lock().get(&node).filter(|known| known.start == start).cloned()
    }

    fn shown(
        &self,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
        status: AppStatus,
        reason: Option<Reason>,
    ) -> AppView {
        let address =
            AppAddress { port: JUPYTER_PORT, node: node.clone(), vcluster: vcluster.clone(), user: owner.clone() };
        AppView {
            name: JUPYTER.to_owned(),
            port: JUPYTER_PORT.get(),
            url: self.public.app_url(&address, "/lab"),
            status,
            reason,
        }
    }

    /// Starts Jupyter where it does not run and answers at once; the app's status says when it answers.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn start(
        self: &Arc<Self>,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
    ) -> Result<AppView, NodeError> {
        let target = self.nodes.target(owner, vcluster, node)?;
        if self.nodes.access().wait_port(&target, JUPYTER_PORT.get(), PROBE).await.is_ok() {
            self.learn(target.node, AppStatus::Running, None);
            return Ok(self.shown(owner, vcluster, node, AppStatus::Running, None));
        }
        let output = self
            .nodes
            .access()
            .exec(&target, vec![START.to_owned()], String::new(), Duration::from_secs(20))
            .await
            .map_err(NodeError::Access)?;
        if output.exit_code != 0 {
            let reason = refused(output.exit_code, &output.stderr);
            self.learn(target.node, AppStatus::Failed, Some(reason.clone()));
            return Ok(self.shown(owner, vcluster, node, AppStatus::Failed, Some(reason)));
        }
        self.follow(target);
        Ok(self.shown(owner, vcluster, node, AppStatus::Starting, None))
    }

    /// Waits in the background for what is starting.
    fn follow(self: &Arc<Self>, target: RouteTarget) {
        self.learn(target.node, AppStatus::Starting, None);
        let this = Arc::clone(self);
        tokio::spawn(async move { this.await_port(target).await });
    }

    /// Whether somebody else has it started, as the node itself says.
    async fn was_started(&self, target: &RouteTarget) -> bool {
        let question = IS_STARTED.map(str::to_owned).to_vec();
        let answer = self.nodes.access().exec(target, question, String::new(), Duration::from_secs(5)).await;
        answer.is_ok_and(|output| {
            ["ActiveState=active", "ActiveState=activating", "ActiveState=reloading"].contains(&output.stdout.trim())
        })
    }

    async fn await_port(&self, target: RouteTarget) {
        let deadline = Instant::now() + START_LIMIT;
        let mut last = None;
        while Instant::now() < deadline {
            match self.nodes.access().wait_port(&target, JUPYTER_PORT.get(), Duration::from_secs(30)).await {
                Ok(()) => return self.learn(target.node, AppStatus::Running, None),
                Err(error @ AccessError::NotRunning) => {
                    last = Some(error);
                    break;
                }
                Err(error) => {
                    last = Some(error);
                    // An error that comes at once must not be asked for in a tight loop.
                    tokio::time::sleep(PROBE).await;
                }
            }
        }
        let message = match last {
            Some(AccessError::NotRunning) => {
                "The node stopped before Jupyter answered. Start it and open Jupyter again.".to_owned()
            }
            _ => format!(
                "Jupyter did not answer within {} s. Its log: journalctl -u docklet-jupyter in the node's terminal.",
                START_LIMIT.as_secs()
            ),
        };
        self.learn(target.node, AppStatus::Failed, Some(Reason::new("app_not_answering", message)));
    }

    /// How Jupyter is in the node, asking its port.
    ///
    /// # Errors
    /// See [`NodeError`].
    pub async fn get(
        self: &Arc<Self>,
        owner: &UserName,
        vcluster: &VclusterName,
        node: &NodeName,
    ) -> Result<AppView, NodeError> {
        let target = self.nodes.target(owner, vcluster, node)?;
        let (mut status, reason) = self.probe(&target).await;
        if status == AppStatus::Stopped && self.was_started(&target).await {
            status = AppStatus::Starting;
            self.follow(target);
        }
        Ok(self.shown(owner, vcluster, node, status, reason))
    }

    async fn probe(&self, target: &RouteTarget) -> (AppStatus, Option<Reason>) {
        match self.nodes.access().wait_port(target, JUPYTER_PORT.get(), PROBE).await {
            Ok(()) => {
                self.learn(target.node, AppStatus::Running, None);
                (AppStatus::Running, None)
            }
            Err(_) => {
                let known = self.recall(target.node);
                match known {
                    Some(Known { status: AppStatus::Starting, .. }) => (AppStatus::Starting, None),
                    Some(Known { status: AppStatus::Failed, reason, .. }) => (AppStatus::Failed, reason),
                    _ => {
                        self.learn(target.node, AppStatus::Stopped, None);
                        (AppStatus::Stopped, None)
                    }
                }
            }
        }
    }

    /// What is known of a node's Jupyter without asking; an old or missing answer is asked for in the background, and
    /// [`Apps::subscribe`] tells when it came.
    pub fn glance(self: &Arc<Self>, owner: &UserName, vcluster: &VclusterName, node: &NodeName) -> Option<AppView> {
        let target = self.nodes.target(owner, vcluster, node).ok()?;
        let known = self.recall(target.node);
        let stale = known.as_ref().is_none_or(|k| k.at.elapsed() > FRESH && k.status != AppStatus::Starting);
        if stale {
            if let Some(known) = self.known.lock().get_mut(&target.node) {
                // One question at a time.
                known.at = Instant::now();
            }
            let this = Arc::clone(self);
            tokio::spawn(async move { this.probe(&target).await });
        }
        let known = known.filter(|k| k.status != AppStatus::Stopped)?;
        Some(self.shown(owner, vcluster, node, known.status, known.reason))
    }

    /// Forgets nodes that are no more.
    pub fn keep_only(&self, alive: impl Fn(NodeId) -> bool) {
        self.known.lock().retain(|node, _| alive(*node));
    }
}

/// Why the start script would not.
fn refused(exit_code: i32, stderr: &str) -> Reason {
    let log: String =
        stderr.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    let reason = match exit_code {
        // The node's own shell: 127 and 126 mean that there is no such program.
        126 | 127 => {
            Reason::new("no_jupyter", "This image has no Jupyter. Make the vcluster from the image base or full.")
        }
        3 => Reason::new("no_jupyter", "This image has no JupyterLab. Make the vcluster from the image base or full."),
        code => Reason::new(
            "app_start_failed",
            format!("Jupyter could not be started; the start script ended with {code}."),
        ),
    };
    if log.is_empty() { reason } else { reason.with_log(log) }
}
