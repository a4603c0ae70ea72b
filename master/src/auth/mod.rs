//! Who is asking: passwords, sessions, and the guards in front of them.
//!
//! Flow of a request: [`headers`] adds what every answer carries; [`csrf`] refuses changes that another site asks a
//! browser to make; the [`Actor`] extractor turns a cookie or bearer token into an account through [`Sessions`], which
//! also tells live sockets when their session ends. Signing in goes through [`gate::Gate`], which limits guessing.

mod actor;
pub mod csrf;
pub mod gate;
pub mod headers;
pub mod passwords;
pub mod sessions;
pub mod token;

pub use actor::{Actor, PortalAddress, Via};
pub use sessions::Sessions;
