//! `docklet-bench launch`: rounds of both sides in turn, and the report.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

use crate::docklet::{Docklet, DockletError};
use crate::floor::{Floor, FloorError};
use crate::stats::{Machine, Ratio, Side};

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
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Address of the Docklet server.
    #[arg(long, env = "DOCKLET_URL", default_value = "http://localhost:8000")]
    pub url: String,
    /// Token; without one the run signs in as root with the generated password.
    #[arg(long, env = "DOCKLET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Docklet's FS_PREFIX on this host.
    #[arg(long, env = "DOCKLET_FS_PREFIX", default_value = "/opt/docklet")]
    pub fs_prefix: PathBuf,
    /// Measure only the floor, on these unpacked layers (lowest first); no server is needed.
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
    /// Docklet's medians over the floor's.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    nodes: u32,
    rounds: u32,
    image: String,
    /// How the floor's ids are mapped: `newuidmap`, or `direct` where /etc/subuid does not list the range.
    floor_idmap: &'static str,
    machine: Machine,
}

/// Measures and prints. Both sides are cleaned up whatever happens.
pub async fn run(options: &Options) -> Result<(), LaunchError> {
    let mut docklet = match options.layers.is_empty() {
        true => Some(Docklet::sign_in(options).await?),
        false => None,
    };
    let mut floor = None;
    let measured = tokio::select! {
        measured = measure(options, &mut docklet, &mut floor) => measured,
        stopped = crate::interrupted() => Err(stopped.map_or_else(LaunchError::Signals, |()| LaunchError::Interrupted)),
    };
    if let Some(floor) = floor {
        floor.remove().await;
    }
    if let Some(mut docklet) = docklet {
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

async fn measure(
    options: &Options,
    docklet: &mut Option<Docklet>,
    floor: &mut Option<Floor>,
) -> Result<Report, LaunchError> {
    let say = |text: &str| eprintln!("{text}");
    let layers = match docklet {
        Some(docklet) => {
            say("warm-up: one node of Docklet, which unpacks the image");
            docklet.warm_up(&options.fs_prefix).await?
        }
        None => options.layers.clone(),
    };
    let floor = floor.insert(Floor::prepare(options, layers).await?);
    // The first containers after a boot load kernel modules; neither side should pay for that.
    floor.round(1, options.timeout).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        // Who goes first changes, so that neither always finds the caches the other warmed.
        for turn in 0..2 {
            tokio::time::sleep(SETTLE).await;
            if (round + turn) % 2 == 0 {
                let Some(docklet) = docklet.as_mut() else { continue };
                let (ready, gone) = docklet.round().await?;
                say(&format!(
                    "round {}/{}: docklet  ready {:.3} s  gone {:.3} s",
                    round + 1,
                    options.rounds,
                    ready.as_secs_f64(),
                    gone.as_secs_f64()
                ));
                ours.push((ready, gone));
            } else {
                let (ready, gone) = floor.round(options.nodes, options.timeout).await?;
                say(&format!(
                    "round {}/{}: floor    ready {:.3} s  gone {:.3} s",
                    round + 1,
                    options.rounds,
                    ready.as_secs_f64(),
                    gone.as_secs_f64()
                ));
                theirs.push((ready, gone));
            }
        }
    }
    let theirs = Side::of(&theirs);
    let ours = docklet.as_ref().map(|_| Side::of(&ours));
    Ok(Report {
        ratio: ours.as_ref().map(|ours| Ratio::of(ours, &theirs)),
        docklet: ours,
        floor: theirs,
        nodes: options.nodes,
        rounds: options.rounds,
        image: if options.layers.is_empty() { options.image.clone() } else { "(layers given)".to_owned() },
        floor_idmap: floor.idmap(),
        machine: Machine::look(),
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
    if let Some(ratio) = &report.ratio {
        table.add_row([
            String::from("ratio"),
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
    format!(
        "{table}\nmedians of {} rounds · {} CPUs ({}), {} MiB, kernel {}, LXC {}, cgroup {}",
        report.rounds, m.cpus, m.cpu_model, m.memory_mib, m.kernel, m.lxc, m.cgroup
    )
}
