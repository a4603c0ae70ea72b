//! One layer from its archive into a directory.
//!
//! Archives are not trusted. Every path is walked by the kernel with the layer's directory as its root
//! (`RESOLVE_IN_ROOT`), names with `..` or a leading `/` are refused, devices are left out (a node's /dev is made by
//! liblxc), and only harmless extended attributes are kept. OCI's whiteout files become overlayfs's.

use sha2::{Digest as _, Sha256};
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};

use super::layout::{self, Compression, Layer};
use super::{Attempt, ImageError};
use crate::linux::sys::{self, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const XATTR: &str = "SCHILY.xattr.";

/// Unpacks the layer into the empty directory `target`, and checks its digest on the way.
pub fn layer(layout: &Path, layer: &Layer, target: &Path) -> Result<(), ImageError> {
    let path = layout::blob(layout, &layer.digest);
    let reading = || format!("read {}", path.display());
    let file = File::open(&path).attempting(reading)?;
    let mut hashed = Hashed { from: BufReader::with_capacity(1 << 20, file), hash: Sha256::new() };
    match layer.compression()? {
        Compression::None => archive(&mut hashed, target)?,
        Compression::Gzip => archive(flate2::read::MultiGzDecoder::new(&mut hashed), target)?,
        Compression::Zstd => archive(zstd::stream::read::Decoder::new(&mut hashed).attempting(reading)?, target)?,
    }
    // What follows the archive's end still belongs to the blob.
    io::copy(&mut hashed, &mut io::sink()).attempting(reading)?;
    let found = format!("sha256:{}", hex::encode(hashed.hash.finalize()));
    if found != layer.digest.as_str() {
        return Err(ImageError::Damaged { wanted: layer.digest.clone(), found });
    }
    let directory = File::open(target).attempting(|| format!("open {}", target.display()))?;
    sys::syncfs(directory.as_fd()).attempting(|| "write the layer to disk".to_owned())
}

struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        self.hash.update(&buffer[..n]);
        Ok(n)
    }
}

fn archive(from: impl Read, target: &Path) -> Result<(), ImageError> {
    let root: OwnedFd = File::open(target).attempting(|| format!("open {}", target.display()))?.into();
    let mut archive = Archive::new(from);
    let mut unpacker = Unpacker { root, directory_times: Vec::new(), last_parent: None };
    for entry in archive.entries().attempting(|| "read the archive".to_owned())? {
        let mut entry = entry.attempting(|| "read the archive".to_owned())?;
        unpacker.entry(&mut entry)?;
    }
    unpacker.finish()
}

struct Unpacker {
    root: OwnedFd,
    /// Set last: writing into a directory changes its time.
    directory_times: Vec<(PathBuf, i64)>,
    /// Entries of one directory follow each other.
    last_parent: Option<(PathBuf, OwnedFd)>,
}

/// The path inside the archive's root; empty for the root itself.
fn inside(path: &Path) -> Result<PathBuf, ImageError> {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(ImageError::Escape(path.to_path_buf()));
            }
        }
    }
    Ok(out)
}

fn c(bytes: &OsStr) -> io::Result<CString> {
    CString::new(bytes.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

impl Unpacker {
    /// Opens the directory, wherever symbolic links inside the root lead, and makes what is missing of it.
    fn parent(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        if self.last_parent.as_ref().is_none_or(|(p, _)| p != path) {
            let opened = match self.open_directory(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if let (Some(above), Some(name)) = (path.parent(), path.file_name()) {
                        let name = c(name)?;
                        let above = self.parent(above)?;
                        // SAFETY: a directory and a C string.
                        sys::check(i64::from(unsafe { libc::mkdirat(above.as_raw_fd(), name.as_ptr(), 0o755) }))?;
                    }
                    self.open_directory(path)?
                }
                other => other?,
            };
            self.last_parent = Some((path.to_path_buf(), opened));
        }
        match &self.last_parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn open_directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        sys::openat2(
            self.root.as_fd(),
            path,
            libc::O_DIRECTORY | libc::O_RDONLY,
            0,
            RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), ImageError> {
        let shown = entry.path().attempting(|| "read a name".to_owned())?.into_owned();
        let path = inside(&shown)?;
        self.place(entry, &path).map_err(|e| match e {
            Place::Io(source) => ImageError::Io { what: format!("unpack {}", shown.display()), source },
            Place::Image(e) => e,
        })
    }

    fn place(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), Place> {
        let kind = entry.header().entry_type();
        let metadata = Metadata::of(entry)?;
        let Some(name) = path.file_name().map(OsStr::to_os_string) else {
            // The root itself.
            let root = self.open_directory(Path::new("."))?;
            metadata.apply(root.as_fd(), true)?;
            self.directory_times.push((PathBuf::new(), metadata.mtime));
            return Ok(());
        };
        let above = path.parent().unwrap_or(Path::new("")).to_path_buf();
        if name.as_bytes() == OPAQUE {
            let parent = self.parent(&above)?;
            return Ok(set_xattr(parent, "trusted.overlay.opaque", b"y")?);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = CString::new(hidden).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let parent = self.parent(&above)?;
            // SAFETY: a directory and a C string.
            sys::check(i64::from(unsafe { libc::mknodat(parent.as_raw_fd(), hidden.as_ptr(), libc::S_IFCHR, 0) }))?;
            return Ok(());
        }
        let name = c(&name)?;
        match kind {
            EntryType::Directory => {
                let parent = self.parent(&above)?;
                // SAFETY: a directory and a C string.
                let made = sys::check(i64::from(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) }));
                if let Err(e) = made
                    && e.kind() != io::ErrorKind::AlreadyExists
                {
                    return Err(e.into());
                }
                let opened = open_at(parent, &name, libc::O_DIRECTORY | libc::O_RDONLY | libc::O_NOFOLLOW, 0)?;
                metadata.apply(opened.as_fd(), true)?;
                self.directory_times.push((path.to_path_buf(), metadata.mtime));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let parent = self.parent(&above)?;
                replace(parent, &name)?;
                let mut file = File::from(open_at(
                    parent,
                    &name,
                    libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY | libc::O_NOFOLLOW,
                    0o600,
                )?);
                io::copy(entry, &mut file)?;
                metadata.apply(file.as_fd(), true)?;
                set_mtime(file.as_fd(), metadata.mtime)?;
            }
            EntryType::Symlink => {
                let target =
                    entry.link_name()?.ok_or(io::ErrorKind::InvalidData).map_err(io::Error::from)?.into_owned();
                let target = c(target.as_os_str())?;
                let parent = self.parent(&above)?;
                replace(parent, &name)?;
                // SAFETY: a directory and two C strings. Where the link leads does not matter: nothing here follows it
                // out of the root.
                sys::check(i64::from(unsafe { libc::symlinkat(target.as_ptr(), parent.as_raw_fd(), name.as_ptr()) }))?;
                let opened = open_at(parent, &name, libc::O_PATH | libc::O_NOFOLLOW, 0)?;
                sys::lchown_at(&opened, c"", metadata.uid, metadata.gid)?;
            }
            EntryType::Link => self.hard_link(entry, &above, &name)?,
            EntryType::Fifo => {
                let parent = self.parent(&above)?;
                replace(parent, &name)?;
                // SAFETY: a directory and a C string.
                sys::check(i64::from(unsafe {
                    libc::mknodat(parent.as_raw_fd(), name.as_ptr(), libc::S_IFIFO | (metadata.mode & 0o777), 0)
                }))?;
                sys::lchown_at(parent, &name, metadata.uid, metadata.gid)?;
            }
            // Devices, and headers that are no files.
            _ => {}
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry<'_, impl Read>, above: &Path, name: &CString) -> Result<(), Place> {
        let target = entry.link_name()?.ok_or(io::ErrorKind::InvalidData).map_err(io::Error::from)?.into_owned();
        let target = inside(&target).map_err(Place::Image)?;
        // The last component itself may be a symbolic link, which is then linked as it is.
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        let opened = sys::openat2(self.root.as_fd(), &target, flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)?;
        let parent = self.parent(above)?;
        replace(parent, name)?;
        // SAFETY: two descriptors and two C strings.
        sys::check(i64::from(unsafe {
            libc::linkat(opened.as_raw_fd(), c"".as_ptr(), parent.as_raw_fd(), name.as_ptr(), libc::AT_EMPTY_PATH)
        }))?;
        Ok(())
    }

    fn finish(mut self) -> Result<(), ImageError> {
        self.last_parent = None;
        for (path, mtime) in self.directory_times.iter().rev() {
            let set = self.open_directory(path).and_then(|fd| set_mtime(fd.as_fd(), *mtime));
            set.attempting(|| format!("set the time of {}", path.display()))?;
        }
        Ok(())
    }
}

enum Place {
    Io(io::Error),
    Image(ImageError),
}

impl From<io::Error> for Place {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

fn open_at(parent: BorrowedFd<'_>, name: &CString, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: a directory and a C string; the descriptor that comes back is ours.
    let fd = sys::check(i64::from(unsafe {
        libc::openat(parent.as_raw_fd(), name.as_ptr(), flags | libc::O_CLOEXEC, mode)
    }))?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Removes what an earlier entry of the same name made, unless it is a directory.
fn replace(parent: BorrowedFd<'_>, name: &CString) -> io::Result<()> {
    // SAFETY: a directory and a C string.
    match sys::check(i64::from(unsafe { libc::unlinkat(parent.as_raw_fd(), name.as_ptr(), 0) })) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn set_mtime(fd: BorrowedFd<'_>, mtime: i64) -> io::Result<()> {
    let time = libc::timespec { tv_sec: mtime, tv_nsec: 0 };
    let times = [time, time];
    // SAFETY: an open file and two times.
    sys::check(i64::from(unsafe { libc::futimens(fd.as_raw_fd(), times.as_ptr()) })).map(drop)
}

fn set_xattr(fd: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<()> {
    let name = c(OsStr::new(name))?;
    // SAFETY: an open file, a C string, and a buffer with its length.
    sys::check(i64::from(unsafe {
        libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    }))
    .map(drop)
}

/// Owner, mode, time and extended attributes of an entry.
struct Metadata {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: i64,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// Attributes that mean something in a node. Others (`trusted.overlay.*` above all) would let an archive speak to the host.
fn is_kept(name: &str) -> bool {
    name == "security.capability" || name.starts_with("user.") || name.starts_with("system.posix_acl_")
}

impl Metadata {
    fn of(entry: &mut Entry<'_, impl Read>) -> io::Result<Self> {
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                if let Some(name) = extension.key().ok().and_then(|k| k.strip_prefix(XATTR)).filter(|n| is_kept(n)) {
                    xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        let header = entry.header();
        let id = |n: u64| u32::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidData));
        Ok(Self {
            uid: id(header.uid()?)?,
            gid: id(header.gid()?)?,
            mode: header.mode()? & 0o7777,
            mtime: i64::try_from(header.mtime()?).unwrap_or(0),
            xattrs,
        })
    }

    fn apply(&self, fd: BorrowedFd<'_>, with_mode: bool) -> io::Result<()> {
        // The owner first: a change of owner clears set-user-id and capabilities.
        sys::lchown_at(fd, c"", self.uid, self.gid)?;
        if with_mode {
            // SAFETY: an open file and a mode.
            sys::check(i64::from(unsafe { libc::fchmod(fd.as_raw_fd(), self.mode) }))?;
        }
        for (name, value) in &self.xattrs {
            set_xattr(fd, name, value)?;
        }
        Ok(())
    }
}
