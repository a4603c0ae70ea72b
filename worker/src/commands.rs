//! The command line of `docklet-worker`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use docklet_daemon::config::Loaded;
use docklet_daemon::{Program, Started, Status, Stopped, config, exit};
use docklet_store::keys::Keys;
use docklet_store::patient::PatientEtcd;
use docklet_types::host::CheckOutcome;
use docklet_types::join::JoinToken;
use docklet_types::name::ImageName;
use docklet_types::paths::Paths;
use docklet_worker::audit::audit;
use docklet_worker::{Settings, machine, membership};
use docklet_worker_host::linux::{LinuxHost, helper, image};
use docklet_worker_host::{HostError, Machine, Networks};

mod remove;
mod run;

const NAME: &str = "docklet-worker";
/// The first start of a host makes its pool.
const START_LIMIT: Duration = Duration::from_secs(120);
/// A worker finishes what it does to the host before it ends.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Runs the nodes of this host. Stopping it leaves them running.
#[derive(Debug, Parser)]
#[command(name = NAME, version, max_term_width = 100)]
struct Arguments {
    /// The configuration file. Otherwise $DOCKLET_CONF, ./conf/docklet.conf or /etc/docklet/docklet.conf
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start in the background and wait until ready
    Start,
    /// Stop; nodes run on
    Stop,
    /// Stop, then start; nodes run on
    Restart,
    /// Tell whether it runs (exit code 3 if not)
    Status,
    /// Stay in the foreground
    Run,
    /// Become a host of the cluster of a master; `docklet-master token` prints the whole command
    Join {
        /// The master's MASTER_IP and MASTER_PORT
        #[arg(value_name = "ADDRESS:PORT")]
        master: String,
        #[arg(long, value_name = "TOKEN")]
        token: JoinToken,
    },
    /// Get a new certificate from the master now, rather than when two thirds of the old one's time are over
    Renew,
    /// Prepare this host for nodes and tell what was found
    Check,
    /// List what is on this host and belongs to nothing (exit code 1 if anything)
    Audit {
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Remove nodes and networks that no plan names, by the ids that `audit` tells. What is on their disks is lost
    Remove {
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Stop and remove every node of this host, its network and its pool's mount. What users stored in ~/nfs stays
    Uninstall {
        /// Do it, rather than tell what would be removed
        #[arg(long)]
        yes: bool,
    },
    /// Pack a directory into an OCI image layout as its newest version
    ImagePack {
        rootfs: PathBuf,
        layout: PathBuf,
        /// The image's name
        #[arg(long)]
        name: ImageName,
        #[arg(long, default_value = "")]
        description: String,
        /// The image layout that ROOTFS is the upper of an overlay over
        #[arg(long, value_name = "LAYOUT")]
        base: Option<PathBuf>,
    },
    /// Unpack an image of the store of images on this host, so that the first node need not wait for it
    ImageUnpack { name: ImageName },
    /// Write the manual pages
    #[command(hide = true)]
    Man { directory: PathBuf },
    /// What the worker runs for single operations
    #[command(hide = true)]
    Helper { op: String },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What a command ends with: a text for standard output, or one for standard error and an exit code.
type Outcome = Result<String, (u8, String)>;

fn failed(error: impl std::error::Error) -> (u8, String) {
    (exit::FAILED, chain(&error))
}

/// An error with its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

pub fn main() -> ExitCode {
    // Before anything else, and without a thread: liblxc is called in there.
    let words: Vec<OsString> = std::env::args_os().collect();
    if let [_, word, op] = words.as_slice()
        && word == "helper"
    {
        return helper::main(&op.to_string_lossy());
    }
    let arguments = Arguments::parse();
    match execute(arguments) {
        Ok(text) => {
            if !text.is_empty() {
                println!("{text}");
            }
            ExitCode::SUCCESS
        }
        Err((code, text)) => {
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(code)
        }
    }
}

fn execute(arguments: Arguments) -> Outcome {
    match arguments.command {
        Command::Helper { op } => return Err((exit::USAGE, format!("helper {op}: takes no options"))),
        Command::ImagePack { rootfs, layout, name, description, base } => {
            let digest = match base {
                Some(base) => image::pack_over(&rootfs, &base, &layout, name.as_str(), &description),
                None => image::pack(&rootfs, &layout, name.as_str(), &description),
            }
            .map_err(failed)?;
            return Ok(digest.to_string());
        }
        Command::Man { directory } => {
            clap_mangen::generate_to(Arguments::command(), &directory).map_err(failed)?;
            return Ok(String::new());
        }
        _ => {}
    }
    let loaded = config::load(arguments.config.as_deref()).map_err(|e| (exit::USAGE, e.to_string()))?;
    let paths = Paths::new(loaded.config.fs_prefix.clone());
    let program = Program::new(NAME, paths.clone());
    match arguments.command {
        Command::Start => start(&program, &loaded),
        Command::Stop => stop(&program),
        Command::Restart => {
            let stopped = stop(&program)?;
            start(&program, &loaded).map(|started| format!("{stopped}\n{started}"))
        }
        Command::Status => match program.status().map_err(failed)? {
            Status::Running { pid } => Ok(format!("{NAME} is running (process {pid})")),
            Status::NotRunning => Err((exit::NOT_RUNNING, format!("{NAME} is not running"))),
        },
        Command::Run => {
            must_be_root()?;
            run::run(&program, &loaded)
        }
        Command::Join { master, token } => {
            must_be_root()?;
            if let Status::Running { pid } = program.status().map_err(failed)? {
                return Err((exit::FAILED, format!("{NAME} is running (process {pid}); stop it first")));
            }
            runtime()?.block_on(join(&loaded, &paths, &master, &token))
        }
        Command::Renew => {
            must_be_root()?;
            let host = machine::host_name(loaded.config.host_name.as_ref());
            let identity = paths.worker_identity();
            runtime()?.block_on(membership::renew(&loaded.config, &host, &identity)).map_err(failed)?;
            Ok("the certificate is renewed".to_owned())
        }
        Command::Check => {
            must_be_root()?;
            runtime()?.block_on(check(&linux(&loaded, paths)))
        }
        Command::Audit { output } => {
            must_be_root()?;
            runtime()?.block_on(audit_host(&loaded, paths, output))
        }
        Command::Remove { ids } => {
            must_be_root()?;
            runtime()?.block_on(remove::remove(&loaded, paths, &ids))
        }
        Command::Uninstall { yes } => {
            must_be_root()?;
            if let Status::Running { pid } = program.status().map_err(failed)? {
                return Err((exit::FAILED, format!("{NAME} is running (process {pid}); stop it first")));
            }
            runtime()?.block_on(uninstall(&linux(&loaded, paths), yes))
        }
        Command::ImageUnpack { name } => {
            must_be_root()?;
            let layout = paths.image_layout(&name);
            let request = image::NewestRequest { name: name.clone(), layout: layout.clone() };
            let Some(image) = image::newest(&request) else {
                return Err((exit::FAILED, format!("there is no image {name}: {} has no index", layout.display())));
            };
            image::unpack_image(&layout, &image.digest, &paths.unpacked_images()).map_err(failed)?;
            Ok(format!("{name} {} is unpacked", image.digest))
        }
        Command::Helper { .. } | Command::ImagePack { .. } | Command::Man { .. } => Ok(String::new()),
    }
}

fn must_be_root() -> Result<(), (u8, String)> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err((exit::FAILED, format!("{NAME} must be run as root"))) }
}

fn runtime() -> Result<tokio::runtime::Runtime, (u8, String)> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)
}

fn start(program: &Program, loaded: &Loaded) -> Outcome {
    must_be_root()?;
    let arguments: [OsString; 3] = ["--config".into(), loaded.file.clone().into(), "run".into()];
    match program.start(&arguments, START_LIMIT).map_err(|e| (exit::FAILED, e.to_string()))? {
        Started::Now { pid } => Ok(format!("{NAME} is running (process {pid})")),
        Started::Already { pid } => Ok(format!("{NAME} is already running (process {pid})")),
    }
}

fn stop(program: &Program) -> Outcome {
    Ok(match program.stop(STOP_GRACE).map_err(|e| (exit::FAILED, e.to_string()))? {
        Stopped::Now => format!("{NAME} is stopped; nodes run on"),
        Stopped::Killed => format!("{NAME} did not end by itself and was killed; nodes run on"),
        Stopped::WasNotRunning => format!("{NAME} was not running"),
    })
}

async fn join(loaded: &Loaded, paths: &Paths, master: &str, token: &JoinToken) -> Outcome {
    let host = machine::host_name(loaded.config.host_name.as_ref());
    let joined = membership::join(master, token, &host, &loaded.config, &loaded.file, paths).await.map_err(failed)?;
    let mut text = format!("this host is {host} of the cluster {}", joined.membership.cluster_name);
    for (key, old, new) in &joined.changed {
        text.push_str(&format!("\n{}: {key}={new} (was {old})", loaded.file.display()));
    }
    text.push_str(&format!(
        "\n{} must be the directory that all hosts share; then: {NAME} start",
        paths.global().display()
    ));
    Ok(text)
}

async fn check(host: &LinuxHost) -> Outcome {
    let checks = host.prepare().await.map_err(failed)?;
    let mut text = String::new();
    let mut good = true;
    for check in &checks {
        let word = match check.outcome {
            CheckOutcome::Ok => "ok",
            CheckOutcome::Warning => "warning",
            CheckOutcome::Failed => "FAILED",
        };
        good &= check.outcome != CheckOutcome::Failed;
        text.push_str(&format!("{word:<8} {}: {}\n", check.name, check.message));
    }
    let text = text.trim_end().to_owned();
    if good {
        return Ok(text);
    }
    println!("{text}");
    Err((exit::FAILED, "this host cannot run nodes".to_owned()))
}

async fn audit_host(loaded: &Loaded, paths: Paths, output: Output) -> Outcome {
    let name = machine::host_name(loaded.config.host_name.as_ref());
    let store = PatientEtcd::new(loaded.config.etcd.clone(), paths.worker_identity());
    let host = linux(loaded, paths.clone());
    let audit = audit(&host, &store, &Keys::new(&loaded.config.cluster_name), &name, &paths.worker_state())
        .await
        .map_err(failed)?;
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&audit).map_err(failed)?),
        Output::Text => {
            for finding in &audit.findings {
                let owner =
                    finding.owner.as_deref().map_or(String::new(), |o| format!("  (of {o}, which no plan names)"));
                println!("{:<12} {}{owner}", finding.kind, finding.label);
            }
            println!(
                "{} of {} objects belong to nothing (plans from the {})",
                audit.findings.len(),
                audit.objects,
                audit.plans_from
            );
        }
    }
    if audit.findings.is_empty() { Ok(String::new()) } else { Err((exit::FAILED, String::new())) }
}

/// The operator's explicit word that everything of this host is to go. Goes on past failures and tells them all.
async fn uninstall(host: &LinuxHost, yes: bool) -> Outcome {
    let seen = host.observe().await.map_err(failed)?;
    let running = seen.nodes.values().filter(|n| n.init_pid.is_some()).count();
    if !yes {
        let text = format!(
            "{} nodes ({running} running) and {} vclusters are on this host; with --yes they are removed",
            seen.nodes.len(),
            seen.vclusters.len()
        );
        return Err((exit::FAILED, text));
    }
    let mut errors: Vec<HostError> = Vec::new();
    for id in seen.nodes.keys() {
        errors.extend(remove::remove_node(host, *id).await);
    }
    for id in seen.vclusters.keys() {
        errors.extend(host.remove_vcluster(*id).await.err());
    }
    if errors.is_empty() {
        errors.extend(host.release().await.err());
    }
    if errors.is_empty() {
        return Ok(format!("removed {} nodes and {} vclusters", seen.nodes.len(), seen.vclusters.len()));
    }
    Err((exit::FAILED, errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Who this worker is, by its configuration.
fn settings(loaded: &Loaded, paths: Paths) -> Settings {
    Settings {
        cluster: loaded.config.cluster_name.clone(),
        host: machine::host_name(loaded.config.host_name.as_ref()),
        paths,
        agent_port: membership::endpoint(&loaded.config).map(|address| address.port()),
        default_image: loaded.config.default_image.clone(),
        timing: docklet_worker::Timing::default(),
    }
}

fn linux(loaded: &Loaded, paths: Paths) -> LinuxHost {
    LinuxHost::new(&loaded.config, machine::host_name(loaded.config.host_name.as_ref()), paths)
}
