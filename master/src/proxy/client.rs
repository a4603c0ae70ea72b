//! The browser's end of a connection, and the alarm that goes with it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_util::io::poll_read_buf;

/// Room for one read.
pub const ROOM: usize = 8 * 1024;
/// Room for one read where more is known to come.
pub const LARGE_ROOM: usize = 64 * 1024;
/// How long, and how much, is still read from a browser that was told that its connection ends: one that is cut off while
/// it sends may never see the answer.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: usize = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    /// Read and not used yet.
    pub buffer: BytesMut,
    /// Its address, as apps are told.
    address: Option<String>,
}

impl Client {
    pub fn new(stream: TcpStream) -> Self {
        // Small frames and short answers must not wait for each other. A socket that is gone already says so when it is read.
        let _set = stream.set_nodelay(true);
        let address = stream.peer_addr().ok().map(|peer| peer.ip().to_canonical().to_string());
        Self { stream, buffer: BytesMut::new(), address }
    }

    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn stream_mut(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.stream)
    }

    /// Gives back what was needed for large pieces, before it waits.
    pub fn shrink(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > ROOM {
            self.buffer = BytesMut::new();
        }
    }

    /// Reads into the buffer. One that waits for its first bytes holds no room.
    pub fn poll_more(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        ready!(self.stream.poll_read_ready(cx))?;
        self.buffer.reserve(room);
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, parts: [&[u8]; 2]) -> Poll<io::Result<usize>> {
        let written = match parts {
            [first, []] => Pin::new(&mut self.stream).poll_write(cx, first),
            [first, second] => {
                let both = [io::IoSlice::new(first), io::IoSlice::new(second)];
                Pin::new(&mut self.stream).poll_write_vectored(cx, &both)
            }
        };
        match ready!(written) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => Poll::Ready(other),
        }
    }

    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Whether the browser has closed its half, or the connection broke.
    pub fn has_left(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&at_once)).is_ok_and(|seen| seen > 0)
    }

    /// Ends the connection at once: what the browser has not taken yet is not for it any more.
    pub fn reset(self) {
        reset(&self.stream);
    }

    /// Ends the connection after an answer that came before the request was read to its end.
    pub async fn say_farewell(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut scratch = vec![0; ROOM];
        let drained = async {
            let mut left = FAREWELL_BYTES;
            while let Ok(n @ 1..) = self.stream.read(&mut scratch).await
                && n < left
            {
                left -= n;
            }
        };
        let _in_time = timeout(FAREWELL, drained).await;
    }
}

/// Makes closing the socket, whenever that is, drop what was not sent; and ends both directions now.
pub fn reset(stream: &TcpStream) {
    let lingering = rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO));
    let ended = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
    if let Err(error) = lingering.and(ended) {
        tracing::debug!(%error, "a browser's connection was gone already");
    }
}

/// One timer for all the deadlines of a connection, of which nearly all move on before they are due: it is set anew only
/// when it goes off, or must go off earlier.
#[derive(Debug)]
pub struct Alarm(Pin<Box<Sleep>>);

impl Alarm {
    pub fn new() -> Self {
        Self(Box::pin(sleep_until(Instant::now())))
    }

    /// Ready once it is that late.
    pub fn poll_at(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        loop {
            if self.0.deadline() > at {
                self.0.as_mut().reset(at);
            }
            ready!(self.0.as_mut().poll(cx));
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn an_alarm_is_never_early_and_can_be_set_back_and_forth() {
        let mut alarm = Alarm::new();
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        poll_fn(|cx| alarm.poll_at(cx, at(20))).await;
        assert!(begin.elapsed() >= Duration::from_millis(20));
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll_at(cx, at(60_000)))).await.is_pending());
        // Set for much later, and then for earlier.
        poll_fn(|cx| alarm.poll_at(cx, at(40))).await;
        assert!((Duration::from_millis(40)..Duration::from_secs(50)).contains(&begin.elapsed()));
        assert!(poll_fn(|cx| Poll::Ready(alarm.poll_at(cx, at(30)))).await.is_ready());
    }
}
