//! Makes sure that `dist/` is there, so that the crate builds before the front end was bundled, and that a new bundle
//! rebuilds the crate.

use std::path::Path;

fn main() {
    let dist = Path::new("dist");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=templates");
    println!("cargo:rerun-if-changed=dist");
    println!("cargo:rerun-if-changed=dist/manifest.json");
    if let Err(error) = std::fs::create_dir_all(dist) {
        println!("cargo:warning=cannot make web/dist: {error}");
    }
    if !dist.join("manifest.json").exists() {
        println!(
            "cargo:warning=web/dist is empty, the portal will have no styles: run `npm ci && node build.mjs` in web/"
        );
    }
}
