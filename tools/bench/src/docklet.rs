//! Docklet's side: a vcluster through the REST API, as any client would.

use docklet_client::{Client, Deletion, Error, Target, WaitError};
use docklet_types::paths::Paths;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, SizeRequest};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::launch::Options;

#[derive(Debug, thiserror::Error)]
pub enum DockletError {
    #[error("the server refused or cannot be reached")]
    Client(#[from] Error),
    #[error("the nodes did not become ready")]
    Ready(#[source] WaitError),
    #[error("the nodes were not gone in time")]
    Gone(#[source] WaitError),
    #[error(
        "no token was given, and the first user's password cannot be read from {path} (give --token or DOCKLET_TOKEN)"
    )]
    Password { path: PathBuf, source: io::Error },
    #[error("there is no image {0:?} (see: docklet image list)")]
    NoImage(String),
    #[error("image {image:?} is not unpacked at {path} (is this the host that runs the nodes?)")]
    NotUnpacked { image: String, path: PathBuf, source: io::Error },
    #[error("the server has {warm} nodes booted ahead and not {nodes} (PREBOOT_NODES and DEFAULT_IMAGE of the master)")]
    NotAhead { warm: u32, nodes: u32 },
    #[error("{path} is not understood")]
    Manifest { path: PathBuf, source: serde_json::Error },
}

pub type Result<T> = std::result::Result<T, DockletError>;

pub struct Docklet {
    client: Client,
    name: String,
    nodes: u32,
    image: String,
    size: SizeRequest,
    timeout: Duration,
    /// This run signed in by itself, so it signs out too.
    own_session: bool,
    /// A vcluster may be there.
    made: bool,
    /// Where to sign in before each round, so that nodes are booted ahead.
    ahead: Option<Server>,
}

/// Which Docklet is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct Server {
    /// Address of the Docklet server.
    #[arg(long, env = "DOCKLET_URL", default_value = "http://localhost:8000")]
    pub url: String,
    /// Token; without one the run signs in as root with the generated password.
    #[arg(long, env = "DOCKLET_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Docklet's FS_PREFIX on this host.
    #[arg(long, env = "DOCKLET_FS_PREFIX", default_value = "/opt/docklet")]
    pub fs_prefix: PathBuf,
}

/// A client that is signed in, its token, and whether it was this run that signed in.
pub async fn sign_in(server: &Server) -> Result<(Client, String, bool)> {
    let client = Client::new(&server.url)?;
    let (token, own_session) = match server.token.clone().filter(|t| !t.is_empty()) {
        Some(token) => (token, false),
        None => {
            let path = Paths::new(&server.fs_prefix).generated_password();
            let text = fs::read_to_string(&path).map_err(|source| DockletError::Password { path, source })?;
            (client.sign_in("root", text.trim()).await?.token, true)
        }
    };
    Ok((client.with_token(&token)?, token, own_session))
}

impl Docklet {
    pub async fn sign_in(options: &Options) -> Result<Self> {
        let (client, _, own_session) = sign_in(&options.server).await?;
        Ok(Self {
            client,
            // A name of its own: whatever else the machine runs stays as it is.
            name: format!("bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]),
            nodes: options.nodes,
            image: options.image.clone(),
            size: SizeRequest { cpu: options.cpu, memory_mib: options.memory, disk_mib: options.disk },
            timeout: options.timeout,
            own_session,
            made: false,
            ahead: options.booted_ahead.then(|| options.server.clone()),
        })
    }

    /// From the request to every node ready.
    pub async fn launch(&mut self, nodes: u32) -> Result<Duration> {
        let request = CreateVcluster {
            name: self.name.clone(),
            nodes: i64::from(nodes),
            image: Some(self.image.clone()),
            size: Some(self.size),
            ..CreateVcluster::default()
        };
        let began = Instant::now();
        self.made = true;
        let view = self.client.create(&request).await?;
        self.client
            .wait(&self.name, Target::of(&view, Status::Running), self.timeout)
            .await
            .map_err(DockletError::Ready)?;
        Ok(began.elapsed())
    }

    /// From the request to nothing left of them.
    pub async fn remove(&mut self) -> Result<Duration> {
        let began = Instant::now();
        // One request that is answered when nothing is left; only a server that gives up waiting is asked again.
        if self.client.delete(&self.name, Some(self.timeout)).await? == Deletion::Underway {
            self.client.delete_and_wait(&self.name, self.timeout).await.map_err(DockletError::Gone)?;
        }
        self.made = false;
        Ok(began.elapsed())
    }

    pub async fn round(&mut self) -> Result<(Duration, Duration)> {
        if let Some(server) = &self.ahead {
            self.wait_for_warm(server).await?;
        }
        let ready = self.launch(self.nodes).await?;
        Ok((ready, self.remove().await?))
    }

    /// Signs in, as a person would who is about to make a vcluster, and waits until its nodes are booted and frozen.
    async fn wait_for_warm(&self, server: &Server) -> Result<()> {
        let (client, _, own_session) = sign_in(server).await?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let warm: u32 = client.hosts().await?.iter().map(|h| h.nodes_warm).sum();
            if warm >= self.nodes {
                break;
            }
            if Instant::now() > deadline {
                return Err(DockletError::NotAhead { warm, nodes: self.nodes });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if own_session {
            let _ = client.sign_out().await;
        }
        Ok(())
    }

    /// Unpacks the image on the host by running one node, and returns the directories of its layers, lowest first.
    pub async fn warm_up(&mut self, fs_prefix: &Path) -> Result<Vec<PathBuf>> {
        self.launch(1).await?;
        self.remove().await?;
        unpacked(&self.client, fs_prefix, &self.image).await
    }

    /// Removes whatever is there; errors are told but stop nothing.
    pub async fn clean(&mut self) {
        if self.made {
            match self.client.delete_and_wait(&self.name, self.timeout).await {
                Ok(()) => self.made = false,
                Err(WaitError::Client(e)) if e.is_not_found() => self.made = false,
                Err(e) => eprintln!("docklet-bench: vcluster {} is left behind: {}", self.name, crate::chain(&e)),
            }
        }
        if self.own_session {
            let _ = self.client.sign_out().await;
            self.own_session = false;
        }
    }
}

/// The directories of the layers of an image that a node was started of on this host, lowest first.
pub async fn unpacked(client: &Client, fs_prefix: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let images = client.images().await?;
    let image = images.into_iter().find(|i| i.name == name).ok_or_else(|| DockletError::NoImage(name.to_owned()))?;
    layers(&Paths::new(fs_prefix).unpacked_images(), name, &image.digest)
}

/// The unpacked layers of an image, from the manifest that the worker keeps beside them.
fn layers(root: &Path, image: &str, digest: &str) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(serde::Deserialize)]
    struct Layer {
        digest: String,
    }
    let hex = |digest: &str| digest.strip_prefix("sha256:").unwrap_or(digest).to_owned();
    let path = root.join("manifests").join(format!("{}.json", hex(digest)));
    let bytes = fs::read(&path).map_err(|source| DockletError::NotUnpacked {
        image: image.to_owned(),
        path: path.clone(),
        source,
    })?;
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|source| DockletError::Manifest { path, source })?;
    Ok(manifest.layers.iter().map(|l| root.join("layers").join(hex(&l.digest))).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn layers_come_from_the_manifest_in_its_order() {
        let root = std::env::temp_dir().join(format!("docklet-bench-layers-{}", std::process::id()));
        fs::create_dir_all(root.join("manifests")).unwrap();
        fs::write(
            root.join("manifests/ab.json"),
            r#"{"layers":[{"digest":"sha256:01","size":3},{"digest":"sha256:02"}]}"#,
        )
        .unwrap();
        assert_eq!(layers(&root, "small", "sha256:ab").unwrap(), [root.join("layers/01"), root.join("layers/02")]);
        assert!(matches!(layers(&root, "small", "sha256:cd"), Err(DockletError::NotUnpacked { .. })));
        fs::remove_dir_all(&root).unwrap();
    }
}
