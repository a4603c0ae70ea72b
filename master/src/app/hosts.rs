//! Hosts as administrators see them.

use std::sync::Arc;

use docklet_master_plan::view;
use docklet_types::name::{HostName, UserName, VclusterName};
use docklet_types::view::{HostView, NodeView};

use crate::reconcile::ClusterView;

/// A node on a host, with whom it belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct HostNode {
    pub owner: UserName,
    pub vcluster: VclusterName,
    pub node: NodeView,
}

/// See the module.
pub struct Hosts {
    view: Arc<ClusterView>,
}

impl Hosts {
    #[must_use]
    pub fn new(view: Arc<ClusterView>) -> Self {
        Self { view }
    }

    /// All hosts that ever described themselves, by name.
    #[must_use]
    pub fn list(&self) -> Vec<HostView> {
        self.view.read(|cluster| cluster.hosts().filter_map(|(name, host)| view::host(cluster, name, host)).collect())
    }

    #[must_use]
    pub fn get(&self, name: &HostName) -> Option<HostView> {
        self.view.read(|cluster| view::host(cluster, name, cluster.host(name)?))
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
