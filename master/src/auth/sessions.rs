//! Who a token belongs to, kept in memory for a moment; and the news that a session has ended.
//!
//! Ending a session (sign-out, password change, disabling) takes effect at once on this master: the cache forgets it and
//! its live sockets are told. What another master ended is noticed soon, too: cached answers are no older than [`RECHECK`],
//! and [`Sessions::watch_over`] asks the database about every session that holds a socket.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use docklet_master_db::app_tokens::AppTokenKind;
use docklet_master_db::sessions::{NewSession, SessionKind, SessionRow};
use docklet_master_db::users::User;
use docklet_master_db::{Db, DbError};
use docklet_types::id::UserId;
use docklet_types::time::Micros;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Via};
use super::token::{Token, TokenHash};
use crate::http::problem::chain;

/// How old a cached answer may be.
pub const RECHECK: Duration = Duration::from_secs(1);
/// How often sessions with live sockets are looked up: they are to close within two seconds, wherever a session ended.
const SWEEP: Duration = Duration::from_millis(500);
/// Use is noted in the database at most this often.
const TOUCH: Duration = Duration::from_secs(60);
/// How long a ticket for an app's origin is good.
const TICKET_SECONDS: i64 = 30;
/// Entries of the cache above which the old ones are dropped.
const CACHE: usize = 10_000;

/// Why a session cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    #[error("the operating system gives no randomness")]
    Randomness(#[source] rand::rand_core::OsError),
    #[error(transparent)]
    Db(DbError),
}

/// Resolves when the session has ended. Keep it as long as the socket.
#[derive(Debug, Clone)]
pub struct Ended(Arc<CancellationToken>);

impl Ended {
    /// Returns when the session has ended.
    pub async fn wait(&self) {
        self.0.cancelled().await;
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.is_cancelled()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum CacheKey {
    Session(TokenHash),
    /// The cookie of an app's origin, good for one host name.
    App(TokenHash, String),
}

#[derive(Debug)]
struct Cached {
    user: Arc<User>,
    session: TokenHash,
    expires_at: Micros,
    read_at: Instant,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    lasts_seconds: i64,
    cache: Mutex<HashMap<CacheKey, Cached>>,
    touched: Mutex<HashMap<TokenHash, Instant>>,
    sockets: Mutex<HashMap<TokenHash, Weak<CancellationToken>>>,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sessions(Arc<Shared>);

impl Sessions {
    #[must_use]
    pub fn new(db: Db, session_hours: u32) -> Self {
        Self(Arc::new(Shared {
            db,
            lasts_seconds: i64::from(session_hours) * 3600,
            cache: Mutex::default(),
            touched: Mutex::default(),
            sockets: Mutex::default(),
        }))
    }

    /// Begins a session; the token goes to the client and nowhere else.
    ///
    /// # Errors
    /// See [`BeginError`].
    pub async fn begin(
        &self,
        user: UserId,
        kind: SessionKind,
        user_agent: &str,
        address: &str,
    ) -> Result<(Token, Micros), BeginError> {
        let token = Token::random().map_err(BeginError::Randomness)?;
        let hash = token.hash();
        let now = Micros::now();
        let expires_at = now.plus_seconds(self.0.lasts_seconds);
        let agent: String = user_agent.chars().filter(|c| !c.is_control()).take(200).collect();
        let new =
            NewSession { hash: hash.as_str(), user, kind, created_at: now, expires_at, user_agent: &agent, address };
        self.0.db.add_session(&new).await.map_err(BeginError::Db)?;
        self.0.db.touch_user(user, now).await.map_err(BeginError::Db)?;
        Ok((token, expires_at))
    }

    fn cached(&self, key: &CacheKey) -> Option<(Arc<User>, TokenHash)> {
        let cache = self.0.cache.lock();
        let entry = cache.get(key)?;
        let good = entry.read_at.elapsed() < RECHECK && entry.expires_at > Micros::now();
        good.then(|| (entry.user.clone(), entry.session.clone()))
    }

    fn remember(&self, key: CacheKey, user: User, session: TokenHash, expires_at: Micros) -> Arc<User> {
        let user = Arc::new(user);
        let mut cache = self.0.cache.lock();
        if cache.len() >= CACHE {
            cache.retain(|_, entry| entry.read_at.elapsed() < RECHECK);
        }
        cache.insert(key, Cached { user: user.clone(), session, expires_at, read_at: Instant::now() });
        user
    }

    /// The account of a session's token; `None` when there is no such session, it has ended, or the account is disabled.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn authenticate(&self, secret: &str, via: Via) -> Result<Option<Actor>, DbError> {
        let hash = TokenHash::of(secret);
        let key = CacheKey::Session(hash.clone());
        if let Some((user, session)) = self.cached(&key) {
            return Ok(Some(Actor::new(user, session, via)));
        }
        let now = Micros::now();
        let Some((user, expires_at)) = self.0.db.user_of_session(hash.as_str(), now).await? else {
            self.0.cache.lock().remove(&key);
            return Ok(None);
        };
        self.note_use(&hash, now).await?;
        let user = self.remember(key, user, hash.clone(), expires_at);
        Ok(Some(Actor::new(user, hash, via)))
    }

    async fn note_use(&self, hash: &TokenHash, now: Micros) -> Result<(), DbError> {
        let due = {
            let mut touched = self.0.touched.lock();
            if touched.len() >= CACHE {
                touched.retain(|_, at| at.elapsed() < TOUCH);
            }
            let due = touched.get(hash).is_none_or(|at| at.elapsed() >= TOUCH);
            if due {
                touched.insert(hash.clone(), Instant::now());
            }
            due
        };
        if due { self.0.db.touch_session(hash.as_str(), now).await } else { Ok(()) }
    }

    /// A ticket that signs this session's browser in at an app's origin: once, within seconds.
    ///
    /// # Errors
    /// See [`BeginError`].
    pub async fn issue_app_ticket(&self, session: &TokenHash, host: &str) -> Result<Token, BeginError> {
        let ticket = Token::random().map_err(BeginError::Randomness)?;
        // The database's clock: another master may be the one to redeem it.
        let until = self.0.db.now().await.map_err(BeginError::Db)?.plus_seconds(TICKET_SECONDS);
        let stored =
            self.0.db.add_app_token(AppTokenKind::Ticket, ticket.hash().as_str(), session.as_str(), host, until).await;
        stored.map_err(BeginError::Db)?;
        Ok(ticket)
    }

    /// Exchanges a ticket for the cookie of that origin; `None` when the ticket is used, old, or for another host name.
    ///
    /// # Errors
    /// See [`BeginError`].
    pub async fn redeem_app_ticket(&self, ticket: &str, host: &str) -> Result<Option<Token>, BeginError> {
        let now = self.0.db.now().await.map_err(BeginError::Db)?;
        let hash = TokenHash::of(ticket);
        let Some(session) = self.0.db.take_app_ticket(hash.as_str(), host, now).await.map_err(BeginError::Db)? else {
            return Ok(None);
        };
        let cookie = Token::random().map_err(BeginError::Randomness)?;
        // The portal session's own end bounds it: the look-up joins the two.
        let until = now.plus_seconds(self.0.lasts_seconds);
        let stored = self.0.db.add_app_token(AppTokenKind::Cookie, cookie.hash().as_str(), &session, host, until).await;
        stored.map_err(BeginError::Db)?;
        Ok(Some(cookie))
    }

    /// The account behind the cookie of an app's origin. The actor's session is the portal session it hangs on.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn authenticate_app(&self, cookie: &str, host: &str) -> Result<Option<Actor>, DbError> {
        let hash = TokenHash::of(cookie);
        let key = CacheKey::App(hash.clone(), host.to_owned());
        if let Some((user, session)) = self.cached(&key) {
            return Ok(Some(Actor::new(user, session, Via::AppCookie)));
        }
        let Some((user, session, expires_at)) =
            self.0.db.user_of_app_cookie(hash.as_str(), host, Micros::now()).await?
        else {
            self.0.cache.lock().remove(&key);
            return Ok(None);
        };
        let session = TokenHash::stored(&session);
        let user = self.remember(key, user, session.clone(), expires_at);
        Ok(Some(Actor::new(user, session, Via::AppCookie)))
    }

    /// Ends one session: sign-out.
    ///
    /// # Errors
    /// The database does not answer; the session goes on.
    pub async fn end(&self, session: &TokenHash) -> Result<(), DbError> {
        self.0.db.remove_session(session.as_str()).await?;
        self.forget(std::slice::from_ref(session));
        Ok(())
    }

    /// Ends all sessions of a user but `keep`; how many those were.
    ///
    /// # Errors
    /// The database does not answer; the sessions go on.
    pub async fn end_all_of(&self, user: UserId, keep: Option<&TokenHash>) -> Result<usize, DbError> {
        let gone = self.0.db.remove_sessions_of(user, keep.map(TokenHash::as_str)).await?;
        let gone: Vec<TokenHash> = gone.iter().map(|h| TokenHash::stored(h)).collect();
        self.forget(&gone);
        self.reread(user);
        Ok(gone.len())
    }

    /// Reads the account anew at its next request: after a change of role, state or theme.
    pub fn reread(&self, user: UserId) {
        self.0.cache.lock().retain(|_, entry| entry.user.id != user);
    }

    /// # Errors
    /// The database does not answer.
    pub async fn list(&self, user: UserId) -> Result<Vec<SessionRow>, DbError> {
        self.0.db.sessions_of(user, Micros::now()).await
    }

    fn forget(&self, gone: &[TokenHash]) {
        self.0.cache.lock().retain(|_, entry| !gone.contains(&entry.session));
        let mut sockets = self.0.sockets.lock();
        for session in gone {
            if let Some(token) = sockets.remove(session).and_then(|weak| weak.upgrade()) {
                token.cancel();
            }
        }
    }

    /// For a socket that stays open: resolves when the session has ended, on whichever master.
    #[must_use]
    pub fn ended(&self, session: &TokenHash) -> Ended {
        let mut sockets = self.0.sockets.lock();
        if let Some(token) = sockets.get(session).and_then(Weak::upgrade) {
            return Ended(token);
        }
        let token = Arc::new(CancellationToken::new());
        sockets.insert(session.clone(), Arc::downgrade(&token));
        Ended(token)
    }

    /// Runs for ever: tells live sockets about sessions that expired or that another master ended.
    pub async fn watch_over(self) {
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let held: Vec<String> = {
                let mut sockets = self.0.sockets.lock();
                sockets.retain(|_, weak| weak.strong_count() > 0);
                sockets.keys().map(|hash| hash.as_str().to_owned()).collect()
            };
            if held.is_empty() {
                continue;
            }
            match self.0.db.live_sessions(&held, Micros::now()).await {
                Ok(live) => {
                    let live: HashSet<String> = live.into_iter().collect();
                    let gone: Vec<TokenHash> =
                        held.iter().filter(|h| !live.contains(*h)).map(|h| TokenHash::stored(h)).collect();
                    self.forget(&gone);
                }
                // Sockets stay open while the database does not answer: running things run.
                Err(error) => tracing::warn!(error = chain(&error), "cannot look up the sessions of live sockets"),
            }
        }
    }
}
