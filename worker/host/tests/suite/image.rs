//! A small image out of this machine's own files: a shell, a few commands, and the test helper as init.

use docklet_types::image::{Digest, ImageRef};
use docklet_types::paths::Paths;
use docklet_worker_host::linux::image;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: [&str; 22] = [
    "/bin/bash",
    "/bin/cat",
    "/bin/echo",
    "/bin/true",
    "/bin/false",
    "/bin/sleep",
    "/bin/ls",
    "/bin/hostname",
    "/usr/bin/id",
    "/usr/bin/tty",
    "/bin/stty",
    "/bin/mknod",
    "/bin/mount",
    "/usr/bin/unshare",
    "/usr/bin/head",
    "/usr/bin/yes",
    "/bin/rm",
    "/bin/mkdir",
    "/usr/bin/env",
    "/bin/dd",
    "/usr/bin/stat",
    "/usr/bin/seq",
];

pub fn helper() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_docklet-host-helper"))
}

/// Packs the image into the layout `tiny` of an installation.
pub fn tiny(paths: &Paths) -> ImageRef {
    let name: docklet_types::name::ImageName = "tiny".parse().unwrap();
    let rootfs = paths.prefix().join("tiny-rootfs");
    build(&rootfs);
    let digest: Digest = image::pack(&rootfs, &paths.image_layout(&name), "tiny", "for tests").unwrap();
    fs::remove_dir_all(&rootfs).unwrap();
    ImageRef { name, digest }
}

pub fn build(rootfs: &Path) {
    for dir in ["bin", "sbin", "etc", "root", "proc", "sys", "dev", "tmp", "run", "usr/bin", "var"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        fs::create_dir_all(rootfs.join(target)).unwrap();
        symlink(target, rootfs.join(link)).unwrap();
    }
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        copy(Path::new(program), &rootfs.join("bin").join(Path::new(program).file_name().unwrap()));
        libraries.extend(needs(Path::new(program)));
    }
    symlink("bash", rootfs.join("bin/sh")).unwrap();
    copy(&helper(), &rootfs.join("sbin/init"));
    libraries.extend(needs(&helper()));
    for library in libraries {
        let target = rootfs.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        copy(&library, &target);
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\ntty:x:5:\n").unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::copy(from, to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
}

/// The shared libraries of a program, and its loader.
fn needs(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from)).collect()
}
