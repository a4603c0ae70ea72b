//! Tokens to join with: each good for one host, once, for a time. The store has only their hashes.

use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::join::{IssuedToken, JoinToken};
use docklet_types::name::HostName;
use docklet_types::time::Micros;
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};

/// That a token was used or is too old can be told for this long after its end, in seconds.
const REMEMBERED_S: i64 = 7 * 24 * 3600;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the operating system gives no randomness")]
    Randomness(#[source] rand::rand_core::OsError),
    #[error("the store cannot take the token")]
    Store(#[source] StoreError),
    #[error("the token was not stored; try again")]
    Conflict,
}

#[must_use]
pub fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Makes a token that is good for `valid_s` seconds, and drops old ones.
///
/// # Errors
/// See [`TokenError`].
pub async fn issue(
    store: &dyn Store,
    keys: &Keys,
    authority_fingerprint: &str,
    host: Option<HostName>,
    valid_s: i64,
    now: Micros,
) -> Result<JoinToken, TokenError> {
    let mut random = [0_u8; 22];
    rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(TokenError::Randomness)?;
    let token = JoinToken {
        id: hex::encode(&random[..6]),
        secret: hex::encode(&random[6..]),
        authority: authority_fingerprint.to_owned(),
    };
    let issued =
        IssuedToken { secret_sha256: hash(&token.secret), expires_at: now.plus_seconds(valid_s), host, used_by: None };
    let key = keys.write(&Key::Token(token.id.clone()));
    let txn = Txn::new().when(Compare::Absent { key: key.clone() }).put(&key, &issued).map_err(TokenError::Store)?;
    if store.txn(txn).await.map_err(TokenError::Store)? == Outcome::Conflict {
        return Err(TokenError::Conflict);
    }
    drop_old(store, keys, now).await.map_err(TokenError::Store)?;
    Ok(token)
}

async fn drop_old(store: &dyn Store, keys: &Keys, now: Micros) -> Result<(), StoreError> {
    for entry in store.list(&keys.tokens()).await?.entries {
        let old = serde_json::from_slice::<IssuedToken>(&entry.value)
            .is_ok_and(|token| token.expires_at.plus_seconds(REMEMBERED_S) < now);
        if old {
            let unchanged = Compare::Unchanged { key: entry.key.clone(), revision: entry.revision };
            store.txn(Txn::new().when(unchanged).delete(entry.key)).await?;
        }
    }
    Ok(())
}
