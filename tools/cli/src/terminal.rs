//! `docklet connect`: this terminal becomes the node's.
//!
//! Keys go out as binary WebSocket messages, output comes back the same way, control messages are JSON texts. The
//! shell lives in the node, not in the connection: when the connection breaks, this connects again to the same shell.

use docklet_client::{Client, Error, TerminalAddress};
use docklet_types::problem::Problem;
use futures::{SinkExt, StreamExt};
use rustix::termios::{self, OptionalActions, Termios};
use serde::{Deserialize, Serialize};
use std::io::{self, IsTerminal, Read, Write};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message, http};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::failure::{Failure, Result};
use crate::output::Style;

/// How long a broken connection is tried again.
const RECONNECT: Duration = Duration::from_secs(60);
/// A sign of life is asked for this often, and the connection given up after three without an answer.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Columns of this terminal, if it is one.
pub fn columns() -> Option<u16> {
    size().map(|(cols, _)| cols)
}

fn size() -> Option<(u16, u16)> {
    [rustix::stdio::stdout(), rustix::stdio::stderr(), rustix::stdio::stdin()]
        .into_iter()
        .find_map(|fd| termios::tcgetwinsize(fd).ok())
        .filter(|size| size.ws_col > 0 && size.ws_row > 0)
        .map(|size| (size.ws_col, size.ws_row))
}

/// Raw mode for as long as this lives; the drop restores the terminal on every way out, panics included.
struct Raw(Termios);

impl Raw {
    fn enter() -> io::Result<Self> {
        let before = termios::tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done where this fails: the terminal has gone away.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// What the server says in text messages.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromServer {
    /// Whether the shell was there already; then a replay of its output follows.
    Attached {
        resumed: bool,
    },
    Exit {
        code: i32,
    },
    TakenOver {},
}

/// What we say in text messages.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum ToServer {
    Resize {
        cols: u16,
        rows: u16,
    },
    /// Bytes of output that are on the screen. The server sends only so much ahead of it, so that a program that prints
    /// without end stops as soon as it is interrupted.
    Ack(u64),
    Close {},
}

/// The usual screen, no reports of mouse and pasting, cursor shown, plain text.
const MODES_OFF: &str = "\x1b[?47l\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?25h\x1b[0m";

/// Output is acknowledged in steps of this many bytes.
const ACK: u64 = 16 << 10;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// How a connection ended.
enum End {
    /// The shell ended, with its exit code.
    Exit(i32),
    /// The person typed the escape.
    Left,
    /// Somebody else attached to the same session.
    TakenOver,
    /// A signal asked this program to end.
    Killed,
    /// The network or the server.
    Broken(String),
}

/// Runs the terminal until the shell ends or the person leaves. Returns the shell's exit code.
pub async fn connect(client: &Client, vcluster: &str, node: &str, session: Option<&str>, style: Style) -> Result<u8> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(Failure::usage(
            "connect needs a terminal",
            format!("to run a command without one: docklet exec {vcluster}/{node} -- COMMAND"),
        ));
    }
    let named = session.is_some();
    let session = session.map_or_else(|| uuid::Uuid::new_v4().simple().to_string(), str::to_owned);
    let address = |size: (u16, u16)| client.terminal(vcluster, node, &session, size.0, size.1);
    let mut socket = dial(&address(size().unwrap_or((80, 24)))?, client.url()).await?;
    eprintln!("{}", style.dim(&format!("{vcluster}/{node}: type ~. at the start of a line to leave")));

    let raw =
        Raw::enter().map_err(|e| Failure::local("cannot set up the terminal", "run it in a terminal of its own", e))?;
    let mut keys = keys();
    let mut escape = Escape::default();
    let end = loop {
        match talk(&mut socket, &mut keys, &mut escape, named).await {
            End::Broken(why) => {
                say(&format!("connection lost ({why}); connecting again, ~. leaves"));
                match again(client.url(), || address(size().unwrap_or((80, 24))), &mut keys, &mut escape).await {
                    Some(next) => socket = next,
                    None => break End::Broken(why),
                }
            }
            end => break end,
        }
    };
    if !matches!(end, End::Exit(_)) {
        // A program in the node that was left alone cannot take back what it asked of this terminal.
        eprint!("{MODES_OFF}");
    }
    drop(raw);
    match end {
        // Exit codes have eight bits everywhere.
        End::Exit(code) => Ok((code & 0xff) as u8),
        End::Left | End::Killed => {
            if named {
                eprintln!("\nthe shell runs on; come back with: docklet connect {vcluster}/{node} --session {session}");
            } else {
                eprintln!();
            }
            Ok(0)
        }
        End::TakenOver => Err(Failure::Local {
            what: "this terminal session was taken over from elsewhere".to_owned(),
            hint: String::new(),
            source: None,
        }),
        End::Broken(why) => Err(Failure::Local {
            what: format!("the connection to {} is lost: {why}", client.url()),
            hint: format!(
                "try again: docklet connect {vcluster}/{node}{}",
                if named { format!(" --session {session}") } else { String::new() }
            ),
            source: None,
        }),
    }
}

/// A line of our own between the node's output, with the carriage return that raw mode needs.
fn say(text: &str) {
    eprint!("\r\n[docklet: {text}]\r\n");
}

/// What the person types. A thread of its own: reading a terminal cannot be cancelled.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let mut stdin = io::stdin().lock();
        while let Ok(n @ 1..) = stdin.read(&mut buffer) {
            if send.blocking_send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receive
}

async fn dial(address: &TerminalAddress, url: &str) -> Result<Socket> {
    let wrong = || Failure::Client(Error::Address { url: url.to_owned() });
    let mut request = address.url.as_str().into_client_request().map_err(|_| wrong())?;
    if let Some(authorization) = &address.authorization {
        let value = http::HeaderValue::from_str(authorization).map_err(|_| Failure::Client(Error::Token))?;
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
    }
    match tokio_tungstenite::connect_async_with_config(request, None, true).await {
        Ok((socket, _)) => Ok(socket),
        Err(tungstenite::Error::Http(response)) => {
            let body = response.body().as_deref().unwrap_or_default();
            Err(Failure::Client(match serde_json::from_slice::<Problem>(body) {
                Ok(problem) => Error::Problem { problem: Box::new(problem), retry_after: None },
                Err(_) => Error::Unexpected {
                    url: url.to_owned(),
                    status: response.status().as_u16(),
                    body: String::from_utf8_lossy(body).chars().take(200).collect(),
                },
            }))
        }
        Err(e) => Err(Failure::Local {
            what: format!("cannot open a terminal at {url}: {e}"),
            hint: "is the server running?".to_owned(),
            source: None,
        }),
    }
}

/// Connects again until it works, the time is over, the server refuses, or the person leaves.
async fn again(
    url: &str,
    address: impl Fn() -> docklet_client::Result<TerminalAddress>,
    keys: &mut mpsc::Receiver<Vec<u8>>,
    escape: &mut Escape,
) -> Option<Socket> {
    let deadline = Instant::now() + RECONNECT;
    let mut pause = Duration::from_millis(200);
    while Instant::now() < deadline {
        let attempt = async {
            tokio::time::sleep(pause).await;
            dial(&address()?, url).await
        };
        tokio::select! {
            outcome = attempt => match outcome {
                Ok(socket) => return Some(socket),
                Err(Failure::Client(e)) if !e.is_transient() && e.code().is_some_and(|c| c.status() < 500) => return None,
                Err(_) => pause = (pause * 2).min(Duration::from_secs(3)),
            },
            typed = keys.recv() => {
                // What is typed meanwhile is lost, as it would be on any dead line.
                if typed.is_none_or(|bytes| escape.pass(&bytes).is_none()) {
                    return None;
                }
            }
        }
    }
    None
}

async fn talk(socket: &mut Socket, keys: &mut mpsc::Receiver<Vec<u8>>, escape: &mut Escape, named: bool) -> End {
    let (Ok(mut resized), Ok(mut term), Ok(mut hup)) =
        (signal(SignalKind::window_change()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return End::Broken("signals cannot be received".to_owned());
    };
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut unanswered = 0;
    let mut shown: u64 = 0;
    let broken = |e: tungstenite::Error| End::Broken(e.to_string());
    loop {
        let message = tokio::select! {
            incoming = socket.next() => {
                unanswered = 0;
                match incoming {
                    Some(Ok(Message::Binary(bytes))) => {
                        let mut out = io::stdout().lock();
                        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                            return End::Killed;
                        }
                        shown += bytes.len() as u64;
                        if shown >= ACK
                            && let Err(e) = socket.send(control(&ToServer::Ack(std::mem::take(&mut shown)))).await
                        {
                            return broken(e);
                        }
                    }
                    Some(Ok(Message::Text(text))) => match serde_json::from_str::<FromServer>(&text) {
                        Ok(FromServer::Exit { code }) => return End::Exit(code),
                        Ok(FromServer::TakenOver {}) => return End::TakenOver,
                        // The replay that follows is what is on the screen already.
                        Ok(FromServer::Attached { resumed: true }) => eprint!("\x1b[H\x1b[2J"),
                        // Newer servers may say more.
                        _ => {}
                    },
                    Some(Ok(Message::Close(frame))) => {
                        let why = frame.map(|f| f.reason.to_string()).filter(|r| !r.is_empty());
                        return End::Broken(why.unwrap_or_else(|| "closed by the server".to_owned()));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return broken(e),
                    None => return End::Broken("closed".to_owned()),
                }
                continue;
            }
            typed = keys.recv() => match typed.and_then(|bytes| escape.pass(&bytes)) {
                Some(bytes) => Message::binary(bytes),
                None => {
                    leave(socket, named).await;
                    return End::Left;
                }
            },
            _ = resized.recv() => match size() {
                Some((cols, rows)) => control(&ToServer::Resize { cols, rows }),
                None => continue,
            },
            _ = heartbeat.tick() => {
                if unanswered == 3 {
                    return End::Broken("no sign of life".to_owned());
                }
                unanswered += 1;
                Message::Ping(Vec::new().into())
            }
            _ = term.recv() => { leave(socket, named).await; return End::Killed; }
            _ = hup.recv() => { leave(socket, named).await; return End::Killed; }
        };
        if let Err(e) = socket.send(message).await {
            return broken(e);
        }
    }
}

/// A shell that nobody can come back to is ended.
async fn leave(socket: &mut Socket, named: bool) {
    let goodbye = async {
        if !named {
            let _ = socket.send(control(&ToServer::Close {})).await;
        }
        let _ = socket.close(None).await;
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), goodbye).await;
}

fn control(message: &ToServer) -> Message {
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

/// Looks for `~.` at the start of a line, as ssh does. `~~` is one `~`.
pub struct Escape {
    line_start: bool,
    tilde: bool,
}

impl Default for Escape {
    fn default() -> Self {
        Self { line_start: true, tilde: false }
    }
}

impl Escape {
    /// What is to be sent of these keys; `None` when the person leaves.
    pub fn pass(&mut self, typed: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(typed.len() + 1);
        for &key in typed {
            if std::mem::take(&mut self.tilde) {
                match key {
                    b'.' => return None,
                    b'~' => {}
                    _ => out.push(b'~'),
                }
                out.push(key);
            } else if self.line_start && key == b'~' {
                self.tilde = true;
                continue;
            } else {
                out.push(key);
            }
            self.line_start = matches!(key, b'\r' | b'\n');
        }
        Some(out)
    }
}
