//! What a run of `docklet-bench proxy` found, as a table and as JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::collections::BTreeMap;

use super::Options;
use super::bodies::Bodies;
use super::sockets::{Echo, Idle};
use crate::stats::{Machine, Series};

/// One side in one round.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Time of the processors that the proxy took per request.
    pub proxy_cpu_us: f64,
    /// The same of the load.
    pub load_cpu_us: f64,
}

/// One side over all rounds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SmallFilesSide {
    pub requests_per_s: Series,
    pub p50_us: Series,
    pub p99_us: Series,
    pub proxy_cpu_us: Series,
    pub load_cpu_us: Series,
}

impl SmallFilesSide {
    fn of(rounds: &[Round]) -> Self {
        let series =
            |pick: fn(&Round) -> f64| Series::of_numbers(rounds.iter().map(|r| (pick(r) * 10.0).round() / 10.0));
        Self {
            requests_per_s: series(|r| r.per_second),
            p50_us: series(|r| r.p50_us),
            p99_us: series(|r| r.p99_us),
            proxy_cpu_us: series(|r| r.proxy_cpu_us),
            load_cpu_us: series(|r| r.load_cpu_us),
        }
    }
}

/// All sides, by name, in the order they are told in.
#[derive(Debug, Clone, Default)]
pub struct SmallFiles(Vec<(&'static str, SmallFilesSide)>);

impl SmallFiles {
    pub fn of(sides: impl Iterator<Item = (&'static str, Vec<Round>)>) -> Self {
        Self(sides.map(|(name, rounds)| (name, SmallFilesSide::of(&rounds))).collect())
    }

    fn find(&self, name: &str) -> Option<&SmallFilesSide> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, side)| side)
    }

    /// Docklet's medians over those of `other`.
    fn ratio(&self, other: &str) -> Option<Ratio> {
        let (ours, theirs) = (self.find("docklet")?, self.find(other)?);
        let ratio =
            |pick: fn(&SmallFilesSide) -> &Series| (pick(ours).median / pick(theirs).median * 1e3).round() / 1e3;
        Some(Ratio {
            requests_per_s: ratio(|s| &s.requests_per_s),
            p50: ratio(|s| &s.p50_us),
            p99: ratio(|s| &s.p99_us),
            proxy_cpu: ratio(|s| &s.proxy_cpu_us),
        })
    }
}

impl Serialize for SmallFiles {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, side)| (*name, side)))
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    pub requests_per_s: f64,
    pub p50: f64,
    pub p99: f64,
    pub proxy_cpu: f64,
}

#[derive(Debug, Serialize)]
pub struct Report {
    small_files: SmallFiles,
    /// Docklet's medians over nginx's.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
    /// Round trips of a message of a few bytes.
    websocket_echo: BTreeMap<&'static str, Echo>,
    /// What a round trip through Docklet takes longer than one without a proxy, by medians.
    websocket_echo_added_us: f64,
    idle_websockets: Idle,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bodies: BTreeMap<&'static str, Bodies>,
    body_mib: u32,
    /// Milliseconds from a node's readiness to the first request that was led into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_ms: Option<Series>,
    connections: u32,
    rounds: u32,
    seconds: u64,
    pub versions: BTreeMap<&'static str, String>,
    /// Peers that could not be measured, and why.
    pub missing: Vec<String>,
    machine: Machine,
}

impl Report {
    pub fn new(options: &Options, small_files: SmallFiles, echo: BTreeMap<&'static str, Echo>, idle: Idle) -> Self {
        let median = |name: &str| echo.get(name).map_or(f64::NAN, |echo| echo.p50_us.median);
        Self {
            ratio: small_files.ratio("nginx"),
            small_files,
            websocket_echo_added_us: ((median("docklet") - median("direct")) * 10.0).round() / 10.0,
            websocket_echo: echo,
            idle_websockets: idle,
            bodies: BTreeMap::new(),
            body_mib: options.body_mib,
            route_ms: None,
            connections: options.connections,
            rounds: options.rounds,
            seconds: options.seconds.as_secs(),
            versions: BTreeMap::new(),
            missing: Vec::new(),
            machine: Machine::look(),
        }
    }

    /// What is worse than a loaded machine explains: factors, not percentages.
    pub fn gross(&self) -> Vec<String> {
        let mut told = Vec::new();
        let mut check = |fine: bool, what: String| {
            if !fine {
                told.push(what);
            }
        };
        if let Some(ratio) = &self.ratio {
            let rate = ratio.requests_per_s;
            check(rate >= 0.2, format!("small files: {rate} of nginx's requests per second"));
        }
        let added = self.websocket_echo_added_us;
        check(added < 1000.0, format!("an echo comes {added} µs later"));
        let idle = &self.idle_websockets;
        check(idle.master_kib_each < 128.0, format!("{} KiB per silent WebSocket", idle.master_kib_each));
        check(idle.none_left, "descriptors stay open after WebSockets were closed".to_owned());
        told
    }

    pub fn table(&self) -> String {
        let m = &self.machine;
        let versions: Vec<String> = self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let mut parts = vec![self.small_files_table(), self.others_table()];
        parts.push(format!(
            "medians of {} rounds of {} s · {} CPUs ({}), {} MiB, kernel {} · {}",
            self.rounds,
            self.seconds,
            m.cpus,
            m.cpu_model,
            m.memory_mib,
            m.kernel,
            versions.join(", ")
        ));
        parts.extend(self.missing.iter().cloned());
        parts.join("\n")
    }

    fn small_files_table(&self) -> String {
        let title = format!("small files, {} connections", self.connections);
        let mut table = plain([&title, "requests/s", "min", "max", "p50", "p99", "CPU of proxy", "of load"]);
        for (name, side) in &self.small_files.0 {
            let rate = &side.requests_per_s;
            let mut row = vec![(*name).to_owned()];
            row.extend([rate.median, rate.min, rate.max].map(|n| format!("{n:.0}")));
            row.extend([&side.p50_us, &side.p99_us].map(|s| format!("{:.0} µs", s.median)));
            row.extend([&side.proxy_cpu_us, &side.load_cpu_us].map(|s| format!("{:.1} µs", s.median)));
            table.add_row(row);
        }
        if let Some(ratio) = &self.ratio {
            let text = |n: f64| format!("{n:.2}");
            let empty = String::new;
            table.add_row([
                "docklet / nginx".to_owned(),
                text(ratio.requests_per_s),
                empty(),
                empty(),
                text(ratio.p50),
                text(ratio.p99),
                text(ratio.proxy_cpu),
                empty(),
            ]);
        }
        aligned(table)
    }

    fn others_table(&self) -> String {
        let bodies = format!("{} MiB", self.body_mib);
        let mut table = plain([
            "WebSocket echo, bodies",
            "p50",
            "p99",
            &format!("{bodies} down"),
            &format!("{bodies} up"),
            "memory",
        ]);
        for (name, echo) in &self.websocket_echo {
            let mut row = vec![(*name).to_owned()];
            row.extend([&echo.p50_us, &echo.p99_us].map(|s| format!("{:.1} µs", s.median)));
            if let Some(bodies) = self.bodies.get(name) {
                row.extend([bodies.down_mib_s, bodies.up_mib_s].map(|n| format!("{n} MiB/s")));
                row.extend(bodies.memory_mib.map(|m| {
                    format!("+{} MiB down, +{} MiB up, +{} MiB for a slow reader", m.down, m.up, m.slow_reader)
                }));
            }
            table.add_row(row);
        }
        let idle = &self.idle_websockets;
        let (master, worker) = (idle.master_descriptors, idle.worker_descriptors);
        let mut text = format!(
            "{}\nan echo through docklet comes {} µs later than a direct one\n{} silent WebSockets: {} KiB each in the \
             master, {} KiB in the worker; descriptors {}/{} before, {}/{} open, {}/{} after",
            aligned(table),
            self.websocket_echo_added_us,
            idle.sockets,
            idle.master_kib_each,
            idle.worker_kib_each,
            master.before,
            worker.before,
            master.open,
            worker.open,
            master.after,
            worker.after
        );
        if let Some(route) = &self.route_ms {
            text += &format!("\na new node is led to {} ms after it is ready (at most {} ms)", route.median, route.max);
        }
        text
    }
}

fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}

fn aligned(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
