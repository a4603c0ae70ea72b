//! The master as its users meet it: real HTTP over a store in memory, with hosts that do what they are told.

mod bad_input;
mod events;
mod faults;
mod idempotency;
mod lifecycle;
mod maintenance;
mod masters;
mod matrix;
mod moves;
mod placement;
mod planners;
mod portal;
mod ports;
mod quotas;
mod sessions;
mod sites;
mod support;
mod users;
mod warm;
