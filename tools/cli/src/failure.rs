//! What went wrong, as a person reads it (one line what, one line what to do) and as a script does (the exit code).

use docklet_client::Error;
use docklet_types::problem::Code;
use docklet_types::status::Status;
use docklet_types::view::VclusterView;
use std::error::Error as _;
use std::fmt::Write as _;

use crate::output::{Style, oneline};

pub const FAILED: u8 = 1;
pub const USAGE: u8 = 2;
pub const NOT_FOUND: u8 = 3;
pub const NOT_ALLOWED: u8 = 4;
pub const TIMED_OUT: u8 = 5;

#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Client(#[from] Error),
    /// Nobody is signed in at this server, and there is a hint for the one who asks.
    #[error("you are not signed in at {url}")]
    NotSignedIn { url: String, hint: String },
    /// It ended otherwise than wanted.
    #[error("{}", ended(.0))]
    Ended(Box<VclusterView>),
    #[error("{what} within {seconds} s")]
    TimedOut { what: String, seconds: u64, hint: String },
    /// What was typed does not make sense together.
    #[error("{what}")]
    Usage { what: String, hint: String },
    #[error("{what}")]
    NotFound { what: String, hint: String },
    /// This machine stood in the way: a file, the terminal.
    #[error("{what}")]
    Local { what: String, hint: String, source: Option<std::io::Error> },
    /// A node stays where it is.
    #[error("{what}")]
    NotMoved { what: String },
    /// The person said no.
    #[error("nothing was changed")]
    Declined,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    pub fn local(what: impl Into<String>, hint: impl Into<String>, source: std::io::Error) -> Self {
        Self::Local { what: what.into(), hint: hint.into(), source: Some(source) }
    }

    /// The process's exit code: fixed, scripts rely on it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Client(e) => client_code(e),
            Self::NotSignedIn { .. } => NOT_ALLOWED,
            Self::TimedOut { .. } => TIMED_OUT,
            Self::Usage { .. } => USAGE,
            Self::NotFound { .. } => NOT_FOUND,
            Self::Ended(_) | Self::NotMoved { .. } | Self::Local { .. } | Self::Declined => FAILED,
        }
    }

    /// What to do about it; empty where the message says it.
    pub fn hint(&self) -> String {
        match self {
            Self::Client(e) => client_hint(e),
            Self::NotSignedIn { hint, .. }
            | Self::TimedOut { hint, .. }
            | Self::Usage { hint, .. }
            | Self::NotFound { hint, .. }
            | Self::Local { hint, .. } => hint.clone(),
            Self::Ended(view) => match view.status {
                Status::Failed | Status::Degraded => {
                    format!("see: docklet status {0}; try again: docklet retry {0}", view.name)
                }
                _ => format!("see: docklet status {}", view.name),
            },
            Self::NotMoved { .. } => "it runs on there; mend what is wrong and ask again".to_owned(),
            Self::Declined => String::new(),
        }
    }

    /// Writes the two lines to standard error.
    pub fn print(&self, style: Style) {
        eprintln!("{} {}", style.red("docklet:"), oneline(&self.line()));
        let hint = self.hint();
        if !hint.is_empty() {
            eprintln!("  {} {}", style.dim("→"), oneline(&hint));
        }
        if let Self::Ended(view) = self
            && let Some(log) = view.reason.as_ref().and_then(|r| r.log.as_deref())
        {
            for line in log.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev() {
                eprintln!("  {} {}", style.dim("│"), oneline(line));
            }
        }
    }

    fn line(&self) -> String {
        let mut line = self.to_string();
        match self {
            Self::Client(Error::Problem { problem, .. }) => {
                if let Some(field) = &problem.field
                    && !line.contains(field.as_str())
                {
                    line = format!("{field}: {line}");
                }
            }
            // Why a connection failed is in the innermost cause.
            Self::Client(e) => {
                let mut cause = e.source();
                let mut innermost = None;
                while let Some(c) = cause {
                    innermost = Some(c.to_string());
                    cause = c.source();
                }
                if let Some(text) = innermost {
                    let _ = write!(line, ": {text}");
                }
            }
            Self::Local { source: Some(source), .. } => {
                let _ = write!(line, ": {source}");
            }
            _ => {}
        }
        line
    }
}

fn ended(view: &VclusterView) -> String {
    match &view.reason {
        Some(reason) => format!("{} is {}: {}", view.name, view.status, reason.message),
        None => format!("{} is {}", view.name, view.status),
    }
}

fn client_code(error: &Error) -> u8 {
    match error {
        Error::Problem { problem, .. } => code_of(problem.code),
        Error::Address { .. } | Error::Token => USAGE,
        Error::Silent { .. } => TIMED_OUT,
        Error::Connection { .. } | Error::Interrupted { .. } | Error::Unexpected { .. } | Error::Setup(_) => FAILED,
    }
}

pub fn code_of(code: Code) -> u8 {
    match code {
        Code::MalformedBody | Code::BadQuery | Code::Invalid | Code::UnknownImage => USAGE,
        Code::NotFound => NOT_FOUND,
        Code::NotSignedIn | Code::WrongPassword | Code::AccountDisabled | Code::NotAllowed | Code::OverQuota => {
            NOT_ALLOWED
        }
        Code::Timeout => TIMED_OUT,
        Code::MethodNotAllowed
        | Code::NameTaken
        | Code::PortTaken
        | Code::Conflict
        | Code::WrongState
        | Code::MoveNeedsBtrfs
        | Code::IdempotencyMismatch
        | Code::TooLarge
        | Code::TooManyRequests
        | Code::Internal
        | Code::BadGateway
        | Code::Maintenance
        | Code::Unavailable => FAILED,
    }
}

fn client_hint(error: &Error) -> String {
    match error {
        Error::Connection { .. } => "is the server running, and is --url (or DOCKLET_URL) right?".to_owned(),
        Error::Interrupted { .. } => "whether it was carried out is unknown; look with: docklet list".to_owned(),
        Error::Silent { .. } => "the server may be busy; look with: docklet list".to_owned(),
        Error::Unexpected { .. } => {
            "is --url (or DOCKLET_URL) the address of a Docklet server of this version?".to_owned()
        }
        Error::Address { .. } => "give --url or DOCKLET_URL as http://host:port".to_owned(),
        Error::Token => "sign in again with: docklet login".to_owned(),
        Error::Setup(_) => String::new(),
        Error::Problem { problem, retry_after } => match (problem.code, retry_after) {
            (Code::NotSignedIn, _) => "sign in with: docklet login".to_owned(),
            (Code::UnknownImage, _) => "see: docklet image list".to_owned(),
            (Code::Timeout, _) => "allow it more time with --timeout".to_owned(),
            (Code::OverQuota, _) => "see what you use: docklet whoami".to_owned(),
            (Code::Unavailable | Code::TooManyRequests, Some(after)) => {
                format!("try again in {} s", after.as_secs().max(1))
            }
            (Code::Maintenance, _) => "see how long: docklet maintenance show".to_owned(),
            (Code::Unavailable, None) => "try again in a moment".to_owned(),
            (Code::MethodNotAllowed, _) => "is the server of the same version as this command?".to_owned(),
            (Code::Internal, _) => "the server's log says more; an administrator can read it".to_owned(),
            _ => String::new(),
        },
    }
}
