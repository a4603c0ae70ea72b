//! A directory tree into an OCI image layout: one layer, tar and zstd, entries in the order of their names.

use docklet_types::image::Digest;
use docklet_types::time::Micros;
use oci_spec::OciSpecError;
use oci_spec::image::{
    ANNOTATION_CREATED, ANNOTATION_DESCRIPTION, ANNOTATION_REF_NAME, Arch, ConfigBuilder, Descriptor,
    DescriptorBuilder, ImageConfigurationBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType, Os,
    RootFsBuilder, SCHEMA_VERSION, Sha256Digest,
};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tar::{Builder, EntryType, Header};

use super::base::Base;
use super::layout;
use super::{Attempt, ImageError};

/// zstd's level: beyond it the archive hardly shrinks and packing takes several times as long.
const LEVEL: i32 = 9;

#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("the image could not be written")]
    Image(#[source] ImageError),
    #[error("the image's description could not be built")]
    Spec(#[source] OciSpecError),
}

impl From<ImageError> for PackError {
    fn from(e: ImageError) -> Self {
        Self::Image(e)
    }
}

impl From<OciSpecError> for PackError {
    fn from(e: OciSpecError) -> Self {
        Self::Spec(e)
    }
}

/// Packs `rootfs` into the layout at `layout` (made where it is missing) as its newest version called `name`. Older
/// versions stay in the index without a name, for nodes that were made from them.
///
/// # Errors
/// What could not be read or written. The layout is unchanged then, but for blobs that nothing refers to.
pub fn pack(rootfs: &Path, layout: &Path, name: &str, description: &str) -> Result<Digest, PackError> {
    make_blobs(layout)?;
    store(rootfs, Base::default(), layout, name, description)
}

/// Like [`pack`], but `upper` is the upper directory of an overlay over the newest version in the layout `base`, and
/// becomes one more layer above those.
///
/// # Errors
/// As for [`pack`], and what of the base is missing or damaged.
pub fn pack_over(upper: &Path, base: &Path, layout: &Path, name: &str, description: &str) -> Result<Digest, PackError> {
    make_blobs(layout)?;
    store(upper, Base::of(base, layout)?, layout, name, description)
}

fn make_blobs(layout: &Path) -> Result<(), ImageError> {
    let blobs = layout.join("blobs").join("sha256");
    fs::create_dir_all(&blobs).attempting(|| format!("make {}", blobs.display()))
}

fn store(tree: &Path, below: Base, layout: &Path, name: &str, description: &str) -> Result<Digest, PackError> {
    let layer = pack_layer(tree, layout)?;
    let Base { mut layers, mut diff_ids } = below;
    layers.push(layer.descriptor);
    diff_ids.push(layer.diff_id);
    let created = Micros::now().to_string();
    let config = ImageConfigurationBuilder::default()
        .created(created.clone())
        .architecture(Arch::default())
        .os(Os::Linux)
        .config(ConfigBuilder::default().cmd(vec!["/sbin/init".to_owned()]).build()?)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
        .history(Vec::new())
        .build()?;
    let config = write_json(layout, MediaType::ImageConfig, &config)?;
    let annotations = HashMap::from([
        (ANNOTATION_CREATED.to_owned(), created),
        (ANNOTATION_DESCRIPTION.to_owned(), description.to_owned()),
    ]);
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .annotations(annotations.clone())
        .build()?;
    let mut descriptor = write_json(layout, MediaType::ImageManifest, &manifest)?;
    let digest = digest(&descriptor)?;
    let mut annotations = annotations;
    annotations.insert(ANNOTATION_REF_NAME.to_owned(), name.to_owned());
    descriptor.set_annotations(Some(annotations));
    enter(layout, descriptor, name)?;
    Ok(digest)
}

fn digest(descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ImageError::DigestKind(text))
}

/// Puts the manifest into the index under its name, and takes the name from the one that had it.
fn enter(layout: &Path, newest: Descriptor, name: &str) -> Result<(), PackError> {
    let mut manifests: Vec<Descriptor> = layout::read_index(layout)?.map(|i| i.manifests().clone()).unwrap_or_default();
    manifests.retain(|m| m.digest() != newest.digest());
    for old in &mut manifests {
        let mut annotations = old.annotations().clone().unwrap_or_default();
        if annotations.get(ANNOTATION_REF_NAME).is_some_and(|n| n == name) {
            annotations.remove(ANNOTATION_REF_NAME);
            old.set_annotations(Some(annotations));
        }
    }
    // First: readers that know nothing of names take that one.
    manifests.insert(0, newest);
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    let bytes =
        serde_json::to_vec_pretty(&index).map_err(io::Error::from).attempting(|| "write the index".to_owned())?;
    replace_file(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    replace_file(&layout.join("index.json"), &bytes)?;
    Ok(())
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().attempting(|| format!("write {}", path.display()))
}

fn write_json(layout: &Path, kind: MediaType, value: &impl serde::Serialize) -> Result<Descriptor, PackError> {
    let bytes = serde_json::to_vec(value).map_err(io::Error::from).attempting(|| "write a description".to_owned())?;
    let digest = layout::digest_of(&bytes)?;
    replace_file(&layout::blob(layout, &digest), &bytes)?;
    descriptor(kind, &digest, bytes.len() as u64)
}

fn descriptor(kind: MediaType, digest: &Digest, size: u64) -> Result<Descriptor, PackError> {
    let digest = Sha256Digest::from_str(digest.hex())?;
    Ok(DescriptorBuilder::default().media_type(kind).digest(digest).size(size).build()?)
}

struct PackedLayer {
    descriptor: Descriptor,
    /// The digest of the uncompressed archive.
    diff_id: String,
}

/// Counts and hashes what passes through.
struct Hashed<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), bytes: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.to.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn pack_layer(rootfs: &Path, layout: &Path) -> Result<PackedLayer, PackError> {
    let temporary = layout.join(format!(".layer-{}.new", std::process::id()));
    let packed = write_layer(rootfs, &temporary);
    let (digest, diff_id, size) = match packed {
        Ok(packed) => packed,
        Err(e) => {
            let _ = fs::remove_file(&temporary);
            return Err(e.into());
        }
    };
    let target = layout::blob(layout, &digest);
    fs::rename(&temporary, &target).attempting(|| format!("write {}", target.display()))?;
    Ok(PackedLayer { descriptor: descriptor(MediaType::ImageLayerZstd, &digest, size)?, diff_id })
}

fn write_layer(rootfs: &Path, to: &Path) -> Result<(Digest, String, u64), ImageError> {
    let writing = || format!("write {}", to.display());
    let file = File::create(to).attempting(writing)?;
    let compressed = Hashed::new(BufWriter::with_capacity(1 << 20, file));
    let mut encoder = zstd::stream::write::Encoder::new(compressed, LEVEL).attempting(writing)?;
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    encoder.multithread(workers).attempting(writing)?;
    let mut tar = Builder::new(Hashed::new(encoder));
    let mut walk = Walk { seen: HashMap::new() };
    walk.directory(&mut tar, rootfs, Path::new("."))?;
    let plain = tar.into_inner().attempting(writing)?;
    let diff_id = format!("sha256:{}", hex::encode(plain.hash.finalize()));
    let compressed = plain.to.finish().attempting(writing)?;
    let digest = format!("sha256:{}", hex::encode(compressed.hash.finalize()));
    let file = compressed.to.into_inner().map_err(io::IntoInnerError::into_error).attempting(writing)?;
    file.sync_all().attempting(writing)?;
    Ok((digest.parse().map_err(|_| ImageError::DigestKind(digest))?, diff_id, compressed.bytes))
}

struct Walk {
    /// The first name of each file that has several.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl Walk {
    fn directory(
        &mut self,
        tar: &mut Builder<impl Write>,
        on_disk: &Path,
        in_archive: &Path,
    ) -> Result<(), ImageError> {
        self.item(tar, on_disk, in_archive)?;
        if is_opaque(on_disk).attempting(|| format!("read {}", on_disk.display()))? {
            marker(tar, &in_archive.join(OPAQUE)).attempting(|| format!("pack {}", on_disk.display()))?;
        }
        let reading = || format!("read {}", on_disk.display());
        let mut names: Vec<OsString> = fs::read_dir(on_disk)
            .attempting(reading)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<io::Result<_>>()
            .attempting(reading)?;
        names.sort();
        for name in names {
            let path = on_disk.join(&name);
            let inside = if in_archive == Path::new(".") { PathBuf::from(&name) } else { in_archive.join(&name) };
            let metadata = fs::symlink_metadata(&path).attempting(|| format!("read {}", path.display()))?;
            if metadata.is_dir() {
                self.directory(tar, &path, &inside)?;
            } else {
                self.item(tar, &path, &inside)?;
            }
        }
        Ok(())
    }

    fn item(&mut self, tar: &mut Builder<impl Write>, on_disk: &Path, in_archive: &Path) -> Result<(), ImageError> {
        self.try_item(tar, on_disk, in_archive).attempting(|| format!("pack {}", on_disk.display()))
    }

    fn try_item(&mut self, tar: &mut Builder<impl Write>, on_disk: &Path, in_archive: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(on_disk)?;
        let kind = metadata.file_type();
        if kind.is_char_device() && metadata.rdev() == 0 {
            return marker(tar, &whiteout(in_archive));
        }
        // A node gets its devices from liblxc, and sockets are made by those who listen.
        if kind.is_char_device() || kind.is_block_device() || kind.is_socket() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(u64::from(metadata.uid()));
        header.set_gid(u64::from(metadata.gid()));
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_file() && metadata.nlink() > 1 {
            if let Some(first) = self.seen.get(&(metadata.dev(), metadata.ino())) {
                header.set_entry_type(EntryType::Link);
                return tar.append_link(&mut header, in_archive, first);
            }
            self.seen.insert((metadata.dev(), metadata.ino()), in_archive.to_path_buf());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return tar.append_link(&mut header, in_archive, fs::read_link(on_disk)?);
        }
        let attributes = xattrs(on_disk)?;
        if !attributes.is_empty() {
            tar.append_pax_extensions(attributes.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        }
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, in_archive, io::empty())
        } else if kind.is_fifo() {
            header.set_entry_type(EntryType::Fifo);
            tar.append_data(&mut header, in_archive, io::empty())
        } else {
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            tar.append_data(&mut header, in_archive, File::open(on_disk)?)
        }
    }
}

/// In a directory of a layer: nothing of the layers below shows here. OCI image-spec v1.1, layer.md, "Whiteouts".
const OPAQUE: &str = ".wh..wh..opq";

/// The name under which an archive says that the file is removed.
fn whiteout(removed: &Path) -> PathBuf {
    let mut name = OsString::from(".wh.");
    name.push(removed.file_name().unwrap_or_default());
    removed.with_file_name(name)
}

fn marker(tar: &mut Builder<impl Write>, path: &Path) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0);
    // An empty field is no number to most readers.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    tar.append_data(&mut header, path, io::empty())
}

/// Whether overlayfs shows nothing below this directory of an upper.
fn is_opaque(directory: &Path) -> io::Result<bool> {
    let path = CString::new(directory.as_os_str().as_bytes())?;
    let mut value = [0u8; 4];
    // SAFETY: two C strings and a buffer with its length.
    let length = unsafe {
        libc::lgetxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match usize::try_from(length) {
        Ok(length) => Ok(value.get(..length) == Some(b"y")),
        Err(_) => match io::Error::last_os_error() {
            e if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
            e => Err(e),
        },
    }
}

/// The extended attributes that an image keeps, as names of PAX records.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut names = vec![0u8; 4096];
    // SAFETY: a C string and a buffer with its length.
    let length = unsafe { libc::llistxattr(c_path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let Ok(length) = usize::try_from(length) else {
        let e = io::Error::last_os_error();
        return if e.raw_os_error() == Some(libc::EOPNOTSUPP) { Ok(Vec::new()) } else { Err(e) };
    };
    let mut kept = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let text = String::from_utf8_lossy(name);
        if text != "security.capability" && !text.starts_with("user.") {
            continue;
        }
        let c_name = CString::new(name).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut value = vec![0u8; 64 << 10];
        // SAFETY: two C strings and a buffer with its length.
        let length =
            unsafe { libc::lgetxattr(c_path.as_ptr(), c_name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
        let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
        value.truncate(length);
        kept.push((format!("SCHILY.xattr.{text}"), value));
    }
    kept.sort();
    Ok(kept)
}
