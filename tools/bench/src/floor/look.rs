//! Looking at containers from outside, through /proc only.

use docklet_types::id::IdRange;
use std::fs;
use std::path::Path;

/// Whether a line `root:<first>:<count>` of /etc/subuid or /etc/subgid holds the whole range.
pub fn covers(text: &str, range: IdRange) -> bool {
    let (first, length) = (u64::from(range.first_id()), u64::from(IdRange::LEN));
    text.lines().any(|line| {
        let mut words = line.trim().split(':');
        let root = matches!(words.next(), Some("root" | "0"));
        let mut number = || words.next().and_then(|n| n.parse::<u64>().ok());
        match (root, number(), number()) {
            (true, Some(from), Some(count)) => from <= first && first + length <= from + count,
            _ => false,
        }
    })
}

pub fn children(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The container's init: the child that is process 1 of a namespace of its own.
pub fn init_below(monitor: u32) -> Option<i32> {
    children(monitor).into_iter().map(u32::cast_signed).find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own = status.lines().find_map(|l| l.strip_prefix("NSpid:"));
        // Its numbers in all namespaces that it is in, the innermost last.
        own.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
    })
}

/// Whether a TCP socket listens on the port in the network namespace of the process.
pub fn listens(pid: i32, port: u16) -> bool {
    // Before the container has a network of its own, this machine's sshd must not be taken for the container's.
    let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    if network(&pid.to_string()).is_none_or(|n| Some(n) == network("self")) {
        return false;
    }
    ["tcp", "tcp6"].iter().any(|table| {
        fs::read_to_string(format!("/proc/{pid}/net/{table}")).is_ok_and(|text| table_listens(&text, port))
    })
}

fn table_listens(text: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    let end = format!(":{port:04X}");
    text.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|local| local.ends_with(&end)) && words.nth(1) == Some(LISTEN)
    })
}

/// What a container's helper and liblxc said, in one line.
pub fn log(run: &Path, name: &str) -> String {
    let said: Vec<String> = ["err", "log"]
        .iter()
        .filter_map(|kind| fs::read_to_string(run.join(format!("{name}.{kind}"))).ok())
        .flat_map(|text| text.lines().rev().take(3).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if said.is_empty() { "nothing was logged".to_owned() } else { said.join(" | ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_in_subuid() {
        let range = IdRange::new(0).unwrap();
        assert!(covers("x:1:1\nroot:1000000:65536\n", range));
        assert!(covers("root:1:4294967294", IdRange::new(IdRange::MAX_INDEX).unwrap()));
        for none in ["", "root:1000000:65535", "root:1000001:65536", "alice:1000000:65536", "root:x:y", "root"] {
            assert!(!covers(none, range), "{none:?}");
        }
    }

    #[test]
    fn listening_sockets_in_the_kernels_table() {
        let text = "  sl  local_address rem_address   st tx_queue\n   0: 00000000:0016 00000000:0000 0A 00000000\n   1: 0100007F:0050 0100007F:1F90 01 0\n";
        assert!(table_listens(text, 22));
        assert!(!table_listens(text, 80), "a connection is no listener");
        assert!(!table_listens(text, 8080));
    }

    #[test]
    fn this_process_has_this_machines_network() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(!listens(pid, 22));
    }
}
