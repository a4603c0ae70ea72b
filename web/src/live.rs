//! Pieces of a page that change while it is open, and how they travel.

use std::fmt::Write as _;

/// One element of the page with its id; it takes the place of the element that has that id now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// The element's id, and the event's name.
    pub id: String,
    pub html: String,
}

impl Fragment {
    /// The fragment as one event of `text/event-stream`.
    #[must_use]
    pub fn to_sse(&self) -> String {
        event(&self.id, &self.html)
    }
}

/// Sent on `/live/vclusters/{name}` when the vcluster is gone: the browser goes home.
#[must_use]
pub fn gone() -> String {
    event("gone", "/")
}

/// One event of `text/event-stream`. A line feed in the data would end the field, so each line is a field of its own.
#[must_use]
pub fn event(name: &str, data: &str) -> String {
    let mut out = String::with_capacity(data.len() + 64);
    // A name comes from us, but a stray line feed must not open a new field.
    let _ = writeln!(out, "event: {}", name.replace(['\r', '\n'], ""));
    for line in data.split(['\r', '\n']) {
        let _ = writeln!(out, "data: {line}");
    }
    out.push('\n');
    out
}
