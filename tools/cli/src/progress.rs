//! What is shown while waiting: one line per step with its count and time, on standard error, only on a terminal.

use docklet_client::{Client, Target, WaitError};
use docklet_types::status::Status;
use docklet_types::view::{StepView, VclusterView};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::future::Future;
use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::output::{millis, oneline};

/// How often the display asks the server. Waiting itself is the server's push and not bound to this.
const LOOK: Duration = Duration::from_millis(150);

/// Waits for a status, showing the steps.
pub async fn wait(client: &Client, name: &str, target: Target, timeout: Duration) -> Result<VclusterView> {
    let what = match target.status {
        Status::Running => "start",
        _ => "stop",
    };
    let outcome = watched(client, name, what, client.wait(name, target, timeout)).await;
    outcome.map_err(|e| failure(e, name, &format!("{name} did not become {}", target.status), timeout))
}

/// Deletes and waits until all is gone, showing the steps.
pub async fn delete(client: &Client, name: &str, timeout: Duration) -> Result<()> {
    let outcome = watched(client, name, "delete", client.delete_and_wait(name, timeout)).await;
    outcome.map_err(|e| failure(e, name, &format!("{name} was not gone"), timeout))
}

fn failure(error: WaitError, name: &str, what: &str, timeout: Duration) -> Failure {
    match error {
        WaitError::Client(e) => e.into(),
        WaitError::Ended(view) => Failure::Ended(view),
        WaitError::TimedOut(last) => {
            let now = last.map_or_else(String::new, |v| match v.reason {
                Some(reason) => format!("it is {} ({}); ", v.status, reason.message),
                None => format!("it is {}; ", v.status),
            });
            Failure::TimedOut {
                what: what.to_owned(),
                seconds: timeout.as_secs(),
                hint: format!("{now}it goes on, see: docklet status {name}"),
            }
        }
    }
}

/// Runs `work` while showing the vcluster's newest change.
async fn watched<T>(client: &Client, name: &str, what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let mut display = Display::new(name, what);
    let outcome = loop {
        let look = async {
            tokio::time::sleep(LOOK).await;
            client.vcluster(name).await
        };
        tokio::select! {
            biased;
            outcome = &mut work => break outcome,
            seen = look => match seen {
                Ok(view) => display.show(&view),
                Err(e) if e.is_transient() => display.note("the server does not answer; waiting for it"),
                // The wait itself will say it.
                Err(_) => {}
            },
        }
    };
    display.end();
    outcome
}

struct Display {
    all: MultiProgress,
    head: ProgressBar,
    steps: Vec<ProgressBar>,
    began: Instant,
    title: String,
}

impl Display {
    fn new(name: &str, what: &str) -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(15));
        let head = all.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            head.set_style(style);
        }
        head.enable_steady_tick(Duration::from_millis(100));
        let display = Self { all, head, steps: Vec::new(), began: Instant::now(), title: format!("{what} {name}") };
        display.note("");
        display
    }

    fn note(&self, text: &str) {
        let elapsed = self.began.elapsed().as_secs_f64();
        let text = if text.is_empty() { String::new() } else { format!(" · {text}") };
        self.head.set_message(format!("{}{text} · {elapsed:.1} s", self.title));
    }

    fn show(&mut self, view: &VclusterView) {
        let count = format!("{}/{} ready", view.nodes_ready, view.nodes);
        match &view.reason {
            Some(reason) => self.note(&format!("{count} · {}", oneline(&reason.message))),
            None => self.note(&count),
        }
        let steps = view.operation.as_ref().map_or(&[][..], |o| &o.steps);
        for (i, step) in steps.iter().enumerate() {
            if self.steps.len() == i {
                let bar = self.all.add(ProgressBar::new(0));
                if let Ok(style) = ProgressStyle::with_template("  {wide_msg}") {
                    bar.set_style(style);
                }
                self.steps.push(bar);
            }
            self.steps[i].set_message(line(step));
        }
    }

    fn end(self) {
        // All lines at once: one by one they would flicker.
        self.head.disable_steady_tick();
        let _ = self.all.clear();
        self.all.set_draw_target(ProgressDrawTarget::hidden());
    }
}

/// `boot      ━━━━━━━─── 7/10  0.62 s`
pub fn line(step: &StepView) -> String {
    const WIDTH: u32 = 10;
    // A step that no node needs is through.
    let filled = (step.done.min(step.total) * WIDTH).checked_div(step.total).unwrap_or(WIDTH);
    let bar: String = (0..WIDTH).map(|i| if i < filled { '━' } else { '─' }).collect();
    let mark = if step.finished { "✓" } else { " " };
    format!("{mark} {:9} {bar} {:>4}/{:<4} {}", step.step.to_string(), step.done, step.total, millis(step.millis))
}
