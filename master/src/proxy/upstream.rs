//! Connections to apps: dialled through the node's host, kept for a short while, never shared between sign-ins.
//!
//! One pool per server thread: a connection lives where it was made, so that no lock is on the way of a request.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use docklet_types::id::NodeId;
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

use super::agent::{AccessError, NodeStream};
use super::client::ROOM;
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

/// A connection to an app.
pub struct Connection {
    stream: NodeStream,
    /// Read and not used yet.
    pub buffer: BytesMut,
}

impl Connection {
    pub fn new(stream: NodeStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Open, and the app said nothing unasked. An app that closed is seen without asking the kernel.
    fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.buffer.is_empty() && self.poll_more(&mut cx, 1).is_pending()
    }

    pub fn poll_more(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.buffer.reserve(room);
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// The stream, and what was read of it and not used.
    pub fn into_parts(self) -> (NodeStream, BytesMut) {
        (self.stream, self.buffer)
    }
}

struct Idle {
    kept: Connection,
    since: Instant,
    ended: Ended,
}

impl Idle {
    fn is_good(&mut self, keep: Duration) -> bool {
        !self.ended.has_ended() && self.since.elapsed() < keep && self.kept.is_quiet()
    }
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

    /// A connection that can take a request now, unused for no longer than that.
    pub fn take(&self, key: &PoolKey, unused: Duration) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(key)?;
        // The last is the one that was used last.
        while let Some(mut one) = kept.pop() {
            if one.since.elapsed() >= unused {
                kept.push(one);
                return None;
            }
            if one.is_good(self.limits.keep) {
                return Some(one.kept);
            }
        }
        idle.remove(key);
        None
    }

    /// Keeps a connection on which nothing is under way.
    pub fn put(self: &Rc<Self>, key: PoolKey, mut kept: Connection, ended: Ended) {
        if ended.has_ended() || !kept.buffer.is_empty() {
            return;
        }
        // An unused connection holds no room for large pieces.
        if kept.buffer.capacity() > ROOM {
            kept.buffer = BytesMut::new();
        }
        let mut idle = self.idle.borrow_mut();
        let shelf = idle.entry(key).or_default();
        if shelf.len() < self.limits.keep_each {
            shelf.push(Idle { kept, since: Instant::now(), ended });
        }
        drop(idle);
        if !self.swept.replace(true) {
            actix_web::rt::spawn(sweep(Rc::downgrade(self)));
        }
    }

    /// Closes what is over its time, what the app closed, and what belongs to an ended sign-in. Whether nothing is left.
    fn close_old(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|_, kept| {
            kept.retain_mut(|one| one.is_good(self.limits.keep));
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
