//! The store's server on this machine: where ETCD is localhost and nothing answers there, the master starts etcd and
//! looks after it ([`supervisor`]).

pub mod supervisor;

pub use supervisor::{EtcdError, LocalEtcd};
