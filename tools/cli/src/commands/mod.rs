//! One function per command: ask the server, wait, show.

mod account;
mod cluster;
mod moves;
mod node;
mod operator;
mod port;
mod site;

#[cfg(test)]
pub use cluster::{clusters, verdict};
#[cfg(test)]
pub use port::sentence as sentence_of_port;

use clap::CommandFactory;
use clap_complete::Shell;
use docklet_client::{Client, Error};
use docklet_types::config::Config;
use docklet_types::paths::Paths;
use docklet_types::problem::Code;
use std::fs;
use std::time::Duration;

use crate::args::{Cli, Command, Global};
use crate::failure::{Failure, Result};
use crate::output::{Style, put};
use crate::session::{self, Sessions};

/// Waiting time where `--timeout` is not given.
const PATIENCE: Duration = Duration::from_secs(300);

/// What every command has at hand.
pub struct Context {
    pub global: Global,
    out: Style,
    err: Style,
    sessions: Option<Sessions>,
    url: String,
}

impl Context {
    pub fn new(global: Global) -> Self {
        let sessions = Sessions::locate();
        let url = session::server(global.url.clone(), sessions.as_ref());
        Self { global, out: Style::of_stdout(), err: Style::of_stderr(), sessions, url }
    }

    /// How results may look.
    pub fn style(&self) -> Style {
        self.out
    }

    /// How messages may look.
    pub fn style_err(&self) -> Style {
        self.err
    }

    pub fn timeout(&self) -> Duration {
        self.global.timeout.unwrap_or(PATIENCE)
    }

    pub fn waits(&self) -> bool {
        !self.global.no_wait
    }

    pub fn url(&self) -> &str {
        self.url.trim_end_matches('/')
    }

    fn sessions(&self) -> Result<&Sessions> {
        self.sessions.as_ref().ok_or_else(|| {
            Failure::usage("there is no home directory to keep the session in", "set HOME, or use --token")
        })
    }

    /// A client without a token.
    fn anonymous(&self) -> Result<Client> {
        Ok(Client::new(self.url())?)
    }

    /// A client with the token given, or the stored one.
    pub fn client(&self) -> Result<Client> {
        let client = self.anonymous()?.with_owner(self.global.owner.as_deref());
        if let Some(token) = self.global.token.as_deref().filter(|t| !t.is_empty()) {
            return Ok(client.with_token(token.trim())?);
        }
        let stored = match &self.sessions {
            Some(sessions) => sessions.get(self.url()).map_err(|e| {
                Failure::local(
                    format!("cannot read {}", sessions.path().display()),
                    "remove it and sign in again with: docklet login",
                    e,
                )
            })?,
            None => None,
        };
        match stored {
            Some(session) => Ok(client.with_token(&session.token)?),
            None => Err(self.not_signed_in()),
        }
    }

    fn not_signed_in(&self) -> Failure {
        let hint = root_hint().unwrap_or_else(|| "sign in with: docklet login USER".to_owned());
        Failure::NotSignedIn { url: self.url().to_owned(), hint }
    }
}

/// On the master's own host, root can read the first password; say so to whoever starts.
fn root_hint() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let conf = std::env::var("DOCKLET_CONF")
        .ok()
        .and_then(|p| fs::read_to_string(p).ok())
        .or_else(|| fs::read_to_string("/etc/docklet/docklet.conf").ok());
    let config = Config::parse(&conf.unwrap_or_default(), std::env::vars()).ok()?;
    let file = Paths::new(config.fs_prefix).generated_password();
    fs::File::open(&file).ok()?;
    Some(format!(
        "you are root on the server's host; sign in as its first user with: docklet login root < {}",
        file.display()
    ))
}

/// Does it; the exit code of success is 0 but for commands that run in nodes.
pub async fn run(cx: &Context, command: Command) -> Result<u8> {
    let outcome = dispatch(cx, command).await;
    match outcome {
        // A session that ended is told like none at all.
        Err(Failure::Client(Error::Problem { problem, .. }))
            if problem.code == Code::NotSignedIn && cx.global.token.is_none() =>
        {
            Err(cx.not_signed_in())
        }
        other => other,
    }
}

async fn dispatch(cx: &Context, command: Command) -> Result<u8> {
    match command {
        Command::Login { user } => account::login(cx, user).await?,
        Command::Logout => account::logout(cx).await?,
        Command::Whoami => account::whoami(cx).await?,
        Command::List => cluster::list(cx).await?,
        Command::Create(args) => cluster::create(cx, args).await?,
        Command::Status { name, timing } => cluster::status(cx, &name, timing).await?,
        Command::Start { name } => cluster::start(cx, &name).await?,
        Command::Stop { name } => cluster::stop(cx, &name).await?,
        Command::Retry { name } => cluster::retry(cx, &name).await?,
        Command::Scale(args) => cluster::scale(cx, args).await?,
        Command::Limit { name, ingress, egress } => cluster::limit(cx, &name, ingress, egress).await?,
        Command::Fit(wanted) => return cluster::fit(cx, wanted).await,
        Command::Delete { names, yes } => cluster::delete(cx, &names, yes).await?,
        Command::Exec(args) => return node::exec(cx, args).await,
        Command::Connect { place, session } => return node::connect(cx, place, session.as_deref()).await,
        Command::Open { place, print } => node::open(cx, place, print).await?,
        Command::Move { place, to } => moves::move_nodes(cx, place, to).await?,
        Command::Logs { place, lines } => node::logs(cx, place, lines).await?,
        Command::Port(command) => port::port(cx, command).await?,
        Command::Image(command) => operator::image(cx, command).await?,
        Command::Host(command) => operator::host(cx, command).await?,
        Command::Master(command) => operator::master(cx, command).await?,
        Command::Site(command) => site::site(cx, command).await?,
        Command::Maintenance(command) => operator::maintenance(cx, command).await?,
        Command::User(command) => account::user(cx, command).await?,
        Command::Completion { shell } => completion(shell)?,
        Command::Man { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .map_err(|e| Failure::local("cannot write the manual pages", "", e))?,
    }
    Ok(0)
}

/// A script that asks `docklet` itself at every Tab, so that it completes names of vclusters and nodes too.
fn completion(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    let shells = clap_complete::env::Shells::builtins();
    let wrong = |e| Failure::local("cannot write the script", "", e);
    match shells.completer(&shell.to_string()) {
        Some(completer) => {
            completer.write_registration("COMPLETE", "docklet", "docklet", "docklet", &mut script).map_err(wrong)?
        }
        None => clap_complete::generate(shell, &mut Cli::command(), "docklet", &mut script),
    }
    put(&script);
    Ok(())
}
