//! `docklet connect` on a pseudo-terminal against a WebSocket server that plays the node.

#![allow(clippy::unwrap_used)]

use futures::{SinkExt, StreamExt};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

/// The person's side: a terminal with `docklet connect demo/node1` in it.
struct Person {
    terminal: File,
    slave: File,
    child: Child,
    screen: mpsc::UnboundedReceiver<Vec<u8>>,
    seen: String,
}

impl Person {
    fn start(url: &str, more: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(Some(&size), None).unwrap();
        let (terminal, slave) = (File::from(master), File::from(slave));
        let child = Command::new(env!("CARGO_BIN_EXE_docklet"))
            .args(["--url", url, "--token", "t", "connect", "demo/node1"])
            .args(more)
            .stdin(Stdio::from(slave.try_clone().unwrap()))
            .stdout(Stdio::from(slave.try_clone().unwrap()))
            .stderr(Stdio::from(slave.try_clone().unwrap()))
            .spawn()
            .unwrap();
        let (send, screen) = mpsc::unbounded_channel();
        let mut reader = terminal.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if send.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { terminal, slave, child, screen, seen: String::new() }
    }

    /// Waits until the text is on the screen.
    async fn sees(&mut self, text: &str) {
        while !self.seen.contains(text) {
            self.seen.push_str(&String::from_utf8_lossy(&self.screen.recv().await.unwrap()));
        }
    }

    fn types(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON)
    }

    /// Waits for the end and returns the exit code.
    async fn ends(mut self) -> (i32, bool) {
        let (code, slave) =
            tokio::task::spawn_blocking(move || (self.child.wait().unwrap().code().unwrap(), self.slave))
                .await
                .unwrap();
        let raw = !tcgetattr(&slave).unwrap().local_flags.contains(LocalFlags::ECHO | LocalFlags::ICANON);
        (code, raw)
    }
}

/// The node's side of one connection, and what it was asked for.
async fn accept(listener: &TcpListener) -> (WebSocketStream<TcpStream>, String) {
    let (socket, _) = listener.accept().await.unwrap();
    let mut asked = String::new();
    // The callback's error type is the library's.
    #[allow(clippy::result_large_err)]
    let callback = |request: &Request, response: Response| {
        assert_eq!(request.headers()["authorization"], "Bearer t");
        asked = request.uri().to_string();
        Ok(response)
    };
    let socket = tokio_tungstenite::accept_hdr_async(socket, callback).await.unwrap();
    (socket, asked)
}

/// The next message that is not part of keeping the connection alive.
async fn next(node: &mut WebSocketStream<TcpStream>) -> Message {
    loop {
        match node.next().await.unwrap().unwrap() {
            Message::Ping(_) | Message::Pong(_) => {}
            message => return message,
        }
    }
}

async fn greet(node: &mut WebSocketStream<TcpStream>, text: &str) {
    node.send(Message::text(r#"{"attached":{"resumed":false}}"#)).await.unwrap();
    node.send(Message::binary(text.as_bytes().to_vec())).await.unwrap();
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn keys_and_output_pass_and_the_shells_exit_code_is_ours() {
    let (listener, url) = listen().await;
    let mut person = Person::start(&url, &[]);
    let (mut node, asked) = accept(&listener).await;
    assert!(asked.starts_with("/api/v1/vclusters/demo/nodes/node1/terminal?session="), "{asked}");
    assert!(asked.ends_with("flow=ack&cols=80&rows=24"), "{asked}");
    greet(&mut node, "root@node1:~# ").await;
    person.sees("root@node1:~# ").await;
    assert!(person.is_raw());
    person.types("exit\r");
    let mut typed = Vec::new();
    while !typed.ends_with(b"\r") {
        let Message::Binary(bytes) = next(&mut node).await else { panic!() };
        typed.extend_from_slice(&bytes);
    }
    assert_eq!(typed, b"exit\r");
    node.send(Message::text(r#"{"exit":{"code":3}}"#)).await.unwrap();
    assert_eq!(person.ends().await, (3, false));
}

#[tokio::test]
async fn a_new_size_is_passed_on() {
    let (listener, url) = listen().await;
    let mut person = Person::start(&url, &[]);
    let (mut node, _) = accept(&listener).await;
    greet(&mut node, "ready").await;
    person.sees("ready").await;
    let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&person.terminal, size).unwrap();
    kill(Pid::from_raw(i32::try_from(person.child.id()).unwrap()), Signal::SIGWINCH).unwrap();
    assert_eq!(next(&mut node).await, Message::text(r#"{"resize":{"cols":132,"rows":50}}"#));
    person.types("~.");
    assert_eq!(next(&mut node).await, Message::text(r#"{"close":{}}"#));
    assert_eq!(person.ends().await, (0, false));
}

#[tokio::test]
async fn a_broken_connection_is_made_again_to_the_same_shell() {
    let (listener, url) = listen().await;
    let mut person = Person::start(&url, &["--session", "work"]);
    let (mut node, first) = accept(&listener).await;
    greet(&mut node, "one").await;
    person.sees("one").await;
    drop(node);
    let (mut node, second) = accept(&listener).await;
    assert!(first.contains("session=work") && second.contains("session=work"), "{first} {second}");
    greet(&mut node, "two").await;
    person.sees("two").await;
    person.types("~.");
    // A named shell runs on: only the connection is closed.
    assert!(matches!(next(&mut node).await, Message::Close(_)));
    assert_eq!(person.ends().await, (0, false));
}

#[tokio::test]
async fn much_output_is_acknowledged() {
    let (listener, url) = listen().await;
    let mut person = Person::start(&url, &[]);
    let (mut node, _) = accept(&listener).await;
    greet(&mut node, &"x".repeat(40_000)).await;
    assert_eq!(next(&mut node).await, Message::text(r#"{"ack":40000}"#));
    node.send(Message::text(r#"{"taken_over":{}}"#)).await.unwrap();
    person.sees("taken over").await;
    assert_eq!(person.ends().await, (1, false));
}

#[tokio::test]
async fn a_signal_restores_the_terminal() {
    let (listener, url) = listen().await;
    let mut person = Person::start(&url, &[]);
    let (mut node, _) = accept(&listener).await;
    greet(&mut node, "ready").await;
    person.sees("ready").await;
    assert!(person.is_raw());
    kill(Pid::from_raw(i32::try_from(person.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(next(&mut node).await, Message::text(r#"{"close":{}}"#));
    assert_eq!(person.ends().await, (0, false));
}
