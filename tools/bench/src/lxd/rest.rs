//! What a launch needs of LXD's REST API, over its Unix socket.

use serde::Deserialize;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

#[derive(Debug, thiserror::Error)]
pub enum RestError {
    #[error("{method} {path} of LXD could not be sent or was not answered")]
    Io { method: &'static str, path: String, source: io::Error },
    #[error("{method} {path} of LXD was not answered in the way of its API: {said}")]
    Answer { method: &'static str, path: String, said: String },
    #[error("LXD refused {method} {path}: {said}")]
    Refused { method: &'static str, path: String, said: String },
}

type Result<T> = std::result::Result<T, RestError>;

#[derive(Debug, Clone)]
pub struct Rest {
    socket: PathBuf,
}

/// The envelope of all answers.
#[derive(Deserialize)]
struct Answer {
    /// `sync`, `async` (an operation was begun) or `error`.
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    error: String,
    #[serde(default)]
    metadata: Value,
}

impl Rest {
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// One request; where it begins an operation, until that has ended. What it answers is `metadata`.
    pub async fn call(&self, method: &'static str, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.follow(method, path, body.len() as u64, body.as_slice()).await
    }

    /// A request whose body is a file.
    pub async fn upload(&self, path: &str, file: &Path) -> Result<Value> {
        const METHOD: &str = "POST";
        let failed = |source| RestError::Io { method: METHOD, path: path.to_owned(), source };
        let file = File::open(file).await.map_err(failed)?;
        let length = file.metadata().await.map_err(failed)?.len();
        self.follow(METHOD, path, length, file).await
    }

    async fn follow(
        &self,
        method: &'static str,
        path: &str,
        length: u64,
        body: impl AsyncRead + Unpin,
    ) -> Result<Value> {
        let answer = self.send(method, path, length, body).await?;
        if answer.kind != "async" {
            return Ok(answer.metadata);
        }
        let mut ended = self.send("GET", &format!("{}/wait", answer.operation), 0, tokio::io::empty()).await?.metadata;
        // An operation that failed is no error of the request that waited for it.
        match ended["err"].as_str() {
            None | Some("") => Ok(ended["metadata"].take()),
            Some(said) => Err(RestError::Refused { method, path: path.to_owned(), said: said.to_owned() }),
        }
    }

    async fn send(
        &self,
        method: &'static str,
        path: &str,
        length: u64,
        body: impl AsyncRead + Unpin,
    ) -> Result<Answer> {
        let text = self.exchange(method, path, length, body).await.map_err(|source| RestError::Io {
            method,
            path: path.to_owned(),
            source,
        })?;
        let answer = content(&text).and_then(|json| serde_json::from_slice::<Answer>(json).ok());
        match answer {
            Some(Answer { kind, error, .. }) if kind == "error" => {
                Err(RestError::Refused { method, path: path.to_owned(), said: error })
            }
            Some(answer) => Ok(answer),
            None => Err(RestError::Answer {
                method,
                path: path.to_owned(),
                said: String::from_utf8_lossy(&text).chars().take(300).collect(),
            }),
        }
    }

    /// HTTP/1.0, in which an answer is whole and ends with the connection: nothing here is worth keeping one open.
    async fn exchange(
        &self,
        method: &str,
        path: &str,
        length: u64,
        mut body: impl AsyncRead + Unpin,
    ) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let head = format!("{method} {path} HTTP/1.0\r\nHost: lxd\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        tokio::io::copy(&mut body, &mut stream).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    }
}

/// What follows the header fields.
fn content(answer: &[u8]) -> Option<&[u8]> {
    const END: &[u8] = b"\r\n\r\n";
    let at = answer.windows(END.len()).position(|w| w == END)?;
    Some(&answer[at + END.len()..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;
    use tokio::net::UnixListener;

    /// Answers one connection after another, and returns the first lines that it was asked.
    async fn answering(listener: UnixListener, answers: &[&str]) -> Vec<String> {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            asked.push(String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned());
            stream.write_all(format!("HTTP/1.0 200 OK\r\nX: y\r\n\r\n{answer}").as_bytes()).await.unwrap();
        }
        asked
    }

    async fn calling(answers: &[&str]) -> (Result<Value>, Vec<String>) {
        let socket = std::env::temp_dir().join(format!("docklet-bench-{}.socket", uuid::Uuid::new_v4()));
        let listener = UnixListener::bind(&socket).unwrap();
        let rest = Rest::new(socket.clone());
        let outcome = tokio::join!(rest.call("GET", "/1.0/x", &Value::Null), answering(listener, answers));
        std::fs::remove_file(socket).unwrap();
        outcome
    }

    #[tokio::test]
    async fn operations_are_waited_for() {
        let (got, asked) = calling(&[
            r#"{"type":"async","operation":"/1.0/operations/7","metadata":{}}"#,
            r#"{"type":"sync","metadata":{"err":"","metadata":{"fingerprint":"ab"}}}"#,
        ])
        .await;
        assert_eq!(got.unwrap(), json!({"fingerprint": "ab"}));
        assert_eq!(asked, ["GET /1.0/x HTTP/1.0", "GET /1.0/operations/7/wait HTTP/1.0"]);
    }

    #[tokio::test]
    async fn failures_are_told() {
        let (got, _) = calling(&[
            r#"{"type":"async","operation":"/1.0/operations/7"}"#,
            r#"{"type":"sync","metadata":{"err":"no room"}}"#,
        ])
        .await;
        assert!(matches!(got, Err(RestError::Refused { said, .. }) if said == "no room"));
        let (got, _) = calling(&[r#"{"type":"error","error":"not found","error_code":404}"#]).await;
        assert!(matches!(got, Err(RestError::Refused { said, .. }) if said == "not found"));
        let (got, _) = calling(&["<html>"]).await;
        assert!(matches!(got, Err(RestError::Answer { .. })));
    }
}
