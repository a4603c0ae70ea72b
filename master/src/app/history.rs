//! The history of changes: a row when something is asked for, its outcome when the cluster shows it.
//!
//! The observer takes no input: woken by the view of the cluster, it looks at the running changes of the vclusters that
//! look different, and now and then at all of them, and ends those whose end was seen. The newest change of every vcluster
//! stays in memory, so that lists need no query per row.
//!
//! Every master observes every change, whoever was asked for it: one that dies leaves nothing open. The first to note an
//! end is right; the others take over what it noted.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

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

use super::change::MAKE_ANEW;
use crate::http::problem::chain;
use crate::reconcile::ClusterView;

/// How often all changes that another master began are looked for. That of a spec is looked up as soon as the spec is seen.
const REFRESH: Duration = Duration::from_secs(30);
/// So long after it was noted a change is in the store, or never will be.
const LATE: Duration = Duration::from_secs(60);
/// Rows that a list shows at most.
pub const LIST: i64 = 50;

/// See the module.
pub struct History {
    db: Db,
    view: Arc<ClusterView>,
    /// The changes in force, and all that run.
    known: RwLock<Book>,
    /// Changes in force that the database does not have: it was restored from before them.
    lost: RwLock<HashSet<OperationId>>,
    changed: watch::Sender<u64>,
}

/// A change and since when this master knows of it: other masters' clocks are not asked.
#[derive(Clone)]
struct Known {
    operation: Arc<Operation>,
    since: Instant,
}

impl Known {
    fn new(operation: Operation) -> Self {
        Self { operation: Arc::new(operation), since: Instant::now() }
    }
}

/// Changes by id, and which of a vcluster's still run.
#[derive(Default)]
struct Book {
    all: HashMap<OperationId, Known>,
    open: HashMap<VclusterId, HashSet<OperationId>>,
}

impl Book {
    fn get(&self, id: OperationId) -> Option<&Known> {
        self.all.get(&id)
    }

    fn contains(&self, id: OperationId) -> bool {
        self.all.contains_key(&id)
    }

    fn put(&mut self, known: Known) {
        let (id, vcluster) = (known.operation.id, known.operation.vcluster);
        if known.operation.ended_at.is_none() {
            self.open.entry(vcluster).or_default().insert(id);
        } else {
            self.close(vcluster, id);
        }
        self.all.insert(id, known);
    }

    fn put_if_new(&mut self, operation: Operation) {
        if !self.contains(operation.id) {
            self.put(Known::new(operation));
        }
    }

    fn remove(&mut self, id: OperationId) {
        if let Some(known) = self.all.remove(&id) {
            self.close(known.operation.vcluster, id);
        }
    }

    fn close(&mut self, vcluster: VclusterId, id: OperationId) {
        if let Some(open) = self.open.get_mut(&vcluster) {
            open.remove(&id);
            if open.is_empty() {
                self.open.remove(&vcluster);
            }
        }
    }

    /// Those that run: of these vclusters, or of all.
    fn running(&self, of: Option<&HashSet<VclusterId>>) -> Vec<Known> {
        let ids: Vec<&OperationId> = match of {
            Some(of) => of.iter().filter_map(|vcluster| self.open.get(vcluster)).flatten().collect(),
            None => self.open.values().flatten().collect(),
        };
        ids.into_iter().filter_map(|id| self.all.get(id)).cloned().collect()
    }

    /// Forgets those that have ended and are not in force.
    fn keep(&mut self, in_force: &HashSet<OperationId>) {
        self.all.retain(|id, known| known.operation.ended_at.is_none() || in_force.contains(id));
    }
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
        Arc::new(Self { db, view, known: RwLock::default(), lost: RwLock::default(), changed: watch::Sender::new(0) })
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
        self.known.write().put(Known::new(operation));
        self.tell();
        Ok(())
    }

    /// Takes back what did not come about.
    pub async fn forget(&self, id: OperationId) {
        self.known.write().remove(id);
        if let Err(error) = self.db.forget_operation(id).await {
            tracing::warn!(operation = %id, error = chain(&error), "a change that did not come about stays in the history");
        }
    }

    /// A later change takes the place of one that may still run.
    pub async fn supersede(&self, id: OperationId) {
        let running = self.known.read().get(id).is_none_or(|known| known.operation.ended_at.is_none());
        if running {
            self.end(id, Seen { outcome: Outcome::Superseded, reason: None, steps: Vec::new() }).await;
        }
    }

    async fn end(&self, id: OperationId, seen: Seen) {
        match self.note_end(id, seen).await {
            Ok(()) => self.tell(),
            // It stays open here, and the next change of the cluster tries again.
            Err(error) => tracing::warn!(operation = %id, error = chain(&error), "cannot note how a change ended"),
        }
    }

    async fn note_end(&self, id: OperationId, seen: Seen) -> Result<(), DbError> {
        let now = Micros::now();
        if !self.db.end_operation(id, seen.outcome, seen.reason.as_ref(), &seen.steps, now).await? {
            // Another master was first, or took it back.
            let noted = self.db.operation(id).await?;
            let mut known = self.known.write();
            match noted {
                Some(operation) => known.put(Known::new(operation)),
                None => known.remove(id),
            }
            return Ok(());
        }
        let mut known = self.known.write();
        if let Some(Known { operation, since }) = known.get(id).cloned() {
            tracing::info!(
                operation = %id, vcluster = %operation.vcluster, owner = operation.owner, name = operation.name,
                action = operation.action, outcome = seen.outcome.as_str(), reason = seen.reason.as_ref().map(|r| r.code.as_str()),
                "a change ended"
            );
            let mut ended = Operation::clone(&operation);
            ended.outcome = seen.outcome.as_str().to_owned();
            ended.reason = seen.reason;
            ended.steps = seen.steps;
            ended.ended_at = Some(now);
            known.put(Known { operation: Arc::new(ended), since });
        }
        Ok(())
    }

    /// Whether it is known what became of a spec's change so far, or that nobody knows.
    #[must_use]
    pub fn knows(&self, id: OperationId) -> bool {
        self.known.read().contains(id) || self.lost.read().contains(&id)
    }

    /// Changes whenever [`Self::knows`] does or the change has ended.
    #[must_use]
    pub fn mark(&self, id: OperationId) -> (bool, bool) {
        (self.knows(id), self.known.read().get(id).is_some_and(|known| known.operation.ended_at.is_some()))
    }

    /// The change in force of a vcluster; while it runs its steps are those of this moment.
    #[must_use]
    pub fn newest(&self, cluster: &Cluster, spec: &VclusterSpec, now: Micros) -> Option<OperationView> {
        let operation = self.known.read().get(spec.operation)?.operation.clone();
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

    /// Looks at the changes that run and ends those whose end was seen: of these vclusters, or of all.
    async fn observe(&self, of: Option<&HashSet<VclusterId>>) {
        let open = self.known.read().running(of);
        for known in open {
            self.observe_one(known).await;
        }
    }

    async fn observe_one(&self, Known { operation, since }: Known) {
        let seen = self.view.read(|cluster| judge(cluster, &operation, since.elapsed(), Micros::now()));
        if let Some(seen) = seen {
            self.end(operation.id, seen).await;
        }
    }

    /// Notes the end of a change that was seen, before another takes its place: what is done was not superseded.
    pub async fn settle(&self, id: OperationId) {
        let open = self.known.read().get(id).filter(|known| known.operation.ended_at.is_none()).cloned();
        if let Some(known) = open {
            self.observe_one(known).await;
        }
    }

    /// Reads what other masters, or this one before a restart, have begun; forgets what no vcluster refers to any more.
    async fn refresh(&self) -> Result<(), DbError> {
        for operation in self.db.running_operations().await? {
            self.known.write().put_if_new(operation);
        }
        self.catch_up(None).await?;
        let in_force: HashSet<OperationId> =
            self.view.read(|cluster| cluster.specs().map(|s| s.value.operation).collect());
        self.known.write().keep(&in_force);
        self.lost.write().retain(|id| in_force.contains(id));
        self.tell();
        Ok(())
    }

    /// Looks up changes in force that another master was asked for. Their rows were there before the specs.
    async fn catch_up(&self, of: Option<&HashSet<VclusterId>>) -> Result<(), DbError> {
        let missing: Vec<OperationId> = self.view.read(|cluster| {
            let (known, lost) = (self.known.read(), self.lost.read());
            let unknown = |id: &OperationId| !known.contains(*id) && !lost.contains(id);
            match of {
                Some(ids) => {
                    let specs = ids.iter().filter_map(|id| cluster.spec(*id));
                    // Nobody asked for what is kept warm.
                    let asked = specs.filter(|spec| spec.value.warm.is_none());
                    asked.map(|spec| spec.value.operation).filter(unknown).collect()
                }
                None => cluster.specs().map(|spec| spec.value.operation).filter(unknown).collect(),
            }
        });
        for id in &missing {
            match self.db.operation(*id).await? {
                Some(operation) => self.known.write().put_if_new(operation),
                None => {
                    self.lost.write().insert(*id);
                }
            }
        }
        if !missing.is_empty() {
            self.tell();
        }
        Ok(())
    }

    /// Runs for ever.
    pub async fn run(self: Arc<Self>) {
        let mut cluster = self.view.subscribe();
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Up to where the count of the cluster's changes was looked at.
        let mut seen = 0;
        loop {
            tokio::select! {
                _ = refresh.tick() => {
                    self.told(self.refresh().await);
                    self.observe(None).await;
                }
                changed = cluster.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let (clock, ids): (u64, HashSet<VclusterId>) =
                        self.view.read(|cluster| (cluster.clock(), cluster.changed_since(seen).collect()));
                    seen = clock;
                    // What could not be looked up is at the next refresh.
                    self.told(self.catch_up(Some(&ids)).await);
                    self.observe(Some(&ids)).await;
                }
            }
        }
    }

    fn told(&self, read: Result<(), DbError>) {
        if let Err(error) = read {
            tracing::warn!(error = chain(&error), "cannot read the running changes");
        }
    }
}

/// Whether the cluster shows that the change has ended. `age`: how long it has been known.
fn judge(cluster: &Cluster, operation: &Operation, age: Duration, now: Micros) -> Option<Seen> {
    let Some(spec) = cluster.spec(operation.vcluster) else {
        // A spec that is not there yet (just asked for) or not any more.
        let gone = operation.action == "delete" || age > LATE;
        let outcome = if operation.action == "delete" { Outcome::Done } else { Outcome::Superseded };
        return gone.then_some(Seen { outcome, reason: None, steps: Vec::new() });
    };
    let spec = &spec.value;
    if spec.operation != operation.id {
        // The view may be behind the request that made this one. Whoever asked for a later change has noted the end of
        // this one, or died before it could.
        return (age > LATE).then_some(Seen { outcome: Outcome::Superseded, reason: None, steps: Vec::new() });
    }
    if view::is_done(cluster, spec) {
        // Done, and yet something is gone that nobody brings back.
        let reason = (operation.action == MAKE_ANEW).then(|| {
            Reason::new(
                "node_lost",
                "A host was given up for lost. The nodes that were on it are made anew from their image; what was on their disks is gone.",
            )
        });
        return Some(Seen { outcome: Outcome::Done, reason, steps: view::steps_to_the_end(cluster, spec, now) });
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
