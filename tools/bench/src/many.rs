//! `docklet-bench many`: nodes in batches until there are very many, what each batch takes, and what the daemons need
//! while all of them run and nobody asks for anything. Where it is asked for, plain `lxc-start` containers in the same
//! batches beside it: what the kernel takes for the thousandth container is in both.

use comfy_table::{Cell, CellAlignment, Table, presets};
use docklet_client::{Client, Target};
use docklet_types::paths::Paths;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, SizeRequest};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::docklet::{DockletError, sign_in, unpacked};
use crate::floor::{Floor, FloorError};
use crate::interrupted;
use crate::stats::Machine;

/// How long the daemons are watched while nobody asks for anything.
const IDLE: Duration = Duration::from_secs(20);
/// What is still under way after the last batch may end before.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Nodes in all.
    #[arg(short, long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub nodes: u32,
    /// Vclusters that they are in; these are made one after the other.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub vclusters: u32,
    /// Measure plain lxc-start in the same batches first, after one node of Docklet's, which unpacks the image.
    #[arg(long)]
    pub floor: bool,
    /// Image of the nodes.
    #[arg(long, default_value = "small")]
    pub image: String,
    /// CPUs of each node. The server's overcommit must allow as many.
    #[arg(long, default_value_t = 0.05)]
    pub cpu: f64,
    /// Memory of each node in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    pub memory: i64,
    /// Disk of each node in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    pub disk: i64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: crate::docklet::Server,
    /// Seconds until a batch must be ready or gone.
    #[arg(long, default_value = "600", value_parser = |t: &str| t.parse().map(Duration::from_secs))]
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ManyError {
    #[error("docklet")]
    Docklet(#[from] DockletError),
    #[error("floor")]
    Floor(#[from] FloorError),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

/// One vcluster, or as many plain containers, on the way to the whole.
#[derive(Debug, Clone, Serialize)]
struct Batch {
    /// Nodes that ran before it.
    before: u32,
    nodes: u32,
    ready_s: f64,
    /// Of each node.
    millis_each: f64,
}

/// All batches of one side.
#[derive(Debug, Serialize)]
struct Batches {
    batches: Vec<Batch>,
    /// Time of each node of the last tenth over that of the first.
    last_over_first: f64,
}

impl Batches {
    fn of(batches: Vec<Batch>) -> Self {
        let tenth = batches.len().div_ceil(10);
        let millis = |part: &[Batch]| part.iter().map(|b| b.millis_each).sum::<f64>() / part.len() as f64;
        let last_over_first = millis(&batches[batches.len() - tenth..]) / millis(&batches[..tenth]);
        Self { batches, last_over_first }
    }
}

/// A daemon over [`IDLE`].
#[derive(Debug, Clone, Serialize)]
struct Daemon {
    name: &'static str,
    resident_mib: f64,
    /// Of one CPU.
    cpu_percent: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    nodes: u32,
    image: String,
    docklet: Batches,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<Batches>,
    idle: Vec<Daemon>,
    /// Memory of the machine in use per node.
    node_mib: f64,
    gone_s: f64,
    machine: Machine,
}

/// Measures and prints. What was made is removed whatever happens.
pub async fn run(options: &Options) -> Result<(), ManyError> {
    let (client, _, own_session) = sign_in(&options.server).await?;
    let prefix = format!("many-{}", &uuid::Uuid::new_v4().simple().to_string()[..6]);
    let floor = if options.floor { Some(floor(options, &client, &prefix).await?) } else { None };
    let measured = tokio::select! {
        measured = measure(options, &client, &prefix) => measured.map_err(ManyError::from),
        stopped = interrupted() => stopped.map_err(ManyError::Signals).and(Err(ManyError::Interrupted)),
    };
    let began = Instant::now();
    remove(&client, &prefix, options.timeout).await;
    let gone = began.elapsed();
    if own_session {
        let _ = client.sign_out().await;
    }
    let report = Report { gone_s: gone.as_secs_f64(), floor, ..measured? };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", table(&report));
    }
    Ok(())
}

/// How many nodes each vcluster has; the first ones have one more where it does not come out even.
fn sizes(nodes: u32, vclusters: u32) -> impl Iterator<Item = u32> {
    let (each, more) = (nodes / vclusters, nodes % vclusters);
    (0..vclusters).map(move |index| each + u32::from(index < more)).filter(|size| *size > 0)
}

fn batch(side: &str, before: u32, nodes: u32, took: Duration) -> Batch {
    let millis_each = took.as_secs_f64() * 1000.0 / f64::from(nodes);
    eprintln!("{side:9} {before:5} + {nodes:4} nodes: {:.2} s, {millis_each:.1} ms each", took.as_secs_f64());
    Batch { before, nodes, ready_s: took.as_secs_f64(), millis_each }
}

/// The same number of plain containers, which are gone again when this returns.
async fn floor(options: &Options, client: &Client, prefix: &str) -> Result<Batches, ManyError> {
    // The image is unpacked by the first node that needs it.
    vcluster(options, client, &format!("{prefix}-w"), 1).await?;
    remove(client, prefix, options.timeout).await;
    let layers = unpacked(client, &options.server.fs_prefix, &options.image).await?;
    let mut floor = Floor::prepare(&options.server.fs_prefix, layers).await?;
    let measured = tokio::select! {
        measured = floor_batches(options, &mut floor) => measured.map_err(ManyError::from),
        stopped = interrupted() => stopped.map_err(ManyError::Signals).and(Err(ManyError::Interrupted)),
    };
    floor.remove().await;
    measured
}

async fn floor_batches(options: &Options, floor: &mut Floor) -> Result<Batches, FloorError> {
    let mut batches = Vec::new();
    let mut there = 0;
    for nodes in sizes(options.nodes, options.vclusters) {
        let took = floor.batch(nodes, options.timeout).await?;
        batches.push(batch("lxc-start", there, nodes, took));
        there += nodes;
    }
    Ok(Batches::of(batches))
}

/// Makes a vcluster and waits until it runs.
async fn vcluster(options: &Options, client: &Client, name: &str, nodes: u32) -> Result<(), DockletError> {
    let request = CreateVcluster {
        name: name.to_owned(),
        nodes: i64::from(nodes),
        image: Some(options.image.clone()),
        size: Some(SizeRequest {
            cpu: Some(options.cpu),
            memory_mib: Some(options.memory),
            disk_mib: Some(options.disk),
        }),
        ..CreateVcluster::default()
    };
    let view = client.create(&request).await?;
    let target = Target::of(&view, Status::Running);
    client.wait(name, target, options.timeout).await.map(drop).map_err(DockletError::Ready)
}

async fn measure(options: &Options, client: &Client, prefix: &str) -> Result<Report, DockletError> {
    let used_before = used_mib();
    let mut batches = Vec::new();
    let mut there = 0;
    for nodes in sizes(options.nodes, options.vclusters) {
        let began = Instant::now();
        vcluster(options, client, &format!("{prefix}-{}", batches.len()), nodes).await?;
        batches.push(batch("docklet", there, nodes, began.elapsed()));
        there += nodes;
    }
    tokio::time::sleep(SETTLE).await;
    let node_mib = (used_mib() - used_before) / f64::from(there.max(1));
    Ok(Report {
        nodes: there,
        image: options.image.clone(),
        docklet: Batches::of(batches),
        floor: None,
        idle: idle(&options.server.fs_prefix).await,
        node_mib,
        gone_s: 0.0,
        machine: Machine::look(),
    })
}

/// Everything of this run, all at once.
async fn remove(client: &Client, prefix: &str, timeout: Duration) {
    let ours = client.vclusters().await.unwrap_or_default().into_iter().map(|v| v.name);
    let ours: Vec<String> = ours.filter(|name| name.starts_with(&format!("{prefix}-"))).collect();
    let removals = ours.iter().map(|name| async move {
        if let Err(error) = client.delete_and_wait(name, timeout).await {
            eprintln!("docklet-bench: vcluster {name} is left behind: {}", crate::chain(&error));
        }
    });
    futures::future::join_all(removals).await;
}

fn used_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key));
        line.and_then(|l| l.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    (kib("MemTotal:") - kib("MemAvailable:")) / 1024.0
}

/// The daemons of this host by their pid files; those that are elsewhere are left out.
async fn idle(fs_prefix: &Path) -> Vec<Daemon> {
    let local = Paths::new(fs_prefix).local();
    let files = [
        ("docklet-master", local.join("run/docklet-master.pid")),
        ("docklet-worker", local.join("run/docklet-worker.pid")),
        ("etcd", local.join("etcd/etcd.pid")),
    ];
    let pid = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u32>().ok();
    let running: Vec<(&'static str, u32)> = files.iter().filter_map(|(name, file)| Some((*name, pid(file)?))).collect();
    let before: Vec<f64> = running.iter().map(|(_, pid)| cpu_seconds(*pid)).collect();
    let began = Instant::now();
    tokio::time::sleep(IDLE).await;
    let seconds = began.elapsed().as_secs_f64();
    let after = running.iter().zip(before);
    after
        .map(|((name, pid), before)| Daemon {
            name,
            resident_mib: resident_mib(*pid),
            cpu_percent: (cpu_seconds(*pid) - before) * 100.0 / seconds,
        })
        .collect()
}

fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// User and system time so far.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // proc(5): after the name in parentheses, which may hold anything, utime and stime are the 12th and 13th field.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    (ticks(11) + ticks(12)) / per_second as f64
}

fn table(report: &Report) -> String {
    let right = |table: &mut Table| {
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
    };
    let mut batches = Table::new();
    batches.load_style(presets::NOTHING).set_header(["before", "nodes", "ready", "each", "lxc-start"]);
    let floor = report.floor.as_ref();
    for (index, b) in report.docklet.batches.iter().enumerate() {
        let least = floor.and_then(|f| f.batches.get(index));
        batches.add_row([
            Cell::new(b.before),
            Cell::new(b.nodes),
            Cell::new(format!("{:.2} s", b.ready_s)),
            Cell::new(format!("{:.1} ms", b.millis_each)),
            Cell::new(least.map_or_else(String::new, |l| format!("{:.1} ms", l.millis_each))),
        ]);
    }
    right(&mut batches);
    let mut idle = Table::new();
    idle.load_style(presets::NOTHING).set_header(["idle", "memory", "CPU"]);
    for d in &report.idle {
        idle.add_row([
            Cell::new(d.name),
            Cell::new(format!("{:.1} MiB", d.resident_mib)),
            Cell::new(format!("{:.2} %", d.cpu_percent)),
        ]);
    }
    right(&mut idle);
    let m = &report.machine;
    let least = floor.map_or_else(String::new, |f| format!(" (lxc-start: {:.2})", f.last_over_first));
    format!(
        "{batches}\nlast tenth over first: {:.2}{least} · {:.1} MiB per node · all gone after {:.2} s\n\n{idle}\n\n{} nodes of {} · {} CPUs ({}), {} MiB, kernel {}, LXC {}, cgroup {}",
        report.docklet.last_over_first,
        report.node_mib,
        report.gone_s,
        report.nodes,
        report.image,
        m.cpus,
        m.cpu_model,
        m.memory_mib,
        m.kernel,
        m.lxc,
        m.cgroup
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nodes_are_spread_over_vclusters_and_none_is_lost() {
        assert_eq!(sizes(1000, 100).collect::<Vec<_>>(), [10; 100]);
        assert_eq!(sizes(1000, 1).collect::<Vec<_>>(), [1000]);
        assert_eq!(sizes(10, 3).collect::<Vec<_>>(), [4, 3, 3]);
        assert_eq!(sizes(2, 3).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn the_last_tenth_is_compared_with_the_first() {
        let batch = |millis_each| Batch { before: 0, nodes: 1, ready_s: 0.0, millis_each };
        assert!((Batches::of(vec![batch(10.0), batch(50.0), batch(20.0)]).last_over_first - 2.0).abs() < 1e-9);
        let twenty = (1..=20).map(|n| batch(f64::from(n))).collect();
        assert!((Batches::of(twenty).last_over_first - 13.0).abs() < 1e-9);
    }
}
