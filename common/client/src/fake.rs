//! A small HTTP server for tests: a function answers each request, and every request is kept for the test to look at.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// Without the query string.
    pub path: String,
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Request {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What the server does.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Status, content type and body.
    Body(u16, &'static str, String),
    /// The same with one more header.
    With(u16, (&'static str, String), String),
    /// Closes the connection without a word.
    Hangup,
}

impl Answer {
    #[must_use]
    pub fn json(status: u16, value: &impl serde::Serialize) -> Self {
        Self::Body(status, "application/json", serde_json::to_string(value).unwrap_or_default())
    }

    #[must_use]
    pub fn problem(problem: &docklet_types::problem::Problem) -> Self {
        Self::Body(problem.status, "application/problem+json", serde_json::to_string(problem).unwrap_or_default())
    }

    #[must_use]
    pub fn empty(status: u16) -> Self {
        Self::Body(status, "application/json", String::new())
    }
}

/// A running server; it ends with this value.
pub struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// The port cannot be bound.
    pub async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    // A client that goes away in the middle is no failure of the test's server.
                    let _ = serve(socket, &kept, &*answer).await;
                });
            }
        });
        Ok(Self { url, requests, task })
    }

    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    socket: TcpStream,
    kept: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request) -> Answer + ?Sized),
) -> io::Result<()> {
    let mut socket = BufReader::new(socket);
    while let Some(request) = read(&mut socket).await? {
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        let (status, header, body) = match answer(&request) {
            Answer::Body(status, kind, body) => (status, ("content-type", kind.to_owned()), body),
            Answer::With(status, header, body) => (status, header, body),
            Answer::Hangup => return Ok(()),
        };
        let head =
            format!("HTTP/1.1 {status} -\r\n{}: {}\r\ncontent-length: {}\r\n\r\n", header.0, header.1, body.len());
        socket.write_all(head.as_bytes()).await?;
        socket.write_all(body.as_bytes()).await?;
        socket.flush().await?;
    }
    Ok(())
}

async fn read(socket: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if socket.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(Request { method, path: path.to_owned(), query: query.to_owned(), headers, body }))
}
