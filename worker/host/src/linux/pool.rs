//! Where nodes write: a btrfs in a sparse file or on a disk, with a limit per node, or a plain directory without.

use docklet_types::config::Storage;
use docklet_types::id::NodeId;
use docklet_types::paths::Paths;
use nix::mount::{MsFlags, mount};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{btrfs, sys};

#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    #[error("could not {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{program} failed: {said}")]
    Program { program: &'static str, said: String },
    #[error("{0} holds something that is not Docklet's; DISK must be empty")]
    Foreign(PathBuf),
    #[error("{0} is not a block device")]
    NoDevice(PathBuf),
    #[error("the pool has only {free_mib} MiB left, which running nodes need")]
    Low {
        free_mib: u64,
        #[source]
        source: io::Error,
    },
    #[error("the pool is not mounted at {0}; see the worker's checks")]
    NotMounted(PathBuf),
}

trait Attempt<T> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, PoolError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, PoolError> {
        self.map_err(|e| PoolError::Io { what: what(), source: e.into() })
    }
}

/// How long a new disk waits for room that is being freed.
const CLEANING: Duration = Duration::from_secs(20);

/// The file in a moved node's disk that names its [`Groups`]. Beside `upper`: the node does not see it.
const GROUPS: &str = "groups.json";

/// The accounting groups of a node that came from another host: of its subvolumes, and the one above them whose limit holds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Groups {
    pub above: Option<u64>,
    pub members: Vec<u64>,
}

impl Groups {
    fn of_disk(disk: &Path) -> Self {
        fs::read(disk.join(GROUPS)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    /// In the order in which they can be removed.
    pub fn all(self) -> impl Iterator<Item = u64> {
        self.members.into_iter().chain(self.above)
    }
}

/// The pool of one host.
pub struct Pool {
    paths: Paths,
    storage: Storage,
    size_mib: u64,
    label: String,
    /// Accounting groups of removed subvolumes, which btrfs lets go of only once it has cleaned up behind them.
    stale: Mutex<Vec<u64>>,
}

impl Pool {
    pub fn new(paths: Paths, storage: Storage, size_mib: u64, label: String) -> Self {
        Self { paths, storage, size_mib, label, stale: Mutex::default() }
    }

    /// Whether disk limits hold.
    pub fn has_limits(&self) -> bool {
        self.storage != Storage::Directory
    }

    fn is_mounted(&self) -> bool {
        sys::fs_magic(&self.paths.pool()).is_ok_and(|m| m == btrfs::SUPER_MAGIC) && is_mount_point(&self.paths.pool())
    }

    /// Makes and mounts the pool where it is not yet.
    pub fn prepare(&self) -> Result<(), PoolError> {
        let root = self.paths.pool();
        private_directory(&root)?;
        let device = match &self.storage {
            Storage::Directory => None,
            _ if self.is_mounted() => None,
            Storage::File => Some(self.attach_file()?),
            Storage::Disk(disk) => Some(self.claim_disk(disk)?),
        };
        if let Some(device) = device {
            let options = if matches!(self.storage, Storage::File) { "discard=async" } else { "" };
            mount(Some(&device.path), &root, Some("btrfs"), MsFlags::MS_NOATIME | MsFlags::MS_NODEV, Some(options))
                .attempting(|| format!("mount {} at {}", device.path.display(), root.display()))?;
        }
        if self.has_limits() {
            let open = File::open(&root).attempting(|| format!("open {}", root.display()))?;
            btrfs::enable_quota(&open).attempting(|| "turn on the pool's quotas".to_owned())?;
        }
        private_directory(&self.paths.node_disks())
    }

    fn attach_file(&self) -> Result<Device, PoolError> {
        let path = self.paths.pool_file();
        if !path.exists() {
            // Made under another name, so that a half made one is never mounted.
            let new = path.with_extension("new");
            let file = File::create(&new).attempting(|| format!("make {}", new.display()))?;
            file.set_len(self.size_mib << 20)
                .attempting(|| format!("make {} {} MiB large", new.display(), self.size_mib))?;
            self.format(&new)?;
            fs::rename(&new, &path).attempting(|| format!("rename {}", new.display()))?;
        }
        loop_device(&path).attempting(|| format!("attach {} to a loop device", path.display()))
    }

    fn claim_disk(&self, disk: &Path) -> Result<Device, PoolError> {
        let is_block = fs::metadata(disk).is_ok_and(|m| m.file_type().is_block_device());
        if !is_block {
            return Err(PoolError::NoDevice(disk.to_path_buf()));
        }
        if read_label(disk).attempting(|| format!("read {}", disk.display()))?.as_deref() != Some(self.label.as_str()) {
            // 2: blkid found nothing at all.
            let found = Command::new("blkid").arg("-p").arg(disk).output().attempting(|| "run blkid".to_owned())?;
            if found.status.code() != Some(2) {
                return Err(PoolError::Foreign(disk.to_path_buf()));
            }
            self.format(disk)?;
        }
        Ok(Device { path: disk.to_path_buf(), _open: None })
    }

    fn format(&self, target: &Path) -> Result<(), PoolError> {
        // `dup` also sets room for metadata aside from the start: a pool that was once full of data would have none.
        let output = Command::new("mkfs.btrfs")
            .args(["-q", "-m", "dup", "-d", "single", "-L", &self.label])
            .arg(target)
            .output()
            .attempting(|| "run mkfs.btrfs".to_owned())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(PoolError::Program {
                program: "mkfs.btrfs",
                said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            })
        }
    }

    /// Makes the node's directory where it is not yet, and sets its limit. Whether it is new is the caller's to know.
    pub fn create(&self, id: NodeId, disk_mib: u32) -> Result<PathBuf, PoolError> {
        let path = self.paths.node_disk(id);
        if self.has_limits() && !self.is_mounted() {
            return Err(PoolError::NotMounted(self.paths.pool()));
        }
        if !path.exists() && self.is_full() {
            let source = io::Error::from_raw_os_error(libc::ENOSPC);
            return Err(PoolError::Low { free_mib: self.free_mib(), source });
        }
        if !self.has_limits() {
            private_directory(&path)?;
            return Ok(path);
        }
        let parent = self.paths.node_disks();
        let parent = File::open(&parent).attempting(|| format!("open {}", parent.display()))?;
        btrfs::create_subvolume(&parent, &id.to_string())
            .attempting(|| format!("make the subvolume {}", path.display()))?;
        let open = File::open(&path).attempting(|| format!("open {}", path.display()))?;
        btrfs::limit(&open, u64::from(disk_mib) << 20)
            .attempting(|| format!("limit {} to {disk_mib} MiB", path.display()))?;
        Ok(path)
    }

    /// The accounting groups that hold all that they may; what cannot be told is none.
    pub fn full_groups(&self) -> HashSet<u64> {
        let look = || btrfs::full_groups(&File::open(self.paths.pool())?);
        if self.has_limits() { look().unwrap_or_default() } else { HashSet::new() }
    }

    /// Whether the node's disk is counted in one of these groups.
    pub fn is_in(&self, id: NodeId, groups: &HashSet<u64>) -> bool {
        let path = self.paths.node_disk(id);
        let own = || File::open(&path).and_then(|open| btrfs::subvolume_id(&open)).ok();
        Groups::of_disk(&path).above.or_else(own).is_some_and(|group| groups.contains(&group))
    }

    /// Removes the node's directory. Already gone is success.
    pub fn remove(&self, id: NodeId) -> Result<(), PoolError> {
        let path = self.paths.node_disk(id);
        if !path.exists() {
            return Ok(());
        }
        if !self.has_limits() || !self.is_mounted() {
            return fs::remove_dir_all(&path).attempting(|| format!("remove {}", path.display()));
        }
        let mut stale: Vec<u64> = File::open(&path).and_then(|open| btrfs::subvolume_id(&open)).into_iter().collect();
        stale.extend(Groups::of_disk(&path).all());
        let parent = self.paths.node_disks();
        let parent = File::open(&parent).attempting(|| format!("open {}", parent.display()))?;
        btrfs::destroy_subvolume(&parent, &id.to_string())
            .attempting(|| format!("remove the subvolume {}", path.display()))?;
        self.abandon(stale);
        Ok(())
    }

    /// Accounting groups of what is gone.
    pub fn abandon(&self, groups: Vec<u64>) {
        self.stale.lock().extend(groups);
    }

    /// Counts a subvolume that came from another host to its node's group, where one is needed, and limits it.
    pub fn count(&self, subvolume: &Path, groups: &mut Groups, bytes: u64) -> io::Result<()> {
        let root = File::open(self.paths.pool())?;
        let open = File::open(subvolume)?;
        if !btrfs::counts_by_writer(&root)? {
            return btrfs::limit(&open, bytes);
        }
        let id = btrfs::subvolume_id(&open)?;
        if groups.members.contains(&id) {
            return Ok(());
        }
        let above = *groups.above.get_or_insert(btrfs::group_above(id));
        btrfs::create_group(&root, above)?;
        btrfs::limit_group(&root, above, bytes)?;
        btrfs::join_group(&root, id, above)?;
        groups.members.push(id);
        Ok(())
    }

    /// Makes what came from another host the disk of a node. Its limit is twice as high as it should be until what it was
    /// made of is gone.
    pub fn adopt(&self, id: NodeId, from: &Path, groups: &mut Groups, bytes: u64) -> io::Result<()> {
        btrfs::snapshot(&File::open(from)?, &File::open(self.paths.node_disks())?, &id.to_string(), false)?;
        let disk = self.paths.node_disk(id);
        self.count(&disk, groups, if groups.above.is_some() { bytes * 2 } else { bytes })?;
        fs::write(disk.join(GROUPS), serde_json::to_vec(groups)?)
    }

    /// Removes accounting groups of subvolumes that are gone. Costs a little and can wait; what fails is tried again.
    pub fn sweep(&self) {
        let mut stale = self.stale.lock();
        if !stale.is_empty()
            && let Ok(root) = File::open(self.paths.pool())
        {
            stale.retain(|id| !btrfs::remove_group(&root, *id).unwrap_or(true));
        }
    }

    /// Size of the pool in MiB.
    pub fn capacity_mib(&self) -> u64 {
        nix::sys::statvfs::statvfs(&self.paths.pool()).map_or(0, |s| (s.blocks() * s.fragment_size()) >> 20)
    }

    /// Whether so little is left that no node is added: the nodes that run need it, and removing needs a little, too.
    /// One fiftieth of the pool, at least 64 MiB and at most 1 GiB.
    pub fn is_low(&self) -> bool {
        self.free_mib() < (self.capacity_mib() / 50).clamp(64, 1024)
    }

    /// Whether it is low and stays so when all that was removed is freed. btrfs does that behind everybody's back: who
    /// deleted something to make room is to find the room. May take as long as [`CLEANING`].
    pub fn is_full(&self) -> bool {
        if !self.is_low() {
            return false;
        }
        let Ok(root) = File::open(self.paths.pool()) else { return true };
        let deadline = Instant::now() + CLEANING;
        loop {
            let cleaning = btrfs::is_cleaning(&root).unwrap_or(false);
            // What was cleaned up is free once a transaction is written.
            let written = btrfs::sync_and_clean(&root);
            if !self.is_low() {
                return false;
            }
            if !cleaning || written.is_err() || Instant::now() > deadline {
                return true;
            }
            sys::pause(50);
        }
    }

    /// Free space in MiB: the pool's, and where that is a sparse file, no more than the file can still grow.
    pub fn free_mib(&self) -> u64 {
        let free = |path: &Path| {
            nix::sys::statvfs::statvfs(path).map_or(0, |s| (s.blocks_available() * s.fragment_size()) >> 20)
        };
        let pool = free(&self.paths.pool());
        if self.storage == Storage::File { pool.min(free(&self.paths.local())) } else { pool }
    }
}

/// Makes a directory that only root may enter.
pub fn private_directory(path: &Path) -> Result<(), PoolError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).attempting(|| format!("make {}", path.display()))
}

/// Whether something is mounted at `path`: it lies on another device than its parent.
pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    path.parent().is_some_and(|parent| device(path).is_some() && device(path) != device(parent))
}

/// A block device to mount. A loop device detaches itself when nobody holds it any more: keep it open until it is mounted.
struct Device {
    path: PathBuf,
    _open: Option<File>,
}

/// `struct loop_config` of linux/loop.h, with the parts that stay zero as bytes.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_head: [u8; 52],
    flags: u32,
    file_name: [u8; 64],
    info_tail: [u8; 112],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

fn loop_device(backing: &Path) -> io::Result<Device> {
    let file = File::options().read(true).write(true).open(backing)?;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // Between finding a free one and taking it, another program may have been quicker.
    for _ in 0..50 {
        // SAFETY: the request takes no argument.
        let number = sys::check(i64::from(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) }))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path)?;
        for flags in [LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, LO_FLAGS_AUTOCLEAR] {
            match configure(&device, &file, backing, flags) {
                Ok(()) => return Ok(Device { path, _open: Some(device) }),
                Err(e) => last = e,
            }
        }
        if last.raw_os_error() != Some(libc::EBUSY) {
            break;
        }
    }
    Err(last)
}

fn configure(device: &File, file: &File, backing: &Path, flags: u32) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut config = LoopConfig {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info_head: [0; 52],
        flags,
        file_name: [0; 64],
        info_tail: [0; 112],
        reserved: [0; 8],
    };
    let name = backing.as_os_str().as_bytes();
    let length = name.len().min(63);
    config.file_name[..length].copy_from_slice(&name[..length]);
    // SAFETY: the argument is the structure that the request is defined with.
    sys::check(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) })).map(drop)
}

/// The label of the btrfs on a device; `None` where there is no btrfs.
fn read_label(device: &Path) -> io::Result<Option<String>> {
    // The superblock lies at 64 KiB: magic at 64, label at 299.
    let mut block = [0; 4096];
    let mut file = File::open(device)?;
    file.seek(SeekFrom::Start(64 << 10))?;
    if file.read_exact(&mut block).is_err() || &block[64..72] != b"_BHRfS_M" {
        return Ok(None);
    }
    let label = &block[299..299 + 256];
    let end = label.iter().position(|b| *b == 0).unwrap_or(label.len());
    Ok(Some(String::from_utf8_lossy(&label[..end]).into_owned()))
}
