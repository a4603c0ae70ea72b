//! FS_PREFIX/global on a GlusterFS volume, served by a machine of its own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::machine::Machine;
use crate::system::{At, Result, wait};

const VOLUME: &str = "docklet";
/// What the daemons and clients of GlusterFS write, in places that no option moves.
const PLACES: [(&str, &str); 3] =
    [("lib", "/var/lib/glusterd"), ("log", "/var/log/glusterfs"), ("run", "/var/run/gluster")];

/// Starts the server and its volume.
pub fn up(server: &Machine) -> Result<()> {
    own_places(server)?;
    let brick = server.directory.join("brick");
    fs::create_dir_all(&brick).at("make", &brick)?;
    let daemon = ["glusterd", "--no-daemon", "--log-level=WARNING"].map(str::to_owned);
    server.start("glusterd", &daemon)?;
    wait(Duration::from_secs(30), "glusterd", || server.run(&["gluster", "--mode=script", "peer", "status"]).is_ok())?;
    let from = format!("{}:{}", server.address(), brick.display());
    let gluster = |words: &[&str]| server.run(&[&["gluster", "--mode=script", "volume"], words].concat());
    gluster(&["create", VOLUME, &from, "force"])?;
    gluster(&["start", VOLUME])?;
    gluster(&["quota", VOLUME, "enable"])?;
    // What was written counts at once: by default a user may write for seconds beyond the limit.
    gluster(&["quota", VOLUME, "hard-timeout", "0"])?;
    gluster(&["quota", VOLUME, "soft-timeout", "0"])?;
    // `df` in a node shows the user's limit.
    gluster(&["set", VOLUME, "quota-deem-statfs", "on"]).map(|_| ())
}

/// Mounts the volume on a machine.
pub fn mount(machine: &Machine, server: &Machine, place: &Path) -> Result<()> {
    own_places(machine)?;
    fs::create_dir_all(place).at("make", place)?;
    let from = format!("{}:/{VOLUME}", server.address());
    machine.run(&["mount", "-t", "glusterfs", &from, &place.display().to_string()]).map(|_| ())
}

/// Puts directories of the machine over those of the whole system, as it sees them.
fn own_places(machine: &Machine) -> Result<()> {
    for (own, place) in PLACES {
        let directory = machine.directory.join("gluster").join(own);
        fs::create_dir_all(&directory).at("make", &directory)?;
        machine.run(&["mount", "--bind", &directory.display().to_string(), place])?;
    }
    Ok(())
}
