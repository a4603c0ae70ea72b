//! `docklet-bench terminal`: Docklet's terminal beside JupyterLab's own in the same node: how long `cat` of a large file
//! takes until its last byte is with the client, and how long a key takes until it is back.
//!
//! JupyterLab is asked in two ways: on the node's loopback with nothing in between, and as users have it, through
//! Docklet. Docklet's client acknowledges what it took, as the portal's does.

mod shell;

use comfy_table::{CellAlignment, Table, presets};
use docklet_types::view::AppStatus;
use serde::Serialize;
use std::time::{Duration, Instant};

use self::shell::{Jupyter, Shell, ShellError};
use crate::docklet::DockletError;
use crate::interrupted;
use crate::proxy::site::{self, NODE, Site, SiteError, Way};
use crate::stats::{Machine, Series};

/// JupyterLab's port.
const JUPYTER: u16 = 8888;
/// What is printed.
const FILE: &str = "/root/docklet-bench-cat";
/// Keys before the measured ones.
const WARM: u32 = 20;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    site: site::Options,
    /// Image of the node; it has JupyterLab.
    #[arg(long, default_value = "base")]
    image: String,
    /// Rounds of each side.
    #[arg(short, long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Megabytes (of 1,000,000 bytes) to print.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    megabytes: u32,
    /// Keys per round and side.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=4000))]
    keys: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("{side}")]
    Shell { side: &'static str, source: ShellError },
    #[error("JupyterLab did not start in the node: {0}")]
    Jupyter(String),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

/// One side over all rounds.
#[derive(Debug, Serialize)]
struct Side {
    cat_s: Series,
    /// A key until its echo is back, in milliseconds.
    key_p50_ms: Series,
    key_p99_ms: Series,
}

#[derive(Debug, Serialize)]
struct Report {
    docklet: Side,
    jupyterlab: Side,
    jupyterlab_through_docklet: Side,
    /// Docklet's medians over those of JupyterLab with nothing in between.
    ratio: Ratio,
    megabytes: u32,
    keys: u32,
    rounds: u32,
    jupyter_server: String,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Ratio {
    cat: f64,
    key_p50: f64,
}

/// Measures and prints. Everything that was made is removed whatever happens.
pub async fn run(options: Options) -> Result<(), TerminalError> {
    let mut site = Site::sign_in(&options.site, &options.image).await?;
    let measured = tokio::select! {
        measured = measure(&options, &mut site) => measured,
        stopped = interrupted() => Err(stopped.map_or_else(TerminalError::Signals, |()| TerminalError::Interrupted)),
    };
    site.clean().await;
    let report = measured?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", report.table());
    }
    Ok(())
}

/// A way to a shell of the node.
enum Kind {
    Docklet,
    Jupyter(Jupyter),
}

const NAMES: [&str; 3] = ["docklet", "jupyterlab", "jupyterlab through docklet"];

async fn measure(options: &Options, site: &mut Site) -> Result<Report, TerminalError> {
    eprintln!("a node with JupyterLab");
    site.launch().await?;
    let text = format!(
        "yes 'A line of text as programs print them, with some 80 characters in each of it.' | head -c {}000000 > {FILE}",
        options.megabytes
    );
    site.exec("writing the file", &["bash", "-c", &text], 120).await?;
    start_jupyter(site).await?;
    let version = site.exec("asking for the version", &["/opt/jupyter/bin/pip", "list", "--format=freeze"], 60).await?;
    let version = version.lines().find_map(|l| l.strip_prefix("jupyter_server==")).unwrap_or("unknown").to_owned();
    let direct = Jupyter::at(Way::Within(site.network()?, JUPYTER), format!("127.0.0.1:{JUPYTER}"), None);
    let door = site.door(JUPYTER).await?;
    let through = Jupyter::at(Way::Here(site.server), door.host, Some(door.cookie));
    let ways = [Kind::Docklet, Kind::Jupyter(direct), Kind::Jupyter(through)];
    let mut rounds: [Vec<(f64, f64, f64)>; 3] = Default::default();
    for round in 0..options.rounds as usize {
        for turn in 0..ways.len() {
            let at = (round + turn) % ways.len();
            let one = one_round(options, site, &ways[at]).await;
            let one = one.map_err(|source| TerminalError::Shell { side: NAMES[at], source })?;
            eprintln!(
                "round {}/{}: {:<26} cat {:>7.2} s  key p50 {:>6.2} ms  p99 {:>6.2} ms",
                round + 1,
                options.rounds,
                NAMES[at],
                one.0,
                one.1,
                one.2
            );
            rounds[at].push(one);
        }
    }
    let [docklet, jupyterlab, jupyterlab_through_docklet] = rounds.map(|rounds| Side {
        cat_s: Series::of_numbers(rounds.iter().map(|r| thousandths(r.0))),
        key_p50_ms: Series::of_numbers(rounds.iter().map(|r| thousandths(r.1))),
        key_p99_ms: Series::of_numbers(rounds.iter().map(|r| thousandths(r.2))),
    });
    Ok(Report {
        ratio: Ratio {
            cat: thousandths(docklet.cat_s.median / jupyterlab.cat_s.median),
            key_p50: thousandths(docklet.key_p50_ms.median / jupyterlab.key_p50_ms.median),
        },
        docklet,
        jupyterlab,
        jupyterlab_through_docklet,
        megabytes: options.megabytes,
        keys: options.keys,
        rounds: options.rounds,
        jupyter_server: version,
        machine: Machine::look(),
    })
}

fn thousandths(n: f64) -> f64 {
    (n * 1e3).round() / 1e3
}

async fn start_jupyter(site: &Site) -> Result<(), TerminalError> {
    let told = |e| TerminalError::Site(SiteError::Docklet(DockletError::Client(e)));
    let mut app = site.client.start_app(&site.vcluster, NODE, "jupyter").await.map_err(told)?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while app.status != AppStatus::Running {
        if app.status == AppStatus::Failed || Instant::now() > deadline {
            return Err(TerminalError::Jupyter(app.reason.map(|r| r.message).unwrap_or_default()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        app = site.client.app(&site.vcluster, NODE, "jupyter").await.map_err(told)?;
    }
    Ok(())
}

/// Seconds of `cat`, and the median and 99th percentile of keys in milliseconds.
async fn one_round(options: &Options, site: &Site, way: &Kind) -> Result<(f64, f64, f64), ShellError> {
    let mut shell = match way {
        Kind::Docklet => Shell::docklet(site).await?,
        Kind::Jupyter(jupyter) => jupyter.shell().await?,
    };
    shell.send("PS1='$ '; echo READY-$((40+2))\n").await?;
    shell.until(b"READY-42").await?;
    let began = Instant::now();
    shell.send(&format!("cat {FILE}; echo ENDED-$((40+2))\n")).await?;
    let bytes = shell.until(b"ENDED-42").await?;
    let cat = began.elapsed().as_secs_f64();
    let wanted = options.megabytes as usize * 1_000_000;
    if bytes < wanted {
        return Err(ShellError::Short { bytes, wanted });
    }
    // The kernel's echo, so that no program in the node is measured with it.
    shell.send("echo KEYS-$((40+2)); cat >/dev/null\n").await?;
    shell.until(b"KEYS-42").await?;
    let mut keys = Vec::new();
    for n in 0..WARM + options.keys {
        let key = [b"x", b"y"][n as usize % 2];
        let sent = Instant::now();
        shell.send(std::str::from_utf8(key).unwrap_or_default()).await?;
        shell.until(key).await?;
        if n >= WARM {
            keys.push(sent.elapsed().as_secs_f64() * 1e3);
        }
    }
    shell.end().await?;
    keys.sort_by(f64::total_cmp);
    let at = |share: f64| keys.get((share * (keys.len() - 1) as f64).round() as usize).copied().unwrap_or(f64::NAN);
    Ok((cat, at(0.5), at(0.99)))
}

impl Report {
    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let cat = format!("cat of {} MB", self.megabytes);
        table.set_header(["terminal", &cat, "min", "max", "key p50", "p99"]);
        for (name, side) in NAMES.iter().zip([&self.docklet, &self.jupyterlab, &self.jupyterlab_through_docklet]) {
            let cat = &side.cat_s;
            let mut row = vec![(*name).to_owned()];
            row.extend([cat.median, cat.min, cat.max].map(|n| format!("{n:.2} s")));
            row.extend([&side.key_p50_ms, &side.key_p99_ms].map(|s| format!("{:.2} ms", s.median)));
            table.add_row(row);
        }
        let empty = String::new;
        table.add_row([
            "docklet / jupyterlab".to_owned(),
            format!("{:.2}", self.ratio.cat),
            empty(),
            empty(),
            format!("{:.2}", self.ratio.key_p50),
            empty(),
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let m = &self.machine;
        format!(
            "{table}\nmedians of {} rounds, {} keys each · jupyter_server {} · {} CPUs ({}), {} MiB, kernel {}",
            self.rounds, self.keys, self.jupyter_server, m.cpus, m.cpu_model, m.memory_mib, m.kernel
        )
    }
}
