//! The log: to the program's file, and to standard error while in the foreground.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use docklet_types::config::LogLevel;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

const fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Opens a log for appending, making its directory. Readable by its owner only: it may tell who uses what.
pub(crate) fn open(file: &Path) -> io::Result<File> {
    if let Some(directory) = file.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o640).open(file)
}

/// Sets up logging for the process. Our own crates log at `level`, others at most warnings. A second call changes nothing.
pub(crate) fn init(file: File, level: LogLevel, foreground: bool) {
    let level = filter_of(level);
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("docklet", level)
        // What clients send that is no HTTP would be an error in the log each time.
        .with_target("actix_http", LevelFilter::OFF);
    let to_file = fmt::layer().with_ansi(false).with_writer(Mutex::new(file));
    let to_terminal = foreground.then(|| {
        let colours = io::IsTerminal::is_terminal(&io::stderr());
        fmt::layer().with_ansi(colours).with_writer(io::stderr)
    });
    let set = tracing_subscriber::registry().with(to_file.and_then(to_terminal).with_filter(targets)).try_init();
    if set.is_ok() {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let message = panic.payload_as_str().unwrap_or("no message");
            tracing::error!(target: "docklet", place, "internal error: {message}");
        }));
    }
}

/// The last `lines` lines of what a log got after `offset`, without colour codes.
pub(crate) fn tail(file: &Path, offset: u64, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<String> {
        let mut log = File::open(file)?;
        log.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        log.take(1 << 20).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
