//! docklet-daemon
