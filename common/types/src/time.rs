//! Points in time as they are stored (microseconds since 1970, UTC) and shown (RFC 3339).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Microseconds since 1970-01-01T00:00:00Z. Stored as a number, shown as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Micros(pub i64);

impl Micros {
    /// The clock's reading. The pure crates take times as arguments and never call this.
    #[must_use]
    pub fn now() -> Self {
        Self(jiff::Timestamp::now().as_microsecond())
    }

    /// Milliseconds from `earlier` to this; 0 where a clock went backwards.
    #[must_use]
    pub fn millis_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0) / 1000).unwrap_or(0)
    }

    #[must_use]
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds.saturating_mul(1_000_000)))
    }
}

/// Why a text is no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a point in time is written as 2026-01-31T18:00:00Z")]
pub struct TimeError;

impl FromStr for Micros {
    type Err = TimeError;
    fn from_str(text: &str) -> Result<Self, TimeError> {
        text.trim().parse::<jiff::Timestamp>().map(|at| Self(at.as_microsecond())).map_err(|_| TimeError)
    }
}

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(at) => at.fmt(f),
            Err(_) => write!(f, "{} µs", self.0),
        }
    }
}
