//! After a verified 101: raw bytes both ways, each way at the pace of its slower side.
//!
//! The way down is the answer's body, which the server polls when the browser takes bytes; the way up is a task that
//! reads the request's payload. Both share the stream into the node, which is closed as soon as the sign-in ends,
//! whether or not the browser is still reading.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use actix_web::dev::Payload;
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::agent::NodeStream;
use super::apps::Permit;
use super::socket::{ClientSocket, Heart, Life};
use super::visitor::Visitor;
use super::{Limits, Proxy};

/// Read at once at most.
const PIECE: usize = 32 * 1024;
/// What the browser sent before it went away may still be delivered for so long.
const LAST_BYTES: Duration = Duration::from_secs(2);

thread_local! {
    /// An idle tunnel owns no buffer: bytes are read here and copied out at their true size.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// What both ways share. One server thread owns it.
struct Shared {
    /// Absent once closed.
    stream: RefCell<Option<NodeStream>>,
    /// The way down, waiting for bytes.
    reader: RefCell<Option<Waker>>,
    /// Of the way down, and of both ways' last byte.
    life: Rc<Life>,
}

impl Shared {
    fn close(&self) {
        self.stream.borrow_mut().take();
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut stream = self.stream.borrow_mut();
        let Some(open) = stream.as_mut() else {
            return Poll::Ready(None);
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(open).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.life.moved();
                    Poll::Ready(Some(Bytes::copy_from_slice(buffer.filled())))
                }
                // A broken stream ends like a closed one: the browser's protocol tells which it was.
                Poll::Ready(Ok(()) | Err(_)) => Poll::Ready(None),
                Poll::Pending => {
                    *self.reader.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }

    /// Writes all of it; false where the stream is closed.
    async fn write_all(&self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let written = std::future::poll_fn(|cx| match self.stream.borrow_mut().as_mut() {
                Some(stream) => Pin::new(stream).poll_write(cx, bytes),
                None => Poll::Ready(Ok(0)),
            });
            match written.await {
                Ok(n) if n > 0 => bytes = &bytes[n..],
                _ => return false,
            }
            self.life.moved();
        }
        self.flush().await
    }

    async fn flush(&self) -> bool {
        std::future::poll_fn(|cx| match self.stream.borrow_mut().as_mut() {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Err(std::io::ErrorKind::NotConnected.into())),
        })
        .await
        .is_ok()
    }

    /// Tells the app that the browser sends no more.
    async fn shut_up(&self) {
        let shut = std::future::poll_fn(|cx| match self.stream.borrow_mut().as_mut() {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        });
        if shut.await.is_err() {
            self.close();
        }
    }
}

/// The way down: the body of the 101.
pub struct TunnelBody {
    shared: Rc<Shared>,
    /// What the app sent together with its 101.
    first: Option<Bytes>,
    _heart: Heart,
}

impl TunnelBody {
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        self.shared.poll_read(cx)
    }
}

/// What a tunnel is made of.
pub struct Ends {
    pub stream: NodeStream,
    pub first: Bytes,
    pub payload: Payload,
    pub socket: ClientSocket,
}

/// Joins both sides. The tunnel counts as open until its last byte was delivered.
pub fn join(proxy: &Arc<Proxy>, ends: Ends, visitor: Visitor, permit: Rc<Permit>) -> TunnelBody {
    let heart = Heart::default();
    let life = Rc::clone(heart.life());
    let shared =
        Rc::new(Shared { stream: RefCell::new(Some(ends.stream)), reader: RefCell::new(None), life: Rc::clone(&life) });
    let body =
        TunnelBody { shared: Rc::clone(&shared), first: (!ends.first.is_empty()).then_some(ends.first), _heart: heart };
    let proxy = Arc::clone(proxy);
    proxy.counters.tunnels_open.fetch_add(1, Ordering::Relaxed);
    actix_web::rt::spawn(async move {
        tokio::select! {
            () = up(&shared, ends.payload, &proxy.limits) => {}
            // At once, while the response still lives: what the browser did not take yet is not for it any more.
            () = visitor.ended().wait() => ends.socket.end(&life),
            () = life.idle(proxy.limits.tunnel_idle) => {}
        }
        shared.close();
        proxy.counters.tunnels_open.fetch_sub(1, Ordering::Relaxed);
        // A browser that takes nothing would keep its socket, for all that it sees.
        if tokio::time::timeout(LAST_BYTES / 2, life.over()).await.is_err() {
            ends.socket.end(&life);
        }
        drop(permit);
    });
    body
}

/// The way up, and then until the way down has ended.
async fn up(shared: &Shared, payload: Payload, limits: &Limits) {
    let mut upload = std::pin::pin!(upload(shared, payload));
    let complete = tokio::select! {
        biased;
        complete = &mut upload => complete,
        // The browser has left: what it sent last is still delivered.
        () = shared.life.over() => tokio::time::timeout(LAST_BYTES, upload).await.unwrap_or(false),
    };
    if !complete {
        return;
    }
    shared.shut_up().await;
    tokio::select! {
        () = shared.life.over() => {}
        () = shared.life.idle(limits.half_closed_idle) => {}
    }
}

/// False where the app takes no more.
async fn upload(shared: &Shared, mut payload: Payload) -> bool {
    // The server reports the end of the browser's half as an error of an incomplete payload.
    while let Some(Ok(bytes)) = payload.next().await {
        if !shared.write_all(&bytes).await {
            return false;
        }
    }
    true
}
