//! What Docklet's objects are called in the kernel. From a name one can tell that the object is ours and whose it is.
//!
//! An interface name has at most 15 characters, so links carry the last ten hexadecimal digits of an id: those of a
//! version 7 UUID are random.

use crate::id::{NodeId, VclusterId};
use crate::name::ClusterName;

/// What every interface of ours starts with.
pub const LINK_PREFIX: &str = "dk";
/// What every container's name starts with.
pub const CONTAINER_PREFIX: &str = "dk-";

fn tail(simple: &str) -> &str {
    &simple[simple.len() - 10..]
}

/// `dkb<10 hex>`: the bridge of a vcluster on one host.
#[must_use]
pub fn bridge(id: VclusterId) -> String {
    format!("{LINK_PREFIX}b{}", tail(&id.simple()))
}

/// `dkx<10 hex>`: the tunnel from a vcluster's bridge to those on other hosts.
#[must_use]
pub fn tunnel(id: VclusterId) -> String {
    format!("{LINK_PREFIX}x{}", tail(&id.simple()))
}

/// `dkv<10 hex>`: the host's end of a node's cable.
#[must_use]
pub fn veth(id: NodeId) -> String {
    format!("{LINK_PREFIX}v{}", tail(&id.simple()))
}

/// `dk-<32 hex>`: the LXC container of a node; its cgroups are called `lxc.payload.<this>`.
#[must_use]
pub fn container(id: NodeId) -> String {
    format!("{CONTAINER_PREFIX}{}", id.simple())
}

/// The nftables table of one installation, in the families `inet` and `bridge`.
#[must_use]
pub fn nft_table(cluster: &ClusterName) -> String {
    format!("docklet_{}", cluster.as_str().replace('-', "_"))
}
