//! Numbers of a run: durations over rounds, and the machine they were taken on.

use serde::Serialize;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// One thing over all rounds; durations are in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: Vec<f64>,
}

impl Series {
    pub fn of(durations: &[Duration]) -> Self {
        Self::of_numbers(durations.iter().map(|d| (d.as_secs_f64() * 1e4).round() / 1e4))
    }

    pub fn of_numbers(numbers: impl IntoIterator<Item = f64>) -> Self {
        let runs: Vec<f64> = numbers.into_iter().collect();
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return Self::default() };
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Self { median, min, max, runs }
    }
}

/// What one side took.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Side {
    /// From the request to the last node ready.
    pub ready_s: Series,
    /// From the request to nothing left.
    pub gone_s: Series,
}

impl Side {
    pub fn of(rounds: &[(Duration, Duration)]) -> Self {
        let (ready, gone): (Vec<_>, Vec<_>) = rounds.iter().copied().unzip();
        Self { ready_s: Series::of(&ready), gone_s: Series::of(&gone) }
    }
}

/// How many times another side Docklet takes, by medians.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    pub ready: f64,
    pub gone: f64,
}

impl Ratio {
    pub fn of(side: &Side, other: &Side) -> Self {
        let ratio = |a: f64, b: f64| if b > 0.0 { (a / b * 1e3).round() / 1e3 } else { f64::NAN };
        Self {
            ready: ratio(side.ready_s.median, other.ready_s.median),
            gone: ratio(side.gone_s.median, other.gone_s.median),
        }
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpus: usize,
    pub cpu_model: String,
    pub memory_mib: u64,
    pub kernel: String,
    pub lxc: String,
    /// Only where it took part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lxd: Option<String>,
    pub cgroup: &'static str,
}

impl Machine {
    pub fn look() -> Self {
        let field = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            text.lines()
                .find(|l| l.starts_with(key))
                .and_then(|l| l.split_once(':'))
                .map_or_else(String::new, |(_, v)| v.trim().to_owned())
        };
        let memory_kib: u64 =
            field("/proc/meminfo", "MemTotal").split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            cpu_model: field("/proc/cpuinfo", "model name"),
            memory_mib: memory_kib / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            lxc: version(Path::new("lxc-start")),
            lxd: None,
            cgroup: if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { "v2" } else { "v1" },
        }
    }
}

/// What a program answers to `--version`; empty where it cannot be run.
pub fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let series = |ms: &[u64]| Series::of(&ms.iter().map(|m| Duration::from_millis(*m)).collect::<Vec<_>>());
        assert_eq!(series(&[]), Series::default());
        let odd = series(&[300, 100, 200]);
        assert_eq!((odd.median, odd.min, odd.max), (0.2, 0.1, 0.3));
        assert_eq!(odd.runs, [0.3, 0.1, 0.2]);
        assert!((series(&[100, 200]).median - 0.15).abs() < 1e-9);
    }

    #[test]
    fn ratios_are_of_medians() {
        let side = |ms: u64| Side::of(&[(Duration::from_millis(ms), Duration::from_millis(ms / 2))]);
        let ratio = Ratio::of(&side(1100), &side(1000));
        assert_eq!((ratio.ready, ratio.gone), (1.1, 1.1));
    }
}
