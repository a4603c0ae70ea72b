//! The master: accounts, the REST API and the portal, the planner, and the one public door to everything in the nodes.
//!
//! Flow: `http` turns a request into newtypes and an [`auth::Actor`]; `app` decides and writes what is wanted to the
//! store; `reconcile` turns what is wanted into plans for the hosts and keeps the in-memory view that every answer is
//! computed from; `proxy` carries bytes between browsers and nodes; `etcd` keeps a local store running where the
//! configuration asks for one; `membership` lets hosts join; `assembly` puts the parts together; `commands` is what an operator types.

pub mod app;
pub mod assembly;
pub mod auth;
pub mod commands;
pub mod etcd;
pub mod http;
mod keyed;
pub mod membership;
pub mod proxy;
pub mod reconcile;
