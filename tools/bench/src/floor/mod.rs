//! The floor: plain `lxc-start` containers of the same unpacked image, with an overlay and id-mapped layers as Docklet
//! has them, a cable on a bridge, and nothing else. What it takes is what no product around liblxc can beat by much.
//!
//! Ready: sshd listens on port 22 in every container, seen in `/proc/<init>/net/tcp`. Gone: init was killed, lxc-start
//! has ended, and the container's files are removed.
//!
//! Bridge and cables live in a network namespace of their own, mounts in one per container: they end with their
//! processes, whatever becomes of this one.

pub mod look;
pub mod stage;

use docklet_types::id::IdRange;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::process::Child;

/// Names of bridges; a number follows.
const BRIDGE: &str = "floor";
/// Of our directories' names; the process id follows.
pub const PREFIX: &str = "docklet-bench-";
/// How often the containers that are not ready are looked at: far below what is measured.
pub const LOOK: Duration = Duration::from_millis(3);

/// The last range there is: no user of an installation has it.
const LAST_RANGE: IdRange = match IdRange::new(IdRange::MAX_INDEX) {
    Some(range) => range,
    None => panic!("the largest index has a range"),
};

#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    #[error("could not {what}")]
    Io { what: String, source: io::Error },
    #[error("`{command}` failed: {said}")]
    Command { command: String, said: String },
    #[error("container {name} ended before it was ready: {log}")]
    Ended { name: String, log: String },
    #[error("{ready} of {all} containers were ready after {} s: {log}", after.as_secs())]
    NotReady { ready: usize, all: usize, after: Duration, log: String },
    #[error("{left} containers were not gone after {} s", after.as_secs())]
    NotGone { left: usize, after: Duration },
}

type Result<T> = std::result::Result<T, FloorError>;

trait Attempt<T> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| FloorError::Io { what: what(), source: e.into() })
    }
}

/// One container of a round.
struct Node {
    name: String,
    disk: PathBuf,
    /// `lxc-start` in the foreground: the container's monitor.
    monitor: Child,
    init: Option<i32>,
    ready: bool,
}

pub struct Floor {
    layers: Vec<PathBuf>,
    range: IdRange,
    newuidmap: bool,
    network: File,
    users: File,
    /// Small files: configurations, logs, the mount point.
    run: PathBuf,
    /// What containers write, on the same file system as Docklet's nodes.
    disks: PathBuf,
    host_key: Vec<u8>,
    bridges: u32,
    nodes: Vec<Node>,
}

impl Floor {
    /// Makes what all rounds share. `fs_prefix` is Docklet's, whose pool is used where it is there.
    pub async fn prepare(fs_prefix: &Path, layers: Vec<PathBuf>) -> Result<Self> {
        for layer in &layers {
            fs::read_dir(layer).attempting(|| format!("read the layer {}", layer.display()))?;
        }
        let range = LAST_RANGE;
        let newuidmap =
            ["/etc/subuid", "/etc/subgid"].iter().all(|f| fs::read_to_string(f).is_ok_and(|t| look::covers(&t, range)));
        let pool = fs_prefix.join("local").join("pool");
        let base = if pool.is_dir() { pool } else { PathBuf::from("/var/tmp") };
        sweep(&base);
        sweep(Path::new("/run"));
        let own = format!("{PREFIX}{}", std::process::id());
        let (disks, run) = (base.join(&own), Path::new("/run").join(&own));
        let (network, users) = (
            namespace(CloneFlags::CLONE_NEWNET, "net", |_| Ok(()))?,
            namespace(CloneFlags::CLONE_NEWUSER, "user", |pid| map_ids(pid, range))?,
        );
        // From here on there is something to remove, so nothing may return before it is in the value.
        let mut floor = Self {
            layers,
            range,
            newuidmap,
            network,
            users,
            run,
            disks,
            host_key: Vec::new(),
            bridges: 0,
            nodes: Vec::new(),
        };
        match floor.furnish() {
            Ok(()) => Ok(floor),
            Err(e) => {
                floor.remove().await;
                Err(e)
            }
        }
    }

    fn furnish(&mut self) -> Result<()> {
        // Only walked through by the containers' roots, who are nobody here.
        fs::DirBuilder::new().mode(0o711).create(&self.run).attempting(|| format!("make {}", self.run.display()))?;
        for directory in ["lxc", "stage"] {
            let path = self.run.join(directory);
            fs::DirBuilder::new().mode(0o755).create(&path).attempting(|| format!("make {}", path.display()))?;
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.disks)
            .attempting(|| format!("make {}", self.disks.display()))?;
        let key = self.run.join("host_key");
        command(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]).arg(&key))?;
        self.host_key = fs::read(&key).attempting(|| format!("read {}", key.display()))?;
        self.ip("link set lo up")?;
        self.bridge()
    }

    /// Makes another bridge, which the containers that are started from now on are plugged into.
    fn bridge(&mut self) -> Result<()> {
        let number = self.bridges;
        for line in [
            format!("link add {BRIDGE}{number} type bridge"),
            format!("addr add 10.{number}.0.1/16 dev {BRIDGE}{number}"),
            format!("link set {BRIDGE}{number} up"),
        ] {
            self.ip(&line)?;
        }
        self.bridges += 1;
        Ok(())
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let network = self.network.try_clone().attempting(|| "copy a descriptor".to_owned())?;
        let mut ip = Command::new("ip");
        ip.args(arguments.split(' '));
        // SAFETY: setns is one system call on a descriptor that the closure owns.
        unsafe { ip.pre_exec(move || setns(&network, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)) };
        command(&mut ip)
    }

    pub const fn idmap(&self) -> &'static str {
        if self.newuidmap { "newuidmap" } else { "direct" }
    }

    /// Starts `count` containers, waits until all are ready, removes them, waits until all are gone.
    pub async fn round(&mut self, count: u32, timeout: Duration) -> Result<(Duration, Duration)> {
        let ready = self.more(count, timeout).await?;
        let began = Instant::now();
        self.end(timeout).await?;
        Ok((ready, began.elapsed()))
    }

    /// Starts `count` containers beside those that are there, on a bridge of their own, and waits until all are ready.
    pub async fn batch(&mut self, count: u32, timeout: Duration) -> Result<Duration> {
        if !self.nodes.is_empty() {
            self.bridge()?;
        }
        self.more(count, timeout).await
    }

    async fn more(&mut self, count: u32, timeout: Duration) -> Result<Duration> {
        let began = Instant::now();
        for index in 0..count {
            let node = self.start(index)?;
            self.nodes.push(node);
        }
        self.all_ready(began, timeout).await?;
        Ok(began.elapsed())
    }

    fn start(&self, index: u32) -> Result<Node> {
        let name = format!("dkbench-{}-{}", std::process::id(), self.nodes.len());
        let disk = self.disks.join(&name);
        self.disk(&disk, index).attempting(|| format!("make {}", disk.display()))?;
        let config = self.run.join(format!("{name}.conf"));
        fs::write(&config, self.config(&name, index)).attempting(|| format!("write {}", config.display()))?;
        let own = |file: &File| PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let request = stage::Request {
            network: own(&self.network),
            users: own(&self.users),
            layers: self.layers.clone(),
            disk: disk.clone(),
            stage: self.run.join("stage"),
            lxcpath: self.run.join("lxc"),
            config,
            name: name.clone(),
            newuidmap: self.newuidmap,
        };
        let request =
            serde_json::to_vec(&request).map_err(io::Error::from).attempting(|| "describe a container".to_owned())?;
        let errors = self.run.join(format!("{name}.err"));
        let errors = File::create(&errors).attempting(|| format!("make {}", errors.display()))?;
        let program = std::env::current_exe().attempting(|| "find this program".to_owned())?;
        // Of its own process group: Ctrl-C is for this program, which then ends the containers in order.
        let mut helper = Command::new(program);
        helper.arg("floor-node").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors).process_group(0);
        // Even where this program is killed, nothing of it runs on: the monitor ends, and by LXC's default its container.
        // SAFETY: prctl is one system call in a process that has one thread.
        unsafe { helper.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from)) };
        let mut monitor =
            tokio::process::Command::from(helper).spawn().attempting(|| "start a container's helper".to_owned())?;
        let wrote = monitor.stdin.take().ok_or(io::Error::from(io::ErrorKind::BrokenPipe)).and_then(|stdin| {
            // A description fits the pipe: this never waits.
            File::from(stdin.into_owned_fd()?).write_all(&request)
        });
        if let Err(source) = wrote {
            // The helper waits for its description and ends without it.
            let _ = monitor.start_kill();
            return Err(FloorError::Io { what: "describe a container to its helper".to_owned(), source });
        }
        Ok(Node { name, disk, monitor, init: None, ready: false })
    }

    /// The writable part, with the few files that make a container this one: the same that Docklet writes.
    fn disk(&self, disk: &Path, index: u32) -> io::Result<()> {
        let owner = self.range.first_id();
        let upper = disk.join("upper");
        fs::create_dir(disk)?;
        fs::create_dir(disk.join("work"))?;
        for directory in [&upper, &upper.join("etc"), &upper.join("etc/ssh")] {
            fs::create_dir(directory)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
            chown(directory, Some(owner), Some(owner))?;
        }
        let name = format!("node{}\n", index + 1);
        for (file, mode, content) in [
            ("etc/hostname", 0o644, name.as_bytes()),
            ("etc/ssh/ssh_host_ed25519_key", 0o600, self.host_key.as_slice()),
        ] {
            let path = upper.join(file);
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?.write_all(content)?;
            chown(&path, Some(owner), Some(owner))?;
        }
        Ok(())
    }

    fn config(&self, name: &str, index: u32) -> String {
        let (first, length) = (self.range.first_id(), IdRange::LEN);
        let stage = self.run.join("stage");
        let stage = stage.display();
        let log = self.run.join(name);
        let log = log.display();
        let bridge = self.bridges - 1;
        let address = format!("10.{bridge}.{}.{}", (index + 2) / 256, (index + 2) % 256);
        let node = index + 1;
        format!(
            "lxc.uts.name = node{node}\n\
             lxc.rootfs.path = dir:{stage}/m\nlxc.rootfs.mount = {stage}/r\n\
             lxc.idmap = u 0 {first} {length}\nlxc.idmap = g 0 {first} {length}\n\
             lxc.init.cmd = /sbin/init\nlxc.signal.halt = SIGRTMIN+3\n\
             lxc.mount.auto = proc:mixed sys:mixed cgroup:rw:force\n\
             lxc.autodev = 1\nlxc.pty.max = 1024\nlxc.tty.max = 0\n\
             lxc.cap.drop = mac_admin mac_override sys_time sys_module sys_rawio\n\
             lxc.console.path = none\nlxc.log.file = {log}.log\nlxc.log.level = ERROR\n\
             lxc.net.0.type = veth\nlxc.net.0.link = {BRIDGE}{bridge}\nlxc.net.0.flags = up\nlxc.net.0.name = eth0\n\
             lxc.net.0.ipv4.address = {address}/16\nlxc.net.0.ipv4.gateway = 10.{bridge}.0.1\n"
        )
    }

    async fn all_ready(&mut self, began: Instant, timeout: Duration) -> Result<()> {
        loop {
            let mut ready = 0;
            for node in &mut self.nodes {
                if node.ready {
                    ready += 1;
                    continue;
                }
                if let Ok(Some(_)) = node.monitor.try_wait() {
                    return Err(FloorError::Ended { name: node.name.clone(), log: look::log(&self.run, &node.name) });
                }
                if node.init.is_none() {
                    node.init = node.monitor.id().and_then(look::init_below);
                }
                node.ready = node.init.is_some_and(|pid| look::listens(pid, 22));
                ready += usize::from(node.ready);
            }
            if ready == self.nodes.len() {
                return Ok(());
            }
            if began.elapsed() > timeout {
                let log =
                    self.nodes.iter().find(|n| !n.ready).map_or_else(String::new, |n| look::log(&self.run, &n.name));
                return Err(FloorError::NotReady { ready, all: self.nodes.len(), after: timeout, log });
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Kills every init, waits for the monitors, which tear down the rest, and removes the files.
    async fn end(&mut self, timeout: Duration) -> Result<()> {
        let deadline = tokio::time::Instant::now() + timeout;
        for node in &mut self.nodes {
            // The monitor has not been waited for, so that the number below it cannot be another's.
            let init = node.init.or_else(|| node.monitor.id().and_then(look::init_below));
            match init {
                Some(pid) => {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                // It never came as far as an init.
                None => {
                    let _ = node.monitor.start_kill();
                }
            }
        }
        let mut left = Vec::new();
        let mut failure = None;
        for mut node in std::mem::take(&mut self.nodes) {
            if tokio::time::timeout_at(deadline, node.monitor.wait()).await.is_err() {
                left.push(node);
                continue;
            }
            match fs::remove_dir_all(&node.disk) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    failure = Some(Err(e).attempting(|| format!("remove {}", node.disk.display())))
                }
                _ => {}
            }
        }
        self.nodes = left;
        match (self.nodes.len(), failure) {
            (0, None) => Ok(()),
            (0, Some(failure)) => failure,
            (left, _) => Err(FloorError::NotGone { left, after: timeout }),
        }
    }

    /// Removes everything. What cannot be removed is told and stops nothing.
    pub async fn remove(mut self) {
        if let Err(e) = self.end(Duration::from_secs(120)).await {
            eprintln!("docklet-bench: {}", crate::chain(&e));
        }
        for node in &mut self.nodes {
            let _ = node.monitor.start_kill();
        }
        for directory in [&self.run, &self.disks] {
            match fs::remove_dir_all(directory) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    eprintln!("docklet-bench: {} is left behind: {e}", directory.display())
                }
                _ => {}
            }
        }
    }
}

/// Removes the directories of runs that were killed and could not do it themselves.
pub fn sweep(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    for entry in entries {
        let owner = entry.file_name().to_str().and_then(|n| n.strip_prefix(PREFIX)).and_then(|n| n.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A new namespace, alive as long as the file (or a process in it). `furnish` is called while a process is inside.
fn namespace(kind: CloneFlags, name: &str, furnish: impl FnOnce(u32) -> io::Result<()>) -> Result<File> {
    let mut holder = Command::new("sleep");
    holder.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: unshare is one system call in a process that has one thread.
    unsafe { holder.pre_exec(move || unshare(kind).map_err(io::Error::from)) };
    let mut holder = holder.spawn().attempting(|| format!("make a {name} namespace"))?;
    let opened = furnish(holder.id()).and_then(|()| File::open(format!("/proc/{}/ns/{name}", holder.id())));
    let _ = holder.kill();
    let _ = holder.wait();
    opened.attempting(|| format!("set up a {name} namespace"))
}

fn map_ids(pid: u32, range: IdRange) -> io::Result<()> {
    let map = format!("0 {} {}\n", range.first_id(), IdRange::LEN);
    fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    fs::write(format!("/proc/{pid}/gid_map"), &map)
}

pub fn command(command: &mut Command) -> Result<()> {
    let text = format!("{:?}", command.get_program());
    let output = command.stdin(Stdio::null()).output().attempting(|| format!("run {text}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(FloorError::Command { command: text, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    }
}
