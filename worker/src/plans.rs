//! The plans of this host, as a view that a [`docklet_store::mirror::Mirror`] keeps. It decodes, and remembers which
//! objects changed; it decides nothing.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use docklet_store::keys::{Key, Keys};
use docklet_store::mirror::View;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::moves::Lost;
use docklet_types::name::HostName;
use docklet_types::plan::{NodePlan, VclusterPlan};
use serde::de::DeserializeOwned;

struct Held<T> {
    plan: Arc<T>,
    /// 0 where it came from the local copy.
    revision: i64,
}

/// See the module.
pub struct Plans {
    keys: Keys,
    host: HostName,
    nodes: HashMap<NodeId, Held<NodePlan>>,
    vclusters: HashMap<VclusterId, Held<VclusterPlan>>,
    lost: Option<u64>,
    /// Keys whose documents make no sense to this version, with the revision that was complained about.
    unreadable: HashMap<String, i64>,
    changed: Changes,
}

/// Objects whose plans came, changed or went since last asked.
#[derive(Debug, Default)]
pub struct Changes {
    pub nodes: HashSet<NodeId>,
    pub vclusters: HashSet<VclusterId>,
}

impl Plans {
    /// Begins with the plans of the local copy; all of them count as changed.
    #[must_use]
    pub fn new(keys: Keys, host: HostName, nodes: Vec<Arc<NodePlan>>, vclusters: Vec<Arc<VclusterPlan>>) -> Self {
        let changed = Changes {
            nodes: nodes.iter().map(|p| p.id).collect(),
            vclusters: vclusters.iter().map(|p| p.id).collect(),
        };
        Self {
            keys,
            host,
            nodes: nodes.into_iter().map(|plan| (plan.id, Held { plan, revision: 0 })).collect(),
            vclusters: vclusters.into_iter().map(|plan| (plan.id, Held { plan, revision: 0 })).collect(),
            lost: None,
            unreadable: HashMap::new(),
            changed,
        }
    }

    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<Arc<NodePlan>> {
        self.nodes.get(&id).map(|h| h.plan.clone())
    }

    #[must_use]
    pub fn vcluster(&self, id: VclusterId) -> Option<Arc<VclusterPlan>> {
        self.vclusters.get(&id).map(|h| h.plan.clone())
    }

    /// The number under which an operator gave this host up for lost.
    #[must_use]
    pub const fn lost(&self) -> Option<u64> {
        self.lost
    }

    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changed)
    }
}

/// Puts a document in its place; whether something changed. One that cannot be read leaves the older one in force.
fn put<I: Copy + Eq + Hash, T: DeserializeOwned>(
    held: &mut HashMap<I, Held<T>>,
    id: I,
    id_of: impl Fn(&T) -> I,
    value: &[u8],
    revision: i64,
) -> Result<bool, String> {
    if held.get(&id).is_some_and(|h| h.revision == revision) {
        return Ok(false);
    }
    let plan: T = serde_json::from_slice(value).map_err(|e| e.to_string())?;
    if id_of(&plan) != id {
        return Err("its id is not the key's".to_owned());
    }
    held.insert(id, Held { plan: Arc::new(plan), revision });
    Ok(true)
}

impl View for Plans {
    fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: i64) {
        let outcome = match (self.keys.read(key), value) {
            (Some(Key::NodePlan(host, id)), Some(value)) if host == self.host => {
                put(&mut self.nodes, id, |p| p.id, value, revision).map(|changed| {
                    if changed {
                        self.changed.nodes.insert(id);
                    }
                })
            }
            (Some(Key::VclusterPlan(host, id)), Some(value)) if host == self.host => {
                put(&mut self.vclusters, id, |p| p.id, value, revision).map(|changed| {
                    if changed {
                        self.changed.vclusters.insert(id);
                    }
                })
            }
            (Some(Key::Lost(host)), Some(value)) if host == self.host => serde_json::from_slice::<Lost>(value)
                .map(|lost| self.lost = Some(lost.number))
                .map_err(|e| e.to_string()),
            (Some(Key::Lost(_)), None) => {
                self.lost = None;
                Ok(())
            }
            (Some(Key::NodePlan(_, id)), None) => {
                if self.nodes.remove(&id).is_some() {
                    self.changed.nodes.insert(id);
                }
                Ok(())
            }
            (Some(Key::VclusterPlan(_, id)), None) => {
                if self.vclusters.remove(&id).is_some() {
                    self.changed.vclusters.insert(id);
                }
                Ok(())
            }
            _ => Ok(()),
        };
        match outcome {
            Ok(()) => {
                self.unreadable.remove(key);
            }
            Err(error) => {
                if self.unreadable.insert(key.to_owned(), revision) != Some(revision) {
                    tracing::error!(key, error, "a plan cannot be read; the one before stays in force");
                }
            }
        }
    }

    fn keys(&self) -> Vec<String> {
        let nodes = self.nodes.keys().map(|id| self.keys.write(&Key::NodePlan(self.host.clone(), *id)));
        let vclusters = self.vclusters.keys().map(|id| self.keys.write(&Key::VclusterPlan(self.host.clone(), *id)));
        let lost = self.lost.map(|_| self.keys.write(&Key::Lost(self.host.clone())));
        nodes.chain(vclusters).chain(lost).chain(self.unreadable.keys().cloned()).collect()
    }
}
