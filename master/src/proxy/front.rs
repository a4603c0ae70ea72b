//! The public port: reads the head of each request, serves those for apps, and lends the connection to the portal's server
//! for the others.
//!
//! Apps are served by our own code because that is what most bytes and requests are for, and a framework in front costs as
//! much of the processor as all else together (see `docs/adr/0015-own-front-for-apps.md`). The portal, the API and
//! terminals are served by actix-web.

use std::future::poll_fn;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_http::HttpService;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, fn_factory, fn_service, map_config,
};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, Server, ServiceResponse};
use bytes::{Buf, BytesMut};
use docklet_types::problem::Code;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Proxy;
use super::apps::{self, Apps, Next};
use super::client::{Alarm, Client, ROOM};
use super::pages::Trouble;
use super::portal::PortalStream;
use super::wire::request::{Head, HeadError};

/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(15);
/// A connection without a request is kept for so long.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// For a client of the portal to close in turn.
const CLOSE: Duration = Duration::from_secs(1);
/// Open streams and sockets must not hold up a stop for longer, in seconds.
const STOP: u64 = 2;

/// Serves on a port that is already bound, with so many threads. `portal` makes, for each of them, what serves all that is
/// not for apps.
///
/// # Errors
/// The listener cannot be used.
pub fn serve<I, S, B>(
    proxy: Arc<Proxy>,
    listener: TcpListener,
    threads: NonZeroUsize,
    portal: impl Fn() -> I + Send + Clone + 'static,
) -> std::io::Result<Server>
where
    I: IntoServiceFactory<S, actix_http::Request>,
    S: ServiceFactory<actix_http::Request, Config = AppConfig, Response = ServiceResponse<B>, Error = actix_web::Error>
        + 'static,
    S::InitError: std::fmt::Debug,
    B: MessageBody + 'static,
{
    let server = Server::build().workers(threads.get()).shutdown_timeout(STOP).disable_signals();
    let stopping = server.graceful_shutdown_signal();
    let server = server.listen("docklet", listener, move || {
        let (stopping, ours) = (stopping.clone(), stopping.clone());
        let portal = portal().into_factory().map_err(|error| error.error_response());
        let http = HttpService::build()
            .graceful_shutdown_signal(move || {
                let stopping = stopping.clone();
                async move { stopping.notified().await }
            })
            .keep_alive(KEEP_ALIVE)
            .client_request_timeout(HEAD)
            .client_disconnect_timeout(CLOSE)
            // Terminals end connections whose reader takes nothing.
            .on_connect_ext(|stream: &PortalStream, data| {
                data.insert(stream.handle());
            })
            .h1(map_config(portal, |()| AppConfig::default()));
        let proxy = Arc::clone(&proxy);
        fn_factory(move || {
            let http = http.new_service(());
            let apps = Rc::new(Apps::new(Arc::clone(&proxy)));
            let stopping = ours.clone();
            async move {
                let http = Rc::new(http.await?);
                Ok::<_, ()>(fn_service(move |stream: TcpStream| {
                    let (apps, http, stopping) = (Rc::clone(&apps), Rc::clone(&http), stopping.clone());
                    async move {
                        connection(&apps, &*http, stream, stopping.notified()).await;
                        Ok::<_, ()>(())
                    }
                }))
            }
        })
    })?;
    Ok(server.run())
}

/// Serves one connection to its end. Once the server is `stopping` none is kept without a request.
async fn connection<H>(apps: &Apps, http: &H, stream: TcpStream, stopping: impl Future<Output = ()>)
where
    H: Service<(PortalStream, Option<std::net::SocketAddr>)>,
    H::Error: std::fmt::Display,
{
    let peer = stream.peer_addr().ok();
    let (mut client, mut alarm) = (Client::new(stream), Alarm::new());
    let mut stopping = std::pin::pin!(stopping);
    let mut stops = false;
    // One that was just opened has something to say.
    let mut patience = HEAD;
    loop {
        client.shrink();
        let mut waiting = Waiting { since: Instant::now(), patience };
        let next = poll_fn(|cx| {
            let next = poll_head(cx, &mut client, &mut alarm, &mut waiting);
            stops = stops || (next.is_pending() && stopping.as_mut().poll(cx).is_ready());
            if stops && client.buffer.is_empty() { Poll::Ready(Incoming::Nothing) } else { next }
        })
        .await;
        client = match next {
            Incoming::Head(size, head) if apps.proxy.is_for_apps(&head) => {
                client.buffer.advance(size);
                match apps.serve(client, &mut alarm, head).await {
                    Next::Request(client) => client,
                    Next::Nothing => return,
                }
            }
            Incoming::Head(..) => {
                let (stream, lent) = PortalStream::lend(client, &apps.proxy);
                if poll_fn(|cx| http.poll_ready(cx)).await.is_err() {
                    return;
                }
                // Its own place in memory: it is as large as all else together.
                if let Err(error) = Box::pin(http.call((stream, peer))).await {
                    tracing::debug!(%error, "a connection to the portal broke");
                    return;
                }
                match lent.take_back() {
                    Some(client) => client,
                    None => return,
                }
            }
            Incoming::Unreadable(trouble) => return refuse(client, &trouble).await,
            Incoming::Nothing => return,
        };
        patience = KEEP_ALIVE;
    }
}

/// What a connection brings next.
enum Incoming {
    /// A head, which lies at the front of the buffer and is so long.
    Head(usize, Head),
    Unreadable(Trouble),
    Nothing,
}

/// Waits for the next head: for its first byte as long as told, for the others as long as [`HEAD`].
fn poll_head(cx: &mut Context<'_>, client: &mut Client, alarm: &mut Alarm, waiting: &mut Waiting) -> Poll<Incoming> {
    loop {
        let trouble = match Head::read(&client.buffer) {
            Ok(Some((size, head))) => return Poll::Ready(Incoming::Head(size, head)),
            Ok(None) => None,
            Err(HeadError::NotHttp) => Some("This is not a request of HTTP/1.1."),
            Err(HeadError::TooLong) => Some("The request's head is longer than 64 KiB, or has more than 100 lines."),
        };
        if let Some(detail) = trouble {
            let trouble = Trouble::new(Code::MalformedBody, "The request cannot be read", detail);
            return Poll::Ready(Incoming::Unreadable(trouble));
        }
        if !client.buffer.is_empty() && waiting.patience != HEAD {
            *waiting = Waiting { since: Instant::now(), patience: HEAD };
        }
        match client.poll_more(cx, ROOM) {
            Poll::Ready(Ok(1..)) => {}
            Poll::Ready(_) => return Poll::Ready(Incoming::Nothing),
            Poll::Pending if alarm.poll_at(cx, waiting.since + waiting.patience).is_pending() => return Poll::Pending,
            Poll::Pending if client.buffer.is_empty() => return Poll::Ready(Incoming::Nothing),
            Poll::Pending => {
                let detail = "The request's head did not come in time.";
                return Poll::Ready(Incoming::Unreadable(Trouble::new(Code::Timeout, "Too slow", detail)));
            }
        }
    }
}

/// What a client is waited for.
struct Waiting {
    since: Instant,
    patience: Duration,
}

/// Answers what is no request. Nothing can follow it.
async fn refuse(mut client: Client, trouble: &Trouble) {
    let mut out = BytesMut::new();
    apps::put_reply(&mut out, &trouble.reply(false), false, None);
    if client.write_all(&out).await.is_ok() {
        client.say_farewell().await;
    }
}
