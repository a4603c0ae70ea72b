//! A vcluster over several hosts: a VXLAN device on its bridge, with every node of other hosts written into it.
//!
//! Nothing is learned and nothing is flooded, for every address is known: what is not written down is not delivered.
//! The device answers ARP for the nodes that are written down, so no broadcast crosses the network between hosts.

use docklet_types::id::VclusterId;
use docklet_types::kernel_names;
use docklet_types::name::HostName;
use docklet_types::net::{Mac, VXLAN_PORT};
use docklet_types::plan::VclusterPlan;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, LinkVxlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::network::{self, Attempt, Netlink, NetworkError};

/// What VXLAN over IPv4 adds to each packet, in bytes.
pub const OVERHEAD: u32 = 50;
/// What was written into the device, so that the next plan changes only what differs.
const NOTE: &str = "tunnel.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The address that the device sends from.
    local: Ipv4Addr,
    neighbours: BTreeSet<Neighbour>,
}

/// A node on another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Neighbour {
    ip: Ipv4Addr,
    mac: Mac,
    /// Where its host is reached.
    host: Ipv4Addr,
}

/// The nodes of the plan that are on other hosts than this one. Those whose host has not said where it is cannot be
/// reached yet. Which host is this one is told by its name: after a change of its address the plan has the old one.
pub fn neighbours(plan: &VclusterPlan, own: &HostName) -> BTreeSet<Neighbour> {
    let of = |peer: &docklet_types::plan::Peer| {
        let host = *plan.hosts.get(&peer.host)?;
        (peer.host != *own).then_some(Neighbour { ip: peer.ip, mac: peer.mac, host })
    };
    plan.peers.iter().filter_map(of).collect()
}

/// The hosts that may speak through the vcluster's tunnel; `None` where it needs none, or this host has no address.
pub fn senders(plan: &VclusterPlan, own: &HostName, local: Option<Ipv4Addr>) -> Option<BTreeSet<Ipv4Addr>> {
    local?;
    let hosts: BTreeSet<Ipv4Addr> = neighbours(plan, own).iter().map(|n| n.host).collect();
    (!hosts.is_empty()).then_some(hosts)
}

/// What is to be written, and what to be removed: a neighbour is replaced in place.
fn difference(old: &BTreeSet<Neighbour>, new: &BTreeSet<Neighbour>) -> (Vec<Neighbour>, Vec<Neighbour>) {
    let kept: BTreeSet<Ipv4Addr> = new.iter().map(|n| n.ip).collect();
    let write = new.difference(old).copied().collect();
    let remove = old.iter().filter(|n| !kept.contains(&n.ip)).copied().collect();
    (write, remove)
}

/// Makes the device where there are neighbours, brings its entries to the plan, removes it where there are none.
/// `state` is the vcluster's directory; the bridge is there.
pub async fn ensure(
    plan: &VclusterPlan,
    own: &HostName,
    local: Option<Ipv4Addr>,
    state: &Path,
) -> Result<(), NetworkError> {
    let name = kernel_names::tunnel(plan.id);
    let note = state.join(NOTE);
    let wanted = neighbours(plan, own);
    let (Some(local), false) = (local, wanted.is_empty()) else {
        return remove(plan.id, state).await;
    };
    let old = fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
    let old = old.filter(|old| old.local == local);
    if old.is_none() {
        // The host has another address than when the device was made, or nobody knows what is in it: it is made anew,
        // since a device that is there cannot be told of the address. What is under way is sent again.
        network::remove_link(&name).await?;
    }
    let netlink = Netlink::open()?;
    let (index, fresh) = device(&netlink.handle, plan, local).await?;
    let old = old.filter(|_| !fresh).map(|old| old.neighbours).unwrap_or_default();
    let (write, remove) = difference(&old, &wanted);
    // Both for as long as it is between the two: what is cut off here is brought to its end by the next call.
    save(&note, local, old.union(&wanted).copied().collect())?;
    for neighbour in remove {
        forget(&netlink.handle, index, neighbour).await.attempting(|| format!("forget {} on {name}", neighbour.ip))?;
    }
    for neighbour in write {
        learn(&netlink.handle, index, neighbour).await.attempting(|| format!("write {} into {name}", neighbour.ip))?;
    }
    save(&note, local, wanted)
}

/// Removes the device with all that is in it; already gone is success.
pub async fn remove(id: VclusterId, state: &Path) -> Result<(), NetworkError> {
    network::remove_link(&kernel_names::tunnel(id)).await?;
    let note = state.join(NOTE);
    match fs::remove_file(&note) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(NetworkError::Write { path: note.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

/// The device's number, and whether it was made just now.
async fn device(handle: &Handle, plan: &VclusterPlan, local: Ipv4Addr) -> Result<(u32, bool), NetworkError> {
    let name = kernel_names::tunnel(plan.id);
    let missing = |name: &str| NetworkError::Netlink {
        what: format!("find {name}"),
        source: std::io::ErrorKind::NotFound.into(),
    };
    let fresh = network::link_index(&name).is_none();
    if fresh {
        let bridge = kernel_names::bridge(plan.id);
        let controller = network::link_index(&bridge).ok_or_else(|| missing(&bridge))?;
        let mtu = fs::read_to_string(format!("/sys/class/net/{bridge}/mtu")).ok().and_then(|m| m.trim().parse().ok());
        let mut message = LinkVxlan::new(&name, plan.network.vni)
            .local(local)
            .port(VXLAN_PORT)
            .learning(false)
            .proxy(true)
            .controller(controller)
            .up();
        if let Some(mtu) = mtu {
            message = message.mtu(mtu);
        }
        handle.link().add(message.build()).execute().await.or_already().attempting(|| format!("make tunnel {name}"))?;
    }
    // Else the bridge would look for a node there that has a new place on this host, and has not said a word yet. Said
    // every time: the worker may have been killed after it made the device.
    let path = format!("/sys/class/net/{name}/brport/learning");
    fs::write(&path, "0").map_err(|source| NetworkError::Write { path, source })?;
    Ok((network::link_index(&name).ok_or_else(|| missing(&name))?, fresh))
}

/// Into the bridge: it is behind the tunnel; into the tunnel: behind that host, and what to answer who asks for it.
async fn learn(handle: &Handle, index: u32, neighbour: Neighbour) -> Result<(), rtnetlink::Error> {
    let Neighbour { ip, mac, host } = neighbour;
    handle
        .neighbours()
        .add_bridge(index, &mac.0)
        .flags(NeighbourFlags::Controller)
        .state(NeighbourState::Noarp)
        .replace()
        .execute()
        .await?;
    handle
        .neighbours()
        .add_bridge(index, &mac.0)
        .flags(NeighbourFlags::Own)
        .destination(IpAddr::V4(host))
        .replace()
        .execute()
        .await?;
    handle.neighbours().add(index, IpAddr::V4(ip)).link_layer_address(&mac.0).replace().execute().await
}

async fn forget(handle: &Handle, index: u32, neighbour: Neighbour) -> Result<(), rtnetlink::Error> {
    let Neighbour { ip, mac, host } = neighbour;
    let lladdr = NeighbourAttribute::LinkLayerAddress(mac.0.to_vec());
    let at = |ip| NeighbourAttribute::Destination(NeighbourAddress::Inet(ip));
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Bridge;
    entry.header.ifindex = index;
    entry.header.state = NeighbourState::Permanent;
    entry.header.flags = NeighbourFlags::Own;
    entry.attributes = vec![lladdr, at(host)];
    or_gone(handle.neighbours().del(entry.clone()).execute().await)?;
    entry.header.state = NeighbourState::Noarp;
    entry.header.flags = NeighbourFlags::Controller;
    entry.attributes.truncate(1);
    or_gone(handle.neighbours().del(entry).execute().await)?;
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet;
    entry.header.ifindex = index;
    entry.attributes = vec![at(ip)];
    or_gone(handle.neighbours().del(entry).execute().await)
}

fn or_gone(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(m)) if m.to_io().raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn save(path: &Path, local: Ipv4Addr, neighbours: BTreeSet<Neighbour>) -> Result<(), NetworkError> {
    let note = Note { local, neighbours };
    let write = || {
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(&note)?)?;
        fs::rename(temporary, path)
    };
    write().map_err(|source| NetworkError::Write { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use docklet_types::id::IdRange;
    use docklet_types::plan::{Network, Peer};
    use docklet_types::rate::RateLimits;
    use docklet_types::spec::{SshKeyPair, VclusterKeys, Wanted};

    fn neighbour(last: u8, host: u8) -> Neighbour {
        let ip = [172, 16, 0, last].into();
        Neighbour { ip, mac: Mac::of_address(ip), host: [10, 0, 0, host].into() }
    }

    #[test]
    fn a_host_knows_its_own_nodes_by_its_name() {
        let peer = |last: u8, host: &str| {
            let Neighbour { ip, mac, .. } = neighbour(last, 0);
            Peer { name: format!("node{last}").parse().unwrap(), ip, mac, host: host.parse().unwrap() }
        };
        let key = || SshKeyPair { private: String::new(), public: String::new() };
        let plan = VclusterPlan {
            id: VclusterId::from_uuid(uuid::Uuid::nil()),
            owner: "alice".parse().unwrap(),
            name: "demo".parse().unwrap(),
            generation: 1,
            wanted: Wanted::Running,
            range: IdRange::new(1).unwrap(),
            network: Network { subnet: "172.16.0.0/26".parse().unwrap(), vni: 1 },
            peers: vec![peer(2, "h1"), peer(3, "h2"), peer(4, "h3")],
            // h1 is at 10.0.0.9 since its restart, and h3 has not said where it is.
            hosts: [("h1", [10, 0, 0, 1]), ("h2", [10, 0, 0, 2])].map(|(h, a)| (h.parse().unwrap(), a.into())).into(),
            forwards: Vec::new(),
            limits: RateLimits::default(),
            keys: VclusterKeys { user: key(), host: key() },
        };
        let (own, now) = ("h1".parse().unwrap(), Some([10, 0, 0, 9].into()));
        assert_eq!(neighbours(&plan, &own), [neighbour(3, 2)].into());
        assert_eq!(senders(&plan, &own, now), Some([[10, 0, 0, 2].into()].into()));
        assert_eq!(senders(&plan, &own, None), None);
    }

    #[test]
    fn only_what_differs_is_written_and_what_moved_is_replaced_in_place() {
        let old = BTreeSet::from([neighbour(2, 1), neighbour(3, 1), neighbour(4, 2)]);
        let new = BTreeSet::from([neighbour(2, 1), neighbour(3, 2), neighbour(5, 2)]);
        let (write, remove) = difference(&old, &new);
        assert_eq!(write, [neighbour(3, 2), neighbour(5, 2)]);
        assert_eq!(remove, [neighbour(4, 2)]);
    }
}
