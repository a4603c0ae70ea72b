//! When to try again after a failure.
//!
//! A start is tried three times within seconds, since what is wrong is often passing; after that the node is reported
//! failed, and tried again only every few minutes, so that a host which was mended by hand heals by itself. Stopping
//! and removing are tried for ever: nobody may be left with something that cannot be deleted.

use docklet_types::report::{Reason, Step};
use docklet_types::time::Micros;

/// Starts that fail before the node is called failed.
pub const TRIES: u32 = 3;
/// Seconds after which a failed node is tried again.
pub const SLOW_RETRY_S: i64 = 300;
/// The longest pause between tries to stop or remove, in seconds.
pub const TEARDOWN_RETRY_S: i64 = 60;
/// A node that was up this long, in seconds, is not in a crash loop.
pub const STEADY_S: i64 = 60;

/// Failures that trying again at once does not mend: the answer would be the same.
const LASTING: &[&str] = &["image_missing", "image_unpack_failed", "out_of_space", "host_check_failed"];

/// The failures since the last change of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub step: Step,
    pub reason: Reason,
    /// How often in a row.
    pub count: u32,
    pub retry_at: Micros,
    /// It is reported as failed; what is tried from here on is tried quietly.
    pub given_up: bool,
}

impl Trouble {
    /// A start failed. `hopeless`: trying again at once would not help.
    #[must_use]
    pub fn starting(earlier: u32, step: Step, reason: Reason, hopeless: bool, now: Micros) -> Self {
        let count = earlier.saturating_add(1);
        let given_up = hopeless || count >= TRIES || LASTING.contains(&reason.code.as_str());
        let pause = if given_up { SLOW_RETRY_S } else { i64::from(count * count) };
        Self { step, reason, count, retry_at: now.plus_seconds(pause), given_up }
    }

    /// Something could not be stopped, removed or set up for others: tried until it works.
    #[must_use]
    pub fn lasting(earlier: u32, step: Step, reason: Reason, now: Micros) -> Self {
        let count = earlier.saturating_add(1);
        let pause = (1_i64 << earlier.min(6)).min(TEARDOWN_RETRY_S);
        Self { step, reason, count, retry_at: now.plus_seconds(pause), given_up: true }
    }
}
