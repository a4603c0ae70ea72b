//! The stretch of a connection that belongs to the portal: what its server takes for the whole of it.
//!
//! A reverse proxy in front of us sends requests for the portal and for apps on the same connection. The server behind this
//! stream gets exactly those for the portal: each request is followed to its end, and where the next one is for an app,
//! the server sees the end of the connection and the front goes on with it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Proxy;
use super::client::{self, Client, ROOM};
use super::wire::body::Rest;
use super::wire::request::Head;

/// How far the request is that is passing.
#[derive(Debug, Clone, Copy)]
enum Passing {
    /// A head comes next.
    Head,
    /// So many bytes of a head, then its body.
    Request { head: usize, body: Rest },
    /// The rest of the connection, whatever it is: a WebSocket, or what the server will refuse.
    Everything,
    /// What comes next is not for the server.
    Withheld,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    passing: Passing,
}

/// See the module.
pub struct PortalStream {
    shared: Rc<RefCell<Shared>>,
    proxy: Arc<Proxy>,
}

/// For who must end the connection from elsewhere.
#[derive(Debug, Clone)]
pub struct Handle(Weak<RefCell<Shared>>);

impl Handle {
    /// Ends the connection in both directions, whatever is still on its way.
    pub fn end(&self) {
        if let Some(shared) = self.0.upgrade() {
            client::reset(shared.borrow().client.stream());
        }
    }
}

/// The front's share in the connection while the server has it.
pub struct Lent(Rc<RefCell<Shared>>);

impl Lent {
    /// The client, once the server is through, where it has something for the front.
    pub fn take_back(self) -> Option<Client> {
        let shared = Rc::into_inner(self.0)?.into_inner();
        matches!(shared.passing, Passing::Withheld).then_some(shared.client)
    }
}

impl PortalStream {
    pub fn lend(client: Client, proxy: &Arc<Proxy>) -> (Self, Lent) {
        let shared = Rc::new(RefCell::new(Shared { client, passing: Passing::Head }));
        (Self { shared: Rc::clone(&shared), proxy: Arc::clone(proxy) }, Lent(shared))
    }

    pub fn handle(&self) -> Handle {
        Handle(Rc::downgrade(&self.shared))
    }
}

impl Shared {
    /// How many bytes at the front of the buffer the server gets now, at most `most`; 0 where more must be read first, or it
    /// gets no more.
    fn pass(&mut self, most: usize, proxy: &Proxy) -> usize {
        loop {
            let bytes = &self.client.buffer;
            let there = bytes.len().min(most);
            match &mut self.passing {
                Passing::Withheld => return 0,
                Passing::Everything => return there,
                // The head was there in whole when it was looked at.
                Passing::Request { head: head @ 1.., .. } => {
                    let n = there.min(*head);
                    *head -= n;
                    return n;
                }
                Passing::Request { body, .. } if body.is_over() => self.passing = Passing::Head,
                Passing::Request { body, .. } => match body.pass(&bytes[..there]) {
                    Ok(n) => return n,
                    // The server reads the same, and refuses it.
                    Err(_) => self.passing = Passing::Everything,
                },
                Passing::Head => match Head::read(bytes) {
                    Ok(None) => return 0,
                    Ok(Some((_, head))) if proxy.is_for_apps(&head) => self.passing = Passing::Withheld,
                    Ok(Some((length, head))) => {
                        self.passing = match head.body() {
                            Ok(body) if !head.names_websocket() && head.keeps() => {
                                Passing::Request { head: length, body }
                            }
                            // The last one, whatever comes after it.
                            Ok(_) | Err(_) => Passing::Everything,
                        };
                    }
                    Err(_) => self.passing = Passing::Everything,
                },
            }
        }
    }
}

impl AsyncRead for PortalStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.shared.borrow_mut();
        loop {
            let n = shared.pass(out.remaining(), &self.proxy);
            if n > 0 {
                out.put_slice(&shared.client.buffer[..n]);
                shared.client.buffer.advance(n);
                return Poll::Ready(Ok(()));
            }
            if matches!(shared.passing, Passing::Withheld) {
                return Poll::Ready(Ok(()));
            }
            if ready!(shared.client.poll_more(cx, ROOM))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for PortalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.borrow_mut().client.stream_mut().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.borrow_mut().client.stream_mut().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.shared.borrow_mut();
        match shared.passing {
            // For the server only: the connection goes on.
            Passing::Withheld => Poll::Ready(Ok(())),
            _ => shared.client.stream_mut().poll_shutdown(cx),
        }
    }
}
