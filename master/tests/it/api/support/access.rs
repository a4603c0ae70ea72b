//! The way into nodes, without nodes: commands answer with what they were asked, ports answer when they are said to.

use async_trait::async_trait;
use docklet_master::proxy::agent::{AccessError, NodeAccess, NodeStream, ShellName, WindowSize};
use docklet_master::proxy::routes::RouteTarget;
use docklet_types::agent::disk::Control;
use docklet_types::agent::{ExecOutput, Part, frame};
use docklet_types::report::Reason;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Default)]
pub struct FakeAccess {
    /// Whether ports answer.
    pub listening: AtomicBool,
    /// Whether the worker can be reached.
    pub down: AtomicBool,
    pub execs: AtomicUsize,
    /// The exit code of the next command.
    pub exit_code: Mutex<i32>,
    /// What commands print; what they were asked, where empty.
    pub prints: Mutex<String>,
    /// Disks do not arrive.
    pub broken_disks: AtomicBool,
    /// Copies that were taken.
    pub disks: Mutex<Vec<Part>>,
    /// Streams that terminals got; the other end is kept here.
    pub terminals: Mutex<Vec<tokio::io::DuplexStream>>,
}

impl FakeAccess {
    fn up(&self) -> Result<(), AccessError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(AccessError::WorkerDown(Arc::new(std::io::ErrorKind::ConnectionRefused.into())));
        }
        Ok(())
    }
}

#[async_trait]
impl NodeAccess for FakeAccess {
    async fn dial(&self, _: &RouteTarget, _: u16) -> Result<NodeStream, AccessError> {
        self.up()?;
        Err(AccessError::Refused)
    }

    async fn wait_port(&self, _: &RouteTarget, _: u16, within: Duration) -> Result<(), AccessError> {
        self.up()?;
        let deadline = tokio::time::Instant::now() + within;
        while !self.listening.load(Ordering::SeqCst) {
            if tokio::time::Instant::now() >= deadline {
                return Err(AccessError::TimedOut);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn terminal(&self, _: &RouteTarget, _: &ShellName, _: WindowSize) -> Result<NodeStream, AccessError> {
        self.up()?;
        let (ours, theirs) = tokio::io::duplex(4096);
        self.terminals.lock().unwrap().push(ours);
        Ok(Box::new(theirs))
    }

    async fn exec(
        &self,
        _: &RouteTarget,
        argv: Vec<String>,
        stdin: String,
        _: Duration,
    ) -> Result<ExecOutput, AccessError> {
        self.up()?;
        self.execs.fetch_add(1, Ordering::SeqCst);
        let exit_code = *self.exit_code.lock().unwrap();
        let prints = self.prints.lock().unwrap().clone();
        Ok(ExecOutput {
            exit_code,
            stdout: if prints.is_empty() { format!("{}{stdin}\n", argv.join(" ")) } else { prints },
            stderr: String::new(),
            truncated: false,
        })
    }

    async fn logs(&self, _: &RouteTarget, lines: u32) -> Result<String, AccessError> {
        self.up()?;
        Ok(format!("the last {lines} lines\n"))
    }

    async fn send_disk(&self, _: &RouteTarget, _: u64, _: Part, _: bool) -> Result<NodeStream, AccessError> {
        self.up()?;
        let (mut ours, theirs) = tokio::io::duplex(4096);
        let broken = self.broken_disks.load(Ordering::SeqCst);
        tokio::spawn(async move {
            let mut message = frame::header(frame::DATA, 60_000).to_vec();
            message.resize(frame::HEADER + 60_000, 7);
            ours.write_all(&message).await.ok();
            if !broken {
                ours.write_all(&control(&Control::Complete { bytes: 60_000 })).await.ok();
            }
        });
        Ok(Box::new(theirs))
    }

    async fn take_disk(&self, _: &RouteTarget, _: u64, part: Part) -> Result<Option<NodeStream>, AccessError> {
        self.up()?;
        let (mut ours, theirs) = tokio::io::duplex(4096);
        let broken = self.broken_disks.load(Ordering::SeqCst);
        self.disks.lock().unwrap().push(part);
        tokio::spawn(async move {
            let mut came = Vec::new();
            ours.read_to_end(&mut came).await.ok();
            let answer = if broken {
                Control::Failed(Reason::new("out_of_space", "The node's disk did not fit."))
            } else {
                Control::Taken
            };
            ours.write_all(&control(&answer)).await.ok();
        });
        Ok(Some(Box::new(theirs)))
    }
}

fn control(control: &Control) -> Vec<u8> {
    let json = serde_json::to_vec(control).unwrap();
    let mut message = frame::header(frame::CONTROL, json.len() as u32).to_vec();
    message.extend(json);
    message
}
