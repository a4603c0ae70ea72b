//! One suite for both hosts: every case of `cases.rs` runs on the fake and on Linux. What only one of them has stands
//! in `fake.rs` and `linux.rs`. The Linux half needs root and says so; nothing is skipped in silence.

mod fake;
mod image;
mod cases;
mod confinement;
mod images;
mod isolation;
mod linux;
mod world;
