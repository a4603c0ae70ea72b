//! A client that sends exactly what it is told and shows exactly what came back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Reads `HTTP/1.1` answers: the head, then whatever follows as it is on the wire.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        let end = raw.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut reply = Self { status, headers, body: raw[end + 4..].to_vec() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = unchunk(&reply.body);
        }
        Some(reply)
    }
}

fn unchunk(mut raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = raw.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        out.extend_from_slice(&raw[end + 2..end + 2 + size]);
        raw = &raw[end + 4 + size..];
    }
    out
}

/// One request on a connection of its own.
pub async fn exchange(
    at: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    if !body.is_empty() {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let raw = send_raw(at, &[head.as_bytes(), body].concat()).await;
    Reply::parse(&raw).unwrap_or_else(|| panic!("no answer but {:?}", String::from_utf8_lossy(&raw)))
}

/// Sends bytes and reads until the other side closes.
pub async fn send_raw(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut out = Vec::new();
    // A reset after the answer is an end as well.
    let _end = timeout(PATIENCE, stream.read_to_end(&mut out)).await.expect("the other side did not close");
    out
}

/// Reads one answer's head; what was read beyond it comes with it.
pub async fn read_head(stream: &mut TcpStream) -> Reply {
    let mut raw = Vec::new();
    while !raw.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let n = timeout(PATIENCE, stream.read(&mut piece)).await.expect("no answer in time").unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&raw));
        raw.extend_from_slice(&piece[..n]);
    }
    Reply::parse(&raw).unwrap()
}

/// The handshake of a WebSocket.
pub fn handshake(host: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    head
}

/// Returns once the other side has closed, reading what comes; whether that was in time.
pub async fn closes_within(stream: &mut TcpStream, within: Duration) -> bool {
    timeout(within, async {
        let mut piece = vec![0; 64 * 1024];
        while let Ok(1..) = stream.read(&mut piece).await {}
    })
    .await
    .is_ok()
}
