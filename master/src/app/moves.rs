//! Nodes that an administrator wants on another host, and hosts that an administrator gives up for lost.

use std::sync::Arc;

use docklet_master_plan::cluster::Cluster;
use docklet_master_plan::moving::needs_btrfs;
use docklet_master_plan::view;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::id::VclusterId;
use docklet_types::moves::{Lost, Move, Stage};
use docklet_types::name::{HostName, NodeName, UserName, VclusterName};
use docklet_types::report::Reason;
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_types::view::NodeView;

use super::change::Action;
use super::create::TRIES;
use super::hosts::HostError;
use super::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::problem::chain;
use crate::reconcile::ClusterView;

/// Nodes in one transaction, far below etcd's limit.
const BATCH: usize = 40;

/// Why nothing is moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("there is no vcluster of that name")]
    NoVcluster,
    #[error("there is no node of that name")]
    NoNode,
    #[error("there is no host of that name")]
    NoHost(HostName),
    #[error("the node has no host yet")]
    NotPlaced(NodeName),
    #[error("the node is already on its way")]
    UnderWay(NodeName, HostName),
    #[error("the vcluster is being deleted")]
    Deleting,
    #[error("{}", .0.message)]
    NeedsBtrfs(Reason),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
}

/// See the module.
pub struct Moves {
    store: Arc<dyn Store>,
    keys: Keys,
    view: Arc<ClusterView>,
    vclusters: Arc<Vclusters>,
}

/// A wish as it shall be in the store; `None` takes it back.
struct Wish {
    key: String,
    revision: Option<i64>,
    doc: Option<Move>,
}

impl Moves {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Keys, view: Arc<ClusterView>, vclusters: Arc<Vclusters>) -> Self {
        Self { store, keys, view, vclusters }
    }

    /// Asks for a node, or all of a vcluster's, to be on a host. What is there already needs nothing.
    ///
    /// # Errors
    /// See [`MoveError`]: then nothing, or where the store fails in between a part, was asked for.
    pub async fn ask(
        &self,
        actor: &Actor,
        owner: &UserName,
        name: &VclusterName,
        node: Option<&NodeName>,
        to: &HostName,
    ) -> Result<Vec<NodeView>, MoveError> {
        for _ in 0..TRIES {
            let (id, spec_revision, wishes) =
                self.view.read(|cluster| self.wishes(cluster, actor, owner, name, node, to))?;
            let mut conflict = false;
            for batch in wishes.chunks(BATCH) {
                let unchanged = Compare::Unchanged { key: self.keys.write(&Key::Spec(id)), revision: spec_revision };
                let mut txn = Txn::new().when(unchanged);
                for wish in batch {
                    txn = txn.when(Compare::as_read(&wish.key, wish.revision));
                    txn = match &wish.doc {
                        Some(doc) => txn.put(&wish.key, doc).map_err(MoveError::Store)?,
                        None => txn.delete(&wish.key),
                    };
                }
                match self.store.txn(txn).await.map_err(MoveError::Store)? {
                    Outcome::Committed { revision } => {
                        self.view.reached(revision).await;
                    }
                    Outcome::Conflict => conflict = true,
                }
            }
            if !conflict {
                tracing::info!(owner = %owner, name = %name, node = node.map(ToString::to_string), to = %to, actor = %actor.name(), nodes = wishes.len(), "nodes are to move");
                return self.nodes(owner, name, node);
            }
            let now = self.store.list(&self.keys.write(&Key::Spec(id))).await.map_err(MoveError::Store)?.revision;
            self.view.reached(now).await;
        }
        Err(MoveError::Contended)
    }

    fn wishes(
        &self,
        cluster: &Cluster,
        actor: &Actor,
        owner: &UserName,
        name: &VclusterName,
        node: Option<&NodeName>,
        to: &HostName,
    ) -> Result<(VclusterId, i64, Vec<Wish>), MoveError> {
        let spec = cluster.find(owner, name).ok_or(MoveError::NoVcluster)?;
        let target = cluster.host(to).filter(|h| h.report.is_some()).ok_or_else(|| MoveError::NoHost(to.clone()))?;
        if spec.value.wanted == Wanted::Absent {
            return Err(MoveError::Deleting);
        }
        let meant: Vec<_> = spec.value.nodes.iter().filter(|n| node.is_none_or(|name| n.name == *name)).collect();
        if node.is_some() && meant.is_empty() {
            return Err(MoveError::NoNode);
        }
        let mut wishes = Vec::new();
        for node in meant {
            let home = cluster.node(node.id).and_then(|p| p.plan.as_ref()).map(|(host, _)| host);
            let home = home.ok_or_else(|| MoveError::NotPlaced(node.name.clone()))?;
            let present = cluster.moving(node.id);
            let under_way = present.filter(|m| m.value.stage.is_under_way()).and_then(|m| m.value.trip.as_ref());
            match under_way {
                Some(trip) if trip.to == *to => continue,
                Some(trip) => return Err(MoveError::UnderWay(node.name.clone(), trip.to.clone())),
                None => {}
            }
            let (key, revision) = (self.keys.write(&Key::Move(node.id)), present.map(|m| m.revision));
            if home == to {
                if present.is_some() {
                    wishes.push(Wish { key, revision, doc: None });
                }
                continue;
            }
            for (name, host) in [(home, cluster.host(home)), (to, Some(target))] {
                if host.is_some_and(|h| !h.can_move()) {
                    return Err(MoveError::NeedsBtrfs(needs_btrfs(name)));
                }
            }
            let doc = Move {
                node: node.id,
                vcluster: spec.value.id,
                wanted: Some(to.clone()),
                actor: Some(actor.name().clone()),
                stage: Stage::Waiting,
                trip: None,
                reason: None,
            };
            wishes.push(Wish { key, revision, doc: Some(doc) });
        }
        Ok((spec.value.id, spec.revision, wishes))
    }

    fn nodes(
        &self,
        owner: &UserName,
        name: &VclusterName,
        node: Option<&NodeName>,
    ) -> Result<Vec<NodeView>, MoveError> {
        self.view.read(|cluster| {
            let spec = cluster.find(owner, name).ok_or(MoveError::NoVcluster)?;
            let all = view::nodes(cluster, &spec.value, &self.view.waiting(spec.value.id));
            Ok(all.into_iter().filter(|n| node.is_none_or(|name| n.name == name.as_str())).collect())
        })
    }

    /// Takes an operator's word that a host is gone with everything on it: its nodes are made anew on others, from their
    /// images, with their names and addresses. Should it come back, it removes what it still holds.
    ///
    /// # Errors
    /// The host is not known or is alive; or the store does not take it.
    pub async fn give_up(&self, actor: &Actor, name: &HostName) -> Result<(), HostError> {
        let key = self.keys.write(&Key::Host(name.clone()));
        for _ in 0..TRIES {
            let host = self.view.read(|cluster| cluster.host(name).cloned()).ok_or(HostError::NotFound)?;
            let report = host.report.ok_or(HostError::NotFound)?;
            if host.alive {
                return Err(HostError::Alive);
            }
            let now = Micros::now();
            let lost = Lost { number: u64::try_from(now.0).unwrap_or(0), actor: actor.name().clone(), at: now };
            let (word, counter) =
                (self.keys.write(&Key::Lost(name.clone())), self.keys.write(&Key::HostAlloc(name.clone())));
            let txn = Txn::new()
                .when(Compare::Unchanged { key: key.clone(), revision: report.revision })
                .when(Compare::Absent { key: self.keys.write(&Key::Alive(name.clone())) })
                // Nothing was placed since the view was read, and whoever is about to is told so.
                .when(Compare::as_read(&counter, host.alloc_revision))
                .put(&word, &lost)
                .map_err(HostError::Store)?
                // It stays joined: its certificate is how it reads the word, should it come back.
                .delete(&key)
                .delete(&counter)
                .delete(self.keys.write(&Key::HostSettings(name.clone())));
            let concerned = self.view.read(|cluster| owners(cluster, name));
            if let Outcome::Committed { revision } = self.store.txn(txn).await.map_err(HostError::Store)? {
                tracing::warn!(host = %name, actor = %actor.name(), nodes = host.nodes.len(), "a host was given up for lost; its nodes are made anew");
                self.view.reached(revision).await;
                self.note(actor, concerned).await;
                return Ok(());
            }
            let now = self.store.list(&key).await.map_err(HostError::Store)?.revision;
            self.view.reached(now).await;
        }
        Err(HostError::Contended)
    }

    /// Says in the history of each vcluster what became of its nodes.
    async fn note(&self, actor: &Actor, concerned: Vec<(UserName, VclusterName)>) {
        for (owner, name) in concerned {
            if let Err(error) = self.vclusters.change(actor.name(), &owner, &name, Action::MakeAnew).await {
                tracing::warn!(owner = %owner, name = %name, error = chain(&error), "a vcluster's history lacks that nodes of it were lost");
            }
        }
    }
}

/// The vclusters with nodes on a host.
fn owners(cluster: &Cluster, host: &HostName) -> Vec<(UserName, VclusterName)> {
    let Some(host) = cluster.host(host) else { return Vec::new() };
    let homes = host.nodes.iter().filter_map(|id| cluster.node(*id)?.plan.as_ref().map(|(_, p)| p.value.vcluster));
    let mut ids: Vec<VclusterId> = homes.collect();
    ids.sort();
    ids.dedup();
    let specs = ids.into_iter().filter_map(|id| cluster.spec(id)).filter(|s| s.value.wanted != Wanted::Absent);
    specs.map(|s| (s.value.owner.clone(), s.value.name.clone())).collect()
}
