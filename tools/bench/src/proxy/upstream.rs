//! `docklet-bench upstream`, hidden: what runs in the node behind every proxy. It does as little as can be, so that the
//! proxies are what is measured.
//!
//! | request | answer |
//! |---|---|
//! | `GET /small` | [`SMALL`] bytes |
//! | `GET /bytes/N` | N bytes |
//! | `POST /sink` | takes a body of a told length, then answers with that length |
//! | `GET /websocket` | a WebSocket that sends every message back |

use futures::{SinkExt as _, StreamExt as _};
use std::io;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::http::{Head, HeadError};

/// Bytes of the small file.
pub const SMALL: usize = 1024;
/// Bytes read or written at once.
const PIECE: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    port: u16,
}

/// Serves until it is killed.
pub async fn run(options: &Options) -> io::Result<()> {
    super::usage::allow_many_sockets();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        // A connection that breaks off concerns nobody: its client says so.
        tokio::spawn(async move { drop(serve(stream).await) });
    }
}

async fn serve(mut stream: TcpStream) -> Result<(), HeadError> {
    let small = [head(SMALL), vec![b'x'; SMALL]].concat();
    let mut buffer = Vec::with_capacity(4096);
    loop {
        let Some(head) = Head::read(&mut stream, &mut buffer).await? else { return Ok(()) };
        let (length, path) = (head.length.unwrap_or(0), head.target());
        buffer.drain(..head.size);
        if path == "/small" {
            stream.write_all(&small).await?;
        } else if let Some(Ok(bytes)) = path.strip_prefix("/bytes/").map(str::parse) {
            send(&mut stream, bytes).await?;
        } else if path == "/sink" {
            take(&mut stream, &mut buffer, length).await?;
            let told = length.to_string();
            stream.write_all(&[self::head(told.len()), told.into_bytes()].concat()).await?;
        } else if let Some(key) = head.field("sec-websocket-key").filter(|_| path == "/websocket") {
            return Ok(echo(stream, &derive_accept_key(key.as_bytes())).await?);
        } else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?;
        }
    }
}

fn head(length: usize) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\n\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nETag: \"1\"\r\nContent-Length: {length}\r\n\r\n"
    )
    .into_bytes()
}

async fn send(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    stream.write_all(&head(bytes)).await?;
    let piece = vec![b'x'; PIECE];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE);
        stream.write_all(&piece[..now]).await?;
        left -= now;
    }
    Ok(())
}

/// Takes a body of which the beginning may be in the buffer.
async fn take(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> io::Result<()> {
    let there = buffer.len().min(length);
    buffer.drain(..there);
    let mut left = length - there;
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let limit = left.min(PIECE);
        match stream.read(&mut piece[..limit]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n,
        }
    }
    Ok(())
}

async fn echo(mut stream: TcpStream, accept: &str) -> io::Result<()> {
    let agreed = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(agreed.as_bytes()).await?;
    // Thousands of them wait at once.
    let config = WebSocketConfig::default().read_buffer_size(1024).write_buffer_size(0);
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
            break;
        }
    }
    Ok(())
}
