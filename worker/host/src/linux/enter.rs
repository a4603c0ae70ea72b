//! Ways into a running node, as the worker offers them.

use async_trait::async_trait;
use docklet_types::agent::ExecOutput;
use docklet_types::agent::frame::{self, Control};
use docklet_types::id::NodeId;
use docklet_types::kernel_names;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::exec::ExecRequest;
use super::proc::Process;
use super::shell::TerminalRequest;
use super::{LinuxHost, access, container, helper, run};
use crate::reason::failed;
use crate::{Access, HostError, Result};

/// What a helper needs beyond the time of its command.
const SLACK: Duration = Duration::from_secs(10);

impl LinuxHost {
    fn running(&self, id: NodeId) -> Result<Process> {
        if self.inner.stopping.lock().contains(&id) {
            return Err(HostError::new("not_running", "The node is being stopped."));
        }
        run::init(&self.state(id)).ok_or_else(|| HostError::new("not_running", "The node does not run."))
    }
}

#[async_trait]
impl Access for LinuxHost {
    async fn dial(&self, id: NodeId, port: u16) -> Result<Option<OwnedFd>> {
        let init = self.running(id)?;
        let ip = self.note(id).map(|n| n.ip);
        let dialled = self.inner.doorman.dial(init, ip, port).await;
        dialled.map_err(|e| failed("dial_failed", &format!("Port {port} of the node could not be reached"), &e))
    }

    async fn wait_port(&self, id: NodeId, port: u16, timeout: Duration) -> Result<bool> {
        let init = self.running(id)?;
        let listened = self.inner.doorman.wait_port(init, port, timeout).await;
        listened.map_err(|e| failed("dial_failed", "The node's ports could not be read", &e))
    }

    async fn terminal(&self, id: NodeId, session: &str, cols: u16, rows: u16) -> Result<OwnedFd> {
        if !access::is_session(session) {
            return Err(HostError::new(
                "terminal_failed",
                "A terminal session is named by 1 to 40 of a-z, 0-9 and '-'.",
            ));
        }
        self.running(id)?;
        let lock = Arc::clone(self.inner.terminals.lock().entry((id, session.to_owned())).or_default());
        let _alone = lock.lock().await;
        let directory = self.state(id).join("terminals");
        let name = format!("{session}.sock");
        if let Ok(mut stream) = access::connect_in(&directory, &name) {
            // The window may have another size now.
            let resize = serde_json::to_vec(&Control::Resize { cols, rows }).unwrap_or_default();
            let header = frame::header(frame::CONTROL, resize.len() as u32);
            let told = stream
                .write_all(&header)
                .and_then(|()| stream.write_all(&resize))
                .and_then(|()| stream.set_nonblocking(true));
            told.map_err(|e| failed("terminal_failed", "The terminal could not be reached", &e))?;
            return Ok(stream.into());
        }
        let request = TerminalRequest {
            container: kernel_names::container(id),
            lxcpath: self.inner.paths.lxc(),
            directory: directory.clone(),
            session: session.to_owned(),
            cols,
            rows,
            first_id: self
                .note(id)
                .map(|n| n.first_id)
                .ok_or_else(|| HostError::new("terminal_failed", "The node's record is missing; stop and start it."))?,
        };
        let () = helper::call(&self.program, "terminal", &self.title(id), &request, SLACK).await?;
        let connect = || -> io::Result<OwnedFd> {
            let stream = access::connect_in(&directory, &name)?;
            stream.set_nonblocking(true)?;
            Ok(stream.into())
        };
        connect().map_err(|e| failed("terminal_failed", "The terminal could not be reached", &e))
    }

    async fn exec(&self, id: NodeId, argv: &[String], stdin: &str, timeout: Duration) -> Result<Option<ExecOutput>> {
        self.running(id)?;
        let request = ExecRequest {
            container: kernel_names::container(id),
            lxcpath: self.inner.paths.lxc(),
            argv: argv.to_vec(),
            stdin: stdin.to_owned(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        helper::call(&self.program, "exec", &self.title(id), &request, timeout.saturating_add(SLACK)).await
    }

    async fn logs(&self, id: NodeId, lines: u32) -> Result<String> {
        let state = self.state(id);
        let text = self.blocking(move |_| {
            let wanted = usize::try_from(lines).unwrap_or(usize::MAX);
            let newest = container::tail(&state.join("console.log"), wanted);
            let missing = wanted.saturating_sub(newest.lines().count());
            container::tail(&state.join("console.log.1"), missing) + &newest
        });
        text.await
    }
}
