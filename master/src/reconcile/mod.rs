//! From what users want to what hosts do: the picture of the cluster ([`view`]) the loop that plans ([`planner`]), what
//! keeps several of these apart ([`counter`]), and the one that carries disks between hosts ([`carrier`]).

pub mod carrier;
pub mod counter;
pub mod planner;
pub mod view;

pub use carrier::Carrier;
pub use planner::Planner;
pub use view::ClusterView;
