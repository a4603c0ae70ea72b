//! One request on its way to an app, and its answer on the way back, a piece at a time: what the slower side has not taken
//! is not read from the faster one.
//!
//! Both ways are driven by one future, so that an app may answer before it has read all of a request, and an ordinary
//! request costs one write and one read on each side.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use tokio::time::Instant;

use super::client::{Client, LARGE_ROOM, ROOM};
use super::headers;
use super::upstream::Connection;
use super::wire::answer::{AnswerError, Head as AnswerHead};
use super::wire::body::{BodyError, Rest};
use super::wire::date;
use super::wire::request::Head;

/// Bytes of a body that are under way at once.
const PIECE: usize = 64 * 1024;
/// A piece up to this size is copied behind the head, so that both leave in one write.
const SMALL: usize = 16 * 1024;

/// Why an exchange did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection was closed or broke before an answer began: where it was a kept one, it may have been closed for
    /// its age.
    #[error("the app broke the connection before it answered")]
    NoAnswer(#[source] io::Error),
    #[error("the app's answer cannot be read")]
    Unreadable(#[source] AnswerError),
    #[error("the app broke off its answer")]
    BrokenOff,
    #[error("the chunks of the request are none")]
    Request(#[source] BodyError),
    #[error("the browser has left")]
    Left,
}

/// How an exchange came to its end.
#[derive(Debug)]
pub enum Done {
    /// The whole answer was passed on.
    Answered,
    /// The app agreed to change the protocol; nothing of that was passed on.
    Switched(AnswerHead),
}

/// The way up.
struct Up {
    /// To be written: at first the head.
    out: BytesMut,
    body: Rest,
    unflushed: bool,
    /// The app takes no more; it may have answered all the same.
    refused: bool,
}

/// The way down.
struct Down {
    /// To be written, before `piece`.
    out: BytesMut,
    piece: Bytes,
    stage: Stage,
    /// Whether bytes of the answer itself are among what was written or is to be.
    began: bool,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    Head,
    Body { rest: Rest, chunked: bool },
    Last,
}

/// What of a request decides how its answer is written.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub head_only: bool,
    pub http_10: bool,
    /// The browser means to send another request on its connection.
    pub keeps: bool,
}

impl Asked {
    pub fn by(head: &Head) -> Self {
        Self { head_only: *head.method() == Method::HEAD, http_10: head.is_http_10(), keeps: head.keeps() }
    }
}

/// See the module.
pub struct Exchange<'a> {
    client: &'a mut Client,
    app: &'a mut Connection,
    asked: Asked,
    up: Up,
    down: Down,
    last_moved: Instant,
    app_keeps: bool,
    client_keeps: bool,
}

impl<'a> Exchange<'a> {
    /// `head` is written to the app; a body follows it from the browser, which is told to go on where it `expects` that.
    pub fn new(
        (client, app): (&'a mut Client, &'a mut Connection),
        asked: Asked,
        (head, body): (BytesMut, Rest),
        expects: bool,
    ) -> Self {
        let go_on = expects && !body.is_over() && client.buffer.is_empty();
        let out = BytesMut::from(if go_on { b"HTTP/1.1 100 Continue\r\n\r\n".as_slice() } else { b"" });
        Self {
            client,
            app,
            asked,
            up: Up { out: head, body, unflushed: true, refused: false },
            down: Down { out, piece: Bytes::new(), stage: Stage::Head, began: false },
            last_moved: Instant::now(),
            app_keeps: false,
            client_keeps: asked.keeps,
        }
    }

    pub fn last_moved(&self) -> Instant {
        self.last_moved
    }

    pub fn client(&self) -> &Client {
        self.client
    }

    /// Whether the browser has seen, or will see, some of the answer.
    pub fn has_begun(&self) -> bool {
        self.down.began
    }

    /// The request was read to its end, and the app has taken it.
    fn is_sent(&self) -> bool {
        self.up.out.is_empty() && self.up.body.is_over() && !self.up.refused
    }

    /// After the end: whether the connection to the app, and the browser's, can take another request.
    pub fn keeps(&self) -> (bool, bool) {
        (self.app_keeps && self.is_sent() && self.app.buffer.is_empty(), self.client_keeps && self.up.body.is_over())
    }

    /// What the browser was to be told before an answer, and was not yet.
    pub fn into_unwritten(self) -> BytesMut {
        self.down.out
    }

    /// Ready at the end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Done, ExchangeError>> {
        loop {
            let up = self.poll_up(cx)?;
            let down = match self.poll_down(cx)? {
                Poll::Ready(Some(done)) => return Poll::Ready(Ok(done)),
                Poll::Ready(None) => true,
                Poll::Pending => false,
            };
            if up || down {
                self.last_moved = Instant::now();
            } else {
                return Poll::Pending;
            }
        }
    }

    /// Whether something moved; else the way up waits, or is at its end.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<bool, ExchangeError> {
        if self.up.refused {
            return Ok(false);
        }
        if !self.up.out.is_empty() {
            return Ok(match self.app.poll_write(cx, &self.up.out) {
                Poll::Ready(Ok(n @ 1..)) => {
                    self.up.out.advance(n);
                    true
                }
                Poll::Ready(_) => {
                    self.up.refused = true;
                    true
                }
                Poll::Pending => false,
            });
        }
        if self.up.unflushed {
            match self.app.poll_flush(cx) {
                Poll::Ready(flushed) => (self.up.unflushed, self.up.refused) = (false, flushed.is_err()),
                Poll::Pending => return Ok(false),
            }
        }
        if self.up.body.is_over() {
            return Ok(false);
        }
        self.poll_upload(cx)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<bool, ExchangeError> {
        let chunked = matches!(self.up.body, Rest::Chunked(_));
        let piece = self.up.body.take(&mut self.client.buffer, PIECE).map_err(ExchangeError::Request)?;
        let over = self.up.body.is_over();
        if piece.is_empty() && !over {
            return match self.client.poll_more(cx, LARGE_ROOM) {
                Poll::Ready(Ok(1..)) => Ok(true),
                Poll::Ready(_) => Err(ExchangeError::Left),
                Poll::Pending => Ok(false),
            };
        }
        self.up.unflushed = true;
        if chunked {
            put_chunk(&mut self.up.out, &piece, over);
        } else {
            // What was read is written from where it lies.
            self.up.out = piece.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        }
        Ok(true)
    }

    /// `None` when something moved.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<Poll<Option<Done>>, ExchangeError> {
        let moved = Ok(Poll::Ready(None));
        if !self.down.out.is_empty() || !self.down.piece.is_empty() {
            return match self.client.poll_write(cx, [&self.down.out, &self.down.piece]) {
                Poll::Ready(Ok(n)) => {
                    let first = n.min(self.down.out.len());
                    self.down.out.advance(first);
                    self.down.piece.advance(n - first);
                    moved
                }
                Poll::Ready(Err(_)) => Err(ExchangeError::Left),
                Poll::Pending => Ok(Poll::Pending),
            };
        }
        match self.down.stage {
            Stage::Head => self.poll_head(cx),
            Stage::Body { rest, chunked } => match self.poll_body(cx, rest, chunked)? {
                Poll::Ready(()) => moved,
                Poll::Pending => Ok(Poll::Pending),
            },
            Stage::Last => Ok(Poll::Ready(Some(Done::Answered))),
        }
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Result<Poll<Option<Done>>, ExchangeError> {
        loop {
            let head =
                AnswerHead::take(&mut self.app.buffer, self.asked.head_only).map_err(ExchangeError::Unreadable)?;
            match head {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    return Ok(Poll::Ready(Some(Done::Switched(head))));
                }
                Some(head) if head.is_interim() => {}
                Some(head) => {
                    self.begin(&head)?;
                    return Ok(Poll::Ready(None));
                }
                None => match self.app.poll_more(cx, ROOM) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(Ok(0)) if self.app.buffer.is_empty() => {
                        return Err(ExchangeError::NoAnswer(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Poll::Ready(Ok(0)) => return Err(ExchangeError::Unreadable(AnswerError::NotHttp)),
                    Poll::Ready(Err(error)) => return Err(ExchangeError::NoAnswer(error)),
                    Poll::Pending => return Ok(Poll::Pending),
                },
            }
        }
    }

    /// Writes the head for the browser, with what has come of the body.
    fn begin(&mut self, head: &AnswerHead) -> Result<(), ExchangeError> {
        self.app_keeps = head.keep;
        // A body without a told end is framed anew, or ends with the connection where the browser knows no chunks.
        let chunked = matches!(head.body, Rest::Chunked(_) | Rest::UntilClose);
        let framing = match head.body {
            _ if self.asked.head_only || head.status == StatusCode::NOT_MODIFIED => match head.length {
                Some(length) => Framing::Length(length),
                None => Framing::None,
            },
            _ if head.status == StatusCode::NO_CONTENT => Framing::None,
            Rest::Length(length) => Framing::Length(length),
            _ if self.asked.http_10 => Framing::UntilClose,
            _ => Framing::Chunked,
        };
        // What is left of the request when its answer begins may never come.
        self.client_keeps &= !matches!(framing, Framing::UntilClose) && !self.up.refused && self.up.body.is_over();
        self.down.began = true;
        let out = &mut self.down.out;
        put_head(out, head, framing, self.client_keeps.then_some(self.asked.http_10));
        // What came with the head leaves with it.
        self.take_piece(head.body, chunked && !self.asked.http_10, false)?;
        Ok(())
    }

    fn poll_body(&mut self, cx: &mut Context<'_>, rest: Rest, chunked: bool) -> Result<Poll<()>, ExchangeError> {
        if self.take_piece(rest, chunked, false)? {
            return Ok(Poll::Ready(()));
        }
        let room = if matches!(rest, Rest::Length(left) if left <= ROOM as u64) { ROOM } else { LARGE_ROOM };
        match self.app.poll_more(cx, room) {
            Poll::Ready(Ok(1..)) => Ok(Poll::Ready(())),
            Poll::Ready(Ok(0)) if rest == Rest::UntilClose => {
                self.take_piece(rest, chunked, true)?;
                Ok(Poll::Ready(()))
            }
            Poll::Ready(_) => Err(ExchangeError::BrokenOff),
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Puts what has come of the body behind what is to be written; false where nothing has, and its end neither.
    fn take_piece(&mut self, mut rest: Rest, chunked: bool, closed: bool) -> Result<bool, ExchangeError> {
        let piece = rest.take(&mut self.app.buffer, PIECE).map_err(|_| ExchangeError::BrokenOff)?;
        let over = rest.is_over() || closed;
        self.down.stage = if over { Stage::Last } else { Stage::Body { rest, chunked } };
        let took = !piece.is_empty() || over;
        if chunked {
            put_chunk(&mut self.down.out, &piece, over);
        } else if piece.len() <= SMALL {
            self.down.out.extend_from_slice(&piece);
        } else {
            self.down.piece = piece;
        }
        Ok(took)
    }
}

/// How the browser learns where the body ends.
#[derive(Debug, Clone, Copy)]
enum Framing {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Appends a chunk, and the end of all chunks where it is the last one.
fn put_chunk(out: &mut BytesMut, piece: &[u8], last: bool) {
    if !piece.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    if last {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

/// Appends a field.
pub fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Appends the first line of an answer.
pub fn put_status(out: &mut BytesMut, status: StatusCode) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// `kept`: the connection stays open, to a client that has to be told so where it is one of HTTP/1.0.
pub fn put_connection(out: &mut BytesMut, kept: Option<bool>) {
    match kept {
        None => put_field(out, b"connection", b"close"),
        Some(true) => put_field(out, b"connection", b"keep-alive"),
        Some(false) => {}
    }
}

fn put_head(out: &mut BytesMut, head: &AnswerHead, framing: Framing, kept: Option<bool>) {
    out.reserve(1024);
    put_status(out, head.status);
    let says_date = headers::to_browser(head.fields(), |name, value| put_field(out, name, value));
    if !says_date {
        date::with(|now| put_field(out, b"date", now.as_bytes()));
    }
    match framing {
        Framing::Length(length) => put_field(out, b"content-length", length.to_string().as_bytes()),
        Framing::Chunked => put_field(out, b"transfer-encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
    }
    put_connection(out, kept);
    out.extend_from_slice(b"\r\n");
}

/// The head of an agreed change to a WebSocket.
pub fn switching(head: &AnswerHead) -> BytesMut {
    let mut out = BytesMut::with_capacity(512);
    put_status(&mut out, StatusCode::SWITCHING_PROTOCOLS);
    headers::to_browser(head.fields(), |name, value| put_field(&mut out, name, value));
    put_field(&mut out, b"connection", b"Upgrade");
    put_field(&mut out, b"upgrade", b"websocket");
    out.extend_from_slice(b"\r\n");
    out
}
