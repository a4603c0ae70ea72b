//! A request for an app: who asks, may they, where is it, and then bytes.

use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use docklet_types::id::NodeId;
use docklet_types::problem::Code;
use http::Method;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::address::AppAddress;
use super::client::{Alarm, Client};
use super::exchange::{self, Asked, Done, Exchange, ExchangeError, put_field};
use super::headers::{self, Forwarded};
use super::pages::{Reply, Trouble, wants_page};
use super::routes::RouteTarget;
use super::tunnel;
use super::upstream::{self, Connection, Pool, PoolKey};
use super::visitor::{self, Guest, Guests};
use super::wire::answer::Head as AnswerHead;
use super::wire::body::Rest;
use super::wire::date;
use super::wire::request::Head;
use super::{Counters, Proxy, sso};

/// Paths of an app's origin that are ours.
pub(super) const OWN_PATHS: &str = "/.docklet/";
/// How often it is looked whether a browser that waits has left.
const LOOK: Duration = Duration::from_secs(5);
/// Apps close connections that were unused for some seconds, perhaps just when a request is on its way. One that changes
/// something cannot be sent a second time, and so gets no connection that was unused for longer than this.
const FRESH: Duration = Duration::from_secs(1);

/// How many requests and tunnels each node has open.
#[derive(Debug, Default)]
pub struct OpenPerNode {
    open: Mutex<HashMap<NodeId, usize>>,
}

/// One of a node's places.
pub struct Permit {
    proxy: Arc<Proxy>,
    node: NodeId,
}

impl Permit {
    fn take(proxy: &Arc<Proxy>, node: NodeId) -> Option<Self> {
        let mut open = proxy.open.open.lock();
        let count = open.entry(node).or_default();
        if *count >= proxy.limits.per_node {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Self { proxy: Arc::clone(proxy), node })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.proxy.open.open.lock();
        if let Some(count) = open.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.node);
            }
        }
    }
}

/// What a request for an app is about, once all of it was checked.
struct Visit {
    guest: Rc<Guest>,
    target: RouteTarget,
    /// Path and query as the app gets them.
    path: String,
    body: Rest,
    _permit: Permit,
}

/// What one server thread needs to serve apps.
pub struct Apps {
    pub proxy: Arc<Proxy>,
    pool: Rc<Pool>,
    guests: Rc<Guests>,
}

/// What becomes of the browser's connection.
pub enum Next {
    /// It may bring another request.
    Request(Client),
    Nothing,
}

/// Where a request's way ends.
enum End {
    /// The answer has passed; whether the connection can bring another request.
    Passed {
        again: bool,
    },
    /// An answer of our own, in place of the app's, after what else was to be written.
    Own(Reply, BytesMut),
    /// It breaks off in the middle, so that nobody takes it for the end.
    BrokenOff,
    /// Whatever is on its way is not for this browser any more.
    SignedOut,
    Tunnel(Box<(AnswerHead, Connection)>),
}

impl Apps {
    pub fn new(proxy: Arc<Proxy>) -> Self {
        let pool = Rc::new(Pool::new(proxy.limits));
        Self { proxy, pool, guests: Rc::default() }
    }

    /// Serves one request, whose head was taken from the browser.
    pub async fn serve(&self, mut client: Client, alarm: &mut Alarm, head: Head) -> Next {
        Counters::add(&self.proxy.counters.requests);
        let visit = match self.admit(&head).await {
            Ok(visit) => visit,
            Err(reply) => return finish(client, &head, reply, BytesMut::new()).await,
        };
        match self.carry(&mut client, alarm, &head, &visit).await {
            End::Passed { again: true } => Next::Request(client),
            End::Passed { again: false } => {
                client.say_farewell().await;
                Next::Nothing
            }
            End::Own(reply, unwritten) => finish(client, &head, reply, unwritten).await,
            // Without a told length, the end of the connection is the end of the answer: it must not look like one.
            End::BrokenOff if head.is_http_10() => reset(client),
            End::BrokenOff => Next::Nothing,
            End::SignedOut => reset(client),
            End::Tunnel(agreed) => {
                let (answer, app) = *agreed;
                self.tunnel(client, app, &answer, &visit).await;
                Next::Nothing
            }
        }
    }

    /// Decides whether the request may pass; otherwise the answer instead.
    async fn admit(&self, head: &Head) -> Result<Visit, Reply> {
        let proxy = &self.proxy;
        let refuse = |trouble: Trouble| trouble.reply(wants_page(head.all("accept")));
        let unreadable =
            |detail| refuse(Trouble::new(Code::MalformedBody, "The request cannot be read", detail).closing());
        let (path, body) = check_form(head).map_err(unreadable)?;
        let missing = || refuse(Trouble::no_such_app(proxy.public.portal()));
        let host = head.host().ok_or_else(missing)?;
        let key = Guests::key(host, head).filter(|_| !path.starts_with(OWN_PATHS));
        let guest = match key.as_deref().and_then(|key| self.guests.find(key)) {
            Some(guest) => guest,
            None => {
                let guest = Rc::new(self.recognise(head, host, &path).await?);
                if let Some(key) = key {
                    self.guests.remember(key, &guest);
                }
                guest
            }
        };
        check_origin(proxy, head, &guest.app, &guest.host).map_err(refuse)?;
        if !guest.visitor.may_reach(&guest.app.user) {
            return Err(missing());
        }
        let target = proxy.routes.find(&guest.name).ok_or_else(missing)?;
        let Some(permit) = Permit::take(proxy, target.node) else {
            let detail = "This node has too many requests open. Try again in a moment.";
            return Err(refuse(Trouble::new(Code::Unavailable, "Too much at once", detail)));
        };
        Ok(Visit { guest, target, path, body, _permit: permit })
    }

    /// Finds out who asks for which app; otherwise the answer instead.
    async fn recognise(&self, head: &Head, host: &str, path: &str) -> Result<Guest, Reply> {
        let proxy = &self.proxy;
        let refuse = |trouble: Trouble| trouble.reply(wants_page(head.all("accept")));
        let missing = || refuse(Trouble::no_such_app(proxy.public.portal()));
        let host = host.to_ascii_lowercase();
        let app = proxy.public.app_of(&host).ok_or_else(missing)?;
        let (before, query) = path.split_once('?').unwrap_or((path, ""));
        if before == sso::REDEEM_PATH {
            return Err(sso::redeem(proxy, head, query, &app).await);
        }
        if before.starts_with(OWN_PATHS) {
            return Err(missing());
        }
        match visitor::at_app(proxy, head, &app).await {
            Ok(Some(visitor)) => Ok(Guest::new(app, host, visitor)),
            Ok(None) => Err(sso::ask_to_sign_in(proxy, head, path, &app)),
            Err(error) => {
                visitor::log_failure(&error);
                Err(refuse(Trouble::unavailable()))
            }
        }
    }

    /// Carries request and answer. An app may close a kept connection at the very moment it is used: what changes nothing
    /// is then sent on a fresh one.
    async fn carry(&self, client: &mut Client, alarm: &mut Alarm, head: &Head, visit: &Visit) -> End {
        let repeatable = head.is_safe() && visit.body.is_over();
        let key = PoolKey {
            session: visit.guest.visitor.session().clone(),
            node: visit.target.node,
            port: visit.guest.app.port.get(),
        };
        if !head.is_upgrade() {
            let unused = if repeatable { self.proxy.limits.keep } else { FRESH };
            if let Some(app) = self.pool.take(&key, unused) {
                let end = self.exchange((client, app), alarm, head, visit, &key).await;
                match end {
                    Err(ExchangeError::NoAnswer(_)) if repeatable => {}
                    end => return end.unwrap_or_else(|error| self.failed(head, visit, &error)),
                }
            }
        }
        let dialled = tokio::select! {
            dialled = upstream::dial(&self.proxy, &visit.target, key.port) => dialled,
            () = visit.guest.visitor.ended().wait() => return End::SignedOut,
        };
        let stream = match dialled {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(node = %visit.target.node, port = key.port, %error, "an app cannot be reached");
                let trouble = Trouble::unreachable(&error, &visit.guest.app, self.proxy.public.portal());
                return End::Own(in_place_of_answer(trouble, head), BytesMut::new());
            }
        };
        let end = self.exchange((client, Connection::new(stream)), alarm, head, visit, &key).await;
        end.unwrap_or_else(|error| self.failed(head, visit, &error))
    }

    /// One try, on one connection.
    async fn exchange(
        &self,
        (client, mut app): (&mut Client, Connection),
        alarm: &mut Alarm,
        head: &Head,
        visit: &Visit,
        key: &PoolKey,
    ) -> Result<End, ExchangeError> {
        let visitor = &visit.guest.visitor;
        let request = outgoing(&self.proxy, head, visit, client.address());
        let expects = head.text("expect").is_some_and(|what| what.eq_ignore_ascii_case("100-continue"));
        let mut exchange = Exchange::new((client, &mut app), Asked::by(head), (request, visit.body), expects);
        let mut ended = std::pin::pin!(visitor.ended().wait());
        let idle = self.proxy.limits.idle;
        let mut look = Instant::now() + LOOK;
        let done = poll_fn(|cx| {
            if let Poll::Ready(done) = exchange.poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if ended.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(Cut::SignedOut));
            }
            loop {
                let until = exchange.last_moved() + idle;
                if alarm.poll_at(cx, until.min(look)).is_pending() {
                    return Poll::Pending;
                }
                if Instant::now() >= until {
                    return Poll::Ready(Err(Cut::Idle));
                }
                if exchange.client().has_left() {
                    return Poll::Ready(Err(Cut::Left));
                }
                look = Instant::now() + LOOK;
            }
        })
        .await;
        let begun = exchange.has_begun();
        Ok(match done {
            Ok(Ok(Done::Answered)) => {
                let (app_keeps, client_keeps) = exchange.keeps();
                if app_keeps {
                    self.pool.put(key.clone(), app, visitor.ended().clone());
                }
                End::Passed { again: client_keeps && !head.is_upgrade() }
            }
            Ok(Ok(Done::Switched(answer))) if head.is_upgrade() && answer.agrees_to_websocket() => {
                End::Tunnel(Box::new((answer, app)))
            }
            Ok(Ok(Done::Switched(_))) => {
                let detail = if head.is_upgrade() {
                    "The app did not agree to the WebSocket in a valid way."
                } else {
                    "The app changed the protocol without being asked to."
                };
                let trouble = Trouble::new(Code::BadGateway, "The app broke off", detail).closing();
                End::Own(in_place_of_answer(trouble, head), exchange.into_unwritten())
            }
            Ok(Err(error)) if !begun => match error {
                ExchangeError::NoAnswer(_) => return Err(error),
                error => match self.failed(head, visit, &error) {
                    End::Own(reply, _) => End::Own(reply, exchange.into_unwritten()),
                    end => end,
                },
            },
            Ok(Err(_)) | Err(Cut::Left) => End::BrokenOff,
            Err(Cut::SignedOut) => End::SignedOut,
            Err(Cut::Idle) if begun => End::BrokenOff,
            Err(Cut::Idle) => {
                let detail = "The app took the request but did not begin to answer in time.";
                let trouble = Trouble::new(Code::BadGateway, "The app does not answer", detail).closing();
                End::Own(in_place_of_answer(trouble, head), exchange.into_unwritten())
            }
        })
    }

    /// What the browser is told where there is no answer.
    fn failed(&self, head: &Head, visit: &Visit, error: &ExchangeError) -> End {
        let trouble = match error {
            ExchangeError::Left | ExchangeError::BrokenOff => return End::BrokenOff,
            ExchangeError::Request(_) => {
                Trouble::new(Code::MalformedBody, "The request cannot be read", "The chunks of its body are none.")
            }
            ExchangeError::NoAnswer(_) | ExchangeError::Unreadable(_) => {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::info!(node = %visit.target.node, port = visit.guest.app.port, %error, cause, "no answer of an app");
                Trouble::new(
                    Code::BadGateway,
                    "The app broke off",
                    "The app closed the connection, or answered something that is not HTTP, before its answer began.",
                )
            }
        };
        End::Own(in_place_of_answer(trouble, head), BytesMut::new())
    }

    /// Both sides have agreed: from here on bytes.
    async fn tunnel(&self, mut client: Client, app: Connection, answer: &AnswerHead, visit: &Visit) {
        if client.write_all(&exchange::switching(answer)).await.is_ok() {
            // Its own place in memory: a tunnel lives long, and all else of the request is over.
            Box::pin(tunnel::run(&self.proxy, tunnel::Ends { client, app }, &visit.guest.visitor)).await;
        }
    }
}

/// Why an exchange is cut off.
enum Cut {
    SignedOut,
    Left,
    Idle,
}

fn reset(client: Client) -> Next {
    client.reset();
    Next::Nothing
}

/// Only a page is loaded again by itself: what a form sent is not repeated.
fn in_place_of_answer(mut trouble: Trouble, head: &Head) -> Reply {
    if *head.method() != Method::GET {
        trouble.retry_after = None;
    }
    trouble.reply(wants_page(head.all("accept")))
}

/// Writes an answer of our own. A body of the request that was not read has no taker, and ends the connection.
pub async fn finish(mut client: Client, head: &Head, reply: Reply, mut out: BytesMut) -> Next {
    let unread = !matches!(head.body(), Ok(body) if body.is_over()) || head.is_upgrade();
    let keep = head.keeps() && !reply.close && !unread;
    put_reply(&mut out, &reply, *head.method() == Method::HEAD, keep.then_some(head.is_http_10()));
    let written = client.write_all(&out).await;
    if keep && written.is_ok() {
        return Next::Request(client);
    }
    client.say_farewell().await;
    Next::Nothing
}

/// Appends an answer of our own. `kept` as for [`exchange::put_connection`].
pub fn put_reply(out: &mut BytesMut, reply: &Reply, head_only: bool, kept: Option<bool>) {
    exchange::put_status(out, reply.status);
    for (name, value) in &reply.fields {
        put_field(out, name.as_bytes(), value.as_bytes());
    }
    date::with(|now| put_field(out, b"date", now.as_bytes()));
    put_field(out, b"content-length", reply.body.len().to_string().as_bytes());
    exchange::put_connection(out, kept);
    out.extend_from_slice(b"\r\n");
    if !head_only {
        out.extend_from_slice(reply.body.as_bytes());
    }
}

/// The form of the request itself: nothing that two readers could read in two ways. Its path, and where its body ends.
fn check_form(head: &Head) -> Result<(String, Rest), &'static str> {
    if matches!(*head.method(), Method::CONNECT | Method::TRACE) {
        return Err("This method is not passed to apps.");
    }
    let path = head.path_and_query().ok_or("The request target is not a path.")?;
    if path.contains('#') {
        return Err("The request target has a fragment.");
    }
    let host = head.all("host").next();
    if let (Some(authority), Some(host)) = (head.authority(), host)
        && !host.eq_ignore_ascii_case(authority.as_bytes())
    {
        return Err("The request target and Host name different hosts.");
    }
    let body = head.body().map_err(|_| "The length of the body is ambiguous.")?;
    if head.names_websocket() && !body.is_over() {
        return Err("A request to upgrade has no body.");
    }
    Ok((path.into_owned(), body))
}

/// Keeps other people's pages from using the visitor's cookie: apps are same-site to each other, so `SameSite` does not.
///
/// Upgrades need exactly their own origin. Other requests that change something may also come from another app of the
/// same owner, and what another site embeds without saying its origin is refused.
fn check_origin(proxy: &Proxy, head: &Head, app: &AppAddress, host: &str) -> Result<(), Trouble> {
    let refused = || {
        Err(Trouble::new(
            Code::NotAllowed,
            "Another site asked for this",
            "The request comes from a page of another site. Open the app itself.",
        ))
    };
    let origin = head.text("origin");
    let is_own = |origin: &str| {
        origin.strip_prefix(proxy.public.scheme()).and_then(|rest| rest.strip_prefix("://")) == Some(host)
    };
    if head.is_upgrade() {
        return if origin.is_some_and(is_own) { Ok(()) } else { refused() };
    }
    let friendly =
        |origin: &str| is_own(origin) || proxy.public.app_of_origin(origin).is_some_and(|other| other.user == app.user);
    if let Some(origin) = origin {
        return if friendly(origin) || (head.is_safe() && is_navigation(head)) { Ok(()) } else { refused() };
    }
    let foreign = matches!(head.text("sec-fetch-site"), Some("same-site" | "cross-site"));
    let framed = matches!(head.text("sec-fetch-dest"), Some("iframe" | "frame" | "embed" | "object"));
    if foreign && (framed || !(head.is_safe() && is_navigation(head))) {
        return refused();
    }
    Ok(())
}

/// A browser that opens a page, as far as it tells.
pub(super) fn is_navigation(head: &Head) -> bool {
    match head.text("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => wants_page(head.all("accept")),
    }
}

/// The head of the request as the app gets it. Each part was checked by what read it: none holds an end of a line.
fn outgoing(proxy: &Proxy, head: &Head, visit: &Visit, client: Option<&str>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    for part in [head.method().as_str(), " ", &visit.path, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let forwarded = Forwarded { client, scheme: proxy.public.scheme(), host: &visit.guest.host };
    headers::to_app(head.fields(), &forwarded, |name, value| put_field(&mut out, name, value));
    if head.is_upgrade() {
        put_field(&mut out, b"connection", b"Upgrade");
        put_field(&mut out, b"upgrade", b"websocket");
    }
    match visit.body {
        Rest::Chunked(_) => put_field(&mut out, b"transfer-encoding", b"chunked"),
        // An app that expects a body of such a request must not wait for one.
        Rest::Length(0) if head.is_safe() => {}
        Rest::Length(length) => put_field(&mut out, b"content-length", length.to_string().as_bytes()),
        Rest::UntilClose => {}
    }
    out.extend_from_slice(b"\r\n");
    out
}
