//! One line about what the last change did, carried over its redirect by a cookie of a few seconds.
//!
//! The cookie holds a code and a name, never a text: whoever manages to set it can choose among our sentences only.

use actix_web::cookie::{Cookie, SameSite, time::Duration};
use actix_web::{HttpRequest, HttpResponse};
use docklet_web::Flash;

const COOKIE: &str = "docklet_flash";

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Deleting,
    PasswordChanged,
    SignedOutElsewhere,
    UserAdded,
    UserDisabled,
    UserEnabled,
    UserPasswordSet,
    UserRemoved,
    HostCordoned,
    HostUncordoned,
    HostDrained,
    HostUndrained,
    HostRemoved,
    MaintenanceBegun,
    MaintenanceOver,
    NothingFailed,
}

impl Done {
    const ALL: [(Self, &'static str); 16] = [
        (Self::Deleting, "deleting"),
        (Self::PasswordChanged, "password"),
        (Self::SignedOutElsewhere, "sessions"),
        (Self::UserAdded, "user-added"),
        (Self::UserDisabled, "user-disabled"),
        (Self::UserEnabled, "user-enabled"),
        (Self::UserPasswordSet, "user-password"),
        (Self::UserRemoved, "user-removed"),
        (Self::HostCordoned, "host-cordoned"),
        (Self::HostUncordoned, "host-uncordoned"),
        (Self::HostDrained, "host-drained"),
        (Self::HostUndrained, "host-undrained"),
        (Self::HostRemoved, "host-removed"),
        (Self::MaintenanceBegun, "maintenance"),
        (Self::MaintenanceOver, "maintenance-over"),
        (Self::NothingFailed, "nothing-failed"),
    ];

    fn flash(self, name: &str) -> Flash {
        match self {
            Self::Deleting => Flash::info(format!("{name} is being deleted.")),
            Self::PasswordChanged => Flash::done("Your password is changed. All other sessions were ended."),
            Self::SignedOutElsewhere => Flash::done("All other sessions were ended."),
            Self::UserAdded => Flash::done(format!("User {name} is added.")),
            Self::UserDisabled => Flash::done(format!("User {name} is disabled and signed out everywhere.")),
            Self::UserEnabled => Flash::done(format!("User {name} is enabled.")),
            Self::UserPasswordSet => Flash::done(format!("User {name} has a new password.")),
            Self::UserRemoved => Flash::done(format!("User {name} is removed.")),
            Self::HostCordoned => Flash::done(format!("Host {name} takes no new nodes. Those that are there stay.")),
            Self::HostUncordoned => Flash::done(format!("Host {name} takes nodes again.")),
            Self::HostDrained => Flash::done(format!("The nodes of {name} are moved to other hosts, one by one.")),
            Self::HostUndrained => Flash::done(format!("No more nodes are moved away from {name}.")),
            Self::HostRemoved => Flash::done(format!("Host {name} is removed.")),
            Self::MaintenanceBegun => Flash::done("Maintenance is on: only administrators begin anything new."),
            Self::MaintenanceOver => Flash::done("Maintenance is over."),
            Self::NothingFailed => Flash::info("Nothing has failed, so there was nothing to try again."),
        }
    }
}

/// Adds the news to an answer that redirects.
#[must_use]
pub fn with(mut response: HttpResponse, done: Done, name: &str) -> HttpResponse {
    let code = Done::ALL.iter().find(|(d, _)| *d == done).map_or("", |(_, code)| code);
    let cookie = Cookie::build(COOKIE, format!("{code}.{name}"))
        .path("/")
        .http_only(true)
        .same_site(SameSite::Lax)
        .max_age(Duration::seconds(10))
        .finish();
    // A cookie of our own letters is always a valid header.
    let _ = response.add_cookie(&cookie);
    response
}

/// The news that came with the request. It lasts seconds, so that the page after next does not repeat it for long.
#[must_use]
pub fn take(request: &HttpRequest) -> Option<Flash> {
    let cookie = request.cookie(COOKIE)?;
    let (code, name) = cookie.value().split_once('.')?;
    let plain = name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let done = Done::ALL.iter().find(|(_, known)| *known == code).map(|(done, _)| *done)?;
    plain.then(|| done.flash(name))
}

/// Forgets the news once a page has shown it.
pub fn forget(request: &HttpRequest, response: &mut HttpResponse) {
    if request.cookie(COOKIE).is_some() {
        let mut gone = Cookie::build(COOKIE, "").path("/").http_only(true).finish();
        gone.make_removal();
        let _ = response.add_cookie(&gone);
    }
}
