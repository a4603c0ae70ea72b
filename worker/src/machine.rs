//! What the host report says of the machine itself.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use docklet_types::host::{Capacity, Check, CheckOutcome, HostReport};
use docklet_types::image::{Digest, ImageRef};
use docklet_types::name::{HostName, ImageName};
use docklet_types::paths::Paths;
use docklet_types::report::Reason;
use docklet_types::time::Micros;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

/// This host's name: the configured one, else made from the machine's.
#[must_use]
pub fn host_name(configured: Option<&HostName>) -> HostName {
    docklet_daemon::config::host_name(configured)
}

pub(crate) fn host_report(
    name: HostName,
    address: Option<Ipv4Addr>,
    agent_port: Option<u16>,
    paths: &Paths,
    capacity: Capacity,
    checks: Vec<Check>,
    started_at: Micros,
) -> HostReport {
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let is = |path: &Path, magic| statfs(path).is_ok_and(|s| s.filesystem_type() == magic);
    HostReport {
        name,
        address,
        agent_port,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
        cgroup: if is(Path::new("/sys/fs/cgroup"), CGROUP2_SUPER_MAGIC) { "v2" } else { "v1" }.to_owned(),
        storage: if is(&paths.pool(), BTRFS_SUPER_MAGIC) { "btrfs" } else { "directory" }.to_owned(),
        capacity,
        checks,
        started_at,
    }
}

/// Why nodes cannot run here, if a check failed.
pub(crate) fn failure(checks: &[Check]) -> Option<Reason> {
    let failed: Vec<String> = checks
        .iter()
        .filter(|c| c.outcome == CheckOutcome::Failed)
        .map(|c| format!("{}: {}", c.name, c.message))
        .collect();
    (!failed.is_empty())
        .then(|| Reason::new("host_check_failed", format!("This host cannot run nodes. {}", failed.join("; "))))
}

/// The newest version of an image in the shared store of images, if it is there.
#[must_use]
pub fn image_in_store(paths: &Paths, name: &ImageName) -> Option<ImageRef> {
    #[derive(serde::Deserialize)]
    struct Index {
        manifests: Vec<Manifest>,
    }
    #[derive(serde::Deserialize)]
    struct Manifest {
        digest: Digest,
        #[serde(default)]
        annotations: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(paths.image_layout(name).join("index.json")).ok()?;
    let index: Index = serde_json::from_slice(&bytes).ok()?;
    // Older versions stay in the index, without the name.
    let newest =
        |m: &Manifest| m.annotations.get("org.opencontainers.image.ref.name").is_some_and(|n| n == name.as_str());
    let at = index.manifests.iter().position(newest).unwrap_or(0);
    Some(ImageRef { name: name.clone(), digest: index.manifests.into_iter().nth(at)?.digest })
}
