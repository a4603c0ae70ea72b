//! The HTTP surface: thin handlers that extract, call a use case, convert.

pub mod problem;
