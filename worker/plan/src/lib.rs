//! docklet-worker-plan
