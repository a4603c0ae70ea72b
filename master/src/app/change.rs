//! Changes of a vcluster that is there: start, stop, scale, retry, delete.
//!
//! Each is a function from the spec as it is to the spec as it shall be; one loop reads, applies it and writes, comparing
//! revisions. What is already as asked for is answered and not written again.

use docklet_daemon::fail;
use docklet_master_db::DbError;
use docklet_master_plan::admit::{self, Refusal};
use docklet_master_plan::cluster::Cluster;
use docklet_master_plan::status;
use docklet_store::keys::Key;
use docklet_store::{Compare, Outcome, StoreError, Txn};
use docklet_types::id::{NodeId, OperationId, VclusterId};
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::port::PortMapping;
use docklet_types::spec::{NodeSpec, Usage, VclusterSpec, Wanted};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{Role, VclusterView};
use std::collections::HashSet;
use uuid::Uuid;

use super::create::{TRIES, new_node};
use super::maintenance::UnderMaintenance;
use super::vclusters::Vclusters;

/// The change of a vcluster that lost nodes with their host.
pub const MAKE_ANEW: &str = "make_anew";

/// What is asked of a vcluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start,
    Stop,
    /// To so many nodes.
    Scale(u32),
    /// Another try for the nodes that failed.
    Retry,
    /// Nodes whose host was given up for lost are made anew. Only noted here: the planner does it anyway.
    MakeAnew,
    Delete,
}

impl Action {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Scale(_) => "scale",
            Self::Retry => "retry",
            Self::MakeAnew => MAKE_ANEW,
            Self::Delete => "delete",
        }
    }
}

/// Why a change was not written.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("there is no vcluster of that name")]
    NotFound,
    #[error("the vcluster is being deleted")]
    Deleting,
    #[error("nothing of the vcluster has failed")]
    NothingFailed,
    #[error(transparent)]
    UnderMaintenance(UnderMaintenance),
    #[error(transparent)]
    Refused(Refusal),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
    #[error("a document in the store cannot be read")]
    Unreadable(#[source] serde_json::Error),
    #[error("the database does not answer")]
    Db(#[source] DbError),
}

/// A spec and what its owner holds, as read for a change.
pub(super) struct Present {
    pub(super) spec: VclusterSpec,
    revision: i64,
    pub(super) usage: Option<(Usage, i64)>,
}

impl Vclusters {
    /// Writes the change and returns how the vcluster looks then.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn change(
        &self,
        actor: &UserName,
        owner: &UserName,
        name: &VclusterName,
        action: Action,
    ) -> Result<VclusterView, ChangeError> {
        let (mut present, first) = self.decide(owner, name, action).await?;
        let id = present.spec.id;
        let mut next = Some(first);
        for _ in 0..TRIES {
            let decided = match next.take() {
                Some(decided) => decided,
                None => self.apply(action, &present).await?,
            };
            let Some(mut spec) = decided else {
                return self.by_id(id).ok_or(ChangeError::NotFound);
            };
            if begins(&present.spec, &spec) {
                self.may_begin(actor).await.map_err(ChangeError::Db)?.map_err(ChangeError::UnderMaintenance)?;
            }
            spec.generation += 1;
            spec.changed_at = Micros::now();
            spec.operation = OperationId::from_uuid(Uuid::now_v7());
            self.history.settle(present.spec.operation).await;
            self.note(actor, &spec, action.as_str()).await.map_err(ChangeError::Db)?;
            spec.admitted_at = Some(Micros::now());
            let txn = self.transaction(&spec, &present).map_err(ChangeError::Store)?;
            fail::before("change");
            match self.store.txn(txn).await {
                Ok(Outcome::Committed { revision }) => {
                    fail::after("change");
                    self.history.supersede(present.spec.operation).await;
                    self.view.reached(revision).await;
                    tracing::info!(vcluster = %id, owner = %owner, name = %name, action = action.as_str(), actor = %actor, "a change was asked for");
                    // A vcluster without any node placed may be gone already: then it looks as it did when it was asked for.
                    return Ok(self
                        .by_id(id)
                        .unwrap_or_else(|| self.view.read(|cluster| self.show(cluster, &spec, spec.changed_at))));
                }
                Ok(Outcome::Conflict) => self.history.forget(spec.operation).await,
                Err(error) => {
                    // Where it may have been written the history's observer finds out.
                    if error.had_no_effect() {
                        self.history.forget(spec.operation).await;
                    }
                    return Err(ChangeError::Store(error));
                }
            }
            present = self.in_store(id, owner).await?.ok_or(ChangeError::NotFound)?;
        }
        Err(ChangeError::Contended)
    }

    /// What is there and what it shall be, by the picture. Where that says that there is nothing to do, or that it cannot
    /// be done, it is first made sure that the picture is not behind: another master may have shown something newer.
    async fn decide(
        &self,
        owner: &UserName,
        name: &VclusterName,
        action: Action,
    ) -> Result<(Present, Option<VclusterSpec>), ChangeError> {
        let mut caught_up = false;
        loop {
            let present = self.view.read(|cluster| in_view(cluster, owner, name)).ok_or(ChangeError::NotFound);
            let decided = match present {
                Ok(present) => self.apply(action, &present).await.map(|next| (present, next)),
                Err(error) => Err(error),
            };
            if caught_up || matches!(decided, Ok((_, Some(_)))) {
                return decided;
            }
            self.catch_up(owner).await.map_err(ChangeError::Store)?;
            caught_up = true;
        }
    }

    /// Returns once the picture holds all that was written before, as far as it follows the store.
    pub(super) async fn catch_up(&self, owner: &UserName) -> Result<(), StoreError> {
        let now = self.store.revisions(&self.keys.write(&Key::Usage(owner.clone()))).await?.revision;
        self.view.caught_up(now).await;
        Ok(())
    }

    /// The spec as it shall be; `None` where it is so already.
    async fn apply(&self, action: Action, present: &Present) -> Result<Option<VclusterSpec>, ChangeError> {
        let spec = &present.spec;
        if spec.wanted == Wanted::Absent {
            return if action == Action::Delete { Ok(None) } else { Err(ChangeError::Deleting) };
        }
        let mut next = spec.clone();
        match action {
            Action::Delete => {
                next.wanted = Wanted::Absent;
                next.ports.clear();
            }
            Action::MakeAnew => {}
            Action::Stop if spec.wanted == Wanted::Stopped => return Ok(None),
            Action::Stop => next.wanted = Wanted::Stopped,
            // Whoever asks for what is wanted already, while some of it failed, asks for another try.
            Action::Start if spec.wanted == Wanted::Running => return Ok(self.again(&mut next).then_some(next)),
            Action::Start => {
                next.wanted = Wanted::Running;
                self.again(&mut next);
            }
            Action::Retry => {
                return if self.again(&mut next) { Ok(Some(next)) } else { Err(ChangeError::NothingFailed) };
            }
            Action::Scale(nodes) => return self.scaled(next, present, nodes).await,
        }
        Ok(Some(next))
    }

    /// Asks for another try of every node that failed. Whether there was any.
    fn again(&self, spec: &mut VclusterSpec) -> bool {
        self.view.read(|cluster| {
            let mut any = false;
            for node in &mut spec.nodes {
                if status::of_node(cluster, spec.wanted, cluster.node(node.id), None).status == Status::Failed {
                    node.attempt += 1;
                    any = true;
                }
            }
            any
        })
    }

    async fn scaled(
        &self,
        mut spec: VclusterSpec,
        present: &Present,
        nodes: u32,
    ) -> Result<Option<VclusterSpec>, ChangeError> {
        let wanted = usize::try_from(nodes).unwrap_or(usize::MAX);
        if wanted == spec.nodes.len() {
            return Ok(None);
        }
        if wanted < spec.nodes.len() {
            spec.nodes.truncate(wanted);
            let left: HashSet<NodeId> = spec.nodes.iter().map(|n| n.id).collect();
            spec.ports.retain(|p| left.contains(&p.node));
            return Ok(Some(spec));
        }
        let last = spec.nodes.iter().filter_map(|n| n.name.number()).max().unwrap_or(0);
        let missing = nodes.saturating_sub(u32::try_from(spec.nodes.len()).unwrap_or(u32::MAX));
        let added: Vec<_> =
            (1..=missing).map(|i| new_node(NodeName::numbered(last + i), &spec.image, spec.size)).collect();
        spec.nodes.extend(added);
        let user = self.db.user_by_name(&spec.owner).await.map_err(ChangeError::Db)?;
        let cap = user.is_none_or(|u| u.role == Role::User).then_some(&self.settings.user_cap);
        let used = present.usage.map_or_else(Usage::default, |(used, _)| used);
        admit::within_cap(cap, used, present.usage_with(&spec)).map_err(ChangeError::Refused)?;
        self.view
            .read(|cluster| {
                admit::fits_some_host(cluster, spec.size)?;
                admit::fits_network(&self.settings.policy, cluster.network(spec.id).map(|n| n.value.subnet), nodes)
            })
            .map_err(ChangeError::Refused)?;
        Ok(Some(spec))
    }

    /// Writes the spec, its ports' keys and, where the sum changes, the owner's usage.
    pub(super) fn transaction(&self, spec: &VclusterSpec, present: &Present) -> Result<Txn, StoreError> {
        let key = self.keys.write(&Key::Spec(spec.id));
        let mut txn =
            Txn::new().when(Compare::Unchanged { key: key.clone(), revision: present.revision }).put(key, spec)?;
        // The guard is written only where the sum changes.
        if Usage::of(spec) != Usage::of(&present.spec) {
            let key = self.keys.write(&Key::Usage(spec.owner.clone()));
            txn = txn
                .when(Compare::as_read(key.clone(), present.usage.map(|(_, revision)| revision)))
                .put(key, &present.usage_with(spec))?;
        }
        let port = |p: &PortMapping| self.keys.write(&Key::Port(p.protocol, p.public));
        for given_back in present.spec.ports.iter().filter(|p| !spec.ports.contains(p)) {
            txn = txn.delete(port(given_back));
        }
        for taken in spec.ports.iter().filter(|p| !present.spec.ports.contains(p)) {
            let key = port(taken);
            txn = txn.when(Compare::Absent { key: key.clone() }).put(key, &spec.id)?;
        }
        Ok(txn)
    }

    pub(super) async fn in_store(&self, id: VclusterId, owner: &UserName) -> Result<Option<Present>, ChangeError> {
        let Some(entry) = self.store.get(&self.keys.write(&Key::Spec(id))).await.map_err(ChangeError::Store)? else {
            return Ok(None);
        };
        let usage = self.store.get(&self.keys.write(&Key::Usage(owner.clone()))).await.map_err(ChangeError::Store)?;
        let usage = usage
            .map(|u| Ok((serde_json::from_slice(&u.value)?, u.revision)))
            .transpose()
            .map_err(ChangeError::Unreadable)?;
        let spec = serde_json::from_slice(&entry.value).map_err(ChangeError::Unreadable)?;
        Ok(Some(Present { spec, revision: entry.revision, usage }))
    }
}

pub(super) fn in_view(cluster: &Cluster, owner: &UserName, name: &VclusterName) -> Option<Present> {
    let spec = cluster.find(owner, name)?;
    Some(Present {
        spec: (*spec.value).clone(),
        revision: spec.revision,
        usage: cluster.usage(owner).map(|u| (*u.value, u.revision)),
    })
}

/// Whether the change asks for work that is not there yet: another node, a start, another try.
fn begins(spec: &VclusterSpec, next: &VclusterSpec) -> bool {
    let starts = spec.wanted != Wanted::Running && next.wanted == Wanted::Running;
    let tries = |next: &NodeSpec| spec.nodes.iter().find(|n| n.id == next.id).is_none_or(|n| n.attempt < next.attempt);
    starts || next.nodes.iter().any(tries)
}

impl Present {
    /// What the owner holds once the vcluster is `spec`.
    pub(super) fn usage_with(&self, spec: &VclusterSpec) -> Usage {
        let used = self.usage.map_or_else(Usage::default, |(used, _)| used);
        used.minus(Usage::of(&self.spec)).plus(Usage::of(spec))
    }
}
