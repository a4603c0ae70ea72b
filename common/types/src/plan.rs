//! What one host should do: written by the planner, read by that host's worker.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::id::{IdRange, NodeId, VclusterId};
use crate::image::ImageRef;
use crate::name::{HostName, NodeName, UserName, VclusterName};
use crate::net::{Mac, Subnet};
use crate::port::Forward;
use crate::rate::RateLimits;
use crate::size::Size;
use crate::spec::{VclusterKeys, Wanted};
use crate::time::Micros;

/// One node on one host. Key: `plans/<host>/nodes/<id>`. A worker refuses a generation older than one it has seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    pub id: NodeId,
    pub vcluster: VclusterId,
    pub owner: UserName,
    pub name: NodeName,
    pub generation: u64,
    pub wanted: Wanted,
    /// A higher number asks for the node to be stopped and started once more (retry after a failure).
    pub attempt: u32,
    pub image: ImageRef,
    pub size: Size,
    pub range: IdRange,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// Present while the node moves between two hosts: both have a plan of it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// Booted, then stopped where it stands until this changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub frozen: bool,
    /// When the planner wrote it; for timing alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub planned_at: Option<Micros>,
}

/// One host's part in a node's move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// Of `Trip::number`.
    pub number: u64,
    pub side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The node is here, and copies of its disk are taken. Once `wanted` is `Stopped` it waits for the last one.
    Source,
    /// The disk is on its way here; `wanted` is `Stopped` until all of it has come.
    Target,
}

impl NodePlan {
    /// Whether this host only receives the node's disk so far: the node is elsewhere.
    #[must_use]
    pub fn is_incoming(&self) -> bool {
        self.moving.is_some_and(|m| m.side == Side::Target)
    }
}

/// The part of a vcluster that a host needs while it holds nodes of it. Key: `plans/<host>/vclusters/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VclusterPlan {
    pub id: VclusterId,
    pub owner: UserName,
    pub name: VclusterName,
    pub generation: u64,
    /// `Running` while the host holds any node of it (started or not), else `Absent`.
    pub wanted: Wanted,
    pub range: IdRange,
    pub network: Network,
    /// Every node of the vcluster, on whichever host.
    pub peers: Vec<Peer>,
    /// Where the hosts of the peers are reached, as far as they have said so.
    #[serde(default)]
    pub hosts: BTreeMap<HostName, Ipv4Addr>,
    /// Public ports of this host that lead to its nodes.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    #[serde(default)]
    pub limits: RateLimits,
    pub keys: VclusterKeys,
}

/// The address block of a vcluster. Key: `networks/<vcluster-id>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub subnet: Subnet,
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub name: NodeName,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    pub host: HostName,
}
