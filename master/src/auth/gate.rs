//! Signing in: the same answer and the same time whether or not there is such a user, and less and less room to guess.
//!
//! Failures are counted per account *and* address, so that nobody can lock another person out from elsewhere, and per
//! address over all accounts. Attempts at one account from one address go one after another: a hundred at once learn no
//! more than the count allows. Lock-outs go by the database's clock, so that no master lets in early.

use std::net::IpAddr;
use std::num::NonZeroU32;

use docklet_master_db::sessions::SessionKind;
use docklet_master_db::users::User;
use docklet_master_db::{Db, DbError};
use docklet_types::name::UserName;
use docklet_types::time::Micros;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::passwords::{HashError, Passwords};
use super::sessions::{BeginError, Sessions};
use super::token::Token;
use crate::keyed::Keyed;

/// Failures of one account from one address until it is locked there, and each time so many more come together.
const FAILS: i64 = 5;
/// The same for an address over all accounts: a class behind one address mistypes, too.
const ADDRESS_FAILS: i64 = 50;
/// Failures are forgotten after so long without a new one.
const FORGET_SECONDS: i64 = 24 * 3600;
/// Attempts that one address may make at once, and per second after that.
const BURST: u32 = 100;
const PER_SECOND: u32 = 5;

/// Why nobody was signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    #[error("user name or password is wrong")]
    Wrong,
    /// Said only to whoever knows the password.
    #[error("this account is disabled")]
    Disabled,
    #[error("too many attempts; try again in {seconds} s")]
    TooMany { seconds: u64 },
    #[error("too many people sign in at once; try again in a moment")]
    Busy,
    #[error("the password cannot be checked")]
    Hash,
    #[error(transparent)]
    Begin(BeginError),
    #[error(transparent)]
    Db(DbError),
}

/// A sign-in that went well.
#[derive(Debug)]
pub struct SignedIn {
    pub token: Token,
    pub expires_at: Micros,
    pub user: User,
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    db: Db,
    passwords: std::sync::Arc<Passwords>,
    sessions: Sessions,
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    attempts: Keyed<String>,
}

/// How long the n-th failure locks; `None` where it does not.
fn lock_seconds(fails: i64, step: i64) -> Option<i64> {
    if fails < step || fails % step != 0 {
        return None;
    }
    Some(match fails / step {
        1 => 5 * 60,
        2 => 15 * 60,
        3..=7 => 3600,
        _ => 24 * 3600,
    })
}

/// An IPv6 client owns a whole /64: it counts as one.
fn bucket(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let mut parts = v6.segments();
            parts[4..].fill(0);
            IpAddr::V6(parts.into())
        }
        v4 => v4,
    }
}

impl Gate {
    #[must_use]
    pub fn new(db: Db, passwords: std::sync::Arc<Passwords>, sessions: Sessions) -> Self {
        let per_second = NonZeroU32::new(PER_SECOND).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(BURST).unwrap_or(NonZeroU32::MIN);
        let limiter = RateLimiter::keyed(Quota::per_second(per_second).allow_burst(burst));
        Self { db, passwords, sessions, limiter, clock: DefaultClock::default(), attempts: Keyed::default() }
    }

    /// Forgets addresses that have not been heard of lately; call it now and then.
    pub fn tidy(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }

    fn admit(&self, address: IpAddr) -> Result<(), SignInError> {
        self.limiter.check_key(&address).map_err(|not_until| SignInError::TooMany {
            seconds: not_until.wait_time_from(self.clock.now()).as_secs().max(1),
        })
    }

    async fn refuse_locked(&self, key: &str, now: Micros) -> Result<(), SignInError> {
        let lockout = self.db.lockout(key).await.map_err(SignInError::Db)?;
        if lockout.locked_until > now {
            return Err(SignInError::TooMany { seconds: lockout.locked_until.millis_since(now).div_ceil(1000).max(1) });
        }
        Ok(())
    }

    async fn count(&self, key: &str, step: i64, now: Micros) -> Result<(), SignInError> {
        let fails =
            self.db.count_failure(key, now, now.plus_seconds(-FORGET_SECONDS)).await.map_err(SignInError::Db)?;
        if let Some(seconds) = lock_seconds(fails, step) {
            self.db.lock_until(key, now.plus_seconds(seconds)).await.map_err(SignInError::Db)?;
            tracing::warn!(key, fails, seconds, "locked after failed sign-ins");
        }
        Ok(())
    }

    /// Whether the present password is right, asked before it is changed. Whoever holds a stolen session must not guess
    /// it at leisure, either.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn check_present(&self, name: &UserName, password: &str) -> Result<(), SignInError> {
        let key = format!("present:{name}");
        let _turn = self.attempts.lock(key.clone()).await;
        let now = self.db.now().await.map_err(SignInError::Db)?;
        self.refuse_locked(&key, now).await?;
        let hash = self.db.user_with_hash(name).await.map_err(SignInError::Db)?.map(|(_, hash)| hash);
        if self.verify(password, hash).await? {
            return self.db.clear_failures(&key).await.map_err(SignInError::Db);
        }
        self.count(&key, FAILS, now).await?;
        Err(SignInError::Wrong)
    }

    async fn verify(&self, password: &str, hash: Option<String>) -> Result<bool, SignInError> {
        self.passwords.verify(password.to_owned(), hash).await.map_err(|e| match e {
            HashError::Busy => SignInError::Busy,
            HashError::Failed => SignInError::Hash,
        })
    }

    /// Checks name and password within all limits.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn check(&self, name: &str, password: &str, address: IpAddr) -> Result<User, SignInError> {
        let address = bucket(address);
        self.admit(address)?;
        // A text that cannot be a name has no account: it counts for the address alone.
        let name = name.trim().parse::<UserName>().ok();
        let account_key = name.as_ref().map(|name| format!("account:{name}@{address}"));
        let address_key = format!("address:{address}");
        let _turn = match &account_key {
            Some(key) => Some(self.attempts.lock(key.clone()).await),
            None => None,
        };
        let now = self.db.now().await.map_err(SignInError::Db)?;
        self.refuse_locked(&address_key, now).await?;
        if let Some(key) = &account_key {
            self.refuse_locked(key, now).await?;
        }
        let found = match &name {
            Some(name) => self.db.user_with_hash(name).await.map_err(SignInError::Db)?,
            None => None,
        };
        let (user, hash) = found.unzip();
        let right = self.verify(password, hash).await?;
        let Some(user) = user.filter(|_| right) else {
            self.count(&address_key, ADDRESS_FAILS, now).await?;
            if let Some(key) = &account_key {
                self.count(key, FAILS, now).await?;
            }
            return Err(SignInError::Wrong);
        };
        if let Some(key) = &account_key {
            self.db.clear_failures(key).await.map_err(SignInError::Db)?;
        }
        if user.disabled {
            return Err(SignInError::Disabled);
        }
        Ok(user)
    }

    /// Checks and begins a session.
    ///
    /// # Errors
    /// See [`SignInError`].
    pub async fn sign_in(
        &self,
        name: &str,
        password: &str,
        address: IpAddr,
        kind: SessionKind,
        user_agent: &str,
    ) -> Result<SignedIn, SignInError> {
        let user = self.check(name, password, address).await?;
        let (token, expires_at) =
            self.sessions.begin(user.id, kind, user_agent, &address.to_string()).await.map_err(SignInError::Begin)?;
        Ok(SignedIn { token, expires_at, user })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_grow() {
        let locks: Vec<(i64, i64)> = (1..=45).filter_map(|n| lock_seconds(n, FAILS).map(|s| (n, s))).collect();
        assert_eq!(locks[0], (5, 300));
        assert_eq!(locks[1], (10, 900));
        assert_eq!(locks[2], (15, 3600));
        assert_eq!(locks.last(), Some(&(45, 86400)));
    }

    #[test]
    fn one_v6_network_is_one_address() {
        let a: IpAddr = "2001:db8:0:1::1".parse().unwrap();
        let b: IpAddr = "2001:db8:0:1:ffff::2".parse().unwrap();
        assert_eq!(bucket(a), bucket(b));
        assert_eq!(bucket("::ffff:10.0.0.1".parse().unwrap()), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
