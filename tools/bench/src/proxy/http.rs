//! As much of HTTP/1.1 as the load and its upstream need: heads with a `Content-Length`. A client library would take
//! more of the processors than what is measured.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// A head may have so many bytes.
const MAX_HEAD: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error("what came is no head of HTTP/1.1")]
    Unreadable,
}

/// The head of a request or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    first: String,
    fields: String,
    /// `Content-Length`
    pub length: Option<usize>,
    /// Bytes of it, with the empty line.
    pub size: usize,
}

impl Head {
    /// Reads until the buffer holds a head, and maybe more; `None` where the other side closed before one began. The
    /// head stays in the buffer.
    pub async fn read<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<Option<Self>, HeadError> {
        loop {
            if let Some(size) = size_of_head(buffer) {
                return Self::parse(&buffer[..size]).map(Some);
            }
            if buffer.len() > MAX_HEAD {
                return Err(HeadError::Unreadable);
            }
            if stream.read_buf(buffer).await? == 0 {
                return if buffer.is_empty() { Ok(None) } else { Err(HeadError::Unreadable) };
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HeadError::Unreadable)?;
        let (first, fields) = text.split_once("\r\n").ok_or(HeadError::Unreadable)?;
        Ok(Self { first: first.to_owned(), length: length(bytes), fields: fields.to_owned(), size: bytes.len() })
    }

    /// Of a request.
    pub fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    /// Of an answer.
    pub fn status(&self) -> u16 {
        self.target().parse().unwrap_or(0)
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    /// Of a field that may be there several times.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        let fields = self.fields.lines().filter_map(|line| line.split_once(':'));
        fields.filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Bytes of the head that `buffer` begins with, once all of it is there.
pub fn size_of_head(buffer: &[u8]) -> Option<usize> {
    buffer.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4)
}

/// What `Content-Length` says.
pub fn length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let line = head
        .split(|b| *b == b'\n')
        .find(|line| line.get(..NAME.len()).is_some_and(|start| start.eq_ignore_ascii_case(NAME)))?;
    std::str::from_utf8(line[NAME.len()..].trim_ascii()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn heads_are_read_one_after_the_other() {
        let mut wire: &[u8] = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-LENGTH: 12\r\n\r\nabc";
        let mut buffer = Vec::new();
        let request = Head::read(&mut wire, &mut buffer).await.unwrap().unwrap();
        assert_eq!((request.target(), request.field("host"), request.length), ("/small", Some("a"), None));
        buffer.drain(..request.size);
        let answer = Head::read(&mut wire, &mut buffer).await.unwrap().unwrap();
        assert_eq!((answer.status(), answer.length), (200, Some(12)));
        assert_eq!(buffer[answer.size..], *b"abc");
        assert!(Head::read(&mut wire, &mut Vec::new()).await.unwrap().is_none());
        assert!(Head::read(&mut &b"GET"[..], &mut Vec::new()).await.is_err());
    }
}
