//! How a browser that is signed in to the portal comes to be signed in to an app's origin.
//!
//! An app's origin without its cookie sends the browser to the portal's `/apps/open`. There the portal's own cookie is
//! seen, the owner checked, and a ticket made: good once, for 30 seconds, for that one host name. The app's origin
//! changes it at `/.docklet/open` into a host-only cookie, which ends with the portal's sign-in.

use actix_web::cookie::{Cookie, SameSite};
use actix_web::http::header::HeaderMap;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::problem::Code;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::Proxy;
use super::address::AppAddress;
use super::apps::{OWN_PATHS, is_navigation};
use super::pages::{Reply, Trouble, wants_page};
use super::visitor;
use super::wire::request::Head;

/// Where an app's origin takes a ticket.
pub const REDEEM_PATH: &str = "/.docklet/open";
/// Where the portal hands one out.
pub const OPEN_PATH: &str = "/apps/open";
/// Where people sign in to the portal; `next` says where they go then.
pub const SIGN_IN_PATH: &str = "/sign-in";
/// The longest `next`, in bytes.
const MAX_NEXT: usize = 8192;

/// The cookie of an app's origin. With the prefix a browser takes it only from that very host.
#[must_use]
pub fn cookie_name(secure: bool) -> &'static str {
    if secure { "__Host-docklet_app" } else { "docklet_app" }
}

/// A path on the app's own origin to go on to: begins with one `/`, holds nothing that a browser reads as a host.
fn is_own_path(next: &str) -> bool {
    next.len() <= MAX_NEXT
        && next.starts_with('/')
        && !next[1..].starts_with(['/', '\\'])
        && !next.starts_with(OWN_PATHS)
        && next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn open_url(proxy: &Proxy, app: &AppAddress, next: &str) -> String {
    format!("{}{OPEN_PATH}?host={}&next={}", proxy.public.portal(), encode(&proxy.public.app_host(app)), encode(next))
}

/// The answer on an app's origin to a request without a valid cookie. It is the same whether the app exists or not.
pub(super) fn ask_to_sign_in(proxy: &Proxy, head: &Head, path: &str, app: &AppAddress) -> Reply {
    // Only opening a page can be led elsewhere and back; a form's content would be lost, a script's request fail oddly.
    if matches!(*head.method(), Method::GET | Method::HEAD) && is_navigation(head) {
        let next = if is_own_path(path) { path } else { "/" };
        return Reply::see_other(&open_url(proxy, app, next));
    }
    Trouble::new(
        Code::NotSignedIn,
        "Sign in first",
        "You are signed out. Open the app anew; what a form held must be entered again.",
    )
    .leading_to("Open the app", open_url(proxy, app, "/"))
    .reply(wants_page(head.all("accept")))
}

#[derive(Debug, Deserialize)]
pub struct OpenQuery {
    host: String,
    #[serde(default)]
    next: Option<String>,
}

/// `GET /apps/open?host=<app's host name>&next=<path>` on the portal.
pub async fn open(request: HttpRequest, query: web::Query<OpenQuery>, proxy: web::Data<Proxy>) -> HttpResponse {
    let headers = request.headers();
    let public = &proxy.public;
    let missing = || Trouble::no_such_app(public.portal()).answer(headers);
    // The redirect goes to an address made anew from the names, never to the text that came.
    let Some(app) = AppAddress::parse_label(&query.host).or_else(|| public.app_of(&query.host)) else {
        return missing();
    };
    let next = query.next.as_deref().unwrap_or("/");
    if !is_own_path(next) {
        return Trouble::new(
            Code::Invalid,
            "The address is not valid",
            "`next` is a path that begins with a single '/'.",
        )
        .answer(headers);
    }
    let visitor = match visitor::at_portal(&proxy, headers).await {
        Ok(Some(visitor)) => visitor,
        Ok(None) => {
            let back = format!("{OPEN_PATH}?host={}&next={}", encode(&public.app_host(&app)), encode(next));
            return Reply::see_other(&format!("{}{SIGN_IN_PATH}?next={}", public.portal(), encode(&back))).into();
        }
        Err(error) => return unavailable(&error, headers),
    };
    let name = (app.user.clone(), app.vcluster.clone(), app.node.clone());
    if !visitor.may_reach(&app.user) || proxy.routes.find(&name).is_none() {
        return missing();
    }
    match proxy.sessions.issue_app_ticket(visitor.session(), &app.label()).await {
        Ok(ticket) => {
            let path = format!("{REDEEM_PATH}?ticket={}&next={}", ticket.reveal(), encode(next));
            Reply::see_other(&public.app_url(&app, &path)).into()
        }
        Err(error) => unavailable(&error, headers),
    }
}

fn unavailable(error: &(dyn std::error::Error + 'static), headers: &HeaderMap) -> HttpResponse {
    visitor::log_failure(error);
    Trouble::unavailable().answer(headers)
}

#[derive(Debug, Deserialize)]
struct RedeemQuery {
    ticket: String,
    #[serde(default)]
    next: Option<String>,
}

/// `GET /.docklet/open?ticket=<secret>&next=<path>` on an app's origin.
pub(super) async fn redeem(proxy: &Proxy, head: &Head, query: &str, app: &AppAddress) -> Reply {
    let page = wants_page(head.all("accept"));
    if *head.method() != Method::GET {
        return Trouble::new(Code::MethodNotAllowed, "Only GET is supported here", "Open the app from the portal.")
            .closing()
            .reply(page);
    }
    let query = web::Query::<RedeemQuery>::from_query(query).ok();
    let next = query.as_ref().and_then(|query| query.next.as_deref()).filter(|next| is_own_path(next)).unwrap_or("/");
    let ticket = query.as_ref().map_or("", |query| query.ticket.as_str());
    let secret = match proxy.sessions.redeem_app_ticket(ticket, &app.label()).await {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            let detail = "Such a link is good once and for half a minute.";
            let trouble = Trouble::new(Code::NotAllowed, "This link has expired", detail)
                .leading_to("Open the app", open_url(proxy, app, next));
            return trouble.reply(page);
        }
        Err(error) => {
            visitor::log_failure(&error);
            return Trouble::unavailable().reply(page);
        }
    };
    let secure = proxy.public.secure();
    // It ends with the browser, or with the portal's sign-in, whichever is first.
    let cookie = Cookie::build(cookie_name(secure), secret.reveal())
        .path("/")
        .http_only(true)
        .secure(secure)
        .same_site(SameSite::Lax)
        .finish();
    Reply::see_other(next).with("set-cookie", cookie.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_stays_on_the_origin() {
        for good in ["/", "/lab?a=b#c", "/a//b", "/%5c"] {
            assert!(is_own_path(good), "{good}");
        }
        for bad in [
            "",
            "lab",
            "//evil",
            "/\\evil",
            "/a\\b",
            "http://evil",
            "/\n/evil",
            "/é",
            "/.docklet/open?ticket=x",
            "/\t/evil",
        ] {
            assert!(!is_own_path(bad), "{bad:?}");
        }
    }
}
