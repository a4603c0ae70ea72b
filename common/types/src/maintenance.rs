//! Maintenance: for a while only administrators begin anything new. What runs goes on.

use serde::{Deserialize, Serialize};

use crate::name::UserName;
use crate::time::Micros;

/// The longest text, in characters.
pub const MESSAGE_MAX: usize = 500;

/// An administrator's word that maintenance is on. Key: `settings/maintenance`; absent while it is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintenance {
    /// What everybody reads; may be empty.
    pub message: String,
    /// When it is expected to be over. It ends only when an administrator says so.
    pub until: Option<Micros>,
    pub actor: UserName,
    pub since: Micros,
}

/// Why a text is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("a message has at most {MESSAGE_MAX} characters, not {0}")]
    Long(usize),
    #[error("a message is plain text of one line")]
    Control,
}

/// # Errors
/// It is too long, or has control characters.
pub fn message(text: &str) -> Result<String, MessageError> {
    let text = text.trim();
    match text.chars().count() {
        long if long > MESSAGE_MAX => Err(MessageError::Long(long)),
        _ if text.chars().any(char::is_control) => Err(MessageError::Control),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(message("  a new switch \u{1f50c} "), Ok("a new switch \u{1f50c}".to_owned()));
        assert_eq!(message(""), Ok(String::new()));
        assert_eq!(message("two\nlines"), Err(MessageError::Control));
        assert_eq!(message(&"x".repeat(501)), Err(MessageError::Long(501)));
    }
}
