//! Password hashing: argon2id on blocking threads, so many at once and no more, with a bounded queue before them.

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// OWASP's Password Storage Cheat Sheet names these as the least: 19 MiB, 2 passes, 1 lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Requests that may wait for a hash; more are turned away, so that a flood cannot pile up.
const QUEUE: usize = 256;

/// A password of an acceptable length. Its `Debug` form shows nothing of it.
#[derive(Clone)]
pub struct Password(String);

/// Why a text is no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a password has {} to {} characters", Password::MIN, Password::MAX)]
pub struct PasswordLength;

impl Password {
    /// Fewest characters.
    pub const MIN: usize = 8;
    /// Most characters.
    pub const MAX: usize = 256;

    /// # Errors
    /// Too short or too long.
    pub fn parse(text: &str) -> Result<Self, PasswordLength> {
        if (Self::MIN..=Self::MAX).contains(&text.chars().count()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PasswordLength)
        }
    }

    /// The password itself, to be shown to the person it was made for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The queue is full; try again in a moment.
    #[error("too many sign-ins at once")]
    Busy,
    #[error("the password cannot be hashed")]
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct Passwords {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Checked when there is no such user, so that the answer takes as long.
    nobody: Arc<str>,
}

fn argon() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|_| HashError::Failed)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

/// Hashes on the calling thread: for `init`, which has nothing else to do.
///
/// # Errors
/// [`HashError::Failed`]
pub fn hash_now(password: &Password) -> Result<String, HashError> {
    Ok(argon()?.hash_password(password.0.as_bytes()).map_err(|_| HashError::Failed)?.to_string())
}

fn verify_now(password: &str, hash: &str) -> bool {
    // The parameters are read from the hash, so that old hashes stay good when ours grow.
    PasswordHash::new(hash).is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok())
}

impl Passwords {
    /// `slots` hashes run at once, each on a core with 19 MiB.
    ///
    /// # Errors
    /// [`HashError::Failed`]
    pub fn new(slots: usize) -> Result<Self, HashError> {
        let nobody = hash_now(&Password("nobody has this password".to_owned()))?;
        Ok(Self { slots: Arc::new(Semaphore::new(slots.max(1))), waiting: AtomicUsize::new(0), nobody: nobody.into() })
    }

    async fn work<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, HashError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let queued = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if queued >= QUEUE {
            return Err(HashError::Busy);
        }
        let permit = self.slots.clone().acquire_owned().await.map_err(|_| HashError::Failed)?;
        tokio::task::spawn_blocking(move || {
            // Held by the job and not by the request: a client that leaves does not free the core.
            let _permit = permit;
            job()
        })
        .await
        .map_err(|_| HashError::Failed)
    }

    /// # Errors
    /// See [`HashError`].
    pub async fn hash(&self, password: Password) -> Result<String, HashError> {
        self.work(move || hash_now(&password)).await?
    }

    /// Whether the password is right. With no hash (no such user) it takes as long and is `false`.
    ///
    /// # Errors
    /// See [`HashError`].
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, HashError> {
        let nobody = self.nobody.clone();
        self.work(move || {
            // Over-long passwords were never accepted; hashing them would only cost.
            let password = if password.len() > Password::MAX * 4 { "" } else { &password };
            let known = hash.is_some();
            verify_now(password, hash.as_deref().unwrap_or(&nobody)) && known
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn right_and_wrong() {
        let passwords = Passwords::new(2).unwrap();
        let hash = passwords.hash(Password::parse("correct horse").unwrap()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(passwords.verify("correct horse".to_owned(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("wrong horse".to_owned(), Some(hash)).await.unwrap());
        assert!(!passwords.verify("nobody has this password".to_owned(), None).await.unwrap());
    }

    #[test]
    fn lengths() {
        assert!(Password::parse("1234567").is_err());
        assert!(Password::parse("12345678").is_ok());
        assert!(Password::parse(&"ä".repeat(256)).is_ok());
        assert!(Password::parse(&"a".repeat(257)).is_err());
    }
}
