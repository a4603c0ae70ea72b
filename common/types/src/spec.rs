//! What a user wants: the desired state of a vcluster. Requests change this and nothing else.

use serde::{Deserialize, Serialize};

use crate::id::{IdRange, NodeId, OperationId, VclusterId};
use crate::image::ImageRef;
use crate::label::Labels;
use crate::name::{NodeName, UserName, VclusterName};
use crate::port::PortMapping;
use crate::rate::RateLimits;
use crate::size::Size;
use crate::time::Micros;

/// What a vcluster or node should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    Running,
    Stopped,
    /// A tombstone: everything of it is to go, then the record itself.
    Absent,
}

/// An ed25519 key pair in OpenSSH's text forms.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeyPair {
    pub private: String,
    /// One line, `ssh-ed25519 AAAA… comment`.
    pub public: String,
}

impl std::fmt::Debug for SshKeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The private half must never reach a log.
        f.debug_struct("SshKeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

/// The keys of one vcluster: who may sign in between its nodes, and how its nodes prove who they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VclusterKeys {
    pub user: SshKeyPair,
    pub host: SshKeyPair,
}

/// A vcluster as its owner wants it. Key: `specs/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VclusterSpec {
    pub id: VclusterId,
    pub owner: UserName,
    pub range: IdRange,
    pub name: VclusterName,
    pub image: ImageRef,
    /// The size of nodes that are added.
    pub size: Size,
    /// In order of creation.
    pub nodes: Vec<NodeSpec>,
    /// Published ports of its nodes, each with a key of its own (`ports/<protocol>/<public>`); none once it is to go.
    #[serde(default)]
    pub ports: Vec<PortMapping>,
    #[serde(default)]
    pub limits: RateLimits,
    /// Labels that a host must have to take its nodes.
    #[serde(default)]
    pub host_labels: Labels,
    pub wanted: Wanted,
    /// Counts changes of this spec, from 1.
    pub generation: u64,
    pub created_at: Micros,
    pub changed_at: Micros,
    /// The change in force: the one that set this generation.
    pub operation: OperationId,
    pub keys: VclusterKeys,
    /// Present while nobody asked for it yet: its nodes are booted and frozen for the owner's next request. It has no
    /// name key, is in no list and counts in no usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm: Option<Warm>,
    /// The id that a request would have given, which took over a warm vcluster instead: its repetition finds it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_as: Option<VclusterId>,
    /// When the change in force was about to be written; for timing alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted_at: Option<Micros>,
}

/// How long a vcluster is kept warm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warm {
    pub until: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub id: NodeId,
    pub name: NodeName,
    pub image: ImageRef,
    pub size: Size,
    /// A higher number asks for another try after a failure.
    pub attempt: u32,
}

/// What all vclusters of one user take. Written in the same transaction as each spec, compared on its revision, so
/// that two requests cannot both take the last slot. Key: `usage/<owner>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub vclusters: u32,
    pub nodes: u32,
    pub cpu_millis: u64,
    pub memory_mib: u64,
    pub disk_mib: u64,
    /// Published ports.
    #[serde(default)]
    pub ports: u32,
}

impl Usage {
    /// What a vcluster takes, itself included; nothing while nobody asked for it.
    #[must_use]
    pub fn of(spec: &VclusterSpec) -> Self {
        if spec.warm.is_some() {
            return Self::default();
        }
        let ports = u32::try_from(spec.ports.len()).unwrap_or(u32::MAX);
        Self { vclusters: 1, ports, ..Self::of_nodes(&spec.nodes) }
    }

    /// What a vcluster of so many nodes of one size takes, itself included.
    #[must_use]
    pub fn of_size(nodes: u32, size: Size) -> Self {
        let count = u64::from(nodes);
        Self {
            vclusters: 1,
            nodes,
            cpu_millis: count * u64::from(size.cpu.millis()),
            memory_mib: count * u64::from(size.memory_mib),
            disk_mib: count * u64::from(size.disk_mib),
            ports: 0,
        }
    }

    /// What these nodes take.
    #[must_use]
    pub fn of_nodes(nodes: &[NodeSpec]) -> Self {
        nodes.iter().fold(Self::default(), |sum, node| Self {
            vclusters: 0,
            nodes: sum.nodes + 1,
            cpu_millis: sum.cpu_millis + u64::from(node.size.cpu.millis()),
            memory_mib: sum.memory_mib + u64::from(node.size.memory_mib),
            disk_mib: sum.disk_mib + u64::from(node.size.disk_mib),
            ports: 0,
        })
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            vclusters: self.vclusters.saturating_add(other.vclusters),
            nodes: self.nodes.saturating_add(other.nodes),
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
            ports: self.ports.saturating_add(other.ports),
        }
    }

    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            vclusters: self.vclusters.saturating_sub(other.vclusters),
            nodes: self.nodes.saturating_sub(other.nodes),
            cpu_millis: self.cpu_millis.saturating_sub(other.cpu_millis),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
            ports: self.ports.saturating_sub(other.ports),
        }
    }
}
