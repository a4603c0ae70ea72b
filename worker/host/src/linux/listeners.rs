//! Whether something listens on a TCP port of the calling thread's network namespace: asked of the kernel by netlink
//! (sock_diag(7)). `/proc/net/tcp` would tell it too, but each reading of that goes through a table of all connections of the
//! machine, whose size follows the machine's memory: two milliseconds where there are 24 GiB.

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};
use std::io;
use std::os::fd::AsRawFd;

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const TCP_LISTEN: u32 = 10;

/// A request for all listeners on the port: `struct nlmsghdr` and `struct inet_diag_req_v2`, in which zero is any.
fn request(family: u8, port: u16) -> [u8; HEADER + REQUEST] {
    let mut bytes = [0; HEADER + REQUEST];
    let length = (HEADER + REQUEST) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = libc::IPPROTO_TCP as u8;
    bytes[20..24].copy_from_slice(&(1u32 << TCP_LISTEN).to_ne_bytes());
    bytes[24..26].copy_from_slice(&port.to_be_bytes());
    bytes
}

/// What the first message of the answer says.
fn answer(bytes: &[u8]) -> io::Result<bool> {
    let kind = bytes.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    match kind {
        Some(SOCK_DIAG_BY_FAMILY) => Ok(true),
        Some(kind) if i32::from(kind) == libc::NLMSG_DONE => Ok(false),
        Some(kind) if i32::from(kind) == libc::NLMSG_ERROR => {
            let errno = bytes.get(16..20).and_then(|b| b.try_into().ok()).map_or(-libc::EPROTO, i32::from_ne_bytes);
            Err(io::Error::from_raw_os_error(-errno))
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// See the module.
///
/// # Errors
/// Also where the kernel is built without sock_diag.
pub fn listens_here(port: u16) -> io::Result<bool> {
    let kinds = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
    for family in [libc::AF_INET, libc::AF_INET6] {
        let socket = socket::socket(kinds.0, kinds.1, kinds.2, kinds.3)?;
        socket::send(socket.as_raw_fd(), &request(family as u8, port), MsgFlags::empty())?;
        // The kernel has answered by the time that it has taken the request.
        let mut bytes = [0; 4096];
        let length = socket::recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)?;
        if answer(&bytes[..length])? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_listener_is_found_and_a_connection_is_none() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(listens_here(port).unwrap(), "{address}");
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            assert!(!listens_here(ours.local_addr().unwrap().port()).unwrap(), "{address}");
            drop(listener);
            assert!(!listens_here(port).unwrap(), "{address}");
        }
    }

    #[test]
    fn a_refusal_is_an_error() {
        let mut bytes = [0; 36];
        bytes[4..6].copy_from_slice(&2u16.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-libc::ENOENT).to_ne_bytes());
        assert_eq!(answer(&bytes).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(answer(&[]).is_err());
    }
}
