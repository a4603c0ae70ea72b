//! Where nodes are: from the names in a host name to a node's id and host.
//!
//! They lead to ids, which are never reused: a route that is a moment old reaches the node that was meant or none, never
//! its successor of the same name.

use std::net::SocketAddr;

use docklet_types::id::NodeId;
use docklet_types::name::{HostName, NodeName, UserName, VclusterName};

use crate::reconcile::ClusterView;

/// One node's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteTarget {
    pub node: NodeId,
    pub host: HostName,
    /// Where masters of other hosts reach the worker there, as far as it has said so.
    pub agent: Option<SocketAddr>,
}

/// The names of one node, from the owner's down.
pub type RouteName = (UserName, VclusterName, NodeName);

/// Where the proxy looks nodes up.
pub trait Routes: Send + Sync + 'static {
    /// Where a node is that has a place, whether it runs or not.
    fn find(&self, name: &RouteName) -> Option<RouteTarget>;
}

/// In the picture of the cluster, which has all of it: a table apart would be made anew with every change of any node.
impl Routes for ClusterView {
    fn find(&self, (owner, vcluster, node): &RouteName) -> Option<RouteTarget> {
        self.read(|cluster| {
            let (node, host) = cluster.route(owner, vcluster, node)?;
            let agent = cluster.host(&host).and_then(|h| h.report.as_ref()).and_then(|r| r.value.agent());
            Some(RouteTarget { node, host, agent })
        })
    }
}
