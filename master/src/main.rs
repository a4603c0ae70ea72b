//! `docklet-master`: see [`docklet_master::commands`].

fn main() -> std::process::ExitCode {
    docklet_master::commands::main()
}
