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

fn document<T: serde::de::DeserializeOwned>(
    layout: &Path,
    descriptor: &Descriptor,
    what: &'static str,
) -> Result<T, ImageError> {
    let digest = digest(descriptor)?;
    let bytes = layout::read_manifest(layout, &digest)?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::Format {
        what,
        path: layout::blob(layout, &digest),
        source,
    })
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
    fs::copy(&source, &partial)
        .and_then(|_| fs::rename(&partial, &target))
        .attempting(|| format!("copy {}", source.display()))
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::PathBuf;

    use super::super::{pack, pack_over, unpack_image};
    use super::*;

    /// An image with a directory `etc` of two files, and one above it that removes one of them and hides `opt`.
    fn two_layers(dir: &Path) -> (PathBuf, Digest) {
        let (lower, upper) = (dir.join("lower"), dir.join("upper"));
        for file in ["etc/kept", "etc/removed", "opt/hidden"] {
            write(&lower.join(file), "lower");
        }
        write(&upper.join("etc/added"), "upper");
        write(&upper.join("opt/shown"), "upper");
        overlay_removes(&upper.join("etc/removed"));
        overlay_hides(&upper.join("opt"));
        pack(&lower, &dir.join("small"), "small", "").unwrap();
        let digest = pack_over(&upper, &dir.join("small"), &dir.join("big"), "big", "").unwrap();
        (dir.join("big"), digest)
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn overlay_removes(path: &Path) {
        nix::sys::stat::mknod(path, nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::empty(), 0).unwrap();
    }

    fn overlay_hides(path: &Path) {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: two C strings and one byte.
        let set =
            unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), c"y".as_ptr().cast(), 1, 0) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
    }

    fn unpacked(layout: &Path, digest: &Digest, root: &Path) -> Vec<PathBuf> {
        unpack_image(layout, digest, root).unwrap();
        super::super::layers(root, digest).unwrap()
    }

    #[test]
    fn a_layer_above_another_removes_and_hides_as_its_overlay_did() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, digest) = two_layers(dir.path());
        let layers = unpacked(&layout, &digest, &dir.path().join("images"));
        let [below, above] = layers.as_slice() else { panic!("{layers:?}") };
        assert!(below.join("etc/removed").is_file());
        assert_eq!(fs::read_to_string(above.join("etc/added")).unwrap(), "upper");
        let removed = fs::symlink_metadata(above.join("etc/removed")).unwrap();
        assert!(removed.file_type().is_char_device() && removed.rdev() == 0);
        // Packed once more, the layer is the same to the byte: the marks were read back as marks.
        let again = pack_over(above, &dir.path().join("small"), &dir.path().join("again"), "again", "").unwrap();
        let top = |layout: &Path, digest: &Digest| {
            layout::parse_manifest(&layout::read_manifest(layout, digest).unwrap()).unwrap().pop().unwrap().digest
        };
        assert_eq!(top(&dir.path().join("again"), &again), top(&layout, &digest));
    }

    #[test]
    fn layers_of_the_base_are_shared_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, digest) = two_layers(dir.path());
        let lowest =
            layout::parse_manifest(&layout::read_manifest(&layout, &digest).unwrap()).unwrap().remove(0).digest;
        let blob = |layout: &Path| fs::metadata(layout::blob(layout, &lowest)).unwrap().ino();
        assert_eq!(blob(&layout), blob(&dir.path().join("small")));
    }

    #[test]
    fn the_newest_version_is_first_and_alone_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, first) = two_layers(dir.path());
        write(&dir.path().join("upper/etc/more"), "upper");
        let second = pack_over(&dir.path().join("upper"), &dir.path().join("small"), &layout, "big", "").unwrap();
        let index = layout::read_index(&layout).unwrap().unwrap();
        let digests: Vec<String> = index.manifests().iter().map(|m| m.digest().to_string()).collect();
        assert_eq!(digests, [second.as_str(), first.as_str()]);
        assert_eq!(layout::newest(&index).unwrap().digest().to_string(), second.as_str());
        // A node made from the first still finds it.
        unpacked(&layout, &first, &dir.path().join("images"));
    }

    #[test]
    fn a_base_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("upper/file"), "");
        let refused =
            pack_over(&dir.path().join("upper"), &dir.path().join("none"), &dir.path().join("big"), "big", "");
        assert!(refused.unwrap_err().to_string().contains("could not be written"));
    }
}
