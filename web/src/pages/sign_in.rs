//! Sign-in.

use crate::shell::Shell;
use crate::{assets, html};
use askama::Template;

/// `GET /sign-in`, and with an error the answer to a refused `POST /sign-in`.
#[derive(Debug, Clone, Template)]
#[template(path = "sign_in.html")]
pub struct SignInPage {
    pub shell: Shell,
    /// As typed before.
    pub username: String,
    /// Where to go afterwards: a path of this site, checked by the master. Empty means home.
    pub next: String,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// Where the first password lies, while nobody has ever signed in.
    pub first_password_file: Option<String>,
}
