//! Requests as any client sends them, timed from the first byte sent to the last one received.

use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, VclusterView};
use reqwest::{Method, StatusCode};
use std::time::{Duration, Instant};

use super::figures::Latency;

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("{what} was not answered")]
    Send { what: String, source: reqwest::Error },
    #[error("{what} was answered with {status}: {said}")]
    Status { what: String, status: StatusCode, said: String },
    #[error("the answer to {what} cannot be read")]
    Read { what: String, source: serde_json::Error },
}

/// One signed-in caller. What it reads it does not decode, so that only the server is measured.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Caller {
    pub fn new(url: &str, token: &str) -> Result<Self, ApiError> {
        let http = reqwest::Client::builder().tcp_nodelay(true).build();
        let http = http.map_err(|source| ApiError::Send { what: "nothing yet".to_owned(), source })?;
        Ok(Self { http, url: format!("{url}/api/v1"), token: token.to_owned() })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&CreateVcluster>,
    ) -> Result<(Vec<u8>, Duration), ApiError> {
        let what = format!("{method} {path}");
        let failed = |source| ApiError::Send { what: what.clone(), source };
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let began = Instant::now();
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(failed)?;
        let taken = began.elapsed();
        if status.is_success() {
            return Ok((bytes.to_vec(), taken));
        }
        Err(ApiError::Status { what, status, said: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// Asks so often, one after the other.
    pub async fn measure(&self, path: &str, samples: usize) -> Result<Latency, ApiError> {
        let (mut taken, mut size) = (Vec::new(), 0);
        for _ in 0..samples {
            let (bytes, took) = self.send(Method::GET, path, None).await?;
            size = bytes.len();
            taken.push(took);
        }
        Ok(Latency::of(taken, size))
    }

    pub async fn create(&self, owner: &str, name: &str, nodes: u32) -> Result<(Vec<u8>, Duration), ApiError> {
        let wanted = CreateVcluster { name: name.to_owned(), nodes: nodes.into(), ..CreateVcluster::default() };
        self.send(Method::POST, &format!("/vclusters?owner={owner}"), Some(&wanted)).await
    }

    /// Makes so many vclusters of one node, one after the other, then takes them away.
    pub async fn measure_create(&self, owner: &str, prefix: &str, samples: usize) -> Result<Latency, ApiError> {
        let (mut taken, mut size) = (Vec::new(), 0);
        for number in 0..samples {
            let (bytes, took) = self.create(owner, &format!("{prefix}{number}"), 1).await?;
            size = bytes.len();
            taken.push(took);
        }
        for number in 0..samples {
            self.delete(owner, &format!("{prefix}{number}"), false).await?;
        }
        Ok(Latency::of(taken, size))
    }

    /// From the request until all nodes are reported running; then it goes again.
    pub async fn measure_running(&self, owner: &str, nodes: u32, samples: usize) -> Result<Latency, ApiError> {
        let (mut taken, mut size) = (Vec::new(), 0);
        for number in 0..samples {
            let (name, began) = (format!("small{number}"), Instant::now());
            self.create(owner, &name, nodes).await?;
            let path = format!("/vclusters/{name}?owner={owner}&wait=running&timeout=60");
            let (bytes, _) = self.send(Method::GET, &path, None).await?;
            taken.push(began.elapsed());
            size = bytes.len();
            self.delete(owner, &name, true).await?;
        }
        Ok(Latency::of(taken, size))
    }

    async fn delete(&self, owner: &str, name: &str, wait: bool) -> Result<(), ApiError> {
        let wait = if wait { "&wait=absent&timeout=60" } else { "" };
        self.send(Method::DELETE, &format!("/vclusters/{name}?owner={owner}{wait}"), None).await.map(drop)
    }

    /// Everybody's vclusters.
    pub async fn all(&self) -> Result<Vec<VclusterView>, ApiError> {
        let (bytes, _) = self.send(Method::GET, "/vclusters", None).await?;
        serde_json::from_slice(&bytes).map_err(|source| ApiError::Read { what: "/vclusters".to_owned(), source })
    }

    pub async fn all_are(&self, count: usize, status: Status) -> Result<bool, ApiError> {
        let all = self.all().await?;
        Ok(all.len() == count && all.iter().all(|view| view.status == status))
    }
}
