//! What the host report says of the machine itself.

use std::net::Ipv4Addr;
use std::path::Path;

use docklet_types::host::{Capacity, Check, CheckOutcome, HostReport};
use docklet_types::name::HostName;
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
