//! Shells that outlive their clients, as the worker keeps them: a replay, one client at a time, frames.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use docklet_master::proxy::agent::NodeStream;
use docklet_types::agent::TERMINAL_REPLAY;
use docklet_types::agent::frame::{self, Control};
use docklet_types::id::NodeId;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// One shell. What is typed comes back; `yes` prints without end; `exit` ends it.
#[derive(Default)]
pub struct Shell {
    replay: Mutex<Vec<u8>>,
    taken_over: Mutex<Arc<Notify>>,
    /// Bytes of data that its stream has taken.
    pub printed: AtomicUsize,
    pub controls: Mutex<Vec<Control>>,
}

#[derive(Default)]
pub struct Shells {
    all: Mutex<HashMap<(NodeId, String), Arc<Shell>>>,
}

impl Shells {
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.all.lock().keys().map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    pub fn of(&self, node: NodeId, name: &str) -> Arc<Shell> {
        Arc::clone(&self.all.lock()[&(node, name.to_owned())])
    }

    pub fn attach(&self, node: NodeId, name: &str) -> NodeStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut all = self.all.lock();
        let resumed = all.contains_key(&(node, name.to_owned()));
        let shell = Arc::clone(all.entry((node, name.to_owned())).or_default());
        let mine = Arc::new(Notify::new());
        std::mem::replace(&mut *shell.taken_over.lock(), Arc::clone(&mine)).notify_one();
        tokio::spawn(async move {
            // A client that left is no failure of the shell.
            let _left = serve(&shell, ours, resumed, &mine).await;
        });
        Box::new(theirs)
    }
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), kind: u8, payload: &[u8]) -> std::io::Result<()> {
    for piece in payload.chunks(frame::MAX_PAYLOAD) {
        stream.write_all(&frame::header(kind, piece.len() as u32)).await?;
        stream.write_all(piece).await?;
    }
    Ok(())
}

async fn say(stream: &mut (impl AsyncWriteExt + Unpin), control: &Control) -> std::io::Result<()> {
    send(stream, frame::CONTROL, &serde_json::to_vec(control).unwrap()).await
}

async fn serve(shell: &Shell, stream: UnixStream, resumed: bool, taken_over: &Notify) -> std::io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    say(&mut writer, &Control::Attached { resumed }).await?;
    let replay = shell.replay.lock().clone();
    send(&mut writer, frame::DATA, &replay).await?;
    loop {
        let mut header = [0; frame::HEADER];
        tokio::select! {
            read = reader.read_exact(&mut header) => read?,
            () = taken_over.notified() => return say(&mut writer, &Control::TakenOver).await,
        };
        let mut payload = vec![0; u32::from_be_bytes(header[1..].try_into().unwrap()) as usize];
        reader.read_exact(&mut payload).await?;
        if header[0] == frame::CONTROL {
            let control: Control = serde_json::from_slice(&payload).unwrap();
            let close = control == Control::Close;
            shell.controls.lock().push(control);
            if close {
                return say(&mut writer, &Control::Exit { code: 129 }).await;
            }
            continue;
        }
        match payload.as_slice() {
            b"yes\n" => loop {
                send(&mut writer, frame::DATA, &[b'y'; 4096]).await?;
                shell.printed.fetch_add(4096, Ordering::SeqCst);
            },
            b"exit\n" => return say(&mut writer, &Control::Exit { code: 0 }).await,
            typed => {
                let mut replay = shell.replay.lock().clone();
                replay.extend_from_slice(typed);
                let over = replay.len().saturating_sub(TERMINAL_REPLAY);
                replay.drain(..over);
                *shell.replay.lock() = replay;
                send(&mut writer, frame::DATA, typed).await?;
            }
        }
    }
}
