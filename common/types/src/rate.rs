//! How much a vcluster may carry over its boundary.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Limits of one vcluster on each of its hosts, for what comes from outside and what goes there. Traffic between its
/// nodes is not limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct RateLimits {
    /// To the nodes, in kbit/s (1000 bits); absent: no limit. From 64 to 100000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 10000)]
    pub ingress_kbit: Option<u32>,
    /// From the nodes, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_kbit: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rate is from 64 to 100000000 kbit/s")]
pub struct RateError {
    /// The field that is wrong, as named in JSON.
    pub field: &'static str,
}

impl RateLimits {
    /// # Errors
    /// The first limit that is out of its range.
    pub fn checked(self) -> Result<Self, RateError> {
        let good = |kbit: Option<u32>| kbit.is_none_or(|k| (64..=100_000_000).contains(&k));
        if !good(self.ingress_kbit) {
            return Err(RateError { field: "limits.ingress_kbit" });
        }
        if !good(self.egress_kbit) {
            return Err(RateError { field: "limits.egress_kbit" });
        }
        Ok(self)
    }
}
