//! `docklet-testbed`: several hosts of Docklet on one machine, to try and to test what happens between hosts.
//!
//! Each host is a network namespace with a mount namespace of its own (held by one idle process), a directory for its
//! FS_PREFIX and a worker. The master and etcd have a namespace, too. A bridge in it is the network between all of
//! them; nothing leads out of it. FS_PREFIX/global is one directory that all share.

mod bed;
mod holder;
mod system;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bed::Bed;

/// Several hosts of Docklet on one machine.
#[derive(Debug, Parser)]
#[command(name = "docklet-testbed", version, arg_required_else_help = true)]
struct Arguments {
    /// Where everything of the testbed lies. `down` removes it.
    #[arg(long, global = true, default_value = "/opt/docklet-testbed", value_name = "DIR")]
    prefix: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring up a master and hosts h1, h2, …
    Up {
        /// How many hosts.
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
        hosts: u8,
        /// The store of images to take images from.
        #[arg(long, default_value = "/opt/docklet/global/images", value_name = "DIR")]
        images: PathBuf,
    },
    /// Remove everything of the testbed.
    Down,
    /// Cut a host off from all others.
    Partition {
        /// h1, h2, …
        host: String,
    },
    /// Undo `partition`.
    Heal {
        /// h1, h2, …
        host: String,
    },
    /// End a host's worker at once, as kill -9 does.
    Kill {
        /// h1, h2, …
        host: String,
    },
    /// Run a command on a host, or with `master` beside the master.
    Exec {
        /// h1, h2, … or master.
        host: String,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Holds a host's namespaces until it is ended.
    #[command(hide = true)]
    Hold { host: String },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bed = Bed::new(arguments.prefix);
    let done = match arguments.command {
        Command::Up { hosts, images } => bed.up(hosts, &images).map(|()| 0),
        Command::Down => bed.down().map(|()| 0),
        Command::Partition { host } => bed.partition(&host, true).map(|()| 0),
        Command::Heal { host } => bed.partition(&host, false).map(|()| 0),
        Command::Kill { host } => bed.kill(&host).map(|()| 0),
        Command::Exec { host, argv } => bed.exec(&host, &argv),
        Command::Hold { host } => holder::hold(&host).map(|()| 0),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("docklet-testbed: {error}");
            ExitCode::FAILURE
        }
    }
}
