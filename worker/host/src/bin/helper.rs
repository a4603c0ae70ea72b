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
        [_, "probe"] => probe(),
        [name, ..] if name.ends_with("/init") => init(),
        _ => {
            eprintln!("usage: docklet-host-helper helper <op>");
            ExitCode::from(2)
        }
    }
}

/// Asks the kernel for what a node may not have, and prints what was granted.
fn probe() -> ExitCode {
    use libc::{
        AF_ALG, AF_INET, AF_KEY, AF_NETLINK, AF_PACKET, AF_VSOCK, CLONE_NEWUSER, NETLINK_NETFILTER, NETLINK_ROUTE,
        SOCK_DGRAM, SOCK_RAW, c_long,
    };
    let denied: &[(&str, c_long, [c_long; 3])] = &[
        ("bpf", libc::SYS_bpf, [0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0]),
        ("keyctl", libc::SYS_keyctl, [0, -3, 0]),
        ("add_key", libc::SYS_add_key, [0, 0, 0]),
        ("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1]),
        ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0]),
        ("kexec_load", libc::SYS_kexec_load, [0, 0, 0]),
        ("init_module", libc::SYS_init_module, [0, 0, 0]),
        ("open_by_handle_at", libc::SYS_open_by_handle_at, [-1, 0, 0]),
        ("swapoff", libc::SYS_swapoff, [0, 0, 0]),
        ("quotactl", libc::SYS_quotactl, [0, 0, 0]),
        ("fanotify_init", libc::SYS_fanotify_init, [0x200, 0, 0]),
        ("clone3", libc::SYS_clone3, [0, 0, 0]),
        ("unshare of the user namespace", libc::SYS_unshare, [c_long::from(CLONE_NEWUSER), 0, 0]),
        ("clone of the user namespace", libc::SYS_clone, [c_long::from(CLONE_NEWUSER | libc::SIGCHLD), 0, 0]),
        (
            "netfilter",
            libc::SYS_socket,
            [c_long::from(AF_NETLINK), c_long::from(SOCK_RAW), c_long::from(NETLINK_NETFILTER)],
        ),
        ("vsock", libc::SYS_socket, [c_long::from(AF_VSOCK), c_long::from(SOCK_DGRAM), 0]),
        ("alg", libc::SYS_socket, [c_long::from(AF_ALG), c_long::from(libc::SOCK_SEQPACKET), 0]),
        ("key", libc::SYS_socket, [c_long::from(AF_KEY), c_long::from(SOCK_RAW), 2]),
    ];
    // Refused by the filter, and not merely for the arguments: those would be EINVAL, EFAULT or EBADF.
    let refusals = [libc::EPERM, libc::ENOSYS, libc::EAFNOSUPPORT];
    let call = |number: c_long, a: &[c_long; 3]| {
        // SAFETY: null pointers and numbers; whatever the call is, the kernel checks them.
        let result = unsafe { libc::syscall(number, a[0], a[1], a[2], 0, 0, 0) };
        if result == 0 && number == libc::SYS_clone {
            // SAFETY: the child of a clone that should not have been possible; its parent tells.
            unsafe { libc::_exit(0) }
        }
        (result, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    };
    for (name, number, arguments) in denied {
        let (result, errno) = call(*number, arguments);
        if result >= 0 || !refusals.contains(&errno) {
            println!("granted: {name} (result {result}, errno {errno})");
        }
    }
    let allowed: &[(&str, [i32; 3])] = &[
        ("inet", [AF_INET, libc::SOCK_STREAM, 0]),
        ("route", [AF_NETLINK, SOCK_RAW, NETLINK_ROUTE]),
        ("packet", [AF_PACKET, SOCK_RAW, 0]),
    ];
    for (name, a) in allowed {
        let (result, errno) = call(libc::SYS_socket, &a.map(c_long::from));
        if result < 0 {
            println!("refused: {name} (errno {errno})");
        }
    }
    if let Ok(true) = hears_of_names() {
        println!("granted: to be woken when another node gets its name");
    }
    println!("probed");
    ExitCode::SUCCESS
}

/// Whether a change of a host name can be waited for. The kernel tells it to whoever waits, in whichever node.
fn hears_of_names() -> std::io::Result<bool> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    let name = std::fs::File::open("/proc/sys/kernel/hostname")?;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    Ok(epoll.add(&name, EpollEvent::new(EpollFlags::EPOLLPRI, 0)).is_ok())
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
