//! Packing and unpacking: what is kept, what is refused, what is left after a failure.

use docklet_types::image::Digest;
use docklet_worker_host::linux::image::{ImageError, clear_partial, pack, unpack_image};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

fn blob(layout: &Path, bytes: &[u8]) -> String {
    let hex = hex::encode(Sha256::digest(bytes));
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(&hex), bytes).unwrap();
    format!("sha256:{hex}")
}

/// A layout of one image with these layers (uncompressed, or as the type says).
fn layout_of(layout: &Path, layers: &[(&str, Vec<u8>)]) -> Digest {
    let config = blob(layout, b"{}");
    let layers: Vec<serde_json::Value> = layers
        .iter()
        .map(|(kind, bytes)| serde_json::json!({"mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"), "digest": blob(layout, bytes), "size": bytes.len()}))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2}, "layers": layers,
    });
    blob(layout, &serde_json::to_vec(&manifest).unwrap()).parse().unwrap()
}

/// Adds an entry under exactly this name, which the tar library's own methods would refuse.
fn raw(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1_000_000);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).unwrap();
}

fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    fill(&mut tar);
    tar.into_inner().unwrap()
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "owners and whiteouts need root");
        Self { dir: tempfile::tempdir().unwrap() }
    }
    fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }
    fn root(&self) -> PathBuf {
        self.dir.path().join("unpacked")
    }
    fn unpack(&self, layers: &[(&str, Vec<u8>)]) -> Result<Vec<PathBuf>, ImageError> {
        let digest = layout_of(&self.layout(), layers);
        unpack_image(&self.layout(), &digest, &self.root())?;
        Ok(layers
            .iter()
            .map(|(_, bytes)| self.root().join("layers").join(hex::encode(Sha256::digest(bytes))))
            .collect())
    }
}

/// Path, mode, owner, size or target of everything in a tree.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<PathBuf, String>) {
        let m = fs::symlink_metadata(at).unwrap();
        let what = if m.is_symlink() {
            fs::read_link(at).unwrap().display().to_string()
        } else if m.is_dir() {
            "dir".to_owned()
        } else {
            hex::encode(Sha256::digest(fs::read(at).unwrap()))
        };
        out.insert(
            at.strip_prefix(root).unwrap().to_path_buf(),
            format!(
                "{:o} {}:{} {} links {} {what}",
                m.mode(),
                m.uid(),
                m.gid(),
                m.mtime(),
                if m.is_dir() { 0 } else { m.nlink() }
            ),
        );
        if m.is_dir() {
            for entry in fs::read_dir(at).unwrap() {
                walk(root, &entry.unwrap().path(), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

#[test]
fn what_was_packed_is_unpacked() {
    let place = Place::new();
    let tree = place.dir.path().join("tree");
    let long = "a-name-of-many-characters/".repeat(8);
    fs::create_dir_all(tree.join(&long)).unwrap();
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::write(tree.join("bin/su"), "setuid").unwrap();
    fs::set_permissions(tree.join("bin/su"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(tree.join("bin/su"), tree.join("bin/sudo")).unwrap();
    symlink("/etc/absolute", tree.join("link")).unwrap();
    fs::write(tree.join(&long).join("file"), vec![7; 100_000]).unwrap();
    std::os::unix::fs::chown(tree.join("bin"), Some(1000), Some(1001)).unwrap();
    assert!(
        Command::new("setcap").args(["cap_net_raw+ep"]).arg(tree.join("bin/su")).status().map_or(true, |s| s.success())
    );
    let digest = pack(&tree, &place.layout(), "one", "a test").unwrap();
    unpack_image(&place.layout(), &digest, &place.root()).unwrap();
    let layer = fs::read_dir(place.root().join("layers")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(listing(&layer), listing(&tree));
    let caps = |p: &Path| {
        Command::new("getcap")
            .arg(p.join("bin/su"))
            .output()
            .map(|o| String::from_utf8_lossy(&o.stdout).contains("cap_net_raw"))
            .unwrap_or(true)
    };
    assert!(caps(&tree) == caps(&layer));
    // The same tree is the same layer.
    let again = pack(&tree, &place.layout(), "one", "a test").unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(place.layout().join("index.json")).unwrap()).unwrap();
    let named: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|m| m["annotations"]["org.opencontainers.image.ref.name"] == "one")
        .map(|m| m["digest"].as_str().unwrap())
        .collect();
    assert_eq!(named, [again.as_str()]);
    unpack_image(&place.layout(), &again, &place.root()).unwrap();
    assert_eq!(fs::read_dir(place.root().join("layers")).unwrap().count(), 1);
    assert_eq!(fs::metadata(place.root()).unwrap().mode() & 0o777, 0o700, "setuid programs must not be reachable");
}

#[test]
fn whiteouts_become_overlayfs_ones() {
    let place = Place::new();
    let low = archive(|t| {
        raw(t, EntryType::Directory, "d/", "", b"");
        raw(t, EntryType::Regular, "d/gone", "", b"x");
    });
    let high = archive(|t| {
        raw(t, EntryType::Regular, "d/.wh.gone", "", b"");
        raw(t, EntryType::Directory, "opaque/", "", b"");
        raw(t, EntryType::Regular, "opaque/.wh..wh..opq", "", b"");
        raw(t, EntryType::Regular, "opaque/new", "", b"y");
    });
    let gz = {
        use std::io::Write;
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        e.write_all(&high).unwrap();
        e.finish().unwrap()
    };
    let layers = place.unpack(&[("tar", low), ("tar+gzip", gz)]).unwrap();
    let gone = fs::symlink_metadata(layers[1].join("d/gone")).unwrap();
    assert_eq!((gone.mode() & libc::S_IFMT, gone.rdev()), (libc::S_IFCHR, 0));
    let name = std::ffi::CString::new(layers[1].join("opaque").to_str().unwrap()).unwrap();
    let mut value = [0u8; 4];
    // SAFETY: two C strings and a buffer with its length.
    let n = unsafe { libc::lgetxattr(name.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), 4) };
    assert_eq!((n, value[0]), (1, b'y'));
}

#[test]
fn archives_cannot_lead_out() {
    let place = Place::new();
    let canary = place.dir.path().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let out = canary.display().to_string();
    let above = place.dir.path().display().to_string();
    let refused: Vec<(&str, Vec<u8>)> = vec![
        ("..", archive(|t| raw(t, EntryType::Regular, "../canary", "", b"hacked"))),
        ("a hidden ..", archive(|t| raw(t, EntryType::Regular, "a/../../canary", "", b"hacked"))),
        ("an absolute name", archive(|t| raw(t, EntryType::Regular, &out, "", b"hacked"))),
        ("a hard link out", archive(|t| raw(t, EntryType::Link, "x", "../../../canary", b""))),
        ("an absolute hard link", archive(|t| raw(t, EntryType::Link, "x", &out, b""))),
    ];
    for (what, bytes) in refused {
        assert!(matches!(place.unpack(&[("tar", bytes)]), Err(ImageError::Escape(_))), "{what}");
    }
    // Links are followed, but only inside: the target is found below the layer's own root, or made there.
    let through = archive(|t| {
        raw(t, EntryType::Symlink, "up", &above, b"");
        raw(t, EntryType::Symlink, "dots", "../../../../..", b"");
        raw(t, EntryType::Regular, "dots/canary", "", b"inside");
    });
    let layer = place.unpack(&[("tar", through)]).unwrap().remove(0);
    assert_eq!(fs::read_to_string(layer.join("canary")).unwrap(), "inside");
    let over_link = archive(|t| {
        raw(t, EntryType::Symlink, "file", &out, b"");
        raw(t, EntryType::Regular, "file", "", b"mine");
    });
    let layer = place.unpack(&[("tar", over_link)]).unwrap().remove(0);
    assert_eq!(fs::read_to_string(layer.join("file")).unwrap(), "mine");
    let dangling = archive(|t| {
        raw(t, EntryType::Symlink, "up", &above, b"");
        raw(t, EntryType::Regular, "up/canary", "", b"hacked");
    });
    let _ = place.unpack(&[("tar", dangling)]);
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    let devices = archive(|t| {
        raw(t, EntryType::Block, "sda", "", b"");
        raw(t, EntryType::Char, "mem", "", b"");
        raw(t, EntryType::Fifo, "fifo", "", b"");
    });
    let layer = place.unpack(&[("tar", devices)]).unwrap().remove(0);
    assert_eq!(fs::read_dir(&layer).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>(), ["fifo"]);
}

#[test]
fn attributes_of_the_host_are_not_taken_from_archives() {
    let place = Place::new();
    let bytes = archive(|t| {
        t.append_pax_extensions([
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc".as_slice()),
            ("SCHILY.xattr.user.kept", b"yes".as_slice()),
        ])
        .unwrap();
        raw(t, EntryType::Directory, "d/", "", b"");
    });
    let layer = place.unpack(&[("tar", bytes)]).unwrap().remove(0);
    let name = std::ffi::CString::new(layer.join("d").to_str().unwrap()).unwrap();
    let mut names = vec![0u8; 1000];
    // SAFETY: a C string and a buffer with its length.
    let n = unsafe { libc::llistxattr(name.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    assert!(n >= 0);
    let names = String::from_utf8_lossy(&names[..n as usize]).into_owned();
    assert!(!names.contains("trusted.overlay"), "{names}");
    assert!(names.contains("user.kept"), "{names}");
}

#[test]
fn damage_is_found_and_leaves_nothing() {
    let place = Place::new();
    let bytes = archive(|t| raw(t, EntryType::Regular, "file", "", &[1; 5000]));
    let digest = layout_of(&place.layout(), &[("tar", bytes.clone())]);
    let path = place.layout().join("blobs/sha256").join(hex::encode(Sha256::digest(&bytes)));
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    fs::write(&path, &damaged).unwrap();
    assert!(matches!(unpack_image(&place.layout(), &digest, &place.root()), Err(ImageError::Damaged { .. })));
    fs::write(&path, &bytes[..2000]).unwrap();
    assert!(unpack_image(&place.layout(), &digest, &place.root()).is_err());
    assert_eq!(fs::read_dir(place.root().join("layers")).unwrap().count(), 0);
    let partial =
        || fs::read_dir(place.root().join("partial")).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(partial(), 0);
    // A half unpacked layer of a killed worker is thrown away.
    fs::create_dir_all(place.root().join("partial").join(hex::encode(Sha256::digest(&bytes))).join("junk")).unwrap();
    fs::create_dir_all(place.root().join("partial/of-another-image/junk")).unwrap();
    fs::write(&path, &bytes).unwrap();
    unpack_image(&place.layout(), &digest, &place.root()).unwrap();
    clear_partial(&place.root()).unwrap();
    assert_eq!(partial(), 0);
    let layer = place.root().join("layers").join(hex::encode(Sha256::digest(&bytes)));
    assert_eq!(fs::read_dir(layer).unwrap().count(), 1);
    let unknown =
        layout_of(&place.layout(), &[("tar+brotli", archive(|t| raw(t, EntryType::Regular, "other", "", b"")))]);
    assert!(matches!(unpack_image(&place.layout(), &unknown, &place.root()), Err(ImageError::LayerType(_))));
}
