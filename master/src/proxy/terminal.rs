//! A node's shell in the browser: `GET /api/v1/vclusters/{name}/nodes/{node}/terminal`, a WebSocket.
//!
//! Binary messages are bytes of the terminal. Text messages are JSON controls: `{"resize":{"cols":80,"rows":24}}`,
//! `{"ack":4096}` (bytes taken in) and `{"close":{}}` from the client; `{"attached":{"resumed":true}}`,
//! `{"exit":{"code":0}}` and `{"taken_over":{}}` from us. With `flow=ack` at most [`WINDOW`] bytes are on their way
//! unacknowledged: beyond, the shell's stream is not read, and a program that prints without end waits for its reader.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use actix_ws::{AggregatedMessage, AggregatedMessageStream, CloseCode, CloseReason, Session};
use bytes::{Bytes, BytesMut};
use docklet_types::agent::frame::{self, Control};
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::problem::Code;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Proxy;
use super::agent::{AccessError, NodeStream, ShellName, WindowSize};
use super::pages::Trouble;
use super::portal;
use super::visitor::{self, Visitor};
use crate::auth::csrf;

/// Bytes on their way to a client with `flow=ack`, at most.
pub const WINDOW: usize = 256 * 1024;
/// Bytes in one message to the client, at most. The library in between holds 32 messages.
const PIECE: usize = 8 * 1024;
/// A ping every so often; a client that says nothing at all for three of them is gone.
const PING: Duration = Duration::from_secs(30);
/// For a closing message to be taken, and once more for the client to close in turn.
const FAREWELL: Duration = Duration::from_millis(500);

#[derive(Debug, Deserialize)]
pub struct TerminalQuery {
    /// Which of the node's shells; `main` where absent.
    session: Option<String>,
    /// `ack`, or absent.
    flow: Option<String>,
    cols: Option<u16>,
    rows: Option<u16>,
    /// For administrators: whose vcluster it is.
    owner: Option<String>,
}

/// What a client says in text messages.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromClient {
    Resize { cols: u16, rows: u16 },
    Ack(u64),
    Close {},
}

/// What we say in text messages.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum ToClient {
    Attached { resumed: bool },
    Exit { code: i32 },
    TakenOver {},
}

/// Opens a shell.
pub async fn handle(
    request: HttpRequest,
    body: web::Payload,
    path: web::Path<(String, String)>,
    query: web::Query<TerminalQuery>,
    proxy: web::Data<Proxy>,
) -> HttpResponse {
    let proxy = proxy.into_inner();
    let (visitor, stream) = match open(&proxy, &request, &path, &query).await {
        Ok(opened) => opened,
        Err(trouble) => return trouble.closing().answer(request.headers()),
    };
    let (response, session, messages) = match actix_ws::handle(&request, body) {
        Ok(upgraded) => upgraded,
        Err(_) => return not_a_websocket().closing().answer(request.headers()),
    };
    let messages =
        messages.max_frame_size(frame::MAX_PAYLOAD).aggregate_continuations().max_continuation_size(frame::MAX_PAYLOAD);
    let acknowledged = query.flow.as_deref() == Some("ack");
    let connection = request.conn_data::<portal::Handle>().cloned();
    let body_gone = CancellationToken::new();
    let gone = body_gone.clone();
    actix_web::rt::spawn(async move {
        proxy.counters.terminals_open.fetch_add(1, Ordering::Relaxed);
        carry(&visitor, stream, session, messages, acknowledged).await;
        proxy.counters.terminals_open.fetch_sub(1, Ordering::Relaxed);
        // A browser that takes nothing does not take the farewell either.
        if tokio::time::timeout(FAREWELL, gone.cancelled()).await.is_err()
            && let Some(connection) = connection
        {
            connection.end();
        }
    });
    response.map_body(|_, body| Watched { body, _gone: body_gone.drop_guard() }.boxed())
}

/// A body that tells when the server is through with it.
struct Watched {
    body: BoxBody,
    _gone: DropGuard,
}

impl MessageBody for Watched {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_next(cx)
    }
}

fn not_a_websocket() -> Trouble {
    Trouble::new(Code::BadQuery, "This is a WebSocket", "A terminal is opened with a WebSocket handshake.")
}

fn invalid(detail: &'static str) -> Trouble {
    Trouble::new(Code::Invalid, "A value is not valid", detail)
}

/// Everything that can be refused is refused before the handshake, as an ordinary answer.
async fn open(
    proxy: &Proxy,
    request: &HttpRequest,
    path: &(String, String),
    query: &TerminalQuery,
) -> Result<(Visitor, NodeStream), Trouble> {
    let missing = || {
        Trouble::new(
            Code::NotFound,
            "There is no such node",
            "There is no node of that name in a vcluster of that name.",
        )
    };
    if !request.headers().get(header::UPGRADE).is_some_and(|to| to.as_bytes().eq_ignore_ascii_case(b"websocket")) {
        return Err(not_a_websocket());
    }
    let visitor = signed_in(proxy, request).await?;
    let vcluster: VclusterName = path.0.parse().map_err(|_| missing())?;
    let node: NodeName = path.1.parse().map_err(|_| missing())?;
    let owner: UserName = match &query.owner {
        Some(owner) => owner.parse().map_err(|_| missing())?,
        None => visitor.name().clone(),
    };
    if !visitor.may_reach(&owner) {
        return Err(missing());
    }
    if !matches!(query.flow.as_deref(), None | Some("ack")) {
        return Err(invalid("`flow` is `ack` or absent."));
    }
    let shell = ShellName::parse(query.session.as_deref().unwrap_or("main"))
        .ok_or_else(|| invalid("`session` has 1 to 40 characters of a-z, 0-9 and '-'."))?;
    let size = WindowSize { cols: query.cols.unwrap_or(80), rows: query.rows.unwrap_or(24) };
    if !is_plausible(size) {
        return Err(invalid("`cols` and `rows` are from 1 to 1000."));
    }
    let target = proxy.routes.find(&(owner.clone(), vcluster, node)).ok_or_else(missing)?;
    let shell = if *visitor.name() == owner { shell } else { visitors_shell(visitor.name(), &shell) };
    match proxy.access.terminal(&target, &shell, size).await {
        Ok(stream) => Ok((visitor, stream)),
        Err(error) => Err(no_shell(&error)),
    }
}

fn is_plausible(size: WindowSize) -> bool {
    (1..=1000).contains(&size.cols) && (1..=1000).contains(&size.rows)
}

/// An administrator in somebody else's node gets a shell apart, instead of taking over the owner's.
fn visitors_shell(visitor: &UserName, shell: &ShellName) -> ShellName {
    let digest = Sha256::digest(format!("{visitor}/{}", shell.as_str()));
    let name = format!("visitor-{}", &hex::encode(digest)[..32]);
    ShellName::parse(&name).unwrap_or_else(|| shell.clone())
}

fn no_shell(error: &AccessError) -> Trouble {
    match error {
        AccessError::NotRunning => Trouble::new(
            Code::WrongState,
            "The node is not running",
            "The node is stopped or still starting. Start it, then open the terminal.",
        ),
        AccessError::Failed(reason) => {
            Trouble::new(Code::BadGateway, "The shell cannot be started", reason.message.clone())
        }
        other => {
            Trouble::new(Code::BadGateway, "The node cannot be reached", format!("{other}. Try again in a moment."))
        }
    }
}

/// A program brings its token; a browser its cookie, and then only from the portal's own pages.
async fn signed_in(proxy: &Proxy, request: &HttpRequest) -> Result<Visitor, Trouble> {
    let headers = request.headers();
    let found = if headers.contains_key(header::AUTHORIZATION) {
        visitor::by_bearer(proxy, headers).await
    } else {
        let origin = headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
        if !origin.is_some_and(|origin| csrf::is_own_origin(request, &proxy.portal, origin)) {
            return Err(Trouble::new(
                Code::NotAllowed,
                "Another site asked for this",
                "A terminal opens only from the portal's own pages.",
            ));
        }
        visitor::at_portal(proxy, headers).await
    };
    match found {
        Ok(Some(visitor)) => Ok(visitor),
        Ok(None) => {
            Err(Trouble::new(Code::NotSignedIn, "Sign in first", "Sign in to the portal, then open the terminal."))
        }
        Err(error) => {
            visitor::log_failure(&error);
            Err(Trouble::unavailable())
        }
    }
}

/// How much may still be sent. One server thread owns it.
struct Credit {
    /// Absent where the client does not acknowledge.
    unacknowledged: Option<Cell<usize>>,
    freed: Notify,
}

impl Credit {
    fn new(acknowledged: bool) -> Self {
        Self { unacknowledged: acknowledged.then(|| Cell::new(0)), freed: Notify::new() }
    }

    /// Waits until something may be sent, and says how much.
    async fn available(&self) -> usize {
        let Some(unacknowledged) = &self.unacknowledged else {
            return PIECE;
        };
        loop {
            match WINDOW.saturating_sub(unacknowledged.get()) {
                0 => self.freed.notified().await,
                left => return left.min(PIECE),
            }
        }
    }

    fn sent(&self, bytes: usize) {
        if let Some(unacknowledged) = &self.unacknowledged {
            unacknowledged.set(unacknowledged.get() + bytes);
        }
    }

    fn acknowledge(&self, bytes: u64) {
        if let Some(unacknowledged) = &self.unacknowledged {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            unacknowledged.set(unacknowledged.get().saturating_sub(bytes));
            self.freed.notify_one();
        }
    }
}

/// Why a terminal's connection ends.
enum End {
    /// The shell has said why; the client was told.
    Shell,
    /// The stream of the shell broke.
    Lost,
    ClientGone,
    /// The client sent what is no message of ours.
    Nonsense(&'static str),
    SignedOut,
}

/// Carries both ways until one of them ends. The shell itself goes on without us.
async fn carry(
    visitor: &Visitor,
    stream: NodeStream,
    session: Session,
    messages: AggregatedMessageStream,
    acknowledged: bool,
) {
    let credit = Credit::new(acknowledged);
    let heard = Cell::new(Instant::now());
    let (reader, writer) = tokio::io::split(stream);
    let end = tokio::select! {
        biased;
        () = visitor.ended().wait() => End::SignedOut,
        end = output(reader, session.clone(), &credit) => end,
        end = input(writer, messages, session.clone(), &credit, &heard) => end,
        end = keep_alive(session.clone(), &heard) => end,
    };
    let reason = match end {
        End::Shell => CloseReason { code: CloseCode::Normal, description: None },
        End::ClientGone => return,
        End::Lost => CloseReason { code: CloseCode::Again, description: Some("the node cannot be reached".to_owned()) },
        End::Nonsense(what) => CloseReason { code: CloseCode::Policy, description: Some(what.to_owned()) },
        End::SignedOut => CloseReason { code: CloseCode::Policy, description: Some("signed out".to_owned()) },
    };
    let _closed = tokio::time::timeout(FAREWELL, session.close(Some(reason))).await;
}

/// From the shell to the client.
async fn output(mut reader: ReadHalf<NodeStream>, mut session: Session, credit: &Credit) -> End {
    let mut header = [0_u8; frame::HEADER];
    loop {
        // The last frame is taken in whole before the next is looked at, so that a stop in the window stops the shell.
        if reader.read_exact(&mut header).await.is_err() {
            return End::Lost;
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if length > frame::MAX_PAYLOAD {
            return End::Lost;
        }
        let ended = match header[0] {
            frame::DATA => data(&mut reader, &mut session, credit, length).await,
            frame::CONTROL => control(&mut reader, &mut session, length).await,
            _ => Some(End::Lost),
        };
        if let Some(end) = ended {
            return end;
        }
    }
}

async fn data(
    reader: &mut ReadHalf<NodeStream>,
    session: &mut Session,
    credit: &Credit,
    mut left: usize,
) -> Option<End> {
    while left > 0 {
        let mut piece = BytesMut::zeroed(credit.available().await.min(left));
        let Ok(n @ 1..) = reader.read(&mut piece).await else {
            return Some(End::Lost);
        };
        piece.truncate(n);
        left -= n;
        credit.sent(n);
        if session.binary(piece.freeze()).await.is_err() {
            return Some(End::ClientGone);
        }
    }
    None
}

async fn control(reader: &mut ReadHalf<NodeStream>, session: &mut Session, length: usize) -> Option<End> {
    let mut text = vec![0_u8; length];
    if reader.read_exact(&mut text).await.is_err() {
        return Some(End::Lost);
    }
    let (message, last) = match serde_json::from_slice(&text) {
        Ok(Control::Attached { resumed }) => (ToClient::Attached { resumed }, false),
        Ok(Control::Exit { code }) => (ToClient::Exit { code }, true),
        Ok(Control::TakenOver) => (ToClient::TakenOver {}, true),
        // What only a client says.
        Ok(Control::Resize { .. } | Control::Close) | Err(_) => return None,
    };
    let text = serde_json::to_string(&message).unwrap_or_default();
    if session.text(text).await.is_err() {
        return Some(End::ClientGone);
    }
    last.then_some(End::Shell)
}

/// From the client to the shell.
async fn input(
    mut writer: WriteHalf<NodeStream>,
    mut messages: AggregatedMessageStream,
    mut session: Session,
    credit: &Credit,
    heard: &Cell<Instant>,
) -> End {
    loop {
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(actix_ws::ProtocolError::Overflow)) => return End::Nonsense("a message is too large"),
            Some(Err(_)) | None => return End::ClientGone,
        };
        heard.set(Instant::now());
        let written = match message {
            AggregatedMessage::Binary(bytes) => write_frame(&mut writer, frame::DATA, &bytes).await,
            AggregatedMessage::Text(text) => match serde_json::from_str(&text) {
                Ok(FromClient::Ack(bytes)) => {
                    credit.acknowledge(bytes);
                    Ok(())
                }
                Ok(FromClient::Resize { cols, rows }) if is_plausible(WindowSize { cols, rows }) => {
                    write_control(&mut writer, &Control::Resize { cols, rows }).await
                }
                Ok(FromClient::Close {}) => write_control(&mut writer, &Control::Close).await,
                Ok(FromClient::Resize { .. }) | Err(_) => return End::Nonsense("a text message is no control"),
            },
            AggregatedMessage::Ping(bytes) => {
                if session.pong(&bytes).await.is_err() {
                    return End::ClientGone;
                }
                Ok(())
            }
            AggregatedMessage::Pong(_) => Ok(()),
            AggregatedMessage::Close(_) => return End::ClientGone,
        };
        // A shell that takes its time is no silent client.
        heard.set(Instant::now());
        if written.is_err() {
            // The way out of the shell says how it ended; only what was typed is lost.
            std::future::pending::<()>().await;
        }
    }
}

async fn write_control(writer: &mut WriteHalf<NodeStream>, control: &Control) -> std::io::Result<()> {
    let text = serde_json::to_vec(control).map_err(std::io::Error::other)?;
    write_frame(writer, frame::CONTROL, &Bytes::from(text)).await
}

async fn write_frame(writer: &mut WriteHalf<NodeStream>, kind: u8, payload: &Bytes) -> std::io::Result<()> {
    for piece in payload.chunks(frame::MAX_PAYLOAD) {
        let length = u32::try_from(piece.len()).map_err(std::io::Error::other)?;
        writer.write_all(&frame::header(kind, length)).await?;
        writer.write_all(piece).await?;
    }
    writer.flush().await
}

async fn keep_alive(mut session: Session, heard: &Cell<Instant>) -> End {
    loop {
        tokio::time::sleep(PING).await;
        if heard.get().elapsed() > PING * 3 || session.ping(b"").await.is_err() {
            return End::ClientGone;
        }
    }
}
