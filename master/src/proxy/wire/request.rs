//! The head of a request.

use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use http::Method;

use super::body::Rest;

/// Bytes that a head may have.
pub const MAX_HEAD: usize = 64 * 1024;
pub const MAX_FIELDS: usize = 100;

/// Why a head is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the head is too long")]
    TooLong,
    #[error("this is not HTTP/1.1")]
    NotHttp,
}

/// Why the end of a request's body is not clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("Content-Length and Transfer-Encoding contradict each other")]
    Both,
    #[error("Content-Length is not one number")]
    Length,
    #[error("Transfer-Encoding is not chunked")]
    Encoding,
    #[error("Host is given twice")]
    Host,
}

/// Where a field's parts are in the bytes of its head.
#[derive(Debug)]
pub(super) struct Field {
    pub name: Range<usize>,
    pub value: Range<usize>,
}

/// Where bytes begin, to say of their parts where in them they are.
#[derive(Clone, Copy)]
pub(super) struct Place(usize);

impl Place {
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr() as usize)
    }

    /// `part` is a part of the bytes.
    pub fn of_part(self, part: &[u8]) -> Range<usize> {
        let from = part.as_ptr() as usize - self.0;
        from..from + part.len()
    }
}

/// Method, target and fields, as they came. No part holds an end of a line.
#[derive(Debug)]
pub struct Head {
    bytes: Box<[u8]>,
    method: Method,
    target: Range<usize>,
    http_10: bool,
    fields: Vec<Field>,
}

/// A line that ends in a bare LF is one to some readers and none to others.
fn has_bare_lf(head: &[u8]) -> bool {
    head.iter().enumerate().any(|(at, b)| *b == b'\n' && (at == 0 || head[at - 1] != b'\r'))
}

impl Head {
    /// Reads the head at the front of the bytes, once all of it is there, and says how long it is there.
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn read(bytes: &[u8]) -> Result<Option<(usize, Self)>, HeadError> {
        let mut room = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let size = match request.parse_with_uninit_headers(bytes, &mut room) {
            Ok(httparse::Status::Complete(size)) if size <= MAX_HEAD => size,
            Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => return Ok(None),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLong),
            Err(_) => return Err(HeadError::NotHttp),
        };
        let method = request.method.and_then(|text| Method::from_bytes(text.as_bytes()).ok());
        let (Some(method), Some(target), Some(minor)) = (method, request.path, request.version) else {
            return Err(HeadError::NotHttp);
        };
        if has_bare_lf(&bytes[..size]) {
            return Err(HeadError::NotHttp);
        }
        let place = Place::of(bytes);
        let target = place.of_part(target.as_bytes());
        let field =
            |f: &httparse::Header<'_>| Field { name: place.of_part(f.name.as_bytes()), value: place.of_part(f.value) };
        let fields = request.headers.iter().map(field).collect();
        Ok(Some((size, Self { bytes: bytes[..size].into(), method, target, http_10: minor == 0, fields })))
    }

    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// As it stands in the first line.
    #[must_use]
    pub fn target(&self) -> &str {
        std::str::from_utf8(&self.bytes[self.target.clone()]).unwrap_or_default()
    }

    /// Scheme and authority of a target in absolute form.
    #[must_use]
    pub fn authority(&self) -> Option<&str> {
        let (_, rest) = self.target().split_once("://")?;
        if self.target().starts_with('/') {
            return None;
        }
        rest.split(['/', '?']).next()
    }

    /// Path and query, beginning with `/`; `None` where the target has no path.
    #[must_use]
    pub fn path_and_query(&self) -> Option<Cow<'_, str>> {
        let target = self.target();
        if target.starts_with('/') {
            return Some(Cow::Borrowed(target));
        }
        let (_, rest) = target.split_once("://")?;
        Some(match rest.find(['/', '?']) {
            None => Cow::Borrowed("/"),
            Some(at) if rest.as_bytes()[at] == b'/' => Cow::Borrowed(&rest[at..]),
            Some(at) => Cow::Owned(format!("/{}", &rest[at..])),
        })
    }

    /// Names as they came, and values without the space around them.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.fields.iter().map(|f| (&self.bytes[f.name.clone()], &self.bytes[f.value.clone()]))
    }

    /// All values of a field, whatever its name's case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + Clone {
        self.fields().filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// The first value of a field; `invalid` where it is no text.
    #[must_use]
    pub fn text<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next().map(|value| std::str::from_utf8(value).unwrap_or("invalid"))
    }

    /// The first `Host`, or the authority of a target in absolute form. Never a forwarded field, which anyone can write.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self.all("host").next() {
            Some(host) => std::str::from_utf8(host).ok(),
            None => self.authority(),
        }
    }

    /// Whether `Connection` names this option.
    #[must_use]
    pub fn connection_says(&self, option: &str) -> bool {
        self.all("connection")
            .flat_map(|value| value.split(|b| *b == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
    }

    /// HTTP/1.0: the answer may not have chunks.
    #[must_use]
    pub fn is_http_10(&self) -> bool {
        self.http_10
    }

    /// Whether the client means to send another request on the connection.
    #[must_use]
    pub fn keeps(&self) -> bool {
        if self.http_10 { self.connection_says("keep-alive") } else { !self.connection_says("close") }
    }

    #[must_use]
    pub fn names_websocket(&self) -> bool {
        self.all("upgrade").any(|value| value.trim_ascii().eq_ignore_ascii_case(b"websocket"))
    }

    /// A WebSocket's handshake. No other protocol is upgraded to.
    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.names_websocket() && self.connection_says("upgrade")
    }

    /// A method that changes nothing.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD | Method::OPTIONS)
    }

    /// Where the body ends, if there is only one way to read that.
    ///
    /// # Errors
    /// The first thing that is ambiguous.
    pub fn body(&self) -> Result<Rest, FramingError> {
        if self.all("host").count() > 1 {
            return Err(FramingError::Host);
        }
        let mut encodings = self.all("transfer-encoding");
        let mut lengths = self.all("content-length");
        let (encoding, length) = (encodings.next(), lengths.next());
        if encodings.next().is_some() {
            return Err(FramingError::Encoding);
        }
        if lengths.next().is_some() {
            return Err(FramingError::Length);
        }
        match (encoding, length) {
            (Some(_), Some(_)) => Err(FramingError::Both),
            (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") && !self.http_10 => Ok(Rest::CHUNKED),
            (Some(_), None) => Err(FramingError::Encoding),
            (None, Some(text)) => number(text).map(Rest::Length).ok_or(FramingError::Length),
            (None, None) => Ok(Rest::NONE),
        }
    }
}

/// A number in digits alone.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(text: &str) -> Result<Option<Head>, HeadError> {
        Ok(Head::read(text.as_bytes())?.map(|(_, head)| head))
    }

    fn with(fields: &str) -> Head {
        head(&format!("POST / HTTP/1.1\r\n{fields}\r\n")).unwrap().unwrap()
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for (fields, body) in [
            ("content-length: 5\r\ntransfer-encoding: chunked\r\n", Err(FramingError::Both)),
            ("content-length: 5\r\ncontent-length: 5\r\n", Err(FramingError::Length)),
            ("content-length: +5\r\n", Err(FramingError::Length)),
            ("content-length: 18446744073709551616\r\n", Err(FramingError::Length)),
            ("transfer-encoding: chunked, identity\r\n", Err(FramingError::Encoding)),
            ("host: a\r\nhost: b\r\n", Err(FramingError::Host)),
            ("content-length: 0\r\n", Ok(Rest::NONE)),
            ("content-length: 7\r\n", Ok(Rest::Length(7))),
            ("Transfer-Encoding: Chunked\r\n", Ok(Rest::CHUNKED)),
        ] {
            assert_eq!(with(fields).body(), body, "{fields:?}");
        }
        assert_eq!(
            head("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n").unwrap().unwrap().body(),
            Err(FramingError::Encoding)
        );
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for bad in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\n A: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\0\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "GET /\r\n\r\n",
            "\x16\x03\x01\x02\x00",
        ] {
            assert_eq!(head(bad).unwrap_err(), HeadError::NotHttp, "{bad:?}");
        }
        let long = format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!((head(&long).unwrap_err(), head(&many).unwrap_err()), (HeadError::TooLong, HeadError::TooLong));
        assert!(head("GET / HTTP/1.1\r\nHost:").unwrap().is_none());
    }

    #[test]
    fn targets_have_one_path() {
        let of = |target: &str| head(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap().unwrap();
        for (target, path, authority) in [
            ("/a?b=c", Some("/a?b=c"), None),
            ("/a://b/c", Some("/a://b/c"), None),
            ("http://h:1/x", Some("/x"), Some("h:1")),
            ("http://h", Some("/"), Some("h")),
            ("http://h?q", Some("/?q"), Some("h")),
            ("*", None, None),
            ("h:443", None, None),
        ] {
            let head = of(target);
            assert_eq!((head.path_and_query().as_deref(), head.authority()), (path, authority), "{target}");
        }
    }

    proptest! {
        #[test]
        fn a_head_is_the_same_whatever_follows_it(cut in 1_usize..60, value in "[ -~]{0,30}") {
            let text = format!("PUT /x?y HTTP/1.1\r\nHost: a\r\nX-Value: {value}\r\nConnection: a, Close\r\n\r\n");
            let wire = format!("{text}rest");
            let until = (0..=wire.len()).step_by(cut).find_map(|n| Head::read(&wire.as_bytes()[..n]).unwrap());
            let (size, head) = until.or_else(|| Head::read(wire.as_bytes()).unwrap()).unwrap();
            prop_assert_eq!(&wire[size..], "rest");
            prop_assert_eq!(head.text("x-value").unwrap(), value.trim());
            prop_assert_eq!((head.method(), head.target(), head.keeps()), (&Method::PUT, "/x?y", false));
        }

        #[test]
        fn any_bytes_are_a_head_or_not(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Head::read(&bytes).map(|head| head.map(|(_, head)| head.body()));
        }
    }
}
