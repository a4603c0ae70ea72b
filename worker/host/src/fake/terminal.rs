//! A terminal of the fake: it shows what is typed, and ends on a line `exit N`.

use docklet_types::agent::frame::{self, Control};
use parking_lot::Mutex;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use super::access::read_frame;

#[derive(Default)]
struct Shell {
    shown: Vec<u8>,
    line: Vec<u8>,
    was_attached: bool,
}

/// One session: what was shown, who looks at it, and how it ended.
pub struct Session {
    shell: Mutex<Shell>,
    /// Counts clients: a change tells the one before that it was replaced.
    client: watch::Sender<u64>,
    exit: watch::Sender<Option<i32>>,
}

impl Default for Session {
    fn default() -> Self {
        Self { shell: Mutex::default(), client: watch::Sender::new(0), exit: watch::Sender::new(None) }
    }
}

impl Session {
    pub fn end(&self, code: i32) {
        self.exit.send_replace(Some(code));
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Serves one client to its end. Errors are the client's going away.
    pub async fn serve(self: Arc<Self>, stream: UnixStream) {
        let _ = self.talk(stream).await;
    }

    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = tokio::net::UnixStream::from_std(stream)?;
        let mut me = 0;
        self.client.send_modify(|n| {
            *n += 1;
            me = *n;
        });
        let (resumed, replay) = {
            let mut shell = self.shell.lock();
            (std::mem::replace(&mut shell.was_attached, true), shell.shown.clone())
        };
        say(&mut stream, &Control::Attached { resumed }).await?;
        write(&mut stream, frame::DATA, &replay).await?;
        let (mut client, mut exit) = (self.client.subscribe(), self.exit.subscribe());
        let (mut read, mut write_half) = stream.split();
        // Frames are read by a future of their own: one that was cut off half read would lose its beginning.
        let (frames, mut inbox) = tokio::sync::mpsc::channel(8);
        let pull = async {
            while let Ok(frame) = read_frame(&mut read).await {
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
            drop(frames);
            io::Result::Ok(())
        };
        let push = async {
            loop {
                tokio::select! {
                    biased;
                    code = async { exit.wait_for(Option::is_some).await.ok().and_then(|c| *c) } => {
                        return say(&mut write_half, &Control::Exit { code: code.unwrap_or(0) }).await;
                    }
                    _ = async { client.wait_for(|n| *n != me).await.is_ok() } => {
                        return say(&mut write_half, &Control::TakenOver).await;
                    }
                    frame = inbox.recv() => match frame {
                        Some((frame::DATA, bytes)) => {
                            self.typed(&bytes);
                            write(&mut write_half, frame::DATA, &bytes).await?;
                        }
                        Some((_, control)) => if matches!(serde_json::from_slice(&control), Ok(Control::Close)) {
                            self.end(129);
                        },
                        None => return Ok(()),
                    },
                }
            }
        };
        tokio::select! { done = push => done, Err(e) = pull => Err(e) }
    }

    fn typed(&self, bytes: &[u8]) {
        let mut shell = self.shell.lock();
        shell.shown.extend_from_slice(bytes);
        for byte in bytes {
            if !matches!(byte, b'\r' | b'\n') {
                shell.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut shell.line);
            let code = std::str::from_utf8(&line)
                .ok()
                .and_then(|l| l.strip_prefix("exit"))
                .map(|n| n.trim().parse().unwrap_or(0));
            if let Some(code) = code {
                self.end(code);
            }
        }
    }
}

async fn say(stream: &mut (impl AsyncWriteExt + Unpin), control: &Control) -> io::Result<()> {
    write(stream, frame::CONTROL, &serde_json::to_vec(control)?).await
}

async fn write(stream: &mut (impl AsyncWriteExt + Unpin), kind: u8, bytes: &[u8]) -> io::Result<()> {
    for part in bytes.chunks(frame::MAX_PAYLOAD) {
        stream.write_all(&frame::header(kind, part.len() as u32)).await?;
        stream.write_all(part).await?;
    }
    Ok(())
}
