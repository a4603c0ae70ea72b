//! Control groups, version 1 and 2: a node's limits as liblxc keys, and what a node may leave behind.

use docklet_types::size::Size;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::proc::Process;
use super::sys;
use crate::Hits;

const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// The scheduler's period that quotas are given for, in µs: the kernel's default.
const PERIOD_US: u64 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Controllers in hierarchies of their own (with or without an empty unified one beside them).
    V1,
    V2,
}

impl Version {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// What this machine has.
pub fn version() -> Version {
    if sys::fs_magic(Path::new("/sys/fs/cgroup")).is_ok_and(|m| m == CGROUP2_MAGIC) { Version::V2 } else { Version::V1 }
}

/// Which optional files the kernel has; limits are only set where there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    pub version: Version,
    /// Version 1: swap is accounted for.
    pub memsw: bool,
    /// An io weight can be set (`blkio.bfq.weight`, `io.weight`).
    pub io_weight: bool,
}

/// The features of this machine, looked up once.
pub fn features() -> Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    *FEATURES.get_or_init(|| match version() {
        Version::V1 => Features {
            version: Version::V1,
            memsw: Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
            io_weight: Path::new("/sys/fs/cgroup/blkio/blkio.bfq.weight").exists(),
        },
        Version::V2 => {
            let io = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
                .is_ok_and(|c| c.split_whitespace().any(|c| c == "io"));
            Features { version: Version::V2, memsw: true, io_weight: io }
        }
    })
}

/// How many processes and threads a node may have: four per MiB of memory, so that the kernel's own memory for them
/// (some 16 KiB each) stays far below the node's.
fn pids(size: &Size) -> u64 {
    u64::from(size.memory_mib).saturating_mul(4).clamp(1024, 65_536)
}

/// liblxc keys that hold a node to its size. Swap is off: a node that swaps slows its neighbours.
pub fn limits(size: &Size, features: Features) -> Vec<(String, String)> {
    let memory = u64::from(size.memory_mib) << 20;
    let millis = u64::from(size.cpu.millis());
    let quota = (millis * PERIOD_US / 1000).max(1000);
    let mut keys: Vec<(&str, String)> = Vec::new();
    match features.version {
        Version::V1 => {
            keys.push(("lxc.cgroup.memory.limit_in_bytes", memory.to_string()));
            if features.memsw {
                keys.push(("lxc.cgroup.memory.memsw.limit_in_bytes", memory.to_string()));
            }
            // The period is what a new group has. The kernel goes through all groups of the machine for either.
            keys.push(("lxc.cgroup.cpu.cfs_quota_us", quota.to_string()));
            keys.push(("lxc.cgroup.cpu.shares", (millis * 1024 / 1000).clamp(2, 262_144).to_string()));
            keys.push(("lxc.cgroup.pids.max", pids(size).to_string()));
            if features.io_weight {
                keys.push(("lxc.cgroup.blkio.bfq.weight", "100".to_owned()));
            }
        }
        Version::V2 => {
            keys.push(("lxc.cgroup2.memory.max", memory.to_string()));
            keys.push(("lxc.cgroup2.memory.swap.max", "0".to_owned()));
            keys.push(("lxc.cgroup2.memory.oom.group", "0".to_owned()));
            keys.push(("lxc.cgroup2.cpu.max", format!("{quota} {PERIOD_US}")));
            // 100 is one CPU, as a share of 1024 is in version 1.
            keys.push(("lxc.cgroup2.cpu.weight", (millis / 10).clamp(1, 10_000).to_string()));
            keys.push(("lxc.cgroup2.pids.max", pids(size).to_string()));
            if features.io_weight {
                keys.push(("lxc.cgroup2.io.weight", "100".to_owned()));
            }
        }
    }
    if !init_is_in_sight() {
        keys.push(("lxc.cgroup.relative", "1".to_owned()));
    }
    keys.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

/// Whether the machine's init has a control group that this process can name. It has none in a cgroup namespace below
/// it, and liblxc, which makes groups beside init's, must then make them beside its own.
fn init_is_in_sight() -> bool {
    fs::read_to_string("/proc/1/cgroup").is_ok_and(|text| !text.lines().any(|line| line.contains(":/..")))
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            let target = left.split(' ').nth(4)?;
            matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(target))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

const MOUNTS: &str = "/sys/fs/cgroup";

/// A node's own tree of control groups in version 1: what lies in its `/sys/fs/cgroup`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// The hierarchies' directories.
    pub directories: Vec<String>,
    /// Other names of theirs, and what these lead to.
    pub links: Vec<(String, PathBuf)>,
}

/// Names that systemd makes where they are missing. In a node it cannot, and would say so on the console.
const JOINED: [(&str, &str); 2] = [("net_cls", "net_cls,net_prio"), ("net_prio", "net_cls,net_prio")];

/// What a node's tree is made of, where the worker has it made of bind mounts. A mount of a hierarchy of version 1
/// looks at every control group of the machine, whether it succeeds or not, and each node would do fourteen: ten by
/// liblxc, and four by a systemd that looks for more. A bind mount of the node's own group shows the same.
pub fn tree() -> Option<Tree> {
    // Where liblxc makes groups elsewhere it also has to find them.
    if version() == Version::V2 || !init_is_in_sight() {
        return None;
    }
    let known = hierarchies();
    let mut tree = Tree::default();
    for entry in fs::read_dir(MOUNTS).ok()?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if known.contains(&entry.path()) {
            tree.directories.push(name);
        } else if let Ok(target) = fs::read_link(entry.path()) {
            tree.links.push((name, target));
        }
    }
    for (name, target) in JOINED {
        let there = tree.directories.iter().any(|d| d == name) || tree.links.iter().any(|(link, _)| link == name);
        if !there {
            tree.links.push((name.to_owned(), PathBuf::from(target)));
        }
    }
    tree.directories.sort();
    (!tree.directories.is_empty()).then_some(tree)
}

/// liblxc keys that put the tree in its place; `empty` is a directory with the tree's names.
pub fn binds(container: &str, tree: &Tree, empty: &str) -> Vec<String> {
    // liblxc makes the groups before it mounts anything.
    let bind = |name: &String| {
        format!("{MOUNTS}/{name}/lxc.payload.{container} sys/fs/cgroup/{name} none bind,nosuid,nodev,noexec 0 0")
    };
    // Read-only, so that nobody in the node looks for hierarchies that are not there.
    let root = format!("{empty} sys/fs/cgroup none bind,ro,nosuid,nodev,noexec 0 0");
    [root].into_iter().chain(tree.directories.iter().map(bind)).collect()
}

/// The container of a cgroup directory that liblxc made: `lxc.payload.<name>` or `lxc.monitor.<name>`, where a number
/// may follow when the plain name was taken.
fn container_of(directory: &str) -> Option<&str> {
    let name = directory.strip_prefix("lxc.payload.").or_else(|| directory.strip_prefix("lxc.monitor."))?;
    // `dk-` and 32 digits: what is longer carries liblxc's number.
    Some(name.get(..35).unwrap_or(name))
}

/// The containers' cgroups: directory and container name.
pub fn all() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for root in hierarchies() {
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(container) =
                container_of(&name).filter(|c| c.starts_with(docklet_types::kernel_names::CONTAINER_PREFIX))
            {
                found.push((entry.path(), container.to_owned()));
            }
        }
    }
    found
}

/// The names of all containers, from one place where liblxc makes groups for each.
pub fn containers() -> BTreeSet<String> {
    let in_one = |root: &PathBuf| -> BTreeSet<String> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        entries.filter_map(|e| container_of(e.file_name().to_str()?).map(str::to_owned)).collect()
    };
    hierarchies().iter().map(in_one).find(|names| !names.is_empty()).unwrap_or_default()
}

/// The cgroups of one container. Looks for its names instead of listing all: there may be a thousand others.
fn of(container: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in hierarchies() {
        for kind in ["lxc.payload", "lxc.monitor"] {
            let plain = root.join(format!("{kind}.{container}"));
            if plain.exists() {
                found.push(plain);
            }
            // liblxc counts up from 1 when the name is taken.
            for n in 1.. {
                let numbered = root.join(format!("{kind}.{container}-{n}"));
                if !numbered.exists() {
                    break;
                }
                found.push(numbered);
            }
        }
    }
    found
}

/// How long all processes of a node may take until they stand still.
const FREEZE: Duration = Duration::from_secs(5);

/// The cgroup that a container is frozen through: version 2's can be killed while they stand still, so that one is
/// preferred where the machine has both.
fn freezer(container: &str) -> Option<(PathBuf, Version)> {
    let payloads = of(container).into_iter().filter(|d| !d.to_string_lossy().contains("/lxc.monitor."));
    let found = payloads.filter_map(|d| match () {
        () if d.join("cgroup.freeze").exists() => Some((d, Version::V2)),
        () if d.join("freezer.state").exists() => Some((d, Version::V1)),
        () => None,
    });
    found.max_by_key(|(_, version)| *version == Version::V2)
}

fn says_frozen(directory: &Path, version: Version) -> bool {
    match version {
        Version::V1 => fs::read_to_string(directory.join("freezer.state")).is_ok_and(|s| s.trim() == "FROZEN"),
        Version::V2 => {
            fs::read_to_string(directory.join("cgroup.events")).is_ok_and(|e| e.lines().any(|l| l == "frozen 1"))
        }
    }
}

/// Asked of all nodes at once: it looks in one place, and only where nothing is there in all of them.
pub fn is_frozen(container: &str) -> bool {
    static ROOT: OnceLock<Option<(PathBuf, Version)>> = OnceLock::new();
    let root = ROOT.get_or_init(|| {
        let found = freezer(container)?;
        Some((found.0.parent()?.to_path_buf(), found.1))
    });
    if let Some((root, version)) = root {
        let plain = root.join(format!("lxc.payload.{container}"));
        if plain.exists() {
            return says_frozen(&plain, *version);
        }
    }
    freezer(container).is_some_and(|(directory, version)| says_frozen(&directory, version))
}

/// Returns when every process of the container stands still.
pub fn freeze(container: &str) -> io::Result<()> {
    let (directory, version) = freezer(container).ok_or(io::ErrorKind::NotFound)?;
    let deadline = Instant::now() + FREEZE;
    loop {
        // Version 1 may have to be asked again where processes come and go.
        match version {
            Version::V1 => fs::write(directory.join("freezer.state"), "FROZEN")?,
            Version::V2 => fs::write(directory.join("cgroup.freeze"), "1")?,
        }
        if says_frozen(&directory, version) {
            return Ok(());
        }
        if Instant::now() > deadline {
            thaw(container)?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a process of it does not stand still"));
        }
        sys::pause(1);
    }
}

/// Lets the container's processes run on; success too where nothing of it is there.
pub fn thaw(container: &str) -> io::Result<()> {
    match freezer(container) {
        Some((directory, Version::V1)) => fs::write(directory.join("freezer.state"), "THAWED"),
        Some((directory, Version::V2)) => fs::write(directory.join("cgroup.freeze"), "0"),
        None => Ok(()),
    }
}

/// Holds a running container to another size.
pub fn limit(container: &str, size: &Size) -> io::Result<()> {
    let directories = of(container);
    let payloads = || directories.iter().filter(|d| !d.to_string_lossy().contains("/lxc.monitor."));
    let write = || {
        let mut outcome = Ok(());
        for (key, value) in limits(size, features()) {
            let file = key.trim_start_matches("lxc.cgroup2.").trim_start_matches("lxc.cgroup.");
            for path in payloads().map(|d| d.join(file)).filter(|p| p.exists()) {
                if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
                    continue;
                }
                outcome = fs::write(&path, &value).and(outcome);
            }
        }
        outcome
    };
    // Memory with and without swap bound each other: which may change first depends on the direction.
    write().or_else(|_| write())
}

/// A node that had less memory left than this, in bytes, had none.
const FULL_WITHIN: u64 = 8 << 20;

/// Where the machine counts what containers run into.
struct Counters {
    memory: PathBuf,
    processes: PathBuf,
}

impl Counters {
    /// Found by one container; nothing where it is gone.
    fn find(container: &str) -> Option<Self> {
        let with = |file: &str| {
            let has = |root: &PathBuf| root.join(format!("lxc.payload.{container}")).join(file).exists();
            hierarchies().into_iter().find(has)
        };
        let memory = with("memory.events").or_else(|| with("memory.oom_control"))?;
        Some(Self { memory, processes: with("pids.max")? })
    }
}

/// How often the container ran into its limits; not its disk's. Asked of all nodes at once: it looks in two places.
pub fn hits(container: &str) -> Hits {
    static COUNTERS: OnceLock<Counters> = OnceLock::new();
    let known = COUNTERS.get().or_else(|| Counters::find(container).map(|found| COUNTERS.get_or_init(|| found)));
    let Some(counters) = known else { return Hits::default() };
    let name = format!("lxc.payload.{container}");
    let (memory, processes) = (counters.memory.join(&name), counters.processes.join(&name));
    let ended = match features().version {
        Version::V1 => ended_for_memory(&memory),
        Version::V2 => number_in(&memory.join("memory.events"), "oom_kill"),
    };
    Hits { memory: ended, processes: refused_forks(&processes), disk_full: false }
}

/// Version 1 counts where the process was that was ended, which a service's own group may be. Only where there was no room
/// are all groups looked at.
fn ended_for_memory(directory: &Path) -> u64 {
    let counted = |directory: &Path| number_in(&directory.join("memory.oom_control"), "oom_kill");
    let peak = number(&directory.join("memory.max_usage_in_bytes")).saturating_add(FULL_WITHIN);
    if peak < number(&directory.join("memory.limit_in_bytes")) {
        return counted(directory);
    }
    all_below(directory).iter().map(|d| counted(d)).sum()
}

/// A kernel counts them at the group that is limited or at that of the process that asked. Only where there are many are
/// all groups looked at.
fn refused_forks(directory: &Path) -> u64 {
    let counted = |directory: &Path| number_in(&directory.join("pids.events"), "max");
    let many = number(&directory.join("pids.current")) > number(&directory.join("pids.max")) / 2;
    if many { all_below(directory).iter().map(|d| counted(d)).max().unwrap_or(0) } else { counted(directory) }
}

/// The group and those below it, as far as they are looked at: whoever is root in a node makes as many as they like.
fn all_below(directory: &Path) -> Vec<PathBuf> {
    const MOST: usize = 256;
    let mut found = vec![directory.to_path_buf()];
    let mut next = 0;
    while next < found.len() && found.len() < MOST {
        let entries = fs::read_dir(&found[next]).into_iter().flatten().flatten();
        let groups = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        let room = MOST - found.len();
        found.extend(groups.map(|e| e.path()).take(room));
        next += 1;
    }
    found
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The number after a word in a file of `word number` lines.
fn number_in(file: &Path, word: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(first, _)| *first == word);
    line.and_then(|(_, number)| number.trim().parse().ok()).unwrap_or(0)
}

/// Process ids in a cgroup and below it.
fn members(directory: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.parse().ok())
        .collect();
    for child in children(directory) {
        pids.extend(members(&child));
    }
    pids
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Removes a cgroup and everything below it; already gone is success.
fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Kills what is left in the container's cgroups and removes them. Normally liblxc's monitor has done so already.
pub fn clear(container: &str) -> io::Result<()> {
    let mut last = Ok(());
    // A dying process keeps its cgroup busy for a moment.
    for attempt in 0..100 {
        let directories = of(container);
        if directories.is_empty() {
            return Ok(());
        }
        last = Ok(());
        // What stands still in version 1 does not even die.
        let _ = thaw(container);
        for directory in &directories {
            for process in members(directory).into_iter().filter_map(Process::current) {
                process.kill(0)?;
            }
            if let Err(e) = remove_tree(directory) {
                last = Err(e);
            }
        }
        if last.is_ok() {
            return Ok(());
        }
        sys::pause(if attempt < 20 { 2 } else { 20 });
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(keys: &[(String, String)], key: &str) -> Option<String> {
        keys.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
    }

    #[test]
    fn a_size_becomes_limits_of_both_versions() {
        let size = Size::new(0.5, 256, 1024).unwrap();
        let one = limits(&size, Features { version: Version::V1, memsw: true, io_weight: false });
        assert_eq!(value(&one, "lxc.cgroup.cpu.cfs_quota_us").as_deref(), Some("50000"));
        assert_eq!(value(&one, "lxc.cgroup.memory.memsw.limit_in_bytes").as_deref(), Some("268435456"));
        let two = limits(&size, Features { version: Version::V2, memsw: true, io_weight: true });
        assert_eq!(value(&two, "lxc.cgroup2.cpu.max").as_deref(), Some("50000 100000"));
        assert_eq!(value(&two, "lxc.cgroup2.memory.swap.max").as_deref(), Some("0"));
        assert!(one.iter().all(|(k, _)| k.starts_with("lxc.cgroup.")));
        assert!(two.iter().all(|(k, _)| k.starts_with("lxc.cgroup2.")));
    }

    #[test]
    fn a_tree_is_the_containers_own_groups_on_a_directory_that_nobody_adds_to() {
        let tree = Tree { directories: vec!["cpu".to_owned(), "memory".to_owned()], links: Vec::new() };
        let binds = binds("dk-1", &tree, "/run/docklet/cgroup");
        assert_eq!(binds[0], "/run/docklet/cgroup sys/fs/cgroup none bind,ro,nosuid,nodev,noexec 0 0");
        let memory = "/sys/fs/cgroup/memory/lxc.payload.dk-1 sys/fs/cgroup/memory none bind,nosuid,nodev,noexec 0 0";
        assert_eq!(binds[2], memory);
    }

    #[test]
    fn a_cgroup_tells_its_container() {
        let name = "dk-0123456789abcdef0123456789abcdef";
        assert_eq!(container_of(&format!("lxc.payload.{name}")), Some(name));
        assert_eq!(container_of(&format!("lxc.monitor.{name}-1")), Some(name));
        assert_eq!(container_of("lxc.payload.web"), Some("web"));
        assert_eq!(container_of("system.slice"), None);
    }
}
