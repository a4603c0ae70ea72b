//! The master's integration tests: one binary, a module per area.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod api;
mod proxy;
