//! WebSockets: how much later an echo comes, and what thousands of silent ones take.

use serde::Serialize;
use std::io;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;

use super::http::{Head, HeadError};
use super::site::{Door, Way};
use super::usage;
use crate::stats::Series;

/// Bytes of a message.
const MESSAGE: usize = 32;
/// Messages before the measured ones.
const WARM: usize = 200;
/// Sockets that are opened at once.
const AT_ONCE: usize = 64;
/// Anything may take so long.
const PATIENCE: Duration = Duration::from_secs(20);
/// Descriptors that a process may hold more than before: what it keeps for later.
const SPARE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("the handshake broke off")]
    Handshake(#[source] HeadError),
    #[error("the handshake was answered with {0}")]
    Refused(u16),
    #[error("the socket broke")]
    Broken(#[source] io::Error),
    #[error("the echo is not what was sent")]
    Echo,
    #[error("nothing came in {} s", PATIENCE.as_secs())]
    TimedOut,
    #[error("a socket's task failed")]
    Task(#[from] JoinError),
}

/// An open WebSocket to the upstream.
async fn open(way: &Way, door: &Door) -> Result<TcpStream, SocketError> {
    let mut stream = way.connect().await.map_err(SocketError::Connect)?;
    let request = format!(
        "GET /websocket HTTP/1.1\r\nHost: {0}\r\nCookie: {1}\r\nOrigin: http://{0}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        door.host, door.cookie
    );
    stream.write_all(request.as_bytes()).await.map_err(SocketError::Broken)?;
    let head = Head::read(&mut stream, &mut Vec::new()).await.map_err(SocketError::Handshake)?;
    match head.map_or(0, |head| head.status()) {
        101 => Ok(stream),
        status => Err(SocketError::Refused(status)),
    }
}

/// One message there and back.
async fn round_trip(stream: &mut TcpStream) -> Result<(), SocketError> {
    // A binary frame; its mask of zeros leaves the bytes as they are.
    let mut frame = [b'x'; 6 + MESSAGE];
    frame[..6].copy_from_slice(&[0x82, 0x80 | MESSAGE as u8, 0, 0, 0, 0]);
    stream.write_all(&frame).await.map_err(SocketError::Broken)?;
    let mut echo = [0; 2 + MESSAGE];
    stream.read_exact(&mut echo).await.map_err(SocketError::Broken)?;
    if echo[..2] == [0x82, MESSAGE as u8] && echo[2..] == frame[6..] { Ok(()) } else { Err(SocketError::Echo) }
}

/// Median and 99th percentile of `count` round trips on one socket, in microseconds.
pub async fn echo(way: &Way, door: &Door, count: usize) -> Result<(f64, f64), SocketError> {
    let trips = async {
        let mut stream = open(way, door).await?;
        let mut trips = Vec::with_capacity(count);
        for n in 0..WARM + count {
            let sent = Instant::now();
            round_trip(&mut stream).await?;
            if n >= WARM {
                trips.push(sent.elapsed().as_nanos() as f64 / 1e3);
            }
        }
        Ok::<_, SocketError>(trips)
    };
    let mut trips = timeout(PATIENCE, trips).await.map_err(|_| SocketError::TimedOut)??;
    trips.sort_by(f64::total_cmp);
    let at = |share: f64| trips.get((share * (trips.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN);
    Ok((at(0.5), at(0.99)))
}

/// Round trips of one side over all rounds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Echo {
    pub p50_us: Series,
    pub p99_us: Series,
}

impl Echo {
    pub fn of(rounds: &[(f64, f64)]) -> Self {
        let tenths = |n: f64| (n * 10.0).round() / 10.0;
        Self {
            p50_us: Series::of_numbers(rounds.iter().map(|r| tenths(r.0))),
            p99_us: Series::of_numbers(rounds.iter().map(|r| tenths(r.1))),
        }
    }
}

/// What open and silent WebSockets take.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    pub sockets: usize,
    pub open_s: f64,
    /// Resident memory per socket.
    pub master_kib_each: f64,
    pub worker_kib_each: f64,
    pub master_descriptors: Descriptors,
    pub worker_descriptors: Descriptors,
    /// All are closed, and the descriptors are what they were.
    pub none_left: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Descriptors {
    pub before: usize,
    pub open: usize,
    pub after: usize,
}

/// Opens so many, looks at master and worker, sees that some still echo, and closes them.
pub async fn idle(way: &Way, door: &Door, count: usize, master: u32, worker: u32) -> Result<Idle, SocketError> {
    let began = Instant::now();
    let (rss, descriptors) = ([master, worker].map(usage::rss_kib), [master, worker].map(usage::descriptors));
    let mut sockets = open_many(way, door, count).await?;
    let open_s = began.elapsed().as_secs_f64();
    let (rss_open, open) = ([master, worker].map(usage::rss_kib), [master, worker].map(usage::descriptors));
    for socket in sockets.iter_mut().step_by((count / 50).max(1)) {
        timeout(PATIENCE, round_trip(socket)).await.map_err(|_| SocketError::TimedOut)??;
    }
    drop(sockets);
    let gone = || (usage::descriptors(master), usage::descriptors(worker));
    let deadline = Instant::now() + PATIENCE;
    while gone().0 > descriptors[0] + SPARE && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = gone();
    let each = |at: usize| {
        let more = rss_open[at] as f64 - rss[at] as f64;
        (more / count as f64 * 100.0).round() / 100.0
    };
    Ok(Idle {
        sockets: count,
        open_s: (open_s * 100.0).round() / 100.0,
        master_kib_each: each(0),
        worker_kib_each: each(1),
        master_descriptors: Descriptors { before: descriptors[0], open: open[0], after: after.0 },
        worker_descriptors: Descriptors { before: descriptors[1], open: open[1], after: after.1 },
        none_left: after.0 <= descriptors[0] + SPARE && after.1 <= descriptors[1] + SPARE,
    })
}

async fn open_many(way: &Way, door: &Door, count: usize) -> Result<Vec<TcpStream>, SocketError> {
    let mut sockets = Vec::with_capacity(count);
    let mut opening = JoinSet::new();
    while sockets.len() < count {
        while opening.len() < AT_ONCE && sockets.len() + opening.len() < count {
            let (way, door) = (way.clone(), door.clone());
            opening.spawn(async move { open(&way, &door).await });
        }
        let next = timeout(PATIENCE, opening.join_next()).await.map_err(|_| SocketError::TimedOut)?;
        if let Some(opened) = next {
            sockets.push(opened??);
        }
    }
    Ok(sockets)
}
