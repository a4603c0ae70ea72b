//! A request for an app: who asks, may they, where is it, and then bytes.

use std::collections::HashMap;
use std::error::Error as _;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::body::BodySize;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::id::NodeId;
use docklet_types::problem::Code;
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::address::{AppAddress, host_of};
use super::agent::NodeStream;
use super::body::{AnswerBody, Around, RequestBody, Source, Streaming, give_back_unread};
use super::headers::{self, Forwarded, Framing};
use super::pages::Trouble;
use super::plain;
use super::routes::RouteTarget;
use super::socket::{self, ClientSocket, Heart, Life};
use super::upstream::{self, Pool, PoolKey, Returning, UpstreamError};
use super::visitor::{self, Guest, Guests};
use super::{Counters, Proxy, sso, tunnel};

/// Paths of an app's origin that are ours.
pub(super) const OWN_PATHS: &str = "/.docklet/";

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
    fn take(proxy: &Arc<Proxy>, node: NodeId) -> Option<Rc<Self>> {
        let mut open = proxy.open.open.lock();
        let count = open.entry(node).or_default();
        if *count >= proxy.limits.per_node {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Rc::new(Self { proxy: Arc::clone(proxy), node }))
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

type Answer = HttpResponse<AnswerBody>;

fn own(response: HttpResponse) -> Answer {
    response.map_body(|_, body| AnswerBody::Own(body))
}

/// What a request for an app is about, once all of it was checked.
struct Visit {
    guest: Rc<Guest>,
    target: RouteTarget,
    permit: Rc<Permit>,
    framing: Framing,
}

/// Everything under the apps' host names.
pub async fn handle(request: HttpRequest, payload: web::Payload, proxy: web::Data<Proxy>) -> Answer {
    let proxy = proxy.into_inner();
    Counters::add(&proxy.counters.requests);
    let visit = match admit(&proxy, &request).await {
        Ok(visit) => visit,
        Err(answer) => return own(answer),
    };
    if is_upgrade(request.headers()) {
        return upgrade(&proxy, &request, payload, visit).await;
    }
    forward(&proxy, &request, payload, visit).await
}

/// Decides whether the request may pass; otherwise the answer instead.
async fn admit(proxy: &Arc<Proxy>, request: &HttpRequest) -> Result<Visit, HttpResponse> {
    let headers = request.headers();
    let refuse = |trouble: Trouble| trouble.answer(headers);
    let framing = check_form(request)
        .map_err(|detail| refuse(Trouble::new(Code::MalformedBody, "The request cannot be read", detail).closing()))?;
    let missing = || refuse(Trouble::no_such_app(proxy.public.portal()));
    let host = host_of(request.head()).ok_or_else(missing)?;
    let guests = request.app_data::<Rc<Guests>>();
    let key = guests.and_then(|_| Guests::key(host, headers)).filter(|_| !request.uri().path().starts_with(OWN_PATHS));
    let known = guests.zip(key.as_deref()).and_then(|(guests, key)| guests.find(key));
    let guest = match known {
        Some(guest) => guest,
        None => {
            let guest = Rc::new(recognise(proxy, request, host).await?);
            if let (Some(guests), Some(key)) = (guests, key) {
                guests.remember(key, &guest);
            }
            guest
        }
    };
    check_origin(proxy, request, &guest.app, &guest.host).map_err(refuse)?;
    if !guest.visitor.may_reach(&guest.app.user) {
        return Err(missing());
    }
    let target = proxy.routes.find(&guest.name).ok_or_else(missing)?;
    let Some(permit) = Permit::take(proxy, target.node) else {
        let detail = "This node has too many requests open. Try again in a moment.";
        return Err(refuse(Trouble::new(Code::Unavailable, "Too much at once", detail)));
    };
    Ok(Visit { guest, target, permit, framing })
}

/// Finds out who asks for which app; otherwise the answer instead.
async fn recognise(proxy: &Arc<Proxy>, request: &HttpRequest, host: &str) -> Result<Guest, HttpResponse> {
    let headers = request.headers();
    let refuse = |trouble: Trouble| trouble.answer(headers);
    let missing = || refuse(Trouble::no_such_app(proxy.public.portal()));
    let host = host.to_ascii_lowercase();
    let app = proxy.public.app_of(&host).ok_or_else(missing)?;
    let path = request.uri().path();
    if path == sso::REDEEM_PATH {
        return Err(sso::redeem(proxy, request, &app).await);
    }
    if path.starts_with(OWN_PATHS) {
        return Err(missing());
    }
    match visitor::at_app(proxy, headers, &app).await {
        Ok(Some(visitor)) => Ok(Guest::new(app, host, visitor)),
        Ok(None) => Err(sso::ask_to_sign_in(proxy, request, &app)),
        Err(error) => {
            visitor::log_failure(&error);
            Err(refuse(Trouble::unavailable()))
        }
    }
}

/// The form of the request itself: nothing that two readers could read in two ways.
fn check_form(request: &HttpRequest) -> Result<Framing, &'static str> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err("This method is not passed to apps.");
    }
    let uri = request.uri();
    if !uri.path().starts_with('/') {
        return Err("The request target is not a path.");
    }
    if let Some(authority) = uri.authority()
        && request
            .headers()
            .get(header::HOST)
            .is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes()))
    {
        return Err("The request target and Host name different hosts.");
    }
    let framing = headers::framing(request.headers()).map_err(|_| "The length of the body is ambiguous.")?;
    // The parser in front stops reading requests from such a connection, whatever the app answers.
    if names_websocket(request.headers()) && framing != Framing::None {
        return Err("A request to upgrade has no body.");
    }
    Ok(framing)
}

/// Keeps other people's pages from using the visitor's cookie: apps are same-site to each other, so `SameSite` does not.
///
/// Upgrades need exactly their own origin. Other requests that change something may also come from another app of the
/// same owner, and what another site embeds without saying its origin is refused.
fn check_origin(proxy: &Proxy, request: &HttpRequest, app: &AppAddress, host: &str) -> Result<(), Trouble> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("invalid"));
    let refused = || {
        Err(Trouble::new(
            Code::NotAllowed,
            "Another site asked for this",
            "The request comes from a page of another site. Open the app itself.",
        ))
    };
    let own = proxy.public.origin_of(host);
    let origin = text("origin");
    if is_upgrade(headers) {
        return if origin == Some(own.as_str()) { Ok(()) } else { refused() };
    }
    let friendly =
        |origin: &str| origin == own || proxy.public.app_of_origin(origin).is_some_and(|other| other.user == app.user);
    if let Some(origin) = origin {
        return if friendly(origin) || (is_safe(request.method()) && is_navigation(headers)) {
            Ok(())
        } else {
            refused()
        };
    }
    let foreign = matches!(text("sec-fetch-site"), Some("same-site" | "cross-site"));
    let framed = matches!(text("sec-fetch-dest"), Some("iframe" | "frame" | "embed" | "object"));
    if foreign && (framed || !(is_safe(request.method()) && is_navigation(headers))) {
        return refused();
    }
    Ok(())
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

/// A browser that opens a page, as far as it tells.
pub(super) fn is_navigation(headers: &HeaderMap) -> bool {
    match headers.get("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        None => super::pages::wants_page(headers),
    }
}

fn names_websocket(headers: &HeaderMap) -> bool {
    headers.get_all(header::UPGRADE).any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// A WebSocket's handshake. No other protocol is upgraded to.
fn is_upgrade(headers: &HeaderMap) -> bool {
    let connection = headers.get_all(header::CONNECTION).filter_map(|value| value.to_str().ok());
    names_websocket(headers)
        && connection.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
}

/// The request as the app gets it.
fn outgoing(
    proxy: &Proxy,
    request: &HttpRequest,
    visit: &Visit,
    body: RequestBody,
) -> Option<http::Request<RequestBody>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut out = http::Request::new(body);
    *out.method_mut() = http::Method::from_bytes(request.method().as_str().as_bytes()).ok()?;
    *out.uri_mut() = path.parse().ok()?;
    *out.headers_mut() = headers::map_to_app(request.headers(), &forwarded(proxy, request, visit));
    Some(out)
}

fn forwarded<'a>(proxy: &Proxy, request: &HttpRequest, visit: &'a Visit) -> Forwarded<'a> {
    Forwarded {
        client: request.peer_addr().map(|peer| peer.ip()),
        scheme: proxy.public.scheme(),
        host: &visit.guest.host,
    }
}

/// The same request without a body, as it is written to the app. Each part was checked by the library that read it: none
/// holds an end of a line.
fn plain_request(proxy: &Proxy, request: &HttpRequest, visit: &Visit) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let mut put = |parts: [&[u8]; 4]| parts.iter().for_each(|part| out.extend_from_slice(part));
    put([request.method().as_str().as_bytes(), b" ", path.as_bytes(), b" HTTP/1.1\r\n"]);
    headers::to_app(request.headers(), &forwarded(proxy, request, visit), |name, value| {
        put([name.as_bytes(), b": ", value, b"\r\n"]);
    });
    // An app that expects a body of such a request must not wait for one.
    if !is_safe(request.method()) {
        put([b"content-length: 0", b"", b"", b"\r\n"]);
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn unreadable(request: &HttpRequest) -> Answer {
    own(Trouble::new(Code::MalformedBody, "The request cannot be read", "Its address or method cannot be passed on.")
        .closing()
        .answer(request.headers()))
}

fn failed(proxy: &Proxy, request: &HttpRequest, visit: &Visit, error: &UpstreamError) -> Answer {
    let node = visit.target.node;
    let mut trouble = match error {
        UpstreamError::Access(access) => {
            tracing::info!(%node, port = visit.guest.app.port, error = %access, "an app cannot be reached");
            Trouble::unreachable(access, &visit.guest.app, proxy.public.portal())
        }
        UpstreamError::Broken(_) | UpstreamError::Unreadable(_) => {
            let cause = error.source().map(ToString::to_string);
            tracing::info!(%node, port = visit.guest.app.port, error = cause, "an app broke off before it answered");
            Trouble::new(
                Code::BadGateway,
                "The app broke off",
                "The app closed the connection, or answered something that is not HTTP, before its answer began.",
            )
        }
    };
    if *request.method() != Method::GET {
        trouble.retry_after = None;
    }
    // What the browser still sends of a body has no taker.
    trouble.close = visit.framing != Framing::None || names_websocket(request.headers());
    own(trouble.answer(request.headers()))
}

/// Returns when nobody may have, or wants, the answer any more, or nothing moves.
async fn given_up(proxy: &Proxy, request: &HttpRequest, visit: &Visit, life: &Life) -> Trouble {
    tokio::select! {
        () = visit.guest.visitor.ended().wait() => Trouble::new(Code::NotSignedIn, "Sign in first", "You have been signed out."),
        () = socket::left(life, ClientSocket::of(request)) => Trouble::new(Code::Timeout, "Nobody waits for the answer", "The connection was closed."),
        () = life.idle(proxy.limits.idle) => Trouble::new(Code::BadGateway, "The app does not answer", "The app took the request but did not begin to answer in time."),
    }
    .closing()
}

/// An ordinary request.
async fn forward(proxy: &Arc<Proxy>, request: &HttpRequest, payload: web::Payload, visit: Visit) -> Answer {
    let Some(pool) = request.app_data::<Rc<Pool>>().cloned() else {
        return unreadable(request);
    };
    // The request's own future lives as long as its connection does.
    let heart = Heart::default();
    let key = PoolKey {
        session: visit.guest.visitor.session().clone(),
        node: visit.target.node,
        port: visit.guest.app.port.get(),
    };
    let exchange = Exchange { proxy, request, visit: &visit, pool: &pool, key: &key };
    let plain = visit.framing == Framing::None;
    let body = RequestBody::new(visit.framing, payload.into_inner(), heart.life());
    let answered = async {
        if plain {
            return exchange.run_plain().await.map(Some);
        }
        match outgoing(proxy, request, &visit, body) {
            Some(out) => exchange.run(out).await.map(Some),
            None => Ok(None),
        }
    };
    let answered = tokio::select! {
        answered = answered => answered,
        why = given_up(proxy, request, &visit, heart.life()) => return own(why.answer(request.headers())),
    };
    match answered {
        Ok(Some((head, source))) if head.status != StatusCode::SWITCHING_PROTOCOLS => {
            let home = Returning { pool, key, ended: visit.guest.visitor.ended().clone() };
            pass_back(proxy, request, &visit, (head, source), (heart, Some(home)))
        }
        Ok(Some(_)) => {
            let trouble = Trouble::new(
                Code::BadGateway,
                "The app broke off",
                "The app changed the protocol without being asked to.",
            );
            own(trouble.answer(request.headers()))
        }
        Ok(None) => unreadable(request),
        Err(error) => failed(proxy, request, &visit, &error),
    }
}

/// The head of an answer, whoever read it.
struct AnswerHead {
    status: StatusCode,
    /// What of it is for the browser.
    fields: Vec<(HeaderName, HeaderValue)>,
    /// Where it has no body: the length that it tells, or none.
    size: BodySize,
}

impl AnswerHead {
    fn of_hyper(request: &HttpRequest, head: &http::response::Parts, body: &Incoming) -> Self {
        // A number that hyper takes, the other library takes.
        let status = StatusCode::from_u16(head.status.as_u16()).unwrap_or(StatusCode::BAD_GATEWAY);
        let told = head.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut fields = Vec::with_capacity(head.headers.len() + 1);
        headers::to_browser(
            || headers::pairs(&head.headers),
            status == StatusCode::NOT_MODIFIED,
            |name, value| {
                fields.push((name, value));
            },
        );
        Self { size: answer_size(request, status, told, body.size_hint().exact()), status, fields }
    }

    fn of_plain(request: &HttpRequest, head: plain::Head, exact: Option<u64>) -> Self {
        let size = answer_size(request, head.status, head.length, exact);
        Self { size, status: head.status, fields: head.fields }
    }
}

type Sender = hyper::client::conn::http1::SendRequest<RequestBody>;

/// Sending one request and waiting for the head of its answer.
struct Exchange<'a> {
    proxy: &'a Arc<Proxy>,
    request: &'a HttpRequest,
    visit: &'a Visit,
    pool: &'a Rc<Pool>,
    key: &'a PoolKey,
}

impl Exchange<'_> {
    /// A kept connection may be closed by the app at the very moment it is used: what was never sent goes out on a
    /// fresh one.
    async fn run(&self, out: http::Request<RequestBody>) -> Result<(AnswerHead, Source), UpstreamError> {
        let (response, sender) = match self.pool.take(self.key) {
            None => self.send_fresh(out).await?,
            Some(mut sender) => match sender.try_send_request(out).await {
                Ok(response) => (response, sender),
                Err(mut error) => match error.take_message() {
                    Some(out) => self.send_fresh(out).await?,
                    None => return Err(UpstreamError::Broken(error.into_error())),
                },
            },
        };
        let (head, body) = response.into_parts();
        let head = AnswerHead::of_hyper(self.request, &head, &body);
        Ok((head, Source::Hyper(body, Some(sender))))
    }

    /// The same for a request without a body. What changes nothing is repeatable.
    async fn run_plain(&self) -> Result<(AnswerHead, Source), UpstreamError> {
        let request = plain_request(self.proxy, self.request, self.visit);
        let head_only = *self.request.method() == Method::HEAD;
        let mut kept = None;
        if let Some(mut connection) = self.pool.take_plain(self.key) {
            match connection.ask(&request, head_only).await {
                Ok(head) => kept = Some((head, connection)),
                Err(_) if is_safe(self.request.method()) => {}
                Err(error) => return Err(UpstreamError::Unreadable(error)),
            }
        }
        let (head, connection) = match kept {
            Some(kept) => kept,
            None => {
                let stream = upstream::dial(self.proxy, &self.visit.target, self.visit.guest.app.port.get()).await?;
                let mut connection = plain::Connection::new(stream);
                let head = connection.ask(&request, head_only).await.map_err(UpstreamError::Unreadable)?;
                (head, connection)
            }
        };
        let body = plain::Body::new(connection, &head);
        Ok((AnswerHead::of_plain(self.request, head, body.exact()), Source::Plain(Some(body))))
    }

    async fn send_fresh(
        &self,
        out: http::Request<RequestBody>,
    ) -> Result<(http::Response<Incoming>, Sender), UpstreamError> {
        let stream = upstream::dial(self.proxy, &self.visit.target, self.visit.guest.app.port.get()).await?;
        let mut sender = upstream::connect(stream).await?;
        let response = sender.send_request(out).await.map_err(UpstreamError::Broken)?;
        Ok((response, sender))
    }
}

/// The app's answer as the browser gets it.
fn pass_back(
    proxy: &Proxy,
    request: &HttpRequest,
    visit: &Visit,
    (head, source): (AnswerHead, Source),
    (heart, home): (Heart, Option<Returning>),
) -> Answer {
    let mut answer = HttpResponse::build(head.status);
    for field in head.fields {
        answer.append_header(field);
    }
    if home.is_none() || names_websocket(request.headers()) {
        answer.force_close();
    }
    let size = head.size;
    if matches!(size, BodySize::None | BodySize::Sized(0)) {
        // The server never asks for such a body's end.
        give_back_unread(home, source);
        return answer.message_body(AnswerBody::Empty(size)).unwrap_or_else(|_| unreadable(request));
    }
    let around = Around {
        heart,
        visitor: visit.guest.visitor.clone(),
        socket: ClientSocket::of(request),
        idle: proxy.limits.idle,
        home,
        permit: Rc::clone(&visit.permit),
    };
    let streaming = Streaming::new(source, size, around);
    answer.message_body(AnswerBody::Streaming(Box::new(streaming))).unwrap_or_else(|_| unreadable(request))
}

/// How long the answer is, as the connection to the app read it: of two lengths that an app may tell, only one counts.
/// `told` counts where there is no body that could be read.
fn answer_size(request: &HttpRequest, status: StatusCode, told: Option<u64>, exact: Option<u64>) -> BodySize {
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return BodySize::None;
    }
    let known = if *request.method() == Method::HEAD { told } else { exact };
    known.map_or(BodySize::Stream, BodySize::Sized)
}

/// A WebSocket: nothing of it is passed on before the app has agreed.
async fn upgrade(proxy: &Arc<Proxy>, request: &HttpRequest, payload: web::Payload, visit: Visit) -> Answer {
    let Some(mut out) = outgoing(proxy, request, &visit, RequestBody::Empty) else {
        return unreadable(request);
    };
    out.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    out.headers_mut().insert(http::header::UPGRADE, http::HeaderValue::from_static("websocket"));
    let heart = Heart::default();
    let attempt = async {
        let stream = upstream::dial(proxy, &visit.target, visit.guest.app.port.get()).await?;
        let mut sender = upstream::connect(stream).await?;
        sender.send_request(out).await.map_err(UpstreamError::Broken)
    };
    let answered = tokio::select! {
        answered = attempt => answered,
        why = given_up(proxy, request, &visit, heart.life()) => return own(why.answer(request.headers())),
    };
    let response = match answered {
        Ok(response) => response,
        Err(error) => return failed(proxy, request, &visit, &error),
    };
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        let head = AnswerHead::of_hyper(request, &head, &body);
        return pass_back(proxy, request, &visit, (head, Source::Hyper(body, None)), (heart, None));
    }
    switch(proxy, request, payload, visit, response).await
}

/// Both sides have agreed: from here on bytes.
async fn switch(
    proxy: &Arc<Proxy>,
    request: &HttpRequest,
    payload: web::Payload,
    visit: Visit,
    mut response: http::Response<Incoming>,
) -> Answer {
    let agreed = response
        .headers()
        .get(http::header::UPGRADE)
        .is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && response.headers().contains_key("sec-websocket-accept");
    let stream = match hyper::upgrade::on(&mut response).await {
        Ok(upgraded) if agreed => upgraded.downcast::<TokioIo<NodeStream>>().ok(),
        _ => None,
    };
    let Some(parts) = stream else {
        let trouble = Trouble::new(
            Code::BadGateway,
            "The app broke off",
            "The app did not agree to the WebSocket in a valid way.",
        )
        .closing();
        return own(trouble.answer(request.headers()));
    };
    let mut answer = HttpResponse::build(StatusCode::SWITCHING_PROTOCOLS);
    headers::to_browser(
        || headers::pairs(response.headers()),
        false,
        |name, value| {
            answer.append_header((name, value));
        },
    );
    answer.upgrade("websocket");
    let ends = tunnel::Ends {
        stream: parts.io.into_inner(),
        first: parts.read_buf,
        payload: payload.into_inner(),
        socket: ClientSocket::of(request),
    };
    let body = tunnel::join(proxy, ends, visit.guest.visitor.clone(), visit.permit);
    answer.message_body(AnswerBody::Tunnel(body)).unwrap_or_else(|_| unreadable(request))
}
