//! Reading vclusters, and waiting for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use docklet_master_db::Db;
use docklet_master_plan::cluster::Cluster;
use docklet_master_plan::view;
use docklet_store::Store;
use docklet_store::keys::Keys;
use docklet_types::id::VclusterId;
use docklet_types::name::{UserName, VclusterName};
use docklet_types::spec::{Usage, VclusterSpec};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{NodeView, UsageView, VclusterView};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::Settings;
use super::history::History;
use super::images::Images;
use crate::reconcile::ClusterView;

/// Everything about vclusters: reading here, `create` and `change` in their modules.
pub struct Vclusters {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Keys,
    pub(super) view: Arc<ClusterView>,
    pub(super) db: Db,
    pub(super) images: Images,
    pub(super) history: Arc<History>,
    pub(super) settings: Settings,
    /// How vclusters looked, and when they came to: lists look at no node of those that have not changed.
    shown: RwLock<HashMap<VclusterId, (u64, VclusterView)>>,
}

/// There is no such vcluster, or it belongs to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no vcluster of that name")]
pub struct NoSuchVcluster;

/// Wakes on everything that may change how a vcluster looks.
pub struct Changes {
    cluster: watch::Receiver<i64>,
    waiting: watch::Receiver<u64>,
    history: watch::Receiver<u64>,
}

impl Changes {
    /// Returns after something changed; `false` when nothing ever will again.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            changed = self.cluster.changed() => changed.is_ok(),
            changed = self.waiting.changed() => changed.is_ok(),
            changed = self.history.changed() => changed.is_ok(),
        }
    }

    /// Like `changed`, then lets what comes close behind be part of the same news.
    pub async fn settled(&mut self, pause: Duration) -> bool {
        if !self.changed().await {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.cluster.mark_unchanged();
        self.waiting.mark_unchanged();
        self.history.mark_unchanged();
        true
    }
}

/// What came of waiting.
#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    /// It has the status, or it ended another way and nothing more happens by itself.
    Settled(Box<VclusterView>),
    /// The time is over; how it is now.
    TimedOut(Box<VclusterView>),
}

impl Vclusters {
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        keys: Keys,
        view: Arc<ClusterView>,
        db: Db,
        images: Images,
        history: Arc<History>,
        settings: Settings,
    ) -> Self {
        Self { store, keys, view, db, images, history, settings, shown: RwLock::default() }
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Subscribe before reading, so that no change falls in between.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes {
            cluster: self.view.subscribe(),
            waiting: self.view.subscribe_waiting(),
            history: self.history.subscribe(),
        }
    }

    pub(super) fn show(&self, cluster: &Cluster, spec: &VclusterSpec, now: Micros) -> VclusterView {
        let mut shown = self.show_without_operation(cluster, spec);
        shown.operation = self.history.newest(cluster, spec, now);
        shown
    }

    fn show_without_operation(&self, cluster: &Cluster, spec: &VclusterSpec) -> VclusterView {
        let Some(at) = cluster.changed_at(spec.id) else {
            return view::vcluster(cluster, spec, &self.view.waiting(spec.id));
        };
        if let Some((shown_at, shown)) = self.shown.read().get(&spec.id)
            && *shown_at == at
        {
            return shown.clone();
        }
        let shown = view::vcluster(cluster, spec, &self.view.waiting(spec.id));
        let mut all = self.shown.write();
        if all.len() > 2 * cluster.specs_count() + 100 {
            // Mostly of vclusters that are gone.
            all.clear();
        }
        all.insert(spec.id, (at, shown.clone()));
        shown
    }

    /// What decides how the vcluster looks, without looking at its nodes.
    fn mark(&self, id: VclusterId) -> Option<(Option<u64>, (bool, bool))> {
        self.view.read(|cluster| {
            let operation = cluster.spec(id)?.value.operation;
            Some((cluster.changed_at(id), self.history.mark(operation)))
        })
    }

    /// One user's vclusters, or everybody's, by owner and name.
    #[must_use]
    pub fn list(&self, owner: Option<&UserName>) -> Vec<VclusterView> {
        let now = Micros::now();
        self.view.read(|cluster| match owner {
            Some(owner) => cluster.specs_of(owner).map(|spec| self.show(cluster, &spec.value, now)).collect(),
            None => cluster.specs().map(|spec| self.show(cluster, &spec.value, now)).collect(),
        })
    }

    /// # Errors
    /// [`NoSuchVcluster`]
    pub fn get(&self, owner: &UserName, name: &VclusterName) -> Result<VclusterView, NoSuchVcluster> {
        self.view.read(|cluster| {
            let spec = cluster.find(owner, name).ok_or(NoSuchVcluster)?;
            Ok(self.show(cluster, &spec.value, Micros::now()))
        })
    }

    /// The vcluster of that id, as long as there is one.
    #[must_use]
    pub fn by_id(&self, id: VclusterId) -> Option<VclusterView> {
        self.view.read(|cluster| cluster.spec(id).map(|spec| self.show(cluster, &spec.value, Micros::now())))
    }

    /// The vcluster, and whether it is known how its change goes.
    fn with_history(&self, id: VclusterId) -> Option<(VclusterView, bool)> {
        self.view.read(|cluster| {
            let spec = &cluster.spec(id)?.value;
            let known = self.history.knows(spec.operation);
            Some((self.show(cluster, spec, Micros::now()), known))
        })
    }

    /// # Errors
    /// [`NoSuchVcluster`]
    pub fn id_of(&self, owner: &UserName, name: &VclusterName) -> Result<VclusterId, NoSuchVcluster> {
        self.view.read(|cluster| cluster.find(owner, name).map(|spec| spec.value.id)).ok_or(NoSuchVcluster)
    }

    /// # Errors
    /// [`NoSuchVcluster`]
    pub fn nodes(&self, owner: &UserName, name: &VclusterName) -> Result<Vec<NodeView>, NoSuchVcluster> {
        self.view.read(|cluster| {
            let spec = cluster.find(owner, name).ok_or(NoSuchVcluster)?;
            Ok(view::nodes(cluster, &spec.value, &self.view.waiting(spec.value.id)))
        })
    }

    /// What the user holds.
    #[must_use]
    pub fn usage(&self, owner: &UserName) -> UsageView {
        let usage = self.view.read(|cluster| cluster.usage(owner).map_or_else(Usage::default, |u| *u.value));
        view::usage(&usage)
    }

    /// Returns when the vcluster has the status, when it ended another way, or when the time is over. Nothing polls.
    ///
    /// # Errors
    /// [`NoSuchVcluster`], also when it vanishes meanwhile.
    pub async fn wait(
        &self,
        owner: &UserName,
        name: &VclusterName,
        status: Status,
        limit: Duration,
    ) -> Result<Waited, NoSuchVcluster> {
        let id = self.id_of(owner, name)?;
        let deadline = tokio::time::Instant::now() + limit;
        let mut changes = self.changes();
        let mut seen = None;
        loop {
            // Everything that changes anywhere comes by here, and most of it is about others.
            let mark = self.mark(id).ok_or(NoSuchVcluster)?;
            if seen.replace(mark) != Some(mark) {
                let (shown, known) = self.with_history(id).ok_or(NoSuchVcluster)?;
                // What another master was asked for a moment ago is still looked up: then nothing has ended.
                if shown.status == status || (known && ended_otherwise(&shown)) {
                    return Ok(Waited::Settled(Box::new(shown)));
                }
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return Ok(Waited::TimedOut(Box::new(self.by_id(id).ok_or(NoSuchVcluster)?))),
            }
        }
    }

    /// Returns `true` when nothing is left of that vcluster, `false` when the time is over.
    pub async fn wait_absent(&self, id: VclusterId, limit: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + limit;
        let mut changes = self.changes();
        loop {
            if self.view.read(|cluster| cluster.spec(id).is_none()) {
                return true;
            }
            if !matches!(tokio::time::timeout_at(deadline, changes.changed()).await, Ok(true)) {
                return false;
            }
        }
    }
}

/// Whether it will not reach another status by itself: right after a request the hosts' old reports still tell of an
/// earlier failure, so the change itself must have ended.
fn ended_otherwise(shown: &VclusterView) -> bool {
    let over = shown.operation.as_ref().is_none_or(|operation| operation.outcome != "running");
    over && (shown.status == Status::Failed || (shown.status == Status::Stopped))
}
