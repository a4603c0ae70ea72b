//! Small pieces of HTML that many templates share. Each escapes what it is given.

use askama::filters::HtmlSafe;
use docklet_types::report::Step;
use docklet_types::size::{Size, binary_mib};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{QuotaView, UsageView};
use jiff::Timestamp;
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use crate::assets;

/// Markup that is safe to print as it is: whoever makes one has escaped what came from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Html(String);

impl fmt::Display for Html {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HtmlSafe for Html {}

impl askama::FastWritable for Html {
    fn write_into(&self, dest: &mut dyn fmt::Write, _: &dyn askama::Values) -> askama::Result<()> {
        dest.write_str(&self.0)?;
        Ok(())
    }
}

/// The text with the five characters that mean something in HTML written as entities.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// An icon of the sprite; it says nothing to a screen reader, the words beside it do.
#[must_use]
pub fn icon(name: &str) -> Html {
    Html(format!(
        r#"<svg class="icon icon-{}" aria-hidden="true" width="18" height="18"><use href="{}#{}"></use></svg>"#,
        escape(name),
        assets::url("icons.svg"),
        escape(name)
    ))
}

/// The attributes of a form whose answer is the page it stands on: with scripts, only `#main` changes.
#[must_use]
pub fn soft() -> Html {
    Html(
        r##"hx-boost="true" hx-target="#main" hx-select="#main" hx-swap="outerMorph show:none" hx-push-url="false""##
            .to_owned(),
    )
}

/// How a status looks: its icon and its colour's class.
const fn status_look(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Pending => ("clock", "wait"),
        Status::Starting => ("busy", "busy"),
        Status::Running => ("running", "ok"),
        Status::Degraded => ("warning", "warn"),
        Status::Stopping => ("busy", "busy"),
        Status::Stopped => ("stopped", "idle"),
        Status::Deleting => ("busy", "busy"),
        Status::Failed => ("failed", "bad"),
    }
}

/// The word for people.
#[must_use]
pub fn status_word(status: impl Borrow<Status>) -> &'static str {
    match *status.borrow() {
        Status::Pending => "Pending",
        Status::Starting => "Starting",
        Status::Running => "Running",
        Status::Degraded => "Degraded",
        Status::Stopping => "Stopping",
        Status::Stopped => "Stopped",
        Status::Deleting => "Deleting",
        Status::Failed => "Failed",
    }
}

/// Icon and word.
#[must_use]
pub fn status(status: impl Borrow<Status>) -> Html {
    let status = *status.borrow();
    let (name, class) = status_look(status);
    mark(name, class, status_word(status))
}

/// A state that is not a [`Status`]: icon and word in one of the colours `ok warn bad busy wait idle`.
#[must_use]
pub fn mark(icon_name: &str, class: &str, word: &str) -> Html {
    Html(format!(
        r#"<span class="state state-{}">{}<span>{}</span></span>"#,
        escape(class),
        icon(icon_name),
        escape(word)
    ))
}

/// The colour's class of a status.
#[must_use]
pub fn status_class(status: impl Borrow<Status>) -> &'static str {
    status_look(*status.borrow()).1
}

/// An RFC 3339 time as a relative one, with the exact one on hover; a script keeps it true.
#[must_use]
pub fn ago(rfc3339: &str, now: impl Borrow<Micros>) -> Html {
    let Ok(at) = rfc3339.parse::<Timestamp>() else {
        return Html(escape(rfc3339));
    };
    let seconds = (now.borrow().0 - at.as_microsecond()) / 1_000_000;
    let exact = at.strftime("%-d %b %Y, %H:%M:%S UTC");
    Html(format!(
        r#"<time class="ago" datetime="{}" title="{exact}">{}</time>"#,
        at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        relative(seconds)
    ))
}

/// `12 s ago`, `3 min ago`; the future reads `in 3 min`.
fn relative(seconds: i64) -> String {
    let n = seconds.unsigned_abs();
    // What is two hours away is so a minute later, too: the future is rounded, the past is full.
    let n = match n {
        _ if seconds >= 0 => n,
        0..=59 => n,
        60..=3599 => n + 30,
        3600..=86_399 => n + 1800,
        _ => n + 43_200,
    };
    let (count, unit) = match n {
        0..=4 => return "just now".to_owned(),
        5..=59 => (n, "s"),
        60..=3599 => (n / 60, "min"),
        3600..=86_399 => (n / 3600, "h"),
        _ => (n / 86_400, if n < 172_800 { "day" } else { "days" }),
    };
    if seconds < 0 { format!("in {count} {unit}") } else { format!("{count} {unit} ago") }
}

/// A duration in the unit that reads best: `840 ms`, `1.24 s`, `2 min 5 s`.
#[must_use]
pub fn millis(millis: impl Borrow<u64>) -> String {
    let millis = *millis.borrow();
    match millis {
        0..=999 => format!("{millis} ms"),
        // In range, so the conversion is exact.
        1000..=9_999 => format!("{:.2} s", millis as f64 / 1000.0),
        10_000..=59_999 => format!("{:.1} s", millis as f64 / 1000.0),
        60_000..=3_599_999 => format!("{} min {} s", millis / 60_000, millis / 1000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}

/// MiB in the unit that reads best.
#[must_use]
pub fn mib(mib: impl Borrow<u64>) -> String {
    let mib = *mib.borrow();
    match u32::try_from(mib) {
        Ok(small) if mib < 1024 * 1024 => binary_mib(small),
        _ => format!("{:.1} TiB", mib as f64 / 1024.0 / 1024.0),
    }
}

/// Bytes in binary units.
#[must_use]
pub fn bytes(bytes: impl Borrow<u64>) -> String {
    let bytes = *bytes.borrow();
    match bytes {
        0..=1023 => format!("{bytes} B"),
        1024..=1_048_575 => format!("{:.0} KiB", bytes as f64 / 1024.0),
        1_048_576..=1_073_741_823 => format!("{:.0} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

/// A number of CPUs: `0.5`, `12`.
#[must_use]
pub fn cpus(cpus: impl Borrow<f64>) -> String {
    // The sum of nothing is -0 in floating point.
    let cpus = cpus.borrow() + 0.0;
    // Three places is the resolution; trailing zeros say nothing.
    let text = format!("{cpus:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// CPU and memory of a node: `0.5 CPU · 1 GiB`.
#[must_use]
pub fn size_short(size: impl Borrow<Size>) -> String {
    let size = size.borrow();
    format!("{} CPU · {}", size.cpu, binary_mib(size.memory_mib))
}

/// `1 node`, `3 nodes`. `n` is anything that prints as a whole number.
#[must_use]
pub fn count(n: impl fmt::Display, one: &str, many: &str) -> String {
    let n = n.to_string();
    format!("{n} {}", if n == "1" { one } else { many })
}

/// What a step does, for people.
#[must_use]
pub fn step_words(step: impl Borrow<Step>) -> &'static str {
    match step.borrow() {
        Step::Admit => "Check the request",
        Step::Place => "Place on a host",
        Step::HandOver => "Tell the host",
        Step::Image => "Unpack the image",
        Step::Disk => "Make the disk",
        Step::Network => "Connect the network",
        Step::Boot => "Boot",
        Step::Ready => "Become ready",
        Step::Stop => "Shut down",
        Step::Remove => "Clean up",
        Step::Move => "Move",
        Step::Freeze => "Freeze",
        Step::Thaw => "Thaw the nodes",
        Step::Report => "Hear of the last node",
    }
}

/// The three bars of a quota.
#[must_use]
pub fn quota_meters(usage: &UsageView, quota: &QuotaView) -> Html {
    let nodes =
        meter("Nodes", f64::from(usage.nodes), f64::from(quota.nodes), &format!("{} of {}", usage.nodes, quota.nodes));
    let cpu = meter("CPU", usage.cpu, quota.cpu, &format!("{} of {}", cpus(usage.cpu), cpus(quota.cpu)));
    let memory = meter(
        "Memory",
        usage.memory_mib as f64,
        quota.memory_mib as f64,
        &format!("{} of {}", mib(usage.memory_mib), mib(quota.memory_mib)),
    );
    let ports =
        meter("Ports", f64::from(usage.ports), f64::from(quota.ports), &format!("{} of {}", usage.ports, quota.ports));
    // Most users publish none: no bar for what is not used.
    let ports = if usage.ports == 0 { String::new() } else { ports.0 };
    Html(format!("{nodes}{cpu}{memory}{ports}"))
}

/// `gpu=yes, rack=3`
#[must_use]
pub fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

/// A bar that shows a part of a whole, with its meaning in words for those who cannot see it.
#[must_use]
pub fn meter(label: &str, used: f64, whole: f64, text: &str) -> Html {
    let percent = if whole > 0.0 { (used / whole * 100.0).clamp(0.0, 100.0) } else { 0.0 };
    let class = match percent {
        p if p >= 100.0 => "bad",
        p if p >= 85.0 => "warn",
        _ => "ok",
    };
    let (label, text) = (escape(label), escape(text));
    Html(format!(
        r#"<div class="meter meter-{class}"><div class="meter-text"><span>{label}</span><span class="num">{text}</span></div><div class="meter-track" role="meter" aria-label="{label}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:.0}" aria-valuetext="{text}"><div class="meter-fill" style="width:{percent:.1}%"></div></div></div>"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_words() {
        for (seconds, text) in [
            (3, "just now"),
            (59, "59 s ago"),
            (7199, "1 h ago"),
            (-7190, "in 2 h"),
            (-5400 + 10, "in 1 h"),
            (-3590, "in 1 h"),
            (-90, "in 2 min"),
            (-172_000, "in 2 days"),
        ] {
            assert_eq!(relative(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn nothing_is_no_negative_number_of_cpus() {
        assert_eq!(cpus(-0.0), "0");
        assert_eq!(cpus(0.5), "0.5");
    }
}
