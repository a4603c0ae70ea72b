//! The endpoint for masters: sockets into nodes, terminals, commands, logs.
//!
//! One request per connection (see [`docklet_types::agent`]). The master of the same host comes through a unix socket
//! that only root may connect to; those of other hosts over TLS, where they show the certificate of a master. The
//! number of requests is bounded; a client that goes away takes its command with it.

use std::fs;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use docklet_identity::certificate;
use docklet_identity::message::{self, MessageError};
use docklet_identity::tls::Tls;
use docklet_types::agent::{AgentReply, AgentRequest, MAX_MESSAGE};
use docklet_types::join::MASTER_IDENTITY;
use docklet_types::report::Reason;
use docklet_worker_host::{Host, HostError};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::AddressFamily;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Requests that are served at once. A connection that became a stream is the kernel's, not ours, and does not count.
const AT_ONCE: usize = 1024;
/// A client has this long to say what it wants, and to take its answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// A port may be waited for this long at most.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// A command may run this long at most.
const MAX_EXEC: Duration = Duration::from_secs(3600);

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {at}")]
pub struct ListenError {
    at: String,
    source: io::Error,
}

/// The endpoint, open. Dropping it closes it.
pub struct Agent {
    socket: PathBuf,
    host: Arc<dyn Host>,
    slots: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

impl Agent {
    /// Listens on `socket`. The caller holds the worker's pid file, so one that is there already is a leftover.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn listen(socket: &Path, host: Arc<dyn Host>) -> Result<Self, ListenError> {
        let listener = bind(socket).map_err(|source| ListenError { at: socket.display().to_string(), source })?;
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&slots), Arc::clone(&host)));
        Ok(Self { socket: socket.to_owned(), host, slots, tasks })
    }

    /// Listens for masters of other hosts as well. Until there are certificates, nobody gets in.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn listen_for_others(&mut self, address: SocketAddr, tls: Tls) -> Result<SocketAddr, ListenError> {
        let told = |source| ListenError { at: format!("{address} (WORKER_PORT in the configuration)"), source };
        let listener = TcpListener::bind(address).await.map_err(told)?;
        let bound = listener.local_addr().map_err(told)?;
        self.tasks.spawn(accept_others(listener, tls, Arc::clone(&self.slots), Arc::clone(&self.host)));
        Ok(bound)
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

async fn accept(listener: UnixListener, slots: Arc<Semaphore>, host: Arc<dyn Host>) {
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
    let Some((reply, descriptor)) = take_request(&mut stream, host).await? else { return Ok(()) };
    tokio::time::timeout(PATIENCE, send(&mut stream, &reply, descriptor)).await?
}

async fn accept_others(listener: TcpListener, tls: Tls, slots: Arc<Semaphore>, host: Arc<dyn Host>) {
    let tls = Arc::new(tls);
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (tls, host) = (Arc::clone(&tls), Arc::clone(&host));
                tokio::spawn(async move {
                    if let Err(error) = serve_other(stream, &tls, host.as_ref(), slot).await {
                        tracing::debug!(%peer, %error, "a request of a master broke off");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_other(stream: TcpStream, tls: &Tls, host: &dyn Host, slot: OwnedSemaphorePermit) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let acceptor = TlsAcceptor::from(tls.server().map_err(io::Error::other)?);
    let mut stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    let peer = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    // Workers have certificates of the same authority.
    if !peer.is_some_and(|own| certificate::names(own).iter().any(|name| name == MASTER_IDENTITY)) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the peer is no master"));
    }
    let Some((reply, descriptor)) = take_request(&mut stream, host).await? else { return Ok(()) };
    tokio::time::timeout(PATIENCE, message::write(&mut stream, &reply, MAX_MESSAGE))
        .await?
        .map_err(io::Error::other)?;
    // A stream lives as long as its user likes; only requests are counted.
    drop(slot);
    match descriptor {
        Some(descriptor) => splice(&mut stream, descriptor).await,
        None => stream.shutdown().await,
    }
}

/// Carries bytes between a master and a socket into a node, until both sides have ended.
async fn splice<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, socket: OwnedFd) -> io::Result<()> {
    if rustix::net::sockopt::socket_domain(&socket)? == AddressFamily::UNIX {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        tokio::io::copy_bidirectional(stream, &mut UnixStream::from_std(socket)?).await?;
    } else {
        let socket = std::net::TcpStream::from(socket);
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        tokio::io::copy_bidirectional(stream, &mut TcpStream::from_std(socket)?).await?;
    }
    Ok(())
}

/// Reads one request and finds the answer; `None` where the client went away meanwhile.
async fn take_request<S: AsyncRead + Unpin>(
    stream: &mut S,
    host: &dyn Host,
) -> io::Result<Option<(AgentReply, Option<OwnedFd>)>> {
    let request = match tokio::time::timeout(PATIENCE, message::read(stream, MAX_MESSAGE)).await? {
        Ok(request) => request,
        Err(MessageError::Io(error)) => return Err(error),
        Err(MessageError::TooLong { .. }) => {
            let reason = Reason::new("bad_request", format!("A request has at most {MAX_MESSAGE} bytes."));
            return Ok(Some((AgentReply::Failed(reason), None)));
        }
        Err(MessageError::Unreadable(error)) => {
            let reason = Reason::new("bad_request", format!("The request cannot be read: {error}."));
            return Ok(Some((AgentReply::Failed(reason), None)));
        }
    };
    // A client says no more until it is answered: whatever comes, or the end, means that it has left.
    tokio::select! {
        answer = answer(host, request) => Ok(Some(answer)),
        _ = stream.read_u8() => Ok(None),
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
        AgentRequest::SendDisk { node, number, part, based } => {
            host.send_disk(node, number, part, based).await.map(|stream| (AgentReply::Stream, Some(stream)))
        }
        AgentRequest::TakeDisk { node, number, part } => {
            host.take_disk(node, number, part).await.map(|stream| match stream {
                Some(stream) => (AgentReply::Stream, Some(stream)),
                None => (AgentReply::Done, None),
            })
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
    let message = message::encode(reply, MAX_MESSAGE).map_err(io::Error::other)?;
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
