//! The first process of LXD's namespaces: it makes them a home for the daemon, packs the image, starts the daemon, and
//! collects the processes that end below it. When it is killed, the kernel ends everything that LXD started.

use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{BRIDGE, IMAGE, KEY, LXD_DIR, SUBIDS, TREE};
use crate::floor::stage::{StageError, attempt, own_sys};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The run's directory; the daemon's is in it.
    pub directory: PathBuf,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    pub lxd: PathBuf,
}

/// Returns when the daemon has ended. The process must be the first of new process, mount and network namespaces.
pub fn run() -> Result<(), StageError> {
    let request: Request = attempt("read the description", serde_json::from_reader(io::stdin().lock()))?;
    furnish(&request.directory)?;
    pack(&request)?;
    // Nothing of the caller's environment: it may name another daemon or a proxy.
    let daemon = Command::new(&request.lxd)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LXD_DIR", LXD_DIR)
        .stdin(Stdio::null())
        .spawn();
    let daemon = Pid::from_raw(attempt("start lxd", daemon)?.id().cast_signed());
    loop {
        match attempt("wait for lxd", wait())? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == daemon => return Ok(()),
            _ => {}
        }
    }
}

/// /proc and /sys of the new namespaces, the daemon's directory where Debian has it, and a bridge.
fn furnish(directory: &Path) -> Result<(), StageError> {
    let none = None::<&str>;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attempt("mount /proc", mount(Some("bench"), "/proc", Some("proc"), quiet, none))?;
    // liblxc's locks, and whatever else would stay there.
    let small = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    attempt("mount /run", mount(Some("bench"), "/run", Some("tmpfs"), small, Some("mode=0755,size=16m")))?;
    attempt("make a mount point", fs::create_dir("/run/cgroup"))?;
    own_sys("/run/cgroup")?;
    // Containers' roots walk through the daemon's directory, who are nobody on the way to the run's.
    for (ours, place) in [("lxd", LXD_DIR), (SUBIDS, "/etc/subuid"), (SUBIDS, "/etc/subgid")] {
        attempt(format!("bind {place}"), mount(Some(&directory.join(ours)), place, none, MsFlags::MS_BIND, none))?;
    }
    for line in ["link set lo up", &format!("link add {BRIDGE} type bridge"), &format!("link set {BRIDGE} up")] {
        run_tool(Command::new("ip").args(line.split(' ')))?;
    }
    Ok(())
}

/// The layers as one root file system, beside the metadata that the caller wrote, in one tar.
fn pack(request: &Request) -> Result<(), StageError> {
    let tree = request.directory.join(TREE);
    // overlayfs wants the uppermost first, and names that may hold a colon, escaped.
    let lower: Vec<String> = std::iter::once(&request.directory.join(KEY))
        .chain(request.layers.iter().rev())
        .map(|path| path.display().to_string().replace('\\', "\\\\").replace(':', "\\:"))
        .collect();
    let options = format!("lowerdir={}", lower.join(":"));
    attempt(
        "mount the layers",
        mount(Some("bench"), &tree.join("rootfs"), Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())),
    )?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file"]);
    tar.arg(request.directory.join(IMAGE)).arg("--directory").arg(&tree).args(["metadata.yaml", "rootfs"]);
    run_tool(&mut tar)?;
    attempt("unmount the layers", nix::mount::umount(&tree.join("rootfs")))
}

/// What it says goes to the run's log, with this process's own errors.
fn run_tool(command: &mut Command) -> Result<(), StageError> {
    let what = format!("run {}", command.get_program().display());
    let status = attempt(what.as_str(), command.stdin(Stdio::null()).status())?;
    attempt(what, if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) })
}
