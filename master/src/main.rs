//! docklet-master
fn main() {}
