//! The head of an app's answer.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::StatusCode;

use super::body::Rest;
use super::request::{Field, Place, number};

/// Bytes that the head of an answer may have.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 100;

/// Why there is no answer to pass on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    #[error("the head of the answer is too long")]
    TooLong,
    #[error("the answer is not HTTP")]
    NotHttp,
    #[error("Content-Length of the answer is not one number")]
    Length,
}

/// The head of an answer: what is said of the connection and the body, and the bytes of its fields.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    /// `Content-Length`, as it was told.
    pub length: Option<u64>,
    pub body: Rest,
    /// The connection may be used again after the body.
    pub keep: bool,
    bytes: Bytes,
    fields: Vec<Field>,
}

impl Head {
    /// Takes a head from the front of the buffer, once all of it is there. `head_only` where the request was HEAD.
    ///
    /// # Errors
    /// See [`AnswerError`].
    pub fn take(buffer: &mut BytesMut, head_only: bool) -> Result<Option<Self>, AnswerError> {
        let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, buffer, &mut room);
        let size = match parsed {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Err(AnswerError::TooLong),
            Err(_) => return Err(AnswerError::NotHttp),
        };
        let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(AnswerError::NotHttp)?;
        let named = |name: &'static str| {
            answer.headers.iter().filter(move |f| f.name.eq_ignore_ascii_case(name)).map(|f| f.value)
        };
        let length = length(named("content-length"))?;
        let without_body = head_only
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = match (named("transfer-encoding").next_back(), length) {
            _ if without_body => Rest::NONE,
            (Some(encoding), _) if is_chunked(encoding) => Rest::CHUNKED,
            (None, Some(length)) => Rest::Length(length),
            (Some(_), _) | (None, None) => Rest::UntilClose,
        };
        let closing = named("connection").flat_map(|v| v.split(|b| *b == b',')).any(|token| {
            let token = token.trim_ascii();
            token.eq_ignore_ascii_case(b"close") || token.eq_ignore_ascii_case(b"upgrade")
        });
        let keep = answer.version == Some(1) && !closing && body != Rest::UntilClose;
        let place = Place::of(buffer);
        let field =
            |f: &httparse::Header<'_>| Field { name: place.of_part(f.name.as_bytes()), value: place.of_part(f.value) };
        let fields = answer.headers.iter().map(field).collect();
        let bytes = buffer.split_to(size).freeze();
        Ok(Some(Self { status, length, body, keep, bytes, fields }))
    }

    /// "Go on" and early hints: the answer follows.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }

    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.fields.iter().map(|f| (&self.bytes[f.name.clone()], &self.bytes[f.value.clone()]))
    }

    /// The first value of a field.
    #[must_use]
    pub fn first<'a>(&'a self, name: &'a str) -> Option<&'a [u8]> {
        self.fields().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// The app agreed to the WebSocket it was asked for.
    #[must_use]
    pub fn agrees_to_websocket(&self) -> bool {
        self.status == StatusCode::SWITCHING_PROTOCOLS
            && self.first("upgrade").is_some_and(|to| to.trim_ascii().eq_ignore_ascii_case(b"websocket"))
            && self.first("sec-websocket-accept").is_some()
    }
}

/// Several that say the same count as one.
fn length<'a>(told: impl Iterator<Item = &'a [u8]>) -> Result<Option<u64>, AnswerError> {
    let mut length = None;
    for text in told {
        match (number(text), length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(other)) if number == other => {}
            _ => return Err(AnswerError::Length),
        }
    }
    Ok(length)
}

fn is_chunked(encoding: &[u8]) -> bool {
    encoding.rsplit(|b| *b == b',').next().is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str, head_only: bool) -> Result<Option<Head>, AnswerError> {
        Head::take(&mut BytesMut::from(text), head_only)
    }

    #[test]
    fn framing_is_read_once_and_strictly() {
        let framing = |fields: &str| {
            head(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), false).map(|head| head.map(|h| (h.body, h.keep)))
        };
        assert_eq!(framing("Content-Length: 5\r\n").unwrap(), Some((Rest::Length(5), true)));
        assert_eq!(framing("content-length: 5\r\ncontent-length: 5\r\n").unwrap(), Some((Rest::Length(5), true)));
        let chunked = Some((Rest::CHUNKED, true));
        assert_eq!(framing("Transfer-Encoding: gzip, Chunked\r\nContent-Length: 5\r\n").unwrap(), chunked);
        assert_eq!(framing("Transfer-Encoding: gzip\r\n").unwrap(), Some((Rest::UntilClose, false)));
        assert_eq!(framing("").unwrap(), Some((Rest::UntilClose, false)));
        assert_eq!(framing("Content-Length: 5\r\nConnection: x, Close\r\n").unwrap(), Some((Rest::Length(5), false)));
        for bad in ["Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: +5\r\n", "Content-Length: 5, 5\r\n"]
        {
            assert!(framing(bad).is_err(), "{bad:?} was read");
        }
        assert!(head("SSH-2.0-x\r\n", false).is_err());
        assert!(head("HTTP/1.1 200 OK\r\nContent-Le", false).unwrap().is_none());
        let none = head("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", false).unwrap().unwrap();
        assert_eq!((none.body, none.length), (Rest::NONE, Some(7)));
        let none = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true).unwrap().unwrap();
        assert_eq!(none.body, Rest::NONE);
    }
}
