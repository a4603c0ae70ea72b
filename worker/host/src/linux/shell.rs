//! The shell holder: one small process per terminal session, which owns the pty inside the node.
//!
//! It outlives the worker and the master, so that a terminal survives their restarts. It listens on a unix socket in the
//! node's state directory, speaks the frames of `docklet_types::agent::frame`, serves one client at a time, and keeps the
//! last [`TERMINAL_REPLAY`] bytes of output for one that comes back. The pty is read only while the client keeps up; with
//! no client it is drained into the ring. The holder ends with its shell (and so with its node), or after a day alone.

use docklet_types::agent::TERMINAL_REPLAY;
use docklet_types::agent::frame::{self, Control};
use docklet_types::report::Reason;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::exec::{environment, exit_code, nonblocking};
use super::lxc::{Command, Container, LxcError};
use super::sys;
use crate::reason::chain;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalRequest {
    pub container: String,
    pub lxcpath: PathBuf,
    /// Where the socket goes: `<directory>/<session>.sock`.
    pub directory: PathBuf,
    pub session: String,
    pub cols: u16,
    pub rows: u16,
    /// The host's id of the node's root.
    pub first_id: u32,
}

#[derive(Debug, thiserror::Error)]
enum ShellError {
    #[error("the session's socket could not be made")]
    Socket(#[source] io::Error),
    #[error("the node could not be entered")]
    Lxc(#[source] LxcError),
    #[error("the node does not run or has no terminals of its own")]
    NoDevpts,
    #[error("a terminal could not be made in the node")]
    Pty(#[source] io::Error),
    #[error("the holder could not be put in the background")]
    Fork(#[source] io::Error),
}

/// A session nobody looks at ends after this time.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);
/// How long a client that was replaced may take to read its last frame.
const FAREWELL: Duration = Duration::from_secs(2);
/// What may wait for the client, or for the shell, before the other side is no longer read.
const BUFFER: usize = 64 << 10;
/// The group that owns terminals: `tty` in Debian and everywhere else.
const TTY_GROUP: u32 = 5;

/// Starts the shell and leaves a process behind that holds it. Returns in the parent once the socket listens.
pub fn hold(request: TerminalRequest) -> Result<(), Reason> {
    start(&request)
        .map_err(|e| Reason::new("terminal_failed", format!("The terminal could not be opened: {}.", chain(&e))))
}

fn start(request: &TerminalRequest) -> Result<(), ShellError> {
    // Relative to the directory, because a socket's path has at most 108 bytes.
    std::env::set_current_dir(&request.directory).map_err(ShellError::Socket)?;
    let name = format!("{}.sock", request.session);
    let container = Container::new(&request.container, &request.lxcpath).map_err(ShellError::Lxc)?;
    let devpts = container.devpts().ok_or(ShellError::NoDevpts)?;
    let (master, slave) = pty(&devpts, request).map_err(ShellError::Pty)?;
    let listener = listen(&name).map_err(ShellError::Socket)?;
    // The holder must be the shell's parent, so it forks off first; the first word over the pipe says how it went.
    let (mut ours, mut theirs) = UnixStream::pair().map_err(ShellError::Fork)?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(|e| ShellError::Fork(e.into()))? {
        nix::unistd::ForkResult::Parent { .. } => {
            drop((theirs, listener));
            let mut word = String::new();
            ours.read_to_string(&mut word).map_err(ShellError::Fork)?;
            if word.is_empty() { Ok(()) } else { Err(ShellError::Pty(io::Error::other(word))) }
        }
        nix::unistd::ForkResult::Child => {
            drop(ours);
            let outcome = background().and_then(|()| login(&container, &slave));
            drop((slave, devpts, container));
            match outcome {
                Ok(pid) => {
                    drop(theirs);
                    Holder::new(name, listener, master, pid).run();
                }
                Err(e) => {
                    let _ = theirs.write_all(chain(&e).as_bytes());
                    let _ = std::fs::remove_file(&name);
                }
            }
            // SAFETY: ends the holder without running what the helper registered to run at exit.
            unsafe { libc::_exit(0) }
        }
    }
}

/// A pty of the node's own devpts, so that `tty` inside names it.
fn pty(devpts: &OwnedFd, request: &TerminalRequest) -> io::Result<(OwnedFd, OwnedFd)> {
    let master = sys::openat2(
        devpts.as_fd(),
        Path::new("ptmx"),
        libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK,
        0,
        sys::RESOLVE_NO_SYMLINKS,
    )?;
    let unlock: libc::c_int = 0;
    // SAFETY: a pty master and a pointer to an int, as the request wants.
    sys::check(i64::from(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) }))?;
    // SAFETY: a pty master and open flags; a descriptor comes back.
    let slave = sys::check(i64::from(unsafe {
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC)
    }))?;
    // SAFETY: the kernel has just given it to us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave as i32) };
    sys::lchown_at(&slave, c"", request.first_id, request.first_id + TTY_GROUP)?;
    resize(&master, request.cols, request.rows);
    Ok((master, slave))
}

fn resize(master: &OwnedFd, cols: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows.max(1), ws_col: cols.max(1), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a pty master and a winsize. A terminal that cannot be resized still works.
    unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

fn listen(name: &str) -> io::Result<UnixListener> {
    // Bound under another name first, so that no one connects before the mode is set.
    let temporary = format!("{name}.new");
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, name)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Leaves the worker's session, and its standard streams so that the worker sees their end.
fn background() -> Result<(), ShellError> {
    let null = File::options().read(true).write(true).open("/dev/null").map_err(ShellError::Fork)?;
    nix::unistd::setsid().map_err(|e| ShellError::Fork(e.into()))?;
    for stream in 0..3 {
        // SAFETY: both numbers are open descriptors.
        sys::check(i64::from(unsafe { libc::dup2(null.as_raw_fd(), stream) })).map_err(ShellError::Fork)?;
    }
    Ok(())
}

fn login(container: &Container, slave: &OwnedFd) -> Result<i32, ShellError> {
    let fd = slave.as_raw_fd();
    // A login shell where there is bash, and a shell in any case.
    let script = c"if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi";
    let argv = vec![CString::from(c"/bin/sh"), CString::from(c"-c"), CString::from(script)];
    container
        .attach(&Command { argv, env: environment(), stdin: fd, stdout: fd, stderr: fd, terminal: true })
        .map_err(ShellError::Lxc)
}

/// The last bytes of output.
struct Ring {
    bytes: VecDeque<u8>,
}

impl Ring {
    fn push(&mut self, new: &[u8]) {
        let new = &new[new.len().saturating_sub(TERMINAL_REPLAY)..];
        let over = (self.bytes.len() + new.len()).saturating_sub(TERMINAL_REPLAY);
        self.bytes.drain(..over);
        self.bytes.extend(new);
    }

    /// What a client is shown on its return. Where the beginning was lost, it starts after a line's end, so that no
    /// half character or escape sequence stands first.
    fn replay(&self) -> Vec<u8> {
        let all: Vec<u8> = self.bytes.iter().copied().collect();
        if all.len() < TERMINAL_REPLAY {
            return all;
        }
        match all.iter().take(8 << 10).position(|b| *b == b'\n') {
            Some(at) => all[at + 1..].to_vec(),
            None => all,
        }
    }
}

/// One connection: frames in, frames out, never more than a buffer of either.
struct Client {
    stream: UnixStream,
    /// Received and not yet a whole frame.
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    broken: bool,
}

impl Client {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, incoming: Vec::new(), outgoing: VecDeque::new(), broken: false })
    }

    fn queue(&mut self, kind: u8, payload: &[u8]) {
        for part in payload.chunks(frame::MAX_PAYLOAD) {
            self.outgoing.extend(frame::header(kind, part.len() as u32));
            self.outgoing.extend(part);
        }
    }

    fn say(&mut self, control: &Control) {
        if let Ok(json) = serde_json::to_vec(control) {
            self.queue(frame::CONTROL, &json);
        }
    }

    fn flush(&mut self) {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match self.stream.write(front) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    /// Reads once and returns the whole frames there are.
    fn frames(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut buffer = [0; 8 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.broken = true,
            Ok(n) => self.incoming.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.broken = true,
        }
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(&[kind, a, b, c, d]) = self.incoming.get(at..at + frame::HEADER) {
            let length = u32::from_be_bytes([a, b, c, d]) as usize;
            if length > frame::MAX_PAYLOAD || !matches!(kind, frame::DATA | frame::CONTROL) {
                self.broken = true;
                break;
            }
            let Some(payload) = self.incoming.get(at + frame::HEADER..at + frame::HEADER + length) else { break };
            frames.push((kind, payload.to_vec()));
            at += frame::HEADER + length;
        }
        self.incoming.drain(..at);
        frames
    }
}

struct Holder {
    /// The socket's file.
    name: String,
    listener: UnixListener,
    master: File,
    shell: i32,
    pidfd: Option<OwnedFd>,
    client: Option<Client>,
    /// Replaced clients that still have to be told so, and until when.
    leaving: Vec<(Client, Instant)>,
    /// From the client, for the shell.
    input: VecDeque<u8>,
    ring: Ring,
    alone_since: Instant,
    /// No one was ever attached: the first client gets `resumed: false`.
    fresh: bool,
    closed: bool,
}

/// What poll(2) found ready.
#[derive(Default)]
struct Ready {
    listener: bool,
    master: bool,
    ended: bool,
    client_in: bool,
}

impl Holder {
    fn new(name: String, listener: UnixListener, master: OwnedFd, shell: i32) -> Self {
        let _ = nonblocking(&master);
        Self {
            name,
            listener,
            master: master.into(),
            shell,
            pidfd: sys::pidfd_open(shell).ok(),
            client: None,
            leaving: Vec::new(),
            input: VecDeque::new(),
            ring: Ring { bytes: VecDeque::new() },
            alone_since: Instant::now(),
            fresh: true,
            closed: false,
        }
    }

    fn run(mut self) {
        while let Ok(ready) = self.wait() {
            if ready.listener {
                self.accept();
            }
            if ready.client_in {
                self.hear_client();
            }
            self.feed_shell();
            if ready.master {
                self.drain_shell();
            }
            self.tidy();
            let abandoned = self.client.is_none() && self.alone_since.elapsed() > ABANDONED;
            if ready.ended || self.closed || abandoned {
                break;
            }
        }
        self.end();
    }

    fn wants_output(&self) -> bool {
        self.client.as_ref().is_none_or(|c| c.outgoing.len() < BUFFER)
    }

    fn wait(&self) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLIN, self.wants_output());
        master.set(PollFlags::POLLOUT, !self.input.is_empty());
        // With no flags poll would still report a hang-up, again and again.
        let master_at = (!master.is_empty()).then(|| {
            fds.push(PollFd::new(self.master.as_fd(), master));
            fds.len() - 1
        });
        let ended_at = self.pidfd.as_ref().map(|fd| {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let client_at = self.client.as_ref().map(|client| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, self.input.len() < BUFFER);
            flags.set(PollFlags::POLLOUT, !client.outgoing.is_empty());
            fds.push(PollFd::new(client.stream.as_fd(), flags));
            fds.len() - 1
        });
        for (client, _) in &self.leaving {
            fds.push(PollFd::new(client.stream.as_fd(), PollFlags::POLLOUT));
        }
        let timeout = if self.leaving.is_empty() { PollTimeout::from(60_000u16) } else { PollTimeout::from(100u16) };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let hot = |at: Option<usize>, flags: PollFlags| {
            at.and_then(|i| fds.get(i)?.revents())
                .is_some_and(|r| r.intersects(flags | PollFlags::POLLHUP | PollFlags::POLLERR))
        };
        Ok(Ready {
            listener: hot(Some(0), PollFlags::POLLIN),
            master: hot(master_at, PollFlags::POLLIN),
            ended: hot(ended_at, PollFlags::POLLIN),
            client_in: hot(client_at, PollFlags::POLLIN),
        })
    }

    fn accept(&mut self) {
        let Ok((stream, _)) = self.listener.accept() else { return };
        let Ok(mut client) = Client::new(stream) else { return };
        client.say(&Control::Attached { resumed: !self.fresh });
        client.queue(frame::DATA, &self.ring.replay());
        self.fresh = false;
        // What the old client had typed half belongs to it alone.
        if let Some(mut old) = self.client.replace(client) {
            old.say(&Control::TakenOver);
            self.leaving.push((old, Instant::now() + FAREWELL));
        }
    }

    fn hear_client(&mut self) {
        let Some(client) = &mut self.client else { return };
        for (kind, payload) in client.frames() {
            if kind == frame::DATA {
                self.input.extend(payload);
                continue;
            }
            match serde_json::from_slice(&payload) {
                Ok(Control::Resize { cols, rows }) => {
                    let size = libc::winsize { ws_row: rows.max(1), ws_col: cols.max(1), ws_xpixel: 0, ws_ypixel: 0 };
                    // SAFETY: a pty master and a winsize.
                    unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
                }
                Ok(Control::Close) => self.closed = true,
                // Words that only the holder says, or that a later version knows.
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn feed_shell(&mut self) {
        while !self.input.is_empty() {
            let (front, _) = self.input.as_slices();
            match self.master.write(front) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.input.clear();
                    return;
                }
            }
        }
    }

    fn drain_shell(&mut self) {
        let mut buffer = [0; 16 << 10];
        match self.master.read(&mut buffer) {
            Ok(n) if n > 0 => {
                self.ring.push(&buffer[..n]);
                if let Some(client) = &mut self.client {
                    client.queue(frame::DATA, &buffer[..n]);
                }
            }
            // EIO: every process has closed its end for now. The shell's own end is told by its pidfd; meanwhile poll
            // must not spin on the hang-up.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => sys::pause(5),
            Ok(_) | Err(_) => {}
        }
    }

    fn tidy(&mut self) {
        if let Some(client) = &mut self.client {
            client.flush();
            if client.broken {
                self.client = None;
                self.alone_since = Instant::now();
            }
        }
        for (client, _) in &mut self.leaving {
            client.flush();
        }
        let now = Instant::now();
        self.leaving.retain(|(client, until)| !client.broken && !client.outgoing.is_empty() && now < *until);
    }

    /// Ends the shell if it still runs, and tells the client the rest and the exit code.
    fn end(mut self) {
        // Before anyone is told: whoever opens the session after that gets another shell, and not this one's last breath.
        let _ = std::fs::remove_file(&self.name);
        let code = self.reap();
        // What the shell wrote last is still in the pty.
        for _ in 0..64 {
            let before = self.ring.bytes.len();
            let mut buffer = [0; 16 << 10];
            match self.master.read(&mut buffer) {
                Ok(n) if n > 0 => {
                    self.ring.push(&buffer[..n]);
                    if let Some(client) = &mut self.client {
                        client.queue(frame::DATA, &buffer[..n]);
                    }
                }
                _ if before == self.ring.bytes.len() => break,
                _ => {}
            }
        }
        if let Some(mut client) = self.client.take() {
            client.say(&Control::Exit { code });
            let _ = client.stream.set_nonblocking(false);
            let _ = client.stream.set_write_timeout(Some(FAREWELL));
            client.flush();
        }
    }

    fn reap(&mut self) -> i32 {
        let ended = |pidfd: &OwnedFd, millis| sys::pidfd_wait(pidfd.as_fd(), millis).unwrap_or(true);
        if let Some(pidfd) = &self.pidfd
            && !ended(pidfd, 0)
        {
            // SAFETY: a signal to the session of our own child, which is not reaped yet.
            unsafe { libc::kill(-self.shell, libc::SIGHUP) };
            if !ended(pidfd, 500) {
                // SAFETY: as above.
                unsafe { libc::kill(-self.shell, libc::SIGKILL) };
                ended(pidfd, 2000);
            }
        }
        let mut status = 0;
        // SAFETY: waits for our own child and writes one int.
        let reaped = unsafe { libc::waitpid(self.shell, &raw mut status, libc::WNOHANG) };
        if reaped == self.shell { exit_code(status) } else { 128 + libc::SIGKILL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_end_and_starts_at_a_line() {
        let mut ring = Ring { bytes: VecDeque::new() };
        ring.push(b"short");
        assert_eq!(ring.replay(), b"short");
        for n in 0..60_000 {
            ring.push(format!("line {n}\r\n").as_bytes());
        }
        let replay = ring.replay();
        assert!(replay.len() <= TERMINAL_REPLAY);
        assert!(replay.starts_with(b"line "));
        assert!(replay.ends_with(b"line 59999\r\n"));
    }

    #[test]
    fn frames_are_cut_out_of_a_stream_in_any_pieces() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut client = Client::new(b).unwrap();
        let mut bytes = Vec::new();
        bytes.extend(frame::header(frame::DATA, 5));
        bytes.extend(b"hello");
        bytes.extend(frame::header(frame::CONTROL, 2));
        bytes.extend(b"{}");
        let mut got = Vec::new();
        for byte in bytes {
            a.write_all(&[byte]).unwrap();
            got.extend(client.frames());
        }
        assert_eq!(got, [(frame::DATA, b"hello".to_vec()), (frame::CONTROL, b"{}".to_vec())]);
        a.write_all(&frame::header(7, 0)).unwrap();
        client.frames();
        assert!(client.broken);
    }
}
