//! What an operator types: `docklet-master init|start|stop|restart|status|token|run`.

mod init;
mod run;
mod status;
mod token;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use docklet_daemon::config::Loaded;
use docklet_daemon::{Program, Started, Status, Stopped, exit};
use docklet_types::name::HostName;
use docklet_types::paths::Paths;

use crate::http::problem::chain;

const NAME: &str = "docklet-master";
/// From its start until the master serves: a local etcd may have to come up first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a stop may take before the master is killed.
const STOP_GRACE: Duration = Duration::from_secs(15);

/// The master of Docklet: API, portal, planner and proxy.
#[derive(Debug, Parser)]
#[command(name = NAME, version, arg_required_else_help = true)]
struct Arguments {
    /// The configuration; else $DOCKLET_CONF, ./conf/docklet.conf, /etc/docklet/docklet.conf, the first that is there.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up a new system and start it.
    Init {
        /// Throw away accounts and sessions of the system that is there. Refused while it has vclusters.
        #[arg(long)]
        force: bool,
    },
    /// Start in the background; what was running before goes on.
    Start,
    /// Stop. Nodes go on running.
    Stop,
    /// Stop, then start.
    Restart,
    /// Tell whether the master runs and can do its work.
    Status,
    /// Print the command with which one host joins, good once.
    Token {
        /// The only host that it is for, which may take the place of one of that name.
        #[arg(long)]
        host: Option<HostName>,
        /// How long it is good.
        #[arg(long, default_value_t = 24, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8760))]
        hours: u32,
    },
    /// Run in the foreground.
    Run,
    /// Write the manual pages.
    #[command(hide = true)]
    Man { directory: PathBuf },
}

/// What a command has to say, and how it ended.
type Outcome = Result<String, Failure>;

/// A message for the operator and the exit code with it.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: exit::FAILED }
    }

    fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(chain(error))
    }
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(&arguments) {
        Ok(text) => {
            if !text.is_empty() {
                // Whoever reads may have left.
                let _ = writeln!(std::io::stdout(), "{text}");
            }
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let _ = writeln!(std::io::stderr(), "{NAME}: {}", failure.message.trim_start_matches("docklet-master: "));
            ExitCode::from(failure.code)
        }
    }
}

fn execute(arguments: &Arguments) -> Outcome {
    if let Command::Man { directory } = &arguments.command {
        clap_mangen::generate_to(Arguments::command(), directory).map_err(|e| Failure::of(&e))?;
        return Ok(String::new());
    }
    let loaded = &docklet_daemon::config::load(arguments.config.as_deref())
        .map_err(|e| Failure { message: e.to_string(), code: exit::USAGE })?;
    let paths = Paths::new(&loaded.config.fs_prefix);
    let program = Program::new(NAME, paths.clone());
    match &arguments.command {
        Command::Man { .. } => Ok(String::new()),
        Command::Init { force } => init::init(&program, loaded, &paths, *force),
        Command::Start => start(&program, loaded),
        Command::Stop => stop(&program),
        Command::Restart => {
            stop(&program)?;
            start(&program, loaded)
        }
        Command::Status => status::status(&program, loaded),
        Command::Token { host, hours } => token::token(loaded, &paths, host.clone(), *hours),
        Command::Run => run::run(&program, loaded, &paths),
    }
}

fn start(program: &Program, loaded: &Loaded) -> Outcome {
    let arguments: Vec<OsString> = vec!["--config".into(), Path::new(&loaded.file).into(), "run".into()];
    match program.start(&arguments, START_LIMIT) {
        Ok(Started::Now { pid }) => {
            Ok(format!("{NAME} runs (process {pid}); the portal is at {}", loaded.config.portal_url))
        }
        Ok(Started::Already { pid }) => Ok(format!("{NAME} runs already (process {pid})")),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

fn stop(program: &Program) -> Outcome {
    match program.stop(STOP_GRACE) {
        Ok(Stopped::Now) => Ok(format!("{NAME} is stopped; nodes go on running")),
        Ok(Stopped::Killed) => Ok(format!("{NAME} did not end in time and was killed; nodes go on running")),
        Ok(Stopped::WasNotRunning) => Ok(format!("{NAME} was not running")),
        Err(error) => Err(Failure::new(error.to_string())),
    }
}

/// Whether another process of this system runs.
fn running(program: &Program) -> Result<Option<i32>, Failure> {
    match program.status() {
        Ok(Status::Running { pid }) => Ok(Some(pid)),
        Ok(Status::NotRunning) => Ok(None),
        Err(error) => Err(Failure::new(format!("cannot read the pid file: {error}"))),
    }
}
