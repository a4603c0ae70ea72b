//! When something did not work: what happened, and what to do.

use crate::shell::Shell;
use crate::{assets, html};
use askama::Template;
use docklet_types::problem::{Code, Problem};

/// Any error that is not shown beside a field.
#[derive(Debug, Clone, Template)]
#[template(path = "error.html")]
pub struct ErrorPage {
    pub shell: Shell,
    pub problem: Problem,
    /// The page to go back to; home where absent.
    pub back: Option<String>,
}

impl ErrorPage {
    /// What a person can do now.
    fn advice(&self) -> &'static str {
        match self.problem.code {
            Code::NotSignedIn => "Sign in and try again.",
            Code::AccountDisabled | Code::NotAllowed => "Ask an administrator if you need this.",
            Code::OverQuota => {
                "Delete or shrink a cluster that you no longer need, or ask an administrator for a larger quota."
            }
            Code::Conflict => "Look at the page again, then repeat what you wanted.",
            Code::WrongState => "Wait until the present change is through, then try again.",
            Code::Timeout | Code::TooManyRequests => "Wait a moment, then try again.",
            Code::Unavailable => "What runs keeps running. Try again in a moment.",
            Code::BadGateway => "Check that the node is running, then try again.",
            Code::Internal => "Try again. If it happens twice, send the administrator the time and the code below.",
            _ => "Go back, correct it and send it again.",
        }
    }

    fn wants_sign_in(&self) -> bool {
        self.problem.code == Code::NotSignedIn
    }

    fn code(&self) -> String {
        serde_json::to_value(self.problem.code).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    fn back(&self) -> &str {
        self.back.as_deref().unwrap_or("/")
    }
}

/// 404, also for what belongs to somebody else.
#[derive(Debug, Clone, Template)]
#[template(path = "not_found.html")]
pub struct NotFoundPage {
    pub shell: Shell,
}
