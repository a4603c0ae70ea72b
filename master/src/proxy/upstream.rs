//! Connections to apps: dialled through the node's host, kept for a short while, never shared between sign-ins.
//!
//! One pool per server thread: a connection lives where it was made, so that no lock is on the way of a request.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use docklet_types::id::NodeId;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::agent::{AccessError, NodeStream};
use super::body::RequestBody;
use super::plain::Connection;
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

/// A connection that may be used again.
pub trait Kept {
    /// It is open, and nothing is under way on it.
    fn is_usable(&mut self) -> bool;
}

impl Kept for SendRequest<RequestBody> {
    fn is_usable(&mut self) -> bool {
        self.is_ready() && !self.is_closed()
    }
}

impl Kept for Connection {
    fn is_usable(&mut self) -> bool {
        self.is_quiet()
    }
}

struct Idle<T> {
    kept: T,
    since: Instant,
    ended: Ended,
}

impl<T: Kept> Idle<T> {
    fn is_good(&mut self, keep: Duration) -> bool {
        !self.ended.has_ended() && self.since.elapsed() < keep && self.kept.is_usable()
    }
}

/// Unused connections of one kind.
struct Shelf<T>(RefCell<HashMap<PoolKey, Vec<Idle<T>>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T: Kept> Shelf<T> {
    fn take(&self, key: &PoolKey, keep: Duration) -> Option<T> {
        let mut idle = self.0.borrow_mut();
        let kept = idle.get_mut(key)?;
        while let Some(mut one) = kept.pop() {
            if one.is_good(keep) {
                return Some(one.kept);
            }
        }
        idle.remove(key);
        None
    }

    fn put(&self, key: PoolKey, kept: T, ended: Ended, most: usize) {
        let mut idle = self.0.borrow_mut();
        let shelf = idle.entry(key).or_default();
        if shelf.len() < most {
            shelf.push(Idle { kept, since: Instant::now(), ended });
        }
    }

    /// Whether nothing is left.
    fn close_old(&self, keep: Duration) -> bool {
        let mut idle = self.0.borrow_mut();
        idle.retain(|_, kept| {
            kept.retain_mut(|one| one.is_good(keep));
            !kept.is_empty()
        });
        idle.is_empty()
    }
}

/// This thread's unused connections.
pub struct Pool {
    limits: Limits,
    /// For requests with a body.
    hyper: Shelf<SendRequest<RequestBody>>,
    /// For those without.
    plain: Shelf<Connection>,
    swept: Cell<bool>,
}

impl Pool {
    pub fn new(limits: Limits) -> Self {
        Self { limits, hyper: Shelf::default(), plain: Shelf::default(), swept: Cell::new(false) }
    }

    /// A connection that can take a request with a body now.
    pub fn take(&self, key: &PoolKey) -> Option<SendRequest<RequestBody>> {
        self.hyper.take(key, self.limits.keep)
    }

    /// A connection that can take a request without a body now.
    pub fn take_plain(&self, key: &PoolKey) -> Option<Connection> {
        self.plain.take(key, self.limits.keep)
    }

    fn put(self: &Rc<Self>, key: PoolKey, kept: Used, ended: Ended) {
        if ended.has_ended() {
            return;
        }
        match kept {
            Used::Hyper(sender) if sender.is_closed() => return,
            Used::Hyper(sender) => self.hyper.put(key, sender, ended, self.limits.keep_each),
            Used::Plain(connection) => self.plain.put(key, connection, ended, self.limits.keep_each),
        }
        if !self.swept.replace(true) {
            actix_web::rt::spawn(sweep(Rc::downgrade(self)));
        }
    }

    /// Closes what is over its time, what the app closed, and what belongs to an ended sign-in.
    fn close_old(&self) -> bool {
        let hyper = self.hyper.close_old(self.limits.keep);
        let plain = self.plain.close_old(self.limits.keep);
        hyper && plain
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

/// A connection that was used.
pub enum Used {
    Hyper(SendRequest<RequestBody>),
    Plain(Connection),
}

/// Where a connection in use goes afterwards.
pub struct Returning {
    pub pool: Rc<Pool>,
    pub key: PoolKey,
    pub ended: Ended,
}

impl Returning {
    pub fn give_back(self, used: Used) {
        self.pool.put(self.key, used, self.ended);
    }
}

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("cannot connect to the app")]
    Access(#[from] AccessError),
    #[error("the app broke the connection before it answered")]
    Broken(#[source] hyper::Error),
    #[error("the app broke the connection before it answered, or its answer cannot be read")]
    Unreadable(#[source] io::Error),
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
