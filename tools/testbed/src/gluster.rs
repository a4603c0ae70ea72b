//! FS_PREFIX/global on a GlusterFS volume, served by a machine of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::machine::Machine;
use crate::system::{At, Result, wait};

const VOLUME: &str = "docklet";

/// Starts the server and its volume.
pub fn up(server: &Machine) -> Result<()> {
    // The daemon's own places, seen on this machine only.
    for (own, place) in [("lib", "/var/lib/glusterd"), ("log", "/var/log/glusterfs"), ("run", "/var/run/gluster")] {
        let directory = server.directory.join(own);
        fs::create_dir_all(&directory).at("make", &directory)?;
        fs::create_dir_all(place).at("make", place)?;
        server.run(&["mount", "--bind", &directory.display().to_string(), place])?;
    }
    let brick = server.directory.join("brick");
    fs::create_dir_all(&brick).at("make", &brick)?;
    let daemon = ["glusterd", "--no-daemon", "--log-level=WARNING"].map(str::to_owned);
    server.start("glusterd", &daemon)?;
    wait(Duration::from_secs(30), "glusterd", || server.run(&["gluster", "--mode=script", "peer", "status"]).is_ok())?;
    let from = format!("{}:{}", server.address(), brick.display());
    server.run(&["gluster", "--mode=script", "volume", "create", VOLUME, &from, "force"])?;
    server.run(&["gluster", "--mode=script", "volume", "start", VOLUME])?;
    server.run(&["gluster", "--mode=script", "volume", "quota", VOLUME, "enable"]).map(|_| ())
}

/// Mounts the volume on a machine.
pub fn mount(machine: &Machine, server: &Machine, place: &Path) -> Result<()> {
    fs::create_dir_all(place).at("make", place)?;
    let from = format!("{}:/{VOLUME}", server.address());
    machine.run(&["mount", "-t", "glusterfs", &from, &place.display().to_string()]).map(|_| ())
}
