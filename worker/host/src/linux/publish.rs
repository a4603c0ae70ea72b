//! Holds published ports by sockets that are bound and never listen.
//!
//! A packet for a published port is translated before the host would take it in, so a published port hides whatever
//! the host itself has there. With the socket neither can come unnoticed: a port that a program of the host has is
//! refused, and no program gets one that is published, be it by number or as the kernel's choice for a connection.

use docklet_types::port::{Forward, Protocol};
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};

#[derive(Debug, thiserror::Error)]
#[error("port {port}/{protocol} could not be held")]
pub struct HoldError {
    port: u16,
    protocol: Protocol,
    source: Errno,
}

struct Held {
    bridge: String,
    /// Open for as long as the port is held.
    socket: OwnedFd,
}

/// The published ports of this host, each with the bridge of its vcluster.
#[derive(Default)]
pub struct Holder {
    held: Mutex<BTreeMap<(Protocol, u16), Held>>,
}

impl Holder {
    /// Holds these ports for the vcluster of that bridge, in place of those it had. Returns the ones that are held now;
    /// the others belong to the host.
    ///
    /// # Errors
    /// Where a port cannot be held for another reason than being taken. The ones before it are held.
    pub fn hold(&self, bridge: &str, forwards: &[Forward]) -> Result<Vec<Forward>, HoldError> {
        let mut held = self.held.lock();
        let wanted = |key: &(Protocol, u16)| forwards.iter().any(|f| (f.protocol, f.public) == *key);
        held.retain(|key, port| port.bridge != bridge || wanted(key));
        let mut good = Vec::new();
        for forward in forwards {
            let key = (forward.protocol, forward.public);
            // The store gives a port to one vcluster: what another still holds here is this one's now.
            let socket = match held.remove(&key) {
                Some(port) => Some(port.socket),
                None => bind(key.0, key.1)?,
            };
            if let Some(socket) = socket {
                held.insert(key, Held { bridge: bridge.to_owned(), socket });
                good.push(*forward);
            }
        }
        Ok(good)
    }

    /// Lets go of every port of the vcluster.
    pub fn release(&self, bridge: &str) {
        self.held.lock().retain(|_, port| port.bridge != bridge);
    }
}

/// `None` where somebody has it.
fn bind(protocol: Protocol, port: u16) -> Result<Option<OwnedFd>, HoldError> {
    let failed = |source| HoldError { port, protocol, source };
    let kind = match protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    // Without SO_REUSEADDR, which the standard library sets: else a port that is only bound could be had twice.
    let fd = socket::socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    match socket::bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port)) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::EADDRINUSE) => Ok(None),
        Err(other) => Err(failed(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    fn forward(protocol: Protocol, public: u16) -> Forward {
        Forward { protocol, public, ip: Ipv4Addr::LOCALHOST, port: 80 }
    }

    #[test]
    fn a_port_of_the_host_is_refused_and_a_held_one_is_nobody_elses() {
        let holder = Holder::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = forward(Protocol::Tcp, listener.local_addr().unwrap().port());
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let free = forward(Protocol::Udp, socket.local_addr().unwrap().port());
        drop(socket);
        assert_eq!(holder.hold("dkb1", &[taken, free]).unwrap(), [free]);
        assert!(UdpSocket::bind(("0.0.0.0", free.public)).is_err(), "a held port was given out");
        // It may change hands; the old holder's release does not touch it then.
        assert_eq!(holder.hold("dkb2", &[free]).unwrap(), [free]);
        holder.release("dkb1");
        assert!(UdpSocket::bind(("0.0.0.0", free.public)).is_err());
        holder.release("dkb2");
        UdpSocket::bind(("0.0.0.0", free.public)).unwrap();
        drop(listener);
        assert_eq!(holder.hold("dkb1", &[taken]).unwrap(), [taken]);
    }
}
