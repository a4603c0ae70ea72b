//! What should happen, decided by pure functions: no clock, no randomness, no I/O. Times and seeds are arguments.
//!
//! [`cluster::Cluster`] is the masters' picture of everything; [`admit`] says whether a request may be written;
//! [`plan`] says what to write so that the hosts come nearer to the specs; [`place`] picks hosts; [`moving`] takes nodes from one to another; [`warm`] says
//! which vclusters are kept ready before they are asked for; [`status`] and [`view`] say how it looks from outside.

pub mod admit;
pub mod cluster;
pub mod moving;
pub mod place;
pub mod plan;
pub mod ports;
pub mod status;
pub mod view;
pub mod warm;

#[cfg(test)]
mod simulation;
