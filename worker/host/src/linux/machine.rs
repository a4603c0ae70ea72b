//! The host itself: what nodes need of it, set and checked.

use docklet_types::host::{Check, CheckOutcome};
use docklet_types::id::IdRange;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::rootfs::{self, STAGE};
use super::{cgroup, container, sys};

pub fn ok(name: &str, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), outcome: CheckOutcome::Ok, message: message.into() }
}

pub fn warning(name: &str, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), outcome: CheckOutcome::Warning, message: message.into() }
}

pub fn failed(name: &str, message: impl Into<String>) -> Check {
    Check { name: name.to_owned(), outcome: CheckOutcome::Failed, message: message.into() }
}

/// A kernel setting and the least value that nodes need. Those of a number per user or machine are LXD's production
/// values: with Debian's own, 13 of 100 nodes never came up.
struct Sysctl {
    name: &'static str,
    path: &'static str,
    least: u64,
}

const SYSCTLS: [Sysctl; 12] = [
    Sysctl { name: "sysctl_ip_forward", path: "net/ipv4/ip_forward", least: 1 },
    Sysctl { name: "sysctl_inotify_instances", path: "fs/inotify/max_user_instances", least: 1_048_576 },
    Sysctl { name: "sysctl_inotify_watches", path: "fs/inotify/max_user_watches", least: 1_048_576 },
    Sysctl { name: "sysctl_inotify_queue", path: "fs/inotify/max_queued_events", least: 1_048_576 },
    Sysctl { name: "sysctl_keys", path: "kernel/keys/maxkeys", least: 2000 },
    Sysctl { name: "sysctl_keys_bytes", path: "kernel/keys/maxbytes", least: 2_000_000 },
    Sysctl { name: "sysctl_neighbours_1", path: "net/ipv4/neigh/default/gc_thresh1", least: 4096 },
    Sysctl { name: "sysctl_neighbours_2", path: "net/ipv4/neigh/default/gc_thresh2", least: 8192 },
    Sysctl { name: "sysctl_neighbours_3", path: "net/ipv4/neigh/default/gc_thresh3", least: 16_384 },
    Sysctl { name: "sysctl_max_map_count", path: "vm/max_map_count", least: 262_144 },
    Sysctl { name: "sysctl_pid_max", path: "kernel/pid_max", least: 4_194_304 },
    Sysctl { name: "sysctl_nr_open", path: "fs/nr_open", least: 1_048_576 },
];

/// Raises each setting that is too low.
pub fn sysctls() -> Vec<Check> {
    SYSCTLS.iter().map(raise).collect()
}

fn raise(sysctl: &Sysctl) -> Check {
    let path = Path::new("/proc/sys").join(sysctl.path);
    let dotted = sysctl.path.replace('/', ".");
    let read = || fs::read_to_string(&path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let Some(before) = read() else {
        return warning(sysctl.name, format!("{dotted} cannot be read; this kernel may be built without it"));
    };
    if before >= sysctl.least {
        return ok(sysctl.name, format!("{dotted} is {before}"));
    }
    match fs::write(&path, sysctl.least.to_string()) {
        Ok(()) if read().is_some_and(|now| now >= sysctl.least) => {
            ok(sysctl.name, format!("{dotted} was {before} and is now {}", sysctl.least))
        }
        Ok(()) => warning(
            sysctl.name,
            format!("{dotted} is {before} and stays so; set it to {} in /etc/sysctl.d", sysctl.least),
        ),
        Err(e) if sysctl.least == 1 => failed(sysctl.name, format!("{dotted} is {before} and could not be set: {e}")),
        Err(e) => warning(sysctl.name, format!("{dotted} is {before} and could not be set to {}: {e}", sysctl.least)),
    }
}

/// The first id of all ranges, and how many ids `/etc/subuid` must grant root for any range there can be.
fn subordinate() -> (u64, u64) {
    let first = IdRange::new(0).map_or(0, IdRange::first_id);
    let end = IdRange::new(IdRange::MAX_INDEX).map_or(first, |r| r.first_id() + IdRange::LEN);
    (u64::from(first), u64::from(end - first))
}

/// Grants root the ids that nodes run as: liblxc calls newuidmap even as root, and it looks there.
pub fn subordinate_ids() -> Vec<Check> {
    [("subuid", "/etc/subuid"), ("subgid", "/etc/subgid")].map(|(name, file)| grant(name, Path::new(file))).to_vec()
}

fn grant(name: &str, file: &Path) -> Check {
    let (first, count) = subordinate();
    let text = fs::read_to_string(file).unwrap_or_default();
    if is_granted(&text, first, count) {
        return ok(name, format!("{} grants root {count} ids from {first}", file.display()));
    }
    let foreign = overlapping(&text, first, count);
    let entry = format!("{}root:{first}:{count}\n", if text.is_empty() || text.ends_with('\n') { "" } else { "\n" });
    let append = || fs::OpenOptions::new().append(true).create(true).open(file)?.write_all(entry.as_bytes());
    match append() {
        Err(e) => failed(
            name,
            format!("{} must have the line root:{first}:{count}, and could not be written: {e}", file.display()),
        ),
        Ok(()) if foreign.is_empty() => {
            ok(name, format!("{} now grants root {count} ids from {first}", file.display()))
        }
        Ok(()) => warning(
            name,
            format!(
                "{} also grants ids of Docklet's to {}; they must not be used for other containers",
                file.display(),
                foreign.join(", ")
            ),
        ),
    }
}

fn ranges(text: &str) -> impl Iterator<Item = (&str, u64, u64)> {
    text.lines().filter_map(|line| {
        let mut parts = line.trim().split(':');
        Some((parts.next()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

fn is_granted(text: &str, first: u64, count: u64) -> bool {
    ranges(text).any(|(who, from, n)| who == "root" && from <= first && from + n >= first + count)
}

/// Other users whose ids overlap with those of nodes.
fn overlapping(text: &str, first: u64, count: u64) -> Vec<String> {
    ranges(text)
        .filter(|(who, from, n)| *who != "root" && *from < first + count && from + n > first)
        .map(|(who, _, _)| who.to_owned())
        .collect()
}

/// Asks the helper to mount a root file system as nodes have it, and to throw it away.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// An empty directory of the file system that layers lie on.
    pub layers: PathBuf,
    /// A directory of the pool, with `upper` and `work`.
    pub disk: PathBuf,
}

/// Runs in the helper: what the kernel said, or nothing where all went well.
pub fn probe(request: &ProbeRequest) -> Option<String> {
    let first_id = IdRange::new(0).map_or(0, IdRange::first_id);
    let rootfs = rootfs::Rootfs {
        layers: vec![request.layers.clone()],
        disk: request.disk.clone(),
        first_id,
        notify: request.disk.clone(),
        hosts: PathBuf::from("/dev/null"),
        data: None,
        hostname: String::new(),
        cgroups: None,
    };
    if let Err(e) = rootfs.mount() {
        return Some(crate::reason::chain(&e));
    }
    // A file that is made in the overlay must belong to the node's root on the disk.
    let write = || {
        fs::write(format!("{STAGE}/m/probe"), "")?;
        fs::remove_file(format!("{STAGE}/m/probe"))
    };
    write().err().map(|e: io::Error| format!("nothing can be written over an image: {e}"))
}

/// Lets everybody walk to liblxc's directory: it refuses to start a container whose root, who is nobody on the host,
/// cannot. What lies beside it is closed by its own modes. Directories above the installation are the administrator's:
/// the first of them that is closed is returned.
pub fn let_others_search(lxc: &Path, prefix: &Path) -> io::Result<Option<PathBuf>> {
    use std::os::unix::fs::PermissionsExt;
    for directory in lxc.ancestors().take_while(|d| d.starts_with(prefix)) {
        let mode = fs::metadata(directory)?.permissions().mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(directory, fs::Permissions::from_mode(mode | 0o011))?;
        }
    }
    let closed = |d: &&Path| fs::metadata(d).is_ok_and(|m| m.permissions().mode() & 0o001 == 0);
    Ok(prefix.ancestors().skip(1).find(closed).map(Path::to_path_buf))
}

/// Programs that nodes need on the host.
pub fn programs() -> Check {
    let missing: Vec<&str> =
        ["nft", "newuidmap", "newgidmap", "mkfs.btrfs", "blkid"].into_iter().filter(|p| !in_path(p)).collect();
    if missing.is_empty() {
        ok("programs", "nft, newuidmap, newgidmap, mkfs.btrfs and blkid are installed")
    } else {
        failed("programs", format!("missing: {}; run prepare.sh", missing.join(", ")))
    }
}

fn in_path(program: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .any(|d| Path::new(d).join(program).exists())
}

pub fn root() -> Check {
    if nix::unistd::geteuid().is_root() {
        ok("root", "the worker runs as root")
    } else {
        failed("root", "the worker must run as root")
    }
}

pub fn cgroups() -> Check {
    let missing: Vec<&str> = match cgroup::version() {
        cgroup::Version::V1 => {
            ["cpu", "memory", "pids"].into_iter().filter(|c| !Path::new("/sys/fs/cgroup").join(c).exists()).collect()
        }
        cgroup::Version::V2 => {
            let have = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
            ["cpu", "memory", "pids"].into_iter().filter(|c| !have.split_whitespace().any(|h| h == *c)).collect()
        }
    };
    let version = cgroup::version().as_str();
    if missing.is_empty() {
        ok("cgroups", format!("cgroup {version} with cpu, memory and pids"))
    } else {
        failed("cgroups", format!("cgroup {version} lacks {}; nodes could not be limited", missing.join(", ")))
    }
}

pub fn lxcfs() -> Check {
    if container::lxcfs_is_live() {
        ok("lxcfs", "nodes see their own limits in /proc")
    } else {
        warning(
            "lxcfs",
            "lxcfs does not run: nodes see the host's memory and CPUs in /proc. Start lxcfs; nodes started later use it",
        )
    }
}

/// The pool's probe directory, made and given to the first range.
pub fn probe_disk(pool: &Path) -> io::Result<PathBuf> {
    let disk = pool.join(".probe");
    let _ = fs::remove_dir_all(&disk);
    for name in ["upper", "work"] {
        fs::create_dir_all(disk.join(name))?;
    }
    let first = IdRange::new(0).map_or(0, IdRange::first_id);
    sys::lchown_at(fs::File::open(disk.join("upper"))?.as_fd(), c"", first, first)?;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_found_and_made_once() {
        let file = std::env::temp_dir().join(format!("docklet-subuid-{}", std::process::id()));
        fs::write(&file, "debian:100000:65536").unwrap();
        assert_eq!(grant("subuid", &file).outcome, CheckOutcome::Ok);
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert_eq!(grant("subuid", &file).outcome, CheckOutcome::Ok);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        fs::remove_file(&file).unwrap();
    }

    #[test]
    fn foreign_grants_are_noticed() {
        let (first, count) = subordinate();
        assert_eq!(overlapping("lxd:1000000:65536\nroot:1000000:65536\na:100000:65536", first, count), ["lxd"]);
        assert!(!is_granted("root:1000000:65536", first, count));
    }
}
