//! docklet-cli
fn main() {}
