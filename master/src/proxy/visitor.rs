//! Who is asking, on the portal and on an app's origin, and when that ends.

use std::error::Error;

use actix_web::http::header::{self, HeaderMap};
use docklet_master_db::DbError;
use docklet_types::name::UserName;

use super::address::AppAddress;
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

/// Whose the cookie of an app's origin is, if it is for that app.
///
/// # Errors
/// The accounts cannot be read.
pub async fn at_app(proxy: &Proxy, headers: &HeaderMap, app: &AppAddress) -> Result<Option<Visitor>, DbError> {
    let label = app.label();
    for cookie in headers::cookies_named(headers, sso::cookie_name(proxy.public.secure())) {
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
    for token in headers::cookies_named(headers, proxy.portal.cookie_name()) {
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
