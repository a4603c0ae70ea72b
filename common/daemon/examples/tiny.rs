//! The smallest daemon: `tiny <prefix> start|stop|status|run [fail|deaf]`. The tests drive it.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use docklet_daemon::{Program, Status};
use docklet_types::config::LogLevel;
use docklet_types::paths::Paths;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = arguments.iter().filter_map(|a| a.to_str()).collect();
    let (Some(prefix), Some(verb)) = (words.first(), words.get(1)) else {
        return ExitCode::from(docklet_daemon::exit::USAGE);
    };
    let program = Program::new("tiny", Paths::new(*prefix));
    let how = words.get(2).copied().unwrap_or("well");
    let told = match *verb {
        "start" => program
            .start(&[(*prefix).into(), "run".into(), how.into()], Duration::from_secs(10))
            .map(|s| format!("{s:?}"))
            .map_err(|e| e.to_string()),
        "stop" => program.stop(Duration::from_millis(500)).map(|s| format!("{s:?}")).map_err(|e| e.to_string()),
        "status" => match program.status() {
            Ok(Status::Running { pid }) => Ok(format!("running {pid}")),
            Ok(Status::NotRunning) => Ok("not running".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        _ => run(&program, how),
    };
    match told {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(program: &Program, how: &str) -> Result<String, String> {
    let mut ready = program.enter(LogLevel::Info).map_err(|e| e.to_string())?;
    if how == "fail" {
        tracing::error!(target: "docklet_tiny", "the disk is made of cheese");
        return Err("it did not work out".to_owned());
    }
    if how == "deaf" {
        // SAFETY: the program has one thread and no handler.
        unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGTERM, nix::sys::signal::SigHandler::SigIgn) }
            .map_err(|e| e.to_string())?;
    }
    ready.ready();
    loop {
        nix::unistd::pause();
    }
}
