//! The REST API's requests and answers: one set of types for server, command line, portal and tests.
//!
//! Requests carry raw texts where a person typed them; the server parses them into newtypes and names the field that
//! is wrong.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

use crate::host::{Capacity, Check};
use crate::moves::Stage;
use crate::port::Protocol;
use crate::rate::RateLimits;
use crate::report::{LimitKind, Reason, Step};
use crate::size::Size;
use crate::status::Status;

/// `POST /api/v1/sessions`
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignIn {
    pub username: String,
    pub password: String,
}

/// The answer to a sign-in.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// For `Authorization: Bearer`. Shown once; only its hash is kept.
    pub token: String,
    /// RFC 3339.
    pub expires_at: String,
}

/// `GET /api/v1/me`
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Me {
    pub username: String,
    pub role: Role,
    pub usage: UsageView,
    /// Absent for administrators, who have no cap.
    pub quota: Option<QuotaView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Admin,
    User,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    pub vclusters: u32,
    pub nodes: u32,
    pub cpu: f64,
    pub memory_mib: u64,
    pub disk_mib: u64,
    /// Published ports.
    pub ports: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct QuotaView {
    pub nodes: u32,
    pub cpu: f64,
    pub memory_mib: u64,
    /// Published ports.
    pub ports: u32,
}

/// One of `GET /api/v1/sites`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteView {
    pub name: String,
    /// The address of its portal.
    pub url: String,
    /// It is the one that answers.
    pub here: bool,
}

/// `GET /api/v1/maintenance`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MaintenanceView {
    /// While it is on only administrators create, start, retry and grow vclusters. What runs goes on.
    pub on: bool,
    /// What the administrator says of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it is expected to be over, RFC 3339. It ends only when an administrator says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Who said so; for administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// `POST /api/v1/maintenance`
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginMaintenance {
    /// At most 500 characters, one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "A new switch is put in.")]
    pub message: Option<String>,
    /// When it is expected to be over, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-31T18:00:00Z")]
    pub until: Option<String>,
}

/// `POST /api/v1/vclusters`
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVcluster {
    #[schema(example = "demo")]
    pub name: String,
    /// How many nodes, from 1.
    #[schema(example = 3)]
    pub nodes: i64,
    /// An image's name; the configured default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The size of each node; the configured default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<SizeRequest>,
    /// Only hosts with these labels take its nodes: `{"gpu": "yes"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_labels: BTreeMap<String, String>,
}

/// The answer to `POST /api/v1/vclusters/what-if`: whether such a vcluster would find room now. Nothing is reserved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FitView {
    pub fits: bool,
    /// Why it does not fit.
    pub reason: Option<Reason>,
    /// Where its nodes would go; for administrators.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<Vec<HostFit>>,
    /// Nodes of that size that would find room beside these; none where these do not all fit.
    pub more: u32,
}

/// How many nodes a host would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostFit {
    pub host: String,
    pub nodes: u32,
}

/// A size with defaults for what is left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SizeRequest {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<i64>,
}

/// `PATCH /api/v1/vclusters/{name}`: what is left out stays as it is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeVcluster {
    /// Scales to that many nodes. Scaling in removes the nodes that came last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// Takes the place of the limits before: a direction that is left out has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsRequest>,
}

/// [`RateLimits`] as asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// To the nodes, in kbit/s (1000 bits); absent: no limit. From 64 to 100000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 10000)]
    pub ingress_kbit: Option<u32>,
    /// From the nodes, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_kbit: Option<u32>,
}

impl From<LimitsRequest> for RateLimits {
    fn from(request: LimitsRequest) -> Self {
        Self { ingress_kbit: request.ingress_kbit, egress_kbit: request.egress_kbit }
    }
}

impl From<RateLimits> for LimitsRequest {
    fn from(limits: RateLimits) -> Self {
        Self { ingress_kbit: limits.ingress_kbit, egress_kbit: limits.egress_kbit }
    }
}

/// A vcluster as its owner sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VclusterView {
    pub id: String,
    pub name: String,
    pub owner: String,
    pub status: Status,
    /// Why it is not as wanted.
    pub reason: Option<Reason>,
    pub image: String,
    pub size: Size,
    /// Nodes that are wanted.
    pub nodes: u32,
    /// Nodes that are ready.
    pub nodes_ready: u32,
    /// Its private network, once it has one: `172.16.0.0/26`.
    pub subnet: Option<String>,
    #[serde(default)]
    pub limits: RateLimits,
    /// What it asks of its hosts.
    #[serde(default)]
    pub host_labels: BTreeMap<String, String>,
    /// RFC 3339.
    pub created_at: String,
    pub changed_at: String,
    /// Counts changes; a client can tell whether what it sees answers its own request.
    pub generation: u64,
    /// The newest change.
    pub operation: Option<OperationView>,
}

/// One change somebody asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationView {
    pub id: String,
    /// `create`, `start`, `stop`, `scale`, `delete`, `retry`.
    pub action: String,
    /// Who asked.
    pub actor: String,
    /// `running`, `done`, `failed`, or `superseded` by a later change.
    pub outcome: String,
    pub started_at: String,
    /// Absent while it runs.
    pub ended_at: Option<String>,
    /// From request to outcome, or to now.
    pub millis: u64,
    pub steps: Vec<StepView>,
    pub reason: Option<Reason>,
}

/// One step over all nodes of the vcluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StepView {
    pub step: Step,
    /// Nodes through with it.
    pub done: u32,
    /// Nodes that need it.
    pub total: u32,
    /// From the request to the first node's beginning.
    #[serde(default)]
    pub started_millis: u64,
    /// From the first node's beginning to the last node's end, or to now.
    pub millis: u64,
    pub finished: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    pub name: String,
    pub status: Status,
    pub reason: Option<Reason>,
    pub ip: Option<String>,
    pub host: Option<String>,
    pub image: String,
    pub size: Size,
    /// From the plan to ready, of the last start.
    pub ready_millis: Option<u64>,
    /// Present while it is to be on another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<MoveView>,
    /// Limits that it ran into since it was started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits_hit: Vec<LimitHitView>,
}

/// A node ran into one of its limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitHitView {
    pub limit: LimitKind,
    /// `memory`: processes that were ended. `processes`: how often one could not be started. `disk`: 1 while it is full.
    pub times: u64,
    /// When it was last noticed to have become more, RFC 3339; at most a quarter of a minute late.
    pub at: String,
}

impl LimitHitView {
    /// For a person, without when.
    #[must_use]
    pub fn sentence(&self) -> String {
        match (self.limit, self.times) {
            (LimitKind::Memory, 1) => "ran out of memory: a process was ended".to_owned(),
            (LimitKind::Memory, times) => format!("ran out of memory: {times} processes were ended"),
            (LimitKind::Processes, _) => "has as many processes as it may: no more could be started".to_owned(),
            (LimitKind::Disk, _) => "its disk is full".to_owned(),
        }
    }
}

/// A node that is to be on another host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MoveView {
    pub owner: String,
    pub vcluster: String,
    pub node: String,
    pub from: String,
    /// Where to, once that is known.
    pub to: Option<String>,
    /// `failed`: it stays where it is.
    pub stage: Stage,
    /// Bytes of its disk that have arrived.
    pub bytes: u64,
    /// Why it waits or has failed.
    pub reason: Option<Reason>,
}

/// `POST /api/v1/vclusters/{name}/move`
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveNodes {
    /// One node; all of the vcluster's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "node1")]
    pub node: Option<String>,
    /// Where to. The host that it is on takes a wish back that has not begun.
    #[schema(example = "host2")]
    pub host: String,
}

/// `POST /api/v1/vclusters/{name}/ports`: publishes a port of a node.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishPort {
    #[schema(example = "node1")]
    pub node: String,
    /// Where the node listens, from 1 to 65535.
    #[schema(example = 80)]
    pub port: i64,
    #[serde(default)]
    pub protocol: Protocol,
    /// The port of the host; a free one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_port: Option<i64>,
}

/// A published port, and where it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortView {
    pub node: String,
    pub protocol: Protocol,
    /// In the node.
    pub port: u16,
    /// On the host.
    pub public_port: u16,
    /// The host that holds the node now; absent while it has no place.
    pub host: Option<String>,
    /// The host's address; absent while it is not known.
    pub address: Option<String>,
    /// Why it does not lead to the node though it should.
    pub reason: Option<Reason>,
}

/// `POST …/nodes/{node}/exec`
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Goes to exec as it is; no shell in between.
    #[schema(example = json!(["hostname"]))]
    pub argv: Vec<String>,
    #[serde(default)]
    pub stdin: String,
    /// 1 to 3600; 60 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    /// 128 + n where signal n ended it.
    pub exit_code: i32,
    pub stdout: String,
    pub stderr: String,
    /// Output over 1 MiB was cut.
    pub truncated: bool,
}

/// `POST …/nodes/{node}/apps/jupyter`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppView {
    pub name: String,
    pub port: u16,
    /// Where a browser opens it.
    pub url: String,
    pub status: AppStatus,
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AppStatus {
    Stopped,
    Starting,
    /// The port answers.
    Running,
    Failed,
}

/// `GET …/nodes/{node}/logs`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Logs {
    pub text: String,
}

/// `POST /api/v1/users`
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateUser {
    pub username: String,
    /// 8 to 256 characters.
    pub password: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
}

/// `PATCH /api/v1/users/{name}`. Users may change their own password, giving the current one; the rest is for administrators.
#[derive(Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeUser {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    pub username: String,
    pub role: Role,
    pub disabled: bool,
    pub created_at: String,
    /// The last sign-in.
    pub last_seen: Option<String>,
    pub usage: UsageView,
    /// The host's first user id of this user's nodes.
    pub first_id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    pub name: String,
    pub digest: String,
    pub description: Option<String>,
    /// Of the compressed layers.
    pub bytes: u64,
    pub created_at: Option<String>,
    pub is_default: bool,
}

/// `PATCH /api/v1/hosts/{name}`
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeHost {
    /// Whether new nodes are kept off the host; those that are there stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cordoned: Option<bool>,
    /// Sets these labels, and takes those away whose value is null.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Whether the nodes that are there are moved to other hosts, one by one. New ones are kept off meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub name: String,
    /// `ready`, `cordoned` (takes no new nodes), `draining` (its nodes are moved away), `drained` (none is left),
    /// `clearing` (removes what was declared lost), `unreachable` or `failed` (a check failed).
    pub status: String,
    /// An administrator keeps new nodes off it, whatever its status.
    pub cordoned: bool,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its nodes are moved to other hosts, whatever its status.
    #[serde(default)]
    pub draining: bool,
    /// Nodes that leave it or cannot, while it drains or somebody moves them.
    #[serde(default)]
    pub moves: Vec<MoveView>,
    pub version: String,
    pub kernel: String,
    pub cgroup: String,
    pub storage: String,
    pub capacity: Capacity,
    /// The sum of the limits of the nodes placed there.
    pub allocated: Capacity,
    /// Without those that nobody asked for yet.
    pub nodes: u32,
    pub nodes_ready: u32,
    /// Booted and frozen for the next vclusters of users who are here.
    #[serde(default)]
    pub nodes_warm: u32,
    pub checks: Vec<Check>,
    pub started_at: String,
}

/// A master that is at work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MasterView {
    pub name: String,
    /// Where it serves: `address:port`.
    pub address: String,
    pub version: String,
    pub started_at: String,
    /// It is the one that gave this answer.
    pub here: bool,
}

/// An event of `GET /api/v1/events`: the vcluster changed; `view` is absent when it is gone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VclusterEvent {
    pub owner: String,
    pub name: String,
    pub view: Option<VclusterView>,
}
