//! What a machine is connected to besides its nodes.

use std::io;

use docklet_types::join::HostNetwork;
use docklet_types::kernel_names::LINK_PREFIX;
use docklet_types::net::Subnet;
use nix::sys::socket::SockaddrStorage;

/// The IPv4 networks of this machine that are neither Docklet's nor the loopback.
///
/// # Errors
/// The kernel does not tell.
pub fn connected() -> io::Result<Vec<HostNetwork>> {
    let ip = |socket: Option<SockaddrStorage>| Some(socket?.as_sockaddr_in()?.ip());
    let network = |link: nix::ifaddrs::InterfaceAddress| {
        let (address, mask) = (ip(link.address)?, ip(link.netmask)?);
        let prefix = u8::try_from(u32::from(mask).leading_ones()).unwrap_or(32);
        let ours = link.interface_name.starts_with(LINK_PREFIX) || address.is_loopback();
        let net = Subnet::containing(address, prefix).filter(|_| !ours)?;
        Some(HostNetwork { device: link.interface_name, net })
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(network).collect())
}
