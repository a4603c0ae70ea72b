//! After a verified 101: raw bytes both ways, each way at the pace of its slower side.
//!
//! Both sockets are closed as soon as the sign-in ends, whether or not the browser is still reading.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::client::{Alarm, Client};
use super::upstream::Connection;
use super::visitor::Visitor;
use super::{Limits, Proxy};

/// Read at once at most.
const PIECE: usize = 32 * 1024;
/// What the browser sent before its app closed may still be delivered for so long.
const LAST_BYTES: Duration = Duration::from_secs(2);

thread_local! {
    /// An idle tunnel owns no buffer: bytes are read here, and only what the other side does not take at once is kept.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; PIECE].into_boxed_slice());
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read and not written yet.
    left: BytesMut,
    unflushed: bool,
    ended: bool,
    /// The other side was told of the end.
    closed: bool,
}

impl Way {
    fn new(left: BytesMut) -> Self {
        Self { left, ..Self::default() }
    }

    /// Ready when all of this way has passed. Notes in `moved` that a byte did.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
        moved: &mut bool,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        loop {
            while !self.left.is_empty() {
                match ready!(to.as_mut().poll_write(cx, &self.left))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    n => self.left.advance(n),
                }
                (*moved, self.unflushed) = (true, true);
            }
            if self.left.capacity() > 0 {
                self.left = BytesMut::new();
            }
            if self.unflushed {
                ready!(to.as_mut().poll_flush(cx))?;
                self.unflushed = false;
            }
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.closed = true;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, from.as_mut(), to.as_mut()))?;
            *moved = true;
        }
    }

    fn poll_read<R, W>(&mut self, cx: &mut Context<'_>, from: Pin<&mut R>, to: Pin<&mut W>) -> Poll<io::Result<()>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(from.poll_read(cx, &mut buffer))?;
            let mut rest = buffer.filled();
            if rest.is_empty() {
                self.ended = true;
            } else if let Poll::Ready(written) = to.poll_write(cx, rest) {
                rest = &rest[written?..];
                self.unflushed = true;
            }
            self.left.extend_from_slice(rest);
            Poll::Ready(Ok(()))
        })
    }
}

/// Both ends of a tunnel, with what was read of them already.
pub struct Ends {
    pub client: Client,
    pub app: Connection,
}

/// Carries until one side has ended, nothing moves, or nobody may any more.
pub async fn run(proxy: &Arc<Proxy>, ends: Ends, visitor: &Visitor) {
    proxy.counters.tunnels_open.fetch_add(1, Ordering::Relaxed);
    carry(ends, visitor, &proxy.limits).await;
    proxy.counters.tunnels_open.fetch_sub(1, Ordering::Relaxed);
}

async fn carry(Ends { mut client, app }: Ends, visitor: &Visitor, limits: &Limits) {
    let (mut stream, first) = app.into_parts();
    let mut up = Way::new(std::mem::take(&mut client.buffer));
    let mut down = Way::new(first);
    let mut alarm = Alarm::new();
    let mut last = Instant::now();
    let mut ended = std::pin::pin!(visitor.ended().wait());
    let signed_out = poll_fn(|cx| {
        let mut moved = false;
        // A way that breaks is over, and so is the whole tunnel; the browser's protocol tells an end from a break.
        let up_over = match up.poll(cx, client.stream_mut(), Pin::new(&mut *stream), &mut moved) {
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            other => other.is_ready(),
        };
        let down_over = match down.poll(cx, Pin::new(&mut *stream), client.stream_mut(), &mut moved) {
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            other => other.is_ready(),
        };
        if up_over && down_over {
            return Poll::Ready(false);
        }
        if moved {
            last = Instant::now();
        }
        if ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        let patience = match (up_over, down_over) {
            (_, true) => LAST_BYTES,
            (true, false) => limits.half_closed_idle,
            (false, false) => limits.tunnel_idle,
        };
        alarm.poll_at(cx, last + patience).map(|()| false)
    })
    .await;
    if signed_out {
        client.reset();
    }
}
