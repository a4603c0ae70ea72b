//! The planner loop and the in-memory view of the cluster.
