//! The browser's own socket under a request, for what the server in between does not tell or do: whether a silent
//! browser has left, and ending a connection whose reader takes nothing.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::BodyError;
use super::visitor::Visitor;

/// How often a waiting connection is looked at.
const LOOK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
struct Number(RawFd);

/// For `HttpServer::on_connect`: remembers each connection's socket.
pub fn on_connect(connection: &dyn Any, data: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<TcpStream>() {
        data.insert(Number(stream.as_fd().as_raw_fd()));
    }
}

/// The socket of a request whose connection may have ended since: use it only while its [`Life`] goes on.
#[derive(Debug, Clone, Copy)]
pub struct ClientSocket(Option<Number>);

impl ClientSocket {
    pub fn of(request: &HttpRequest) -> Self {
        Self(request.conn_data::<Number>().copied())
    }

    /// Whether the browser has closed its half or the connection broke. False where the socket is not known.
    fn has_left(self, life: &Life) -> bool {
        self.with(life, |fd| {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::RDHUP)];
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&at_once)).is_ok_and(|seen| seen > 0)
        })
        .unwrap_or(false)
    }

    /// Ends the connection in both directions, whatever is still on its way.
    pub fn end(self, life: &Life) {
        self.with(life, |fd| {
            if let Err(error) = shutdown(fd, Shutdown::Both) {
                tracing::debug!(%error, "a browser's connection was gone already");
            }
        });
    }

    fn with<T>(self, life: &Life, act: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        let Number(fd) = self.0.filter(|_| !life.is_over())?;
        // SAFETY: the number stays this connection's while its response lives: the server owns both, drops them on
        // this thread and one right after the other, and a `Life` (bound to this thread) is over once the response is
        // dropped. Nothing runs on the thread between that check and the end of `act`.
        Some(act(unsafe { BorrowedFd::borrow_raw(fd) }))
    }
}

/// Whether a response is still being sent; shared by its body and those that watch over it.
#[derive(Debug)]
pub struct Life {
    over: Cell<bool>,
    changed: Notify,
    last: Cell<Instant>,
    stopped: RefCell<Option<BodyError>>,
    waiting: RefCell<Option<Waker>>,
}

/// Held by the body: its end is the life's end.
#[derive(Debug)]
pub struct Heart(Rc<Life>);

impl Default for Heart {
    fn default() -> Self {
        Self(Rc::new(Life {
            over: Cell::new(false),
            changed: Notify::new(),
            last: Cell::new(Instant::now()),
            stopped: RefCell::new(None),
            waiting: RefCell::new(None),
        }))
    }
}

impl Heart {
    pub fn life(&self) -> &Rc<Life> {
        &self.0
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.0.over.set(true);
        self.0.changed.notify_one();
    }
}

impl Life {
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// A byte moved.
    pub fn moved(&self) {
        self.last.set(Instant::now());
    }

    pub fn last_moved(&self) -> Instant {
        self.last.get()
    }

    /// Why the body must stop, once; otherwise `waker` is woken when there is a reason.
    pub fn stopped_or_wait(&self, waker: &Waker) -> Option<BodyError> {
        let stopped = self.stopped.borrow_mut().take();
        if stopped.is_none() {
            self.waiting.borrow_mut().replace(waker.clone());
        }
        stopped
    }

    fn stop(&self, why: BodyError) {
        self.stopped.borrow_mut().replace(why);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Returns when the response is over. One waiter at a time.
    pub async fn over(&self) {
        while !self.is_over() {
            self.changed.notified().await;
        }
    }

    /// Returns once no byte moved for so long.
    pub async fn idle(&self, idle: Duration) {
        loop {
            let until = self.last.get() + idle;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Watches over an answer that takes its time: ends it when the sign-in ends, when the browser has left, and when
/// nothing moves, be it that the app sends nothing or that the browser takes nothing.
pub async fn watch(life: Rc<Life>, socket: ClientSocket, visitor: Visitor, idle: Duration) {
    let why = tokio::select! {
        () = life.over() => return,
        () = visitor.ended().wait() => BodyError::SignedOut,
        () = left(&life, socket) => BodyError::Left,
        () = life.idle(idle) => BodyError::Idle(idle),
    };
    life.stop(why);
    // A body that nobody polls, because its reader is stuck, learns nothing of that.
    if tokio::time::timeout(Duration::from_millis(500), life.over()).await.is_err() {
        socket.end(&life);
    }
}

/// Returns when the browser has left.
pub async fn left(life: &Life, socket: ClientSocket) {
    loop {
        tokio::time::sleep(LOOK).await;
        if socket.has_left(life) {
            return;
        }
    }
}
