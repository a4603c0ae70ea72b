//! From what users want to what hosts do: the picture of the cluster ([`view`]) the loop that plans ([`planner`]), and the one
//! that carries disks between hosts ([`carrier`]).

pub mod carrier;
pub mod planner;
pub mod view;

pub use carrier::Carrier;
pub use planner::Planner;
pub use view::ClusterView;
