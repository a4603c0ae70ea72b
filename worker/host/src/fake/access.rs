//! Ways into a node of the fake: real sockets, a handful of commands, a terminal that echoes.

use async_trait::async_trait;
use docklet_types::agent::ExecOutput;
use docklet_types::id::NodeId;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{FakeHost, FakeNode, Op};
use crate::reason::failed;
use crate::{Access, HostError, Result};

impl FakeHost {
    /// The node while it runs.
    fn running<T>(&self, id: NodeId, look: impl FnOnce(&FakeNode) -> T) -> Result<T> {
        let state = self.state();
        let node = state.nodes.get(&id).filter(|n| n.init.is_some());
        node.map(look).ok_or_else(|| HostError::new("not_running", "The node does not run."))
    }
}

/// Two ends of a TCP connection.
fn connection() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let (theirs, _) = listener.accept()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    Ok((ours, theirs))
}

/// The far side: sshd greets, everything else echoes.
async fn serve(stream: TcpStream, port: u16) -> io::Result<()> {
    let mut stream = tokio::net::TcpStream::from_std(stream)?;
    if port == 22 {
        return stream.write_all(b"SSH-2.0-docklet-fake\r\n").await;
    }
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await.map(drop)
}

#[async_trait]
impl Access for FakeHost {
    async fn dial(&self, id: NodeId, port: u16) -> Result<Option<OwnedFd>> {
        self.enter(Op::Dial, Some(id)).await?;
        if !self.running(id, |n| n.listening.contains(&port))? {
            return Ok(None);
        }
        let (ours, theirs) = connection().map_err(|e| failed("dial_failed", "The port could not be reached", &e))?;
        tokio::spawn(serve(theirs, port));
        Ok(Some(ours.into()))
    }

    async fn wait_port(&self, id: NodeId, port: u16, timeout: Duration) -> Result<bool> {
        self.enter(Op::WaitPort, Some(id)).await?;
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            if self.running(id, |n| n.listening.contains(&port))? {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn terminal(&self, id: NodeId, session: &str, _cols: u16, _rows: u16) -> Result<OwnedFd> {
        self.enter(Op::Terminal, Some(id)).await?;
        if session.is_empty()
            || session.len() > 40
            || !session.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return Err(HostError::new(
                "terminal_failed",
                "A terminal session is named by 1 to 40 of a-z, 0-9 and '-'.",
            ));
        }
        self.running(id, |_| ())?;
        let session = {
            let mut state = self.state();
            let entry = state.sessions.entry((id, session.to_owned())).or_default();
            if entry.has_ended() {
                *entry = Arc::default();
            }
            Arc::clone(entry)
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(|e| failed("terminal_failed", "The terminal could not be opened", &e))?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).map_err(|e| failed("terminal_failed", "The terminal could not be opened", &e))?;
        }
        tokio::spawn(session.serve(theirs));
        Ok(ours.into())
    }

    async fn exec(&self, id: NodeId, argv: &[String], stdin: &str, timeout: Duration) -> Result<Option<ExecOutput>> {
        self.enter(Op::Exec, Some(id)).await?;
        let name = self.running(id, |n| n.name.clone())?;
        let done = |exit_code: i32, stdout: String| {
            Ok(Some(ExecOutput { exit_code, stdout, stderr: String::new(), truncated: false }))
        };
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["true"] => done(0, String::new()),
            ["false"] => done(1, String::new()),
            ["hostname"] => done(0, name.map(|n| format!("{n}\n")).unwrap_or_default()),
            ["cat"] => done(0, stdin.to_owned()),
            ["echo", rest @ ..] => done(0, format!("{}\n", rest.join(" "))),
            ["sleep", seconds] => {
                let wanted = Duration::from_secs_f64(seconds.parse().unwrap_or(0.0));
                tokio::time::sleep(wanted.min(timeout)).await;
                if wanted > timeout { Ok(None) } else { done(0, String::new()) }
            }
            ["sh", "-c", script] => {
                done(script.strip_prefix("exit ").and_then(|n| n.parse().ok()).unwrap_or(0), String::new())
            }
            [] => Err(HostError::new("exec_failed", "There is no command.")),
            [command, ..] => {
                let stderr = format!("{command}: command not found\n");
                Ok(Some(ExecOutput { exit_code: 127, stdout: String::new(), stderr, truncated: false }))
            }
        }
    }

    async fn logs(&self, id: NodeId, lines: u32) -> Result<String> {
        self.enter(Op::Logs, Some(id)).await?;
        let state = self.state();
        let console = state.nodes.get(&id).map(|n| n.console.as_str()).unwrap_or_default();
        let all: Vec<&str> = console.lines().collect();
        let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
        Ok(all[all.len().saturating_sub(wanted)..].iter().map(|l| format!("{l}\n")).collect())
    }
}

/// Reads a frame: its kind and payload.
pub(super) async fn read_frame(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    use docklet_types::agent::frame;
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await? as usize;
    if length > frame::MAX_PAYLOAD {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((kind, payload))
}
