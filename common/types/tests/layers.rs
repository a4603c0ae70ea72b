//! Who may import whom: the tree's borders, held by reading every manifest.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Each crate of ours with the crates of ours that it may use, tests included.
const MAY_USE: &[(&str, &[&str])] = &[
    ("common/types", &[]),
    ("common/store", &["types"]),
    ("common/client", &["types"]),
    ("common/daemon", &["types"]),
    ("common/identity", &["types"]),
    ("master/plan", &["types"]),
    ("master/db", &["types"]),
    ("worker/host", &["types"]),
    ("worker/plan", &["types", "worker-host"]),
    ("web", &["types"]),
    ("master", &["types", "store", "client", "daemon", "identity", "master-plan", "master-db", "web"]),
    ("worker", &["types", "store", "daemon", "identity", "worker-plan", "worker-host"]),
    ("tools/cli", &["types", "client", "daemon"]),
    ("tools/bench", &["types", "store", "client", "daemon"]),
    ("tools/testbed", &["types", "identity"]),
];

/// The pure crates decide without clock, randomness, environment or runtime.
const PURE: &[&str] = &["master/plan", "worker/plan"];
const IMPURE_CALLS: &[&str] = &[
    "tokio::",
    "SystemTime::now",
    "Instant::now",
    "Micros::now",
    "Uuid::now_v7",
    "Uuid::new_v4",
    "rand::",
    "std::env",
    "std::fs",
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn used_by(dir: &str) -> BTreeSet<String> {
    let manifest = fs::read_to_string(root().join(dir).join("Cargo.toml")).unwrap();
    manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("docklet-"))
        .filter_map(|rest| rest.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_crate_keeps_to_its_borders() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    for member in members.split(',').map(|m| m.trim().trim_matches('"')).filter(|m| !m.is_empty()) {
        let may = allowed.get(member).unwrap_or_else(|| panic!("{member} is new: say in this test whom it may use"));
        let over: Vec<_> = used_by(member).into_iter().filter(|used| !may.contains(&used.as_str())).collect();
        assert!(over.is_empty(), "{member} uses {over:?}");
    }
}

#[test]
fn the_pure_crates_are_pure() {
    fn sources(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    for krate in PURE {
        let mut files = Vec::new();
        sources(&root().join(krate).join("src"), &mut files);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for call in IMPURE_CALLS {
                assert!(!text.contains(call), "{} says {call}", file.display());
            }
        }
    }
}
