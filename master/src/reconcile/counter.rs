//! Counters: documents that planners compare and raise with whatever of one kind they plan anew, so that of two that decide
//! from pictures that lack each other's writes one is refused.
//!
//! To compare a counter is only worth something if the picture holds whatever was written with it up to there. So each
//! names the one that it replaces: who hears of one and knows another than that has missed what lies between. Such a
//! counter is not taken up, so that all is refused that would compare it, until everything was listed again, which is
//! done at once ([`super::view`]).

use docklet_store::{Compare, StoreError, Txn};
use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub struct Counter {
    /// The revision of the one that it replaces.
    before: Option<i64>,
}

impl Counter {
    /// Compares and raises the counter under `key`, which was read at `revision`.
    ///
    /// # Errors
    /// As [`Txn::put`].
    pub fn raise(txn: Txn, key: String, revision: Option<i64>) -> Result<Txn, StoreError> {
        txn.when(Compare::as_read(key.clone(), revision)).put(key, &Self { before: revision })
    }

    /// Whether a counter that is now `value`, as of `revision`, follows on the one that is known.
    #[must_use]
    pub fn follows(value: Option<&[u8]>, revision: i64, known: Option<i64>) -> bool {
        match value.map(serde_json::from_slice::<Self>) {
            Some(Ok(counter)) => counter.before == known || known == Some(revision),
            // A master of an earlier version wrote it, or it is gone.
            Some(Err(_)) | None => true,
        }
    }
}
