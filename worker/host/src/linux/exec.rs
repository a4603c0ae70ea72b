//! One command in a node, run to its end by the helper.

use docklet_types::agent::{ExecOutput, MAX_EXEC_OUTPUT};
use docklet_types::report::Reason;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::lxc::{Command, Container, LxcError};
use super::sys;
use crate::reason::chain;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    pub container: String,
    pub lxcpath: PathBuf,
    pub argv: Vec<String>,
    pub stdin: String,
    pub timeout_ms: u64,
}

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("there is no command")]
    Empty,
    #[error("an argument has a zero byte")]
    Nul,
    #[error("the node could not be entered")]
    Attach(#[source] LxcError),
    #[error("the command's output could not be read")]
    Io(#[source] io::Error),
}

/// How long to go on reading after the command ended, while a child of it still holds its output open.
const LINGER: Duration = Duration::from_millis(50);

/// The environment of whatever is run in a node; nothing of the host's.
pub fn environment() -> Vec<CString> {
    [
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        c"HOME=/root",
        c"USER=root",
        c"LOGNAME=root",
        c"SHELL=/bin/bash",
        c"TERM=xterm-256color",
        c"LANG=C.UTF-8",
    ]
    .map(CString::from)
    .to_vec()
}

/// `None`: the command did not end in time and was killed.
pub fn run(request: ExecRequest) -> Result<Option<ExecOutput>, Reason> {
    attempt(request).map_err(|e| Reason::new("exec_failed", format!("The command could not be run: {}.", chain(&e))))
}

fn attempt(request: ExecRequest) -> Result<Option<ExecOutput>, ExecError> {
    let argv: Vec<CString> =
        request.argv.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(|_| ExecError::Nul)?;
    if argv.is_empty() {
        return Err(ExecError::Empty);
    }
    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|e| ExecError::Io(e.into()));
    let ((in_r, in_w), (out_r, out_w), (err_r, err_w)) = (pipe()?, pipe()?, pipe()?);
    for end in [&in_w, &out_r, &err_r] {
        nonblocking(end).map_err(ExecError::Io)?;
    }
    let container = Container::new(&request.container, &request.lxcpath).map_err(ExecError::Attach)?;
    let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
    let command = Command {
        argv,
        env: environment(),
        stdin: in_r.as_raw_fd(),
        stdout: out_w.as_raw_fd(),
        stderr: err_w.as_raw_fd(),
        terminal: false,
    };
    let pid = container.attach(&command).map_err(ExecError::Attach)?;
    drop((in_r, out_w, err_w));
    let mut child = Child { pid, pidfd: sys::pidfd_open(pid).map_err(ExecError::Io)?, status: None };
    let mut pumps = Pumps::new(in_w, request.stdin.into_bytes(), out_r, err_r);
    let ended = pumps.until_end(&mut child, deadline).map_err(ExecError::Io)?;
    if !ended {
        child.kill();
        return Ok(None);
    }
    let exit_code = child.exit_code();
    let truncated = pumps.out.cut || pumps.err.cut;
    Ok(Some(ExecOutput { exit_code, stdout: pumps.out.text(), stderr: pumps.err.text(), truncated }))
}

pub fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A process in the node, which is this process's child.
struct Child {
    pid: i32,
    pidfd: OwnedFd,
    status: Option<i32>,
}

impl Child {
    fn reap(&mut self, flags: i32) {
        let mut status = 0;
        // SAFETY: waits for our own child and writes one int.
        if self.status.is_none() && unsafe { libc::waitpid(self.pid, &raw mut status, flags) } == self.pid {
            self.status = Some(status);
        }
    }

    /// Kills the command with all that shares its process group.
    fn kill(&mut self) {
        // SAFETY: a signal to the group of our own child, which is not reaped yet, so that the number is still its own.
        unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        // SAFETY: as above; in case it has left the group.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap(0);
    }

    /// As shells say it: 128 + n where signal n ended it.
    fn exit_code(&mut self) -> i32 {
        self.reap(0);
        exit_code(self.status.unwrap_or(0))
    }
}

/// The exit code that shells give for a wait status.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// One output stream, kept up to its cap and read to its end whatever its length.
struct Sink {
    from: Option<File>,
    kept: Vec<u8>,
    cut: bool,
}

impl Sink {
    fn new(from: OwnedFd) -> Self {
        Self { from: Some(from.into()), kept: Vec::new(), cut: false }
    }

    fn pull(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        while let Some(from) = &mut self.from {
            match from.read(&mut buffer) {
                Ok(0) => self.from = None,
                Ok(n) => {
                    let room = MAX_EXEC_OUTPUT - self.kept.len();
                    self.kept.extend_from_slice(&buffer[..n.min(room)]);
                    self.cut |= n > room;
                    // One round at a time, so that a chatty stream cannot starve the deadline.
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}

struct Pumps {
    to: Option<File>,
    input: Vec<u8>,
    sent: usize,
    out: Sink,
    err: Sink,
}

impl Pumps {
    fn new(to: OwnedFd, input: Vec<u8>, out: OwnedFd, err: OwnedFd) -> Self {
        let to = (!input.is_empty()).then(|| to.into());
        Self { to, input, sent: 0, out: Sink::new(out), err: Sink::new(err) }
    }

    fn push(&mut self) {
        if let Some(to) = &mut self.to {
            match to.write(&self.input[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
                // The command does not want the rest.
                Err(_) => self.sent = self.input.len(),
            }
            if self.sent == self.input.len() {
                self.to = None;
            }
        }
    }

    /// Moves bytes until the command has ended and its output is read; `false` when the deadline passed first.
    fn until_end(&mut self, child: &mut Child, deadline: Instant) -> io::Result<bool> {
        let mut ended_at: Option<Instant> = None;
        loop {
            let now = Instant::now();
            let until = match ended_at {
                _ if ended_at.is_some() && self.out.from.is_none() && self.err.from.is_none() => return Ok(true),
                Some(at) if now >= at + LINGER => return Ok(true),
                Some(at) => at + LINGER,
                None if now >= deadline => return Ok(false),
                None => deadline,
            };
            self.wait(child, ended_at.is_none(), until - now)?;
            self.push();
            self.out.pull()?;
            self.err.pull()?;
            if ended_at.is_none() {
                child.reap(libc::WNOHANG);
                ended_at = child.status.map(|_| Instant::now());
            }
        }
    }

    fn wait(&self, child: &Child, running: bool, time: Duration) -> io::Result<()> {
        let mut fds = Vec::with_capacity(4);
        if running {
            fds.push(PollFd::new(child.pidfd.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(self.to.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLOUT)));
        for sink in [&self.out, &self.err] {
            fds.extend(sink.from.as_ref().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)));
        }
        let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX).max(1);
        match poll(&mut fds, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
