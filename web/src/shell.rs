//! What every page has around its content.

use docklet_types::time::Micros;
use docklet_types::view::SiteView;

/// The colours a user chose; kept in the cookie [`Theme::COOKIE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Theme {
    /// What the operating system says.
    #[default]
    Auto,
    Light,
    Dark,
}

impl Theme {
    pub const COOKIE: &str = "docklet_theme";

    /// Unknown words mean [`Theme::Auto`]: a cookie is anybody's to write.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "light" => Self::Light,
            "dark" => Self::Dark,
            _ => Self::Auto,
        }
    }

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }

    /// The value of `data-bs-theme` before the script has asked the system.
    #[must_use]
    pub const fn first_paint(self) -> &'static str {
        match self {
            Self::Dark => "dark",
            Self::Auto | Self::Light => "light",
        }
    }
}

/// The navigation entry that is lit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Nav {
    #[default]
    None,
    Home,
    Images,
    Account,
    Users,
    Hosts,
}

/// Who looks at the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viewer {
    pub username: String,
    pub admin: bool,
}

impl Viewer {
    /// The letter in the round picture.
    #[must_use]
    pub fn initial(&self) -> String {
        self.username.chars().next().map(|c| c.to_uppercase().collect()).unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlashKind {
    Done,
    Info,
    Failed,
}

/// One line about what the last request did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flash {
    pub kind: FlashKind,
    pub text: String,
}

impl Flash {
    #[must_use]
    pub fn done(text: impl Into<String>) -> Self {
        Self { kind: FlashKind::Done, text: text.into() }
    }

    #[must_use]
    pub fn info(text: impl Into<String>) -> Self {
        Self { kind: FlashKind::Info, text: text.into() }
    }

    #[must_use]
    pub fn failed(text: impl Into<String>) -> Self {
        Self { kind: FlashKind::Failed, text: text.into() }
    }

    pub(crate) const fn class(&self) -> &'static str {
        match self.kind {
            FlashKind::Done => "ok",
            FlashKind::Info => "info",
            FlashKind::Failed => "bad",
        }
    }

    pub(crate) const fn icon(&self) -> &'static str {
        match self.kind {
            FlashKind::Done => "check",
            FlashKind::Info => "info",
            FlashKind::Failed => "failed",
        }
    }
}

/// Maintenance is on: what everybody reads on top of every page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// May be empty.
    pub message: String,
    /// When it is expected to be over.
    pub until: Option<Micros>,
}

/// What every page has around its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shell {
    /// Absent on pages for people who are not signed in.
    pub viewer: Option<Viewer>,
    pub theme: Theme,
    pub nav: Nav,
    pub flash: Option<Flash>,
    pub notice: Option<Notice>,
    /// Those to choose among; empty where there is only one.
    pub sites: Vec<SiteView>,
    /// The clock's reading, for relative times.
    pub now: Micros,
}

impl Shell {
    /// A signed-in person's shell.
    #[must_use]
    pub fn new(viewer: Viewer, theme: Theme, nav: Nav, now: Micros) -> Self {
        Self { viewer: Some(viewer), theme, nav, flash: None, notice: None, sites: Vec::new(), now }
    }

    /// For people who are not signed in.
    #[must_use]
    pub fn public(theme: Theme, now: Micros) -> Self {
        Self { viewer: None, theme, nav: Nav::None, flash: None, notice: None, sites: Vec::new(), now }
    }

    #[must_use]
    pub fn with_flash(mut self, flash: Option<Flash>) -> Self {
        self.flash = flash;
        self
    }

    #[must_use]
    pub fn with_sites(mut self, sites: Vec<SiteView>) -> Self {
        self.sites = sites;
        self
    }

    /// The name of the site that shows the page, where there are several.
    pub(crate) fn site(&self) -> Option<&str> {
        self.sites.iter().find(|site| site.here).map(|site| site.name.as_str())
    }

    #[must_use]
    pub fn with_notice(mut self, notice: Option<Notice>) -> Self {
        self.notice = notice;
        self
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.viewer.as_ref().is_some_and(|v| v.admin)
    }

    pub(crate) fn username(&self) -> &str {
        self.viewer.as_ref().map_or("", |v| &v.username)
    }

    pub(crate) fn at(&self, nav: Nav) -> bool {
        self.nav == nav
    }
}
