//! A node as an LXC container: its configuration, and the start that the helper performs.

use docklet_types::id::IdRange;
use docklet_types::kernel_names;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::Reason;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cgroup;
use super::lxc::{Container, LxcError};
use super::proc::Process;
use super::rootfs::{self, Rootfs, RootfsError, STAGE};
use super::run::{self, Run, State};
use super::sys;
use crate::reason::chain;

/// How long a node that reboots itself may take to have an init again. On a busy host its monitor takes seconds.
const SETTLE: Duration = Duration::from_secs(15);
/// What all nodes have in common.
const COMMON: &str = include_str!("../../../../conf/lxc/node.conf");
/// What a node's processes may not ask of the kernel.
pub const SECCOMP: &str = include_str!("../../../../conf/seccomp/node.seccomp");
/// The files of lxcfs that show a node its own limits instead of the host's.
const LXCFS: &str = "/var/lib/lxcfs";
const LXCFS_FILES: [&str; 8] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "sys/devices/system/cpu",
];

/// What a start came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    pub run: Run,
    /// It ran already, or came up by itself meanwhile: nobody may have listened when its init said that it is up.
    pub found: bool,
}

/// Asks the helper to start a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    pub container: String,
    pub lxcpath: PathBuf,
    /// The node's state directory.
    pub state: PathBuf,
    pub rootfs: Rootfs,
    /// liblxc keys and values, in order.
    pub config: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the root file system could not be mounted")]
    Rootfs(#[source] RootfsError),
    #[error("the container could not be started")]
    Lxc(#[source] LxcError),
    #[error("what an earlier start left behind could not be removed")]
    Leftovers(#[source] std::io::Error),
    #[error("the node's state could not be written")]
    State(#[source] std::io::Error),
    #[error("an earlier instance of the node is still ending")]
    Ending,
    #[error("the node ended while it was started")]
    Ended,
}

/// Host-wide facts that go into every node's configuration.
#[derive(Debug, Clone)]
pub struct HostFacts<'a> {
    pub seccomp: &'a Path,
    pub state: &'a Path,
    pub features: cgroup::Features,
    pub lxcfs: bool,
    /// The AppArmor profile, where the kernel has AppArmor.
    pub apparmor: Option<&'a str>,
    /// The bridge's MTU, where it is not Ethernet's 1500.
    pub mtu: Option<u32>,
    pub has_data: bool,
    /// See [`cgroup::tree`].
    pub cgroups: Option<&'a cgroup::Tree>,
}

/// Whether lxcfs serves its files.
pub fn lxcfs_is_live() -> bool {
    Path::new(LXCFS).join("proc/meminfo").exists()
}

/// The configuration of a node. Pure: the same plan and facts give the same text.
pub fn config(node: &NodePlan, vcluster: &VclusterPlan, facts: &HostFacts<'_>) -> Vec<(String, String)> {
    let mut keys: Vec<(String, String)> = common();
    let mut set = |key: &str, value: String| keys.push((key.to_owned(), value));
    let first = node.range.first_id();
    let subnet = vcluster.network.subnet;
    set("lxc.uts.name", node.name.to_string());
    set("lxc.rootfs.path", format!("dir:{STAGE}/m"));
    set("lxc.rootfs.mount", format!("{STAGE}/r"));
    set("lxc.idmap", format!("u 0 {first} {}", IdRange::LEN));
    set("lxc.idmap", format!("g 0 {first} {}", IdRange::LEN));
    set("lxc.seccomp.profile", facts.seccomp.display().to_string());
    if let Some(profile) = facts.apparmor {
        set("lxc.apparmor.profile", profile.to_owned());
    }
    set("lxc.console.logfile", facts.state.join("console.log").display().to_string());
    set("lxc.log.file", facts.state.join("lxc.log").display().to_string());
    set("lxc.net.0.veth.pair", kernel_names::veth(node.id));
    set("lxc.net.0.link", kernel_names::bridge(vcluster.id));
    set("lxc.net.0.hwaddr", node.mac.to_string());
    // With the broadcast address: liblxc's own guess is wrong for a network that does not end at an octet.
    set("lxc.net.0.ipv4.address", format!("{}/{} {}", node.ip, subnet.prefix(), subnet.broadcast()));
    set("lxc.net.0.ipv4.gateway", subnet.gateway().to_string());
    if let Some(mtu) = facts.mtu {
        set("lxc.net.0.mtu", mtu.to_string());
    }
    for entry in rootfs::binds(facts.has_data) {
        set("lxc.mount.entry", entry);
    }
    match facts.cgroups {
        Some(tree) => {
            let container = kernel_names::container(node.id);
            for entry in cgroup::binds(&container, tree, &format!("{STAGE}/cgroup")) {
                set("lxc.mount.entry", entry);
            }
        }
        None => set("lxc.mount.auto", "cgroup:rw:force".to_owned()),
    }
    if facts.lxcfs {
        for file in LXCFS_FILES {
            set("lxc.mount.entry", format!("{LXCFS}/{file} {file} none bind,optional 0 0"));
        }
    }
    keys.extend(cgroup::limits(&node.size, facts.features));
    keys
}

fn common() -> Vec<(String, String)> {
    COMMON
        .lines()
        .filter(|l| !l.trim_start().starts_with('#'))
        .filter_map(|l| l.split_once('='))
        .map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))
        .collect()
}

/// Starts the node, or finds it running. Runs in the helper.
pub fn start(request: &StartRequest) -> Result<Started, StartError> {
    if let Some(run) = settle(&request.state)? {
        run::started(&request.state, &run).map_err(StartError::State)?;
        return Ok(Started { run, found: true });
    }
    cgroup::clear(&request.container).map_err(StartError::Leftovers)?;
    run::begin(&request.state).map_err(StartError::State)?;
    // A log of an earlier start would explain the wrong failure.
    let _ = fs::remove_file(request.state.join("lxc.log"));
    request.rootfs.mount().map_err(StartError::Rootfs)?;
    let container = Container::new(&request.container, &request.lxcpath).map_err(StartError::Lxc)?;
    for (key, value) in &request.config {
        container.set(key, value).map_err(StartError::Lxc)?;
    }
    container.start().map_err(StartError::Lxc)?;
    let init = container.init_pid().and_then(Process::current).ok_or(StartError::Ended)?;
    let monitor = init.parent().ok_or(StartError::Ended)?;
    let run = Run { init, monitor };
    run::started(&request.state, &run).map_err(StartError::State)?;
    Ok(Started { run, found: false })
}

/// Waits until an earlier instance is either running or gone.
fn settle(state: &Path) -> Result<Option<Run>, StartError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match run::look(state) {
            State::Running(run) => return Ok(Some(run)),
            State::Stopped | State::Unclear => return Ok(None),
            State::Changing(_) if Instant::now() > deadline => return Err(StartError::Ending),
            State::Changing(_) => sys::pause(10),
        }
    }
}

/// The error for people, with what liblxc and the console have to say.
pub fn reason(error: &StartError, state: &Path) -> Reason {
    let log = [tail(&state.join("lxc.log"), 10), tail(&state.join("console.log"), 20)].join("");
    let reason = Reason::new("boot_failed", format!("The node could not be started: {}.", chain(error)));
    if log.is_empty() { reason } else { reason.with_log(log) }
}

/// The last lines of a text file; empty where there is none. Reads at most the last 64 KiB.
pub fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|mut file| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)))?;
        file.read_to_end(&mut bytes)
    });
    if read.is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    let mut out = all[all.len().saturating_sub(lines)..].join("\n");
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_file_is_read_without_its_comments() {
        let keys = common();
        assert!(keys.iter().any(|(k, v)| k == "lxc.init.cmd" && v.starts_with("/sbin/init ")));
        assert!(keys.iter().any(|(k, v)| k == "lxc.environment" && v == "NOTIFY_SOCKET=/dev/.docklet/notify"));
        assert!(keys.iter().all(|(k, _)| k.starts_with("lxc.")));
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let path = std::env::temp_dir().join(format!("docklet-tail-{}", std::process::id()));
        fs::write(&path, "one\ntwo\nthree\n").unwrap();
        assert_eq!(tail(&path, 2), "two\nthree\n");
        assert_eq!(tail(&path, 9), "one\ntwo\nthree\n");
        fs::remove_file(&path).unwrap();
        assert_eq!(tail(&path, 2), "");
    }
}
