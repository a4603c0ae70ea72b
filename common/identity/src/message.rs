//! Documents on a stream: a u32 big-endian length and that many bytes of JSON.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    #[error("the connection broke off")]
    Io(#[source] io::Error),
    #[error("a message of {length} bytes is longer than the {most} that are taken")]
    TooLong { length: u32, most: u32 },
    #[error("the message cannot be read")]
    Unreadable(#[source] serde_json::Error),
}

impl From<io::Error> for MessageError {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

/// Reads one document of at most `most` bytes.
///
/// # Errors
/// See [`MessageError`]; after one the stream is of no use.
pub async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin), most: u32) -> Result<T, MessageError> {
    let length = stream.read_u32().await?;
    if length > most {
        return Err(MessageError::TooLong { length, most });
    }
    let mut bytes = Vec::new();
    // What is claimed is only taken as it comes.
    stream.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 != u64::from(length) {
        return Err(MessageError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_slice(&bytes).map_err(MessageError::Unreadable)
}

/// Writes one document.
///
/// # Errors
/// It is longer than `most` bytes, or the stream broke.
pub async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    document: &impl Serialize,
    most: u32,
) -> Result<(), MessageError> {
    stream.write_all(&encode(document, most)?).await?;
    stream.flush().await?;
    Ok(())
}

/// The bytes of one document with its length before it.
///
/// # Errors
/// It is longer than `most` bytes.
pub fn encode(document: &impl Serialize, most: u32) -> Result<Vec<u8>, MessageError> {
    let body = serde_json::to_vec(document).map_err(MessageError::Unreadable)?;
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if length > most {
        return Err(MessageError::TooLong { length, most });
    }
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    Ok(message)
}
