//! docklet-client
