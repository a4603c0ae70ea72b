//! docklet-worker
fn main() {}
