//! The use cases: what a request may ask for, decided and written down. No HTTP here.
//!
//! A change writes what is wanted to the store, in one transaction, and nothing else: the planner and the workers do the
//! rest. Reads come from the in-memory view of the cluster. Each use case has an error enum of its own; `http` turns it
//! into an answer, once.

pub mod apps;
pub mod change;
pub mod create;
pub mod history;
pub mod hosts;
pub mod images;
mod keys;
pub mod maintenance;
pub mod masters;
pub mod moves;
pub mod nodes;
pub mod ports;
pub mod share;
pub mod users;
pub mod vclusters;
pub mod warm;

use docklet_master_plan::place::Policy;
use docklet_master_plan::ports::PortPolicy;
use docklet_types::config::{Config, UserCap};
use docklet_types::name::ImageName;
use docklet_types::size::Size;
use docklet_types::view::QuotaView;

/// What the operator decided about vclusters.
#[derive(Debug, Clone)]
pub struct Settings {
    pub default_image: ImageName,
    pub default_size: Size,
    pub user_cap: UserCap,
    pub policy: Policy,
    pub ports: PortPolicy,
}

impl Settings {
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            default_image: config.default_image.clone(),
            default_size: config.node_size,
            user_cap: config.user_cap,
            ports: PortPolicy { range: config.public_ports, own: config.own_ports() },
            policy: Policy {
                cluster_net: config.cluster_net,
                cpu_overcommit: config.cpu_overcommit,
                memory_overcommit: config.memory_overcommit,
                disk_overcommit: config.disk_overcommit,
                preboot_below: config.preboot.below,
            },
        }
    }

    /// The cap as the API shows it.
    #[must_use]
    pub fn quota(&self) -> QuotaView {
        QuotaView {
            nodes: self.user_cap.nodes,
            // Far below 2^53.
            cpu: self.user_cap.cpu_millis as f64 / 1000.0,
            memory_mib: self.user_cap.memory_mib,
            ports: self.user_cap.ports,
        }
    }
}
