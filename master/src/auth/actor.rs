//! The account that a request acts for, taken from a cookie or a bearer token.

use actix_web::dev::Payload;
use actix_web::http::header::AUTHORIZATION;
use actix_web::{FromRequest, HttpRequest, web};
use docklet_master_db::users::{Theme, User};
use docklet_types::id::{IdRange, UserId};
use docklet_types::name::UserName;
use docklet_types::problem::Code;
use docklet_types::view::Role;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::sessions::Sessions;
use super::token::TokenHash;
use crate::http::problem::ApiError;

/// How the actor proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Cookie,
    Bearer,
    /// The cookie of an app's own origin: good for that app and nothing else.
    AppCookie,
}

/// An account whose session is good, as of at most a second ago.
#[derive(Debug, Clone)]
pub struct Actor {
    user: Arc<User>,
    session: TokenHash,
    via: Via,
}

impl Actor {
    pub(super) const fn new(user: Arc<User>, session: TokenHash, via: Via) -> Self {
        Self { user, session, via }
    }

    #[must_use]
    pub fn id(&self) -> UserId {
        self.user.id
    }
    #[must_use]
    pub fn name(&self) -> &UserName {
        &self.user.name
    }
    #[must_use]
    pub fn role(&self) -> Role {
        self.user.role
    }
    #[must_use]
    pub fn range(&self) -> IdRange {
        self.user.range
    }
    #[must_use]
    pub fn theme(&self) -> Theme {
        self.user.theme
    }
    #[must_use]
    pub fn user(&self) -> &User {
        &self.user
    }
    #[must_use]
    pub const fn session(&self) -> &TokenHash {
        &self.session
    }
    #[must_use]
    pub const fn via(&self) -> Via {
        self.via
    }
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.user.role == Role::Admin
    }

    /// Whether this actor may see and change what `owner` has.
    #[must_use]
    pub fn may_act_for(&self, owner: &UserName) -> bool {
        self.is_admin() || self.name() == owner
    }

    /// # Errors
    /// `not_allowed` for everybody but administrators.
    pub fn must_be_admin(&self) -> Result<(), ApiError> {
        if self.is_admin() {
            Ok(())
        } else {
            Err(ApiError::new(Code::NotAllowed, "Only an administrator may do this."))
        }
    }
}

/// Where browsers reach the portal, and what follows from it.
#[derive(Debug, Clone)]
pub struct PortalAddress {
    /// Scheme, host and port, no slash at the end.
    pub url: String,
    secure: bool,
}

impl PortalAddress {
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), secure: url.starts_with("https://") }
    }

    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    /// Under TLS the `__Host-` prefix keeps other hosts of the domain from setting it.
    #[must_use]
    pub const fn cookie_name(&self) -> &'static str {
        if self.secure { "__Host-docklet_session" } else { "docklet_session" }
    }

    /// The session token in the request's cookie.
    #[must_use]
    pub fn cookie(&self, request: &HttpRequest) -> Option<String> {
        request.cookie(self.cookie_name()).map(|c| c.value().to_owned()).filter(|v| !v.is_empty())
    }
}

/// The token of `Authorization: Bearer …`.
pub(super) fn bearer(request: &HttpRequest) -> Option<String> {
    let text = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = text.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer")).then(|| token.trim().to_owned())
}

impl Actor {
    /// Looks at the bearer token first, then at the cookie.
    ///
    /// # Errors
    /// `not_signed_in`, or the database does not answer.
    pub async fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let (Some(sessions), Some(portal)) =
            (request.app_data::<web::Data<Sessions>>(), request.app_data::<web::Data<PortalAddress>>())
        else {
            return Err(ApiError::new(Code::Internal, "The server is not set up."));
        };
        let found = if request.headers().contains_key(AUTHORIZATION) {
            match bearer(request) {
                Some(token) => sessions.authenticate(&token, Via::Bearer).await?,
                None => None,
            }
        } else {
            match portal.cookie(request) {
                Some(token) => sessions.authenticate(&token, Via::Cookie).await?,
                None => None,
            }
        };
        found.ok_or_else(|| {
            ApiError::new(Code::NotSignedIn, "Sign in first; a session that ended or was ended needs a new sign-in.")
        })
    }
}

impl FromRequest for Actor {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move { Self::of(&request).await })
    }
}
