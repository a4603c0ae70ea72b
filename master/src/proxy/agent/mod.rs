//! Streams into nodes, and commands and logs of them: what workers do for the master directly.
//!
//! [`NodeAccess`] is what the rest of the master knows, [`Agents`] how it is done: the worker of the same host hands over
//! the connected socket itself ([`local`]), so that no byte of an app goes through the worker; from other hosts the bytes
//! travel over TLS ([`remote`]).

mod local;
mod remote;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use docklet_identity::tls::Tls;
use docklet_types::agent::{AgentReply, AgentRequest, ExecOutput, Part};
use docklet_types::name::HostName;
use docklet_types::report::Reason;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use self::local::LocalAgent;
use self::remote::RemoteAgent;
use super::routes::RouteTarget;

/// A byte stream into a node.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A byte stream into a node, of whatever kind.
pub type NodeStream = Box<dyn Stream>;

/// Why there is no stream, or no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    #[error("the node does not run")]
    NotRunning,
    #[error("nothing listens on that port in the node")]
    Refused,
    #[error("the node did not answer in time")]
    TimedOut,
    #[error("the worker of the node's host cannot be reached")]
    WorkerDown(#[source] Arc<io::Error>),
    #[error("the worker of the node's host answered something else than was asked")]
    Protocol,
    #[error("{}", .0.message)]
    Failed(Reason),
}

/// The name of a shell of a node: `[a-z0-9-]{1,40}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShellName(String);

impl ShellName {
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let good =
            (1..=40).contains(&text.len()) && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        good.then(|| Self(text.to_owned()))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    pub cols: u16,
    pub rows: u16,
}

/// What can be done with a node from outside of it.
#[async_trait]
pub trait NodeAccess: Send + Sync + 'static {
    /// A TCP connection to a port on the node's own loopback.
    async fn dial(&self, target: &RouteTarget, port: u16) -> Result<NodeStream, AccessError>;

    /// Returns when something listens there; `within` is at most a minute.
    async fn wait_port(&self, target: &RouteTarget, port: u16, within: Duration) -> Result<(), AccessError>;

    /// The shell of that name, started where there is none. Speaks `docklet_types::agent::frame`.
    async fn terminal(
        &self,
        target: &RouteTarget,
        shell: &ShellName,
        size: WindowSize,
    ) -> Result<NodeStream, AccessError>;

    /// Runs a command to its end.
    async fn exec(
        &self,
        target: &RouteTarget,
        argv: Vec<String>,
        stdin: String,
        within: Duration,
    ) -> Result<ExecOutput, AccessError>;

    /// The end of the node's console log.
    async fn logs(&self, target: &RouteTarget, lines: u32) -> Result<String, AccessError>;

    /// A copy of the node's disk, for the move of that number. Speaks `docklet_types::agent::disk`.
    async fn send_disk(
        &self,
        target: &RouteTarget,
        number: u64,
        part: Part,
        based: bool,
    ) -> Result<NodeStream, AccessError>;

    /// Where to write such a copy; `None` where that part was taken before.
    async fn take_disk(&self, target: &RouteTarget, number: u64, part: Part)
    -> Result<Option<NodeStream>, AccessError>;
}

/// Beyond what the worker itself was given, before it counts as down.
const GRACE: Duration = Duration::from_secs(5);
const DIAL: Duration = Duration::from_secs(5);
const TERMINAL: Duration = Duration::from_secs(10);
const LOGS: Duration = Duration::from_secs(10);
/// A snapshot writes out what the node has not written yet.
const DISK: Duration = Duration::from_secs(60);

/// The workers of all hosts; one request per connection.
pub struct Agents {
    local: LocalAgent,
    remote: Option<(HostName, RemoteAgent)>,
}

impl Agents {
    /// Knows the worker of this machine only.
    #[must_use]
    pub fn of_this_machine(socket: PathBuf) -> Self {
        Self { local: LocalAgent::new(socket), remote: None }
    }

    /// `own` is the host of this machine; all others are reached with the certificates of `tls`.
    #[must_use]
    pub fn of_all_hosts(socket: PathBuf, own: HostName, tls: Tls) -> Self {
        Self { local: LocalAgent::new(socket), remote: Some((own, RemoteAgent::new(tls))) }
    }

    /// Asks the worker of the target's host. The stream is there where the reply says so.
    async fn ask(
        &self,
        target: &RouteTarget,
        request: &AgentRequest,
        within: Duration,
    ) -> Result<(AgentReply, Option<NodeStream>), AccessError> {
        let asked = async {
            let elsewhere = self.remote.as_ref().filter(|(own, _)| target.host != *own);
            match (elsewhere, target.agent) {
                (Some((_, remote)), Some(address)) => remote.ask(&target.host, address, request).await,
                // A host that takes no connections of other machines is this one, by whatever name, or out of reach.
                (Some(_), None) => match self.local.ask(request).await {
                    Ok((AgentReply::NotRunning, _)) => Err(down(io::Error::new(
                        io::ErrorKind::AddrNotAvailable,
                        format!("the host {} takes no connections of masters", target.host),
                    ))),
                    other => other,
                },
                (None, _) => self.local.ask(request).await,
            }
        };
        timeout(within, asked).await.map_err(|_| AccessError::TimedOut)?
    }

    async fn ask_for_stream(
        &self,
        target: &RouteTarget,
        request: &AgentRequest,
        within: Duration,
    ) -> Result<NodeStream, AccessError> {
        match self.ask(target, request, within).await? {
            (AgentReply::Stream, Some(stream)) => Ok(stream),
            (other, _) => Err(refusal(other)),
        }
    }
}

fn down(error: io::Error) -> AccessError {
    AccessError::WorkerDown(Arc::new(error))
}

/// A reply that is not the one hoped for.
fn refusal(reply: AgentReply) -> AccessError {
    match reply {
        AgentReply::NotRunning => AccessError::NotRunning,
        AgentReply::Refused => AccessError::Refused,
        AgentReply::TimedOut => AccessError::TimedOut,
        AgentReply::Failed(reason) => AccessError::Failed(reason),
        AgentReply::Stream | AgentReply::Done | AgentReply::Exec(_) | AgentReply::Logs { .. } => AccessError::Protocol,
    }
}

#[async_trait]
impl NodeAccess for Agents {
    async fn dial(&self, target: &RouteTarget, port: u16) -> Result<NodeStream, AccessError> {
        self.ask_for_stream(target, &AgentRequest::Dial { node: target.node, port }, DIAL + GRACE).await
    }

    async fn wait_port(&self, target: &RouteTarget, port: u16, within: Duration) -> Result<(), AccessError> {
        let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).min(60_000);
        let request = AgentRequest::WaitPort { node: target.node, port, timeout_ms };
        match self.ask(target, &request, within + GRACE).await?.0 {
            AgentReply::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    async fn terminal(
        &self,
        target: &RouteTarget,
        shell: &ShellName,
        size: WindowSize,
    ) -> Result<NodeStream, AccessError> {
        let request =
            AgentRequest::Terminal { node: target.node, session: shell.0.clone(), cols: size.cols, rows: size.rows };
        self.ask_for_stream(target, &request, TERMINAL).await
    }

    async fn exec(
        &self,
        target: &RouteTarget,
        argv: Vec<String>,
        stdin: String,
        within: Duration,
    ) -> Result<ExecOutput, AccessError> {
        let timeout_s = u32::try_from(within.as_secs()).unwrap_or(u32::MAX).max(1);
        let request = AgentRequest::Exec { node: target.node, argv, stdin, timeout_s };
        match self.ask(target, &request, within + GRACE).await?.0 {
            AgentReply::Exec(output) => Ok(output),
            other => Err(refusal(other)),
        }
    }

    async fn logs(&self, target: &RouteTarget, lines: u32) -> Result<String, AccessError> {
        match self.ask(target, &AgentRequest::Logs { node: target.node, lines }, LOGS).await?.0 {
            AgentReply::Logs { text } => Ok(text),
            other => Err(refusal(other)),
        }
    }

    async fn send_disk(
        &self,
        target: &RouteTarget,
        number: u64,
        part: Part,
        based: bool,
    ) -> Result<NodeStream, AccessError> {
        let request = AgentRequest::SendDisk { node: target.node, number, part, based };
        self.ask_for_stream(target, &request, DISK).await
    }

    async fn take_disk(
        &self,
        target: &RouteTarget,
        number: u64,
        part: Part,
    ) -> Result<Option<NodeStream>, AccessError> {
        match self.ask(target, &AgentRequest::TakeDisk { node: target.node, number, part }, DISK).await? {
            (AgentReply::Stream, Some(stream)) => Ok(Some(stream)),
            (AgentReply::Done, _) => Ok(None),
            (other, _) => Err(refusal(other)),
        }
    }
}
