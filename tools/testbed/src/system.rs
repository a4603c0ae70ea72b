//! Running programs, waiting, and what can go wrong with that.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is a testbed already; docklet-testbed down removes it")]
    Exists,
    #[error("there is no machine {0:?} in the testbed")]
    NoMachine(String),
    #[error("{0:?} is no host; only hosts are rebooted")]
    NoHost(String),
    #[error("must run as root")]
    NotRoot,
    #[error("{program} cannot be run: {source}")]
    Run { program: String, source: io::Error },
    #[error("{command} failed: {said}")]
    Failed { command: String, said: String },
    #[error("cannot {what} {path}: {source}")]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} did not come to be in time")]
    Late(&'static str),
    #[error("the namespaces of {machine} cannot be entered: {source}")]
    Namespace { machine: String, source: io::Error },
    #[error(transparent)]
    Authority(docklet_identity::authority::AuthorityError),
}

pub type Result<T> = std::result::Result<T, Error>;

pub trait At<T> {
    /// Says what was attempted with which file.
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { what, path: path.into(), source })
    }
}

/// Runs a program to its end; what it says is only shown where it fails.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().map_err(|source| Error::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let shown: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Failed { command: format!("{program} {}", shown.join(" ")), said })
}

/// `ip`, with its words in one string: none of ours has a blank in it.
pub fn ip(words: &str) -> Result<()> {
    run("ip", words.split(' '))
}

/// The process of a pid file, if it lives.
pub fn alive(file: &Path) -> Option<i32> {
    let pid: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    runs(pid).then_some(pid)
}

fn runs(pid: i32) -> bool {
    // One that has ended and was not waited for is no process any more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Ends a process at once, and waits until it is gone.
pub fn end(pid: i32) -> Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => wait(Duration::from_secs(5), "the end of a process", || !runs(pid)),
        Err(errno) => Err(Error::Run { program: format!("kill {pid}"), source: errno.into() }),
    }
}

pub fn wait(limit: Duration, what: &'static str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            return Err(Error::Late(what));
        }
        // Nothing tells of these; poll(2) is the pause.
        let _ = nix::poll::poll(&mut [], 50u16);
    }
    Ok(())
}
