//! Validated names. Each kind is its own type, so that a node's name cannot stand where a user's is meant.
//!
//! Together with a port they must fit one DNS label of 63 characters:
//! `65535--` + node (12) + `--` + vcluster (20) + `--` + user (20) is exactly 63.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not a name. The message is for the person who typed it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a {kind} name cannot be empty")]
    Empty { kind: &'static str },
    #[error("a {kind} name has at most {max} characters; this one has {len}")]
    TooLong { kind: &'static str, max: usize, len: usize },
    #[error("a {kind} name starts with a lower-case letter a-z")]
    BadStart { kind: &'static str },
    #[error("a {kind} name has only a-z, 0-9 and '-'; {found:?} is not allowed")]
    BadCharacter { kind: &'static str, found: char },
    #[error("a {kind} name has no '--' and does not end in '-'")]
    BadDash { kind: &'static str },
}

fn check(kind: &'static str, max: usize, text: &str) -> Result<(), NameError> {
    let Some(first) = text.chars().next() else {
        return Err(NameError::Empty { kind });
    };
    let len = text.chars().count();
    if len > max {
        return Err(NameError::TooLong { kind, max, len });
    }
    if !first.is_ascii_lowercase() {
        return Err(NameError::BadStart { kind });
    }
    if let Some(found) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::BadCharacter { kind, found });
    }
    if text.contains("--") || text.ends_with('-') {
        return Err(NameError::BadDash { kind });
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The largest number of characters.
            pub const MAX: usize = $max;

            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check($kind, $max, text).map(|()| Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check($kind, $max, &text).map(|()| Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(/// A user's sign-in name: `[a-z][a-z0-9-]{0,19}`.
    UserName, "user", 20);
name!(/// A vcluster's name, unique per owner: `[a-z][a-z0-9-]{0,19}`.
    VclusterName, "vcluster", 20);
name!(/// A node's name and host name, unique per vcluster; at most 12 characters.
    NodeName, "node", 12);
name!(/// An image's name: `[a-z][a-z0-9-]{0,39}`.
    ImageName, "image", 40);
name!(/// A worker machine's name in Docklet: `[a-z][a-z0-9-]{0,39}`.
    HostName, "host", 40);
name!(/// The name of a whole installation; part of kernel object names.
    ClusterName, "cluster", 16);

impl NodeName {
    /// The default name of the `number`-th node, counted from 1: `node1`, `node2`, …
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        // u32::MAX has 10 digits: callers cap node counts far below the 12 characters.
        Self(format!("node{number}"))
    }

    /// The number in `node<number>`, if this is such a name.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        self.0.strip_prefix("node")?.parse().ok()
    }
}

impl HostName {
    /// Makes a valid host name out of a machine's own (`Web_01.example.org` becomes `web-01`).
    #[must_use]
    pub fn from_machine(machine: &str) -> Self {
        let mut out = String::new();
        for c in machine.split('.').next().unwrap_or_default().to_ascii_lowercase().chars() {
            let c = if c.is_ascii_alphanumeric() { c } else { '-' };
            let dash_would_repeat = c == '-' && (out.is_empty() || out.ends_with('-'));
            if !dash_would_repeat && out.len() < Self::MAX {
                out.push(c);
            }
        }
        while out.ends_with('-') {
            out.pop();
        }
        if !out.starts_with(|c: char| c.is_ascii_lowercase()) {
            out = format!("h{out}").chars().take(Self::MAX).collect();
        }
        Self(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_rules_refuse() {
        for bad in ["", "../x", "-rf", "a--b", "a-", "Ä", "A", "1a", "a_b", "a b", "aaaaaaaaaaaaaaaaaaaaa"] {
            assert!(bad.parse::<VclusterName>().is_err(), "{bad:?} was accepted");
        }
        assert!("demo-1".parse::<VclusterName>().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused_and_never_panics(text in ".{0,80}") {
            if let Ok(name) = text.parse::<VclusterName>() {
                prop_assert_eq!(name.as_str(), text);
            }
        }

        #[test]
        fn a_machine_name_always_becomes_a_host_name(text in ".{0,80}") {
            let name = HostName::from_machine(&text);
            prop_assert!(name.as_str().parse::<HostName>().is_ok(), "{:?}", name);
        }
    }
}
