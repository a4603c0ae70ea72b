//! Images: OCI layouts in the shared directory, unpacked layers on this host.
//!
//! A layer is unpacked once, under its digest, into a temporary directory that is renamed when it is whole; so what
//! stands under `layers/` is complete. A manifest that was checked is copied to `manifests/`, so that nodes start
//! without the shared directory.

mod base;
mod layout;
mod pack;
mod unpack;

pub use pack::{PackError, pack, pack_over};

use docklet_types::image::{Digest, ImageRef};
use docklet_types::name::ImageName;
use docklet_types::paths::Paths;
use docklet_types::report::Reason;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

use super::helper;
use super::share::Share;
use crate::reason::failed;
use crate::{HostError, Result};

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image layout at {0}")]
    NoLayout(PathBuf),
    #[error("{what} of {path} is not understood")]
    Format {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the image has no version {0}")]
    NoVersion(Digest),
    #[error("a blob's digest is {0:?}, which is no sha256")]
    DigestKind(String),
    #[error("blob {wanted} is damaged: its content has the digest {found}")]
    Damaged { wanted: Digest, found: String },
    #[error("a layer has the unknown type {0:?}")]
    LayerType(String),
    #[error("could not {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the archive names {0:?}, which leads out of it")]
    Escape(PathBuf),
}

pub(crate) trait Attempt<T> {
    fn attempting(self, what: impl FnOnce() -> String) -> std::result::Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for std::result::Result<T, E> {
    fn attempting(self, what: impl FnOnce() -> String) -> std::result::Result<T, ImageError> {
        self.map_err(|e| ImageError::Io { what: what(), source: e.into() })
    }
}

/// An image may take this long to be unpacked.
const UNPACK: Duration = Duration::from_secs(3600);
/// Reading an index takes no time.
const READ: Duration = Duration::from_secs(30);

/// Asks the helper to unpack a version of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnpackRequest {
    pub image: ImageRef,
    pub layout: PathBuf,
    pub root: PathBuf,
}

/// Asks the helper for the newest version of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewestRequest {
    pub name: ImageName,
    pub layout: PathBuf,
}

/// Runs in the helper.
pub fn unpack(request: &UnpackRequest) -> std::result::Result<(), Reason> {
    let name = &request.image.name;
    unpack_image(&request.layout, &request.image.digest, &request.root).map_err(|e| {
        let said = match e {
            ImageError::NoLayout(_) | ImageError::NoVersion(_) => {
                failed("image_missing", &format!("Image {name} is not available on this host"), &e)
            }
            e => failed("image_unpack_failed", &format!("Image {name} could not be unpacked"), &e),
        };
        said.0
    })
}

/// The newest version in a layout, if it is one.
#[must_use]
pub fn newest(request: &NewestRequest) -> Option<ImageRef> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Manifest>,
    }
    #[derive(Deserialize)]
    struct Manifest {
        digest: Digest,
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs::read(request.layout.join("index.json")).ok()?).ok()?;
    let name = &request.name;
    // Older versions stay in the index, without the name.
    let newest =
        |m: &Manifest| m.annotations.get("org.opencontainers.image.ref.name").is_some_and(|n| n == name.as_str());
    let at = index.manifests.iter().position(newest).unwrap_or(0);
    Some(ImageRef { name: name.clone(), digest: index.manifests.into_iter().nth(at)?.digest })
}

/// The unpacked images of this host.
pub struct ImageStore {
    paths: Paths,
    /// One lock per image version, so that concurrent nodes unpack it once.
    busy: parking_lot::Mutex<HashMap<Digest, Arc<Mutex<()>>>>,
}

impl ImageStore {
    pub fn new(paths: Paths) -> Self {
        Self { paths, busy: parking_lot::Mutex::default() }
    }

    /// Unpacks the image where it is not yet.
    pub async fn ensure(&self, image: &ImageRef, program: &Path, share: &Share) -> Result<()> {
        let lock = Arc::clone(self.busy.lock().entry(image.digest.clone()).or_default());
        let _alone = lock.lock().await;
        // What is unpacked needs nothing of the shared directory.
        if layers(&self.paths.unpacked_images(), &image.digest).is_some() {
            return Ok(());
        }
        let request = UnpackRequest {
            image: image.clone(),
            layout: self.paths.image_layout(&image.name),
            root: self.paths.unpacked_images(),
        };
        let unpacking = helper::call(program, "unpack", "docklet-unpack", &request, UNPACK);
        share.while_it_answers(program, unpacking).await
    }

    /// The newest version of an image in the shared directory.
    pub async fn newest(&self, name: &ImageName, program: &Path, share: &Share) -> Result<Option<ImageRef>> {
        let request = NewestRequest { name: name.clone(), layout: self.paths.image_layout(name) };
        let reading = helper::call(program, "newest", "docklet-newest", &request, READ);
        share.while_it_answers(program, reading).await
    }

    /// The unpacked layers of an image, lowest first.
    pub fn layers(&self, image: &ImageRef) -> Result<Vec<PathBuf>> {
        let root = self.paths.unpacked_images();
        layers(&root, &image.digest).ok_or_else(|| {
            HostError::new("image_missing", format!("Image {} is not unpacked on this host.", image.name))
        })
    }
}

fn manifest_copy(root: &Path, digest: &Digest) -> PathBuf {
    root.join("manifests").join(format!("{}.json", digest.hex()))
}

fn layer_directory(root: &Path, digest: &Digest) -> PathBuf {
    root.join("layers").join(digest.hex())
}

/// The directories of an image that is wholly unpacked.
fn layers(root: &Path, digest: &Digest) -> Option<Vec<PathBuf>> {
    let manifest = layout::parse_manifest(&fs::read(manifest_copy(root, digest)).ok()?).ok()?;
    let directories: Vec<PathBuf> = manifest.iter().map(|l| layer_directory(root, &l.digest)).collect();
    directories.iter().all(|d| d.is_dir()).then_some(directories)
}

/// Unpacks one version of an image under `root`. Safe to call again, and after a call that was cut short.
///
/// # Errors
/// What of the layout is missing, damaged or refused, or what could not be written.
pub fn unpack_image(layout: &Path, digest: &Digest, root: &Path) -> std::result::Result<(), ImageError> {
    if layers(root, digest).is_some() {
        return Ok(());
    }
    let manifest = layout::read_manifest(layout, digest)?;
    // Layers hold set-user-id programs: nobody but root may walk in.
    for directory in [root.to_path_buf(), root.join("layers"), root.join("manifests"), root.join("partial")] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .attempting(|| format!("make {}", directory.display()))?;
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).attempting(|| format!("close {}", root.display()))?;
    for layer in layout::parse_manifest(&manifest).map_err(|source| ImageError::Format {
        what: "the manifest",
        path: layout.to_path_buf(),
        source,
    })? {
        let target = layer_directory(root, &layer.digest);
        if target.is_dir() {
            continue;
        }
        // Images share layers, and a second process may be unpacking: the lock is the layer's, and the kernel's.
        let lock = root.join("partial").join(format!("{}.lock", layer.digest.hex()));
        let alone = fs::File::create(&lock).attempting(|| format!("make {}", lock.display()))?;
        alone.lock().attempting(|| format!("lock {}", lock.display()))?;
        if target.is_dir() {
            continue;
        }
        let partial = root.join("partial").join(layer.digest.hex());
        clear(&partial)?;
        fs::DirBuilder::new().mode(0o755).create(&partial).attempting(|| format!("make {}", partial.display()))?;
        if let Err(e) = unpack::layer(layout, &layer, &partial) {
            // The disk may be full: leave nothing of it.
            let _ = clear(&partial);
            return Err(e);
        }
        fs::rename(&partial, &target).attempting(|| format!("rename {}", partial.display()))?;
    }
    let copy = manifest_copy(root, digest);
    let partial = copy.with_extension("new");
    fs::write(&partial, &manifest).attempting(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, &copy).attempting(|| format!("rename {}", partial.display()))
}

/// Removes what interrupted unpackings left. What is being unpacked right now is locked, and stays.
///
/// # Errors
/// What could not be removed first; the rest was not tried.
pub fn clear_partial(root: &Path) -> std::result::Result<(), ImageError> {
    let partial = root.join("partial");
    for entry in fs::read_dir(&partial).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let lock = path.with_extension("lock");
            let alone = fs::File::create(&lock).attempting(|| format!("make {}", lock.display()))?;
            if alone.try_lock().is_ok() {
                clear(&path)?;
            }
        }
    }
    Ok(())
}

fn clear(directory: &Path) -> std::result::Result<(), ImageError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).attempting(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
