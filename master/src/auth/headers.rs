//! Headers that every answer of the portal and the API carries. Apps of users do not pass here.

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};

/// The policy that the pages are written for: nothing from elsewhere, no frames around us. Styles need `unsafe-inline`: the page
/// and the terminal set them from scripts.
const CSP: &str = docklet_web::assets::CONTENT_SECURITY_POLICY;

/// Adds what is missing; a handler's own value stays.
pub fn add(headers: &mut HeaderMap, secure: bool) {
    let mut set = |name: &'static str, value: &'static str| {
        let name = HeaderName::from_static(name);
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    };
    set("content-security-policy", CSP);
    set("x-content-type-options", "nosniff");
    set("x-frame-options", "DENY");
    set("referrer-policy", "same-origin");
    set("cross-origin-opener-policy", "same-origin");
    set("cross-origin-resource-policy", "same-origin");
    set("permissions-policy", "camera=(), microphone=(), geolocation=()");
    // Pages and answers are of one user; assets say otherwise themselves.
    set("cache-control", "no-store");
    if secure {
        set("strict-transport-security", "max-age=31536000");
    }
}
