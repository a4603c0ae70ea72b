//! What a host has seen: written by its worker, read by the masters.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

use crate::id::{NodeId, VclusterId};
use crate::port::Forward;
use crate::time::Micros;

/// One node as last observed. Key: `reports/<host>/nodes/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    pub id: NodeId,
    pub vcluster: VclusterId,
    /// The plan's generation that this answers.
    pub generation: u64,
    /// The plan's attempt that this answers.
    pub attempt: u32,
    pub state: NodeState,
    /// Why the node is not as wanted; present when `state` is `Failed`.
    pub reason: Option<Reason>,
    /// The host's process id of the node's init while it runs.
    pub init_pid: Option<i32>,
    /// Steps of the change in force, in order; the last may still run.
    pub steps: Vec<StepTiming>,
    /// Limits that it ran into since its init was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<LimitHit>,
    pub at: Micros,
}

/// What a node may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// Processes were ended because there was no more.
    Memory,
    /// No more could be started.
    Processes,
    /// Nothing more can be written.
    Disk,
}

/// A node ran into one of its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitHit {
    pub limit: LimitKind,
    /// Memory: processes that were ended. Processes: how often one could not be started. Disk: 1 while it is full.
    pub times: u64,
    /// When it was last noticed to have become more.
    pub at: Micros,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Nothing of it is on the host.
    Absent,
    /// Its disk is there, its init is not.
    Stopped,
    /// On the way up.
    Starting,
    /// Init says that it is up and sshd listens.
    Ready,
    /// It was ready, and its processes stand still.
    Frozen,
    /// On the way down.
    Stopping,
    Failed,
}

/// A vcluster's share of one host as last observed. Key: `reports/<host>/vclusters/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VclusterReport {
    pub id: VclusterId,
    pub generation: u64,
    pub present: bool,
    pub reason: Option<Reason>,
    /// Published ports that the host itself uses, so that they lead nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Forward>,
    pub at: Micros,
}

/// Why something is not as wanted, for a person: what was attempted, what stood in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reason {
    /// Stable, snake_case, for scripts: `image_unpack_failed`, `out_of_space`, `no_host`.
    pub code: String,
    /// One sentence or two: what failed and what to do.
    pub message: String,
    /// The last lines of the log of the step that failed, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

impl Reason {
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), log: None }
    }

    #[must_use]
    pub fn with_log(mut self, log: impl Into<String>) -> Self {
        self.log = Some(log.into());
        self
    }
}

/// A step of bringing a node to its plan, in the words the portal shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// From the request to its being written down: checks, keys, the history's row.
    Admit,
    /// Storing the wish, hearing of it, and choosing hosts.
    Place,
    /// Storing a node's plan, until its host begins.
    HandOver,
    Image,
    Disk,
    Network,
    Boot,
    Ready,
    Stop,
    Remove,
    /// To or from another host.
    Move,
    Freeze,
    /// Running on after it was frozen.
    Thaw,
    /// From the last node's end until the master knows it.
    Report,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admit => "admit",
            Self::Place => "place",
            Self::HandOver => "hand over",
            Self::Image => "image",
            Self::Disk => "disk",
            Self::Network => "network",
            Self::Boot => "boot",
            Self::Ready => "ready",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::Move => "move",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
            Self::Report => "report",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTiming {
    pub step: Step,
    pub started_at: Micros,
    /// Absent while it runs.
    pub ended_at: Option<Micros>,
}
