//! docklet-web
