//! The worker as a whole, on a host and a store in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

mod agent;
mod faults;
mod host;
mod lives;
mod moves;
mod site;
