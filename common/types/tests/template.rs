//! The template of the configuration file and its reference hold every key, with the default that the code has.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use docklet_types::config::{Config, KEYS};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The lines `#KEY=VALUE` of the template, without the `#`.
fn settings(template: &str) -> Vec<&str> {
    template
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()) && line.contains('='))
        .collect()
}

#[test]
fn the_template_shows_every_key_with_its_default_in_order() {
    let template = read("conf/docklet.conf.template");
    let expected: Vec<String> = KEYS.iter().map(|k| format!("{}={}", k.name, k.default)).collect();
    assert_eq!(settings(&template), expected);
}

#[test]
fn the_template_as_it_is_and_with_everything_uncommented_means_the_defaults() {
    let template = read("conf/docklet.conf.template");
    let defaults = Config::parse("", []).unwrap();
    assert_eq!(Config::parse(&template, []).unwrap(), defaults);
    assert_eq!(Config::parse(&settings(&template).join("\n"), []).unwrap(), defaults);
}

#[test]
fn the_reference_lists_every_key_with_its_default_and_meaning() {
    let reference = read("docs/reference/configuration.md");
    for key in KEYS {
        let default = if key.default.is_empty() { "empty".to_owned() } else { format!("`{}`", key.default) };
        let row = format!("| `{}` | {default} | {} |", key.name, key.doc);
        assert!(reference.contains(&row), "docs/reference/configuration.md lacks this row:\n{row}");
    }
}
