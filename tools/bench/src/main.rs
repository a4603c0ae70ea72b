//! `docklet-bench`: measures Docklet against the floor, the least work that gives the same result, and against LXD.
//!
//! All sides run in one process run, in turns, so that a machine that is slow today is slow for all. Everything that
//! a run makes it removes again, on errors and on Ctrl-C too.

mod docklet;
mod floor;
mod launch;
mod lxd;
mod many;
mod planner;
mod proxy;
mod stats;
mod terminal;

use clap::{Parser, Subcommand};
use std::future::Future;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Parser)]
#[command(
    name = "docklet-bench",
    version,
    about = "Measures Docklet against the least work that gives the same result."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// All nodes of a vcluster ready, and all gone: Docklet through its REST API, plain lxc-start on the same image, and
    /// LXD where it is installed.
    Launch(launch::Options),
    /// Very many nodes: what each batch takes, and what the daemons need while all run.
    Many(many::Options),
    /// Requests and sockets into a node: through Docklet, with its checks, and through plain nginx and
    /// configurable-http-proxy.
    Proxy(proxy::Options),
    /// A terminal's output and keys: Docklet's beside JupyterLab's in the same node.
    Terminal(terminal::Options),
    /// What is asked by `proxy` in the node.
    #[command(hide = true)]
    Upstream(proxy::upstream::Options),
    /// The planner and its store at scale: the real master and etcd under thousands of simulated hosts.
    Planner(planner::Options),
    /// Becomes one container of the floor; its description is on standard input.
    #[command(hide = true)]
    FloorNode,
    /// Runs LXD's daemon as the first process of its namespaces; its description is on standard input.
    #[command(hide = true)]
    LxdDaemon,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        // Namespaces are entered before any thread is made.
        Command::FloorNode => floor::stage::run().map_err(|e| chain(&e)),
        Command::LxdDaemon => lxd::stage::run().map_err(|e| chain(&e)),
        Command::Launch(options) => as_root(launch::run(&options)),
        Command::Many(options) if options.floor => as_root(many::run(&options)),
        Command::Many(options) => run(many::run(&options)),
        Command::Proxy(options) => as_root(proxy::run(options)),
        Command::Terminal(options) => as_root(terminal::run(options)),
        Command::Upstream(options) => run(proxy::upstream::run(&options)),
        Command::Planner(options) => planner(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("docklet-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn as_root<E: std::error::Error>(work: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("containers need root\n  → run it with sudo".to_owned());
    }
    run(work)
}

fn run<E: std::error::Error>(work: impl Future<Output = Result<(), E>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(work).map_err(|e| chain(&e))
}

/// Returns when this run is to end early.
async fn interrupted() -> std::io::Result<()> {
    let mut int = signal(SignalKind::interrupt())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut hup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
        _ = hup.recv() => {}
    }
    eprintln!("docklet-bench: interrupted; removing what was made");
    Ok(())
}

fn planner(options: &planner::Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(planner::run(options)).map_err(|e| chain(&e))
}

/// An error with its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}
