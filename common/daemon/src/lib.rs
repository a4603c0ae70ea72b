//! What both daemons do at their edges: find and read the configuration, log, start in the background, stop, tell how
//! they are.
//!
//! A binary's `main` reads [`config::load`], makes a [`Program`], and answers `start`, `stop`, `restart` and `status`
//! with it. `run` calls [`Program::enter`], which takes the pid file and sets up the log; when the program can serve
//! it says so through the [`Ready`] it got, and keeps that for as long as it runs. Works with and without systemd.

pub mod config;
pub mod fail;
mod lock;
pub mod log;
pub mod networks;
mod process;
mod ready;
mod start;

pub use lock::Status;
pub use ready::Ready;
pub use start::{EnterError, Program, StartError, Started, StopError, Stopped};

/// Exit codes, the same in every program.
pub mod exit {
    pub const FAILED: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const NOT_RUNNING: u8 = 3;
    pub const TIMED_OUT: u8 = 5;
}
