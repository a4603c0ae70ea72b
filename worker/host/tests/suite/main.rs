//! One suite for both hosts: every case of `cases.rs` runs on the fake and on Linux. What only one of them has stands
//! in `fake.rs` and `linux.rs`. The Linux half needs root and says so; nothing is skipped in silence.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking, and their threads may block"
)]

mod cases;
mod confinement;
mod fake;
mod faults;
mod image;
mod images;
mod isolation;
mod linux;
mod moves;
mod published;
mod share;
mod world;
