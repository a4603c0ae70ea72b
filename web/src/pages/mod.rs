//! One module per page.

pub mod account;
pub mod home;
pub mod hosts;
pub mod images;
pub mod jupyter;
pub mod new;
pub mod problem;
pub mod sign_in;
pub mod terminal;
pub mod users;
pub mod vcluster;
