//! `docklet-worker`: the program that runs on every host. The work is in the library; here are its commands.

mod commands;

fn main() -> std::process::ExitCode {
    commands::main()
}
