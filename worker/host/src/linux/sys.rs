//! System calls that no library wraps yet, and small ones that read better with a name.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `struct open_how` of linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

pub fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// The result of a raw system call as a number or the error in `errno`.
pub fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn fd_of(result: libc::c_long) -> io::Result<OwnedFd> {
    let raw = check(result)?;
    // SAFETY: the kernel has just returned this descriptor to us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as i32) })
}

/// A detached copy of the mount at `path`, read-only and without devices, with ids mapped by the user namespace.
pub fn idmapped_copy(path: &Path, userns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let c = c_path(path)?;
    // SAFETY: the path is a valid C string for the whole call.
    let tree = fd_of(unsafe {
        libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c.as_ptr(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
    })?;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        userns_fd: userns.as_raw_fd() as u64,
    };
    // SAFETY: `attr` has the kernel's layout and its true size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(tree)
}

/// Attaches a detached mount at `target`.
pub fn attach_mount(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let c = c_path(target)?;
    // SAFETY: both paths are valid C strings for the whole call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            c.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })
    .map(drop)
}

/// Opens `path` below `root`; `resolve` says how far symbolic links may lead.
pub fn openat2(root: BorrowedFd<'_>, path: &Path, flags: i32, mode: u32, resolve: u64) -> io::Result<OwnedFd> {
    let c = c_path(path)?;
    let how = OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve };
    // SAFETY: `how` has the kernel's layout and its true size is passed.
    fd_of(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), c.as_ptr(), &raw const how, size_of::<OpenHow>())
    })
}

/// A descriptor that refers to the process whatever becomes of its number.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    fd_of(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::O_NONBLOCK) })
}

pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null siginfo.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })
    .map(drop)
}

/// Waits for the process behind a pidfd to end; `false` when `millis` passed first.
pub fn pidfd_wait(pidfd: BorrowedFd<'_>, millis: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, and the count says one.
    let n = check(libc::c_long::from(unsafe { libc::poll(&raw mut poll, 1, millis) }))?;
    Ok(n > 0)
}

/// The magic number of the file system at `path`.
pub fn fs_magic(path: &Path) -> io::Result<i64> {
    let c = c_path(path)?;
    // SAFETY: `statfs` is plain data; the kernel fills it in.
    let mut out: libc::statfs = unsafe { std::mem::zeroed() };
    check(libc::c_long::from(unsafe { libc::statfs(c.as_ptr(), &raw mut out) }))?;
    Ok(out.f_type)
}

/// Writes everything of the file system that holds `fd` to its device.
pub fn syncfs(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes a number.
    check(libc::c_long::from(unsafe { libc::syncfs(fd.as_raw_fd()) })).map(drop)
}

/// Gives what `dir/name` names, itself and not what it links to, to `uid` and `gid`.
pub fn lchown_at(dir: impl AsFd, name: &std::ffi::CStr, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the name is a valid C string.
    check(libc::c_long::from(unsafe {
        libc::fchownat(
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            uid,
            gid,
            libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH,
        )
    }))
    .map(drop)
}

/// Has the kernel kill this process, and nothing that it forks, when the thread that started it ends. Makes only a system
/// call, so that it may stand between fork and exec.
pub fn end_with_parent() -> io::Result<()> {
    // SAFETY: takes numbers.
    check(libc::c_long::from(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })).map(drop)
}

/// Does nothing for so long. For the helper and for threads that may block; async code has its own timer.
pub fn pause(millis: i32) {
    // SAFETY: no descriptors, and the count says none.
    unsafe { libc::poll(std::ptr::null_mut(), 0, millis) };
}
