//! `docklet-bench proxy`: what Docklet's way into a node costs, beside nginx that checks nobody and configurable-http-proxy.
//!
//! All sides lead to the same upstream in the same node, dial the same loopback of that node, and are asked by the same
//! load from the same thread, in turns. On a machine of few processors load, proxy and upstream share them, so the time
//! of the processors per request is told beside the requests per second.

mod bodies;
pub mod http;
mod load;
mod peers;
mod report;
mod routes;
pub mod site;
mod sockets;
pub mod upstream;
pub mod usage;

use docklet_types::paths::Paths;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use self::bodies::{Bodies, BodyError};
use self::http::{Head, HeadError};
use self::load::{Ask, LoadError};
use self::peers::{Peer, PeerError};
use self::report::{Report, Round, SmallFiles};
use self::site::{Door, PORT, Site, SiteError, Way};
use self::sockets::{Echo, Idle, SocketError};
use self::upstream::SMALL;
use self::usage::Family;
use crate::interrupted;
use crate::stats::Series;

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    site: site::Options,
    /// Image of the node.
    #[arg(long, default_value = "small")]
    image: String,
    /// Rounds of each side.
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of load per round and side.
    #[arg(short, long, default_value = "3", value_parser = |t: &str| t.parse().map(Duration::from_secs))]
    seconds: Duration,
    /// Kept connections.
    #[arg(short, long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Echoes per round and side.
    #[arg(long, default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    echoes: u32,
    /// Silent WebSockets that are open at once.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    idle: u32,
    /// MiB of a large body.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    body_mib: u32,
    /// Leave out what takes long, and fail where something is several times worse than it should be.
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "echoes", "idle"])]
    short: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Directory with the lock file of configurable-http-proxy, tools/bench/peers of the source.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))]
    peers: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("{side}")]
    Load { side: &'static str, source: LoadError },
    #[error("WebSockets: {side}")]
    Sockets { side: &'static str, source: SocketError },
    #[error("large bodies: {side}")]
    Bodies { side: &'static str, source: BodyError },
    #[error("the upstream in the node did not start")]
    Upstream,
    #[error("{program} does not run on this host ({pid_file})")]
    NotHere { program: &'static str, pid_file: PathBuf },
    #[error("far from what it should be: {}", .0.join("; "))]
    Gross(Vec<String>),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
    #[error("interrupted; everything made was removed")]
    Interrupted,
}

impl Options {
    /// What a short run takes instead.
    fn shortened(mut self) -> Self {
        if self.short {
            (self.rounds, self.seconds, self.echoes, self.idle) = (2, Duration::from_secs(1), 500, 1000);
        }
        self
    }
}

/// Measures and prints. Everything that was made is removed whatever happens.
pub async fn run(options: Options) -> Result<(), ProxyError> {
    let options = options.shortened();
    usage::allow_many_sockets();
    let mut site = Site::sign_in(&options.site, &options.image).await?;
    let mut extra = site.another();
    let mut peers = Peers::default();
    let measured = tokio::select! {
        measured = measure(&options, &mut site, &mut extra, &mut peers) => measured,
        stopped = interrupted() => Err(stopped.map_or_else(ProxyError::Signals, |()| ProxyError::Interrupted)),
    };
    for peer in peers.running {
        peer.end().await;
    }
    extra.clean().await;
    site.clean().await;
    let report = measured?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!("{}", report.table());
    }
    match options.short.then(|| report.gross()) {
        Some(gross) if !gross.is_empty() => Err(ProxyError::Gross(gross)),
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Peers {
    running: Vec<Peer>,
    /// Those that could not be started, and why.
    missing: Vec<String>,
}

impl Peers {
    fn take(&mut self, name: &str, started: Result<Peer, PeerError>) {
        match started {
            Ok(peer) => self.running.push(peer),
            Err(e) => {
                let told = format!("{name} is not measured: {}", crate::chain(&e));
                eprintln!("docklet-bench: {told}");
                self.missing.push(told);
            }
        }
    }
}

/// One way to the upstream.
struct Side {
    name: &'static str,
    ask: Ask,
    /// The proxy's processes; none where nothing is in between.
    family: Option<Family>,
}

impl Side {
    fn way(&self) -> &Way {
        &self.ask.way
    }
}

fn running(options: &Options, program: &'static str) -> Result<u32, ProxyError> {
    let pid_file = Paths::new(&options.site.server.fs_prefix).pid_file(program);
    usage::pid_in(&pid_file).ok_or(ProxyError::NotHere { program, pid_file })
}

async fn measure(
    options: &Options,
    site: &mut Site,
    extra: &mut Site,
    peers: &mut Peers,
) -> Result<Report, ProxyError> {
    let (master, worker) = (running(options, "docklet-master")?, running(options, "docklet-worker")?);
    eprintln!("a node with the upstream");
    site.launch().await?;
    site.start_upstream(&options.site.server.fs_prefix).await?;
    let direct = Way::Within(site.network()?, PORT);
    upstream_answers(&direct).await?;
    let door = site.door(PORT).await?;
    peers.take("nginx", peers::nginx(&site.network()?).await);
    if !options.short {
        peers.take("configurable-http-proxy", peers::chp(&site.network()?, &options.peers).await);
    }
    let mut sides = vec![
        Side { name: "direct", ask: small(direct, &door), family: None },
        Side { name: "docklet", ask: small(Way::Here(site.server), &door), family: Some(Family(master)) },
    ];
    sides.extend(peers.running.iter().map(|peer| Side {
        name: peer.name,
        ask: small(Way::Here(peer.address), &door),
        family: Some(Family(peer.pid())),
    }));
    let small_files = small_files(options, &sides).await?;
    let echo = echoes(options, &sides, &door).await?;
    let idle = idle(options, &sides[1], &door, (master, worker)).await?;
    let mut report = Report::new(options, small_files, echo, idle);
    if !options.short {
        report.bodies = large_bodies(options, &sides, &door).await?;
        report.route_ms = Some(new_routes(options, extra).await?);
    }
    report.versions = peers.running.iter().map(|peer| (peer.name, peer.version.clone())).collect();
    report.missing.clone_from(&peers.missing);
    Ok(report)
}

async fn upstream_answers(direct: &Way) -> Result<(), ProxyError> {
    for _ in 0..500 {
        if direct.connect().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(ProxyError::Upstream)
}

/// The small file, asked for as a browser asks, the same by all sides.
fn small(way: Way, door: &Door) -> Ask {
    let request = format!(
        "GET /small HTTP/1.1\r\nHost: {}\r\nCookie: {}; theme=dark\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n\
         Accept: */*\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate\r\n\
         Referer: http://{}/\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n\r\n",
        door.host, door.cookie, door.host
    );
    Ask { way, request: request.into_bytes(), wanted: SMALL }
}

async fn small_files(options: &Options, sides: &[Side]) -> Result<SmallFiles, ProxyError> {
    let mut rounds: Vec<Vec<Round>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds as usize {
        for turn in 0..sides.len() {
            // Who goes first changes, so that nobody always finds what the same neighbour left.
            let at = (round + turn) % sides.len();
            let side = &sides[at];
            let one = one_round(options, side).await.map_err(|source| ProxyError::Load { side: side.name, source })?;
            eprintln!(
                "round {}/{}: {:<24} {:>8.0} requests/s  p50 {:>6.0} µs  p99 {:>6.0} µs",
                round + 1,
                options.rounds,
                side.name,
                one.per_second,
                one.p50_us,
                one.p99_us
            );
            rounds[at].push(one);
        }
    }
    Ok(SmallFiles::of(sides.iter().map(|side| side.name).zip(rounds)))
}

async fn echoes(options: &Options, sides: &[Side], door: &Door) -> Result<BTreeMap<&'static str, Echo>, ProxyError> {
    let mut rounds: Vec<Vec<(f64, f64)>> = sides.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds as usize {
        for turn in 0..sides.len() {
            let at = (round + turn) % sides.len();
            let told = |source| ProxyError::Sockets { side: sides[at].name, source };
            rounds[at].push(sockets::echo(sides[at].way(), door, options.echoes as usize).await.map_err(told)?);
        }
    }
    Ok(sides.iter().map(|side| side.name).zip(rounds.iter().map(|rounds| Echo::of(rounds))).collect())
}

async fn idle(options: &Options, side: &Side, door: &Door, (master, worker): (u32, u32)) -> Result<Idle, ProxyError> {
    eprintln!("{} silent WebSockets", options.idle);
    let told = |source| ProxyError::Sockets { side: side.name, source };
    sockets::idle(side.way(), door, options.idle as usize, master, worker).await.map_err(told)
}

async fn large_bodies(
    options: &Options,
    sides: &[Side],
    door: &Door,
) -> Result<BTreeMap<&'static str, Bodies>, ProxyError> {
    let mut bodies = BTreeMap::new();
    for side in sides {
        eprintln!("large bodies: {}", side.name);
        let told = |source| ProxyError::Bodies { side: side.name, source };
        // nginx's memory is in its workers, and bodies that it keeps go to disk: only ours is looked at.
        let pid = side.family.filter(|_| side.name == "docklet").map(|family| family.0);
        let measured = bodies::measure(side.way(), door, options.body_mib as usize, pid).await.map_err(told)?;
        bodies.insert(side.name, measured);
    }
    Ok(bodies)
}

async fn new_routes(options: &Options, extra: &mut Site) -> Result<Series, ProxyError> {
    eprintln!("routes of new nodes");
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        rounds.push(routes::measure(extra).await?);
        extra.clean().await;
        *extra = extra.another();
    }
    Ok(Series::of_numbers(rounds.into_iter().map(|ms| (ms * 100.0).round() / 100.0)))
}

async fn one_round(options: &Options, side: &Side) -> Result<Round, LoadError> {
    let own = Family(std::process::id());
    let look = || [side.family.map(Family::cpu).unwrap_or_default(), own.cpu_alone()];
    let mut seen = Vec::new();
    let mut outcome = load::run(&side.ask, options.connections as usize, options.seconds, || seen.push(look())).await?;
    let requests = outcome.requests().max(1) as f64;
    let cpu = |which: usize| match seen.as_slice() {
        [before, after, ..] => after[which].saturating_sub(before[which]).as_secs_f64() * 1e6 / requests,
        _ => f64::NAN,
    };
    Ok(Round {
        per_second: outcome.per_second(),
        p50_us: outcome.percentile(0.5),
        p99_us: outcome.percentile(0.99),
        proxy_cpu_us: cpu(0),
        load_cpu_us: cpu(1),
    })
}

/// Whether something at that address answers the small file.
async fn probe(address: SocketAddr) -> bool {
    let answered = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n").await?;
        Head::read(&mut stream, &mut Vec::new()).await
    };
    let answered: Result<Result<Option<Head>, HeadError>, _> =
        tokio::time::timeout(Duration::from_secs(2), answered).await;
    matches!(answered, Ok(Ok(Some(head))) if head.status() == 200)
}
