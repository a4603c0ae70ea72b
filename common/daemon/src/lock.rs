//! The pid file. That a program runs is told by the lock on it, never by the number in it: numbers are used again.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running { pid: i32 },
    NotRunning,
}

/// Held for as long as the program runs; the kernel gives it back however the program ends.
#[derive(Debug)]
pub(crate) struct PidFile {
    _lock: Flock<File>,
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path)
}

#[expect(clippy::disallowed_methods, reason = "called by commands, before there is a runtime")]
fn pause(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}

fn pid_in(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Takes the pid file; `Ok(Err(pid))` where another process has it.
pub(crate) fn take(path: &Path) -> io::Result<Result<PidFile, i32>> {
    let mut file = open(path)?;
    // `status` holds a shared lock for an instant; a program that runs holds its own for good.
    let deadline = Instant::now() + Duration::from_millis(300);
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                lock.seek(SeekFrom::Start(0))?;
                lock.write_all(format!("{}\n", std::process::id()).as_bytes())?;
                return Ok(Ok(PidFile { _lock: lock }));
            }
            Err((mut back, Errno::EWOULDBLOCK)) => {
                if Instant::now() >= deadline {
                    return Ok(Err(pid_in(&mut back).unwrap_or(0)));
                }
                file = back;
                pause(20);
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

/// Like [`status`], but a process that is just being killed, or was told to end a moment ago, counts as gone once it is.
pub(crate) fn settled_status(path: &Path) -> io::Result<Status> {
    let began = Instant::now();
    loop {
        let now = status(path)?;
        let Status::Running { pid } = now else { return Ok(now) };
        let patience = if is_dying(pid) { Duration::from_secs(5) } else { Duration::from_millis(200) };
        if began.elapsed() >= patience {
            return Ok(now);
        }
        pause(10);
    }
}

/// Whether the kernel has begun, or is about, to end the process.
fn is_dying(pid: i32) -> bool {
    const SIGKILL_BIT: u64 = 1 << 8;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = read("status");
    let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map_or("", str::trim);
    let killed = |name: &str| u64::from_str_radix(field(name), 16).is_ok_and(|set| set & SIGKILL_BIT != 0);
    status.is_empty() || field("State:").starts_with(['Z', 'X']) || killed("SigPnd:") || killed("ShdPnd:")
}

/// Whether a process holds the pid file, and which.
pub(crate) fn status(path: &Path) -> io::Result<Status> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Status::NotRunning),
        Err(error) => return Err(error),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(Status::NotRunning),
        Err((mut back, Errno::EWOULDBLOCK)) => {
            // The lock is taken a moment before the number is written.
            for _ in 0..10 {
                if let Some(pid) = pid_in(&mut back) {
                    return Ok(Status::Running { pid });
                }
                pause(10);
            }
            Ok(Status::Running { pid: 0 })
        }
        Err((_, error)) => Err(error.into()),
    }
}
