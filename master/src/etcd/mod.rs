//! A local etcd, started and supervised where the configuration asks for one.
