//! Hosts as administrators see them, and what they decide about them.

use std::sync::Arc;

use docklet_master_plan::view;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::host::HostSettings;
use docklet_types::label::{self, LabelText, Labels};
use docklet_types::name::{HostName, UserName, VclusterName};
use docklet_types::view::{ChangeHost, HostView, NodeView};

use super::create::{FieldError, TRIES};
use crate::auth::Actor;
use crate::reconcile::ClusterView;

/// More is a mistake in a script sooner than a wish.
const MAX_LABELS: usize = 64;

/// Why nothing was decided about a host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("there is no host of that name")]
    NotFound,
    #[error("the host is alive")]
    Alive,
    #[error("nodes are placed on the host")]
    HasNodes(u32),
    #[error(transparent)]
    Field(FieldError),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
}

/// The labels as they are to be.
fn relabelled(old: &Labels, change: &ChangeHost) -> Result<Labels, HostError> {
    let wrong = |e: label::LabelError| HostError::Field(FieldError::new("labels", e));
    let mut labels = old.clone();
    for (key, value) in &change.labels {
        let key = key.parse::<LabelText>().map_err(wrong)?;
        match value {
            Some(value) => labels.insert(key, value.parse().map_err(wrong)?),
            None => labels.remove(&key),
        };
    }
    if labels.len() > MAX_LABELS {
        let message = format!("a host has at most {MAX_LABELS} labels");
        return Err(HostError::Field(FieldError::new("labels", message)));
    }
    Ok(labels)
}

/// A node on a host, with whom it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct HostNode {
    pub owner: UserName,
    pub vcluster: VclusterName,
    pub node: NodeView,
}

/// See the module.
pub struct Hosts {
    store: Arc<dyn Store>,
    keys: Keys,
    view: Arc<ClusterView>,
}

impl Hosts {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Keys, view: Arc<ClusterView>) -> Self {
        Self { store, keys, view }
    }

    /// All hosts that ever described themselves, by name.
    #[must_use]
    pub fn list(&self) -> Vec<HostView> {
        self.view.read(|cluster| {
            let hosts = cluster.hosts();
            hosts.filter_map(|(name, host)| view::host(cluster, name, host, |id| self.view.waiting(id))).collect()
        })
    }

    #[must_use]
    pub fn get(&self, name: &HostName) -> Option<HostView> {
        self.view.read(|cluster| view::host(cluster, name, cluster.host(name)?, |id| self.view.waiting(id)))
    }

    /// Changes what is asked for, and nothing where it is so already.
    ///
    /// # Errors
    /// The host is not known, or the store does not take it.
    pub async fn change(&self, actor: &Actor, name: &HostName, change: &ChangeHost) -> Result<HostView, HostError> {
        let key = self.keys.write(&Key::HostSettings(name.clone()));
        for _ in 0..TRIES {
            let shown = self.get(name).ok_or(HostError::NotFound)?;
            let settings = self.view.read(|cluster| cluster.host(name).and_then(|h| h.settings.clone()));
            let old = settings.as_ref().map_or_else(HostSettings::default, |s| (*s.value).clone());
            let labels = relabelled(&old.labels, change)?;
            let new = HostSettings {
                cordoned: change.cordoned.unwrap_or(old.cordoned),
                draining: change.draining.unwrap_or(old.draining),
                labels,
            };
            if new == old {
                return Ok(shown);
            }
            let unchanged = Compare::as_read(&key, settings.map(|s| s.revision));
            let txn = Txn::new().when(unchanged).put(&key, &new).map_err(HostError::Store)?;
            if let Outcome::Committed { revision } = self.store.txn(txn).await.map_err(HostError::Store)? {
                tracing::info!(host = %name, actor = %actor.name(), cordoned = new.cordoned, draining = new.draining, labels = label::listed(&new.labels), "host changed");
                self.view.reached(revision).await;
                return self.get(name).ok_or(HostError::NotFound);
            }
            self.catch_up(&key).await?;
        }
        Err(HostError::Contended)
    }

    /// Forgets a host that is gone and holds nothing. To come back it must join again.
    ///
    /// # Errors
    /// The host is not known, is alive, or has nodes; or the store does not take it.
    pub async fn remove(&self, actor: &Actor, name: &HostName) -> Result<(), HostError> {
        let key = self.keys.write(&Key::Host(name.clone()));
        for _ in 0..TRIES {
            let host = self.view.read(|cluster| cluster.host(name).cloned()).ok_or(HostError::NotFound)?;
            let report = host.report.ok_or(HostError::NotFound)?;
            if host.alive {
                return Err(HostError::Alive);
            }
            // A plan that is there still waits for the host's word.
            let plans = self.store.list(&self.keys.plans_of(name)).await.map_err(HostError::Store)?;
            if !plans.entries.is_empty() {
                return Err(HostError::HasNodes(u32::try_from(host.nodes.len()).unwrap_or(u32::MAX)));
            }
            let alive = self.keys.write(&Key::Alive(name.clone()));
            let counter = self.keys.write(&Key::HostAlloc(name.clone()));
            let txn = Txn::new()
                .when(Compare::Unchanged { key: key.clone(), revision: report.revision })
                .when(Compare::Absent { key: alive })
                // Nothing was placed since the view was read.
                .when(Compare::as_read(&counter, host.alloc_revision))
                .delete(&key)
                .delete(&counter)
                // Its certificate is good for nothing from here on.
                .delete(self.keys.write(&Key::Joined(name.clone())))
                .delete(self.keys.write(&Key::HostSettings(name.clone())));
            if let Outcome::Committed { revision } = self.store.txn(txn).await.map_err(HostError::Store)? {
                tracing::info!(host = %name, actor = %actor.name(), "host removed");
                self.view.reached(revision).await;
                return Ok(());
            }
            self.catch_up(&key).await?;
        }
        Err(HostError::Contended)
    }

    /// Waits until the view is no older than the store is now.
    async fn catch_up(&self, key: &str) -> Result<(), HostError> {
        let now = self.store.list(key).await.map_err(HostError::Store)?.revision;
        self.view.reached(now).await;
        Ok(())
    }

    /// The nodes planned on a host, by owner, vcluster and name.
    #[must_use]
    pub fn nodes(&self, name: &HostName) -> Vec<HostNode> {
        let mut found: Vec<HostNode> = self.view.read(|cluster| {
            let Some(host) = cluster.host(name) else { return Vec::new() };
            let mut vclusters: Vec<_> = host
                .nodes
                .iter()
                .filter_map(|id| cluster.node(*id)?.plan.as_ref().map(|(_, plan)| plan.value.vcluster))
                .collect();
            vclusters.sort();
            vclusters.dedup();
            vclusters
                .into_iter()
                .filter_map(|id| cluster.spec(id))
                .flat_map(|spec| {
                    let spec = &spec.value;
                    view::nodes(cluster, spec, &self.view.waiting(spec.id))
                        .into_iter()
                        .filter(|node| node.host.as_deref() == Some(name.as_str()))
                        .map(|node| HostNode { owner: spec.owner.clone(), vcluster: spec.name.clone(), node })
                })
                .collect()
        });
        found.sort_by(|a, b| (&a.owner, &a.vcluster, &a.node.name).cmp(&(&b.owner, &b.vcluster, &b.node.name)));
        found
    }
}
