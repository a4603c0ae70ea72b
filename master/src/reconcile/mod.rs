//! From what users want to what hosts do: the picture of the cluster ([`view`]) and the loop that plans ([`planner`]).

pub mod planner;
pub mod view;

pub use planner::Planner;
pub use view::ClusterView;
