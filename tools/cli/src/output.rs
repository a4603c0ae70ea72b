//! How results look: tables that fit the terminal, status words with a symbol, JSON.
//!
//! Texts that come from the server may hold what a tenant's program wrote; control characters never reach the terminal.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use docklet_types::status::Status;
use serde::Serialize;
use std::collections::BTreeMap;
use std::env;
use std::io::{self, IsTerminal, Write};

use crate::args::Format;

/// What one output stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub colour: bool,
    /// Symbols before status words: for eyes, not for scripts.
    pub symbols: bool,
    /// Columns of the terminal; none where the output goes elsewhere.
    pub width: Option<u16>,
}

impl Style {
    pub const PLAIN: Self = Self { colour: false, symbols: false, width: None };

    pub fn of_stdout() -> Self {
        Self::of(&io::stdout())
    }

    pub fn of_stderr() -> Self {
        Self::of(&io::stderr())
    }

    fn of(stream: &impl IsTerminal) -> Self {
        if !stream.is_terminal() {
            return Self::PLAIN;
        }
        let set = |name: &str| env::var_os(name).is_some_and(|v| !v.is_empty());
        let colour = !set("NO_COLOR") && env::var_os("TERM").is_none_or(|t| t != "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find(|n| set(n))
            .and_then(|n| env::var(n).ok())
            .unwrap_or_default();
        let utf8 = locale.to_ascii_lowercase().replace('-', "").contains("utf8");
        Self { colour, symbols: utf8, width: Some(crate::terminal::columns().unwrap_or(80)) }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
    pub fn red(self, text: &str) -> String {
        self.paint("31", text)
    }
    pub fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
    pub fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// The status word, with a symbol and colour where they can be seen.
    pub fn status(self, status: Status) -> String {
        let (symbol, code) = look(status);
        let word = if self.symbols { format!("{symbol} {status}") } else { status.to_string() };
        self.paint(code, &word)
    }
}

const fn look(status: Status) -> (&'static str, &'static str) {
    match status {
        Status::Running => ("●", "32"),
        Status::Pending | Status::Starting => ("◐", "36"),
        Status::Stopping | Status::Deleting => ("◑", "36"),
        Status::Degraded => ("▲", "33"),
        Status::Stopped => ("○", "2"),
        Status::Failed => ("✗", "31"),
    }
}

/// `gpu=yes, rack=3`
pub fn labels(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

/// One column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    /// Columns above 0 are left out on a narrow terminal, the highest first.
    pub spare: u8,
    pub right: bool,
}

pub const fn column(title: &'static str) -> Column {
    Column { title, spare: 0, right: false }
}

impl Column {
    pub const fn spare(self, spare: u8) -> Self {
        Self { spare, ..self }
    }
    pub const fn right(self) -> Self {
        Self { right: true, ..self }
    }
}

/// A cell: its text and, for a status, its look.
#[derive(Debug, Clone)]
pub enum Value {
    Text(String),
    Status(Status),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}
impl From<Status> for Value {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Value {
    fn plain(&self, style: Style) -> String {
        match self {
            Self::Text(text) => oneline(text),
            Self::Status(status) if style.symbols => format!("{} {status}", look(*status).0),
            Self::Status(status) => status.to_string(),
        }
    }

    fn cell(&self, style: Style) -> Cell {
        let cell = Cell::new(self.plain(style));
        let Self::Status(status) = self else { return cell };
        match status {
            _ if !style.colour => cell,
            Status::Running => cell.fg(Color::Green),
            Status::Degraded => cell.fg(Color::Yellow),
            Status::Failed => cell.fg(Color::Red),
            Status::Stopped => cell.fg(Color::DarkGrey),
            _ => cell.fg(Color::Cyan),
        }
    }
}

/// Gaps between columns.
const GAP: usize = 2;

/// A table without lines, in the width of the terminal: columns that can be spared go first, then texts wrap.
pub fn table(columns: &[Column], rows: &[Vec<Value>], style: Style) -> String {
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(i, c)| {
            rows.iter()
                .filter_map(|r| r.get(i))
                .map(|v| v.plain(style).chars().count())
                .chain([c.title.len()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    if let Some(width) = style.width {
        let total = |shown: &[usize]| shown.iter().map(|&i| widths[i] + GAP).sum::<usize>();
        while total(&shown) > usize::from(width) {
            let Some(&most) = shown.iter().filter(|&&i| columns[i].spare > 0).max_by_key(|&&i| columns[i].spare) else {
                break;
            };
            shown.retain(|&i| i != most);
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    match style.width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    if style.colour {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table.set_header(shown.iter().map(|&i| Cell::new(columns[i].title)));
    for row in rows {
        table.add_row(shown.iter().filter_map(|&i| row.get(i)).map(|v| v.cell(style)));
    }
    for (place, &i) in shown.iter().enumerate() {
        if let Some(c) = table.column_mut(place) {
            c.set_padding((0, GAP as u16));
            c.set_cell_alignment(if columns[i].right { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().map(|l| l.trim_end().to_owned() + "\n").collect()
}

/// `key  value` lines, keys in one width.
pub fn facts(facts: &[(&str, String)], style: Style) -> String {
    let width = facts.iter().map(|(k, _)| k.len()).max().unwrap_or(0);
    facts.iter().map(|(k, v)| format!("{}  {v}\n", style.dim(&format!("{k:width$}")))).collect()
}

/// Prints a result: as JSON, or as the text that `table` makes.
pub fn show<T: Serialize>(format: Format, value: &T, table: impl FnOnce() -> String) {
    let text = match format {
        Format::Json => serde_json::to_string_pretty(value).unwrap_or_default() + "\n",
        Format::Table => table(),
    };
    put(text.as_bytes());
}

/// Writes to standard output. A reader that went away (`| head`) ends the program quietly, as pipes do.
pub fn put(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// The text on one line, without control characters.
pub fn oneline(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Lines as they are, without control characters that would drive the terminal.
pub fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// How long ago an RFC 3339 time was: `5 s`, `3 min`, `2 h`, `9 d`.
pub fn age(at: &str, now: jiff::Timestamp) -> String {
    let Ok(at) = at.parse::<jiff::Timestamp>() else { return "-".to_owned() };
    match now.as_second().saturating_sub(at.as_second()).max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Milliseconds as people say them: `83 ms`, `1.24 s`, `2 min 5 s`.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{}.{:02} s", ms / 1000, ms % 1000 / 10),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

/// MiB as people say them: `512 MiB`, `1.5 GiB`.
pub fn mib(mib: u64) -> String {
    docklet_types::size::binary_mib(u32::try_from(mib).unwrap_or(u32::MAX))
}

/// Bytes as people say them.
pub fn bytes(bytes: u64) -> String {
    if bytes < 1 << 20 { format!("{} KiB", bytes.div_ceil(1024)) } else { mib(bytes >> 20) }
}

/// `1 node`, `2 nodes`.
pub fn nodes(count: u32) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}
