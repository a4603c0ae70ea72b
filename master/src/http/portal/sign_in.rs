//! Signing in and out.

use actix_web::cookie::{Cookie, SameSite, time::Duration};
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_master_db::sessions::SessionKind;
use docklet_types::paths::Paths;
use docklet_types::problem::Code;
use docklet_types::time::Micros;
use docklet_web::{SignInPage, Theme, link};
use serde::Deserialize;

use super::{go, page, public_shell};
use crate::app::users::Users;
use crate::auth::gate::Gate;
use crate::auth::{Actor, PortalAddress, Sessions};
use crate::http::problem::ApiError;
use crate::http::server::AppsOrigin;
use crate::http::sessions;

/// `?next=`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Next {
    next: String,
}

/// The sign-in form.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct Form {
    username: String,
    password: String,
    next: String,
}

/// A path of this site, else home: a link must not sign somebody in and then lead away.
fn checked(next: &str) -> &str {
    let own = next.starts_with('/') && !next.starts_with("//") && !next.contains(['\\', '\r', '\n', '\t']);
    if own { next } else { "/" }
}

/// The sign-in page that comes back to `next`.
#[must_use]
pub fn address(next: &str) -> String {
    match checked(next) {
        "/" => "/sign-in".to_owned(),
        next => format!("/sign-in?next={}", link::encode(next)),
    }
}

struct Shown<'a> {
    request: &'a HttpRequest,
    users: &'a Users,
    paths: &'a Paths,
    apps: &'a AppsOrigin,
}

impl Shown<'_> {
    async fn show(
        &self,
        status: StatusCode,
        username: String,
        next: &str,
        error: Option<String>,
    ) -> Result<HttpResponse, ApiError> {
        // Told only while nobody ever signed in; afterwards it would be gossip. Of several masters one has it.
        let first = self.users.nobody_ever_signed_in().await.unwrap_or(false);
        let file = self.paths.generated_password();
        let first_password_file = (first && file.exists()).then(|| file.display().to_string());
        let next = if checked(next) == "/" { String::new() } else { next.to_owned() };
        let mut response = page(
            status,
            &SignInPage { shell: public_shell(self.request), username, next, error, first_password_file },
        )?;
        // The form may lead on to an app, by way of /apps/open; browsers apply form-action to redirects, too.
        let policy = docklet_web::assets::CONTENT_SECURITY_POLICY
            .replace("form-action 'self'", &format!("form-action 'self' {}", self.apps.0));
        if let Ok(policy) = actix_web::http::header::HeaderValue::from_str(&policy) {
            response.headers_mut().insert(actix_web::http::header::CONTENT_SECURITY_POLICY, policy);
        }
        Ok(response)
    }
}

/// `GET /sign-in?next=`
///
/// # Errors
/// The page cannot be written.
pub async fn show(
    request: HttpRequest,
    users: web::Data<Users>,
    paths: web::Data<Paths>,
    apps: web::Data<AppsOrigin>,
    query: web::Query<Next>,
) -> Result<HttpResponse, ApiError> {
    if Actor::of(&request).await.is_ok() {
        return Ok(go(checked(&query.next)));
    }
    Shown { request: &request, users: &users, paths: &paths, apps: &apps }
        .show(StatusCode::OK, String::new(), &query.next, None)
        .await
}

fn session_cookie(portal: &PortalAddress, token: &str, expires_at: Micros) -> Cookie<'static> {
    let seconds = i64::try_from(expires_at.millis_since(Micros::now()) / 1000).unwrap_or(i64::MAX);
    Cookie::build(portal.cookie_name(), token.to_owned())
        .path("/")
        .http_only(true)
        .secure(portal.is_secure())
        .same_site(SameSite::Lax)
        .max_age(Duration::seconds(seconds))
        .finish()
}

/// `POST /sign-in`
///
/// # Errors
/// The database does not answer.
pub async fn sign_in(
    request: HttpRequest,
    gate: web::Data<Gate>,
    users: web::Data<Users>,
    paths: web::Data<Paths>,
    apps: web::Data<AppsOrigin>,
    portal: web::Data<PortalAddress>,
    form: web::Form<Form>,
) -> Result<HttpResponse, ApiError> {
    match sessions::sign_in(&request, &gate, &form.username, &form.password, SessionKind::Portal).await {
        Ok(signed_in) => {
            let mut response = go(checked(&form.next));
            let cookies = [
                session_cookie(&portal, signed_in.token.reveal(), signed_in.expires_at),
                theme_cookie(signed_in.user.theme.as_str()),
            ];
            for cookie in cookies {
                response.add_cookie(&cookie).map_err(ApiError::internal)?;
            }
            Ok(response)
        }
        Err(error)
            if matches!(error.problem.code, Code::WrongPassword | Code::AccountDisabled | Code::TooManyRequests) =>
        {
            let status = StatusCode::from_u16(error.problem.status).unwrap_or(StatusCode::UNAUTHORIZED);
            let shown = Shown { request: &request, users: &users, paths: &paths, apps: &apps };
            let mut response =
                shown.show(status, form.username.clone(), &form.next, Some(error.problem.detail.clone())).await?;
            if let Some(seconds) = error.retry_after {
                response.headers_mut().insert(actix_web::http::header::RETRY_AFTER, seconds.into());
            }
            Ok(response)
        }
        Err(error) => Err(error),
    }
}

/// Remembers the colours for pages without a session. Not a secret; scripts read it, too.
#[must_use]
pub fn theme_cookie(theme: &str) -> Cookie<'static> {
    Cookie::build(Theme::COOKIE, theme.to_owned())
        .path("/")
        .same_site(SameSite::Lax)
        .max_age(Duration::days(365))
        .finish()
}

/// `POST /sign-out`
///
/// # Errors
/// The database does not answer; the session goes on.
pub async fn sign_out(
    request: HttpRequest,
    sessions: web::Data<Sessions>,
    portal: web::Data<PortalAddress>,
) -> Result<HttpResponse, ApiError> {
    if let Ok(actor) = Actor::of(&request).await {
        sessions.end(actor.session()).await?;
    }
    let mut response = go("/sign-in");
    let mut gone =
        Cookie::build(portal.cookie_name(), "").path("/").http_only(true).secure(portal.is_secure()).finish();
    gone.make_removal();
    response.add_cookie(&gone).map_err(ApiError::internal)?;
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_paths_are_followed() {
        assert_eq!(checked("/vclusters/demo?owner=bob"), "/vclusters/demo?owner=bob");
        for bad in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "javascript:alert(1)",
            "/a\r\nSet-Cookie: x=y",
        ] {
            assert_eq!(checked(bad), "/", "{bad:?}");
        }
    }
}
