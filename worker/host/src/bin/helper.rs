//! For this crate's tests: the helper alone, and an init small enough for an image made of a few files.
//!
//! `docklet-host-helper helper <op>` is what docklet-worker offers; called as `/sbin/init`, it does what the worker expects
//! of systemd: `READY=1` to `$NOTIFY_SOCKET`, a listener on port 22, an end on SIGRTMIN+3. SIGUSR1 reboots the node.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "helper", op] => docklet_worker_host::linux::helper::main(op),
        [name, ..] if name.ends_with("/init") => init(),
        _ => {
            eprintln!("usage: docklet-host-helper helper <op>");
            ExitCode::from(2)
        }
    }
}

fn init() -> ExitCode {
    // SAFETY: the signal set is plain data, filled in before it is used; there is one thread yet.
    let signals = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        set
    };
    println!("the small init of Docklet's tests");
    if std::path::Path::new("/etc/fail-to-boot").exists() {
        println!("told to fail");
        return ExitCode::FAILURE;
    }
    match TcpListener::bind("0.0.0.0:22") {
        Ok(listener) => drop(std::thread::spawn(move || greet(&listener))),
        Err(e) => println!("port 22: {e}"),
    }
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET") {
        let told = UnixDatagram::unbound().and_then(|s| s.send_to(b"READY=1\nSTATUS=up", path));
        println!("told the worker: {told:?}");
    }
    loop {
        // SAFETY: waits for the blocked signals; no pointer is kept.
        let signal = unsafe { libc::sigwaitinfo(&raw const signals, std::ptr::null_mut()) };
        if signal == libc::SIGCHLD {
            // SAFETY: reaps whatever has ended.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
        }
        if signal == libc::SIGUSR1 {
            // SAFETY: takes a number; in a pid namespace it ends this process and tells the monitor to start init anew.
            unsafe { libc::reboot(libc::RB_AUTOBOOT) };
        }
        if signal == libc::SIGRTMIN() + 3 && !std::path::Path::new("/etc/deaf").exists() {
            return ExitCode::SUCCESS;
        }
    }
}

/// Says what sshd says first.
fn greet(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        let _ = stream.write_all(b"SSH-2.0-docklet-test\r\n");
    }
}
