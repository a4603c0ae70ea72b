//! A shell at the other end of a WebSocket, Docklet's or JupyterLab's.

use futures::{SinkExt as _, StreamExt as _};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::proxy::http::{Head, HeadError};
use crate::proxy::site::{NODE, Site, Way};

/// A whole output may take so long.
const PATIENCE: Duration = Duration::from_secs(300);
/// Docklet's client acknowledges this often, as the portal does.
const ACK: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("could not connect")]
    Connect(#[source] io::Error),
    #[error("the terminal's address is not valid")]
    Address,
    #[error("the WebSocket failed")]
    Socket(#[source] Box<Error>),
    #[error("the connection ended")]
    Ended,
    #[error("an answer could not be read")]
    Head(#[from] HeadError),
    #[error("{path} was answered with {status}")]
    Status { path: String, status: u16 },
    #[error("nothing came in {} s", PATIENCE.as_secs())]
    TimedOut,
    #[error("{bytes} bytes were printed instead of at least {wanted}")]
    Short { bytes: usize, wanted: usize },
}

impl From<Error> for ShellError {
    fn from(error: Error) -> Self {
        Self::Socket(Box::new(error))
    }
}

fn value(text: &str) -> Result<HeaderValue, ShellError> {
    HeaderValue::from_str(text).map_err(|_| ShellError::Address)
}

/// JupyterLab, and how it is reached.
pub struct Jupyter {
    way: Way,
    host: String,
    /// Docklet's, where it is in between.
    cookie: Option<String>,
}

impl Jupyter {
    pub fn at(way: Way, host: String, cookie: Option<String>) -> Self {
        Self { way, host, cookie }
    }

    /// A new terminal.
    pub async fn shell(&self) -> Result<Shell, ShellError> {
        // Its protection against forged requests: a cookie that is said again in a header.
        let (page, _) = self.ask("GET", "/lab", "").await?;
        let token = page.all("set-cookie").find_map(|c| c.strip_prefix("_xsrf=")).and_then(|c| c.split(';').next());
        let token = token.unwrap_or_default().to_owned();
        let (_, body) = self.ask("POST", "/api/terminals", &token).await?;
        let made: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let name = made["name"].as_str().ok_or(HeadError::Unreadable)?.to_owned();
        let address = format!("ws://{}/terminals/websocket/{name}", self.host);
        let mut request = address.as_str().into_client_request().map_err(ShellError::from)?;
        request.headers_mut().insert("origin", value(&format!("http://{}", self.host))?);
        request.headers_mut().insert("cookie", value(&self.cookies(&token))?);
        let stream = self.way.connect().await.map_err(ShellError::Connect)?;
        Shell::open(request, stream, Kind::Jupyter).await
    }

    fn cookies(&self, token: &str) -> String {
        let own = self.cookie.as_deref().unwrap_or("a=b");
        format!("{own}; _xsrf={token}")
    }

    async fn ask(&self, method: &str, path: &str, token: &str) -> Result<(Head, Vec<u8>), ShellError> {
        let mut stream = self.way.connect().await.map_err(ShellError::Connect)?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {0}\r\nOrigin: http://{0}\r\nCookie: {1}\r\nX-XSRFToken: {token}\r\n\
             Accept: */*\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            self.host,
            self.cookies(token)
        );
        stream.write_all(request.as_bytes()).await.map_err(ShellError::Connect)?;
        let mut buffer = Vec::new();
        let head = Head::read(&mut stream, &mut buffer).await?.ok_or(HeadError::Unreadable)?;
        stream.read_to_end(&mut buffer).await.map_err(ShellError::Connect)?;
        match head.status() {
            200 | 201 => Ok((head.clone(), buffer.split_off(head.size))),
            status => Err(ShellError::Status { path: path.to_owned(), status }),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Docklet,
    Jupyter,
}

pub struct Shell {
    kind: Kind,
    socket: WebSocketStream<TcpStream>,
    unacknowledged: usize,
}

impl Shell {
    /// A new shell of the node.
    pub async fn docklet(site: &Site) -> Result<Self, ShellError> {
        let session = uuid::Uuid::new_v4().simple().to_string();
        let address = site.client.terminal(&site.vcluster, NODE, &session, 80, 24).map_err(|_| ShellError::Address)?;
        let mut request = address.url.as_str().into_client_request().map_err(ShellError::from)?;
        request.headers_mut().insert("authorization", value(&address.authorization.unwrap_or_default())?);
        let stream = Way::Here(site.server).connect().await.map_err(ShellError::Connect)?;
        Self::open(request, stream, Kind::Docklet).await
    }

    async fn open(request: Request<()>, stream: TcpStream, kind: Kind) -> Result<Self, ShellError> {
        let (socket, _) =
            timeout(PATIENCE, client_async(request, stream)).await.map_err(|_| ShellError::TimedOut)??;
        Ok(Self { kind, socket, unacknowledged: 0 })
    }

    /// Types.
    pub async fn send(&mut self, text: &str) -> Result<(), ShellError> {
        let message = match self.kind {
            Kind::Docklet => Message::binary(text.as_bytes().to_vec()),
            Kind::Jupyter => Message::text(serde_json::json!(["stdin", text]).to_string()),
        };
        Ok(self.socket.send(message).await?)
    }

    /// Reads until that was printed; how many bytes were.
    pub async fn until(&mut self, mark: &[u8]) -> Result<usize, ShellError> {
        let read = async {
            let (mut tail, mut bytes) = (Vec::new(), 0);
            loop {
                let printed = self.next().await?;
                bytes += printed.len();
                tail.extend_from_slice(&printed);
                if tail.windows(mark.len()).any(|seen| seen == mark) {
                    return Ok(bytes);
                }
                // A mark may come in two pieces.
                tail.drain(..tail.len().saturating_sub(mark.len()));
            }
        };
        timeout(PATIENCE, read).await.map_err(|_| ShellError::TimedOut)?
    }

    /// Some output; it may be empty.
    async fn next(&mut self) -> Result<Vec<u8>, ShellError> {
        let message = self.socket.next().await.ok_or(ShellError::Ended)??;
        match (self.kind, message) {
            (Kind::Docklet, Message::Binary(bytes)) => {
                self.unacknowledged += bytes.len();
                if self.unacknowledged >= ACK {
                    let ack = format!("{{\"ack\":{}}}", self.unacknowledged);
                    self.unacknowledged = 0;
                    self.socket.send(Message::text(ack)).await?;
                }
                Ok(bytes.into())
            }
            (Kind::Jupyter, Message::Text(text)) => match serde_json::from_str::<(&str, String)>(&text) {
                Ok(("stdout", printed)) => Ok(printed.into_bytes()),
                Ok(_) | Err(_) => Ok(Vec::new()),
            },
            (_, Message::Close(_)) => Err(ShellError::Ended),
            _ => Ok(Vec::new()),
        }
    }

    /// Ends the shell.
    pub async fn end(mut self) -> Result<(), ShellError> {
        // The end of `cat`'s input, then the shell's.
        self.send("\n\u{4}").await?;
        self.send("exit\n").await?;
        while self.next().await.is_ok() {}
        Ok(())
    }
}
