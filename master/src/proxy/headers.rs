//! Which headers pass between a browser and an app, and in what form. Pure.
//!
//! Two libraries meet here: actix-web speaks `http` 0.2, hyper `http` 1; names and values are copied at this edge. What is
//! decided is the same for requests that hyper carries and for those that `plain` does.

use actix_web::http::header::{HeaderMap as FrontHeaders, HeaderName as FrontName, HeaderValue as FrontValue};
use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Headers of one connection only (RFC 9110, section 7.6.1, with the old ones that are still seen).
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// What only we may say, what the node must not learn, and what the connection to the app says anew.
fn is_ours_on_the_way_in(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cookie"
            | "expect"
            | "content-length"
            | "host"
            | "forwarded"
            | "x-forwarded-for"
            | "x-forwarded-proto"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-forwarded-prefix"
            | "x-forwarded-server"
            | "x-real-ip"
    )
}

/// `Clear-Site-Data` reaches the cookies of the whole registrable domain, the portal's with them; `Alt-Svc` and
/// `Set-Cookie2` have no use behind a proxy.
fn is_dropped_on_the_way_out(name: &str) -> bool {
    matches!(name, "clear-site-data" | "alt-svc" | "set-cookie2" | "content-length" | "set-cookie")
}

/// The names that `Connection` lists: they are hop-by-hop too.
fn listed<'a>(values: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    values
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

/// Whether a cookie is Docklet's own: apps neither see nor set it. Browsers compare prefixes without case.
#[must_use]
pub fn is_own_cookie(name: &str) -> bool {
    let starts = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    // A cookie without a name is sent as its bare value, which could then read like any `name=value`.
    name.is_empty() || starts("docklet_") || starts("__Host-docklet") || starts("__Secure-docklet")
}

/// The values of all cookies of that name, at most four: a sibling's page may have set another of the same name.
#[must_use]
pub fn cookies_named<'a>(headers: &'a FrontHeaders, name: &str) -> Vec<&'a str> {
    headers
        .get_all(actix_web::http::header::COOKIE)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .take(4)
        .collect()
}

/// A `Cookie` value without Docklet's own; `None` where nothing is left.
fn others_of(cookie: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::with_capacity(cookie.len());
    for pair in cookie.split(|b| *b == b';') {
        let pair = pair.trim_ascii();
        let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        // A pair without `=` is a cookie without a name; it is harmless as it stands.
        let own = pair.contains(&b'=') && std::str::from_utf8(name).is_ok_and(is_own_cookie);
        if pair.is_empty() || own {
            continue;
        }
        if !kept.is_empty() {
            kept.extend_from_slice(b"; ");
        }
        kept.extend_from_slice(pair);
    }
    (!kept.is_empty()).then_some(kept)
}

/// What we tell an app about the browser.
pub struct Forwarded<'a> {
    pub client: Option<std::net::IpAddr>,
    pub scheme: &'static str,
    pub host: &'a str,
}

/// Appends the headers for the app, `Host` first. Framing (`Content-Length`, `Transfer-Encoding`) is left to the
/// connection, `Upgrade` to the caller.
pub fn to_app(front: &FrontHeaders, forwarded: &Forwarded<'_>, mut append: impl FnMut(&str, &[u8])) {
    // The public name: an app that checks Origin compares it with Host.
    append("host", forwarded.host.as_bytes());
    let connection = listed(front.get_all(actix_web::http::header::CONNECTION).map(FrontValue::as_bytes));
    for (name, value) in front {
        let name = name.as_str();
        if !is_hop_by_hop(name) && !is_ours_on_the_way_in(name) && !connection.iter().any(|listed| listed == name) {
            append(name, value.as_bytes());
        }
    }
    for value in front.get_all(actix_web::http::header::COOKIE) {
        if let Some(kept) = others_of(value.as_bytes()) {
            append("cookie", &kept);
        }
    }
    append("x-forwarded-host", forwarded.host.as_bytes());
    append("x-forwarded-proto", forwarded.scheme.as_bytes());
    if let Some(client) = forwarded.client {
        append("x-forwarded-for", client.to_canonical().to_string().as_bytes());
    }
}

/// The same as the library on the app's side takes them.
#[must_use]
pub fn map_to_app(front: &FrontHeaders, forwarded: &Forwarded<'_>) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(front.len() + 4);
    to_app(front, forwarded, |name, value| {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
            out.append(name, value);
        }
    });
    out
}

/// `Set-Cookie` as it may pass: without `Domain`, so that it stays with the app's own origin; `None` where the name is ours.
fn narrowed(cookie: &[u8]) -> Option<Vec<u8>> {
    let mut parts = cookie.split(|b| *b == b';');
    let pair = parts.next()?;
    let name = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
    if !pair.contains(&b'=') || std::str::from_utf8(name).is_ok_and(is_own_cookie) {
        return None;
    }
    let mut kept = pair.to_vec();
    for attribute in parts {
        let key = attribute.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        if !key.eq_ignore_ascii_case(b"domain") {
            kept.push(b';');
            kept.extend_from_slice(attribute);
        }
    }
    Some(kept)
}

/// The headers for the browser, of what `app` gives each time. `keep_length` where the answer has no body but tells a
/// length (304).
pub fn to_browser<'a, I: Iterator<Item = (&'a [u8], &'a [u8])>>(
    app: impl Fn() -> I,
    keep_length: bool,
    mut append: impl FnMut(FrontName, FrontValue),
) {
    use actix_web::http::header::{CONTENT_LENGTH, REFERRER_POLICY, SET_COOKIE};
    let is_connection = |(name, _): &(&[u8], &[u8])| name.eq_ignore_ascii_case(b"connection");
    let connection = listed(app().filter(is_connection).map(|(_, value)| value));
    let mut says_referrer = false;
    for (name, value) in app() {
        let Ok(name) = FrontName::from_bytes(name) else { continue };
        let kept = if name == SET_COOKIE { narrowed(value) } else { None };
        let text = name.as_str();
        let length = keep_length && name == CONTENT_LENGTH;
        let dropped = kept.is_none()
            && (is_hop_by_hop(text) || is_dropped_on_the_way_out(text) || connection.iter().any(|l| l == text));
        if (!dropped || length)
            && let Ok(value) = FrontValue::from_bytes(kept.as_deref().unwrap_or(value))
        {
            says_referrer |= name == REFERRER_POLICY;
            append(name, value);
        }
    }
    if !says_referrer {
        // The path of an app may hold its own secrets: other sites learn the origin at most.
        append(REFERRER_POLICY, FrontValue::from_static("strict-origin-when-cross-origin"));
    }
}

/// As the library on the app's side has them.
pub fn pairs(app: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    app.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
}

/// A body of a length that all agree on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// Why a request's framing is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("Content-Length and Transfer-Encoding contradict each other")]
    Both,
    #[error("Content-Length is not one number")]
    Length,
    #[error("Transfer-Encoding is not chunked")]
    Encoding,
    #[error("Host is missing or given twice")]
    Host,
}

/// Checks again what the parser in front has checked: two readers of one request that disagree about its end are how
/// requests are smuggled, so that nothing here depends on another library's version.
///
/// # Errors
/// The first thing that is ambiguous.
pub fn framing(front: &FrontHeaders) -> Result<Framing, FramingError> {
    use actix_web::http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
    if front.get_all(HOST).count() > 1 {
        return Err(FramingError::Host);
    }
    let mut encodings = front.get_all(TRANSFER_ENCODING);
    let mut lengths = front.get_all(CONTENT_LENGTH);
    let (encoding, length) = (encodings.next(), lengths.next());
    if encodings.next().is_some() {
        return Err(FramingError::Encoding);
    }
    if lengths.next().is_some() {
        return Err(FramingError::Length);
    }
    match (encoding, length) {
        (Some(_), Some(_)) => Err(FramingError::Both),
        (Some(encoding), None) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (Some(_), None) => Err(FramingError::Encoding),
        (None, Some(length)) => {
            let text = length.to_str().map_err(|_| FramingError::Length)?;
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let length = plain.then(|| text.parse::<u64>().ok()).flatten().ok_or(FramingError::Length)?;
            Ok(if length == 0 { Framing::None } else { Framing::Length(length) })
        }
        (None, None) => Ok(Framing::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn front(pairs: &[(&str, &str)]) -> FrontHeaders {
        let mut map = FrontHeaders::new();
        for (name, value) in pairs {
            map.append(FrontName::from_bytes(name.as_bytes()).unwrap(), FrontValue::from_str(value).unwrap());
        }
        map
    }

    fn passed(pairs: &[(&str, &str)]) -> HeaderMap {
        map_to_app(
            &front(pairs),
            &Forwarded { client: Some("192.0.2.7".parse().unwrap()), scheme: "http", host: "a.localhost:8000" },
        )
    }

    #[test]
    fn secrets_and_claims_of_the_browser_do_not_reach_the_app() {
        let out = passed(&[
            ("authorization", "Bearer x"),
            ("cookie", "a=1; docklet_session=s; DOCKLET_app=t; __host-docklet_session=u; b=2"),
            ("cookie", "docklet_app=only"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-app", "kept"),
        ]);
        assert_eq!(out.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(out["x-forwarded-for"], "192.0.2.7");
        assert_eq!(out["host"], "a.localhost:8000");
        assert_eq!(out["x-app"], "kept");
        for gone in ["authorization", "forwarded", "x-hop", "connection", "upgrade", "expect"] {
            assert!(!out.contains_key(gone), "{gone} passed");
        }
    }

    #[test]
    fn an_app_cannot_set_cookies_beyond_its_origin() {
        let mut app = HeaderMap::new();
        for cookie in [
            "a=1; Domain=localhost; Path=/",
            "docklet_app=evil",
            "__HOST-docklet_session=evil; Secure",
            "=docklet_app=evil",
            "b=2;DOMAIN = x ;HttpOnly",
        ] {
            app.append(http::header::SET_COOKIE, HeaderValue::from_static(cookie));
        }
        app.insert("clear-site-data", HeaderValue::from_static("\"cookies\""));
        let mut out = Vec::new();
        to_browser(|| pairs(&app), false, |name, value| out.push(format!("{name}: {}", value.to_str().unwrap())));
        assert_eq!(
            out,
            ["set-cookie: a=1; Path=/", "set-cookie: b=2;HttpOnly", "referrer-policy: strict-origin-when-cross-origin"]
        );
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        assert_eq!(
            framing(&front(&[("content-length", "5"), ("transfer-encoding", "chunked")])),
            Err(FramingError::Both)
        );
        assert_eq!(framing(&front(&[("content-length", "5"), ("content-length", "5")])), Err(FramingError::Length));
        assert_eq!(framing(&front(&[("content-length", "+5")])), Err(FramingError::Length));
        assert_eq!(framing(&front(&[("transfer-encoding", "chunked, identity")])), Err(FramingError::Encoding));
        assert_eq!(framing(&front(&[("host", "a"), ("host", "b")])), Err(FramingError::Host));
        assert_eq!(framing(&front(&[("content-length", "0")])), Ok(Framing::None));
        assert_eq!(framing(&front(&[("transfer-encoding", "Chunked")])), Ok(Framing::Chunked));
    }

    proptest! {
        #[test]
        fn no_cookie_of_ours_passes_whatever_stands_around_it(before in "[ -~]{0,20}", after in "[ -~]{0,20}") {
            let cookie = format!("{before};docklet_session=secret;{after}");
            if let Some(kept) = others_of(cookie.as_bytes()) {
                let kept = String::from_utf8(kept).unwrap();
                let from_around = before.contains("docklet") || after.contains("docklet");
                prop_assert!(from_around || !kept.contains("docklet_session=secret"), "{kept}");
            }
        }
    }
}
