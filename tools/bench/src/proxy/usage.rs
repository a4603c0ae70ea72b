//! What processes take: time of the processors, memory, descriptors.

use nix::unistd::{SysconfVar, sysconf};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Raises the limit of open files as far as it goes.
pub fn allow_many_sockets() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls only read or write the structure given to them.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

/// A process with all that it started.
#[derive(Debug, Clone, Copy)]
pub struct Family(pub u32);

impl Family {
    /// The process and those below it.
    fn members(self) -> Vec<u32> {
        let mut found = vec![self.0];
        let mut next = 0;
        while let Some(pid) = found.get(next) {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            next += 1;
        }
        found
    }

    /// Time of the processors so far, of members that live.
    pub fn cpu(self) -> Duration {
        self.members().into_iter().map(cpu_of).sum()
    }

    /// The same of the first of them.
    pub fn cpu_alone(self) -> Duration {
        cpu_of(self.0)
    }
}

fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(100);
    Duration::from_millis(ticks * 1000 / per_second)
}

/// Resident memory of one process, in KiB.
pub fn rss_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.split_ascii_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// The highest resident memory of one process since a moment.
#[derive(Debug)]
pub struct Peak {
    pid: u32,
    before_kib: u64,
}

impl Peak {
    pub fn since_now(pid: u32) -> Self {
        // 5 makes the kernel forget the highest so far (proc_pid_clear_refs(5)).
        let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        Self { pid, before_kib: rss_kib(pid) }
    }

    /// By how much it was higher, in MiB.
    pub fn more_mib(&self) -> f64 {
        let more = status_kib(self.pid, "VmHWM:").saturating_sub(self.before_kib) as f64 / 1024.0;
        (more * 10.0).round() / 10.0
    }
}

/// Open descriptors of one process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The process that a pid file names, if it lives.
pub fn pid_in(file: &Path) -> Option<u32> {
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    fs::exists(format!("/proc/{pid}")).unwrap_or(false).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let own = std::process::id();
        assert!(rss_kib(own) > 100);
        assert!(descriptors(own) >= 3);
        let began = std::time::Instant::now();
        while Family(own).cpu().is_zero() {
            assert!(began.elapsed() < Duration::from_secs(10));
        }
    }
}
