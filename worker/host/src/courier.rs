//! The stream of a disk between two workers (see `docklet_types::agent::disk`): what both ends do, whatever makes and
//! takes the data.

use docklet_types::agent::disk::Control;
use docklet_types::agent::frame;
use docklet_types::report::Reason;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A stream on which nothing moves for so long is broken: a host that is cut off says nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest control frame in bytes.
const MAX_CONTROL: u32 = 64 << 10;

async fn patiently<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Sends data to its end; how much it was. The closing frame is the caller's.
pub async fn pack(from: &mut (impl AsyncRead + Unpin), to: &mut UnixStream) -> io::Result<u64> {
    let mut buffer = vec![0; frame::HEADER + frame::MAX_PAYLOAD];
    let mut sent = 0;
    loop {
        let n = patiently(from.read(&mut buffer[frame::HEADER..])).await?;
        if n == 0 {
            return Ok(sent);
        }
        // At most MAX_PAYLOAD, which fits.
        let length = u32::try_from(n).unwrap_or(u32::MAX);
        buffer[..frame::HEADER].copy_from_slice(&frame::header(frame::DATA, length));
        patiently(to.write_all(&buffer[..frame::HEADER + n])).await?;
        sent += n as u64;
    }
}

/// Sends a control frame, the last of its side.
pub async fn close(to: &mut UnixStream, control: &Control) -> io::Result<()> {
    let json = serde_json::to_vec(control)?;
    let length = u32::try_from(json.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut message = frame::header(frame::CONTROL, length).to_vec();
    message.extend_from_slice(&json);
    patiently(to.write_all(&message)).await?;
    patiently(to.shutdown()).await
}

/// Waits for the other side's last word, so that the stream is not torn down under it.
pub async fn until_closed(stream: &mut UnixStream) {
    let mut rest = [0; 1024];
    while matches!(patiently(stream.read(&mut rest)).await, Ok(n) if n > 0) {}
}

/// Why a stream was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    #[error("the stream broke off")]
    Broken(#[source] io::Error),
    #[error("the stream is not one of a disk")]
    Malformed,
    #[error("of {told} bytes that were sent {came} came")]
    Short { told: u64, came: u64 },
    #[error("more came than the disk can hold")]
    TooLarge,
    #[error("what came could not be written")]
    Write(#[source] io::Error),
    #[error("{}", .0.message)]
    Sender(Reason),
}

/// Writes the data of a stream, `limit` bytes at most, to the end that its sender says; how much it was. `each` is called
/// after every frame.
pub async fn unpack(
    from: &mut UnixStream,
    to: &mut (impl AsyncWrite + Unpin),
    limit: u64,
    mut each: impl FnMut() -> io::Result<()> + Send,
) -> Result<u64, TakeError> {
    let mut buffer = vec![0; frame::MAX_PAYLOAD];
    let mut came = 0;
    loop {
        let mut header = [0; frame::HEADER];
        patiently(from.read_exact(&mut header)).await.map_err(TakeError::Broken)?;
        let [kind, a, b, c, d] = header;
        let length = u32::from_be_bytes([a, b, c, d]);
        match kind {
            frame::DATA if length as usize <= frame::MAX_PAYLOAD => {
                let data = &mut buffer[..length as usize];
                patiently(from.read_exact(data)).await.map_err(TakeError::Broken)?;
                came += u64::from(length);
                if came > limit {
                    return Err(TakeError::TooLarge);
                }
                patiently(to.write_all(data)).await.map_err(TakeError::Write)?;
                each().map_err(TakeError::Write)?;
            }
            frame::CONTROL if length <= MAX_CONTROL => {
                let mut json = vec![0; length as usize];
                patiently(from.read_exact(&mut json)).await.map_err(TakeError::Broken)?;
                return match serde_json::from_slice(&json) {
                    Ok(Control::Complete { bytes }) if bytes == came => Ok(came),
                    Ok(Control::Complete { bytes }) => Err(TakeError::Short { told: bytes, came }),
                    Ok(Control::Failed(reason)) => Err(TakeError::Sender(reason)),
                    _ => Err(TakeError::Malformed),
                };
            }
            _ => return Err(TakeError::Malformed),
        }
    }
}
