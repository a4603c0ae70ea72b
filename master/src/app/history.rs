//! The history of changes: a row when something is asked for, its outcome when the cluster shows it.
//!
//! The observer takes no input: woken by the view of the cluster, it looks at every change that still runs and ends those
//! whose end was seen. The newest change of every vcluster stays in memory, so that lists need no query per row.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use docklet_master_db::operations::{NewOperation, Operation, Outcome};
use docklet_master_db::{Db, DbError};
use docklet_master_plan::cluster::Cluster;
use docklet_master_plan::{status, view};
use docklet_types::id::{OperationId, VclusterId};
use docklet_types::report::Reason;
use docklet_types::spec::VclusterSpec;
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{OperationView, StepView};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::http::problem::chain;
use crate::reconcile::ClusterView;

/// How often changes that another master began are looked for.
const REFRESH: Duration = Duration::from_secs(30);
/// Rows that a list shows at most.
pub const LIST: i64 = 50;

/// See the module.
pub struct History {
    db: Db,
    view: Arc<ClusterView>,
    /// By id: the changes in force, and all that run.
    known: RwLock<HashMap<OperationId, Arc<Operation>>>,
    changed: watch::Sender<u64>,
}

/// What the cluster shows of a running change.
struct Seen {
    outcome: Outcome,
    reason: Option<Reason>,
    steps: Vec<StepView>,
}

impl History {
    #[must_use]
    pub fn new(db: Db, view: Arc<ClusterView>) -> Arc<Self> {
        Arc::new(Self { db, view, known: RwLock::default(), changed: watch::Sender::new(0) })
    }

    /// Wakes when a change began or ended.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Notes that something was asked for.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn begin(&self, new: NewOperation<'_>) -> Result<(), DbError> {
        self.db.add_operation(&new).await?;
        let operation = Operation {
            id: new.id,
            vcluster: new.vcluster,
            owner: new.owner.to_string(),
            name: new.name.to_string(),
            action: new.action.to_owned(),
            actor: new.actor.to_string(),
            started_at: new.started_at,
            ended_at: None,
            outcome: Outcome::Running.as_str().to_owned(),
            reason: None,
            steps: Vec::new(),
        };
        self.known.write().insert(new.id, Arc::new(operation));
        self.tell();
        Ok(())
    }

    /// Takes back what did not come about.
    pub async fn forget(&self, id: OperationId) {
        self.known.write().remove(&id);
        if let Err(error) = self.db.forget_operation(id).await {
            tracing::warn!(operation = %id, error = chain(&error), "a change that did not come about stays in the history");
        }
    }

    /// A later change takes the place of one that may still run.
    pub async fn supersede(&self, id: OperationId) {
        let running = self.known.read().get(&id).is_none_or(|op| op.ended_at.is_none());
        if running {
            self.end(id, Seen { outcome: Outcome::Superseded, reason: None, steps: Vec::new() }).await;
        }
    }

    async fn end(&self, id: OperationId, seen: Seen) {
        let now = Micros::now();
        if let Err(error) = self.db.end_operation(id, seen.outcome, seen.reason.as_ref(), &seen.steps, now).await {
            // It stays open here, and the next change of the cluster tries again.
            tracing::warn!(operation = %id, error = chain(&error), "cannot note how a change ended");
            return;
        }
        {
            let mut known = self.known.write();
            if let Some(operation) = known.get_mut(&id) {
                let mut ended = Operation::clone(operation);
                ended.outcome = seen.outcome.as_str().to_owned();
                ended.reason = seen.reason;
                ended.steps = seen.steps;
                ended.ended_at = Some(now);
                *operation = Arc::new(ended);
            }
        }
        self.tell();
    }

    /// The change in force of a vcluster; while it runs its steps are those of this moment.
    #[must_use]
    pub fn newest(&self, cluster: &Cluster, spec: &VclusterSpec, now: Micros) -> Option<OperationView> {
        let operation = self.known.read().get(&spec.operation).cloned()?;
        let mut shown = operation.view(now);
        if operation.ended_at.is_none() {
            shown.steps = view::steps(cluster, spec, now);
        }
        Some(shown)
    }

    /// A vcluster's changes, the newest first.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn of_vcluster(&self, id: VclusterId) -> Result<Vec<OperationView>, DbError> {
        let rows = self.db.operations_of_vcluster(id, LIST).await?;
        Ok(self.shown(&rows))
    }

    fn shown(&self, rows: &[Operation]) -> Vec<OperationView> {
        let now = Micros::now();
        self.view.read(|cluster| {
            rows.iter()
                .map(|row| {
                    let mut shown = row.view(now);
                    if row.ended_at.is_none()
                        && let Some(spec) = cluster.spec(row.vcluster).filter(|s| s.value.operation == row.id)
                    {
                        shown.steps = view::steps(cluster, &spec.value, now);
                    }
                    shown
                })
                .collect()
        })
    }

    /// Looks at every change that runs and ends those whose end was seen.
    async fn observe(&self) {
        let open: Vec<Arc<Operation>> =
            self.known.read().values().filter(|op| op.ended_at.is_none()).cloned().collect();
        for operation in open {
            let seen = self.view.read(|cluster| judge(cluster, &operation, Micros::now()));
            if let Some(seen) = seen {
                tracing::info!(
                    operation = %operation.id, vcluster = %operation.vcluster, owner = operation.owner, name = operation.name,
                    action = operation.action, outcome = seen.outcome.as_str(), reason = seen.reason.as_ref().map(|r| r.code.as_str()),
                    "a change ended"
                );
                self.end(operation.id, seen).await;
            }
        }
    }

    /// Reads what other masters, or this one before a restart, have begun; forgets what no vcluster refers to any more.
    async fn refresh(&self) -> Result<(), DbError> {
        for operation in self.db.running_operations().await? {
            self.known.write().entry(operation.id).or_insert_with(|| Arc::new(operation));
        }
        let in_force: Vec<OperationId> = self.view.read(|cluster| cluster.specs().map(|s| s.value.operation).collect());
        for id in &in_force {
            let missing = !self.known.read().contains_key(id);
            if missing && let Some(operation) = self.db.operation(*id).await? {
                self.known.write().entry(*id).or_insert_with(|| Arc::new(operation));
            }
        }
        let in_force: std::collections::HashSet<OperationId> = in_force.into_iter().collect();
        self.known.write().retain(|id, op| op.ended_at.is_none() || in_force.contains(id));
        self.tell();
        Ok(())
    }

    /// Runs for ever.
    pub async fn run(self: Arc<Self>) {
        let mut cluster = self.view.subscribe();
        let mut own = self.subscribe();
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = refresh.tick() => {
                    if let Err(error) = self.refresh().await {
                        tracing::warn!(error = chain(&error), "cannot read the running changes");
                    }
                    // Our own news: already looked at.
                    own.mark_unchanged();
                }
                changed = cluster.changed() => if changed.is_err() { return },
                changed = own.changed() => if changed.is_err() { return },
            }
            self.observe().await;
        }
    }
}

/// Whether the cluster shows that the change has ended.
fn judge(cluster: &Cluster, operation: &Operation, now: Micros) -> Option<Seen> {
    let Some(spec) = cluster.spec(operation.vcluster) else {
        // A spec that is not there yet (just asked for) or not any more.
        let gone = operation.action == "delete" || now.millis_since(operation.started_at) > 60_000;
        let outcome = if operation.action == "delete" { Outcome::Done } else { Outcome::Superseded };
        return gone.then_some(Seen { outcome, reason: None, steps: Vec::new() });
    };
    let spec = &spec.value;
    if spec.operation != operation.id {
        // The view may be behind the request that made this one.
        let later = spec.changed_at > operation.started_at;
        return later.then_some(Seen { outcome: Outcome::Superseded, reason: None, steps: Vec::new() });
    }
    if view::is_done(cluster, spec) {
        return Some(Seen { outcome: Outcome::Done, reason: None, steps: view::steps(cluster, spec, now) });
    }
    let judged = status::of_vcluster(cluster, spec, &view::Waiting::new());
    let over = match judged.status {
        Status::Failed => true,
        Status::Degraded => spec.nodes.iter().all(|n| cluster.node(n.id).is_some_and(|p| p.plan.is_some())),
        _ => false,
    };
    (over && plans_are_of(cluster, spec)).then(|| Seen {
        outcome: Outcome::Failed,
        reason: judged.reason,
        steps: view::steps(cluster, spec, now),
    })
}

/// Whether the hosts' plans already follow from this very spec: until then reports speak of an earlier wish.
fn plans_are_of(cluster: &Cluster, spec: &VclusterSpec) -> bool {
    spec.nodes.iter().all(|node| {
        let plan = cluster.node(node.id).and_then(|placed| placed.plan.as_ref());
        plan.is_some_and(|(_, plan)| plan.value.wanted == spec.wanted && plan.value.attempt == node.attempt)
    })
}
