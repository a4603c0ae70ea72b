//! `docklet-bench launch`: rounds of all sides in turn, and the report.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

use crate::docklet::{Docklet, DockletError, Server};
use crate::floor::{Floor, FloorError};
use crate::interrupted;
use crate::lxd::{self, Lxd, LxdError};
use crate::stats::{Machine, Ratio, Side, version};

/// Between two measurements, for what the kernel takes down in the background.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Nodes per round.
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub nodes: u32,
    /// Rounds of each side.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Image of the nodes.
    #[arg(long, default_value = "small")]
    pub image: String,
    /// CPUs of each node; the server's default where absent. Many nodes need small ones to find room.
    #[arg(long)]
    pub cpu: Option<f64>,
    /// Memory of each node in MiB; the server's default where absent.
    #[arg(long, value_name = "MIB")]
    pub memory: Option<i64>,
    /// Disk of each node in MiB; the server's default where absent.
    #[arg(long, value_name = "MIB")]
    pub disk: Option<i64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: Server,
    /// Sign in and wait before each round until the master has booted the nodes ahead (its PREBOOT_NODES).
    #[arg(long)]
    pub booted_ahead: bool,
    /// Leave LXD out where it is installed.
    #[arg(long)]
    pub no_lxd: bool,
    /// Measure without Docklet, on these unpacked layers (lowest first); no server is needed.
    #[arg(long = "layer", value_name = "DIR")]
    pub layers: Vec<PathBuf>,
    /// Seconds until nodes must be ready or gone.
    #[arg(long, default_value = "120", value_parser = |t: &str| t.parse().map(Duration::from_secs))]
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("docklet")]
    Docklet(#[from] DockletError),
    #[error("floor")]
    Floor(#[from] FloorError),
    #[error("lxd")]
    Lxd(#[from] LxdError),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

#[derive(Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    docklet: Option<Side>,
    floor: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    lxd: Option<Side>,
    /// Docklet's medians over the floor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    /// Docklet's medians over LXD's.
    #[serde(skip_serializing_if = "Option::is_none")]
    lxd_ratio: Option<Ratio>,
    /// Why LXD is not among the sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    lxd_left_out: Option<&'static str>,
    nodes: u32,
    rounds: u32,
    image: String,
    /// How the floor's ids are mapped: `newuidmap`, or `direct` where /etc/subuid does not list the range.
    floor_idmap: &'static str,
    machine: Machine,
}

/// The sides that were set up so far, so that whatever happens they can be removed. The floor always takes part.
#[derive(Default)]
struct Sides {
    docklet: Option<Docklet>,
    floor: Option<Floor>,
    lxd: Option<Lxd>,
}

/// Measures and prints. All sides are cleaned up whatever happens.
pub async fn run(options: &Options) -> Result<(), LaunchError> {
    let mut sides = Sides::default();
    if options.layers.is_empty() {
        sides.docklet = Some(Docklet::sign_in(options).await?);
    }
    let measured = tokio::select! {
        measured = measure(options, &mut sides) => measured,
        stopped = interrupted() => stopped.map_err(LaunchError::Signals).and(Err(LaunchError::Interrupted)),
    };
    if let Some(lxd) = sides.lxd {
        lxd.remove().await;
    }
    if let Some(floor) = sides.floor {
        floor.remove().await;
    }
    if let Some(mut docklet) = sides.docklet {
        docklet.clean().await;
    }
    let report = measured?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", table(&report));
    }
    Ok(())
}

/// LXD's program, or why it does not take part.
fn peer(options: &Options) -> Result<PathBuf, &'static str> {
    if options.no_lxd {
        return Err("LXD was left out, as asked (--no-lxd)");
    }
    lxd::find().ok_or("LXD is not installed, and was left out: apt install lxd")
}

async fn measure(options: &Options, sides: &mut Sides) -> Result<Report, LaunchError> {
    let say = |text: &str| eprintln!("{text}");
    let peer = peer(options);
    let layers = match &mut sides.docklet {
        Some(docklet) => {
            say("warm-up: one node of Docklet, which unpacks the image");
            docklet.warm_up(&options.server.fs_prefix).await?
        }
        None => options.layers.clone(),
    };
    match &peer {
        Ok(program) => {
            say("warm-up: an LXD of our own, which imports the image");
            let lxd = Lxd::start(options, program.clone(), layers.clone()).await?;
            sides.lxd.insert(lxd).set_up(options.timeout).await?;
        }
        Err(why) => say(why),
    }
    let floor = sides.floor.insert(Floor::prepare(&options.server.fs_prefix, layers).await?);
    // The first containers after a boot load kernel modules, and LXD's first unpacks the image; no round should pay.
    floor.round(1, options.timeout).await?;
    if let Some(lxd) = &sides.lxd {
        lxd.round(1, options.timeout).await?;
    }
    let (mut ours, mut least, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // Who goes first changes, so that nobody always finds the caches another warmed.
        for turn in 0..3 {
            tokio::time::sleep(SETTLE).await;
            let (name, took, (ready, gone)) = match ((round + turn) % 3, &mut sides.docklet, &sides.lxd) {
                (0, Some(docklet), _) => ("docklet", &mut ours, docklet.round().await?),
                (1, ..) => ("floor", &mut least, floor.round(options.nodes, options.timeout).await?),
                (2, _, Some(lxd)) => ("lxd", &mut theirs, lxd.round(options.nodes, options.timeout).await?),
                _ => continue,
            };
            let (round, rounds) = (round + 1, options.rounds);
            let (ready_s, gone_s) = (ready.as_secs_f64(), gone.as_secs_f64());
            say(&format!("round {round}/{rounds}: {name:<8} ready {ready_s:.3} s  gone {gone_s:.3} s"));
            took.push((ready, gone));
        }
    }
    let least = Side::of(&least);
    let ours = sides.docklet.as_ref().map(|_| Side::of(&ours));
    let theirs = sides.lxd.as_ref().map(|_| Side::of(&theirs));
    Ok(Report {
        ratio: ours.as_ref().map(|ours| Ratio::of(ours, &least)),
        lxd_ratio: ours.as_ref().zip(theirs.as_ref()).map(|(ours, theirs)| Ratio::of(ours, theirs)),
        docklet: ours,
        floor: least,
        lxd: theirs,
        lxd_left_out: peer.as_ref().err().copied(),
        nodes: options.nodes,
        rounds: options.rounds,
        image: if options.layers.is_empty() { options.image.clone() } else { "(layers given)".to_owned() },
        floor_idmap: floor.idmap(),
        machine: Machine { lxd: peer.as_deref().ok().map(version), ..Machine::look() },
    })
}

fn table(report: &Report) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let title = format!("{} × {}", report.nodes, report.image);
    table.set_header([title.as_str(), "ready", "min", "max", "gone", "min", "max"]);
    let side = |name: &str, side: &Side| {
        let numbers = [&side.ready_s, &side.gone_s]
            .into_iter()
            .flat_map(|s| [s.median, s.min, s.max])
            .map(|n| Cell::new(format!("{n:.3} s")));
        [Cell::new(name)].into_iter().chain(numbers).collect::<Vec<_>>()
    };
    if let Some(docklet) = &report.docklet {
        table.add_row(side("docklet", docklet));
    }
    table.add_row(side("lxc-start", &report.floor));
    if let Some(lxd) = &report.lxd {
        table.add_row(side("lxd", lxd));
    }
    for (name, ratio) in [("docklet / lxc-start", &report.ratio), ("docklet / lxd", &report.lxd_ratio)] {
        let Some(ratio) = ratio else { continue };
        table.add_row([
            name.to_owned(),
            format!("{:.2}", ratio.ready),
            String::new(),
            String::new(),
            format!("{:.2}", ratio.gone),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let m = &report.machine;
    let lxd = match (&m.lxd, report.lxd_left_out) {
        (Some(version), _) => format!(", LXD {version}"),
        (None, why) => why.map_or_else(String::new, |why| format!("\n{why}")),
    };
    format!(
        "{table}\nmedians of {} rounds · {} CPUs ({}), {} MiB, kernel {}, cgroup {}, LXC {}{lxd}",
        report.rounds, m.cpus, m.cpu_model, m.memory_mib, m.kernel, m.cgroup, m.lxc
    )
}
