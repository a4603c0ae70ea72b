//! LXD's side: containers of the same image in an LXD of our own, as `lxc launch` makes them.
//!
//! The daemon is Debian's, with its defaults: a btrfs pool in a loop file, on the disk that Docklet's pool is on; a
//! profile with a root disk and `eth0` on a bridge; unprivileged containers without limits. Its REST API is spoken
//! directly, with the two requests of `lxc launch` (create, start) and of `lxc delete --force` (stop, delete), for all
//! containers at the same time: ten starts of the `lxc` program would be counted against LXD otherwise. The bridge has
//! no DHCP server, which saves LXD some work.
//!
//! Ready: sshd listens on port 22 in every container, seen as on the floor's side. Gone: every deletion has ended.
//!
//! Daemon, monitors and containers live in process, mount and network namespaces of their own, below one process that
//! ends with this one: then the kernel ends the rest. What stays are a directory and empty control groups; they are
//! removed here, or by the next run where this one was killed.

mod rest;
pub mod stage;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::task::JoinSet;

use crate::floor::stage::{StageError, attempt};
use crate::floor::{FloorError, LOOK, PREFIX, command, look, sweep};
use crate::launch::Options;
use rest::{Rest, RestError};

const BRIDGE: &str = "lxdbr0";
/// Where the daemon finds its directory, in its own mount namespace.
const LXD_DIR: &str = "/var/lib/lxd";
/// In the run's directory: the image, what it is packed from, and a layer with the host key.
const IMAGE: &str = "image.tar";
const TREE: &str = "tree";
const KEY: &str = "key";
/// Takes the place of /etc/subuid and /etc/subgid.
const SUBIDS: &str = "subids";
/// What the daemon and its first process say.
const LOG: &str = "log";
/// Of the containers' names; this process's id and a number follow.
const NAME: &str = "dkbench-";
/// How often the daemon that starts is asked whether it is ready.
const ASK: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum LxdError {
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error(transparent)]
    Tool(#[from] FloorError),
    #[error("the daemon ended: {log}")]
    Ended { log: String },
    #[error("the daemon was not ready after {} s: {log}", after.as_secs())]
    NoDaemon { after: Duration, log: String },
    #[error("the image has no fingerprint")]
    NoFingerprint,
    #[error("a container was not launched: {log}")]
    Launch { source: RestError, log: String },
    #[error("a container was not deleted")]
    Delete(#[source] RestError),
    #[error("{running} of {all} containers were running when all had been started: {log}")]
    Fewer { running: usize, all: u32, log: String },
    #[error("{ready} of {all} containers were ready after {} s: {log}", after.as_secs())]
    NotReady { ready: usize, all: u32, after: Duration, log: String },
    #[error("containers were not started after {} s", .0.as_secs())]
    NotStarted(Duration),
    #[error("containers were not gone after {} s", .0.as_secs())]
    NotGone(Duration),
}

type Result<T> = std::result::Result<T, LxdError>;

/// Of the requests for one container.
type Outcome = std::result::Result<(), RestError>;

pub struct Lxd {
    rest: Rest,
    /// On the host; the daemon's own directory is in it.
    directory: PathBuf,
    /// `unshare`, which ends with this process, and its child with it.
    outer: Option<Child>,
    fingerprint: String,
}

/// Debian's program; a snap's cannot be given a directory of its own.
pub fn find() -> Option<PathBuf> {
    ["/usr/bin/lxd", "/usr/sbin/lxd"].iter().map(PathBuf::from).find(|p| p.exists())
}

impl Lxd {
    /// Starts the daemon's first process. `set_up` does the rest.
    pub async fn start(options: &Options, lxd: PathBuf, layers: Vec<PathBuf>) -> Result<Self> {
        let local = options.server.fs_prefix.join("local");
        // Without Docklet the floor is in /var/tmp, under the same name.
        let base = if local.is_dir() { local } else { PathBuf::from("/var/cache") };
        sweep(&base);
        sweep_groups();
        let directory = base.join(format!("{PREFIX}{}", std::process::id()));
        let rest = Rest::new(directory.join("lxd/unix.socket"));
        // From here on there is something to remove, so nothing may return before it is in the value.
        let mut side = Self { rest, directory, outer: None, fingerprint: String::new() };
        match side.furnish(lxd, layers) {
            Ok(()) => Ok(side),
            Err(e) => {
                side.remove().await;
                Err(e)
            }
        }
    }

    fn furnish(&mut self, lxd: PathBuf, layers: Vec<PathBuf>) -> Result<()> {
        let tree = self.directory.join(TREE);
        let ssh = self.directory.join(KEY).join("etc/ssh");
        let make = |path: &Path, mode| {
            attempt(format!("make {}", path.display()), fs::DirBuilder::new().recursive(true).mode(mode).create(path))
        };
        make(&self.directory, 0o700)?;
        for path in [&self.directory.join("lxd"), &tree.join("rootfs"), &ssh] {
            make(path, 0o755)?;
        }
        // One key for all, as the floor has it: making one for each would be counted against LXD.
        let key = ssh.join("ssh_host_ed25519_key");
        command(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]).arg(&key))?;
        let metadata = json!({
            "architecture": std::env::consts::ARCH,
            "creation_date": 1,
            "properties": {"description": "docklet-bench"},
        });
        // JSON is YAML too.
        attempt("describe the image", fs::write(tree.join("metadata.yaml"), metadata.to_string()))?;
        // What LXD's manual tells to write there. Where root has all ids, as Docklet likes it, liblxc finds none that is
        // free for the containers of LXD.
        attempt("write the ids", fs::write(self.directory.join(SUBIDS), "root:1000000:1000000000\n"))?;
        let request = stage::Request { directory: self.directory.clone(), layers, lxd };
        let request = attempt("describe the daemon", serde_json::to_vec(&request))?;
        let log = attempt("make the log", File::create(self.directory.join(LOG)))?;
        let errors = attempt("copy a descriptor", log.try_clone())?;
        let program = attempt("find this program", std::env::current_exe())?;
        // Of its own process group: Ctrl-C is for this program, which then ends the daemon in order.
        let mut unshare = Command::new("unshare");
        unshare
            .args(["--mount", "--propagation", "slave", "--net", "--pid", "--fork", "--kill-child=SIGKILL", "--"])
            .arg(program)
            .arg("lxd-daemon")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .process_group(0);
        // SAFETY: prctl is one system call in a process that has one thread.
        unsafe { unshare.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
        let outer = attempt("run unshare", tokio::process::Command::from(unshare).spawn())?;
        let stdin = self.outer.insert(outer).stdin.take().ok_or(io::Error::from(io::ErrorKind::BrokenPipe));
        // A description fits the pipe: this never waits.
        let wrote = stdin.and_then(|stdin| File::from(stdin.into_owned_fd()?).write_all(&request));
        Ok(attempt("describe the daemon to its first process", wrote)?)
    }

    /// Waits for the daemon, gives it a pool and a profile, and imports the image.
    pub async fn set_up(&mut self, timeout: Duration) -> Result<()> {
        self.daemon_ready(timeout).await?;
        let pool = json!({"name": "bench", "driver": "btrfs", "config": {}});
        self.rest.call("POST", "/1.0/storage-pools", &pool).await?;
        let profile = json!({"config": {}, "devices": {
            "root": {"type": "disk", "pool": "bench", "path": "/"},
            "eth0": {"type": "nic", "nictype": "bridged", "parent": BRIDGE, "name": "eth0"},
        }});
        self.rest.call("PUT", "/1.0/profiles/default", &profile).await?;
        let image = self.directory.join(IMAGE);
        let made = self.rest.upload("/1.0/images", &image).await?;
        self.fingerprint = made["fingerprint"].as_str().ok_or(LxdError::NoFingerprint)?.to_owned();
        Ok(attempt("remove the packed image", fs::remove_file(&image))?)
    }

    async fn daemon_ready(&mut self, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        // Answered with an error, or by nobody, until the daemon has started up.
        while self.rest.call("GET", "/internal/ready", &Value::Null).await.is_err() {
            if self.outer.as_mut().is_none_or(|outer| !matches!(outer.try_wait(), Ok(None))) {
                return Err(LxdError::Ended { log: self.log() });
            }
            if began.elapsed() > timeout {
                return Err(LxdError::NoDaemon { after: timeout, log: self.log() });
            }
            tokio::time::sleep(ASK).await;
        }
        Ok(())
    }

    /// Launches `count` containers, waits until all are ready, deletes them, waits until all are gone.
    pub async fn round(&self, count: u32, timeout: Duration) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let mut started = JoinSet::new();
        for index in 0..count {
            started.spawn(launch(self.rest.clone(), name(index), self.fingerprint.clone()));
        }
        let launched = all(started, timeout).await.ok_or(LxdError::NotStarted(timeout))?;
        launched.map_err(|source| LxdError::Launch { source, log: self.log() })?;
        self.all_ready(count, began, timeout).await?;
        let ready = began.elapsed();
        let began = Instant::now();
        let mut gone = JoinSet::new();
        for index in 0..count {
            gone.spawn(delete(self.rest.clone(), name(index)));
        }
        all(gone, timeout).await.ok_or(LxdError::NotGone(timeout))?.map_err(LxdError::Delete)?;
        Ok((ready, began.elapsed()))
    }

    async fn all_ready(&self, count: u32, began: Instant, timeout: Duration) -> Result<()> {
        // Monitors are children of the first process: those who started them have ended.
        let monitors = self.first().map(look::children).unwrap_or_default();
        let mut waiting: Vec<i32> = monitors.into_iter().filter_map(look::init_below).collect();
        if waiting.len() != count as usize {
            return Err(LxdError::Fewer { running: waiting.len(), all: count, log: self.log() });
        }
        loop {
            waiting.retain(|init| !look::listens(*init, 22));
            if waiting.is_empty() {
                return Ok(());
            }
            if began.elapsed() > timeout {
                let ready = count as usize - waiting.len();
                return Err(LxdError::NotReady { ready, all: count, after: timeout, log: self.log() });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The first process of the namespaces: `unshare`'s only child.
    fn first(&self) -> Option<u32> {
        look::children(self.outer.as_ref()?.id()?).into_iter().next()
    }

    /// The ends of what the daemon said and of what liblxc said of each container, in one line.
    fn log(&self) -> String {
        let mut logs = vec![self.directory.join(LOG)];
        logs.extend(directories(&self.directory.join("lxd/logs")).into_iter().map(|d| d.join("lxc.log")));
        let texts = logs.iter().filter_map(|path| fs::read_to_string(path).ok());
        let ends: Vec<String> =
            texts.flat_map(|t| t.lines().rev().take(3).map(str::to_owned).collect::<Vec<_>>()).collect();
        if ends.is_empty() { "nothing was logged".to_owned() } else { ends.join(" | ") }
    }

    /// Removes everything. What cannot be removed is told and stops nothing.
    pub async fn remove(mut self) {
        // With the first process end all others, and with them the mounts, the loop device and the network.
        if let Some(first) = self.first() {
            let _ = kill(Pid::from_raw(first.cast_signed()), Signal::SIGKILL);
        } else if let Some(outer) = &mut self.outer {
            let _ = outer.start_kill();
        }
        if let Some(outer) = &mut self.outer
            && tokio::time::timeout(Duration::from_secs(20), outer.wait()).await.is_err()
        {
            eprintln!("docklet-bench: LXD has not ended");
        }
        match fs::remove_dir_all(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                eprintln!("docklet-bench: {} is left behind: {e}", self.directory.display())
            }
            _ => {}
        }
        remove_groups(|pid| pid == std::process::id());
    }
}

fn name(index: u32) -> String {
    format!("{NAME}{}-{index}", std::process::id())
}

/// What `lxc launch` asks for.
async fn launch(rest: Rest, name: String, fingerprint: String) -> Outcome {
    let instance = json!({
        "name": name,
        "type": "container",
        "source": {"type": "image", "fingerprint": fingerprint},
    });
    rest.call("POST", "/1.0/instances", &instance).await?;
    let start = json!({"action": "start", "timeout": -1});
    rest.call("PUT", &format!("/1.0/instances/{name}/state"), &start).await?;
    Ok(())
}

/// What `lxc delete --force` asks for.
async fn delete(rest: Rest, name: String) -> Outcome {
    let stop = json!({"action": "stop", "force": true, "timeout": -1});
    rest.call("PUT", &format!("/1.0/instances/{name}/state"), &stop).await?;
    rest.call("DELETE", &format!("/1.0/instances/{name}"), &Value::Null).await?;
    Ok(())
}

/// Until all have ended well or one has not; None where they have not ended after `timeout`.
async fn all(tasks: JoinSet<Outcome>, timeout: Duration) -> Option<Outcome> {
    let outcomes = tokio::time::timeout(timeout, tasks.join_all()).await.ok()?;
    Some(outcomes.into_iter().collect())
}

/// Removes the control groups of runs that were killed and could not do it themselves.
fn sweep_groups() {
    remove_groups(|pid| !Path::new(&format!("/proc/{pid}")).exists());
}

/// Removes the containers' control groups, empty by now, of the runs that `of` picks by their process ids.
fn remove_groups(of: impl Fn(u32) -> bool) {
    let left: Vec<PathBuf> =
        groups(Path::new("/sys/fs/cgroup"), &of).into_iter().filter(|group| !remove_group(group)).collect();
    if !left.is_empty() {
        eprintln!("docklet-bench: control groups are left behind: {left:?}");
    }
}

/// Wherever they are: liblxc makes them below the daemon's own, which is another in each hierarchy.
fn groups(below: &Path, of: &impl Fn(u32) -> bool) -> Vec<PathBuf> {
    let inner = directories(below).into_iter();
    inner
        .flat_map(|group| match group.file_name().and_then(|n| run_of(n.to_str()?)) {
            Some(pid) if of(pid) => vec![group],
            _ => groups(&group, of),
        })
        .collect()
}

/// The process id in the name of a container's control group.
fn run_of(group: &str) -> Option<u32> {
    let container = group.strip_prefix("lxc.payload.").or_else(|| group.strip_prefix("lxc.monitor."))?;
    container.strip_prefix(NAME)?.split_once('-')?.0.parse().ok()
}

/// The innermost first. Whether it is gone.
fn remove_group(group: &Path) -> bool {
    for inner in directories(group) {
        remove_group(&inner);
    }
    fs::remove_dir(group).is_ok() || !group.exists()
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_groups_name_the_run() {
        assert_eq!(run_of("lxc.payload.dkbench-12-0"), Some(12));
        assert_eq!(run_of("lxc.monitor.dkbench-12-345"), Some(12));
        for other in ["lxc.payload.web", "lxc.payload.dkbench-x-0", "dkbench-12-0", "lxc.monitor.dkbench-12"] {
            assert_eq!(run_of(other), None, "{other}");
        }
        assert_eq!(name(3), format!("dkbench-{}-3", std::process::id()));
    }
}
