//! Figures of a run, and how they are printed.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::time::Duration;

use crate::stats::Machine;

/// Two places are all that such a run can tell apart.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// How long requests of one kind took, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latency {
    pub samples: usize,
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    /// Of the last answer.
    pub bytes: usize,
}

impl Latency {
    pub fn of(mut taken: Vec<Duration>, bytes: usize) -> Self {
        taken.sort_unstable();
        // The nearest rank: the smallest that so many are not above.
        let at = |share: f64| {
            let rank = (taken.len() as f64 * share).ceil() as usize;
            taken.get(rank.clamp(1, taken.len().max(1)) - 1).map_or(0.0, |d| rounded(d.as_secs_f64() * 1e3))
        };
        Self { samples: taken.len(), p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), max_ms: at(1.0), bytes }
    }
}

/// A number of nodes and how fast they got their places.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Placed {
    pub nodes: usize,
    pub seconds: f64,
    pub per_second: f64,
    /// In the slowest second that was full.
    pub slowest_second: usize,
    /// CPU seconds that the master took meanwhile.
    pub master_cpu_s: f64,
    /// CPU seconds that its etcd took.
    pub etcd_cpu_s: f64,
    /// CPU seconds of the simulated hosts and clients.
    pub bench_cpu_s: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Idle {
    pub seconds: f64,
    pub master_rss_mib: f64,
    pub master_cpu_percent: f64,
    pub etcd_rss_mib: f64,
    pub etcd_cpu_percent: f64,
    pub etcd_db_mib: f64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Vanished {
    pub hosts: usize,
    pub nodes: usize,
    /// From their last sign of life to the end of the last lease.
    pub leases_ended_s: f64,
    /// From there until the API shows every node of them as unreachable.
    pub shown_after_s: f64,
    /// From the return of the hosts until everything is shown as running.
    pub back_s: f64,
    /// Plans that were written meanwhile; nothing should move.
    pub plans_written: u64,
    /// Nodes that were asked for on two hosts at once, over the whole run.
    pub started_twice: u64,
}

/// What Docklet does.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Docklet {
    /// Asked for through the API, hosts answering.
    pub filled: Placed,
    /// From a backlog of specs, hosts silent: the planner alone.
    pub backlog: Placed,
    /// From the backlog's last plan until every host has reported all its nodes as running.
    pub backlog_running_s: f64,
    /// Reports of hosts that etcd did not take at once, over the whole run.
    pub failed_reports: u64,
    /// From the request until all nodes are reported running, with the store full.
    pub small: Latency,
    pub small_nodes: u32,
    /// By request, one after the other.
    pub api: Vec<(String, Latency)>,
    /// The same while the planner works off the backlog.
    pub api_busy: Vec<(String, Latency)>,
    pub idle: Idle,
    pub vanished: Vanished,
}

/// What plain etcd takes on the same disk.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Floor {
    /// One write of a node's plan after the other.
    pub single_per_second: Vec<f64>,
    /// The same from so many clients at once.
    pub clients: usize,
    pub concurrent_per_second: Vec<f64>,
    /// Placements in transactions like the planner's: plan, share and counter of each.
    pub placements_per_second: Vec<f64>,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Ratio {
    /// The planner's placements per second over the floor's, by the medians.
    pub placements: f64,
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

#[derive(Serialize)]
pub struct Report {
    pub docklet: Docklet,
    pub floor: Floor,
    pub ratio: Ratio,
    pub hosts: usize,
    pub nodes: usize,
    pub stored: usize,
    pub nodes_per_vcluster: u32,
    pub etcd: String,
    pub machine: Machine,
}

impl Report {
    pub fn table(&self) -> String {
        let docklet = &self.docklet;
        let mut out = Vec::new();
        let mut table = plain(["placements", "nodes", "s", "per s", "slowest s", "master CPU s", "etcd", "bench"]);
        for (name, placed) in [("through the API", &docklet.filled), ("from a backlog", &docklet.backlog)] {
            table.add_row([
                name.to_owned(),
                placed.nodes.to_string(),
                format!("{:.1}", placed.seconds),
                format!("{:.0}", placed.per_second),
                placed.slowest_second.to_string(),
                format!("{:.1}", placed.master_cpu_s),
                format!("{:.1}", placed.etcd_cpu_s),
                format!("{:.1}", placed.bench_cpu_s),
            ]);
        }
        out.push(aligned(table));
        let mut table = plain(["request", "samples", "p50 ms", "p95", "p99", "max", "KiB"]);
        let small = (format!("create {} nodes, all running", docklet.small_nodes), docklet.small.clone());
        let busy = docklet.api_busy.iter().map(|(name, latency)| (format!("{name} (backlog)"), latency.clone()));
        for (name, latency) in docklet.api.iter().cloned().chain(busy).chain([small]) {
            table.add_row([
                name,
                latency.samples.to_string(),
                format!("{:.1}", latency.p50_ms),
                format!("{:.1}", latency.p95_ms),
                format!("{:.1}", latency.p99_ms),
                format!("{:.1}", latency.max_ms),
                format!("{:.1}", latency.bytes as f64 / 1024.0),
            ]);
        }
        out.push(aligned(table));
        let floor = &self.floor;
        out.push(format!(
            "etcd alone: {:.0} writes/s one by one, {:.0} from {} clients, {:.0} placements/s in the planner's transactions; ratio {:.2}",
            median(&floor.single_per_second),
            median(&floor.concurrent_per_second),
            floor.clients,
            median(&floor.placements_per_second),
            self.ratio.placements
        ));
        let idle = &docklet.idle;
        out.push(format!(
            "idle for {:.0} s with {} nodes: master {:.0} MiB, {:.1} % CPU; etcd {:.0} MiB, {:.1} % CPU, database {:.0} MiB",
            idle.seconds,
            self.stored,
            idle.master_rss_mib,
            idle.master_cpu_percent,
            idle.etcd_rss_mib,
            idle.etcd_cpu_percent,
            idle.etcd_db_mib
        ));
        let gone = &docklet.vanished;
        out.push(format!(
            "{} hosts with {} nodes vanish: leases end after {:.1} s, all shown unreachable {:.2} s later; {} plans written, {} nodes started twice; back in {:.1} s",
            gone.hosts, gone.nodes, gone.leases_ended_s, gone.shown_after_s, gone.plans_written, gone.started_twice, gone.back_s
        ));
        out.push(format!(
            "backlog: all running {:.1} s after its last plan; {} reports failed at first over the whole run",
            docklet.backlog_running_s, docklet.failed_reports
        ));
        let m = &self.machine;
        out.push(format!(
            "{} hosts, {} nodes, {} per vcluster · {} CPUs ({}), {} MiB, kernel {}, {}",
            self.hosts, self.nodes, self.nodes_per_vcluster, m.cpus, m.cpu_model, m.memory_mib, m.kernel, self.etcd
        ));
        out.join("\n\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let latency = Latency::of((1..=100).rev().map(Duration::from_millis).collect(), 7);
        assert_eq!((latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms), (50.0, 95.0, 99.0, 100.0));
        let one = Latency::of(vec![Duration::from_millis(3)], 0);
        assert_eq!((one.p50_ms, one.p99_ms), (3.0, 3.0));
        assert_eq!(Latency::of(Vec::new(), 0), Latency::default());
    }
}
