//! `docklet-testbed`: several hosts of Docklet on one machine, to try and to test what happens between hosts.
//!
//! Each machine of it has a network namespace, a mount namespace and a control group of its own, held by one idle
//! process, and a directory for its FS_PREFIX. A bridge in a namespace of its own is the network between all of them;
//! nothing leads out of it. FS_PREFIX/global is one directory that all share, or a GlusterFS volume.

mod bed;
mod etcd;
mod gluster;
mod machine;
mod system;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bed::{Bed, Plan};

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
        /// Members of etcd: 1 is the master's own; 3 are machines etcd1, etcd2 and etcd3.
        #[arg(long, default_value = "1", value_parser = ["1", "3"])]
        etcd: String,
        /// Share FS_PREFIX/global by GlusterFS, from a machine called files, rather than as a directory.
        #[arg(long)]
        glusterfs: bool,
        /// The store of images to take images from.
        #[arg(long, default_value = "/opt/docklet/global/images", value_name = "DIR")]
        images: PathBuf,
        /// A line for every docklet.conf.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Remove everything of the testbed.
    Down,
    /// Cut a machine off from all others.
    Partition { machine: String },
    /// Undo `partition`.
    Heal { machine: String },
    /// End the program of a machine at once, as kill -9 does: worker, master or etcd.
    Kill { machine: String },
    /// Start the program of a machine again.
    Start { machine: String },
    /// Reset a host: everything on it ends, what is on its disk stays. `start` starts its worker.
    Reboot { machine: String },
    /// Run a command on a machine: master, h1, h2, …, etcd1, …, files.
    Exec {
        machine: String,
        /// The command.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Holds a machine's namespaces until it is ended.
    #[command(hide = true)]
    Hold { machine: String },
    /// Becomes a command on a machine.
    #[command(hide = true)]
    Enter {
        machine: String,
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let bed = Bed::new(arguments.prefix);
    let done = match arguments.command {
        Command::Up { hosts, etcd, glusterfs, images, settings } => {
            let plan = Plan { hosts, three_members: etcd == "3", glusterfs, images: &images, settings: &settings };
            bed.up(&plan).map(|()| 0)
        }
        Command::Down => bed.down().map(|()| 0),
        Command::Partition { machine } => bed.partition(&machine, true).map(|()| 0),
        Command::Heal { machine } => bed.partition(&machine, false).map(|()| 0),
        Command::Kill { machine } => bed.kill(&machine).map(|()| 0),
        Command::Start { machine } => bed.start(&machine).map(|()| 0),
        Command::Reboot { machine } => bed.reboot(&machine).map(|()| 0),
        Command::Exec { machine, argv } => bed.exec(&machine, &argv),
        Command::Hold { machine } => machine::hold(&machine).map(|()| 0),
        Command::Enter { machine, argv } => bed.find(&machine).and_then(|m| m.enter(&argv)),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("docklet-testbed: {error}");
            ExitCode::FAILURE
        }
    }
}
