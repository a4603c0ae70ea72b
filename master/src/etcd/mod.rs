//! The store's server on this machine: where ETCD is localhost and nothing answers there, the master makes
//! certificates ([`certificates`]), starts etcd and looks after it ([`supervisor`]).

pub mod certificates;
pub mod supervisor;

pub use supervisor::{EtcdError, LocalEtcd};
