//! Processes by identity. A process id alone may be reused; with its start time it names one process for ever.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::sys;

/// One process of this boot of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/<pid>/stat`.
    pub start: u64,
}

struct Stat {
    state: u8,
    ppid: i32,
    start: u64,
}

impl Stat {
    /// A zombie does not.
    const fn runs(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The command name stands in parentheses and may hold anything, parentheses too: count from the last one.
    let after = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(text.get(after + 2..)?).ok()?;
    let mut fields = rest.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    // state is field 3 and ppid field 4; the start time is field 22.
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, ppid, start })
}

impl Process {
    /// The process that has this number now.
    pub fn current(pid: i32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, start: s.start })
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(self) -> bool {
        stat(self.pid).is_some_and(|s| s.start == self.start && s.runs())
    }

    pub fn parent(self) -> Option<Self> {
        stat(self.pid).filter(|s| s.start == self.start).and_then(|s| Self::current(s.ppid))
    }

    /// A descriptor of this very process; `None` once it has ended.
    pub fn open(self) -> io::Result<Option<OwnedFd>> {
        let pidfd = match sys::pidfd_open(self.pid) {
            Ok(fd) => fd,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(e) => return Err(e),
        };
        // The number could have been reused before the descriptor was made, not after.
        Ok(self.alive().then_some(pidfd))
    }

    /// Opens a file of its /proc directory, and makes sure that it was this process's.
    pub fn open_proc(self, file: &str) -> io::Result<fs::File> {
        let opened = fs::File::open(format!("/proc/{}/{file}", self.pid))?;
        if self.alive() { Ok(opened) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    }

    /// Sends SIGKILL and waits up to `millis` for its end. Already gone is success; `false` if it is still there.
    pub fn kill(self, millis: i32) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(true) };
        match sys::pidfd_signal(pidfd.as_fd(), libc::SIGKILL) {
            Err(e) if e.raw_os_error() != Some(libc::ESRCH) => return Err(e),
            _ => {}
        }
        sys::pidfd_wait(pidfd.as_fd(), millis)
    }
}

/// All process ids.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// The child of `parent` that is the first process of its own pid namespace. Reads all of /proc: for the rare case
/// that a node was rebooted from within, so that its monitor has a new child.
pub fn init_below(parent: Process) -> Option<Process> {
    all().into_iter().find_map(|pid| {
        // One that has ended and waits for its parent to notice is none: it would be taken for the node come back.
        let child = stat(pid).filter(|s| s.ppid == parent.pid && s.runs())?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let numbers = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
        let is_init = numbers.split_whitespace().count() > 1 && numbers.split_whitespace().next_back() == Some("1");
        is_init.then_some(Process { pid, start: child.start })
    })
}

/// Whether a TCP socket listens on `port`, on any address, in the network namespace of `process`.
pub fn listens(process: Process, port: u16) -> io::Result<bool> {
    for table in ["net/tcp", "net/tcp6"] {
        let text = match fs::read_to_string(format!("/proc/{}/{table}", process.pid)) {
            Ok(text) => text,
            // IPv6 may be off; a process that has gone is found out below.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(e) => return Err(e),
        };
        if text.lines().skip(1).any(|line| is_listener(line, port)) {
            return Ok(process.alive());
        }
    }
    Ok(false)
}

/// A line of /proc/net/tcp: `  0: 0100007F:0016 00000000:0000 0A …`; state 0A is LISTEN.
fn is_listener(line: &str, port: u16) -> bool {
    let mut fields = line.split_whitespace();
    let local = fields.nth(1).and_then(|l| l.rsplit_once(':'));
    let state = fields.nth(1);
    state == Some("0A") && local.is_some_and(|(_, p)| u16::from_str_radix(p, 16) == Ok(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let me = Process::current(std::process::id() as i32).unwrap();
        assert!(me.alive());
        assert!(me.open().unwrap().is_some());
        assert!(!Process { start: me.start + 1, ..me }.alive());
        assert!(me.parent().is_some());
    }

    #[test]
    fn only_listeners_count() {
        let listening = "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0";
        let connected = "   1: 0100007F:0016 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 0 10 -1";
        assert!(is_listener(listening, 22));
        assert!(!is_listener(listening, 23));
        assert!(!is_listener(connected, 22));
    }
}
