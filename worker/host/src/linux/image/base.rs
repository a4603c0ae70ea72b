//! What an image stands on: the layers of another image's newest version, shared with it.

use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest};
use std::fs;
use std::io;
use std::path::Path;

use docklet_types::image::Digest;

use super::layout;
use super::{Attempt, ImageError};

/// The layers below a new one, lowest first, and the digests of their uncompressed archives.
#[derive(Debug, Default)]
pub struct Base {
    pub layers: Vec<Descriptor>,
    pub diff_ids: Vec<String>,
}

impl Base {
    /// Of the newest version in `base`, whose layers become blobs of `layout`, too.
    pub fn of(base: &Path, layout: &Path) -> Result<Self, ImageError> {
        let index = layout::read_index(base)?.ok_or_else(|| ImageError::NoLayout(base.to_path_buf()))?;
        let newest = layout::newest(&index).ok_or_else(|| ImageError::NoLayout(base.to_path_buf()))?;
        let manifest: ImageManifest = document(base, newest, "the manifest")?;
        let config: ImageConfiguration = document(base, manifest.config(), "the configuration")?;
        for layer in manifest.layers() {
            share(base, layout, &digest(layer)?)?;
        }
        Ok(Self { layers: manifest.layers().clone(), diff_ids: config.rootfs().diff_ids().clone() })
    }
}

fn digest(descriptor: &Descriptor) -> Result<Digest, ImageError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ImageError::DigestKind(text))
}

fn document<T: serde::de::DeserializeOwned>(layout: &Path, descriptor: &Descriptor, what: &'static str) -> Result<T, ImageError> {
    let digest = digest(descriptor)?;
    let bytes = layout::read_manifest(layout, &digest)?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::Format { what, path: layout::blob(layout, &digest), source })
}

/// A second name for the blob where both layouts are on one file system, else a copy.
fn share(from: &Path, to: &Path, digest: &Digest) -> Result<(), ImageError> {
    let (source, target) = (layout::blob(from, digest), layout::blob(to, digest));
    match fs::hard_link(&source, &target) {
        Ok(()) => return Ok(()),
        // A blob's name is its content.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(_) => {}
    }
    let partial = target.with_extension("new");
    fs::copy(&source, &partial).and_then(|_| fs::rename(&partial, &target)).attempting(|| format!("copy {}", source.display()))
}
