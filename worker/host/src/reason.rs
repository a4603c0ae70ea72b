//! From errors to what a person reads.

use docklet_types::report::Reason;
use std::error::Error;
use std::fmt::Write;
use std::io;

use crate::HostError;

/// An error and its causes in one line: `could not mount x: permission denied`.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Whether the chain ends in "no space" or "over quota".
#[must_use]
pub fn is_out_of_space(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && matches!(io.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
        {
            return true;
        }
        next = cause.source();
    }
    false
}

/// A failed operation: `what` is a whole clause, the causes follow it. A full disk has a code of its own everywhere.
pub(crate) fn failed(code: &str, what: &str, error: &(dyn Error + 'static)) -> HostError {
    if is_out_of_space(error) {
        return HostError(Reason::new(
            "out_of_space",
            format!("{what}: the host's disk is full. Delete what is not needed, or ask an administrator."),
        ));
    }
    HostError(Reason::new(code, format!("{what}: {}.", chain(error))))
}

impl HostError {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self(Reason::new(code, message))
    }

    /// The stable code of the reason.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.0.code
    }
}
