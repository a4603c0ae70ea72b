//! What is known of a node's running: small files in its state directory, checked against /proc whenever they are read.
//!
//! `run.json` names init and its monitor, `ready` the init that was seen to be up. They outlive the worker, so that a new
//! one adopts its nodes; a reboot of the machine makes them wrong, which the start times tell.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs;
use std::io;
use std::path::Path;

use super::proc::{self, Process};

const RUN: &str = "run.json";
const READY: &str = "ready.json";
const STARTING: &str = "starting";

/// The two processes of a running node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub init: Process,
    /// liblxc's monitor, init's parent.
    pub monitor: Process,
}

/// What a state directory and /proc say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running(Run),
    /// Init has ended; the monitor cleans up, or starts init anew because the node was rebooted from within.
    Changing(Process),
    /// A start was begun and its outcome is not known.
    Unclear,
    Stopped,
}

/// Replaces a file as a whole. Not synced: none of these files means anything after a crash of the machine.
fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(temporary, path)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Says that a start is under way. The worker does before it has a helper: whatever becomes of both, whoever finds this
/// and nothing that runs must look for what the start has left, which may still be on its way.
pub fn announce(state: &Path) -> io::Result<()> {
    fs::write(state.join(STARTING), "")
}

/// Forgets the run before this start.
pub fn begin(state: &Path) -> io::Result<()> {
    remove(&state.join(READY))?;
    remove(&state.join(RUN))
}

/// Says that the node runs.
pub fn started(state: &Path, run: &Run) -> io::Result<()> {
    write(&state.join(RUN), run)?;
    remove(&state.join(STARTING))
}

/// Says that nothing of the node runs any more.
pub fn ended(state: &Path) -> io::Result<()> {
    remove(&state.join(READY))?;
    remove(&state.join(RUN))?;
    remove(&state.join(STARTING))
}

/// Says that this init was seen to be up.
pub fn mark_ready(state: &Path, init: Process) -> io::Result<()> {
    write(&state.join(READY), &init)
}

pub fn is_ready(state: &Path, init: Process) -> bool {
    read::<Process>(&state.join(READY)) == Some(init)
}

pub fn look(state: &Path) -> State {
    let run = read::<Run>(&state.join(RUN)).filter(|run| run.init.alive() || run.monitor.alive());
    let Some(run) = run else {
        return if state.join(STARTING).exists() { State::Unclear } else { State::Stopped };
    };
    if run.init.alive() {
        return State::Running(run);
    }
    match proc::init_below(run.monitor) {
        Some(init) => {
            let run = Run { init, ..run };
            // Only saves the next reader the search.
            let _ = write(&state.join(RUN), &run);
            State::Running(run)
        }
        None => State::Changing(run.monitor),
    }
}

/// The node's init, if it runs.
pub fn init(state: &Path) -> Option<Process> {
    match look(state) {
        State::Running(run) => Some(run.init),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_believed_only_while_the_process_lives() {
        let dir = std::env::temp_dir().join(format!("docklet-run-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        assert_eq!(look(&dir), State::Stopped);
        announce(&dir).unwrap();
        assert_eq!(look(&dir), State::Unclear);
        begin(&dir).unwrap();
        assert_eq!(look(&dir), State::Unclear);
        let me = Process::current(std::process::id() as i32).unwrap();
        let run = Run { init: me, monitor: me.parent().unwrap() };
        started(&dir, &run).unwrap();
        assert_eq!(look(&dir), State::Running(run));
        assert!(!is_ready(&dir, me));
        mark_ready(&dir, me).unwrap();
        assert!(is_ready(&dir, me));
        let other = Process { start: me.start + 1, ..me };
        started(&dir, &Run { init: other, monitor: other }).unwrap();
        assert_eq!(look(&dir), State::Stopped);
        assert!(!is_ready(&dir, other));
        announce(&dir).unwrap();
        assert_eq!(look(&dir), State::Unclear, "the run before says nothing about this start");
        fs::remove_dir_all(&dir).unwrap();
    }
}
