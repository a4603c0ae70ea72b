//! Waiting until a vcluster is as wanted, over restarts of the server.
//!
//! The server does the waiting (`?wait=`), in slices: a slice that breaks off or times out is followed by a plain look,
//! so that a master that restarts, or a vcluster that ends another way, is noticed.

use docklet_types::problem::Code;
use docklet_types::status::Status;
use docklet_types::view::VclusterView;
use std::time::{Duration, Instant};

use crate::api::Deletion;
use crate::error::Error;
use crate::http::Client;

/// The longest time one request waits.
const SLICE: Duration = Duration::from_secs(10);
/// The pause between tries while the server does not answer.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a failure must stand before it is believed, where the change is not said to have ended: right after a new
/// request the hosts' old reports still tell of the old failure.
const FAILURE_STANDS: Duration = Duration::from_secs(3);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub status: Status,
    /// Views of older generations answer an older request and do not count.
    pub generation: u64,
}

impl Target {
    /// The target of a request that was answered with `view`.
    #[must_use]
    pub const fn of(view: &VclusterView, status: Status) -> Self {
        Self { status, generation: view.generation }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    #[error(transparent)]
    Client(#[from] Error),
    /// It ended otherwise, and nothing more happens by itself.
    #[error("{} is {}", .0.name, .0.status)]
    Ended(Box<VclusterView>),
    /// The time is over; what was seen last, if anything.
    #[error("the time is over")]
    TimedOut(Option<Box<VclusterView>>),
}

impl Client {
    /// Waits until the vcluster has the status.
    ///
    /// # Errors
    /// It ended another way, the time is over, it is gone, or the server refuses.
    pub async fn wait(&self, name: &str, target: Target, timeout: Duration) -> Result<VclusterView, WaitError> {
        let deadline = Instant::now() + timeout;
        let mut last = None;
        let mut failing_since = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WaitError::TimedOut(last.map(Box::new)));
            }
            let seen = match self.vcluster_when(name, target.status, left.min(SLICE)).await {
                Err(e) if e.code() == Some(Code::Timeout) => self.vcluster(name).await,
                other => other,
            };
            let view = match seen {
                Ok(view) => view,
                Err(e) if e.is_transient() => {
                    tokio::time::sleep(e.retry_after().unwrap_or(PAUSE).min(left)).await;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            match judge(&view, target) {
                Verdict::Reached => return Ok(view),
                Verdict::Ended => return Err(WaitError::Ended(Box::new(view))),
                Verdict::Failing => {
                    let since = *failing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= FAILURE_STANDS {
                        return Err(WaitError::Ended(Box::new(view)));
                    }
                }
                Verdict::Underway => failing_since = None,
            }
            last = Some(view);
            // The server answered before the status was reached; do not ask in a tight loop.
            tokio::time::sleep(PAUSE.min(left)).await;
        }
    }

    /// Deletes a vcluster and waits until it is gone.
    ///
    /// # Errors
    /// There is none of that name, the time is over, or the server refuses.
    pub async fn delete_and_wait(&self, name: &str, timeout: Duration) -> Result<(), WaitError> {
        let deadline = Instant::now() + timeout;
        // Its identity, so that a new vcluster of the same name is never taken for, or deleted as, this one.
        let id = self.vcluster(name).await?.id;
        match self.delete(name, Some(timeout.min(SLICE))).await {
            Ok(Deletion::Gone) => return Ok(()),
            Ok(Deletion::Underway) => {}
            // A repetition after a broken connection finds it gone: the first one did it.
            Err(e) if e.is_not_found() => return Ok(()),
            Err(e) if e.code() == Some(Code::Timeout) => {}
            Err(Error::Interrupted { .. } | Error::Silent { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        loop {
            let last = match self.vcluster(name).await {
                Ok(view) if view.id != id => return Ok(()),
                Ok(view) if view.status != Status::Deleting => {
                    // The connection broke before the request arrived.
                    self.delete(name, None).await?;
                    Some(view)
                }
                Ok(view) => Some(view),
                Err(e) if e.is_not_found() => return Ok(()),
                Err(e) if e.is_transient() => None,
                Err(e) => return Err(e.into()),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WaitError::TimedOut(last.map(Box::new)));
            }
            tokio::time::sleep(PAUSE.min(left)).await;
        }
    }
}

enum Verdict {
    Reached,
    /// It ended otherwise.
    Ended,
    /// It looks ended otherwise, but the change is not said to have ended.
    Failing,
    Underway,
}

fn judge(view: &VclusterView, target: Target) -> Verdict {
    if view.generation < target.generation {
        return Verdict::Underway;
    }
    if view.status == target.status {
        return Verdict::Reached;
    }
    let over = view.operation.as_ref().is_none_or(|o| o.outcome != "running");
    match view.status {
        Status::Failed | Status::Degraded if over => Verdict::Ended,
        Status::Failed => Verdict::Failing,
        // Somebody stopped, started or deleted it meanwhile.
        Status::Running | Status::Stopped | Status::Deleting if over || view.generation > target.generation => {
            Verdict::Ended
        }
        _ => Verdict::Underway,
    }
}
