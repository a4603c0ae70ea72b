//! The master's integration tests: one binary, a module per area.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod api;
mod membership;
#[path = "../../db/tests/support/postgres.rs"]
mod postgres;
mod proxy;

/// Waits until it holds.
async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if holds().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("it did not come to be");
}
