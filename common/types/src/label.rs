//! Labels of hosts: what an administrator says about them, and what a vcluster asks of its hosts.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The key or the value of a label: 1 to 40 of `a-z A-Z 0-9 . _ -`, a letter or digit first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelText(String);

/// Labels by key.
pub type Labels = BTreeMap<LabelText, LabelText>;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no part of a label: it has 1 to 40 of a-z, A-Z, 0-9, '.', '_' and '-', and starts with a letter or digit"
)]
pub struct LabelError(pub String);

impl LabelText {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LabelText {
    type Error = LabelError;
    fn try_from(text: String) -> Result<Self, LabelError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if starts && text.len() <= 40 && text.chars().all(good) { Ok(Self(text)) } else { Err(LabelError(text)) }
    }
}

impl FromStr for LabelText {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, LabelError> {
        text.to_owned().try_into()
    }
}

impl From<LabelText> for String {
    fn from(label: LabelText) -> String {
        label.0
    }
}

impl fmt::Display for LabelText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Labels out of the texts of a request.
///
/// # Errors
/// The first text that is none.
pub fn parse(texts: &BTreeMap<String, String>) -> Result<Labels, LabelError> {
    texts.iter().map(|(key, value)| Ok((key.parse()?, value.parse()?))).collect()
}

/// As requests and answers carry them.
#[must_use]
pub fn texts(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

/// `gpu=yes, rack=3`
#[must_use]
pub fn listed(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_label_and_what_is_not() {
        for good in ["gpu", "A100-80", "1.5_x"] {
            assert!(good.parse::<LabelText>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "-x", "a b", "ä", "a=b", &"x".repeat(41)] {
            assert!(bad.parse::<LabelText>().is_err(), "{bad:?} was accepted");
        }
    }
}
