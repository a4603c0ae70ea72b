//! `docklet.conf`: `KEY=VALUE` lines. Parsing is pure; the binaries bring the text and the environment.
//!
//! Every error names the key and, where it came from the file, the line; all errors are told at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::name::{ClusterName, HostName, ImageName};
use crate::net::{Subnet, VXLAN_PORT};
use crate::port::PortRange;
use crate::site::Sites;
use crate::size::Size;

/// How a host stores what nodes write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// btrfs in a sparse file of DISKPOOL_SIZE MiB.
    File,
    /// btrfs on DISK.
    Disk(PathBuf),
    /// A plain directory: no disk limits.
    Directory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// What one user who is no administrator may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserCap {
    pub nodes: u32,
    pub cpu_millis: u64,
    pub memory_mib: u64,
    pub ports: u32,
}

/// Nodes that are booted before they are asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preboot {
    /// Of each user; 0 switches it off.
    pub nodes: u32,
    pub minutes: u32,
    /// Largest share of a host that is given out while it takes such nodes, 0 to 1.
    pub below: f64,
}

/// A whole configuration, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub cluster_name: ClusterName,
    pub fs_prefix: PathBuf,
    pub storage: Storage,
    pub diskpool_mib: u64,
    pub cluster_net: Subnet,
    /// `host:port`, one or several.
    pub etcd: Vec<String>,
    pub network_device: Option<String>,
    /// Scheme, host and port that browsers use, no slash at the end.
    pub portal_url: String,
    pub proxy_ip: IpAddr,
    pub proxy_port: u16,
    pub master_ip: IpAddr,
    pub master_port: u16,
    pub worker_port: u16,
    pub certificate_days: u32,
    pub host_name: Option<HostName>,
    pub log_level: LogLevel,
    pub apps_domain: String,
    /// `sqlite` at its place under FS_PREFIX where absent.
    pub database_url: Option<String>,
    /// Sites that share the accounts; empty where there is only this one.
    pub sites: Sites,
    pub default_image: ImageName,
    pub node_size: Size,
    pub user_cap: UserCap,
    /// Ports that users may publish.
    pub public_ports: PortRange,
    pub cpu_overcommit: f64,
    pub memory_overcommit: f64,
    pub disk_overcommit: f64,
    pub session_hours: u32,
    pub preboot: Preboot,
}

/// One thing that is wrong in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub key: String,
    /// 1-based; absent where the value came from the environment or is missing.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}: {}", self.key, self.message),
            None => write!(f, "{}: {}", self.key, self.message),
        }
    }
}

/// A key, its default and what it is. The operator's reference and the template are checked against this list.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    pub name: &'static str,
    /// Empty where there is none.
    pub default: &'static str,
    pub doc: &'static str,
}

/// Every key there is, in the order of the template.
pub const KEYS: &[Key] = &[
    Key {
        name: "CLUSTER_NAME",
        default: "docklet",
        doc: "Name of this installation: [a-z][a-z0-9-]{0,15}. Part of kernel object names and etcd keys; do not change it later.",
    },
    Key {
        name: "FS_PREFIX",
        default: "/opt/docklet",
        doc: "Where everything lies: `local` for this host, `global` shared by all hosts.",
    },
    Key {
        name: "STORAGE",
        default: "file",
        doc: "`file`: btrfs in a sparse file; `disk`: btrfs on DISK; `directory`: a plain directory, where disk limits do not hold.",
    },
    Key {
        name: "DISK",
        default: "",
        doc: "Block device for STORAGE=disk. It is used only if it is empty or already Docklet's.",
    },
    Key {
        name: "DISKPOOL_SIZE",
        default: "65536",
        doc: "Size of the sparse file for STORAGE=file, in MiB (at least 1024). Space is taken as it is used.",
    },
    Key {
        name: "CLUSTER_NET",
        default: "172.16.0.1/16",
        doc: "IPv4 network that the vclusters' private networks are cut from; prefix 8 to 22.",
    },
    Key {
        name: "ETCD",
        default: "localhost:2379",
        doc: "etcd members, `host:port` separated by commas. With localhost, where nothing answers, the master starts one and looks after it.",
    },
    Key {
        name: "NETWORK_DEVICE",
        default: "",
        doc: "Interface towards the other hosts; the one of the default route where empty.",
    },
    Key {
        name: "PORTAL_URL",
        default: "http://localhost:8000",
        doc: "The address people type, without a slash at the end. With https:// cookies are for secure connections only.",
    },
    Key { name: "PROXY_IP", default: "0.0.0.0", doc: "Address that the public port listens on." },
    Key { name: "PROXY_PORT", default: "8000", doc: "The one public port: portal, REST API and apps." },
    Key {
        name: "MASTER_IP",
        default: "127.0.0.1",
        doc: "Address that other hosts reach the master at. With one other than the loopback, the master, its etcd and the worker of this machine listen for them, and hosts can join.",
    },
    Key { name: "MASTER_PORT", default: "9000", doc: "Port that other hosts join at and renew their certificates at." },
    Key { name: "WORKER_PORT", default: "9001", doc: "Port that masters of other hosts reach this worker at." },
    Key {
        name: "CERTIFICATE_DAYS",
        default: "90",
        doc: "How long certificates of masters and workers are good, in days; 1 to 3650. They are renewed when two thirds are over.",
    },
    Key {
        name: "HOST_NAME",
        default: "",
        doc: "This host's name in Docklet; made from the machine's host name where empty.",
    },
    Key { name: "LOG_LEVEL", default: "info", doc: "error, warn, info, debug or trace." },
    Key {
        name: "APPS_DOMAIN",
        default: "localhost",
        doc: "Domain under which apps live; `*.<this>` must lead to the public port. `localhost` works without DNS in browsers on this machine.",
    },
    Key {
        name: "DATABASE_URL",
        default: "",
        doc: "`postgres://…` for several masters; a SQLite file under FS_PREFIX/local where empty.",
    },
    Key {
        name: "SITES",
        default: "",
        doc: "Docklets that share the accounts, as users choose among them: `Basel=https://basel.example.org, …`, with this one. All have the same DATABASE_URL and each a CLUSTER_NAME of its own.",
    },
    Key { name: "DEFAULT_IMAGE", default: "base", doc: "Image of a vcluster that names none." },
    Key { name: "NODE_CPU", default: "1", doc: "CPUs of a node that names no size; from 0.05." },
    Key { name: "NODE_MEMORY_MIB", default: "1024", doc: "Memory of a node that names no size, in MiB; from 32." },
    Key { name: "NODE_DISK_MIB", default: "8192", doc: "Disk of a node that names no size, in MiB; from 64." },
    Key {
        name: "USER_MAX_NODES",
        default: "32",
        doc: "Nodes that one user may hold over all vclusters. Administrators have no cap.",
    },
    Key { name: "USER_MAX_CPU", default: "32", doc: "CPUs that one user may hold." },
    Key { name: "USER_MAX_MEMORY_MIB", default: "65536", doc: "Memory that one user may hold, in MiB." },
    Key { name: "USER_MAX_PORTS", default: "32", doc: "Ports that one user may publish." },
    Key {
        name: "PUBLIC_PORTS",
        default: "10000-65535",
        doc: "Ports of the hosts that users may publish ports of their nodes at; from 1024. Docklet's own are left out.",
    },
    Key { name: "CPU_OVERCOMMIT", default: "16", doc: "CPUs handed out per CPU of a host; from 1." },
    Key {
        name: "MEMORY_OVERCOMMIT",
        default: "4",
        doc: "Memory handed out per memory of a host; from 1. Nodes rarely use their limit.",
    },
    Key { name: "DISK_OVERCOMMIT", default: "8", doc: "Disk handed out per disk of a host's pool; from 1." },
    Key { name: "SESSION_HOURS", default: "168", doc: "Hours until a sign-in ends; 1 to 8760." },
    Key {
        name: "PREBOOT_NODES",
        default: "0",
        doc: "Nodes that are booted and frozen for a user who signs in or opens the form for a new vcluster, so that the next one is ready at once; 0 to 61. 0 switches it off.",
    },
    Key {
        name: "PREBOOT_MINUTES",
        default: "10",
        doc: "How long such nodes are kept for a user who does not ask for them; 1 to 1440.",
    },
    Key {
        name: "PREBOOT_BELOW",
        default: "50",
        doc: "Such nodes are only put on hosts of which at most so many percent are given out then; 1 to 100.",
    },
];

/// What stands in the way of a name being one of `known`: the nearest one, if any is near.
fn nearest(name: &str) -> Option<&'static str> {
    KEYS.iter()
        .map(|k| (distance(name, k.name), k.name))
        .min()
        .filter(|(d, near)| *d <= near.len().div_ceil(3))
        .map(|(_, near)| near)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

struct Values {
    set: BTreeMap<&'static str, (String, Option<usize>)>,
    errors: Vec<ConfigError>,
}

impl Values {
    fn text(&self, key: &'static str) -> (String, Option<usize>) {
        self.set.get(key).cloned().unwrap_or_else(|| {
            let default = KEYS.iter().find(|k| k.name == key).map_or("", |k| k.default);
            (default.to_owned(), None)
        })
    }

    fn parse<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let (text, line) = self.text(key);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.errors.push(ConfigError { key: key.to_owned(), line, message });
                None
            }
        }
    }

    fn number<T: std::str::FromStr + PartialOrd + fmt::Display>(
        &mut self,
        key: &'static str,
        low: T,
        high: T,
    ) -> Option<T> {
        self.parse(key, |t| {
            t.parse::<T>()
                .ok()
                .filter(|n| *n >= low && *n <= high)
                .ok_or_else(|| format!("{t:?} is not a number from {low} to {high}"))
        })
    }
}

fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address"))
}

fn url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest {
        Some(host) if !host.is_empty() && !host.contains(['/', ' ', '?', '#', '@']) => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is not an address such as https://docklet.example.org (no path, no slash at the end)"
        )),
    }
}

fn domain(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        !l.is_empty() && l.len() <= 63 && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a domain name in lower case"))
    }
}

fn etcd_members(text: &str) -> Result<Vec<String>, String> {
    let members: Vec<String> = text.split(',').map(|m| m.trim().to_owned()).collect();
    for member in &members {
        let good = member
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0));
        if !good {
            return Err(format!("{member:?} is not host:port"));
        }
    }
    Ok(members)
}

fn cluster_net(text: &str) -> Result<Subnet, String> {
    let net: Subnet = text.parse().map_err(|e| format!("{e}"))?;
    if (8..=22).contains(&net.prefix()) {
        Ok(net)
    } else {
        Err(format!("{text:?} has a prefix of {}; it must be 8 to 22", net.prefix()))
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
    // liblxc's control socket carries the path in 108 bytes.
    if !path.is_absolute() || !plain || text == "/" {
        Err(format!("{text:?} is not an absolute path of its own"))
    } else if text.len() > 40 {
        Err(format!("{text:?} is longer than 40 characters, which unix sockets below it cannot carry"))
    } else if text.contains([',', ':', '\\', ' ', '"']) {
        Err(format!("{text:?} has a character that mount options cannot carry"))
    } else {
        Ok(path)
    }
}

impl Config {
    /// Reads a configuration. `environment` holds `DOCKLET_<KEY>` variables, which win over the file; others are ignored.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the file.
    pub fn parse(
        text: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Vec<ConfigError>> {
        let mut values = Values { set: BTreeMap::new(), errors: Vec::new() };
        read_lines(text, &mut values);
        for (name, value) in environment {
            // DOCKLET_CONF, _URL and _TOKEN are not keys of the file.
            let key = name.strip_prefix("DOCKLET_").and_then(|k| KEYS.iter().find(|known| known.name == k));
            if let Some(key) = key {
                values.set.insert(key.name, (value, None));
            }
        }
        build(&mut values).ok_or(()).and_then(|c| if values.errors.is_empty() { Ok(c) } else { Err(()) }).map_err(
            |()| {
                values.errors.sort_by_key(|e| e.line.unwrap_or(usize::MAX));
                values.errors
            },
        )
    }
}

fn read_lines(text: &str, values: &mut Values) {
    for (index, raw) in text.lines().enumerate() {
        let line = index + 1;
        let content = raw.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let Some((name, value)) = content.split_once('=') else {
            values.errors.push(ConfigError {
                key: content.to_owned(),
                line: Some(line),
                message: "not of the form KEY=VALUE".to_owned(),
            });
            continue;
        };
        let (name, value) = (name.trim(), value.trim());
        let quoted = value.len() >= 2
            && ((value.starts_with('"') && value.ends_with('"')) || (value.starts_with('\'') && value.ends_with('\'')));
        let value = if quoted { &value[1..value.len() - 1] } else { value };
        let Some(key) = KEYS.iter().find(|k| k.name == name) else {
            let message = match nearest(name) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => "unknown key".to_owned(),
            };
            values.errors.push(ConfigError { key: name.to_owned(), line: Some(line), message });
            continue;
        };
        if let Some((_, Some(first))) = values.set.insert(key.name, (value.to_owned(), Some(line))) {
            let message = format!("set twice; the first is on line {first}");
            values.errors.push(ConfigError { key: name.to_owned(), line: Some(line), message });
        }
    }
}

/// What an installation is called that nobody named.
const DEFAULT_NAME: &str = "docklet";

fn build(v: &mut Values) -> Option<Config> {
    // Each key is read before any is unwrapped, so that one run tells of every error.
    let cluster_name = v.parse("CLUSTER_NAME", |t| t.parse().map_err(|e| format!("{e}")));
    let fs_prefix = v.parse("FS_PREFIX", absolute);
    let disk = v.text("DISK").0;
    let storage = v.parse("STORAGE", |t| match t {
        "file" => Ok(Storage::File),
        "directory" => Ok(Storage::Directory),
        "disk" if disk.starts_with("/dev/") => Ok(Storage::Disk(PathBuf::from(&disk))),
        "disk" => Err("with STORAGE=disk, DISK must name a block device such as /dev/sdb".to_owned()),
        _ => Err(format!("{t:?} is not file, disk or directory")),
    });
    let diskpool_mib = v.number("DISKPOOL_SIZE", 1024, 1_073_741_824);
    let cluster_net = v.parse("CLUSTER_NET", cluster_net);
    let etcd = v.parse("ETCD", etcd_members);
    let network_device = v.parse("NETWORK_DEVICE", |t| {
        if t.len() <= 15 { Ok(optional(t)) } else { Err(format!("{t:?} is not an interface name")) }
    });
    let portal_url = v.parse("PORTAL_URL", url);
    let proxy_ip = v.parse("PROXY_IP", ip);
    let proxy_port = v.number("PROXY_PORT", 1, u16::MAX);
    let master_ip = v.parse("MASTER_IP", ip);
    let master_port = v.number("MASTER_PORT", 1, u16::MAX);
    let worker_port = v.number("WORKER_PORT", 1, u16::MAX);
    let certificate_days = v.number("CERTIFICATE_DAYS", 1, 3650);
    let host_name = v.parse("HOST_NAME", |t| optional(t).map(|t| t.parse().map_err(|e| format!("{e}"))).transpose());
    let log_level = v.parse("LOG_LEVEL", |t| match t {
        "error" => Ok(LogLevel::Error),
        "warn" => Ok(LogLevel::Warn),
        "info" => Ok(LogLevel::Info),
        "debug" => Ok(LogLevel::Debug),
        "trace" => Ok(LogLevel::Trace),
        _ => Err(format!("{t:?} is not error, warn, info, debug or trace")),
    });
    let apps_domain = v.parse("APPS_DOMAIN", domain);
    let sites = v.parse("SITES", |t| {
        let sites = t.parse::<Sites>().map_err(|e| e.to_string())?;
        // A wrong PORTAL_URL is told on its own.
        let here = portal_url.as_ref().is_none_or(|here| sites.0.iter().any(|site| site.url == *here));
        if sites.0.is_empty() || here { Ok(sites) } else { Err("none of these has the address PORTAL_URL".to_owned()) }
    });
    // By its name a site knows what is its own: with another's it would end that one's changes and forget its users.
    let named = cluster_name.as_ref().is_none_or(|name: &ClusterName| name.as_str() != DEFAULT_NAME);
    if sites.as_ref().is_some_and(|sites: &Sites| !sites.0.is_empty()) && !named {
        let (key, message) = ("CLUSTER_NAME", "with SITES, each site needs a name of its own".to_owned());
        v.errors.push(ConfigError { key: key.to_owned(), line: None, message });
    }
    let database_url = v.parse("DATABASE_URL", |t| match optional(t) {
        Some(t) if !(t.starts_with("postgres://") || t.starts_with("sqlite:")) => {
            Err(format!("{t:?} starts with neither postgres:// nor sqlite:"))
        }
        other => Ok(other),
    });
    let default_image = v.parse("DEFAULT_IMAGE", |t| t.parse::<ImageName>().map_err(|e| format!("{e}")));
    let node_cpu = v.number("NODE_CPU", 0.05, 1024.0);
    let node_memory = v.number("NODE_MEMORY_MIB", 32, 16_777_216);
    let node_disk = v.number("NODE_DISK_MIB", 64, 1_073_741_824);
    let max_nodes = v.number("USER_MAX_NODES", 0, 1_000_000);
    let max_cpu = v.number("USER_MAX_CPU", 0.0_f64, 1_000_000.0);
    let max_memory = v.number("USER_MAX_MEMORY_MIB", 0, u64::from(u32::MAX));
    let max_ports = v.number("USER_MAX_PORTS", 0, u32::from(u16::MAX));
    let public_ports = v.parse("PUBLIC_PORTS", |t| t.parse().map_err(|e| format!("{e}")));
    let cpu_overcommit = v.number("CPU_OVERCOMMIT", 1.0, 1000.0);
    let memory_overcommit = v.number("MEMORY_OVERCOMMIT", 1.0, 1000.0);
    let disk_overcommit = v.number("DISK_OVERCOMMIT", 1.0, 1000.0);
    let session_hours = v.number("SESSION_HOURS", 1, 8760);
    let preboot_nodes = v.number("PREBOOT_NODES", 0, 61);
    let preboot_minutes = v.number("PREBOOT_MINUTES", 1, 1440);
    let preboot_below = v.number("PREBOOT_BELOW", 1, 100);
    Some(Config {
        cluster_name: cluster_name?,
        fs_prefix: fs_prefix?,
        storage: storage?,
        diskpool_mib: diskpool_mib?,
        cluster_net: cluster_net?,
        etcd: etcd?,
        network_device: network_device?,
        portal_url: portal_url?,
        proxy_ip: proxy_ip?,
        proxy_port: proxy_port?,
        master_ip: master_ip?,
        master_port: master_port?,
        worker_port: worker_port?,
        certificate_days: certificate_days?,
        host_name: host_name?,
        log_level: log_level?,
        apps_domain: apps_domain?,
        database_url: database_url?,
        sites: sites?,
        default_image: default_image?,
        node_size: Size::new(node_cpu?, node_memory?, node_disk?).ok()?,
        user_cap: UserCap {
            nodes: max_nodes?,
            cpu_millis: (f64::round(max_cpu? * 1000.0)) as u64,
            memory_mib: max_memory?,
            ports: max_ports?,
        },
        public_ports: public_ports?,
        cpu_overcommit: cpu_overcommit?,
        memory_overcommit: memory_overcommit?,
        disk_overcommit: disk_overcommit?,
        session_hours: session_hours?,
        preboot: Preboot { nodes: preboot_nodes?, minutes: preboot_minutes?, below: f64::from(preboot_below?) / 100.0 },
    })
}

/// The text of a configuration with these values instead of what it says of their keys; the rest stays as it is.
#[must_use]
pub fn with_values(text: &str, values: &[(&str, &str)]) -> String {
    let mut left: Vec<(&str, &str)> = values.to_vec();
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let key = line.split_once('=').map(|(key, _)| key.trim());
        match left.iter().position(|(name, _)| Some(*name) == key) {
            Some(at) => {
                let (name, value) = left.remove(at);
                lines.push(format!("{name}={value}"));
            }
            None => lines.push(line.to_owned()),
        }
    }
    lines.extend(left.iter().map(|(name, value)| format!("{name}={value}")));
    lines.join("\n") + "\n"
}

impl Config {
    /// Whether there are other hosts, or will be: MASTER_IP is an address that they reach.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        !self.master_ip.is_loopback() && !self.master_ip.is_unspecified()
    }

    /// etcd's members as other hosts reach them.
    #[must_use]
    pub fn etcd_for_others(&self) -> Vec<String> {
        if !self.etcd_is_local() {
            return self.etcd.clone();
        }
        let port = self.etcd.first().and_then(|m| m.rsplit_once(':')).map_or("2379", |(_, port)| port);
        vec![std::net::SocketAddr::new(self.master_ip, port.parse().unwrap_or(2379)).to_string()]
    }

    /// Ports that Docklet itself uses on one host or another: portal, master, worker, etcd with its peers, tunnels.
    #[must_use]
    pub fn own_ports(&self) -> BTreeSet<u16> {
        let etcd = self.etcd.iter().filter_map(|m| m.rsplit_once(':')?.1.parse::<u16>().ok());
        let etcd = etcd.flat_map(|port| [port, port.saturating_add(1)]);
        [self.proxy_port, self.master_port, self.worker_port, VXLAN_PORT].into_iter().chain(etcd).collect()
    }

    /// Whether the only etcd member is on this machine, so that the master may start one.
    #[must_use]
    pub fn etcd_is_local(&self) -> bool {
        match self.etcd.as_slice() {
            [one] => {
                let host = one.rsplit_once(':').map_or(one.as_str(), |(h, _)| h);
                host == "localhost" || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<ConfigError>> {
        Config::parse(text, [])
    }

    #[test]
    fn sites_have_this_one_among_them_and_a_name_of_its_own() {
        let sites = "PORTAL_URL=https://a\nSITES=A=https://a,B=https://b\n";
        assert_eq!(parse(&format!("{sites}CLUSTER_NAME=a\n")).unwrap().sites.0.len(), 2);
        assert_eq!(parse(sites).unwrap_err()[0].key, "CLUSTER_NAME");
        let elsewhere = "CLUSTER_NAME=a\nPORTAL_URL=https://c\nSITES=A=https://a,B=https://b\n";
        assert_eq!(parse(elsewhere).unwrap_err()[0].key, "SITES");
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.proxy_port, 8000);
        assert_eq!(config.cluster_net.to_string(), "172.16.0.0/16");
        assert!(config.etcd_is_local());
    }

    #[test]
    fn every_error_is_told_with_its_line() {
        let errors = parse("# hello\nPROXY_PROT=1\nSTORAGE=tape\n\nNODE_CPU=-1\nnonsense\n").unwrap_err();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        assert_eq!(told[0], "line 2: PROXY_PROT: unknown key; did you mean PROXY_PORT?");
        assert!(told[1].starts_with("line 3: STORAGE: \"tape\""));
        assert!(told[2].starts_with("line 5: NODE_CPU: \"-1\" is not a number from 0.05"));
        assert!(told[3].starts_with("line 6: nonsense"));
    }

    #[test]
    fn the_environment_wins() {
        let env = [("DOCKLET_PROXY_PORT".to_owned(), "80".to_owned()), ("DOCKLET_TOKEN".to_owned(), "x".to_owned())];
        assert_eq!(Config::parse("PROXY_PORT=9", env).unwrap().proxy_port, 80);
    }

    #[test]
    fn values_are_set_in_place_or_at_the_end() {
        let text = "# ETCD=old\nETCD = localhost:2379\n\nLOG_LEVEL=warn\n";
        let changed = with_values(text, &[("ETCD", "10.0.0.1:2379"), ("MASTER_IP", "10.0.0.1")]);
        assert_eq!(changed, "# ETCD=old\nETCD=10.0.0.1:2379\n\nLOG_LEVEL=warn\nMASTER_IP=10.0.0.1\n");
        assert_eq!(parse(&changed).unwrap().etcd, ["10.0.0.1:2379"]);
    }

    #[test]
    fn a_key_set_twice_is_told() {
        let errors = parse("PROXY_PORT=1\nPROXY_PORT=2").unwrap_err();
        assert_eq!(errors[0].to_string(), "line 2: PROXY_PORT: set twice; the first is on line 1");
    }

    #[test]
    fn every_key_has_a_default_that_is_accepted() {
        let text: String = KEYS.iter().map(|k| format!("{}={}\n", k.name, k.default)).collect();
        assert_eq!(parse(&text).unwrap(), parse("").unwrap());
    }
}
