//! The words that every part of Docklet speaks: names, ids, specs, plans, reports, views.
//!
//! Everything here is data with validation and no I/O, so that the pure crates can use it. A value of one of
//! these types is valid by construction: parse at the edge, trust inside.

pub mod agent;
pub mod config;
pub mod host;
pub mod id;
pub mod image;
pub mod join;
pub mod kernel_names;
pub mod label;
pub mod maintenance;
pub mod master;
pub mod moves;
pub mod name;
pub mod net;
pub mod paths;
pub mod plan;
pub mod port;
pub mod problem;
pub mod rate;
pub mod report;
pub mod shared;
pub mod site;
pub mod size;
pub mod spec;
pub mod status;
pub mod time;
pub mod view;
