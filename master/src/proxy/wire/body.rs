//! Where a body ends, and taking it out of its chunks.

use bytes::{Buf, Bytes, BytesMut};

/// The line of a chunk's size, and each line after the last chunk, may have so many bytes.
const MAX_LINE: usize = 8 * 1024;
/// All lines after the last chunk together.
const MAX_TRAILERS: usize = 32 * 1024;

/// A body breaks its own framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(&'static str);

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    Length(u64),
    Chunked(Chunk),
    UntilClose,
}

/// What comes next of a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    /// So many bytes of lines have passed.
    Trailers(usize),
    Over,
}

impl Rest {
    pub const NONE: Self = Self::Length(0);
    pub const CHUNKED: Self = Self::Chunked(Chunk::Size);

    /// Nothing more comes. A body until the connection's end is never over by itself.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Over))
    }

    /// Takes what is there of the body's own bytes, at most `most` of them, from the front of the buffer; an empty piece
    /// where more must be read first, or the body is over.
    ///
    /// # Errors
    /// Its chunks are none.
    pub fn take(&mut self, buffer: &mut BytesMut, most: usize) -> Result<Bytes, BodyError> {
        match self {
            Self::UntilClose => Ok(buffer.split_to(buffer.len().min(most)).freeze()),
            Self::Length(left) => Ok(up_to(buffer, left, most)),
            Self::Chunked(chunk) => unchunk(buffer, chunk, most),
        }
    }

    /// As [`Rest::take`], but says only how many bytes at the front of `bytes` belong to the body as it is on the wire:
    /// for who passes them on as they are.
    ///
    /// # Errors
    /// Its chunks are none.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, BodyError> {
        match self {
            Self::UntilClose => Ok(bytes.len()),
            Self::Length(left) => Ok(within(bytes.len(), left)),
            Self::Chunked(chunk) => {
                let mut at = 0;
                while *chunk != Chunk::Over {
                    let n = match chunk {
                        Chunk::Data(left @ 1..) => within(bytes.len() - at, left),
                        _ => step(&bytes[at..], chunk)?,
                    };
                    if n == 0 {
                        break;
                    }
                    at += n;
                }
                Ok(at)
            }
        }
    }
}

/// As many of the bytes as are left, which are then fewer.
fn within(bytes: usize, left: &mut u64) -> usize {
    let size = bytes.min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= size as u64;
    size
}

fn up_to(buffer: &mut BytesMut, left: &mut u64, most: usize) -> Bytes {
    let size = within(buffer.len().min(most), left);
    buffer.split_to(size).freeze()
}

fn unchunk(buffer: &mut BytesMut, chunk: &mut Chunk, most: usize) -> Result<Bytes, BodyError> {
    loop {
        match chunk {
            Chunk::Over => return Ok(Bytes::new()),
            Chunk::Data(left @ 1..) => return Ok(up_to(buffer, left, most)),
            _ => match step(buffer, chunk)? {
                0 => return Ok(Bytes::new()),
                n => buffer.advance(n),
            },
        }
    }
}

/// Takes one step that is not data: how many bytes it was long, 0 where it is not all there.
fn step(bytes: &[u8], chunk: &mut Chunk) -> Result<usize, BodyError> {
    match chunk {
        Chunk::Size => match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete((size, length))) => {
                *chunk = if length == 0 { Chunk::Trailers(0) } else { Chunk::Data(length) };
                Ok(size)
            }
            Ok(httparse::Status::Partial) if bytes.len() < MAX_LINE => Ok(0),
            Ok(httparse::Status::Partial) | Err(_) => Err(BodyError("a chunk has no size")),
        },
        Chunk::Data(0) => {
            *chunk = Chunk::DataEnd;
            step(bytes, chunk)
        }
        Chunk::Data(_) | Chunk::Over => Ok(0),
        Chunk::DataEnd if bytes.len() < 2 => Ok(0),
        Chunk::DataEnd if bytes.starts_with(b"\r\n") => {
            *chunk = Chunk::Size;
            Ok(2)
        }
        Chunk::DataEnd => Err(BodyError("a chunk is longer than its size")),
        // Trailers end here.
        Chunk::Trailers(passed) => match bytes.iter().position(|b| *b == b'\n') {
            Some(at) if *passed + at < MAX_TRAILERS => {
                *passed += at + 1;
                if bytes[..at].trim_ascii().is_empty() {
                    *chunk = Chunk::Over;
                }
                Ok(at + 1)
            }
            None if bytes.len() < MAX_LINE => Ok(0),
            Some(_) | None => Err(BodyError("what follows the chunks is too long")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything that comes out of a body that arrives in these pieces, whether it ended, and what is left.
    fn unchunked(pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), BodyError> {
        let (mut buffer, mut rest, mut out) = (BytesMut::new(), Rest::CHUNKED, Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                let bytes = rest.take(&mut buffer, usize::MAX)?;
                if bytes.is_empty() {
                    break;
                }
                out.extend_from_slice(&bytes);
            }
        }
        Ok((out, rest.is_over(), buffer.len()))
    }

    #[test]
    fn chunks_that_lie_are_refused() {
        let endless = [b"0\r\n".as_slice(), &b"x: y\r\n".repeat(8000)].concat();
        for bad in [&b"5\r\nhelloXY"[..], b"x\r\n", b"5\r\nhello\n\n", b"fffffffffffffffff\r\n", b"+1\r\n", &endless] {
            assert!(unchunked(&[bad]).is_err(), "{bad:?} was read");
            let mut rest = Rest::CHUNKED;
            assert!(rest.pass(bad).is_err(), "{bad:?} was passed");
        }
        // What follows the end belongs to nobody.
        assert_eq!(unchunked(&[b"0\r\n\r\nHTTP/1.1"]).unwrap(), (Vec::new(), true, 8));
    }

    proptest! {
        #[test]
        fn chunks_are_joined_wherever_they_are_cut(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cut in 1_usize..9,
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:x};a=b\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\nx-trailer: 1\r\n\r\n");
            let length = wire.len();
            let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
            prop_assert_eq!(unchunked(&pieces).unwrap(), (chunks.concat(), true, 0));
            // Passed on as they are, they end at the same byte.
            wire.extend_from_slice(b"GET / HTTP/1.1\r\n");
            let (mut rest, mut have, mut passed) = (Rest::CHUNKED, Vec::new(), 0);
            for piece in wire.chunks(cut) {
                have.extend_from_slice(piece);
                let n = rest.pass(&have).unwrap();
                have.drain(..n);
                passed += n;
            }
            prop_assert_eq!((rest.is_over(), passed), (true, length));
        }
    }
}
