//! Where nodes are: from the names in a host name to a node's id and host.
//!
//! The table is swapped as a whole, so that a request sees one state of the world. It leads to ids, which are never
//! reused: a route that is a moment old reaches the node that was meant or none, never its successor of the same name.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use docklet_types::id::NodeId;
use docklet_types::name::{HostName, NodeName, UserName, VclusterName};
use parking_lot::RwLock;

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

/// All nodes that have a place, whether they run or not.
#[derive(Debug, Default)]
pub struct RouteTable {
    by_name: HashMap<RouteName, RouteTarget>,
    ids: HashSet<NodeId>,
}

impl RouteTable {
    #[must_use]
    pub fn find(&self, name: &RouteName) -> Option<&RouteTarget> {
        self.by_name.get(name)
    }

    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.ids.contains(&node)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

impl FromIterator<(RouteName, RouteTarget)> for RouteTable {
    fn from_iter<I: IntoIterator<Item = (RouteName, RouteTarget)>>(routes: I) -> Self {
        let by_name: HashMap<_, _> = routes.into_iter().collect();
        let ids = by_name.values().map(|target| target.node).collect();
        Self { by_name, ids }
    }
}

/// Where the proxy gets its table from.
pub trait Routes: Send + Sync + 'static {
    /// The newest table.
    fn table(&self) -> Arc<RouteTable>;
}

/// A table that another part of the master replaces whenever the cluster changes.
#[derive(Debug, Default)]
pub struct SharedRoutes {
    current: RwLock<Arc<RouteTable>>,
}

impl SharedRoutes {
    pub fn replace(&self, table: RouteTable) {
        *self.current.write() = Arc::new(table);
    }
}

impl Routes for SharedRoutes {
    fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.current.read())
    }
}
