//! Requests without a body, which nearly all are: written to the stream and read from it by the request's own task.
//!
//! hyper carries a request through a task of its connection, over two channels, in headers of another library. That is
//! worth it where bodies go both ways at once; here it would take as much of the processor as all else together.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderName, HeaderValue};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::poll_read_buf;

use super::agent::NodeStream;
use super::headers;

/// Bytes that the head of an answer may have.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// Room for one read; larger where more is known to come.
const ROOM: usize = 8 * 1024;
const LARGE_ROOM: usize = 64 * 1024;
/// The line of a chunk's size, and each line after the last chunk, may have so many bytes.
const MAX_LINE: usize = 8 * 1024;

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A connection to an app.
pub struct Connection {
    stream: NodeStream,
    /// Read and not used yet.
    buffer: BytesMut,
}

/// The head of an answer, with what of it is for the browser.
pub struct Head {
    pub status: StatusCode,
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// `Content-Length`, as it was told.
    pub length: Option<u64>,
    framing: Framing,
    /// The connection may be used again after the body.
    keep: bool,
}

/// Where an answer's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

/// What comes next of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    Over,
}

impl Connection {
    pub fn new(stream: NodeStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Open, and the app said nothing unasked. An app that closed is seen without asking the kernel.
    pub fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        self.buffer.is_empty() && self.poll_more(&mut cx, 1).is_pending()
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.buffer.reserve(room);
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }

    /// Sends a request and waits for the head of its answer. `head_only` where it was HEAD.
    pub async fn ask(&mut self, request: &[u8], head_only: bool) -> io::Result<Head> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        loop {
            match parse(&mut self.buffer, head_only)? {
                // "Go on" and early hints: the answer follows.
                Some(head) if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS => {}
                Some(head) => return Ok(head),
                None if self.buffer.len() >= MAX_HEAD => return Err(broken("the head is too long")),
                None => {
                    if std::future::poll_fn(|cx| self.poll_more(cx, ROOM)).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

/// Takes a head from the front of the buffer, once all of it is there.
fn parse(buffer: &mut BytesMut, head_only: bool) -> io::Result<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut fields);
    let size = match answer.parse(buffer) {
        Ok(httparse::Status::Complete(size)) => size,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(broken("the answer is not HTTP")),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| broken("no status"))?;
    let named =
        |name: &'static str| answer.headers.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value);
    let length = length(named("content-length"))?;
    let without_body =
        head_only || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (named("transfer-encoding").next_back(), length) {
        _ if without_body => Framing::Length(0),
        (Some(encoding), _) if is_chunked(encoding) => Framing::Chunked(Chunk::Size),
        (None, Some(length)) => Framing::Length(length),
        (Some(_), _) | (None, None) => Framing::UntilClose,
    };
    let closing = named("connection").flat_map(|v| v.split(|b| *b == b',')).any(|token| {
        let token = token.trim_ascii();
        token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"upgrade")
    });
    let keep = answer.version == Some(1) && !closing && framing != Framing::UntilClose;
    let mut passed = Vec::with_capacity(answer.headers.len() + 1);
    let all = || answer.headers.iter().map(|f| (f.name.as_bytes(), f.value));
    headers::to_browser(all, status == StatusCode::NOT_MODIFIED, |name, value| passed.push((name, value)));
    buffer.advance(size);
    Ok(Some(Head { status, fields: passed, length, framing, keep }))
}

/// Several that say the same count as one.
fn length<'a>(told: impl Iterator<Item = &'a [u8]>) -> io::Result<Option<u64>> {
    let mut length = None;
    for text in told {
        let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
        let number = plain.then(|| std::str::from_utf8(text).ok()?.parse::<u64>().ok()).flatten();
        match (number, length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(other)) if number == other => {}
            _ => return Err(broken("Content-Length is not one number")),
        }
    }
    Ok(length)
}

fn is_chunked(encoding: &[u8]) -> bool {
    encoding.rsplit(|b| *b == b',').next().is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// An answer's body on its way.
pub struct Body {
    connection: Connection,
    framing: Framing,
    keep: bool,
}

impl Body {
    pub fn new(connection: Connection, head: &Head) -> Self {
        Self { connection, framing: head.framing, keep: head.keep }
    }

    /// Bytes that will come, where that is known.
    pub fn exact(&self) -> Option<u64> {
        match self.framing {
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// The connection, where it can be used again after a body that was read to its end.
    pub fn into_kept(self) -> Option<Connection> {
        let over = matches!(self.framing, Framing::Length(0) | Framing::Chunked(Chunk::Over));
        (over && self.keep && self.connection.buffer.is_empty()).then_some(self.connection)
    }

    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self.take() {
                Ok(Some(piece)) if piece.is_empty() => return Poll::Ready(None),
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            let room = if self.exact().is_some_and(|left| left <= ROOM as u64) { ROOM } else { LARGE_ROOM };
            match self.connection.poll_more(cx, room) {
                Poll::Ready(Ok(0)) if self.framing == Framing::UntilClose => return Poll::Ready(None),
                Poll::Ready(Ok(0)) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// A piece that is there; an empty one at the end; `None` where more must be read first.
    fn take(&mut self) -> io::Result<Option<Bytes>> {
        let buffer = &mut self.connection.buffer;
        match &mut self.framing {
            Framing::UntilClose => Ok((!buffer.is_empty()).then(|| buffer.split().freeze())),
            Framing::Length(0) => Ok(Some(Bytes::new())),
            Framing::Length(left) => Ok(up_to(buffer, left)),
            Framing::Chunked(chunk) => unchunk(buffer, chunk),
        }
    }
}

fn up_to(buffer: &mut BytesMut, left: &mut u64) -> Option<Bytes> {
    let size = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= size as u64;
    (size > 0).then(|| buffer.split_to(size).freeze())
}

fn unchunk(buffer: &mut BytesMut, chunk: &mut Chunk) -> io::Result<Option<Bytes>> {
    loop {
        match chunk {
            Chunk::Size => match httparse::parse_chunk_size(buffer) {
                Ok(httparse::Status::Complete((size, length))) => {
                    buffer.advance(size);
                    *chunk = if length == 0 { Chunk::Trailers } else { Chunk::Data(length) };
                }
                Ok(httparse::Status::Partial) if buffer.len() < MAX_LINE => return Ok(None),
                Ok(httparse::Status::Partial) | Err(_) => return Err(broken("a chunk has no size")),
            },
            Chunk::Data(0) => *chunk = Chunk::DataEnd,
            Chunk::Data(left) => return Ok(up_to(buffer, left)),
            Chunk::DataEnd if buffer.len() < 2 => return Ok(None),
            Chunk::DataEnd => {
                if !buffer.starts_with(b"\r\n") {
                    return Err(broken("a chunk is longer than its size"));
                }
                buffer.advance(2);
                *chunk = Chunk::Size;
            }
            // Trailers end here.
            Chunk::Trailers => match buffer.iter().position(|b| *b == b'\n') {
                Some(at) => {
                    let last = buffer[..at].trim_ascii().is_empty();
                    buffer.advance(at + 1);
                    if last {
                        *chunk = Chunk::Over;
                    }
                }
                None if buffer.len() < MAX_LINE => return Ok(None),
                None => return Err(broken("a trailer is too long")),
            },
            Chunk::Over => return Ok(Some(Bytes::new())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str, head_only: bool) -> io::Result<Option<Head>> {
        parse(&mut BytesMut::from(text), head_only)
    }

    #[test]
    fn framing_is_read_once_and_strictly() {
        let framing = |fields: &str| {
            head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), false).map(|head| head.map(|h| (h.framing, h.keep)))
        };
        assert_eq!(framing("Content-Length: 5\r\n").unwrap(), Some((Framing::Length(5), true)));
        assert_eq!(framing("content-length: 5\r\ncontent-length: 5\r\n").unwrap(), Some((Framing::Length(5), true)));
        let chunked = Some((Framing::Chunked(Chunk::Size), true));
        assert_eq!(framing("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 5\r\n").unwrap(), chunked);
        assert_eq!(framing("Transfer-Encoding: gzip\r\n").unwrap(), Some((Framing::UntilClose, false)));
        assert_eq!(framing("").unwrap(), Some((Framing::UntilClose, false)));
        assert_eq!(
            framing("Content-Length: 5\r\nConnection: x, Close\r\n").unwrap(),
            Some((Framing::Length(5), false))
        );
        for bad in ["Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: +5\r\n", "Content-Length: 5, 5\r\n"]
        {
            assert!(framing(bad).is_err(), "{bad:?} was read");
        }
        assert!(head("SSH-2.0-x\r\n", false).is_err());
        assert!(head("HTTP/1.1 200 OK\r\nContent-Le", false).unwrap().is_none());
        let none = head("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false).unwrap().unwrap();
        assert_eq!((none.framing, none.length), (Framing::Length(0), Some(7)));
        let none = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).unwrap().unwrap();
        assert_eq!(none.framing, Framing::Length(0));
    }

    /// Everything that comes out of a body that arrives in these pieces.
    fn unchunked(pieces: &[&[u8]]) -> io::Result<(Vec<u8>, bool)> {
        let (mut buffer, mut chunk, mut out) = (BytesMut::new(), Chunk::Size, Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(bytes) = unchunk(&mut buffer, &mut chunk)? {
                if bytes.is_empty() {
                    return Ok((out, buffer.is_empty()));
                }
                out.extend_from_slice(&bytes);
            }
        }
        Ok((out, false))
    }

    #[test]
    fn chunks_that_lie_are_refused() {
        for bad in [&b"5\r\nhelloXY"[..], b"x\r\n", b"5\r\nhello\n\n", b"fffffffffffffffff\r\n"] {
            assert!(unchunked(&[bad]).is_err(), "{bad:?} was read");
        }
        // What follows the end belongs to nobody.
        assert_eq!(unchunked(&[b"0\r\n\r\nHTTP/1.1"]).unwrap(), (Vec::new(), false));
    }

    proptest! {
        #[test]
        fn chunks_are_joined_wherever_they_are_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cut in 1_usize..9,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nx-trailer: 1\r\n\r\n");
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            prop_assert_eq!(unchunked(&pieces).unwrap(), (chunks.concat(), true));
        }
    }
}
