//! Connections to apps: dialled through the node's host, kept for a short while, never shared between sign-ins.
//!
//! One pool per server thread: a connection lives where it was made, so that no lock is on the way of a request.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use docklet_types::id::NodeId;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::agent::{AccessError, NodeStream};
use super::body::RequestBody;
use super::routes::RouteTarget;
use super::{Counters, Limits, Proxy};
use crate::auth::sessions::Ended;
use crate::auth::token::TokenHash;

/// A connection serves one sign-in and one port of one node. Nodes are named by ids that are never reused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    pub session: TokenHash,
    pub node: NodeId,
    pub port: u16,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
    ended: Ended,
}

/// This thread's unused connections.
pub struct Pool {
    limits: Limits,
    idle: RefCell<HashMap<PoolKey, Vec<Idle>>>,
    swept: Cell<bool>,
}

impl Pool {
    pub fn new(limits: Limits) -> Self {
        Self { limits, idle: RefCell::default(), swept: Cell::new(false) }
    }

    /// A connection that can take a request now.
    pub fn take(&self, key: &PoolKey) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(key)?;
        while let Some(one) = kept.pop() {
            if one.sender.is_ready() && !one.ended.has_ended() && one.since.elapsed() < self.limits.keep {
                return Some(one.sender);
            }
        }
        idle.remove(key);
        None
    }

    fn put(self: &Rc<Self>, key: PoolKey, sender: SendRequest<RequestBody>, ended: Ended) {
        if sender.is_closed() || ended.has_ended() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(key).or_default();
        if kept.len() < self.limits.keep_each {
            kept.push(Idle { sender, since: Instant::now(), ended });
        }
        drop(idle);
        if !self.swept.replace(true) {
            actix_web::rt::spawn(sweep(Rc::downgrade(self)));
        }
    }

    /// Closes what is over its time, and what belongs to an ended sign-in.
    fn close_old(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, kept| {
            kept.retain(|one| {
                !one.sender.is_closed() && !one.ended.has_ended() && one.since.elapsed() < self.limits.keep
            });
            !kept.is_empty()
        });
        idle.is_empty()
    }
}

/// Runs while there is something to close: an open socket keeps a node's network namespace alive.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(pool) = pool.upgrade() else {
            return;
        };
        if pool.close_old() {
            pool.swept.set(false);
            return;
        }
    }
}

/// A connection in use, and where it goes afterwards.
pub struct Returning {
    pub pool: Rc<Pool>,
    pub key: PoolKey,
    pub sender: SendRequest<RequestBody>,
    pub ended: Ended,
}

impl Returning {
    pub fn give_back(self) {
        self.pool.put(self.key, self.sender, self.ended);
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("cannot connect to the app")]
    Access(#[from] AccessError),
    #[error("the app broke the connection before it answered")]
    Broken(#[source] hyper::Error),
}

/// Dials the app.
pub async fn dial(proxy: &Proxy, target: &RouteTarget, port: u16) -> Result<NodeStream, AccessError> {
    Counters::add(&proxy.counters.dials);
    let dialled = tokio::time::timeout(proxy.limits.dial, proxy.access.dial(target, port))
        .await
        .unwrap_or(Err(AccessError::TimedOut));
    if dialled.is_err() {
        Counters::add(&proxy.counters.dial_failures);
    }
    dialled
}

/// Speaks HTTP/1.1 on a fresh stream. The connection ends when its sender is dropped.
pub async fn connect(stream: NodeStream) -> Result<SendRequest<RequestBody>, UpstreamError> {
    let (sender, connection) = http1::Builder::new()
        // Flat memory: hyper would read up to 400 KiB ahead.
        .max_buf_size(64 * 1024)
        .handshake::<_, RequestBody>(TokioIo::new(stream))
        .await
        .map_err(UpstreamError::Broken)?;
    actix_web::rt::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to an app ended");
        }
    });
    Ok(sender)
}
