//! AppArmor, where the kernel has it: nodes get a profile of ours. liblxc's own refuses the mounts that systemd makes
//! for units with `PrivateTmp=` and the like, so that many of Debian's services would not start in a node.

use docklet_types::host::Check;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use super::machine::{ok, warning};

const TEXT: &str = include_str!("../../../../conf/apparmor/node.profile");
/// The profile's name in [`TEXT`].
const PROFILE: &str = "docklet-node";
const CHECK: &str = "apparmor";

/// What liblxc is told to confine nodes with; `None` where the kernel has no AppArmor.
pub fn profile() -> Option<&'static str> {
    if !is_enabled() {
        return None;
    }
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    // A start must not fail for a profile that is not there: user namespace and seccomp filter hold without it.
    Some(if is_enforced(&loaded) { PROFILE } else { "unconfined" })
}

fn is_enabled() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|t| t.trim() == "Y")
}

/// Whether our profile is in the kernel's list, `<name> (<mode>)` a line.
fn is_enforced(list: &str) -> bool {
    list.lines().any(|line| line.strip_prefix(PROFILE) == Some(" (enforce)"))
}

/// Loads the profile. Again and again: another version may have loaded another text.
pub fn load() -> Check {
    if !is_enabled() {
        return ok(CHECK, "this kernel has no AppArmor; user namespaces and seccomp confine nodes");
    }
    let said = match parse() {
        Ok(output) if output.status.success() && profile() == Some(PROFILE) => {
            return ok(CHECK, format!("the profile {PROFILE} confines nodes, beside user namespaces and seccomp"));
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(e) => e.to_string(),
    };
    warning(
        CHECK,
        format!(
            "the profile {PROFILE} could not be loaded by apparmor_parser ({said}); user namespaces and seccomp alone \
             confine nodes that are started now. Install apparmor and restart the worker"
        ),
    )
}

fn parse() -> io::Result<Output> {
    let mut command = Command::new("apparmor_parser");
    command.arg("--replace").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended early says why.
        let _ = stdin.write_all(TEXT.as_bytes());
    }
    child.wait_with_output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_profile_is_found_by_its_whole_name_and_mode() {
        assert!(is_enforced("lsb_release (enforce)\ndocklet-node (enforce)\n"));
        assert!(!is_enforced("docklet-node (complain)\n"));
        assert!(!is_enforced("docklet-node-2 (enforce)\nmy-docklet-node (enforce)\n"));
        assert!(TEXT.contains(&format!("\nprofile {PROFILE} ")));
    }
}
