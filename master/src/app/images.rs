//! The images that nodes can be made from: OCI layouts under FS_PREFIX/global/images, one directory each.
//!
//! A layout is read once and again when its `index.json` changes.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use docklet_types::image::{Digest, ImageRef};
use docklet_types::name::ImageName;
use docklet_types::paths::Paths;
use docklet_types::view::ImageView;
use parking_lot::Mutex;
use serde::Deserialize;

use super::share::{Hangs, Share};

/// The parts of an OCI index and manifest that we need (image-spec v1.1).
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: HashMap<String, String>,
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct ImageConfig {
    created: Option<String>,
}

/// Why the images cannot be listed, or one of them cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no image {0}")]
    Unknown(ImageName),
    #[error("cannot read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is not what an OCI image layout holds there")]
    Parse { path: String, source: serde_json::Error },
    #[error("{path} names no manifest with a usable digest")]
    NoManifest { path: String },
    #[error(transparent)]
    Hangs(Hangs),
}

#[derive(Debug, Clone)]
struct Known {
    digest: Digest,
    description: Option<String>,
    bytes: u64,
    created_at: Option<String>,
}

type Stamp = (SystemTime, u64);

struct Shared {
    share: Share,
    directory: PathBuf,
    default_image: ImageName,
    cache: Mutex<HashMap<ImageName, (Stamp, Known)>>,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Images(Arc<Shared>);

/// A manifest or configuration is small; anything larger is not one.
const MAX_DOCUMENT: u64 = 4 << 20;

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ImageError> {
    use io::Read as _;
    let shown = || path.display().to_string();
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_DOCUMENT).read_to_end(&mut bytes))
        .map_err(|source| ImageError::Read { path: shown(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::Parse { path: shown(), source })
}

fn load(layout: &Path) -> Result<Known, ImageError> {
    let index_path = layout.join("index.json");
    let index: Index = read(&index_path)?;
    let descriptor = index.manifests.into_iter().next();
    let digest = descriptor.as_ref().and_then(|d| d.digest.parse::<Digest>().ok());
    let (Some(descriptor), Some(digest)) = (descriptor, digest) else {
        return Err(ImageError::NoManifest { path: index_path.display().to_string() });
    };
    let blob = |digest: &Digest| layout.join("blobs").join("sha256").join(digest.hex());
    let manifest: Manifest = read(&blob(&digest))?;
    let annotation = |key: &str| manifest.annotations.get(key).or_else(|| descriptor.annotations.get(key)).cloned();
    let from_config = || {
        let digest = manifest.config.as_ref()?.digest.parse::<Digest>().ok()?;
        read::<ImageConfig>(&blob(&digest)).ok()?.created
    };
    Ok(Known {
        description: annotation("org.opencontainers.image.description"),
        created_at: annotation("org.opencontainers.image.created").or_else(from_config),
        bytes: manifest.layers.iter().map(|l| l.size).sum(),
        digest,
    })
}

impl Shared {
    fn stamp(&self, name: &ImageName) -> Result<Stamp, ImageError> {
        let path = self.directory.join(name.as_str()).join("index.json");
        let read = |source| ImageError::Read { path: path.display().to_string(), source };
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok((metadata.modified().map_err(read)?, metadata.len())),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(ImageError::Unknown(name.clone()))
            }
            Err(e) => Err(read(e)),
        }
    }

    fn find(&self, name: &ImageName) -> Result<Known, ImageError> {
        let stamp = self.stamp(name)?;
        if let Some((at, known)) = self.cache.lock().get(name)
            && *at == stamp
        {
            return Ok(known.clone());
        }
        let known = load(&self.directory.join(name.as_str()))?;
        self.cache.lock().insert(name.clone(), (stamp, known.clone()));
        Ok(known)
    }

    fn list(&self) -> Result<Vec<ImageView>, ImageError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(ImageError::Read { path: self.directory.display().to_string(), source }),
        };
        let mut views = Vec::new();
        for entry in entries.flatten() {
            // Directories that are being written have names that no image has.
            let Some(name) = entry.file_name().to_str().and_then(|n| n.parse::<ImageName>().ok()) else { continue };
            match self.find(&name) {
                Ok(known) => views.push(ImageView {
                    is_default: name == self.default_image,
                    name: name.to_string(),
                    digest: known.digest.to_string(),
                    description: known.description,
                    bytes: known.bytes,
                    created_at: known.created_at,
                }),
                Err(ImageError::Unknown(_)) => {}
                // One broken image must not hide the others.
                Err(error) => {
                    tracing::warn!(image = %name, error = crate::http::problem::chain(&error), "an image cannot be read")
                }
            }
        }
        views.sort_by(|a, b| b.is_default.cmp(&a.is_default).then_with(|| a.name.cmp(&b.name)));
        Ok(views)
    }
}

impl Images {
    #[must_use]
    pub fn new(paths: &Paths, default_image: ImageName, share: Share) -> Self {
        Self(Arc::new(Shared { share, directory: paths.images(), default_image, cache: Mutex::default() }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let shared = self.0.clone();
        let share = shared.share.clone();
        share.run(move || work(&shared)).await.map_err(ImageError::Hangs)?
    }

    /// The image as it is now, pinned by its digest.
    ///
    /// # Errors
    /// See [`ImageError`].
    pub async fn find(&self, name: ImageName) -> Result<ImageRef, ImageError> {
        self.blocking(move |shared| shared.find(&name).map(|known| ImageRef { name, digest: known.digest })).await
    }

    /// All images that can be read, the default first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn list(&self) -> Result<Vec<ImageView>, ImageError> {
        self.blocking(Shared::list).await
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use sha2::Digest as _;

    /// Writes a layout with one empty layer of `bytes` announced bytes.
    pub(crate) fn write_layout(images: &Path, name: &str, bytes: u64) {
        let layout = images.join(name);
        let blobs = layout.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "layers": [{"digest": format!("sha256:{}", "0".repeat(64)), "size": bytes, "mediaType": "x"}],
            "annotations": {"org.opencontainers.image.description": "for tests"}
        })
        .to_string();
        let hex = hex::encode(sha2::Sha256::digest(manifest.as_bytes()));
        std::fs::write(blobs.join(&hex), &manifest).unwrap();
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": format!("sha256:{hex}"), "size": manifest.len(), "mediaType": "x"}]});
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    }

    #[tokio::test]
    async fn images_are_found_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        let images = Images::new(&paths, "base".parse().unwrap(), Share::default());
        assert!(images.list().await.unwrap().is_empty());
        write_layout(&paths.images(), "base", 10);
        write_layout(&paths.images(), "aaa", 10);
        std::fs::create_dir_all(paths.images().join("broken")).unwrap();
        std::fs::write(paths.images().join("broken/index.json"), "{").unwrap();
        std::fs::create_dir_all(paths.images().join(".tmp-base")).unwrap();
        let names: Vec<String> = images.list().await.unwrap().into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["base", "aaa"]);
        let first = images.find("base".parse().unwrap()).await.unwrap();
        write_layout(&paths.images(), "base", 2000);
        let second = images.find("base".parse().unwrap()).await.unwrap();
        assert_ne!(first.digest, second.digest);
        assert!(matches!(images.find("nope".parse().unwrap()).await, Err(ImageError::Unknown(_))));
    }
}
