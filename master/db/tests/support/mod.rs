//! What tests over a database need; the master's own tests take it in, too.

pub mod postgres;
