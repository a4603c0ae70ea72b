//! Running programs, and what can go wrong with that.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is a testbed already; docklet-testbed down removes it")]
    Exists,
    #[error("there is no host {0:?} in the testbed")]
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
    #[error("the namespaces of {host} cannot be set up: {source}")]
    Namespace { host: String, source: io::Error },
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
