//! One effect per `Idempotency-Key`, and changes that go on to their end when the client hangs up.
//!
//! The first request with a key claims it and its answer is kept for a day; a repetition gets that answer. Repetitions
//! that come while the first is worked on wait for it, at another master, too. What failed had no effect and gives its
//! key back. A claim is kept up while the work goes on: that of a master that died is soon free.

use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, LOCATION};
use actix_web::{HttpRequest, HttpResponse};
use docklet_master_db::Db;
use docklet_master_db::idempotency::{ABANDONED_SECONDS, Claim};
use docklet_types::id::{UserId, VclusterId};
use docklet_types::problem::Code;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use super::problem::{ApiError, chain};
use crate::auth::Actor;
use crate::keyed::Keyed;

const HEADER: &str = "idempotency-key";
/// Longest key in characters.
const MAX_KEY: usize = 255;
/// How often a claim is kept up: one that fails does no harm yet.
const KEEP: Duration = Duration::from_secs(ABANDONED_SECONDS as u64 / 4);
/// How often a repetition asks whether another master has finished.
const ASK: Duration = Duration::from_millis(200);
/// How long it asks: until the claim of a master that died is free.
const PATIENCE: Duration = Duration::from_secs(ABANDONED_SECONDS as u64 + 5);

/// An answer that can be kept and given again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    pub status: u16,
    pub location: Option<String>,
    /// JSON.
    pub body: String,
}

impl Reply {
    /// # Errors
    /// The value has no JSON form.
    pub fn json(status: StatusCode, value: &impl Serialize) -> Result<Self, ApiError> {
        let body = serde_json::to_string(value).map_err(ApiError::internal)?;
        Ok(Self { status: status.as_u16(), location: None, body })
    }

    #[must_use]
    pub fn at(mut self, location: String) -> Self {
        self.location = Some(location);
        self
    }

    fn into_response(self) -> HttpResponse {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        let mut response = HttpResponse::build(status).content_type("application/json").body(self.body);
        if let Some(location) = self.location.and_then(|l| HeaderValue::from_str(&l).ok()) {
            response.headers_mut().insert(LOCATION, location);
        }
        response
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Idempotency {
    db: Db,
    turns: Keyed<String>,
}

/// What makes two requests the same: method, address and body.
fn fingerprint(request: &HttpRequest, body: &[u8; 32]) -> String {
    let mut hash = Sha256::new();
    for part in [request.method().as_str().as_bytes(), request.uri().to_string().as_bytes(), body] {
        hash.update(part);
        hash.update([0]);
    }
    hex::encode(hash.finalize())
}

fn key_of(request: &HttpRequest) -> Result<Option<String>, ApiError> {
    let Some(value) = request.headers().get(HEADER) else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=MAX_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::invalid(
            "Idempotency-Key",
            format!("An Idempotency-Key has 1 to {MAX_KEY} printable characters."),
        )),
    }
}

/// The id of what a request with this key makes: always the same, so that a repetition after a crash finds it.
fn id_for(actor: &Actor, key: &str, fingerprint: &str) -> VclusterId {
    let digest = Sha256::digest(format!("{}\n{key}\n{fingerprint}", actor.id()));
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    VclusterId::from_uuid(uuid::Builder::from_custom_bytes(bytes).into_uuid())
}

impl Idempotency {
    #[must_use]
    pub fn new(db: Db) -> Self {
        Self { db, turns: Keyed::default() }
    }

    /// Does the work once. `work` gets the id for what it makes, where the request has a key.
    ///
    /// # Errors
    /// The work's own; `conflict` while another master works on the same key; `idempotency_mismatch`.
    pub async fn once<F, W>(
        &self,
        request: &HttpRequest,
        actor: &Actor,
        body: [u8; 32],
        work: W,
    ) -> Result<HttpResponse, ApiError>
    where
        W: FnOnce(Option<VclusterId>) -> F,
        F: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        let Some(key) = key_of(request)? else {
            return detached(work(None)).await.map(Reply::into_response);
        };
        let fingerprint = fingerprint(request, &body);
        let id = id_for(actor, &key, &fingerprint);
        let (this, user, work) = (self.clone(), actor.id(), work(Some(id)));
        detached(async move {
            let _turn = this.turns.lock(format!("{user}/{key}")).await;
            match this.claim(user, &key, &fingerprint).await? {
                Claim::Fresh => {}
                Claim::Done { body, .. } => return serde_json::from_str(&body).map_err(ApiError::internal),
                Claim::Busy => {
                    return Err(ApiError::new(
                        Code::Conflict,
                        "The first request with this Idempotency-Key is still worked on. Repeat it in a moment.",
                    )
                    .retry_in(2));
                }
                Claim::Mismatch => {
                    return Err(ApiError::new(
                        Code::IdempotencyMismatch,
                        "This Idempotency-Key came with another request before. Take a new key.",
                    ));
                }
            }
            let done = this.keeping(user, &key, work).await;
            let kept = match &done {
                Ok(reply) => {
                    let text = serde_json::to_string(reply).map_err(ApiError::internal)?;
                    this.db.finish_idempotent(user, &key, reply.status, &text).await
                }
                Err(_) => this.db.forget_idempotent(user, &key).await,
            };
            if let Err(error) = kept {
                tracing::warn!(error = chain(&error), "cannot keep the answer of an Idempotency-Key");
            }
            done
        })
        .await
        .map(Reply::into_response)
    }

    /// Claims the key, or waits for what became of it at the master that has it.
    async fn claim(&self, user: UserId, key: &str, fingerprint: &str) -> Result<Claim, ApiError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let claim = self.db.claim_idempotent(user, key, fingerprint).await?;
            if claim != Claim::Busy || tokio::time::Instant::now() >= deadline {
                return Ok(claim);
            }
            tokio::time::sleep(ASK).await;
        }
    }

    /// Does the work and keeps the claim up meanwhile.
    async fn keeping<T>(&self, user: UserId, key: &str, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.keep_up(user, key) => match never {},
        }
    }

    async fn keep_up(&self, user: UserId, key: &str) -> Infallible {
        loop {
            tokio::time::sleep(KEEP).await;
            if let Err(error) = self.db.keep_claim(user, key).await {
                tracing::warn!(error = chain(&error), "cannot keep the claim of an Idempotency-Key");
            }
        }
    }

    /// The same for requests that carry no key and whose answer is not kept.
    ///
    /// # Errors
    /// The work's own.
    pub async fn run<T: Send + 'static>(
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        detached(work).await
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the work ended without an answer")]
struct Lost(#[source] tokio::task::JoinError);

/// Runs to its end, whether or not the client is still there.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    use tracing::Instrument as _;
    tokio::spawn(work.in_current_span()).await.map_err(|e| ApiError::internal(Lost(e)))?
}
