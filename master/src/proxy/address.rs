//! Host names of apps, and the addresses that browsers use.
//!
//! `<port>--<node>--<vcluster>--<user>.<APPS_DOMAIN>`: one DNS label, read strictly. No name holds `--` or ends in `-`,
//! so that the label has exactly one reading.

use std::fmt;
use std::num::NonZeroU16;

use actix_web::dev::RequestHead;
use actix_web::http::header;
use docklet_types::name::{NodeName, UserName, VclusterName};

/// One app: a port of a node, by the names its owner gave.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AppAddress {
    pub port: NonZeroU16,
    pub node: NodeName,
    pub vcluster: VclusterName,
    pub user: UserName,
}

impl AppAddress {
    /// Reads `8888--node1--demo--alice`; `None` where it is anything else.
    #[must_use]
    pub fn parse_label(label: &str) -> Option<Self> {
        let mut parts = label.split("--");
        let port = parse_port(parts.next()?)?;
        let node = parts.next()?.parse().ok()?;
        let vcluster = parts.next()?.parse().ok()?;
        let user = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some(Self { port, node, vcluster, user })
    }

    #[must_use]
    pub fn label(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for AppAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}--{}--{}--{}", self.port, self.node, self.vcluster, self.user)
    }
}

/// A port in the one way it is written: no sign, no leading zero.
fn parse_port(text: &str) -> Option<NonZeroU16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    plain.then(|| text.parse().ok()).flatten()
}

/// PORTAL_URL cannot be taken apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("PORTAL_URL {url:?} is not http:// or https:// with a host")]
pub struct PublicError {
    url: String,
}

/// The addresses that browsers use for the portal and for apps.
#[derive(Debug, Clone)]
pub struct Public {
    /// Scheme, host and port of the portal; also its origin.
    portal: String,
    portal_host: String,
    secure: bool,
    /// `:8000`, or empty where the scheme's own port is meant.
    port: String,
    /// `.localhost`
    dotted_domain: String,
}

impl Public {
    /// # Errors
    /// Where `portal_url` is not `scheme://host[:port]`.
    pub fn new(portal_url: &str, apps_domain: &str) -> Result<Self, PublicError> {
        let wrong = || PublicError { url: portal_url.to_owned() };
        let lower = portal_url.to_ascii_lowercase();
        let (secure, authority) = match (lower.strip_prefix("https://"), lower.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let (host, port) = split_port(authority).ok_or_else(wrong)?;
        if host.is_empty() {
            return Err(wrong());
        }
        // Browsers leave the scheme's own port out of Host and Origin.
        let port = port.filter(|p| *p != if secure { "443" } else { "80" });
        let port = port.map(|p| format!(":{p}")).unwrap_or_default();
        let scheme = if secure { "https" } else { "http" };
        Ok(Self {
            portal: format!("{scheme}://{host}{port}"),
            portal_host: host.to_owned(),
            secure,
            port,
            dotted_domain: format!(".{}", apps_domain.to_ascii_lowercase()),
        })
    }

    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    #[must_use]
    pub fn secure(&self) -> bool {
        self.secure
    }

    /// Scheme, host and port of the portal: its origin, as browsers write it.
    #[must_use]
    pub fn portal(&self) -> &str {
        &self.portal
    }

    /// An app's host name, with the port where browsers show it.
    #[must_use]
    pub fn app_host(&self, app: &AppAddress) -> String {
        format!("{app}{}{}", self.dotted_domain, self.port)
    }

    /// `path` starts with `/`.
    #[must_use]
    pub fn app_url(&self, app: &AppAddress, path: &str) -> String {
        format!("{}://{}{path}", self.scheme(), self.app_host(app))
    }

    /// Whether a `Host` is below the apps' domain, well formed or not. Such a host never sees the portal.
    #[must_use]
    pub fn is_app_host(&self, host: &str) -> bool {
        let Some((name, _)) = split_port(host) else {
            return false;
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        !name.eq_ignore_ascii_case(&self.portal_host)
            && name.len() > self.dotted_domain.len()
            && name.is_char_boundary(name.len() - self.dotted_domain.len())
            && name[name.len() - self.dotted_domain.len()..].eq_ignore_ascii_case(&self.dotted_domain)
    }

    /// The app that a `Host` names; `None` where it names none.
    #[must_use]
    pub fn app_of(&self, host: &str) -> Option<AppAddress> {
        let (name, _) = split_port(host)?;
        let label = name.strip_suffix(&self.dotted_domain);
        // Browsers send lower case; others may not.
        match label {
            Some(label) => AppAddress::parse_label(label),
            None => AppAddress::parse_label(name.to_ascii_lowercase().strip_suffix(&self.dotted_domain)?),
        }
    }

    /// The app that an `Origin` belongs to, if it is an app's origin of ours.
    #[must_use]
    pub fn app_of_origin(&self, origin: &str) -> Option<AppAddress> {
        let host = origin.strip_prefix(self.scheme())?.strip_prefix("://")?;
        let app = self.app_of(host)?;
        (self.app_host(&app) == host).then_some(app)
    }

    /// The origin that a page served under this `Host` has.
    #[must_use]
    pub fn origin_of(&self, host: &str) -> String {
        format!("{}://{}", self.scheme(), host.to_ascii_lowercase())
    }
}

/// `host:port` or `host`; `None` where the port is no number.
fn split_port(authority: &str) -> Option<(&str, Option<&str>)> {
    if let Some(end) = authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        let (host, rest) = authority.split_at(end + 2);
        return match rest.strip_prefix(':') {
            Some(port) => parse_port(port).map(|_| (host, Some(port))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => parse_port(port).map(|_| (host, Some(port))),
        None => Some((authority, None)),
    }
}

/// The request's host: the `Host` header, or the authority of HTTP/2. Never a forwarded header, which anyone can write.
#[must_use]
pub fn host_of(head: &RequestHead) -> Option<&str> {
    match head.headers().get(header::HOST) {
        Some(host) => host.to_str().ok(),
        None => head.uri.authority().map(actix_web::http::uri::Authority::as_str),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public() -> Public {
        Public::new("http://localhost:8000", "localhost").unwrap()
    }

    #[test]
    fn a_label_has_one_reading() {
        let app = AppAddress::parse_label("8888--node1--demo--alice").unwrap();
        assert_eq!(
            (app.port.get(), app.node.as_str(), app.vcluster.as_str(), app.user.as_str()),
            (8888, "node1", "demo", "alice")
        );
        for bad in [
            "",
            "8888",
            "8888--node1--demo",
            "8888--node1--demo--alice--x",
            "08888--node1--demo--alice",
            "+8--node1--demo--alice",
            "0--node1--demo--alice",
            "65536--node1--demo--alice",
            "8888--Node1--demo--alice",
            "8888---node1--demo--alice",
            "8888--node1---demo--alice",
            "8888--node1--demo--alice-",
            "8888--node1--demo--alice ",
            "８--node1--demo--alice",
        ] {
            assert!(AppAddress::parse_label(bad).is_none(), "{bad:?} was read");
        }
    }

    #[test]
    fn hosts_are_told_apart() {
        let public = public();
        assert!(public.app_of("8888--node1--demo--alice.localhost:8000").is_some());
        assert!(public.app_of("8888--NODE1--demo--alice.LOCALHOST").is_some());
        for host in [
            "localhost:8000",
            "localhost",
            "127.0.0.1:8000",
            "[::1]:8000",
            "example.org",
            "xlocalhost",
            "a.localhost:port",
        ] {
            assert!(!public.is_app_host(host), "{host} is no app's");
        }
        for host in ["x.localhost", "x.localhost.", "a.b.localhost:1", "8888--node1--demo--alice.localhost."] {
            assert!(public.is_app_host(host), "{host} is below the domain");
        }
        assert!(public.app_of("8888--node1--demo--alice.localhost.").is_none());
        assert!(public.app_of("x.8888--node1--demo--alice.localhost").is_none());
    }

    #[test]
    fn a_portal_below_the_apps_domain_stays_the_portal() {
        let public = Public::new("https://portal.example.org", "example.org").unwrap();
        assert!(!public.is_app_host("portal.example.org"));
        assert!(public.is_app_host("portalx.example.org"));
        let app = AppAddress::parse_label("80--n--v--u").unwrap();
        assert_eq!(public.app_url(&app, "/x"), "https://80--n--v--u.example.org/x");
    }

    #[test]
    fn origins_are_exact() {
        let public = public();
        assert!(public.app_of_origin("http://80--n--v--u.localhost:8000").is_some());
        for bad in [
            "https://80--n--v--u.localhost:8000",
            "http://80--n--v--u.localhost",
            "http://80--n--v--u.localhost:8001",
            "null",
            "http://localhost:8000",
        ] {
            assert!(public.app_of_origin(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_host_is_read_or_refused_and_what_is_read_is_written_back(host in ".{0,90}") {
            let public = public();
            if let Some(app) = public.app_of(&host) {
                prop_assert!(public.is_app_host(&host));
                prop_assert!(host.to_ascii_lowercase().starts_with(&app.label()));
            }
        }
    }
}
