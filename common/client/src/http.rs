//! Sending requests and decoding answers: the one place that knows reqwest.

use docklet_types::problem::Problem;
use reqwest::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

use crate::error::{Error, Result};

/// Time given to an answer unless the request itself waits for something.
const ANSWER: Duration = Duration::from_secs(30);
/// What an answer may take beyond the time that the request asks the server to wait.
pub(crate) const SLACK: Duration = Duration::from_secs(10);
/// Pauses before the second and third try of a request whose connection broke.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(400)];
/// How much of an answer that is not understood goes into the error, in characters.
const EXCERPT: usize = 200;

/// A connection to one server as one user. Cloning shares the connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// Without a slash at the end.
    base: Arc<str>,
    token: Option<HeaderValue>,
    owner: Option<Arc<str>>,
}

/// A request before it is sent.
pub(crate) struct Call<'a, B: Serialize = ()> {
    pub method: Method,
    /// Path segments below `/api/v1`, percent-encoded when sent.
    pub path: &'a [&'a str],
    pub query: Vec<(&'static str, String)>,
    pub body: Option<&'a B>,
    /// How long the server may take; [`ANSWER`] where absent.
    pub patience: Option<Duration>,
    pub repeat: Repeat,
}

/// Whether a request may be sent again when the connection breaks under it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    Safe,
    /// Its effect would happen twice, e.g. a command in a node.
    Never,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, path: &'a [&'a str]) -> Self {
        Self { method, path, query: Vec::new(), body: None, patience: None, repeat: Repeat::Safe }
    }
}

impl<'a, B: Serialize> Call<'a, B> {
    pub fn with_body(method: Method, path: &'a [&'a str], body: &'a B) -> Self {
        Self { method, path, query: Vec::new(), body: Some(body), patience: None, repeat: Repeat::Safe }
    }
}

impl Client {
    /// A client without a token: it can sign in and ask for health.
    ///
    /// # Errors
    /// `url` is not `http://…` or `https://…`.
    pub fn new(url: &str) -> Result<Self> {
        let base = url.trim_end_matches('/');
        let address = || Error::Address { url: url.to_owned() };
        let parsed = reqwest::Url::parse(base).map_err(|_| address())?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() || parsed.query().is_some() {
            return Err(address());
        }
        // Whoever set a provider before keeps it; either can speak to the server.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("docklet/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            // The API never redirects; following one would carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(Error::Setup)?;
        Ok(Self { http, base: base.into(), token: None, owner: None })
    }

    /// The same client signing its requests with this token.
    ///
    /// # Errors
    /// The token has characters that no header can carry.
    pub fn with_token(mut self, token: &str) -> Result<Self> {
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::Token)?;
        value.set_sensitive(true);
        self.token = Some(value);
        Ok(self)
    }

    /// The same client meaning another user's vclusters; for administrators.
    #[must_use]
    pub fn with_owner(mut self, owner: Option<&str>) -> Self {
        self.owner = owner.map(Into::into);
        self
    }

    /// The server's address, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.base
    }

    pub(crate) fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// The header's value, for connections that this client does not make itself.
    pub(crate) fn authorization(&self) -> Option<&HeaderValue> {
        self.token.as_ref()
    }

    pub(crate) fn address<B: Serialize>(&self, call: &Call<'_, B>) -> Result<reqwest::Url> {
        let wrong = || Error::Address { url: self.base.to_string() };
        let mut url = reqwest::Url::parse(&self.base).map_err(|_| wrong())?;
        url.path_segments_mut().map_err(|()| wrong())?.pop_if_empty().extend(["api", "v1"]).extend(call.path);
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        Ok(url)
    }

    /// Sends and returns the answer if the server agreed.
    pub(crate) async fn send<B: Serialize>(&self, call: Call<'_, B>) -> Result<Response> {
        let url = self.address(&call)?;
        let key = (call.method == Method::POST).then(Uuid::new_v4);
        let after = call.patience.map_or(ANSWER, |p| p + SLACK);
        let mut pauses = PAUSES.into_iter();
        loop {
            let mut request = self.http.request(call.method.clone(), url.clone()).timeout(after);
            if let Some(token) = &self.token {
                request = request.header(AUTHORIZATION, token);
            }
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key.to_string());
            }
            if let Some(body) = call.body {
                request = request.json(body);
            }
            let failure = match request.send().await {
                Ok(response) => return self.accept(response).await,
                Err(failure) => self.failure(failure, after),
            };
            match pauses.next() {
                // A refused connection is told at once: a person who mistyped the address should not wait.
                Some(pause) if call.repeat == Repeat::Safe && matches!(failure, Error::Interrupted { .. }) => {
                    tokio::time::sleep(pause).await
                }
                _ => return Err(failure),
            }
        }
    }

    /// Sends and reads the answer's JSON.
    pub(crate) async fn ask<T: DeserializeOwned, B: Serialize>(&self, call: Call<'_, B>) -> Result<T> {
        let after = call.patience.map_or(ANSWER, |p| p + SLACK);
        let response = self.send(call).await?;
        let status = response.status();
        let bytes = response.bytes().await.map_err(|e| self.failure(e, after))?;
        serde_json::from_slice(&bytes).map_err(|_| self.unexpected(status, &bytes))
    }

    /// Sends and cares only whether the server agreed.
    pub(crate) async fn tell<B: Serialize>(&self, call: Call<'_, B>) -> Result<StatusCode> {
        self.send(call).await.map(|response| response.status())
    }

    /// Opens a stream that has no end of its own.
    pub(crate) async fn stream(&self, call: Call<'_>) -> Result<Response> {
        let mut request = self.http.request(call.method.clone(), self.address(&call)?);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let response = request.send().await.map_err(|e| self.failure(e, ANSWER))?;
        self.accept(response).await
    }

    /// Turns an answer that is no success into an error.
    async fn accept(&self, response: Response) -> Result<Response> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse().ok())
            .map(Duration::from_secs);
        let bytes = response.bytes().await.map_err(|e| self.failure(e, ANSWER))?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(Error::Problem { problem: Box::new(problem), retry_after }),
            Err(_) => Err(self.unexpected(status, &bytes)),
        }
    }

    fn unexpected(&self, status: StatusCode, body: &[u8]) -> Error {
        let text = String::from_utf8_lossy(body);
        let excerpt: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(EXCERPT).collect();
        let body = if excerpt.is_empty() { "(nothing)".to_owned() } else { excerpt };
        Error::Unexpected { url: self.base.to_string(), status: status.as_u16(), body }
    }

    pub(crate) fn failure(&self, source: reqwest::Error, after: Duration) -> Error {
        let url = self.base.to_string();
        // `without_url`: the address is told once, and query strings stay out of messages.
        let source = source.without_url();
        if source.is_connect() {
            Error::Connection { url, source }
        } else if source.is_timeout() {
            Error::Silent { url, after }
        } else {
            Error::Interrupted { url, source }
        }
    }
}
