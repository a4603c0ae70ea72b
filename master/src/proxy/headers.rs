//! Which headers pass between a browser and an app, and in what form. Pure.

/// Headers of one connection only (RFC 9110, section 7.6.1, with the old ones that are still seen).
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// What only we may say, what the node must not learn, and what the connection to the app says anew.
const OURS_ON_THE_WAY_IN: [&str; 13] = [
    "authorization",
    "cookie",
    "expect",
    "content-length",
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-server",
    "x-real-ip",
];

/// `Clear-Site-Data` reaches the cookies of the whole registrable domain, the portal's with them; `Alt-Svc` and
/// `Set-Cookie2` have no use behind a proxy; the length is said anew.
const DROPPED_ON_THE_WAY_OUT: [&str; 4] = ["clear-site-data", "alt-svc", "set-cookie2", "content-length"];

fn is_one_of(name: &[u8], names: &[&str]) -> bool {
    names.iter().any(|one| name.eq_ignore_ascii_case(one.as_bytes()))
}

/// The names that `Connection` lists: they are hop-by-hop too. What nearly all say needs no list.
fn listed<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<&'a [u8]> {
    fields
        .filter(|(name, _)| name.eq_ignore_ascii_case(b"connection"))
        .flat_map(|(_, value)| value.split(|b| *b == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|option| !is_one_of(option, &["", "close", "keep-alive", "upgrade"]))
        .collect()
}

fn is_listed(name: &[u8], listed: &[&[u8]]) -> bool {
    listed.iter().any(|one| name.eq_ignore_ascii_case(one))
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
pub fn cookies_named<'a>(cookies: impl Iterator<Item = &'a [u8]>, name: &str) -> Vec<&'a str> {
    cookies
        .filter_map(|value| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .take(4)
        .collect()
}

/// A `Cookie` value without Docklet's own; `None` where nothing is left.
fn others_of(cookie: &[u8]) -> Option<Vec<u8>> {
    let mut kept = Vec::new();
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
    pub client: Option<&'a str>,
    pub scheme: &'static str,
    pub host: &'a str,
}

/// Appends the headers for the app, `Host` first. Framing (`Content-Length`, `Transfer-Encoding`), `Connection` and
/// `Upgrade` are left to the caller.
pub fn to_app<'a>(
    browser: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    forwarded: &Forwarded<'_>,
    mut append: impl FnMut(&[u8], &[u8]),
) {
    // The public name: an app that checks Origin compares it with Host.
    append(b"host", forwarded.host.as_bytes());
    let listed = listed(browser.clone());
    for (name, value) in browser {
        if name.eq_ignore_ascii_case(b"cookie") {
            if let Some(kept) = others_of(value) {
                append(b"cookie", &kept);
            }
        } else if !is_one_of(name, &HOP_BY_HOP) && !is_one_of(name, &OURS_ON_THE_WAY_IN) && !is_listed(name, &listed) {
            append(name, value);
        }
    }
    append(b"x-forwarded-host", forwarded.host.as_bytes());
    append(b"x-forwarded-proto", forwarded.scheme.as_bytes());
    if let Some(client) = forwarded.client {
        append(b"x-forwarded-for", client.as_bytes());
    }
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

/// Appends the headers for the browser, and says whether the app told the date. Framing, `Connection` and `Upgrade` are
/// left to the caller.
pub fn to_browser<'a>(
    app: impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
    mut append: impl FnMut(&[u8], &[u8]),
) -> bool {
    let (mut says_referrer, mut says_date) = (false, false);
    let listed = listed(app.clone());
    for (name, value) in app {
        if name.eq_ignore_ascii_case(b"set-cookie") {
            if let Some(kept) = narrowed(value) {
                append(name, &kept);
            }
        } else if !is_one_of(name, &HOP_BY_HOP)
            && !is_one_of(name, &DROPPED_ON_THE_WAY_OUT)
            && !is_listed(name, &listed)
        {
            says_referrer |= name.eq_ignore_ascii_case(b"referrer-policy");
            says_date |= name.eq_ignore_ascii_case(b"date");
            append(name, value);
        }
    }
    if !says_referrer {
        // The path of an app may hold its own secrets: other sites learn the origin at most.
        append(b"referrer-policy", b"strict-origin-when-cross-origin");
    }
    says_date
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + Clone {
        pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }

    fn text(name: &[u8], value: &[u8]) -> String {
        format!("{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
    }

    #[test]
    fn secrets_and_claims_of_the_browser_do_not_reach_the_app() {
        let sent = [
            ("Authorization", "Bearer x"),
            ("Cookie", "a=1; docklet_session=s; DOCKLET_app=t; __host-docklet_session=u; b=2"),
            ("cookie", "docklet_app=only"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-app", "kept"),
        ];
        let mut out = Vec::new();
        let forwarded = Forwarded { client: Some("192.0.2.7"), scheme: "http", host: "a.localhost:8000" };
        to_app(bytes(&sent), &forwarded, |name, value| out.push(text(name, value)));
        assert_eq!(
            out,
            [
                "host: a.localhost:8000",
                "cookie: a=1; b=2",
                "x-app: kept",
                "x-forwarded-host: a.localhost:8000",
                "x-forwarded-proto: http",
                "x-forwarded-for: 192.0.2.7",
            ]
        );
    }

    #[test]
    fn an_app_cannot_set_cookies_beyond_its_origin() {
        let said = [
            ("Set-Cookie", "a=1; Domain=localhost; Path=/"),
            ("Set-Cookie", "docklet_app=evil"),
            ("set-cookie", "__HOST-docklet_session=evil; Secure"),
            ("set-cookie", "=docklet_app=evil"),
            ("set-cookie", "b=2;DOMAIN = x ;HttpOnly"),
            ("Clear-Site-Data", "\"cookies\""),
            ("Connection", "x-hop"),
            ("X-Hop", "1"),
            ("Date", "now"),
        ];
        let mut out = Vec::new();
        let says_date = to_browser(bytes(&said), |name, value| out.push(text(name, value).to_ascii_lowercase()));
        assert_eq!(
            out,
            [
                "set-cookie: a=1; path=/",
                "set-cookie: b=2;httponly",
                "date: now",
                "referrer-policy: strict-origin-when-cross-origin"
            ]
        );
        assert!(says_date);
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
