//! Single nodes: run a command, open a terminal or Jupyter, read the console.

use docklet_client::Client;
use docklet_types::view::{AppStatus, Exec as Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::env;
use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::args::{Exec, Format, Place};
use crate::commands::Context;
use crate::failure::{Failure, Result};
use crate::output::{harmless, oneline, put, show};
use crate::terminal;

/// The longest time the server lets a command run.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long standard input may be silent at first before the command runs without it.
const SILENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(250);

pub async fn exec(cx: &Context, args: Exec) -> Result<u8> {
    let Place { vcluster, node: Some(node) } = args.place else {
        return Err(Failure::usage(
            "which node?",
            format!("write it as NAME/NODE: docklet exec {}/node1 -- COMMAND", args.place.vcluster),
        ));
    };
    let client = cx.client()?;
    let stdin = if args.no_stdin { String::new() } else { input(args.stdin)? };
    let timeout = cx.global.timeout.unwrap_or(LONGEST).min(LONGEST);
    let timeout_s = u32::try_from(timeout.as_secs()).ok();
    let result = client.exec(&vcluster, &node, &Request { argv: args.argv, stdin, timeout_s }).await?;
    match cx.global.output {
        Format::Json => show(Format::Json, &result, String::new),
        Format::Table => {
            put(result.stdout.as_bytes());
            // A closed standard error is no reason to hide the command's exit code.
            let _ = io::stderr().write_all(result.stderr.as_bytes());
        }
    }
    if result.truncated {
        eprintln!(
            "docklet: the output was longer than 1 MiB and is cut; let the command write to a file in ~/nfs instead"
        );
    }
    // Exit codes have eight bits everywhere.
    Ok((result.exit_code & 0xff) as u8)
}

/// Standard input to its end, when it is no terminal. A pipe that stays silent is left alone unless `insist`: it is
/// often one that nobody means, such as that of a service or of a remote shell, and it may never end.
fn input(insist: bool) -> Result<String> {
    let stdin = io::stdin();
    if stdin.is_terminal() && !insist {
        return Ok(String::new());
    }
    let wrong = |e| Failure::local("cannot read standard input", "add -n to leave it alone", e);
    if !insist {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let patience = Timespec::try_from(SILENCE).ok();
        match poll(&mut fds, patience.as_ref()) {
            Ok(0) => {
                eprintln!(
                    "docklet: standard input is silent; running without it (-i waits for it, -n leaves it alone)"
                );
                return Ok(String::new());
            }
            Ok(_) => {}
            Err(e) => return Err(wrong(e.into())),
        }
    }
    let mut bytes = Vec::new();
    match stdin.lock().read_to_end(&mut bytes) {
        Ok(_) => {}
        // Closed before this program began: there is no input.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BADF.raw_os_error()) => return Ok(String::new()),
        Err(e) => return Err(wrong(e)),
    }
    String::from_utf8(bytes).map_err(|_| Failure::usage("standard input is not text in UTF-8", "put binary files into ~/nfs, or encode them: base64 FILE | docklet exec NAME/NODE -- sh -c 'base64 -d > FILE'"))
}

pub async fn connect(cx: &Context, place: Place, session: Option<&str>) -> Result<u8> {
    let client = cx.client()?;
    let (vcluster, node) = resolve(&client, place).await?;
    terminal::connect(&client, &vcluster, &node, session, cx.style_err()).await
}

pub async fn logs(cx: &Context, place: Place, lines: u32) -> Result<()> {
    let client = cx.client()?;
    let (vcluster, node) = resolve(&client, place).await?;
    let logs = client.logs(&vcluster, &node, lines).await?;
    show(cx.global.output, &logs, || {
        // On a terminal the node's bytes must not drive it; in a file they are kept.
        let mut text = if io::stdout().is_terminal() { harmless(&logs.text) } else { logs.text.clone() };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text
    });
    Ok(())
}

pub async fn open(cx: &Context, place: Place, print: bool) -> Result<()> {
    let client = cx.client()?;
    let (vcluster, node) = resolve(&client, place).await?;
    let deadline = Instant::now() + cx.timeout();
    let mut app = client.start_app(&vcluster, &node, "jupyter").await?;
    while cx.waits() && app.status != AppStatus::Running {
        if app.status == AppStatus::Failed {
            let why = app.reason.map_or_else(String::new, |r| format!(": {}", oneline(&r.message)));
            return Err(Failure::Local {
                what: format!("Jupyter did not start in {vcluster}/{node}{why}"),
                hint: format!("see: docklet logs {vcluster}/{node}"),
                source: None,
            });
        }
        if Instant::now() >= deadline {
            return Err(Failure::TimedOut {
                what: format!("Jupyter in {vcluster}/{node} did not answer"),
                seconds: cx.timeout().as_secs(),
                hint: format!("see: docklet logs {vcluster}/{node}"),
            });
        }
        tokio::time::sleep(LOOK).await;
        app = match client.app(&vcluster, &node, "jupyter").await {
            Ok(app) => app,
            Err(e) if e.is_transient() => continue,
            Err(e) => return Err(e.into()),
        };
    }
    show(cx.global.output, &app, || format!("{}\n", app.url));
    if !print && cx.global.output == Format::Table && cx.style().width.is_some() {
        browse(&app.url);
    }
    Ok(())
}

/// On a desktop, opens the address. Its being printed is enough where this does not work.
fn browse(url: &str) {
    if env::var_os("DISPLAY").is_none() && env::var_os("WAYLAND_DISPLAY").is_none() {
        return;
    }
    // Only web addresses: a server must not be able to start other programs here.
    if url.starts_with("http://") || url.starts_with("https://") {
        let _ =
            Command::new("xdg-open").arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    }
}

/// The node meant: the one named, or the vcluster's first.
async fn resolve(client: &Client, place: Place) -> Result<(String, String)> {
    match place.node {
        Some(node) => Ok((place.vcluster, node)),
        None => {
            let first = client.nodes(&place.vcluster).await?.into_iter().next();
            let node = first.ok_or_else(|| Failure::NotFound {
                what: format!("{} has no nodes", place.vcluster),
                hint: format!("see: docklet status {}", place.vcluster),
            })?;
            Ok((place.vcluster, node.name))
        }
    }
}
