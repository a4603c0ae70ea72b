//! The short-lived helper that becomes one container: it enters the floor's network namespace, mounts the root file
//! system in a mount namespace of its own, and turns into `lxc-start`.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Network namespace with the bridge.
    pub network: PathBuf,
    /// User namespace with the container's id mapping.
    pub users: PathBuf,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// Holds `upper` and `work`.
    pub disk: PathBuf,
    /// Where everything is mounted.
    pub stage: PathBuf,
    pub lxcpath: PathBuf,
    pub config: PathBuf,
    pub name: String,
    /// /etc/subuid lists the range; otherwise liblxc, not finding the tool, writes the mapping itself, as root may.
    pub newuidmap: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("could not {what}")]
pub struct StageError {
    what: String,
    source: io::Error,
}

pub fn attempt<T, E: Into<io::Error>>(what: impl Into<String>, result: Result<T, E>) -> Result<T, StageError> {
    result.map_err(|e| StageError { what: what.into(), source: e.into() })
}

/// Does not return where it succeeds. The process must have one thread.
pub fn run() -> Result<(), StageError> {
    let request: Request = attempt("read the description", serde_json::from_reader(io::stdin().lock()))?;
    let network = attempt("open the network namespace", File::open(&request.network))?;
    let users = attempt("open the user namespace", File::open(&request.users))?;
    attempt("enter the network namespace", setns(&network, CloneFlags::CLONE_NEWNET))?;
    root(&request, &users)?;
    let lxc_start = attempt("find lxc-start", find("lxc-start"))?;
    let mut command = Command::new(lxc_start);
    command.arg("-F").arg("-n").arg(&request.name).arg("-P").arg(&request.lxcpath).arg("-f").arg(&request.config);
    command.stdin(Stdio::null());
    if !request.newuidmap {
        command.env("PATH", "/nonexistent");
    }
    attempt("run lxc-start", Err::<(), _>(command.exec()))
}

fn find(program: &str) -> io::Result<PathBuf> {
    ["/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|d| Path::new(d).join(program))
        .find(|p| p.exists())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Layers, id-mapped and read-only, under an overlay that writes to the container's disk.
fn root(request: &Request, users: &File) -> Result<(), StageError> {
    attempt("make a mount namespace", unshare(CloneFlags::CLONE_NEWNS))?;
    let none = None::<&str>;
    attempt("detach it from the host's", mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none))?;
    attempt(
        "mount the stage",
        mount(
            Some("bench"),
            &request.stage,
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755,size=64k"),
        ),
    )?;
    attempt("enter the stage", std::env::set_current_dir(&request.stage))?;
    attempt("make a mount point", fs::create_dir("c"))?;
    own_sys("c")?;
    let mut lower = Vec::new();
    for (index, layer) in request.layers.iter().enumerate() {
        let name = format!("l{index}");
        attempt("make a mount point", fs::create_dir(&name))?;
        attempt(format!("mount {} with mapped ids", layer.display()), idmapped(layer, users, &name))?;
        lower.push(name);
    }
    // overlayfs wants the uppermost first.
    lower.reverse();
    for name in ["d", "m", "r"] {
        attempt("make a mount point", fs::create_dir(name))?;
    }
    attempt("bind the disk", mount(Some(&request.disk), "d", none, MsFlags::MS_BIND, none))?;
    let options = format!("lowerdir={},upperdir=d/upper,workdir=d/work,redirect_dir=on", lower.join(":"));
    attempt(
        "mount the overlay",
        mount(Some("bench"), "m", Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str())),
    )?;
    attempt("leave the stage", std::env::set_current_dir("/"))
}

/// Mounts /sys anew, with the cgroups, which wait at `aside` meanwhile: liblxc looks for the bridge in /sys/class/net,
/// which shows the network namespace that /sys was mounted in.
pub fn own_sys(aside: &str) -> Result<(), StageError> {
    let none = None::<&str>;
    attempt("keep the cgroups", mount(Some("/sys/fs/cgroup"), aside, none, MsFlags::MS_BIND | MsFlags::MS_REC, none))?;
    attempt(
        "mount /sys",
        mount(Some("bench"), "/sys", Some("sysfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, none),
    )?;
    attempt("put the cgroups back", mount(Some(aside), "/sys/fs/cgroup", none, MsFlags::MS_MOVE, none))
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Attaches a read-only copy of the mount at `source` to `target`, its ids mapped by the user namespace.
fn idmapped(source: &Path, users: &File, target: &str) -> io::Result<()> {
    const OPEN_TREE_CLONE: libc::c_uint = 1;
    const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
    const MOUNT_ATTR_RDONLY: u64 = 0x1;
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let checked = |result: libc::c_long| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    let source = CString::new(source.as_os_str().as_bytes())?;
    let target = CString::new(target)?;
    // SAFETY: the path is a C string that outlives the call.
    let fd = checked(unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            source.as_ptr(),
            OPEN_TREE_CLONE | libc::O_CLOEXEC as libc::c_uint,
        )
    })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    let tree = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    // SAFETY: `attr` has the kernel's layout and its true size is passed.
    checked(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    // SAFETY: both paths are C strings that outlive the call.
    checked(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}
