//! docklet-master-plan
