//! The few btrfs ioctls that the pool needs (linux/btrfs.h).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const MAGIC: u8 = 0x94;
pub const SUPER_MAGIC: i64 = 0x9123_683E;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct QuotaCtl {
    cmd: u64,
    status: u64,
}

#[repr(C)]
struct QgroupCreate {
    create: u64,
    id: u64,
}

#[repr(C)]
struct QgroupLimit {
    id: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

#[repr(C)]
struct QgroupAssign {
    assign: u64,
    member: u64,
    group: u64,
}

/// `struct btrfs_ioctl_vol_args_v2`, with the parts that stay zero as words.
#[repr(C)]
struct VolArgs2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// The head of `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

#[repr(C)]
struct InodeLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_search_args`, with the parts that are not read as bytes.
#[repr(C)]
struct TreeSearch {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    items: u32,
    rest: [u8; 4028],
}

nix::ioctl_none!(sync, MAGIC, 8);
nix::ioctl_write_ptr!(subvol_create, MAGIC, 14, VolArgs);
nix::ioctl_write_ptr!(snap_destroy, MAGIC, 15, VolArgs);
nix::ioctl_write_ptr!(snap_create, MAGIC, 23, VolArgs2);
nix::ioctl_read!(fs_info, MAGIC, 31, FsInfo);
nix::ioctl_write_ptr!(qgroup_assign, MAGIC, 41, QgroupAssign);
nix::ioctl_readwrite!(tree_search, MAGIC, 17, TreeSearch);
nix::ioctl_readwrite!(ino_lookup, MAGIC, 18, InodeLookup);
nix::ioctl_readwrite!(quota_ctl, MAGIC, 40, QuotaCtl);
nix::ioctl_write_ptr!(qgroup_create, MAGIC, 42, QgroupCreate);
nix::ioctl_read!(qgroup_limit, MAGIC, 43, QgroupLimit);

const QUOTA_ENABLE: u64 = 1;
/// Since Linux 6.7: counts each extent for the subvolume that wrote it, at a fraction of the cost.
const QUOTA_ENABLE_SIMPLE: u64 = 4;
const LIMIT_REFERENCED: u64 = 1;
/// The tree's own root directory (BTRFS_FIRST_FREE_OBJECTID).
const ROOT_OBJECT: u64 = 256;

fn volume(name: &str) -> io::Result<VolArgs> {
    let mut args = VolArgs { fd: 0, name: [0; 4088] };
    // One byte stays zero: the name is a C string.
    if name.len() >= args.name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    Ok(args)
}

/// Makes a subvolume `name` in the directory; already there is success.
pub fn create_subvolume(directory: &File, name: &str) -> io::Result<()> {
    let args = volume(name)?;
    // SAFETY: the argument is the structure that the request is defined with.
    match unsafe { subvol_create(directory.as_raw_fd(), &raw const args) } {
        Err(nix::errno::Errno::EEXIST) | Ok(_) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Removes the subvolume with all that is in it; the space is freed in the background.
pub fn destroy_subvolume(directory: &File, name: &str) -> io::Result<()> {
    let args = volume(name)?;
    // SAFETY: as above.
    match unsafe { snap_destroy(directory.as_raw_fd(), &raw const args) } {
        Err(nix::errno::Errno::ENOENT) | Ok(_) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Writes a transaction, and wakes what frees removed subvolumes; by itself that happens every half a minute.
pub fn sync_and_clean(root: &File) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { sync(root.as_raw_fd()) }?;
    Ok(())
}

/// Whether removed subvolumes still hold space: each is an orphan of the tree of trees until it is cleaned up.
pub fn is_cleaning(root: &File) -> io::Result<bool> {
    const TREES: u64 = 1;
    /// BTRFS_ORPHAN_OBJECTID, -5, and BTRFS_ORPHAN_ITEM_KEY.
    const ORPHANS: u64 = u64::MAX - 4;
    const ORPHAN: u32 = 48;
    let mut args = TreeSearch {
        tree: TREES,
        objects: [ORPHANS, ORPHANS],
        offsets: [0, u64::MAX],
        transactions: [0, u64::MAX],
        kinds: [ORPHAN, ORPHAN],
        items: 1,
        rest: [0; 4028],
    };
    // SAFETY: as above.
    unsafe { tree_search(root.as_raw_fd(), &raw mut args) }?;
    Ok(args.items > 0)
}

/// The number of the subvolume that an open directory lies in.
pub fn subvolume_id(directory: &File) -> io::Result<u64> {
    let mut args = InodeLookup { tree: 0, object: ROOT_OBJECT, name: [0; 4080] };
    // SAFETY: as above.
    unsafe { ino_lookup(directory.as_raw_fd(), &raw mut args) }?;
    Ok(args.tree)
}

/// Turns on accounting; already on is success.
pub fn enable_quota(root: &File) -> io::Result<()> {
    for cmd in [QUOTA_ENABLE_SIMPLE, QUOTA_ENABLE] {
        let mut args = QuotaCtl { cmd, status: 0 };
        // SAFETY: as above.
        match unsafe { quota_ctl(root.as_raw_fd(), &raw mut args) } {
            Ok(_) | Err(nix::errno::Errno::EEXIST) => return Ok(()),
            // An older kernel does not know the simple kind.
            Err(nix::errno::Errno::EINVAL) if cmd == QUOTA_ENABLE_SIMPLE => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Makes a snapshot `name` in the directory `parent`, of the subvolume whose root is open.
pub fn snapshot(subvolume: &File, parent: &File, name: &str, read_only: bool) -> io::Result<()> {
    const READ_ONLY: u64 = 2;
    let flags = if read_only { READ_ONLY } else { 0 };
    let mut args =
        VolArgs2 { fd: i64::from(subvolume.as_raw_fd()), transid: 0, flags, unused: [0; 4], name: [0; 4040] };
    if name.len() >= args.name.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    args.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the argument is the structure that the request is defined with.
    unsafe { snap_create(parent.as_raw_fd(), &raw const args) }?;
    Ok(())
}

/// A disk with less room than this is full.
const FULL_WITHIN: u64 = 256 << 10;

/// Where the kernel tells of the accounting groups of a file system.
fn groups(root: &File) -> io::Result<PathBuf> {
    let mut args = FsInfo { max_id: 0, devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: as above.
    unsafe { fs_info(root.as_raw_fd(), &raw mut args) }?;
    let id = hex::encode(args.fsid);
    let id = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]].join("-");
    Ok(PathBuf::from(format!("/sys/fs/btrfs/{id}/qgroups")))
}

/// Whether extents are counted for the subvolume that wrote them, rather than for each that refers to them.
pub fn counts_by_writer(root: &File) -> io::Result<bool> {
    let mode = std::fs::read_to_string(groups(root)?.join("mode"));
    Ok(mode.is_ok_and(|mode| mode.trim() == "squota"))
}

/// The groups that hold all that they may, but for less than what the smallest file takes with its entries.
pub fn full_groups(root: &File) -> io::Result<HashSet<u64>> {
    let number = |file: PathBuf| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
    let full = |entry: std::fs::DirEntry| {
        // `<level>_<id>`; the level is the topmost bits of the whole.
        let (level, id) =
            entry.file_name().to_str()?.split_once('_').map(|(l, i)| (l.parse::<u64>(), i.parse::<u64>()))?;
        let most = number(entry.path().join("max_referenced")).filter(|most| *most > 0)?;
        let held = number(entry.path().join("referenced"))?;
        (held.saturating_add(FULL_WITHIN) > most).then_some((level.ok()? << 48) | id.ok()?)
    };
    Ok(std::fs::read_dir(groups(root)?)?.flatten().filter_map(full).collect())
}

/// The group above that of a subvolume.
pub const fn group_above(subvolume: u64) -> u64 {
    (1 << 48) | subvolume
}

/// Makes a group above others; already there is success.
pub fn create_group(root: &File, id: u64) -> io::Result<()> {
    let args = QgroupCreate { create: 1, id };
    // SAFETY: as above.
    match unsafe { qgroup_create(root.as_raw_fd(), &raw const args) } {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Counts a subvolume to a group; so already is success.
pub fn join_group(root: &File, member: u64, group: u64) -> io::Result<()> {
    let args = QgroupAssign { assign: 1, member, group };
    // SAFETY: as above.
    match unsafe { qgroup_assign(root.as_raw_fd(), &raw const args) } {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Limits what the subvolume of an open directory may hold.
pub fn limit(directory: &File, bytes: u64) -> io::Result<()> {
    // Id 0 is the subvolume's own group.
    limit_group(directory, 0, bytes)
}

/// Limits what the members of a group may hold together.
pub fn limit_group(directory: &File, id: u64, bytes: u64) -> io::Result<()> {
    let mut args = QgroupLimit {
        id,
        flags: LIMIT_REFERENCED,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the kernel only reads the structure, whatever the request's number says.
    unsafe { qgroup_limit(directory.as_raw_fd(), &raw mut args) }?;
    Ok(())
}

/// Removes the accounting group of a subvolume that is gone. `false`: it is not gone from the disk yet.
pub fn remove_group(root: &File, id: u64) -> io::Result<bool> {
    let args = QgroupCreate { create: 0, id };
    // SAFETY: as above.
    match unsafe { qgroup_create(root.as_raw_fd(), &raw const args) } {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(true),
        Err(nix::errno::Errno::EBUSY) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

const _: () = assert!(size_of::<TreeSearch>() == 4096);
const _: () = assert!(size_of::<VolArgs2>() == 4096 && size_of::<FsInfo>() == 1024 && size_of::<QgroupAssign>() == 24);
const _: () =
    assert!(size_of::<VolArgs>() == 4096 && size_of::<InodeLookup>() == 4096 && size_of::<QgroupLimit>() == 48);
