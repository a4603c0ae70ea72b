//! A node's root file system, put together in the start helper's private mount namespace.
//!
//! Everything is mounted under one small tmpfs at [`STAGE`]: the image's layers as idmapped read-only mounts (`l0`,
//! `l1`, …), the node's disk (`d`), the merged overlay (`m`), and what liblxc then binds into the node (`notify`,
//! `hosts`, `nfs`, `hostname`, `cgroup`). The stage is world-searchable although FS_PREFIX is not: the node's root, who is nobody on the
//! host, must be able to walk to it. No mount is visible on the host, and all of them end with the node's monitor.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use docklet_types::id::IdRange;

use super::{cgroup, sys};

/// The mount point of the stage. Every node sees its own there; on the host it is an empty directory.
pub const STAGE: &str = "/run/docklet";

#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    #[error("could not {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
}

trait Context<T> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, RootfsError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, RootfsError> {
        self.map_err(|e| RootfsError::Io { what: what(), source: e.into() })
    }
}

/// What a root file system is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rootfs {
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Holds `upper` and `work`.
    pub disk: PathBuf,
    /// The host's id of the node's root.
    pub first_id: u32,
    /// The directory of the socket that init reports to.
    pub notify: PathBuf,
    /// The vcluster's /etc/hosts.
    pub hosts: PathBuf,
    /// The user's data, if the host has it.
    pub data: Option<PathBuf>,
    /// The node's name.
    pub hostname: String,
    /// What the node's control groups are shown in, where liblxc does not mount them.
    pub cgroups: Option<cgroup::Tree>,
}

/// What liblxc is told to bind into the node: source on the stage, target, options.
pub fn binds(has_data: bool) -> Vec<String> {
    let mut entries = vec![
        format!("{STAGE}/notify dev/.docklet none bind,create=dir 0 0"),
        format!("{STAGE}/hosts etc/hosts none bind,ro,nosuid,nodev,optional,create=file 0 0"),
        // The kernel wakes whoever waits for a change of this file when a name is set in any node of the machine, and
        // the journal of each node waits for one. Nobody can wait for a plain file.
        format!("{STAGE}/hostname proc/sys/kernel/hostname none bind,ro,nosuid,nodev,noexec 0 0"),
    ];
    if has_data {
        entries.push(format!("{STAGE}/nfs root/nfs none rbind,nosuid,nodev,optional,create=dir 0 0"));
    }
    entries
}

impl Rootfs {
    /// Mounts it at `STAGE/m`. The calling process must have one thread, and gets a mount namespace of its own.
    pub fn mount(&self) -> Result<(), RootfsError> {
        unshare(CloneFlags::CLONE_NEWNS).attempting(|| "make a mount namespace".to_owned())?;
        // Slave, not private: what the host unmounts later must not stay busy because of a node.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
            .attempting(|| "detach the mount namespace from the host's".to_owned())?;
        let stage = Path::new(STAGE);
        mount(
            Some("docklet"),
            stage,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755,size=64k"),
        )
        .attempting(|| format!("mount a tmpfs at {STAGE}"))?;
        std::env::set_current_dir(stage).attempting(|| format!("enter {STAGE}"))?;
        let userns = user_namespace(self.first_id).attempting(|| "make a user namespace".to_owned())?;
        let mut lower = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("l{index}");
            fs::create_dir(&name).attempting(|| format!("make {STAGE}/{name}"))?;
            let tree = sys::idmapped_copy(layer, userns.as_fd())
                .attempting(|| format!("make an idmapped mount of {}", layer.display()))?;
            sys::attach_mount(tree.as_fd(), Path::new(&name)).attempting(|| format!("attach {}", layer.display()))?;
            lower.push(name);
        }
        // overlayfs wants the uppermost first.
        lower.reverse();
        bind_dir(&self.disk, "d")?;
        fs::create_dir("m").attempting(|| format!("make {STAGE}/m"))?;
        fs::create_dir("r").attempting(|| format!("make {STAGE}/r"))?;
        let options = format!("lowerdir={},upperdir=d/upper,workdir=d/work,redirect_dir=on", lower.join(":"));
        mount(Some("docklet"), "m", Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))
            .attempting(|| format!("mount the overlay of {} layers over {}", self.layers.len(), self.disk.display()))?;
        bind_dir(&self.notify, "notify")?;
        fs::write("hosts", "").attempting(|| format!("make {STAGE}/hosts"))?;
        bind(&self.hosts, "hosts")?;
        if let Some(data) = &self.data {
            bind_dir(data, "nfs")?;
        }
        fs::write("hostname", format!("{}\n", self.hostname)).attempting(|| format!("make {STAGE}/hostname"))?;
        if let Some(tree) = &self.cgroups {
            furnish(tree, Path::new("cgroup")).attempting(|| format!("make {STAGE}/cgroup"))?;
        }
        std::env::set_current_dir("/").attempting(|| "leave the stage".to_owned())
    }
}

/// A directory with the names of the tree, for its hierarchies to be bound over.
fn furnish(tree: &cgroup::Tree, root: &Path) -> io::Result<()> {
    fs::create_dir(root)?;
    for name in &tree.directories {
        fs::create_dir(root.join(name))?;
    }
    tree.links.iter().try_for_each(|(name, target)| std::os::unix::fs::symlink(target, root.join(name)))
}

fn bind_dir(source: &Path, name: &str) -> Result<(), RootfsError> {
    fs::create_dir(name).attempting(|| format!("make {STAGE}/{name}"))?;
    bind(source, name)
}

fn bind(source: &Path, name: &str) -> Result<(), RootfsError> {
    mount(Some(source), name, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .attempting(|| format!("bind {} to {STAGE}/{name}", source.display()))
}

/// A user namespace in which id 0 is the host's `first_id`. It lives as long as the descriptor.
fn user_namespace(first_id: u32) -> io::Result<OwnedFd> {
    let (mut ours, mut theirs) = UnixStream::pair()?;
    // SAFETY: the helper has one thread; the child makes only system calls on what it already has, and exits.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => {
            drop(ours);
            let made = unshare(CloneFlags::CLONE_NEWUSER).is_ok();
            let told = theirs.write_all(&[u8::from(made)]).is_ok();
            // Held until the parent hangs up.
            let _ = told && theirs.read(&mut [0]).is_ok();
            // SAFETY: ends this child without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        nix::unistd::ForkResult::Parent { child } => {
            drop(theirs);
            let opened = open_mapped(&mut ours, child.as_raw(), first_id);
            drop(ours);
            nix::sys::wait::waitpid(child, None)?;
            opened
        }
    }
}

fn open_mapped(child_says: &mut UnixStream, pid: i32, first_id: u32) -> io::Result<OwnedFd> {
    let mut made = [0];
    child_says.read_exact(&mut made)?;
    if made == [0] {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let map = format!("0 {first_id} {}\n", IdRange::LEN);
    fs::write(format!("/proc/{pid}/uid_map"), &map)?;
    fs::write(format!("/proc/{pid}/gid_map"), &map)?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}
