//! `docklet-bench many`: nodes in batches until there are very many, what each batch takes, and what the daemons need
//! while all of them run and nobody asks for anything.

use comfy_table::{Cell, CellAlignment, Table, presets};
use docklet_client::{Client, Target};
use docklet_types::paths::Paths;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, SizeRequest};
use serde::Serialize;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::docklet::{DockletError, sign_in};
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
    /// Nodes of each vcluster; they are made one after the other.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub each: u32,
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
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

/// One vcluster on the way to the whole.
#[derive(Debug, Clone, Serialize)]
struct Batch {
    /// Nodes that ran before it.
    before: u32,
    nodes: u32,
    ready_s: f64,
    /// Of each node.
    millis_each: f64,
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
    batches: Vec<Batch>,
    /// Time of a node of the last batch over that of the first.
    last_over_first: f64,
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
    let report = Report { gone_s: gone.as_secs_f64(), ..measured? };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", table(&report));
    }
    Ok(())
}

async fn measure(options: &Options, client: &Client, prefix: &str) -> Result<Report, DockletError> {
    let used_before = used_mib();
    let mut batches: Vec<Batch> = Vec::new();
    let mut there = 0;
    while there < options.nodes {
        let nodes = options.each.min(options.nodes - there);
        let request = CreateVcluster {
            name: format!("{prefix}-{}", batches.len()),
            nodes: i64::from(nodes),
            image: Some(options.image.clone()),
            size: Some(SizeRequest {
                cpu: Some(options.cpu),
                memory_mib: Some(options.memory),
                disk_mib: Some(options.disk),
            }),
            ..CreateVcluster::default()
        };
        let began = Instant::now();
        let view = client.create(&request).await?;
        let target = Target::of(&view, Status::Running);
        client.wait(&request.name, target, options.timeout).await.map_err(DockletError::Ready)?;
        let took = began.elapsed();
        let millis_each = took.as_secs_f64() * 1000.0 / f64::from(nodes);
        eprintln!("{there:5} + {nodes:4} nodes: {:.2} s, {millis_each:.1} ms each", took.as_secs_f64());
        batches.push(Batch { before: there, nodes, ready_s: took.as_secs_f64(), millis_each });
        there += nodes;
    }
    tokio::time::sleep(SETTLE).await;
    let node_mib = (used_mib() - used_before) / f64::from(there.max(1));
    let ratio = |batches: &[Batch]| Some(batches.last()?.millis_each / batches.first()?.millis_each);
    Ok(Report {
        nodes: there,
        image: options.image.clone(),
        last_over_first: ratio(&batches).unwrap_or(f64::NAN),
        batches,
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
    batches.load_style(presets::NOTHING).set_header(["before", "nodes", "ready", "each"]);
    for b in &report.batches {
        batches.add_row([
            Cell::new(b.before),
            Cell::new(b.nodes),
            Cell::new(format!("{:.2} s", b.ready_s)),
            Cell::new(format!("{:.1} ms", b.millis_each)),
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
    format!(
        "{batches}\nlast over first: {:.2} · {:.1} MiB per node · all gone after {:.2} s\n\n{idle}\n\n{} nodes of {} · {} CPUs ({}), {} MiB, kernel {}, LXC {}, cgroup {}",
        report.last_over_first,
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
