//! The typed REST client: one method per endpoint, the server's own view types, errors a caller can match on.
//!
//! A [`Client`] is cheap to clone and holds the server's address, the token and, for administrators, whose vclusters
//! are meant. Requests that are safe to repeat are repeated when the connection breaks under them; a POST carries an
//! `Idempotency-Key` that stays the same over its repetitions, so that nothing is made twice.
//!
//! `http` sends and decodes, `api` has the endpoints, `wait` waits for a status, `events` reads the event stream.

mod api;
mod error;
mod events;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod http;
mod wait;

#[cfg(test)]
mod tests;

pub use api::{Deletion, TerminalAddress};
pub use error::{Error, Result};
pub use http::Client;
pub use wait::{Target, WaitError};
