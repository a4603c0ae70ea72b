//! Ends the program at a named step, as `kill -9` at that very moment would: how the tests find out what a crash there
//! leaves behind.
//!
//! `DOCKLET_FAIL_AT=boot-after` in the program's environment ends it when it first has booted a node,
//! `DOCKLET_FAIL_AT=boot-after:3` when it does so for the third time. It is compiled in always, so that what is tested is
//! what is shipped; without the variable, which only root can set, a step costs one look at a constant.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const VARIABLE: &str = "DOCKLET_FAIL_AT";

static POINT: OnceLock<Option<Point>> = OnceLock::new();

struct Point {
    step: String,
    left: AtomicU32,
}

impl Point {
    /// `step` or `step:count`; a count that is none is 1.
    fn parse(text: &str) -> Self {
        let (step, count) = text.split_once(':').unwrap_or((text, "1"));
        Self { step: step.to_owned(), left: AtomicU32::new(count.parse().unwrap_or(1).max(1)) }
    }

    /// Whether this is the time.
    fn is_due(&self, step: &str, moment: &str) -> bool {
        let named = self.step.strip_prefix(step).and_then(|rest| rest.strip_prefix('-')) == Some(moment);
        named && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

fn reached(step: &str, moment: &str) {
    let point = POINT.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| Point::parse(&text)));
    if let Some(point) = point
        && point.is_due(step, moment)
    {
        tracing::error!(step, moment, "{VARIABLE} says to end here");
        std::process::abort();
    }
}

/// A step is about to be done.
pub fn before(step: &str) {
    reached(step, "before");
}

/// A step was done, and nobody was told yet.
pub fn after(step: &str) {
    reached(step, "after");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_due_once() {
        let point = Point::parse("boot-after:2");
        let due = ["before", "after", "after", "after"].map(|moment| point.is_due("boot", moment));
        assert_eq!(due, [false, false, true, false]);
        assert!(!Point::parse("boot-after").is_due("reboot", "after"));
        assert!(Point::parse("boot-after:x").is_due("boot", "after"));
    }
}
