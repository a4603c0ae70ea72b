//! What a removal has missed: processes of a node whose disk and files are gone. No order of events should leave any, so
//! this is for those that nobody thought of. They hold nothing that anybody could miss, and no plan will ever name them.
//!
//! What has its disk is never touched without a plan: after plans were restored from an older copy it is somebody's.

use tokio::time::Instant;

use docklet_worker_plan::node::is_remains;

use super::actor::{Loop, Object};
use super::lost::remove_node;

impl Loop {
    /// To be called after each look at the host: what is remains at two of them, some time apart, goes.
    pub(super) fn clear_remains(&mut self) {
        // The store's own word: a plan that has not come yet is a plan.
        let current = self.plans.is_live() && self.loss().is_none() && !self.stopping;
        let now = Instant::now();
        let apart = self.settings.timing.look_every / 2;
        for (id, node) in &mut self.nodes {
            let planned = node.plan.is_some() || self.plans.read(|p| p.node(*id).is_some());
            if !current || planned || node.task.is_some() || !is_remains(&node.observed) {
                node.remains_since = None;
                continue;
            }
            let since = *node.remains_since.get_or_insert(now);
            if now.duration_since(since) >= apart && self.clearing.insert(Object::Node(*id)) {
                tracing::warn!(node = %id, "what runs of a node that was removed, and that no plan names, is ended");
                self.tasks.spawn(remove_node(self.context.clone(), *id));
            }
        }
    }
}
