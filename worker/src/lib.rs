//! The worker: makes one host match its plans, again and again, and reports what it sees.
//!
//! [`reconcile`] is the loop, over any host and any store; around it [`plans`] (what is wanted), [`ledger`] (the local
//! copy of that), [`report`] (what was seen, on its way out), [`agent`] (byte streams into nodes for masters),
//! [`membership`] (joining a cluster and staying in it) and [`audit`] (what belongs to nothing).

pub mod agent;
pub mod audit;
pub mod clock;
pub mod ledger;
pub mod machine;
pub mod membership;
pub mod plans;
pub mod reconcile;
pub mod report;

pub use reconcile::{Settings, Timing, Worker};
