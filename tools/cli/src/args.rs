//! What can be typed: clap's definitions, and the small values of their own (`NAME/NODE`, `2g`).

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;
use clap_complete::Shell;
use docklet_types::port::Protocol;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::complete;

const AFTER: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  not found
  4  not allowed, not signed in, or over quota
  5  timed out
`docklet exec` ends with the exit code of the command that it ran, `docklet connect` with the shell's.

Examples:
  docklet login
  docklet create demo -n 3
  docklet connect demo
  docklet exec demo/node1 -- hostname
  docklet delete demo";

/// Virtual clusters: rows of small machines that start in a second.
#[derive(Debug, Parser)]
#[command(name = "docklet", version, after_help = AFTER, disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Address of the Docklet server. [default: that of `docklet site use`, else http://localhost:8000]
    #[arg(long, global = true, env = "DOCKLET_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Token to use in place of the stored session.
    #[arg(long, global = true, env = "DOCKLET_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// For administrators: whose vclusters are meant.
    #[arg(long, global = true, value_name = "USER")]
    pub owner: Option<String>,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
    /// How long to wait at most: seconds, or 30s, 5m, 1h. [default: 5m; exec: 1h]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Return when the request is accepted, not when it is carried out.
    #[arg(long, global = true, overrides_with = "wait")]
    pub no_wait: bool,
    /// Wait until the request is carried out (as it is anyhow).
    #[arg(long, global = true, hide = true, overrides_with = "no_wait")]
    pub wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in; the password is read from the terminal or from standard input.
    Login {
        /// User name; yours on this machine where absent.
        user: Option<String>,
    },
    /// Sign out and forget the session.
    Logout,
    /// Who is signed in, with usage and quota.
    Whoami,
    /// List vclusters.
    #[command(visible_alias = "ls")]
    List,
    /// Make a vcluster and start it.
    Create(Create),
    /// Show a vcluster and its nodes.
    Status {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
        /// Show how long each step of its changes took.
        #[arg(long)]
        timing: bool,
    },
    /// Start a stopped vcluster.
    Start {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
    },
    /// Stop a vcluster; what is on its disks stays.
    Stop {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
    },
    /// Try again what failed.
    Retry {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
    },
    /// Move a node, or all of a vcluster's, to another host, with disk, name and address; for administrators.
    Move {
        /// What to move: all nodes where only the vcluster's name is given.
        #[arg(value_name = "NAME[/NODE]", add = ArgValueCompleter::new(complete::places))]
        place: Place,
        /// Where to.
        #[arg(long, value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        to: String,
    },
    /// Change the number of nodes. Scaling in deletes the nodes that came last.
    Scale(Scale),
    /// Limit what a vcluster carries over its boundary; traffic between its nodes is not limited.
    Limit {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
        /// To the nodes: Mbit/s, or 512k, 10m, 1g, none.
        #[arg(long = "in", value_name = "RATE", value_parser = parse_rate, required_unless_present = "egress")]
        ingress: Option<Rate>,
        /// From the nodes, likewise.
        #[arg(long = "out", value_name = "RATE", value_parser = parse_rate)]
        egress: Option<Rate>,
    },
    /// Whether a vcluster would find room now, before it is made. Ends with 1 where it would not.
    Fit(Wanted),
    /// Delete vclusters with everything on their disks.
    #[command(visible_alias = "rm")]
    Delete {
        /// Names of the vclusters.
        #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        names: Vec<String>,
        /// Do not ask. Needed where there is no terminal to ask on.
        #[arg(short, long)]
        yes: bool,
    },
    /// Run a command in a node, as root, without a shell; ends with the command's exit code.
    Exec(Exec),
    /// Open a terminal in a node. Type ~. at the start of a line to leave.
    Connect {
        /// The node: the vcluster's first where only its name is given.
        #[arg(value_name = "NAME[/NODE]", add = ArgValueCompleter::new(complete::places))]
        place: Place,
        /// A shell to come back to: leaving keeps it running, the same name returns to it.
        #[arg(long, value_name = "SESSION")]
        session: Option<String>,
    },
    /// Start Jupyter in a node and print (on a desktop: open) its address.
    Open {
        /// The node: the vcluster's first where only its name is given.
        #[arg(value_name = "NAME[/NODE]", add = ArgValueCompleter::new(complete::places))]
        place: Place,
        /// Only print the address.
        #[arg(long)]
        print: bool,
    },
    /// Show the end of a node's console.
    Logs {
        /// The node: the vcluster's first where only its name is given.
        #[arg(value_name = "NAME[/NODE]", add = ArgValueCompleter::new(complete::places))]
        place: Place,
        /// How many lines.
        #[arg(short = 'n', long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        lines: u32,
    },
    /// Ports of nodes that are published at a port of the host.
    #[command(subcommand, visible_alias = "ports")]
    Port(PortCommand),
    /// Images that nodes are made from.
    #[command(subcommand, visible_alias = "images")]
    Image(ImageCommand),
    /// Machines that run the nodes; for administrators.
    #[command(subcommand, visible_alias = "hosts")]
    Host(HostCommand),
    /// Masters that are at work; for administrators.
    #[command(subcommand, visible_alias = "masters")]
    Master(MasterCommand),
    /// Sites that share the accounts, to choose among.
    #[command(subcommand, visible_alias = "sites")]
    Site(SiteCommand),
    /// Keep everybody but administrators from beginning anything new, for a while.
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// Accounts; for administrators, but for one's own password.
    #[command(subcommand, visible_alias = "users")]
    User(UserCommand),
    /// Print a completion script: source <(docklet completion bash).
    Completion {
        /// Of which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the manual pages of every command.
    #[command(hide = true)]
    Man {
        /// Where to; it must exist.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Create {
    /// Name of the vcluster: 1 to 20 of a-z, 0-9 and -, a letter first.
    #[arg(value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub wanted: Wanted,
}

/// What a vcluster is to be like.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Number of nodes.
    #[arg(short, long, default_value_t = 1, value_name = "N", allow_negative_numbers = true)]
    pub nodes: i64,
    /// Image; the server's default where absent.
    #[arg(long, value_name = "IMAGE", add = ArgValueCompleter::new(complete::images))]
    pub image: Option<String>,
    /// CPUs of each node, e.g. 0.5.
    #[arg(long, value_name = "CPUS", allow_negative_numbers = true)]
    pub cpu: Option<f64>,
    /// Memory of each node: 512m, 2g, or MiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib, allow_negative_numbers = true)]
    pub memory: Option<i64>,
    /// Disk of each node: 8g, or MiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib, allow_negative_numbers = true)]
    pub disk: Option<i64>,
    /// Only hosts with this label take its nodes; may be given more than once.
    #[arg(long = "host-label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub host_labels: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// Name of the vcluster.
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
    pub name: String,
    /// Number of nodes.
    #[arg(
        value_name = "N",
        required_unless_present = "nodes",
        conflicts_with = "nodes",
        allow_negative_numbers = true
    )]
    pub count: Option<i64>,
    /// Number of nodes.
    #[arg(short, long, value_name = "N", allow_negative_numbers = true)]
    pub nodes: Option<i64>,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// Wait for standard input even if nothing comes for a while.
    #[arg(short = 'i', long = "stdin", conflicts_with = "no_stdin")]
    pub stdin: bool,
    /// Leave standard input alone.
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
    /// The node.
    #[arg(value_name = "NAME/NODE", add = ArgValueCompleter::new(complete::places))]
    pub place: Place,
    /// The command and its arguments, after `--`.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND", action = ArgAction::Append)]
    pub argv: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum PortCommand {
    /// Publish a port of a node at a port of the host that holds it.
    Add {
        /// The node.
        #[arg(value_name = "NAME/NODE", add = ArgValueCompleter::new(complete::places))]
        place: Place,
        /// Where the node listens.
        #[arg(value_name = "PORT")]
        port: i64,
        /// tcp or udp.
        #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
        protocol: Protocol,
        /// The port of the host; a free one where absent.
        #[arg(long, value_name = "PORT")]
        public: Option<i64>,
    },
    /// List the published ports of a vcluster.
    #[command(visible_alias = "ls")]
    List {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
    },
    /// Give a published port back. Connections through it end.
    #[command(visible_alias = "rm")]
    Remove {
        /// Name of the vcluster.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::vclusters))]
        name: String,
        /// The port of the host.
        #[arg(value_name = "PORT")]
        public: u16,
        /// tcp or udp.
        #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
        protocol: Protocol,
    },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List images.
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// List hosts.
    #[command(visible_alias = "ls")]
    List,
    /// Show a host with what was checked on it.
    Show {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
    },
    /// Keep new nodes off a host; those that are there stay.
    Cordon {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
    },
    /// Let new nodes on a host again.
    Uncordon {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
    },
    /// Label a host for vclusters that ask for it; KEY- takes a label away.
    Label {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
        /// What to set or to take away.
        #[arg(required = true, value_name = "KEY=VALUE|KEY-", value_parser = parse_label_change)]
        labels: Vec<(String, Option<String>)>,
    },
    /// Move a host's nodes to other hosts, one by one, and keep new ones off it. Waits until it is empty.
    Drain {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
    },
    /// Stop draining a host. Nodes that have left it stay where they are.
    Undrain {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
    },
    /// Forget a host that is gone and holds no node.
    #[command(visible_alias = "rm")]
    Remove {
        /// Name of the host.
        #[arg(value_name = "HOST", add = ArgValueCompleter::new(complete::hosts))]
        name: String,
        /// Give it up with everything on it: its nodes are made anew on other hosts, and what was on their disks is gone.
        #[arg(long)]
        nodes_lost: bool,
        /// Do not ask. Needed with --nodes-lost where there is no terminal to ask on.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum MasterCommand {
    /// List masters.
    #[command(visible_alias = "ls")]
    List,
}

#[derive(Debug, Subcommand)]
pub enum SiteCommand {
    /// List sites.
    #[command(visible_alias = "ls")]
    List,
    /// Use a site from now on where neither --url nor DOCKLET_URL says otherwise. Whoever is signed in stays so.
    Use {
        /// Name of the site.
        #[arg(value_name = "SITE", add = ArgValueCompleter::new(complete::sites))]
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum MaintenanceCommand {
    /// Whether maintenance is on.
    Show,
    /// Begin maintenance, or say something else of it; for administrators. What runs goes on.
    On {
        /// What everybody reads: one line.
        #[arg(short, long, value_name = "TEXT")]
        message: Option<String>,
        /// How long it will probably take: seconds, or 30m, 4h. It ends only with `off`.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
        lasts: Option<Duration>,
    },
    /// End maintenance; for administrators.
    Off,
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user; the password is read from the terminal or from standard input.
    Add {
        /// Name of the user: 1 to 20 of a-z, 0-9 and -, a letter first.
        #[arg(value_name = "NAME")]
        name: String,
        /// Make this user an administrator.
        #[arg(long)]
        admin: bool,
    },
    /// List users.
    #[command(visible_alias = "ls")]
    List,
    /// Keep a user from signing in.
    Disable {
        /// Name of the user.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::users))]
        name: String,
    },
    /// Let a user sign in again.
    Enable {
        /// Name of the user.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::users))]
        name: String,
    },
    /// Change a password: one's own where no name is given.
    Passwd {
        /// Name of the user.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::users))]
        name: Option<String>,
    },
    /// Remove a user.
    #[command(visible_alias = "rm")]
    Remove {
        /// Name of the user.
        #[arg(value_name = "NAME", add = ArgValueCompleter::new(complete::users))]
        name: String,
        /// Do not ask. Needed where there is no terminal to ask on.
        #[arg(short, long)]
        yes: bool,
    },
}

/// `NAME` or `NAME/NODE`. The server judges the names themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub vcluster: String,
    pub node: Option<String>,
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (vcluster, node) = match text.split_once('/') {
            Some((vcluster, node)) => (vcluster, Some(node)),
            None => (text, None),
        };
        if vcluster.is_empty() || node.is_some_and(|n| n.is_empty() || n.contains('/')) {
            return Err("write it as NAME/NODE, e.g. demo/node1".to_owned());
        }
        Ok(Self { vcluster: vcluster.to_owned(), node: node.map(str::to_owned) })
    }
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate(pub Option<u32>);

/// `10` (Mbit/s), `512k`, `1.5m`, `1g` or `none`, in kbit/s. Whether it is in range is the server's word.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || "write it as a number of Mbit/s, or 512k, 10m, 1g, none".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    if lower == "none" {
        return Ok(Rate(None));
    }
    let unit_at = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(unit_at);
    let factor = match unit {
        "k" | "kbit" => 1.0,
        "" | "m" | "mbit" => 1000.0,
        "g" | "gbit" => 1_000_000.0,
        _ => return Err(wrong()),
    };
    let kbit = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    if !kbit.is_finite() || kbit.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&kbit) {
        return Err(wrong());
    }
    // Whole and in range.
    Ok(Rate(Some(kbit as u32)))
}

/// `gpu=yes`
pub fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE, e.g. gpu=yes")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// `gpu=yes` sets, `gpu-` takes away.
pub fn parse_label_change(text: &str) -> Result<(String, Option<String>), String> {
    match (text.split_once('='), text.strip_suffix('-')) {
        (Some((key, value)), _) => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) => Ok((key.to_owned(), None)),
        (None, None) => Err("write it as KEY=VALUE, or KEY- to take the label away".to_owned()),
    }
}

/// `2g`, `1.5G`, `512m`, `512MiB` or a number of MiB. Whether it is in range is the server's word.
pub fn parse_mib(text: &str) -> Result<i64, String> {
    let wrong = || "write it as 512m, 2g or a number of MiB".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let unit_at = lower.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(unit_at);
    let factor = match unit {
        "" | "m" | "mb" | "mib" => 1.0,
        "g" | "gb" | "gib" => 1024.0,
        "t" | "tb" | "tib" => 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let mib = number.trim().parse::<f64>().map_err(|_| wrong())? * factor;
    if !mib.is_finite() || mib.fract() != 0.0 || mib.abs() > 9e15 {
        return Err(wrong());
    }
    // Whole and far below 2^53, so that the conversion is exact.
    Ok(mib as i64)
}

/// `90`, `90s`, `5m`, `1h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as a number of seconds, or 30s, 5m, 1h (at least 1 s, at most a day)".to_owned();
    let (number, factor) = match text.trim_end_matches(['s', 'm', 'h']) {
        number if text.len() == number.len() => (number, 1),
        number => match &text[number.len()..] {
            "s" => (number, 1),
            "m" => (number, 60),
            "h" => (number, 3600),
            _ => return Err(wrong()),
        },
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|s| (1..=86_400).contains(s));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}
