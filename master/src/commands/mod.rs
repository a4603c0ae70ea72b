//! What an operator types: `docklet-master init|start|stop|restart|status|run`.

/// The whole program.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
