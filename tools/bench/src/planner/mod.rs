//! `docklet-bench planner`: the real master and the etcd that it starts, under thousands of hosts that only report.
//!
//! Half of the nodes are asked for through the API, with the hosts answering. With those stored, requests, an idle master
//! and hosts that vanish are measured. The other half comes as a backlog of specs, with the hosts silent, so that the
//! planner is measured alone. In between an etcd of its own says what the disk allows.

mod api;
mod backlog;
mod figures;
mod floor;
mod hosts;
mod site;

use docklet_client::{Client, Error};
use docklet_store::keys::Key;
use docklet_store::{Store, StoreError};
use docklet_types::id::VclusterId;
use docklet_types::status::Status;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use self::api::{ApiError, Caller};
use self::backlog::BacklogError;
use self::figures::{Docklet, Floor as FloorFigures, Idle, Placed, Ratio, Report, Vanished, median, rounded};
use self::floor::{Floor, FloorError, Sizes};
use self::hosts::{Fleet, HostsError};
use self::site::{Process, Site, SiteError};
use crate::stats::Machine;

/// Hosts that share a connection. Each real one has its own; with hundreds of watches on one etcd 3.4 was seen to take
/// most of a core and to answer late. Why is not known.
const ON_A_CONNECTION: usize = 20;
/// Clients that fill the store at the same time.
const FILLERS: usize = 16;
/// Until anything that is waited for must have come about.
const LIMIT: Duration = Duration::from_secs(600);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// Users that own the vclusters.
const USERS: usize = 50;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Simulated hosts.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(10..=20_000))]
    pub hosts: u32,
    /// Nodes at the end.
    #[arg(long, default_value_t = 100_000)]
    pub nodes: u32,
    /// Nodes that are stored while requests are measured.
    #[arg(long, default_value_t = 50_000)]
    pub stored: u32,
    /// Nodes of a vcluster.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=40))]
    pub each: u32,
    /// Requests of each kind.
    #[arg(long, default_value_t = 200)]
    pub samples: usize,
    /// Seconds for which the idle master is watched.
    #[arg(long, default_value_t = 60)]
    pub idle: u64,
    /// A small run that only tells whether something is slower by a factor; fails if it is.
    #[arg(long)]
    pub short: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Everything lies in a directory below this one, which is removed at the end.
    #[arg(long, env = "DOCKLET_FS_PREFIX", default_value = "/opt/docklet")]
    pub fs_prefix: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum PlannerError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Backlog(#[from] BacklogError),
    #[error("floor")]
    Floor(#[from] FloorError),
    #[error("the master refused or cannot be reached")]
    Client(#[from] Error),
    #[error("the store cannot be read")]
    Store(#[source] StoreError),
    #[error("a client ended")]
    Task(#[source] tokio::task::JoinError),
    #[error("{what} did not come about in {} s", LIMIT.as_secs())]
    Late { what: &'static str },
    #[error("slower than it may ever be: {0}")]
    TooSlow(String),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

type Result<T> = std::result::Result<T, PlannerError>;

/// The nearest directory that is there: the disk that FS_PREFIX is on.
fn base(prefix: &Path) -> &Path {
    prefix.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"))
}

/// Measures and prints. Everything is removed whatever happens.
pub async fn run(options: &Options) -> Result<()> {
    let mut options = options.clone();
    if options.short {
        options = Options { hosts: 200, nodes: 2000, stored: 1000, samples: 20, idle: 2, ..options };
    }
    let name = format!("bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let dir = base(&options.fs_prefix).join(name);
    let site = Site::new(&dir)?;
    let measured = tokio::select! {
        measured = measure(&options, &site, &dir) => measured,
        stopped = crate::interrupted() => Err(stopped.map_or_else(PlannerError::Signals, |()| PlannerError::Interrupted)),
    };
    site.remove().await;
    let report = measured?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", report.table());
    }
    if options.short { not_too_slow(&report) } else { Ok(()) }
}

/// Bounds that only a gross step back passes, on a machine that has other things to do as well.
fn not_too_slow(report: &Report) -> Result<()> {
    let docklet = &report.docklet;
    let mut wrong = Vec::new();
    if docklet.backlog.per_second < 150.0 {
        wrong.push(format!("{:.0} placements/s from a backlog", docklet.backlog.per_second));
    }
    for (name, latency) in docklet.api.iter().filter(|(_, latency)| latency.p95_ms > 250.0) {
        wrong.push(format!("p95 of {name} is {:.0} ms", latency.p95_ms));
    }
    if docklet.small.p95_ms > 2000.0 {
        wrong.push(format!("{:.0} ms until {} nodes run", docklet.small.p95_ms, docklet.small_nodes));
    }
    if docklet.vanished.shown_after_s > 5.0 {
        wrong.push(format!("{:.0} s until lost hosts are shown", docklet.vanished.shown_after_s));
    }
    if docklet.vanished.started_twice + docklet.vanished.plans_written > 0 {
        wrong.push("nodes of lost hosts were touched".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { Err(PlannerError::TooSlow(wrong.join(", "))) }
}

fn say(text: &str) {
    eprintln!("{text}");
}

/// What a run works with.
struct Bench<'a> {
    options: &'a Options,
    site: &'a Site,
    fleet: Fleet,
    store: Arc<dyn Store>,
    root: Client,
    caller: Caller,
    users: Vec<String>,
}

async fn measure(options: &Options, site: &Site, dir: &Path) -> Result<Report> {
    let (root, token) = site.start().await?;
    let caller = Caller::new(&site.url, &token)?;
    let users = site.users(&root, USERS.min((options.stored / options.each).max(1) as usize)).await?;
    let mut stores = site.stores(options.hosts as usize / ON_A_CONNECTION + 1).await?;
    let store: Arc<dyn Store> = Arc::new(stores.remove(0));
    let ttl = Duration::from_secs(if options.short { 3 } else { 15 });
    let mut fleet = Fleet::new(stores, site.keys.clone(), ttl);
    let began = Instant::now();
    let names = hosts::names(options.hosts as usize)?;
    fleet.bring_up(&names).await?;
    say(&format!("{} hosts are up after {:.1} s", names.len(), began.elapsed().as_secs_f64()));
    let floor = Floor::start(dir).await?;
    let mut bench = Bench { options, site, fleet, store, root, caller, users };
    let measured = bench.measure(&floor).await;
    floor.stop().await;
    measured
}

/// CPU seconds of the three that share the machine.
struct Cpu {
    master: f64,
    etcd: f64,
    own: f64,
}

impl Bench<'_> {
    async fn measure(&mut self, floor: &Floor) -> Result<Report> {
        let options = self.options;
        let (mut docklet, mut figures) = (Docklet::default(), FloorFigures::default());
        let each = if options.short { Duration::from_millis(200) } else { Duration::from_secs(3) };
        docklet.filled = self.fill().await?;
        let sizes = self.sizes().await?;
        say(&format!("a plan has {} bytes, a share {}", sizes.plan, sizes.share));
        floor.round(sizes, options.each as usize, each, &mut figures).await?;
        docklet.api = self.api("", options.samples).await?;
        docklet.small_nodes = options.each.min(10);
        let samples = options.samples.div_ceil(4);
        docklet.small = self.caller.measure_running(&self.users[0], docklet.small_nodes, samples).await?;
        say(&format!("{} nodes run {:.0} ms after the request", docklet.small_nodes, docklet.small.p50_ms));
        floor.round(sizes, options.each as usize, each, &mut figures).await?;
        docklet.idle = self.idle().await?;
        docklet.vanished = self.vanish().await?;
        (docklet.backlog, docklet.api_busy) = self.backlog().await?;
        floor.round(sizes, options.each as usize, each, &mut figures).await?;
        let began = Instant::now();
        self.fleet.answer(true);
        self.until_ready(self.planned_nodes(options.nodes)).await?;
        docklet.backlog_running_s = rounded(began.elapsed().as_secs_f64());
        docklet.vanished.started_twice = self.fleet.sight.look().twice;
        docklet.failed_reports = self.fleet.sight.look().failed;
        let ratio = docklet.backlog.per_second / median(&figures.placements_per_second).max(1.0);
        Ok(Report {
            docklet,
            floor: figures,
            ratio: Ratio { placements: rounded(ratio) },
            hosts: options.hosts as usize,
            nodes: self.planned_nodes(options.nodes),
            stored: self.planned_nodes(options.stored),
            nodes_per_vcluster: options.each,
            etcd: etcd_version().await,
            machine: Machine::look(),
        })
    }

    /// As many whole vclusters as that number of nodes makes.
    fn planned_nodes(&self, nodes: u32) -> usize {
        (nodes / self.options.each * self.options.each) as usize
    }

    fn cpu(&self) -> Result<Cpu> {
        Ok(Cpu { master: self.site.master()?.cpu_s()?, etcd: self.site.etcd()?.cpu_s()?, own: Process::own().cpu_s()? })
    }

    /// Asks for the first nodes through the API.
    async fn fill(&self) -> Result<Placed> {
        let options = self.options;
        let (before, began) = (self.cpu()?, Instant::now());
        let count = (options.stored / options.each) as usize;
        let mut tasks: JoinSet<std::result::Result<(), ApiError>> = JoinSet::new();
        // Each client has users of its own: the guard of a user's quota is no part of this.
        let fillers = FILLERS.min(self.users.len());
        for filler in 0..fillers {
            let users: Vec<String> = self.users.iter().skip(filler).step_by(fillers).cloned().collect();
            let (caller, nodes) = (self.caller.clone(), options.each);
            tasks.spawn(async move {
                let own = users.iter().cycle();
                for (number, user) in (filler..count).step_by(fillers).zip(own) {
                    caller.create(user, &format!("c{number}"), nodes).await?;
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.map_err(PlannerError::Task)??;
        }
        say(&format!("{count} vclusters accepted after {:.1} s", began.elapsed().as_secs_f64()));
        let wanted = self.planned_nodes(options.stored);
        self.until_ready(wanted).await?;
        self.until_running(count).await?;
        let placed = self.placed(0, wanted, began, &before)?;
        say(&format!(
            "{wanted} nodes placed at {:.0}/s, all running after {:.1} s",
            placed.per_second,
            began.elapsed().as_secs_f64()
        ));
        Ok(placed)
    }

    /// What hosts saw of the placements from `first` on.
    fn placed(&self, first: usize, nodes: usize, began: Instant, before: &Cpu) -> Result<Placed> {
        let times: Vec<Instant> = self.fleet.sight.look().placed.iter().skip(first).copied().collect();
        let seconds = times.last().map_or(0.0, |last| last.duration_since(began).as_secs_f64());
        let mut by_second = vec![0; seconds as usize + 1];
        for time in &times {
            by_second[time.duration_since(began).as_secs_f64() as usize] += 1;
        }
        // The last second was not whole, and in the first the first request was still on its way.
        let slowest = by_second.iter().skip(1).rev().skip(1).min().copied().unwrap_or(nodes);
        let now = self.cpu()?;
        Ok(Placed {
            nodes,
            seconds: rounded(seconds),
            per_second: rounded(nodes as f64 / seconds.max(1e-3)),
            slowest_second: slowest,
            master_cpu_s: rounded(now.master - before.master),
            etcd_cpu_s: rounded(now.etcd - before.etcd),
            bench_cpu_s: rounded(now.own - before.own),
        })
    }

    async fn until(&self, what: &'static str, mut holds: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !holds() {
            if Instant::now() > deadline {
                self.say_failures();
                return Err(PlannerError::Late { what });
            }
            tokio::time::sleep(LOOK).await;
        }
        self.say_failures();
        Ok(())
    }

    fn say_failures(&self) {
        let seen = self.fleet.sight.look();
        if seen.failed > 0 {
            say(&format!("{} reports failed at first, the last one because: {}", seen.failed, seen.last_failure));
        }
    }

    async fn until_ready(&self, nodes: usize) -> Result<()> {
        let sight = &self.fleet.sight;
        self.until("every node's report", || sight.look().ready.len() >= nodes).await
    }

    async fn until_running(&self, vclusters: usize) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.caller.all_are(vclusters, Status::Running).await? {
            if Instant::now() > deadline {
                return Err(PlannerError::Late { what: "every vcluster's status" });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How large documents are, by those of one node that is there.
    async fn sizes(&self) -> Result<Sizes> {
        let home =
            self.fleet.sight.look().homes.iter().next().map(|(id, (host, vcluster))| (*id, host.clone(), *vcluster));
        let Some((node, host, vcluster)) = home else { return Err(PlannerError::Late { what: "a placement" }) };
        let mut sizes = [0; 2];
        for (size, key) in sizes.iter_mut().zip([Key::NodePlan(host.clone(), node), Key::VclusterPlan(host, vcluster)])
        {
            let entry = self.store.get(&self.site.keys.write(&key)).await.map_err(PlannerError::Store)?;
            *size = entry.map_or(0, |entry| entry.value.len());
        }
        Ok(Sizes { plan: sizes[0], share: sizes[1] })
    }

    /// Requests of each kind, one after the other.
    async fn api(&self, when: &str, samples: usize) -> Result<Vec<(String, figures::Latency)>> {
        let user = &self.users[0];
        let session = self.root.sign_in(user, site::PASSWORD).await?;
        let own = Caller::new(&self.site.url, &session.token)?;
        let name = own.all().await?.first().map(|view| view.name.clone()).unwrap_or_default();
        let prefix = if when.is_empty() { "one" } else { "busy" };
        let mut latencies = vec![
            ("list own".to_owned(), own.measure("/vclusters", samples).await?),
            ("list everybody's".to_owned(), self.caller.measure("/vclusters", samples.div_ceil(4)).await?),
            ("get".to_owned(), own.measure(&format!("/vclusters/{name}"), samples).await?),
            ("nodes".to_owned(), own.measure(&format!("/vclusters/{name}/nodes"), samples).await?),
            ("hosts".to_owned(), self.caller.measure("/hosts", samples.div_ceil(4)).await?),
        ];
        latencies.push(("create".to_owned(), self.caller.measure_create(user, prefix, samples).await?));
        for (name, latency) in &latencies {
            say(&format!("{name}{when}: p50 {:.1} ms, p95 {:.1} ms", latency.p50_ms, latency.p95_ms));
        }
        Ok(latencies)
    }

    async fn idle(&self) -> Result<Idle> {
        let (before, began) = (self.cpu()?, Instant::now());
        tokio::time::sleep(Duration::from_secs(self.options.idle)).await;
        let (now, seconds) = (self.cpu()?, began.elapsed().as_secs_f64());
        let percent = |before: f64, now: f64| rounded((now - before) / seconds * 100.0);
        let idle = Idle {
            seconds: rounded(seconds),
            master_rss_mib: rounded(self.site.master()?.rss_mib()?),
            master_cpu_percent: percent(before.master, now.master),
            etcd_rss_mib: rounded(self.site.etcd()?.rss_mib()?),
            etcd_cpu_percent: percent(before.etcd, now.etcd),
            etcd_db_mib: rounded(self.site.database_mib()),
        };
        say(&format!("idle: master {:.0} MiB, {:.1} % CPU", idle.master_rss_mib, idle.master_cpu_percent));
        Ok(idle)
    }

    /// A tenth of the hosts loses its power, and comes back.
    async fn vanish(&mut self) -> Result<Vanished> {
        let vclusters = self.caller.all().await?.len();
        let (plans, began) = (self.fleet.sight.look().plans, Instant::now());
        let gone = self.fleet.vanish(self.options.hosts as usize / 10);
        let (mut nodes, mut hit) = (0, HashSet::<VclusterId>::new());
        for (host, vcluster) in self.fleet.sight.look().homes.values() {
            if gone.contains(host) {
                nodes += 1;
                hit.insert(*vcluster);
            }
        }
        let hit: HashSet<String> = hit.iter().map(ToString::to_string).collect();
        let alive = format!("{}alive/", self.site.keys.root());
        let left = self.options.hosts as usize - gone.len();
        let deadline = Instant::now() + LIMIT;
        while self.store.list(&alive).await.map_err(PlannerError::Store)?.entries.len() > left {
            if Instant::now() > deadline {
                return Err(PlannerError::Late { what: "the end of the leases" });
            }
            tokio::time::sleep(LOOK).await;
        }
        let ended = began.elapsed();
        loop {
            let all = self.caller.all().await?;
            let right = |status, expected| status == if expected { Status::Degraded } else { Status::Running };
            if all.len() == vclusters && all.iter().all(|view| right(view.status, hit.contains(&view.id))) {
                break;
            }
            if Instant::now() > deadline {
                return Err(PlannerError::Late { what: "the sight of lost hosts" });
            }
            tokio::time::sleep(LOOK).await;
        }
        let shown = began.elapsed();
        say(&format!("{} hosts vanished: shown after {:.1} s", gone.len(), shown.as_secs_f64()));
        let written = self.fleet.sight.look().plans - plans;
        let began = Instant::now();
        self.fleet.bring_up(&gone.iter().cloned().collect::<Vec<_>>()).await?;
        self.until_running(vclusters).await?;
        Ok(Vanished {
            hosts: gone.len(),
            nodes,
            leases_ended_s: rounded(ended.as_secs_f64()),
            shown_after_s: rounded((shown - ended).as_secs_f64()),
            back_s: rounded(began.elapsed().as_secs_f64()),
            plans_written: written,
            started_twice: 0,
        })
    }

    /// The rest of the nodes at once, with the hosts silent.
    async fn backlog(&self) -> Result<(Placed, Vec<(String, figures::Latency)>)> {
        let options = self.options;
        self.fleet.answer(false);
        let before = self.fleet.sight.look().placed.len();
        let count = ((options.nodes - options.stored) / options.each) as usize;
        let nodes = count * options.each as usize;
        let (cpu, began) = (self.cpu()?, Instant::now());
        let writing = backlog::write(self.store.as_ref(), &self.site.keys, count, options.each);
        let busy = async {
            let samples = options.samples.div_ceil(4);
            self.api(" (backlog)", samples).await
        };
        let (written, busy) = tokio::join!(async { writing.await.map(|()| began.elapsed()) }, busy);
        let (written, busy) = (written?, busy?);
        let sight = self.fleet.sight.clone();
        // What the requests made is gone again, or never got a place.
        self.until("every node's place", || sight.look().homes.len() == self.planned_nodes(options.nodes)).await?;
        let placed = self.placed(before, nodes, began, &cpu)?;
        say(&format!(
            "backlog of {nodes} nodes: written in {:.1} s, placed at {:.0}/s",
            written.as_secs_f64(),
            placed.per_second
        ));
        Ok((placed, busy))
    }
}

async fn etcd_version() -> String {
    let output = tokio::process::Command::new("etcd").arg("--version").output().await;
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().replace(" Version:", "")
}
