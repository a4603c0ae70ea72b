//! Links, addresses and routes, by netlink in the host's own network namespace; and the hosts files.

use docklet_types::id::VclusterId;
use docklet_types::join::HostNetwork;
use docklet_types::kernel_names;
use docklet_types::net::Subnet;
use docklet_types::plan::VclusterPlan;
use rtnetlink::packet_route::link::{BridgeStpState, InfoBridge};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, LinkBridge, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::sys;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("a netlink socket could not be opened")]
    Socket(#[source] io::Error),
    #[error("could not {what}")]
    Netlink {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{subnet} is in use on {link}, which is another vcluster's")]
    Taken { subnet: Subnet, link: String },
    #[error("could not write {path}")]
    Write {
        path: String,
        #[source]
        source: io::Error,
    },
}

/// Ethernet's MTU; links with a larger one are not used for nodes.
const MTU: u32 = 1500;
/// Worse than any route that somebody means: the bridges' networks lie inside CLUSTER_NET and win by their length.
const METRIC: u32 = 65_000;

/// The kernel's number for a refused request, as an error that the standard library understands.
fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

pub trait Attempt<T> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, NetworkError>;
    /// Success too where the object is already as wanted.
    fn or_already(self) -> Result<(), rtnetlink::Error>;
}

impl<T> Attempt<T> for Result<T, rtnetlink::Error> {
    fn attempting(self, what: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|e| NetworkError::Netlink { what: what(), source: cause(e) })
    }

    fn or_already(self) -> Result<(), rtnetlink::Error> {
        match self {
            Err(rtnetlink::Error::NetlinkError(m)) if m.to_io().raw_os_error() == Some(libc::EEXIST) => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        }
    }
}

/// A netlink connection for the length of one operation.
pub struct Netlink {
    pub handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Netlink {
    pub fn open() -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Socket)?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The number of a link, if there is one of that name.
pub fn link_index(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).ok()?.trim().parse().ok()
}

/// All links of the host.
pub fn links() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// The bridge that a link is plugged into.
pub fn bridge_of(link: &str) -> Option<String> {
    let target = fs::read_link(format!("/sys/class/net/{link}/master")).ok()?;
    target.file_name().map(|n| n.to_string_lossy().into_owned())
}

/// The bridge's own address: fixed, because a bridge without one takes that of its lowest port and so changes it
/// whenever a node comes or goes, and nodes keep the old one for half a minute.
fn bridge_mac(id: VclusterId) -> Vec<u8> {
    let b = id.as_uuid().as_bytes();
    vec![0x06, b[11], b[12], b[13], b[14], b[15]]
}

/// The host's IPv4 addresses with their links. getifaddrs(3) has the kernel tell everything about every link, which are
/// thousands where there are that many nodes.
fn addresses() -> io::Result<Vec<(String, Ipv4Addr)>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut room = 256;
    loop {
        // SAFETY: every field of the structure may be zero.
        let mut entries: Vec<libc::ifreq> = vec![unsafe { std::mem::zeroed() }; room];
        let mut list = libc::ifconf {
            ifc_len: (room * size_of::<libc::ifreq>()) as i32,
            ifc_ifcu: libc::__c_anonymous_ifc_ifcu { ifcu_req: entries.as_mut_ptr() },
        };
        // SAFETY: the kernel writes at most `ifc_len` bytes to where `entries` is.
        sys::check(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFCONF, &raw mut list) }))?;
        let found = usize::try_from(list.ifc_len).unwrap_or(0) / size_of::<libc::ifreq>();
        // A list that fills the room may have been cut off.
        if found < room {
            return Ok(entries[..found].iter().map(address_of).collect());
        }
        room *= 2;
    }
}

/// An address's label is the link's name, or begins with it and a colon.
fn link_of(label: &str) -> String {
    label.split(':').next().unwrap_or_default().to_owned()
}

fn address_of(entry: &libc::ifreq) -> (String, Ipv4Addr) {
    let name: Vec<u8> = entry.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).take_while(|c| *c != 0).collect();
    // SAFETY: SIOCGIFCONF lists IPv4 addresses only, as `struct sockaddr_in`, which is no larger than what is there.
    let address = unsafe { (&raw const entry.ifr_ifru.ifru_addr).cast::<libc::sockaddr_in>().read_unaligned() };
    (link_of(&String::from_utf8_lossy(&name)), Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)))
}

/// The link of ours, other than `own`, that holds addresses of the network.
fn holder(subnet: Subnet, own: &str) -> Option<String> {
    let found = addresses().ok()?.into_iter().find(|(link, ip)| {
        let ours = link.starts_with(kernel_names::LINK_PREFIX) && link != own;
        ours && subnet.contains(*ip)
    });
    found.map(|(link, _)| link)
}

/// The vcluster's bridge with the gateway's address, up. A network that another bridge holds is refused: answers from
/// outside would go to the nodes there. It happens where plans were restored from before that vcluster.
pub async fn ensure_bridge(id: VclusterId, subnet: Subnet, mtu: u32) -> Result<(), NetworkError> {
    let name = kernel_names::bridge(id);
    if let Some(link) = holder(subnet, &name) {
        return Err(NetworkError::Taken { subnet, link });
    }
    let netlink = Netlink::open()?;
    let links = netlink.handle.link();
    if link_index(&name).is_none() {
        let message = LinkBridge::new(&name)
            .address(bridge_mac(id))
            .mtu(mtu)
            .append_info_data(InfoBridge::StpState(BridgeStpState::Disabled))
            .append_info_data(InfoBridge::ForwardDelay(0))
            .append_info_data(InfoBridge::MulticastSnooping(false))
            .down()
            .build();
        links.add(message).execute().await.or_already().attempting(|| format!("make bridge {name}"))?;
    }
    // Before it is up, so that it never has a link-local address.
    for (key, value) in [("disable_ipv6", "1"), ("accept_ra", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/{name}/{key}");
        match fs::write(&path, value) {
            // The kernel has no IPv6.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(|source| NetworkError::Write { path, source })?,
        }
    }
    let index = link_index(&name).ok_or_else(|| NetworkError::Netlink {
        what: format!("find bridge {name}"),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let gateway = netlink.handle.address().add(index, IpAddr::V4(subnet.gateway()), subnet.prefix()).execute().await;
    gateway.or_already().attempting(|| format!("give bridge {name} the address {}", subnet.gateway()))?;
    let up = LinkBridge::new(&name).up().build();
    links.set(up).execute().await.attempting(|| format!("bring bridge {name} up"))
}

/// Deletes a link; already gone is success.
pub async fn remove_link(name: &str) -> Result<(), NetworkError> {
    let Some(index) = link_index(name) else { return Ok(()) };
    let netlink = Netlink::open()?;
    match netlink.handle.link().del(index).execute().await {
        Err(rtnetlink::Error::NetlinkError(m)) if m.to_io().raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other.attempting(|| format!("remove link {name}")),
    }
}

/// A route that refuses what no bridge takes, so that packets for CLUSTER_NET never leave the host.
pub async fn ensure_unreachable(net: Subnet) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    let route = unreachable(net);
    netlink.handle.route().add(route).execute().await.or_already().attempting(|| format!("make {net} unreachable"))
}

/// Removes that route; already gone is success.
pub async fn remove_unreachable(net: Subnet) -> Result<(), NetworkError> {
    let netlink = Netlink::open()?;
    match netlink.handle.route().del(unreachable(net)).execute().await {
        Err(rtnetlink::Error::NetlinkError(m)) if m.to_io().raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.attempting(|| format!("remove the route of {net}")),
    }
}

fn unreachable(net: Subnet) -> rtnetlink::packet_route::route::RouteMessage {
    RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(net.base(), net.prefix())
        .kind(RouteType::Unreachable)
        .priority(METRIC)
        .build()
}

/// The largest packet that the host's way out takes, at most Ethernet's.
pub fn uplink_mtu(device: Option<&str>) -> u32 {
    let device = device.map(ToOwned::to_owned).or_else(default_device);
    let mtu = device.and_then(|d| fs::read_to_string(format!("/sys/class/net/{d}/mtu")).ok());
    mtu.and_then(|m| m.trim().parse().ok()).unwrap_or(MTU).clamp(576, MTU)
}

/// The address at which other hosts reach this one: the first of that device, or of the one that leads out.
pub fn underlay_address(device: Option<&str>) -> Option<Ipv4Addr> {
    let device = device.map(ToOwned::to_owned).or_else(default_device)?;
    addresses().ok()?.into_iter().find(|(link, _)| *link == device).map(|(_, ip)| ip)
}

fn default_device() -> Option<String> {
    let table = fs::read_to_string("/proc/net/route").ok()?;
    // Iface Destination Gateway Flags RefCnt Use Metric Mask …
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")).then(|| fields[0].to_owned())
    })
}

/// The networks that the host is directly connected to, except Docklet's own and the loopback.
pub fn connected() -> Vec<HostNetwork> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    addresses
        .filter(|a| !a.interface_name.starts_with(kernel_names::LINK_PREFIX))
        .filter_map(|a| {
            let ip = a.address?.as_sockaddr_in()?.ip();
            let mask = u32::from(a.netmask?.as_sockaddr_in()?.ip());
            let net = (!ip.is_loopback()).then(|| Subnet::containing(ip, (mask.leading_ones() as u8).min(30)))??;
            Some(HostNetwork { device: a.interface_name, net })
        })
        .collect()
}

/// Each of them once.
pub fn subnets(networks: Vec<HostNetwork>) -> Vec<Subnet> {
    networks.into_iter().map(|network| network.net).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The hosts file of a vcluster's nodes.
pub fn hosts(vcluster: &VclusterPlan) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    for peer in &vcluster.peers {
        text += &format!("{} {}\n", peer.ip, peer.name);
    }
    text
}

/// Writes the hosts file into the same inode, which running nodes have mounted.
pub fn write_hosts(path: &Path, text: &str) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Write { path: path.display().to_string(), source };
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let write = || {
        let mut file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o644).open(path)?;
        // Never empty in between: the old tail is cut off after the new text stands.
        file.write_all(text.as_bytes())?;
        file.set_len(text.len() as u64)
    };
    write().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_addresses_are_those_that_the_library_finds() {
        let all = nix::ifaddrs::getifaddrs().unwrap();
        let mut expected: Vec<(String, Ipv4Addr)> =
            all.filter_map(|a| Some((link_of(&a.interface_name), a.address?.as_sockaddr_in()?.ip()))).collect();
        let mut found = addresses().unwrap();
        expected.sort();
        found.sort();
        assert_eq!(found, expected);
    }
}
