//! OCI image layouts: reading manifests, and entering a new one into the index.

use docklet_types::image::Digest;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

use super::{Attempt, ImageError};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

#[derive(Debug, Clone)]
pub struct Layer {
    pub digest: Digest,
    /// The media type as written; judged when the layer is read.
    pub media_type: String,
}

impl Layer {
    pub fn compression(&self) -> Result<Compression, ImageError> {
        match self.media_type.as_str() {
            t if t.ends_with(".tar") => Ok(Compression::None),
            t if t.ends_with(".tar+gzip") || t.ends_with(".tar.gzip") => Ok(Compression::Gzip),
            t if t.ends_with(".tar+zstd") || t.ends_with(".tar.zstd") => Ok(Compression::Zstd),
            t => Err(ImageError::LayerType(t.to_owned())),
        }
    }
}

pub fn blob(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join("sha256").join(digest.hex())
}

pub fn digest_of(bytes: &[u8]) -> Result<Digest, ImageError> {
    let text = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
    text.parse().map_err(|_| ImageError::DigestKind(text))
}

/// The bytes of a manifest, checked against its digest.
pub fn read_manifest(layout: &Path, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    if !layout.is_dir() {
        return Err(ImageError::NoLayout(layout.to_path_buf()));
    }
    let path = blob(layout, digest);
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ImageError::NoVersion(digest.clone())),
        other => other.attempting(|| format!("read {}", path.display()))?,
    };
    let found = digest_of(&bytes)?;
    if found == *digest {
        Ok(bytes)
    } else {
        Err(ImageError::Damaged { wanted: digest.clone(), found: found.to_string() })
    }
}

/// The layers of a manifest, lowest first.
pub fn parse_manifest(bytes: &[u8]) -> Result<Vec<Layer>, serde_json::Error> {
    use serde::de::Error;
    let manifest: ImageManifest = serde_json::from_slice(bytes)?;
    let layer = |d: &Descriptor| {
        let digest = d.digest().to_string().parse().map_err(serde_json::Error::custom)?;
        Ok(Layer { digest, media_type: d.media_type().to_string() })
    };
    manifest.layers().iter().map(layer).collect()
}

pub fn read_index(layout: &Path) -> Result<Option<ImageIndex>, ImageError> {
    let path = layout.join("index.json");
    match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).attempting(|| format!("read {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| ImageError::Format {
            what: "the index",
            path,
            source,
        }),
    }
}

/// The version that new nodes get: the one with a name, which `pack` also puts first.
pub fn newest(index: &ImageIndex) -> Option<&Descriptor> {
    let named = |m: &&Descriptor| {
        m.annotations().as_ref().is_some_and(|a| a.contains_key(oci_spec::image::ANNOTATION_REF_NAME))
    };
    index.manifests().iter().find(named).or_else(|| index.manifests().first())
}
