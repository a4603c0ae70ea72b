//! Requests one after the other on each of many kept connections, from one thread.
//!
//! Nothing is made per request but what the kernel asks for: on two processors the load shares them with what it measures.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::{JoinError, JoinSet, LocalSet};
use tokio::time::timeout;

use super::http;
use super::site::Way;

/// An answer may take so long.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("a connection broke")]
    Broken(#[source] io::Error),
    #[error("an answer was not 200 with {wanted} bytes but: {head}")]
    Answer { wanted: usize, head: String },
    #[error("an answer did not come in {} s", PATIENCE.as_secs())]
    TimedOut,
    #[error("a connection's task failed")]
    Task(#[from] JoinError),
}

/// What is asked for, again and again.
#[derive(Debug, Clone)]
pub struct Ask {
    pub way: Way,
    /// A whole request without a body.
    pub request: Vec<u8>,
    /// Bytes of the body that must come.
    pub wanted: usize,
}

/// One side's answers within the measured time.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Microseconds of each.
    latencies: Vec<u32>,
    pub took: Duration,
}

impl Outcome {
    pub fn requests(&self) -> usize {
        self.latencies.len()
    }

    pub fn per_second(&self) -> f64 {
        self.requests() as f64 / self.took.as_secs_f64()
    }

    /// The latency, in microseconds, that this share of the answers did not exceed.
    pub fn percentile(&mut self, share: f64) -> f64 {
        self.latencies.sort_unstable();
        let last = self.latencies.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.latencies.get(at).copied().map_or(f64::NAN, f64::from)
    }
}

/// Asks on `connections` connections: for a moment unmeasured, then for `lasts`. `edge` is called at both ends of that.
pub async fn run(ask: &Ask, connections: usize, lasts: Duration, edge: impl FnMut()) -> Result<Outcome, LoadError> {
    timeout(lasts * 2 + PATIENCE, all(ask, connections, lasts, edge)).await.map_err(|_| LoadError::TimedOut)?
}

async fn all(ask: &Ask, connections: usize, lasts: Duration, mut edge: impl FnMut()) -> Result<Outcome, LoadError> {
    let mut streams = Vec::with_capacity(connections);
    for _ in 0..connections {
        streams.push(ask.way.connect().await.map_err(LoadError::Connect)?);
    }
    let warm = lasts / 8;
    let local = LocalSet::new();
    local
        .run_until(async {
            let answers = Rc::new(RefCell::new(Answers::default()));
            let mut tasks = JoinSet::new();
            for stream in streams {
                tasks.spawn_local(client(stream, ask.clone(), Rc::clone(&answers)));
            }
            for (lasts, measured) in [(warm, true), (lasts, false)] {
                tokio::select! {
                    // They go on until they are told to stop: one that ends has failed.
                    Some(ended) = tasks.join_next() => { ended??; }
                    () = tokio::time::sleep(lasts) => {}
                }
                edge();
                answers.borrow_mut().turn(measured);
            }
            // What is under way is not counted, but must be answered well, too.
            while let Some(ended) = tasks.join_next().await {
                ended??;
            }
            Ok(answers.take().outcome)
        })
        .await
}

#[derive(Default)]
struct Answers {
    since: Option<Instant>,
    ended: bool,
    outcome: Outcome,
}

impl Answers {
    fn turn(&mut self, begins: bool) {
        if begins {
            self.since = Some(Instant::now());
        } else {
            self.outcome.took = self.since.take().map(|since| since.elapsed()).unwrap_or_default();
            self.ended = true;
        }
    }
}

async fn client(mut stream: TcpStream, ask: Ask, answers: Rc<RefCell<Answers>>) -> Result<(), LoadError> {
    let mut buffer = Vec::with_capacity(8192);
    loop {
        if answers.borrow().ended {
            return Ok(());
        }
        let asked = Instant::now();
        stream.write_all(&ask.request).await.map_err(LoadError::Broken)?;
        answer(&mut stream, &mut buffer, ask.wanted).await?;
        let mut answers = answers.borrow_mut();
        if answers.since.is_some_and(|since| since <= asked) {
            answers.outcome.latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>, wanted: usize) -> Result<(), LoadError> {
    buffer.clear();
    let mut whole = None;
    while whole.is_none_or(|whole| buffer.len() < whole) {
        if stream.read_buf(buffer).await.map_err(LoadError::Broken)? == 0 {
            return Err(LoadError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        if whole.is_none()
            && let Some(size) = http::size_of_head(buffer)
        {
            let head = &buffer[..size];
            if !head.starts_with(b"HTTP/1.1 200 ") || http::length(head) != Some(wanted) {
                return Err(LoadError::Answer { wanted, head: String::from_utf8_lossy(head).into_owned() });
            }
            whole = Some(size + wanted);
        }
    }
    Ok(())
}
