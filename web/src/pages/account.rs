//! The account of whoever is signed in.

use crate::form::Errors;
use crate::shell::{Shell, Theme};
use crate::{assets, html};
use askama::Template;
use docklet_types::view::Me;

/// One place where the user is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub last_seen: String,
    /// The browser or program as it named itself; may be empty.
    pub agent: String,
    /// The one that asks.
    pub current: bool,
}

/// Errors of the password form; fields `current_password password`.
#[derive(Debug, Clone, Default)]
pub struct PasswordForm {
    pub errors: Errors,
}

/// `GET /account`, and with errors the answer (422) to a refused `POST /account/password`.
#[derive(Debug, Clone, Template)]
#[template(path = "account.html")]
pub struct AccountPage {
    pub shell: Shell,
    pub me: Me,
    pub password: PasswordForm,
    /// Newest first.
    pub sessions: Vec<SessionRow>,
}

impl AccountPage {
    fn themes(&self) -> [(Theme, &'static str, &'static str); 3] {
        [(Theme::Auto, "Like the system", "device"), (Theme::Light, "Light", "sun"), (Theme::Dark, "Dark", "moon")]
    }

    fn general_errors(&self) -> Vec<&str> {
        self.password.errors.general(&["current_password", "password"])
    }

    fn chosen(&self, theme: &Theme) -> bool {
        self.shell.theme == *theme
    }
}

impl SessionRow {
    /// A user agent in two words.
    fn device(&self) -> String {
        let agent = self.agent.as_str();
        let browser = [
            ("docklet/", "docklet command line"),
            ("Edg/", "Edge"),
            ("OPR/", "Opera"),
            ("Firefox/", "Firefox"),
            ("Chrome/", "Chrome"),
            ("Safari/", "Safari"),
            ("curl/", "curl"),
        ];
        let system = [
            ("Android", "Android"),
            ("iPhone", "iPhone"),
            ("iPad", "iPad"),
            ("Windows", "Windows"),
            ("Mac OS", "macOS"),
            ("Linux", "Linux"),
        ];
        let find =
            |list: &[(&str, &'static str)]| list.iter().find(|(key, _)| agent.contains(key)).map(|(_, name)| *name);
        match (find(&browser), find(&system)) {
            (Some(browser), Some(system)) => format!("{browser} on {system}"),
            (Some(one), None) | (None, Some(one)) => one.to_owned(),
            (None, None) if agent.is_empty() => "Unknown device".to_owned(),
            (None, None) => agent.chars().take(40).collect(),
        }
    }
}
