//! The portal's addresses. Templates take them from here, so that names are encoded in one place.

use std::fmt::Write as _;

/// A path segment or query value with everything but unreserved characters percent-encoded.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// A vcluster's page or, with `tail`, one below it: `/vclusters/demo/stop`. The owner is named only where the viewer
/// is somebody else, that is, an administrator.
#[must_use]
pub fn vcluster(name: &str, owner: &str, viewer: &str, tail: &str) -> String {
    let mut url = format!("/vclusters/{}", encode(name));
    if !tail.is_empty() {
        url.push('/');
        url.push_str(tail);
    }
    if owner != viewer {
        url.push_str("?owner=");
        url.push_str(&encode(owner));
    }
    url
}

/// The terminal page of one node.
#[must_use]
pub fn terminal(name: &str, owner: &str, viewer: &str, node: &str) -> String {
    let url = vcluster(name, owner, viewer, "terminal");
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}node={}", encode(node))
}

/// The Jupyter page of one node: POST starts it, GET shows the progress.
#[must_use]
pub fn jupyter(name: &str, owner: &str, viewer: &str, node: &str) -> String {
    vcluster(name, owner, viewer, &format!("nodes/{}/jupyter", encode(node)))
}

/// The SSE stream of one vcluster.
#[must_use]
pub fn live_vcluster(name: &str, owner: &str, viewer: &str) -> String {
    format!("/live{}", vcluster(name, owner, viewer, ""))
}

#[must_use]
pub fn user(name: &str, tail: &str) -> String {
    format!("/users/{}/{tail}", encode(name))
}

#[must_use]
pub fn host(name: &str) -> String {
    format!("/hosts/{}", encode(name))
}
