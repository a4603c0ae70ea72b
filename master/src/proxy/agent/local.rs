//! The worker of this machine, over its unix socket: it hands over the connected socket itself (`SCM_RIGHTS`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use docklet_identity::message;
use docklet_types::agent::{AgentReply, AgentRequest, MAX_MESSAGE};
use rustix::net::{AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};

use super::{AccessError, NodeStream, down};

/// See the module.
#[derive(Debug)]
pub(super) struct LocalAgent {
    socket: PathBuf,
}

impl LocalAgent {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn ask(&self, request: &AgentRequest) -> Result<(AgentReply, Option<NodeStream>), AccessError> {
        let mut stream = UnixStream::connect(&self.socket).await.map_err(down)?;
        let message = message::encode(request, MAX_MESSAGE).map_err(|_| AccessError::Protocol)?;
        stream.write_all(&message).await.map_err(down)?;
        let (reply, fd) = receive(&mut stream).await?;
        Ok((reply, fd.map(adopt).transpose().map_err(down)?))
    }
}

/// A socket that was handed over: TCP into the node, or a unix socket to a shell.
fn adopt(fd: OwnedFd) -> io::Result<NodeStream> {
    if rustix::net::sockopt::socket_domain(&fd)? == AddressFamily::UNIX {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        return Ok(Box::new(UnixStream::from_std(stream)?));
    }
    let stream = std::net::TcpStream::from(fd);
    stream.set_nonblocking(true)?;
    // Small frames of WebSockets must not wait for each other.
    stream.set_nodelay(true)?;
    Ok(Box::new(TcpStream::from_std(stream)?))
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
