//! The endpoint for the master of the same host: sockets into nodes, terminals, commands, logs.
//!
//! One request per connection (see [`docklet_types::agent`]). Only root may connect; the number of connections is
//! bounded; a client that goes away takes its command with it.

use std::fs;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use docklet_types::agent::{AgentReply, AgentRequest, MAX_MESSAGE};
use docklet_types::report::Reason;
use docklet_worker_host::{Host, HostError};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Requests that are served at once. A connection that became a stream is the kernel's, not ours, and does not count.
const AT_ONCE: usize = 1024;
/// A client has this long to say what it wants, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A port may be waited for this long at most.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A command may run this long at most.
const MAX_EXEC: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {}", socket.display())]
pub struct ListenError {
    socket: PathBuf,
    source: io::Error,
}

/// The endpoint, open. Dropping it closes it.
pub struct Agent {
    socket: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.socket);
    }
}

impl Agent {
    /// Listens on `socket`. The caller holds the worker's pid file, so one that is there already is a leftover.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn listen(socket: &Path, host: Arc<dyn Host>) -> Result<Self, ListenError> {
        let listener = bind(socket).map_err(|source| ListenError { socket: socket.to_owned(), source })?;
        Ok(Self { socket: socket.to_owned(), task: tokio::spawn(accept(listener, host)) })
    }
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = socket.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    // Made under another name, so that nobody can connect before the mode is set.
    let fresh = socket.with_extension("new");
    for leftover in [&fresh, socket] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, socket)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, host: Arc<dyn Host>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let host = host.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, host.as_ref()).await {
                        tracing::debug!(%error, "a request of the master broke off");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(mut stream: UnixStream, host: &dyn Host) -> io::Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    let peer = stream.peer_cred()?.uid();
    // The socket's mode says so already; this holds where a mode was changed. Tests run the worker as somebody else.
    if peer != 0 && peer != own {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = match tokio::time::timeout(PATIENCE, read_request(&mut stream)).await?? {
        Ok(request) => request,
        Err(reason) => return send(&mut stream, &AgentReply::Failed(reason), None).await,
    };
    let (reply, descriptor) = tokio::select! {
        answer = answer(host, request) => answer,
        () = hung_up(&stream) => return Ok(()),
    };
    tokio::time::timeout(PATIENCE, send(&mut stream, &reply, descriptor)).await?
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Result<AgentRequest, Reason>> {
    let length = stream.read_u32().await?;
    if length > MAX_MESSAGE {
        return Ok(Err(Reason::new("bad_request", format!("A request has at most {MAX_MESSAGE} bytes."))));
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 != u64::from(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&bytes)
        .map_err(|error| Reason::new("bad_request", format!("The request cannot be read: {error}."))))
}

/// Returns when the client closed its end, or sends what no client sends.
async fn hung_up(stream: &UnixStream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0; 1]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

async fn answer(host: &dyn Host, request: AgentRequest) -> (AgentReply, Option<OwnedFd>) {
    let outcome = match request {
        AgentRequest::Dial { node, port } => host.dial(node, port).await.map(|socket| match socket {
            Some(socket) => (AgentReply::Stream, Some(socket)),
            None => (AgentReply::Refused, None),
        }),
        AgentRequest::WaitPort { node, port, timeout_ms } => {
            let limit = Duration::from_millis(timeout_ms.into()).min(MAX_WAIT);
            host.wait_port(node, port, limit)
                .await
                .map(|open| (if open { AgentReply::Done } else { AgentReply::TimedOut }, None))
        }
        AgentRequest::Terminal { node, session, cols, rows } => {
            let named = (1..=40).contains(&session.len())
                && session.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
            if named {
                host.terminal(node, &session, cols, rows).await.map(|stream| (AgentReply::Stream, Some(stream)))
            } else {
                Err(HostError(Reason::new("bad_request", "A session's name has 1 to 40 of a-z, 0-9 and '-'.")))
            }
        }
        AgentRequest::Exec { argv, .. } if argv.is_empty() => {
            Err(HostError(Reason::new("bad_request", "A command needs at least a program.")))
        }
        AgentRequest::Exec { node, argv, stdin, timeout_s } => {
            let limit = Duration::from_secs(timeout_s.into()).min(MAX_EXEC);
            host.exec(node, &argv, &stdin, limit)
                .await
                .map(|output| (output.map_or(AgentReply::TimedOut, AgentReply::Exec), None))
        }
        AgentRequest::Logs { node, lines } => {
            host.logs(node, lines.min(100_000)).await.map(|text| (AgentReply::Logs { text }, None))
        }
    };
    match outcome {
        Ok(answer) => answer,
        Err(HostError(reason)) if reason.code == "not_running" => (AgentReply::NotRunning, None),
        Err(HostError(reason)) => (AgentReply::Failed(reason), None),
    }
}

/// Sends length and document; a descriptor goes with the first byte.
async fn send(stream: &mut UnixStream, reply: &AgentReply, descriptor: Option<OwnedFd>) -> io::Result<()> {
    let document = serde_json::to_vec(reply)?;
    let length = u32::try_from(document.len()).ok().filter(|l| *l <= MAX_MESSAGE).ok_or(io::ErrorKind::InvalidData)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&document);
    let mut sent = 0;
    if let Some(descriptor) = descriptor {
        let descriptors = [descriptor.as_raw_fd()];
        sent = stream
            .async_io(Interest::WRITABLE, || {
                let control = [ControlMessage::ScmRights(&descriptors)];
                sendmsg::<()>(
                    stream.as_raw_fd(),
                    &[IoSlice::new(&message)],
                    &control,
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )
                .map_err(io::Error::from)
            })
            .await?;
    }
    stream.write_all(&message[sent..]).await?;
    stream.shutdown().await
}
