//! What can go wrong between a caller and the server.

use docklet_types::problem::{Code, Problem};
use std::time::Duration;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server understood and refused.
    #[error("{}", problem.detail)]
    Problem {
        problem: Box<Problem>,
        /// From `Retry-After`: when it is worth trying again.
        retry_after: Option<Duration>,
    },
    /// Nothing answers at that address.
    #[error("cannot connect to {url}")]
    Connection {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The connection broke before the answer was complete. Whether the request was carried out is unknown.
    #[error("the connection to {url} broke off")]
    Interrupted {
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The answer did not come in the time this client gives it.
    #[error("no answer from {url} within {} s", after.as_secs())]
    Silent { url: String, after: Duration },
    /// Something answered that does not speak this API: a proxy, another service, another version.
    #[error("{url} answered {status}, but not as Docklet does: {body}")]
    Unexpected {
        url: String,
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    #[error("{url:?} is not an address such as http://localhost:8000")]
    Address { url: String },
    /// The token has characters that no HTTP header can carry.
    #[error("the token is not one that Docklet gave out")]
    Token,
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
}

impl Error {
    /// The server's code where it refused.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem { problem, .. } => Some(problem.code),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether the same request may succeed a moment later: the server restarts, or its store has no quorum.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Interrupted { .. } | Self::Silent { .. } => true,
            Self::Problem { problem, .. } => matches!(problem.code, Code::Unavailable | Code::TooManyRequests),
            _ => false,
        }
    }

    /// How long the server asks to wait before the next try.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Problem { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
