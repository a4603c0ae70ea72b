//! Refuses changes that another site makes a browser ask for.
//!
//! Apps of users may live on the same registrable domain as the portal, where `SameSite` does not help; so every change
//! that a cookie authenticates must say that it comes from the portal's own pages: `Sec-Fetch-Site: same-origin`, or an
//! `Origin` (else `Referer`) that is ours. Bearer tokens are never sent by a browser on its own and need no such proof.

use actix_web::HttpRequest;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, HOST, ORIGIN, REFERER};
use docklet_types::problem::Code;

use super::actor::PortalAddress;
use crate::http::problem::ApiError;

fn header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name).and_then(|v| v.to_str().ok())
}

/// Whether an origin is the portal's: the configured one, or the one this very request was sent to (the portal may be
/// reached by several names; a page cannot choose the `Host` of its requests).
#[must_use]
pub fn is_own_origin(request: &HttpRequest, portal: &PortalAddress, origin: &str) -> bool {
    if origin == portal.url {
        return true;
    }
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let host = header(request, HOST.as_str()).or_else(|| request.uri().authority().map(|a| a.as_str()));
    authority.is_some() && authority == host
}

fn origin_of_url(url: &str) -> &str {
    let start = url.find("://").map_or(0, |i| i + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |i| start + i);
    &url[..end]
}

/// # Errors
/// `not_allowed` where the change does not come from our own pages.
pub fn check(request: &HttpRequest, portal: &PortalAddress) -> Result<(), ApiError> {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    let refused = || {
        Err(ApiError::new(
            Code::NotAllowed,
            "The request does not come from a page of this portal. Scripts use POST /api/v1/sessions and Authorization: Bearer.",
        ))
    };
    if request.headers().contains_key(AUTHORIZATION) {
        return Ok(());
    }
    if let Some(origin) = header(request, ORIGIN.as_str()) {
        return if is_own_origin(request, portal, origin) { Ok(()) } else { refused() };
    }
    if let Some(site) = header(request, "sec-fetch-site") {
        return if site == "same-origin" { Ok(()) } else { refused() };
    }
    if let Some(referer) = header(request, REFERER.as_str()) {
        return if is_own_origin(request, portal, origin_of_url(referer)) { Ok(()) } else { refused() };
    }
    // No browser: without a cookie there is nothing to abuse, with one there must be a proof.
    if portal.cookie(request).is_none() { Ok(()) } else { refused() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::cookie::Cookie;
    use actix_web::test::TestRequest;

    fn outcome(headers: &[(&'static str, &'static str)], cookie: bool) -> bool {
        let mut request = TestRequest::post().uri("/vclusters").insert_header(("host", "portal.example:8000"));
        for header in headers {
            request = request.insert_header(*header);
        }
        if cookie {
            request = request.cookie(Cookie::new("docklet_session", "x"));
        }
        check(&request.to_http_request(), &PortalAddress::new("http://localhost:8000")).is_ok()
    }

    #[test]
    fn only_our_own_pages_change_things_by_cookie() {
        assert!(outcome(&[("origin", "http://localhost:8000")], true));
        assert!(outcome(&[("origin", "http://portal.example:8000")], true));
        assert!(outcome(&[("sec-fetch-site", "same-origin")], true));
        assert!(outcome(&[("referer", "http://localhost:8000/vclusters/new")], true));
        assert!(outcome(&[("authorization", "Bearer x"), ("origin", "http://evil.example")], true));
        assert!(outcome(&[], false));
        assert!(!outcome(&[], true));
        assert!(!outcome(&[("origin", "null")], true));
        assert!(!outcome(&[("origin", "http://evil.example")], false));
        assert!(!outcome(
            &[("origin", "http://8888--node1--demo--bob.localhost:8000"), ("sec-fetch-site", "same-site")],
            true
        ));
        assert!(!outcome(&[("sec-fetch-site", "same-site")], true));
        assert!(!outcome(&[("referer", "http://localhost:8000.evil.example/")], true));
        assert!(!outcome(&[("referer", "http://evil.example/http://localhost:8000")], true));
    }
}
