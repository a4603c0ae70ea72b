//! Large bodies in both directions, and a reader that takes next to nothing: how fast, and with how much memory.

use serde::Serialize;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::{Head, HeadError};
use super::site::{Door, Way};
use super::usage::Peak;

const PIECE: usize = 256 * 1024;
/// A transfer may take so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// The slow reader takes one byte a second, for so long.
const SLOW: u32 = 5;

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("the transfer broke off")]
    Broken(#[source] io::Error),
    #[error("there was no answer")]
    Head(#[from] HeadError),
    #[error("the answer was {0}")]
    Status(u16),
    #[error("the transfer took longer than {} s", PATIENCE.as_secs())]
    TimedOut,
}

/// Transfers through one side.
#[derive(Debug, Clone, Serialize)]
pub struct Bodies {
    pub down_mib_s: f64,
    pub up_mib_s: f64,
    /// By how much the proxy's resident memory was higher at its highest than before, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<Memory>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    pub down: f64,
    pub up: f64,
    pub slow_reader: f64,
}

/// `pid` is the process whose memory is looked at.
pub async fn measure(way: &Way, door: &Door, mib: usize, pid: Option<u32>) -> Result<Bodies, BodyError> {
    let peak = |since: &Option<Peak>| since.as_ref().map(Peak::more_mib).unwrap_or_default();
    let start = Peak::since_now;
    let (before, began) = (pid.map(start), Instant::now());
    timeout(PATIENCE, down(way, door, mib << 20)).await.map_err(|_| BodyError::TimedOut)??;
    let (down_s, down_mib) = (began.elapsed().as_secs_f64(), peak(&before));
    let (before, began) = (pid.map(start), Instant::now());
    timeout(PATIENCE, up(way, door, mib << 20)).await.map_err(|_| BodyError::TimedOut)??;
    let (up_s, up_mib) = (began.elapsed().as_secs_f64(), peak(&before));
    let before = pid.map(start);
    if pid.is_some() {
        slow(way, door, mib << 20).await?;
    }
    let rate = |seconds: f64| (mib as f64 / seconds).round();
    Ok(Bodies {
        down_mib_s: rate(down_s),
        up_mib_s: rate(up_s),
        memory_mib: pid.map(|_| Memory { down: down_mib, up: up_mib, slow_reader: peak(&before) }),
    })
}

async fn ask(way: &Way, request: &str) -> Result<TcpStream, BodyError> {
    let mut stream = way.connect().await.map_err(BodyError::Connect)?;
    stream.write_all(request.as_bytes()).await.map_err(BodyError::Broken)?;
    Ok(stream)
}

/// Reads an answer's head; bytes of its body that came with it, and those that it has.
async fn answer(stream: &mut TcpStream) -> Result<(usize, usize), BodyError> {
    let mut buffer = Vec::with_capacity(4096);
    let head = Head::read(stream, &mut buffer).await?.ok_or(HeadError::Unreadable)?;
    match head.status() {
        200 => Ok((buffer.len() - head.size, head.length.unwrap_or(0))),
        other => Err(BodyError::Status(other)),
    }
}

fn get(door: &Door, bytes: usize) -> String {
    format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\n\r\n", door.host, door.cookie)
}

async fn down(way: &Way, door: &Door, bytes: usize) -> Result<(), BodyError> {
    let mut stream = ask(way, &get(door, bytes)).await?;
    let (mut have, whole) = answer(&mut stream).await?;
    let mut piece = vec![0; PIECE];
    while have < whole.max(bytes) {
        match stream.read(&mut piece).await.map_err(BodyError::Broken)? {
            0 => return Err(BodyError::Broken(io::ErrorKind::UnexpectedEof.into())),
            n => have += n,
        }
    }
    Ok(())
}

async fn up(way: &Way, door: &Door, bytes: usize) -> Result<(), BodyError> {
    let request = format!(
        "POST /sink HTTP/1.1\r\nHost: {0}\r\nCookie: {1}\r\nOrigin: http://{0}\r\nContent-Length: {bytes}\r\n\r\n",
        door.host, door.cookie
    );
    let mut stream = ask(way, &request).await?;
    let piece = vec![b'x'; PIECE];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE);
        stream.write_all(&piece[..now]).await.map_err(BodyError::Broken)?;
        left -= now;
    }
    answer(&mut stream).await.map(drop)
}

/// Takes a byte a second for a while and leaves.
async fn slow(way: &Way, door: &Door, bytes: usize) -> Result<(), BodyError> {
    let mut stream = ask(way, &get(door, bytes)).await?;
    answer(&mut stream).await?;
    for _ in 0..SLOW {
        stream.read_u8().await.map_err(BodyError::Broken)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}
