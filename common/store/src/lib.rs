//! docklet-store
