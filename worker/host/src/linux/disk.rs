//! What makes a disk this node's: host name, keys, resolver. Written once, while the disk is still nobody's.
//!
//! A tenant's root may have put symbolic links where these files lie, so a disk that a node has run on is never written
//! to again: a marker beside `upper` says that the disk is complete, and one without it is thrown away and made anew.

use docklet_types::plan::{NodePlan, VclusterPlan};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::path::Path;

use super::pool::{Pool, PoolError};
use super::sys;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("the pool refused")]
    Pool(#[source] PoolError),
    #[error("could not write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

const COMPLETE: &str = "complete";

/// One file or directory of a new disk; directories end in `/`.
struct Item {
    path: &'static str,
    mode: u32,
    content: String,
}

fn items(node: &NodePlan, vcluster: &VclusterPlan, resolvers: &[String]) -> Vec<Item> {
    let dir = |path, mode| Item { path, mode, content: String::new() };
    let file = |path, mode, content: String| Item { path, mode, content };
    let keys = &vcluster.keys;
    let line = |text: &str| format!("{}\n", text.trim_end());
    let resolv: String = resolvers.iter().map(|r| format!("nameserver {r}\n")).collect();
    let known = format!("* {}", line(&keys.host.public));
    vec![
        dir("etc/", 0o755),
        file("etc/hostname", 0o644, format!("{}\n", node.name)),
        file("etc/resolv.conf", 0o644, resolv),
        dir("etc/ssh/", 0o755),
        file("etc/ssh/ssh_host_ed25519_key", 0o600, line(&keys.host.private)),
        file("etc/ssh/ssh_host_ed25519_key.pub", 0o644, line(&keys.host.public)),
        file("etc/ssh/ssh_known_hosts", 0o644, known.clone()),
        dir("root/", 0o700),
        dir("root/.ssh/", 0o700),
        file("root/.ssh/id_ed25519", 0o600, line(&keys.user.private)),
        file("root/.ssh/id_ed25519.pub", 0o600, line(&keys.user.public)),
        file("root/.ssh/authorized_keys", 0o600, line(&keys.user.public)),
        file("root/.ssh/config", 0o600, "Host *\n    IdentityFile ~/.ssh/id_ed25519\n    LogLevel ERROR\n".to_owned()),
        file("root/.ssh/known_hosts", 0o600, known),
    ]
}

/// Makes the node's disk where there is none, or where one was begun and not finished.
pub fn ensure(pool: &Pool, node: &NodePlan, vcluster: &VclusterPlan, resolvers: &[String]) -> Result<(), DiskError> {
    let disk = pool.create(node.id, node.size.disk_mib).map_err(DiskError::Pool)?;
    if disk.join(COMPLETE).exists() {
        return Ok(());
    }
    if fs::read_dir(&disk).is_ok_and(|mut d| d.next().is_some()) {
        pool.remove(node.id).map_err(DiskError::Pool)?;
        pool.create(node.id, node.size.disk_mib).map_err(DiskError::Pool)?;
    }
    write(&disk, &items(node, vcluster, resolvers), node.range.first_id())
}

/// Whether a disk was finished.
pub fn is_complete(disk: &Path) -> bool {
    disk.join(COMPLETE).exists()
}

fn write(disk: &Path, items: &[Item], owner: u32) -> Result<(), DiskError> {
    let upper = disk.join("upper");
    let make = |path: &Path, mode: u32, owner: Option<u32>| {
        let made = fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .and_then(|()| owner.map_or(Ok(()), |id| chown(path, Some(id), Some(id))));
        made.map_err(|source| DiskError::Write { path: path.display().to_string(), source })
    };
    make(&disk.join("work"), 0o700, None)?;
    make(&upper, 0o755, Some(owner))?;
    for item in items {
        let path = upper.join(item.path);
        if item.path.ends_with('/') {
            make(&path, item.mode, Some(owner))?;
        } else {
            new_file(&path, item, owner)
                .map_err(|source| DiskError::Write { path: path.display().to_string(), source })?;
        }
    }
    fs::write(disk.join(COMPLETE), "")
        .map_err(|source| DiskError::Write { path: disk.join(COMPLETE).display().to_string(), source })
}

fn new_file(path: &Path, item: &Item, owner: u32) -> io::Result<()> {
    let mut file: File = fs::OpenOptions::new().write(true).create_new(true).mode(item.mode).open(path)?;
    file.write_all(item.content.as_bytes())?;
    sys::lchown_at(file.as_fd(), c"", owner, owner)
}

/// The host's name servers that a node can reach: loopback addresses mean another machine inside a node.
pub fn resolvers() -> Vec<String> {
    for file in ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"] {
        let found = nameservers(&fs::read_to_string(file).unwrap_or_default());
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn nameservers(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|l| l.trim().strip_prefix("nameserver"))
        .filter_map(|a| a.trim().parse::<std::net::Ipv4Addr>().ok())
        .filter(|a| !a.is_loopback() && !a.is_unspecified())
        // resolv.conf(5): more than three are ignored.
        .take(3)
        .map(|a| a.to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_resolvers_are_passed_on() {
        assert_eq!(
            nameservers("nameserver 127.0.0.53\nnameserver 10.0.0.1\n# nameserver 1.2.3.4\nsearch x\n"),
            ["10.0.0.1"]
        );
        assert!(nameservers("").is_empty());
    }
}
