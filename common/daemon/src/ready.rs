//! Telling whoever started us that we can serve: the `start` command through a pipe, systemd through its socket.

use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::lock::PidFile;

/// Names the descriptor that `start` waits on.
pub(crate) const PIPE_VARIABLE: &str = "DOCKLET_READY_FD";
/// What is written to it.
pub(crate) const WORD: &[u8] = b"ready\n";

/// A running program's hold on its pid file. Keep it until the program ends.
#[derive(Debug)]
pub struct Ready {
    pub(crate) _pid_file: PidFile,
    pub(crate) pipe: Option<File>,
}

impl Ready {
    /// The program serves from here on.
    pub fn ready(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // Whoever waited may be gone; that is no reason to stop.
            let _ = pipe.write_all(WORD);
        }
        notify(b"READY=1");
    }

    /// The program is about to end in good order.
    pub fn stopping(&mut self) {
        notify(b"STOPPING=1");
    }
}

/// The pipe that `start` gave to this process.
pub(crate) fn inherited_pipe() -> Option<File> {
    let fd: i32 = std::env::var(PIPE_VARIABLE).ok()?.parse().ok()?;
    if fd < 3 || nix::fcntl::fcntl(borrowed(fd), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).is_err()
    {
        return None;
    }
    // SAFETY: `start` passed this descriptor to us alone, and it is open, as the call above has shown.
    Some(unsafe { File::from_raw_fd(fd) })
}

const fn borrowed(fd: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: used for one call that fails cleanly where the descriptor is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

fn notify(message: &[u8]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path)),
    };
    let sent = address.and_then(|a| UnixDatagram::unbound()?.send_to_addr(message, &a));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager how this program is");
    }
}
