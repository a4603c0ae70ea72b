//! Who is asking, on the portal and on an app's origin, and when that ends.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use actix_web::http::header::{self, HeaderMap, HeaderValue};
use docklet_master_db::DbError;
use docklet_types::name::UserName;

use super::address::AppAddress;
use super::routes::RouteName;
use super::wire::request::Head;
use super::{Proxy, headers, sso};
use crate::auth::sessions::Ended;
use crate::auth::token::TokenHash;
use crate::auth::{Actor, Via};

/// An account with a session, and the news of that session's end. Whatever outlives a request (a tunnel, a stream, a
/// terminal, a kept connection) holds one.
#[derive(Debug, Clone)]
pub struct Visitor {
    actor: Actor,
    ended: Ended,
}

impl Visitor {
    fn new(proxy: &Proxy, actor: Actor) -> Self {
        let ended = proxy.sessions.ended(actor.session());
        Self { actor, ended }
    }

    #[must_use]
    pub fn name(&self) -> &UserName {
        self.actor.name()
    }

    /// Owners reach their own, administrators everything.
    #[must_use]
    pub fn may_reach(&self, owner: &UserName) -> bool {
        self.actor.may_act_for(owner)
    }

    #[must_use]
    pub fn session(&self) -> &TokenHash {
        self.actor.session()
    }

    #[must_use]
    pub fn ended(&self) -> &Ended {
        &self.ended
    }
}

/// How long what a request says of its sender need not be worked out again. An end of the sign-in counts at once.
const MEMORY: Duration = Duration::from_millis(250);
/// Senders that one server thread remembers.
const REMEMBERED: usize = 4096;

/// A visitor at the door of an app: everything that follows from a request's host name and cookies alone.
pub struct Guest {
    pub app: AppAddress,
    /// In lower case.
    pub host: String,
    pub visitor: Visitor,
    /// For the table of routes.
    pub name: RouteName,
}

impl Guest {
    pub fn new(app: AppAddress, host: String, visitor: Visitor) -> Self {
        let name = (app.user.clone(), app.vcluster.clone(), app.node.clone());
        Self { app, host, visitor, name }
    }
}

/// A guest, and since when it is remembered.
type Seen = (Instant, Rc<Guest>);

/// Guests of the last moment, per server thread: a page's many requests say the same again and again. Whether a guest may
/// reach the app, and where it is, is asked for each request.
#[derive(Default)]
pub struct Guests {
    /// By host name and cookies, as they came.
    recent: RefCell<HashMap<Vec<u8>, Seen>>,
    swept: Cell<bool>,
}

impl Guests {
    /// What a request's sender is known by; absent where that is said in more than one place.
    pub fn key(host: &str, head: &Head) -> Option<Vec<u8>> {
        let mut cookies = head.all("cookie");
        let cookie = cookies.next().filter(|_| cookies.next().is_none())?;
        // No header holds a zero.
        Some([host.as_bytes(), b"\0", cookie].concat())
    }

    pub fn find(&self, key: &[u8]) -> Option<Rc<Guest>> {
        let recent = self.recent.borrow();
        let (at, guest) = recent.get(key)?;
        (at.elapsed() < MEMORY && !guest.visitor.ended.has_ended()).then(|| Rc::clone(guest))
    }

    pub fn remember(self: &Rc<Self>, key: Vec<u8>, guest: &Rc<Guest>) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= REMEMBERED {
            recent.clear();
        }
        recent.insert(key, (Instant::now(), Rc::clone(guest)));
        if !self.swept.replace(true) {
            actix_web::rt::spawn(forget(Rc::downgrade(self)));
        }
    }
}

/// Runs while someone is remembered: a session that is held is looked after.
async fn forget(guests: Weak<Guests>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(guests) = guests.upgrade() else { return };
        let mut recent = guests.recent.borrow_mut();
        recent.retain(|_, (at, _)| at.elapsed() < MEMORY);
        if recent.is_empty() {
            guests.swept.set(false);
            return;
        }
    }
}

/// Whose the cookie of an app's origin is, if it is for that app.
///
/// # Errors
/// The accounts cannot be read.
pub async fn at_app(proxy: &Proxy, head: &Head, app: &AppAddress) -> Result<Option<Visitor>, DbError> {
    let label = app.label();
    for cookie in headers::cookies_named(head.all("cookie"), sso::cookie_name(proxy.public.secure())) {
        if let Some(actor) = proxy.sessions.authenticate_app(cookie, &label).await? {
            return Ok(Some(Visitor::new(proxy, actor)));
        }
    }
    Ok(None)
}

/// Whose the portal's cookie is.
///
/// # Errors
/// The accounts cannot be read.
pub async fn at_portal(proxy: &Proxy, headers: &HeaderMap) -> Result<Option<Visitor>, DbError> {
    let cookies = headers.get_all(header::COOKIE).map(HeaderValue::as_bytes);
    for token in headers::cookies_named(cookies, proxy.portal.cookie_name()) {
        if let Some(actor) = proxy.sessions.authenticate(token, Via::Cookie).await? {
            return Ok(Some(Visitor::new(proxy, actor)));
        }
    }
    Ok(None)
}

/// Whose the bearer token is; `None` also where there is none.
///
/// # Errors
/// The accounts cannot be read.
pub async fn by_bearer(proxy: &Proxy, headers: &HeaderMap) -> Result<Option<Visitor>, DbError> {
    let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = text.and_then(|text| text.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, token)) = token else {
        return Ok(None);
    };
    Ok(proxy.sessions.authenticate(token.trim(), Via::Bearer).await?.map(|actor| Visitor::new(proxy, actor)))
}

/// Logs that a sign-in could not be looked up.
pub fn log_failure(error: &(dyn Error + 'static)) {
    tracing::error!(%error, cause = ?error.source(), "cannot check a sign-in");
}
