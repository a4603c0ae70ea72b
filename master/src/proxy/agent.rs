//! Streams into nodes, and commands and logs of them: what the worker does for the master directly.
//!
//! [`NodeAccess`] is what the rest of the master knows. [`AgentClient`] is the one for the worker of the same host: it
//! hands over the connected socket itself (`SCM_RIGHTS`), so that no byte of an app goes through the worker.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use docklet_types::agent::{AgentReply, AgentRequest, ExecOutput, MAX_MESSAGE};
use docklet_types::report::Reason;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

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
}

/// Beyond what the worker itself was given, before it counts as down.
const GRACE: Duration = Duration::from_secs(5);
const DIAL: Duration = Duration::from_secs(5);
const TERMINAL: Duration = Duration::from_secs(10);
const LOGS: Duration = Duration::from_secs(10);

/// The worker of this host, over its unix socket; one request per connection.
#[derive(Debug, Clone)]
pub struct AgentClient {
    socket: PathBuf,
}

impl AgentClient {
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    async fn ask(
        &self,
        request: &AgentRequest,
        within: Duration,
    ) -> Result<(AgentReply, Option<OwnedFd>), AccessError> {
        let asked = timeout(within, async {
            let mut stream = UnixStream::connect(&self.socket).await.map_err(down)?;
            let body = serde_json::to_vec(request).map_err(|_| AccessError::Protocol)?;
            let length = u32::try_from(body.len()).ok().filter(|n| *n <= MAX_MESSAGE).ok_or(AccessError::Protocol)?;
            let mut message = length.to_be_bytes().to_vec();
            message.extend_from_slice(&body);
            stream.write_all(&message).await.map_err(down)?;
            receive(&mut stream).await
        });
        asked.await.map_err(|_| AccessError::TimedOut)?
    }

    async fn ask_for_stream(&self, request: &AgentRequest, within: Duration) -> Result<OwnedFd, AccessError> {
        match self.ask(request, within).await? {
            (AgentReply::Stream, Some(fd)) => Ok(fd),
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

/// Reads a reply and the descriptor that came with its first byte.
async fn receive(stream: &mut UnixStream) -> Result<(AgentReply, Option<OwnedFd>), AccessError> {
    let mut header = [0_u8; 4];
    let (mut have, fd) =
        stream.async_io(Interest::READABLE, || receive_with_fd(stream, &mut header)).await.map_err(down)?;
    if have == 0 {
        return Err(down(io::ErrorKind::UnexpectedEof.into()));
    }
    while have < header.len() {
        let n = stream.read(&mut header[have..]).await.map_err(down)?;
        if n == 0 {
            return Err(down(io::ErrorKind::UnexpectedEof.into()));
        }
        have += n;
    }
    let length = u32::from_be_bytes(header);
    if length > MAX_MESSAGE {
        return Err(AccessError::Protocol);
    }
    let mut body = vec![0_u8; length as usize];
    stream.read_exact(&mut body).await.map_err(down)?;
    let reply = serde_json::from_slice(&body).map_err(|_| AccessError::Protocol)?;
    Ok((reply, fd))
}

fn receive_with_fd(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut fd = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // One is expected; any other is closed here.
            fd = fds.into_iter().next();
        }
    }
    Ok((received.bytes, fd))
}

#[async_trait]
impl NodeAccess for AgentClient {
    async fn dial(&self, target: &RouteTarget, port: u16) -> Result<NodeStream, AccessError> {
        let fd = self.ask_for_stream(&AgentRequest::Dial { node: target.node, port }, DIAL + GRACE).await?;
        let stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(true).map_err(down)?;
        // Small frames of WebSockets must not wait for each other.
        stream.set_nodelay(true).map_err(down)?;
        Ok(Box::new(TcpStream::from_std(stream).map_err(down)?))
    }

    async fn wait_port(&self, target: &RouteTarget, port: u16, within: Duration) -> Result<(), AccessError> {
        let timeout_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX).min(60_000);
        let request = AgentRequest::WaitPort { node: target.node, port, timeout_ms };
        match self.ask(&request, within + GRACE).await?.0 {
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
        let stream = std::os::unix::net::UnixStream::from(self.ask_for_stream(&request, TERMINAL).await?);
        stream.set_nonblocking(true).map_err(down)?;
        Ok(Box::new(UnixStream::from_std(stream).map_err(down)?))
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
        match self.ask(&request, within + GRACE).await?.0 {
            AgentReply::Exec(output) => Ok(output),
            other => Err(refusal(other)),
        }
    }

    async fn logs(&self, target: &RouteTarget, lines: u32) -> Result<String, AccessError> {
        match self.ask(&AgentRequest::Logs { node: target.node, lines }, LOGS).await?.0 {
            AgentReply::Logs { text } => Ok(text),
            other => Err(refusal(other)),
        }
    }
}
