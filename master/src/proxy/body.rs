//! Bodies in both directions, a piece at a time: what the slower side has not taken is not read from the faster one.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use bytes::Bytes;
use futures::Stream;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;

use super::apps::Permit;
use super::headers::Framing;
use super::plain;
use super::socket::{self, ClientSocket, Heart, Life};
use super::tunnel::TunnelBody;
use super::upstream::{Returning, Used};
use super::visitor::Visitor;

/// A browser's body on its way to an app.
pub enum RequestBody {
    Empty,
    Streaming { payload: Payload, left: Option<u64>, life: Rc<Life> },
}

impl RequestBody {
    /// `life` learns of each piece: an upload that moves is not idle.
    pub fn new(framing: Framing, payload: Payload, life: &Rc<Life>) -> Self {
        let left = match framing {
            Framing::None => return Self::Empty,
            Framing::Length(length) => Some(length),
            Framing::Chunked => None,
        };
        Self::Streaming { payload, left, life: Rc::clone(life) }
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = PayloadError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PayloadError>>> {
        let Self::Streaming { payload, left, life } = self.get_mut() else {
            return Poll::Ready(None);
        };
        Pin::new(payload).poll_next(cx).map(|next| {
            next.map(|piece| {
                let piece = piece?;
                life.moved();
                if let Some(left) = left {
                    // The parser in front ends the payload at its length; more would be its mistake, and is not passed on.
                    *left = left.checked_sub(piece.len() as u64).ok_or(PayloadError::EncodingCorrupted)?;
                }
                Ok(Frame::data(piece))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Empty | Self::Streaming { left: Some(0), .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Streaming { left: None, .. } => SizeHint::default(),
        }
    }
}

/// Why an answer's body stops before its end. The browser sees the connection break.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the app broke off its answer")]
    Upstream(#[source] hyper::Error),
    #[error("the app broke off its answer")]
    Plain(#[source] io::Error),
    #[error("no byte moved for {} s", .0.as_secs())]
    Idle(Duration),
    #[error("the sign-in ended")]
    SignedOut,
    #[error("the browser has left")]
    Left,
}

/// What an answer's body is.
pub enum AnswerBody {
    /// One of our own pages.
    Own(BoxBody),
    /// Of no length, or without any.
    Empty(BodySize),
    Streaming(Box<Streaming>),
    Tunnel(TunnelBody),
}

/// A body this long is watched over although its app never made anyone wait.
const LONG: usize = 256 * 1024;

/// Where an app's body comes from, with the connection to keep after it.
pub enum Source {
    Hyper(Incoming, Option<SendRequest<RequestBody>>),
    /// Absent once it is over.
    Plain(Option<plain::Body>),
}

impl Source {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match self {
            Self::Hyper(body, _) => loop {
                return match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                    // Trailers end here.
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if !data.is_empty() => Poll::Ready(Some(Ok(data))),
                        _ => continue,
                    },
                    Some(Err(error)) => Poll::Ready(Some(Err(BodyError::Upstream(error)))),
                    None => Poll::Ready(None),
                };
            },
            Self::Plain(Some(body)) => {
                body.poll_piece(cx).map(|next| next.map(|piece| piece.map_err(BodyError::Plain)))
            }
            Self::Plain(None) => Poll::Ready(None),
        }
    }

    /// The connection, once the body was read to its end.
    fn used(&mut self) -> Option<Used> {
        match self {
            Self::Hyper(_, sender) => sender.take().map(Used::Hyper),
            Self::Plain(body) => body.take().and_then(plain::Body::into_kept).map(Used::Plain),
        }
    }
}

/// An app's body on its way to a browser.
pub struct Streaming {
    source: Source,
    size: BodySize,
    visitor: Visitor,
    socket: ClientSocket,
    idle: Duration,
    heart: Heart,
    /// Bytes until the body is watched over; absent once it is.
    unwatched: Option<usize>,
    home: Option<Returning>,
    _permit: Rc<Permit>,
}

/// What an answer's body needs besides its bytes.
pub struct Around {
    pub heart: Heart,
    pub visitor: Visitor,
    pub socket: ClientSocket,
    pub idle: Duration,
    /// Where the connection goes when the body was read to its end; absent where it cannot be used again.
    pub home: Option<Returning>,
    pub permit: Rc<Permit>,
}

impl Streaming {
    pub fn new(source: Source, size: BodySize, around: Around) -> Self {
        let Around { heart, visitor, socket, idle, home, permit } = around;
        Self { source, size, visitor, socket, idle, heart, unwatched: Some(LONG), home, _permit: permit }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match self.source.poll_piece(cx) {
            Poll::Ready(Some(Ok(data))) => {
                self.passed(data.len());
                Poll::Ready(Some(Ok(data)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.home = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                give_back(self.home.take(), self.source.used());
                Poll::Ready(None)
            }
            Poll::Pending => {
                self.watch();
                match self.heart.life().stopped_or_wait(cx.waker()) {
                    Some(why) => Poll::Ready(Some(Err(why))),
                    None => Poll::Pending,
                }
            }
        }
    }

    fn passed(&mut self, bytes: usize) {
        match self.unwatched {
            None => self.heart.life().moved(),
            Some(left) if left <= bytes => self.watch(),
            Some(left) => self.unwatched = Some(left - bytes),
        }
    }

    /// An answer that is short and at once there costs no watching.
    fn watch(&mut self) {
        if self.unwatched.take().is_some() {
            let life = self.heart.life();
            life.moved();
            actix_web::rt::spawn(socket::watch(Rc::clone(life), self.socket, self.visitor.clone(), self.idle));
        }
    }
}

fn give_back(home: Option<Returning>, used: Option<Used>) {
    if let (Some(home), Some(used)) = (home, used) {
        home.give_back(used);
    }
}

/// An answer without a body is over before the server asks for it.
pub fn give_back_unread(home: Option<Returning>, mut source: Source) {
    give_back(home, source.used());
}

impl MessageBody for AnswerBody {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        match self {
            Self::Own(body) => body.size(),
            Self::Empty(size) => *size,
            Self::Streaming(streaming) => streaming.size,
            Self::Tunnel(_) => BodySize::Stream,
        }
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_next(cx),
            Self::Empty(_) => Poll::Ready(None),
            Self::Streaming(streaming) => {
                streaming.poll_piece(cx).map(|next| next.map(|piece| piece.map_err(Into::into)))
            }
            Self::Tunnel(tunnel) => tunnel.poll_piece(cx).map(|next| next.map(Ok)),
        }
    }
}
