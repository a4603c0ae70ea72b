//! The master's integration tests: one binary, a module per area.

mod api;
mod proxy;
