//! Two kinds of time: what the clock on the wall says goes into reports; what is waited for must not care when somebody
//! sets that clock.

use docklet_types::time::Micros;
use tokio::time::{Duration, Instant};

/// A clock that only goes forward.
#[derive(Debug, Clone, Copy)]
pub struct Steady {
    began: Instant,
}

impl Steady {
    #[must_use]
    pub fn start() -> Self {
        Self { began: Instant::now() }
    }

    /// Microseconds since this clock was started, counted from a day so that there is room before.
    #[must_use]
    pub fn now(&self) -> Micros {
        Micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX / 2).saturating_add(86_400_000_000))
    }

    #[must_use]
    pub fn instant(&self, at: Micros) -> Instant {
        let left = u64::try_from(at.0.saturating_sub(self.now().0)).unwrap_or(0);
        Instant::now() + Duration::from_micros(left.min(86_400_000_000))
    }
}
