//! Scripted apps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What an app has seen.
#[derive(Default)]
pub struct Seen {
    pub heads: Mutex<Vec<String>>,
    pub connections: AtomicUsize,
    /// Connections that are open now.
    pub open: AtomicUsize,
    /// Bytes sent or taken in, by what the app is for.
    pub bytes: AtomicUsize,
}

impl Seen {
    pub fn requests(&self) -> usize {
        self.heads.lock().len()
    }

    pub fn last_head(&self) -> String {
        self.heads.lock().last().cloned().unwrap_or_default()
    }
}

/// Runs `serve` on every connection.
pub async fn app<F, Fut>(serve: F) -> (SocketAddr, Arc<Seen>)
where
    F: Fn(TcpStream, Arc<Seen>) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let shared = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            shared.connections.fetch_add(1, Ordering::SeqCst);
            shared.open.fetch_add(1, Ordering::SeqCst);
            let done = Arc::clone(&shared);
            let serving = serve(stream, Arc::clone(&shared));
            tokio::spawn(async move {
                serving.await;
                done.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (at, seen)
}

/// Reads a request's head; `None` at the end of the connection. What follows the head is left in the returned rest.
pub async fn read_request(stream: &mut TcpStream, rest: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&rest[..end]).into_owned();
            rest.drain(..end + 4);
            return Some(head);
        }
        let mut piece = [0; 8192];
        match stream.read(&mut piece).await {
            Ok(n @ 1..) => rest.extend_from_slice(&piece[..n]),
            _ => return None,
        }
    }
}

/// Answers every request with the same bytes and keeps the connection.
pub async fn canned(answer: &'static str) -> (SocketAddr, Arc<Seen>) {
    app(move |mut stream, seen| async move {
        let mut rest = Vec::new();
        while let Some(head) = read_request(&mut stream, &mut rest).await {
            seen.heads.lock().push(head);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\r\nok";

/// Sends `length` bytes as one answer; `bytes` counts what the kernel has taken.
pub async fn fountain(length: usize) -> (SocketAddr, Arc<Seen>) {
    app(move |mut stream, seen| async move {
        let mut rest = Vec::new();
        while let Some(head) = read_request(&mut stream, &mut rest).await {
            seen.heads.lock().push(head);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            if stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            let piece = vec![b'x'; 64 * 1024];
            let mut left = length;
            while left > 0 {
                let n = match stream.write(&piece[..left.min(piece.len())]).await {
                    Ok(n @ 1..) => n,
                    _ => return,
                };
                left -= n;
                seen.bytes.fetch_add(n, Ordering::SeqCst);
            }
        }
    })
    .await
}

/// Takes a body of a told length and answers with how much it was.
pub async fn drain() -> (SocketAddr, Arc<Seen>) {
    app(move |mut stream, seen| async move {
        let mut rest = Vec::new();
        while let Some(head) = read_request(&mut stream, &mut rest).await {
            let length: usize = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length:").map(|value| value.trim().parse().unwrap())
                })
                .unwrap_or(0);
            seen.heads.lock().push(head);
            let mut taken = rest.len();
            rest.clear();
            let mut piece = vec![0; 64 * 1024];
            while taken < length {
                match stream.read(&mut piece).await {
                    Ok(n @ 1..) => taken += n,
                    _ => return,
                }
                seen.bytes.store(taken, Ordering::SeqCst);
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{taken}", taken.to_string().len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: HSmrc0sMlYUkAGmm5OPpG2HaGWk=\r\n\r\n";

/// Agrees to a WebSocket and sends back each byte; at the end of what comes, says `bye` and closes.
pub async fn echo() -> (SocketAddr, Arc<Seen>) {
    app(move |mut stream, seen| async move {
        let mut rest = Vec::new();
        let Some(head) = read_request(&mut stream, &mut rest).await else {
            return;
        };
        seen.heads.lock().push(head);
        let mut piece = vec![0; 64 * 1024];
        if stream.write_all(&[SWITCH.as_bytes(), &rest].concat()).await.is_err() {
            return;
        }
        loop {
            match stream.read(&mut piece).await {
                Ok(0) => {
                    let _sent = stream.write_all(b"bye").await;
                    return;
                }
                Ok(n) => {
                    seen.bytes.fetch_add(n, Ordering::SeqCst);
                    if stream.write_all(&piece[..n]).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    })
    .await
}
