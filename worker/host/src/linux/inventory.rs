//! Everything of this installation that exists on the host, by kind and owner.
//!
//! Several installations may share a machine, so a name that starts with ours is not enough: an object counts when its
//! id is known here, when it hangs on something of ours, or when it carries our directory.

use docklet_types::id::{NodeId, VclusterId};
use docklet_types::kernel_names;
use docklet_types::port::Forward;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::survey::ids;
use super::{Inner, access, cgroup, network, nft};
use crate::{Owned, Owner};

/// Names of kernel objects and whom they belong to.
struct Known {
    links: HashMap<String, Owner>,
    containers: HashMap<String, NodeId>,
}

impl Known {
    fn of(inner: &Inner) -> Self {
        let paths = &inner.paths;
        let mut nodes: Vec<NodeId> = ids(&paths.node_states());
        nodes.extend(ids::<NodeId>(&paths.node_disks()));
        // Also those that are gone: what is found of them was left behind.
        nodes.extend(inner.seen.lock().iter());
        let vclusters: Vec<VclusterId> = ids(&paths.vcluster_states());
        let mut links: HashMap<String, Owner> =
            nodes.iter().map(|id| (kernel_names::veth(*id), Owner::Node(*id))).collect();
        links.extend(vclusters.iter().map(|id| (kernel_names::bridge(*id), Owner::Vcluster(*id))));
        links.extend(vclusters.iter().map(|id| (kernel_names::tunnel(*id), Owner::Vcluster(*id))));
        Self { links, containers: nodes.into_iter().map(|id| (kernel_names::container(id), id)).collect() }
    }

    fn link(&self, name: &str) -> Owner {
        self.links.get(name).copied().unwrap_or(Owner::Unknown)
    }
}

pub fn take(inner: &Inner, elements: &nft::Elements) -> Vec<Owned> {
    let known = Known::of(inner);
    let mut found = Vec::new();
    links(inner, &known, elements, &mut found);
    filter(&known, elements, &mut found);
    mounts(inner, &mut found);
    loops(inner, &mut found);
    cgroups(&known, &mut found);
    processes(inner, &mut found);
    directories(inner, &mut found);
    found.sort();
    found
}

fn links(inner: &Inner, known: &Known, elements: &nft::Elements, found: &mut Vec<Owned>) {
    let ours: Vec<String> = addressed(inner);
    for name in network::links() {
        if !name.starts_with(kernel_names::LINK_PREFIX) {
            continue;
        }
        let owner = known.link(&name);
        let in_filter = elements.bridges.contains(&name) || elements.ports.contains_key(&name);
        let plugged = || network::bridge_of(&name).is_some_and(|b| known.links.contains_key(&b) || ours.contains(&b));
        if owner != Owner::Unknown || in_filter || ours.contains(&name) || plugged() {
            found.push(Owned { kind: "link", label: name, owner });
        }
    }
}

/// Links of Docklet's that have an address of our CLUSTER_NET.
fn addressed(inner: &Inner) -> Vec<String> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    addresses
        .filter(|a| a.interface_name.starts_with(kernel_names::LINK_PREFIX))
        .filter(|a| {
            a.address.as_ref().and_then(|s| s.as_sockaddr_in()).is_some_and(|s| inner.cluster_net.contains(s.ip()))
        })
        .map(|a| a.interface_name)
        .collect()
}

fn filter(known: &Known, elements: &nft::Elements, found: &mut Vec<Owned>) {
    for link in &elements.bridges {
        found.push(Owned { kind: "nft_element", label: format!("bridges {link}"), owner: known.link(link) });
    }
    for (bridge, share) in &elements.shares {
        let owner = known.link(bridge);
        for Forward { protocol, public, ip, port } in &share.forwards {
            let label = format!("forwards {public}/{protocol} {ip}:{port}");
            found.push(Owned { kind: "nft_element", label, owner });
        }
        for (direction, kbit) in [("ingress", share.limits.ingress_kbit), ("egress", share.limits.egress_kbit)] {
            if let Some(kbit) = kbit {
                found.push(Owned { kind: "nft_element", label: format!("{direction} {bridge} {kbit} kbit/s"), owner });
            }
        }
        if let Some((id, hosts)) = &share.tunnel {
            let hosts = hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            found.push(Owned { kind: "nft_element", label: format!("tunnels {id} {hosts}"), owner });
        }
    }
    for (link, binding) in &elements.ports {
        found.push(Owned {
            kind: "nft_element",
            label: format!("bound {link} {} {}", binding.mac, binding.ip),
            owner: known.link(link),
        });
    }
}

fn mounts(inner: &Inner, found: &mut Vec<Owned>) {
    let local = inner.paths.local();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let Some(target) = line.split(' ').nth(4).map(Path::new) else { continue };
        if target.starts_with(&local) {
            let owner = if target == inner.paths.pool() { Owner::Host } else { Owner::Unknown };
            found.push(Owned { kind: "mount", label: target.display().to_string(), owner });
        }
    }
}

fn loops(inner: &Inner, found: &mut Vec<Owned>) {
    let file = inner.paths.pool_file();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()) == file {
            found.push(Owned {
                kind: "loop",
                label: entry.file_name().to_string_lossy().into_owned(),
                owner: Owner::Host,
            });
        }
    }
}

fn cgroups(known: &Known, found: &mut Vec<Owned>) {
    for (directory, container) in cgroup::all() {
        if let Some(id) = known.containers.get(&container) {
            found.push(Owned { kind: "cgroup", label: directory.display().to_string(), owner: Owner::Node(*id) });
        }
    }
}

fn processes(inner: &Inner, found: &mut Vec<Owned>) {
    for access::Serving { pid, node, command } in access::serving(&inner.paths.lxc()) {
        found.push(Owned { kind: "process", label: format!("{pid} {command}"), owner: Owner::Node(node) });
    }
}

fn directories(inner: &Inner, found: &mut Vec<Owned>) {
    let paths = &inner.paths;
    for parent in [paths.node_states(), paths.node_disks(), paths.node_moves(), paths.vcluster_states(), paths.lxc()] {
        for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = if parent == paths.vcluster_states() {
                name.parse().map_or(Owner::Unknown, Owner::Vcluster)
            } else if parent == paths.lxc() {
                if name == "node.seccomp" {
                    continue;
                }
                name.strip_prefix(kernel_names::CONTAINER_PREFIX)
                    .and_then(|n| n.parse().ok())
                    .map_or(Owner::Unknown, Owner::Node)
            } else {
                name.parse().map_or(Owner::Unknown, Owner::Node)
            };
            found.push(Owned { kind: "directory", label: entry.path().display().to_string(), owner });
        }
    }
}
