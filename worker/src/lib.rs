//! The worker: makes one host match its plans, again and again, and reports what it sees.
//!
//! [`reconcile`] is the loop, over any host and any store; around it [`plans`] (what is wanted), [`ledger`] (the local
//! copy of that), [`report`] (what was seen, on its way out), [`agent`] (byte streams into nodes for the master of this
//! host) and [`audit`] (what belongs to nothing). [`store`] is etcd as a worker has to take it: perhaps not there yet.

pub mod agent;
pub mod audit;
pub mod clock;
pub mod ledger;
pub mod machine;
pub mod plans;
pub mod reconcile;
pub mod report;
pub mod store;

pub use reconcile::{Settings, Timing, Worker};
