//! `docklet`: virtual clusters from the command line.
//!
//! `args` says what can be typed, `commands` does it through the REST client, `output` and `progress` show it,
//! `failure` turns what went wrong into two lines and an exit code. Results go to standard output, everything else to
//! standard error, so that `-o json` can be piped.

mod args;
mod commands;
mod complete;
mod failure;
mod output;
mod progress;
mod prompt;
mod session;
mod terminal;

#[cfg(test)]
mod tests;

use clap::{CommandFactory, Parser};
use std::process::ExitCode;

use crate::args::Cli;
use crate::commands::Context;

fn main() -> ExitCode {
    // Answers the shell and exits when the shell asks for completions.
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("docklet: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let context = Context::new(cli.global);
    let outcome = runtime.block_on(commands::run(&context, cli.command));
    // A read of standard input that never ends must not keep the program alive.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print(context.style_err());
            ExitCode::from(failure.code())
        }
    }
}
