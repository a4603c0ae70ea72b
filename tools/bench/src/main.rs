//! docklet-bench
fn main() {}
