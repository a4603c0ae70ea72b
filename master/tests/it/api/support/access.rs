//! The way into nodes, without nodes: commands answer with what they were asked, ports answer when they are said to.

use async_trait::async_trait;
use docklet_master::proxy::agent::{AccessError, NodeAccess, NodeStream, ShellName, WindowSize};
use docklet_master::proxy::routes::RouteTarget;
use docklet_types::agent::ExecOutput;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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
}
