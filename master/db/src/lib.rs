//! docklet-master-db
