//! Who is who between machines: the cluster's authority, the certificates it gives to masters and workers, and TLS made
//! of them.
//!
//! One authority serves etcd, the masters and the workers. A certificate's common name is a user of etcd; its DNS names
//! are what peers check, so that addresses may change. Keys never leave the machine that made them, but for the
//! authority's, which every master has.

pub mod authority;
pub mod certificate;
pub mod files;
pub mod message;
pub mod tls;
