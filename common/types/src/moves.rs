//! A node on its way to another host: what is asked for and how far it is. What a host has to do for it stands in its
//! plan ([`crate::plan::Moving`]).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{NodeId, VclusterId};
use crate::name::{HostName, UserName};
use crate::report::Reason;
use crate::time::Micros;

/// One node that is to be on another host. Key: `moves/<node-id>`; gone when the node is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub node: NodeId,
    pub vcluster: VclusterId,
    /// The host that was asked for; any other than its own where absent.
    pub wanted: Option<HostName>,
    /// Who asked; absent where its host is being emptied.
    pub actor: Option<UserName>,
    pub stage: Stage,
    /// Absent until it begins.
    pub trip: Option<Trip>,
    /// Why it failed; present when `stage` is `Failed`.
    pub reason: Option<Reason>,
}

/// Between which hosts, and how much has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trip {
    /// Grows with every try of this node: what belongs to an earlier one is refused.
    pub number: u64,
    pub from: HostName,
    pub to: HostName,
    /// Bytes that were carried so far, of both copies.
    pub bytes: u64,
    /// The first copy is there, so that the last one holds only what changed since.
    pub based: bool,
}

/// How far a move is. Only the planner leaves `Waiting`, and it ends those that arrived; the rest the one who carries
/// the bytes does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// For another node of its host, or for room.
    Waiting,
    /// The disk is copied while the node runs.
    Copying,
    /// The first copy is there: the node is stopped, and what changed since is copied.
    Copied,
    /// The whole disk is there: the node may start at its new place.
    Arrived,
    /// It is, or will be, as it was before.
    Failed,
}

impl Stage {
    /// Whether both hosts hold a part of the node.
    #[must_use]
    pub const fn is_under_way(self) -> bool {
        matches!(self, Self::Copying | Self::Copied | Self::Arrived)
    }
}

/// An operator's word that what a host held is gone for good. Key: `plans/<host>/lost`, where the host reads it should
/// it come back after all: it then removes whatever no plan names. It answers with the same number under
/// `reports/<host>/lost`, and takes no node before that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub number: u64,
    pub actor: UserName,
    pub at: Micros,
}
