//! Starting in the background, stopping, and what `run` does first.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use docklet_types::config::LogLevel;
use docklet_types::paths::Paths;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::lock::{self, Status};
use crate::log;
use crate::process::Process;
use crate::ready::{self, Ready};

/// A daemon of this installation.
#[derive(Debug, Clone)]
pub struct Program {
    /// `docklet-master`, `docklet-worker`: names the log and the pid file.
    pub name: &'static str,
    pub paths: Paths,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    Now { pid: i32 },
    Already { pid: i32 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    Now,
    /// It did not end in time and was killed.
    Killed,
    WasNotRunning,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{name}: cannot open its log {}: {source}", file.display())]
    Log { name: &'static str, file: PathBuf, source: io::Error },
    #[error("{name}: cannot read its pid file {}: {source}", file.display())]
    PidFile { name: &'static str, file: PathBuf, source: io::Error },
    #[error("{name}: cannot start a process: {source}")]
    Spawn { name: &'static str, source: io::Error },
    #[error("{name} ended while it started ({status}); its log {} says:\n{tail}", log.display())]
    Ended { name: &'static str, status: String, log: PathBuf, tail: String },
    #[error("{name} runs (process {pid}) but was not ready within {} s; its log {} says:\n{tail}", limit.as_secs(), log.display())]
    TimedOut { name: &'static str, pid: i32, limit: Duration, log: PathBuf, tail: String },
}

#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error("{name}: cannot read its pid file {}: {source}", file.display())]
    PidFile { name: &'static str, file: PathBuf, source: io::Error },
    #[error("{name}: process {pid} cannot be stopped: {source}")]
    Signal { name: &'static str, pid: i32, source: io::Error },
    #[error("{name}: process {pid} is still there after it was killed")]
    Stuck { name: &'static str, pid: i32 },
}

#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error("{name} is already running (process {pid}); `{name} stop` ends it")]
    AlreadyRunning { name: &'static str, pid: i32 },
    #[error("{name}: cannot write its pid file {}: {source}", file.display())]
    PidFile { name: &'static str, file: PathBuf, source: io::Error },
    #[error("{name}: cannot open its log {}: {source}", file.display())]
    Log { name: &'static str, file: PathBuf, source: io::Error },
}

/// How many lines of the log are shown of a start that failed.
const TAIL: usize = 10;

impl Program {
    #[must_use]
    pub fn new(name: &'static str, paths: Paths) -> Self {
        Self { name, paths }
    }

    /// What `run` does before anything else: takes the pid file and sets up the log. Standard error gets the log too,
    /// unless `start` runs us in the background.
    ///
    /// # Errors
    /// Another one runs, or a file cannot be written.
    pub fn enter(&self, level: LogLevel) -> Result<Ready, EnterError> {
        let name = self.name;
        let file = self.paths.pid_file(name);
        let pid_file = lock::take(&file)
            .map_err(|source| EnterError::PidFile { name, file, source })?
            .map_err(|pid| EnterError::AlreadyRunning { name, pid })?;
        let pipe = ready::inherited_pipe();
        let file = self.paths.log_file(name);
        let log_file = log::open(&file).map_err(|source| EnterError::Log { name, file, source })?;
        log::init(log_file, level, pipe.is_none());
        Ok(Ready { _pid_file: pid_file, pipe })
    }

    /// Starts `<this binary> <arguments>` in the background, in a session of its own, and waits until it is ready.
    ///
    /// # Errors
    /// It could not be started, ended at once (with the last lines of its log), or was not ready within `limit`.
    pub fn start(&self, arguments: &[OsString], limit: Duration) -> Result<Started, StartError> {
        let name = self.name;
        let settled = lock::settled_status(&self.paths.pid_file(name));
        match settled.map_err(|source| StartError::PidFile { name, file: self.paths.pid_file(name), source })? {
            Status::Running { pid } => return Ok(Started::Already { pid }),
            Status::NotRunning => {}
        }
        let log_path = self.paths.log_file(name);
        let opened = log::open(&log_path).and_then(|f| Ok((f.metadata()?.len(), f.try_clone()?, f)));
        let (offset, out, err) = opened.map_err(|source| StartError::Log { name, file: log_path.clone(), source })?;
        let spawn_error = |source| StartError::Spawn { name, source };
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| spawn_error(e.into()))?;
        let mut command = Command::new(std::env::current_exe().map_err(spawn_error)?);
        command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err).current_dir("/");
        command.env(ready::PIPE_VARIABLE, writer.as_raw_fd().to_string());
        let child_end = writer.as_raw_fd();
        // SAFETY: between fork and exec only setsid and fcntl are called, which are safe there.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                fcntl(std::os::fd::BorrowedFd::borrow_raw(child_end), FcntlArg::F_SETFD(FdFlag::empty()))?;
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(spawn_error)?;
        drop(writer);
        let pid = i32::try_from(child.id()).unwrap_or_default();
        match await_word(reader, limit) {
            Word::Ready => Ok(Started::Now { pid }),
            Word::Closed => {
                let status = child.wait().map_or_else(|e| e.to_string(), |s| s.to_string());
                Err(StartError::Ended { name, status, tail: log::tail(&log_path, offset, TAIL), log: log_path })
            }
            Word::Silent => {
                Err(StartError::TimedOut { name, pid, limit, tail: log::tail(&log_path, offset, TAIL), log: log_path })
            }
        }
    }

    /// Asks the program to end, and kills it where it has not within `grace`.
    ///
    /// # Errors
    /// The pid file cannot be read, the process may not be signalled, or does not even end when killed.
    pub fn stop(&self, grace: Duration) -> Result<Stopped, StopError> {
        let name = self.name;
        let file_error = |source| StopError::PidFile { name, file: self.paths.pid_file(name), source };
        let Status::Running { pid } = self.status().map_err(file_error)? else {
            return Ok(Stopped::WasNotRunning);
        };
        let signal_error = |source| StopError::Signal { name, pid, source };
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => return Ok(Stopped::WasNotRunning),
            Err(error) => return Err(signal_error(error)),
        };
        // Still the same one after the descriptor was opened: the number cannot have been used again in between.
        if self.status().map_err(file_error)? != (Status::Running { pid }) {
            return Ok(Stopped::WasNotRunning);
        }
        end(&process, Signal::SIGTERM).map_err(signal_error)?;
        if process.wait(grace).map_err(signal_error)? {
            return Ok(Stopped::Now);
        }
        end(&process, Signal::SIGKILL).map_err(signal_error)?;
        if process.wait(Duration::from_secs(10)).map_err(signal_error)? {
            Ok(Stopped::Killed)
        } else {
            Err(StopError::Stuck { name, pid })
        }
    }

    /// Whether the program runs.
    ///
    /// # Errors
    /// The pid file cannot be read.
    pub fn status(&self) -> io::Result<Status> {
        lock::status(&self.paths.pid_file(self.name))
    }
}

fn end(process: &Process, signal: Signal) -> io::Result<()> {
    match process.signal(signal) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        other => other,
    }
}

enum Word {
    Ready,
    Closed,
    Silent,
}

fn await_word(reader: std::os::fd::OwnedFd, limit: Duration) -> Word {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left.min(Duration::from_secs(60))).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Word::Silent,
            Ok(0) | Err(nix::errno::Errno::EINTR) => {}
            Ok(_) => break,
            Err(_) => return Word::Closed,
        }
    }
    let mut word = Vec::new();
    let mut file = std::fs::File::from(reader).take(ready::WORD.len() as u64);
    match file.read_to_end(&mut word) {
        Ok(_) if word == ready::WORD => Word::Ready,
        _ => Word::Closed,
    }
}
