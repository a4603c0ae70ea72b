//! The helper: the worker's own program, run once per operation as `docklet-worker helper <op>`.
//!
//! liblxc forks, changes namespaces and calls exit handlers, none of which goes together with a runtime of threads. So
//! each operation is a short-lived process with one thread: JSON on standard input, JSON on standard output, no shell.
//! This module has both ends: [`main`] for the helper, [`call`] for the worker.
//!
//! A helper ends with its worker, however that ends: the next one must not find a host that still changes by itself. What
//! a helper forks to outlive it, the monitor of a node and the holder of a terminal, does not inherit that. So a start that
//! is cut off may still come to something, which `run::announce` tells the next worker.

use docklet_types::report::Reason;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{container, exec, image, machine, share, shell, sys};
use crate::HostError;

/// Names the worker's process to its helper.
const WORKER: &str = "DOCKLET_WORKER";

/// What a helper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    Done(T),
    Failed(Reason),
}

/// Runs one operation. The binary calls it before it starts any thread; the exit code is 0 whenever an answer was given.
pub fn main(op: &str) -> ExitCode {
    if let Err(e) = end_with_worker() {
        eprintln!("helper {op}: {e}");
        return ExitCode::FAILURE;
    }
    let mut input = Vec::new();
    if let Err(e) = std::io::stdin().lock().read_to_end(&mut input) {
        eprintln!("helper {op}: the request could not be read: {e}");
        return ExitCode::FAILURE;
    }
    let answer = match op {
        "start" => serve(&input, |request: container::StartRequest| {
            container::start(&request).map_err(|e| container::reason(&e, &request.state))
        }),
        "exec" => serve(&input, exec::run),
        "probe" => serve(&input, |request: machine::ProbeRequest| Ok(machine::probe(&request))),
        "share" => serve(&input, |request: share::ShareRequest| share::look(&request)),
        "unpack" => serve(&input, |request: image::UnpackRequest| image::unpack(&request)),
        "newest" => serve(&input, |request: image::NewestRequest| Ok(image::newest(&request))),
        // Answers by itself: the holder lives on in a child.
        "terminal" => serve(&input, shell::hold),
        _ => {
            eprintln!(
                "there is no helper {op:?}; there are start, exec, terminal, probe, share, unpack and newest. Docklet's worker runs them, people do not."
            );
            return ExitCode::from(2);
        }
    };
    match answer.and_then(|text| std::io::stdout().lock().write_all(&text).map_err(|e| e.to_string())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("helper {op}: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Has the kernel kill this process when its worker ends. Without the variable nobody's helper is run, by hand.
fn end_with_worker() -> std::io::Result<()> {
    let Some(worker) = std::env::var(WORKER).ok().and_then(|pid| pid.parse::<u32>().ok()) else { return Ok(()) };
    sys::end_with_parent()?;
    // It may have ended before: then somebody else is the parent, and the request must not be carried out.
    if std::os::unix::process::parent_id() == worker {
        Ok(())
    } else {
        Err(std::io::Error::other("the worker has ended"))
    }
}

fn serve<Q: DeserializeOwned, A: Serialize>(
    input: &[u8],
    run: impl FnOnce(Q) -> Result<A, Reason>,
) -> Result<Vec<u8>, String> {
    let request = serde_json::from_slice(input).map_err(|e| format!("the request is not understood: {e}"))?;
    let answer = match run(request) {
        Ok(done) => Answer::Done(done),
        Err(reason) => Answer::Failed(reason),
    };
    serde_json::to_vec(&answer).map_err(|e| format!("the answer could not be written: {e}"))
}

/// Runs a helper and waits for its answer. `title` is what `ps` shows in place of the program's name. To be called on the
/// runtime's own threads: the helper ends with the thread that it was called on.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    program: &Path,
    op: &str,
    title: &str,
    request: &Q,
    deadline: Duration,
) -> Result<A, HostError> {
    let failed =
        |what: String| HostError::new("helper_failed", format!("The helper process for {op:?} failed: {what}."));
    let input = serde_json::to_vec(request).map_err(|e| failed(e.to_string()))?;
    let mut command = tokio::process::Command::new(program);
    command.arg0(title).args(["helper", op]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/").kill_on_drop(true);
    command.env(WORKER, std::process::id().to_string());
    let mut child = command.spawn().map_err(|e| failed(e.to_string()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async move {
        let mut out = Vec::new();
        let mut err = Vec::new();
        let write = async {
            if let Some(mut stdin) = stdin {
                // A helper that died early says why on stderr.
                let _ = stdin.write_all(&input).await;
            }
        };
        let read_out = async {
            if let Some(stdout) = stdout {
                let _ = stdout.take(64 << 20).read_to_end(&mut out).await;
            }
        };
        let read_err = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(64 << 10).read_to_end(&mut err).await;
            }
        };
        tokio::join!(write, read_out, read_err);
        (child.wait().await, out, err)
    };
    let Ok((status, out, err)) = tokio::time::timeout(deadline, talk).await else {
        return Err(failed(format!("it did not answer within {} s", deadline.as_secs())));
    };
    match serde_json::from_slice::<Answer<A>>(&out) {
        Ok(Answer::Done(answer)) => Ok(answer),
        Ok(Answer::Failed(reason)) => Err(HostError(reason)),
        Err(_) => {
            let status = status.map_or_else(|e| e.to_string(), |s| s.to_string());
            let said = String::from_utf8_lossy(&err);
            Err(failed(format!("{status}; it said: {}", said.trim())))
        }
    }
}
