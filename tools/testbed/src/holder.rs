//! The idle process that holds a host's namespaces. In its mount namespace `/sys` shows the host's network, and what a
//! worker mounts is nobody else's.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::path::Path;

use crate::bed::namespace;
use crate::system::{Error, Result};

/// Sets the namespaces up and holds them until the process is killed.
pub fn hold(host: &str) -> Result<()> {
    enter(host).map_err(|source| Error::Namespace { host: host.to_owned(), source })?;
    // Whoever waits for this line knows that the namespaces are there.
    println!("held");
    loop {
        nix::unistd::pause();
    }
}

fn enter(host: &str) -> io::Result<()> {
    let network = File::open(Path::new("/run/netns").join(namespace(host)))?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // A sysfs shows the links of who mounts it; the control groups below the old one are taken over.
    mount(Some("/sys/fs/cgroup"), "/mnt", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    mount(Some("/mnt"), "/sys/fs/cgroup", none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    nix::mount::umount2("/mnt", nix::mount::MntFlags::MNT_DETACH)?;
    Ok(())
}
