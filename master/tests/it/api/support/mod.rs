//! A master with everything real but the store, the hosts and the way into nodes.

pub mod access;
pub mod host;

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use docklet_master::assembly::Assembly;
use docklet_master::auth::passwords::{Password, hash_now};
use docklet_master::http::server;
use docklet_master_db::Db;
use docklet_store::Store;
use docklet_store::keys::Keys;
use docklet_store::memory::MemoryStore;
use docklet_types::config::Config;
use docklet_types::problem::Problem;
use docklet_types::time::Micros;
use docklet_types::view::{CreateVcluster, Role, Session, VclusterView};
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use self::access::FakeAccess;
use self::host::FakeHost;

pub const PASSWORD: &str = "correct horse";

/// What serves, and where.
pub struct Master {
    pub url: String,
    pub assembly: Option<Assembly>,
    server: actix_web::dev::ServerHandle,
}

impl Drop for Master {
    fn drop(&mut self) {
        // Without waiting: the runtime that would carry the wait ends with the test.
        drop(self.server.stop(false));
    }
}

pub struct Site {
    pub url: String,
    pub store: MemoryStore,
    pub keys: Keys,
    pub db: Db,
    pub access: Arc<FakeAccess>,
    pub host: FakeHost,
    pub http: reqwest::Client,
    pub master: Master,
    pub config: Config,
    pub dir: TempDir,
}

/// Writes an OCI layout with one layer.
pub fn write_image(images: &Path, name: &str) {
    use sha2::Digest as _;
    let blobs = images.join(name).join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let layer = serde_json::json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1000, "mediaType": "x"});
    let manifest =
        serde_json::json!({"schemaVersion": 2, "layers": [layer], "annotations": {"name": name}}).to_string();
    let hex = hex::encode(sha2::Sha256::digest(manifest.as_bytes()));
    std::fs::write(blobs.join(&hex), &manifest).unwrap();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": format!("sha256:{hex}"), "size": 1, "mediaType": "x"}]});
    std::fs::write(images.join(name).join("index.json"), index.to_string()).unwrap();
}

fn config(dir: &Path, port: u16, extra: &str) -> Config {
    let name = if extra.contains("CLUSTER_NAME=") { "" } else { "CLUSTER_NAME=test\n" };
    let extra = extra.replace("{port}", &port.to_string());
    let text = format!(
        "FS_PREFIX={}\n{name}PORTAL_URL=http://localhost:{port}\nPROXY_IP=127.0.0.1\nPROXY_PORT={port}\n\
         CLUSTER_NET=172.30.0.1/16\nUSER_MAX_NODES=6\n{extra}",
        dir.display()
    );
    Config::parse(&text, []).unwrap()
}

/// A site with root, ada and bob.
pub async fn site() -> Site {
    site_with("").await
}

pub async fn site_with(extra: &str) -> Site {
    let dir = directory();
    let db = Db::open_file(&dir.path().join("local/master/docklet.db")).await.unwrap();
    site_over(dir, db, extra).await
}

/// Where a site's files are, with its images.
pub fn directory() -> TempDir {
    // Unix sockets below the prefix bound its length.
    let dir = tempfile::Builder::new().prefix("dk").tempdir_in("/tmp").unwrap();
    for image in ["base", "small"] {
        write_image(&dir.path().join("global/images"), image);
    }
    dir
}

/// Serves on a free port of the loopback.
pub async fn master(
    dir: &Path,
    extra: &str,
    db: Db,
    store: Arc<dyn Store>,
    access: Arc<FakeAccess>,
) -> (Master, Config) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = config(dir, port, extra);
    let assembly = Assembly::start(&config, db, store, access).await.unwrap();
    let running = server::serve(assembly.parts.clone(), listener).unwrap();
    let server = running.handle();
    tokio::spawn(running);
    (Master { url: format!("http://localhost:{port}"), assembly: Some(assembly), server }, config)
}

/// A site with root, ada and bob in an empty database.
pub async fn site_over(dir: TempDir, db: Db, extra: &str) -> Site {
    let hash = hash_now(&Password::parse(PASSWORD).unwrap()).unwrap();
    for (name, role) in [("root", Role::Admin), ("ada", Role::User), ("bob", Role::User)] {
        db.create_user(&name.parse().unwrap(), &hash, role, Micros::now()).await.unwrap();
    }
    let store = MemoryStore::new();
    let access = Arc::new(FakeAccess::default());
    let (master, config) = master(dir.path(), extra, db.clone(), Arc::new(store.clone()), access.clone()).await;
    let db = db.at_site(&config.cluster_name).await.unwrap();
    let keys = Keys::new(&config.cluster_name);
    let host = FakeHost::start(Arc::new(store.clone()), keys.clone(), "h1").await;
    // reqwest speaks TLS where another crate of the workspace asks it to, and then wants to be told with what.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    Site { url: master.url.clone(), store, keys, db, access, host, http, master, config, dir }
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        Self { status: response.status(), headers: response.headers().clone(), text: response.text().await.unwrap() }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The value, after a look at the status.
    #[track_caller]
    pub fn ok<T: DeserializeOwned>(&self, status: u16) -> T {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The problem, after a look at everything that every problem must have.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Problem {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let json: serde_json::Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!(json["code"], code, "{json}");
        assert_eq!(json["status"], status);
        assert!(
            json["title"].as_str().is_some_and(|t| t.len() > 5) && json["detail"].as_str().is_some_and(|d| d.len() > 5),
            "{json}"
        );
        serde_json::from_value(json).unwrap()
    }
}

/// A signed-in user, or nobody.
#[derive(Clone)]
pub struct User {
    pub token: Option<String>,
    pub url: String,
    pub http: reqwest::Client,
}

impl Site {
    pub fn nobody(&self) -> User {
        User { token: None, url: self.url.clone(), http: self.http.clone() }
    }

    pub async fn sign_in(&self, name: &str) -> User {
        let body = serde_json::json!({"username": name, "password": PASSWORD});
        let session: Session = self.nobody().send(Method::POST, "/api/v1/sessions", Some(body)).await.ok(201);
        User { token: Some(session.token), ..self.nobody() }
    }
}

impl User {
    /// The same user at another master.
    #[must_use]
    pub fn at(&self, master: &Master) -> Self {
        Self { url: master.url.clone(), ..self.clone() }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<impl Serialize>) -> Answer {
        let request = self.request(method, path);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        Answer::of(request.send().await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None::<()>).await
    }

    pub async fn post(&self, path: &str, body: serde_json::Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub async fn act(&self, path: &str) -> Answer {
        self.send(Method::POST, path, None::<()>).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None::<()>).await
    }

    pub async fn create(&self, name: &str, nodes: i64) -> Answer {
        let wanted = CreateVcluster { name: name.to_owned(), nodes, ..CreateVcluster::default() };
        self.send(Method::POST, "/api/v1/vclusters", Some(wanted)).await
    }

    /// Creates and waits until it runs.
    #[track_caller]
    pub fn running(&self, name: &str, nodes: i64) -> impl Future<Output = VclusterView> {
        let (this, name) = (self.clone(), name.to_owned());
        async move {
            this.create(&name, nodes).await.ok::<VclusterView>(202);
            this.wait(&name, "running").await
        }
    }

    pub async fn wait(&self, name: &str, status: &str) -> VclusterView {
        let view: VclusterView = self.get(&format!("/api/v1/vclusters/{name}?wait={status}&timeout=20")).await.ok(200);
        assert_eq!(view.status.as_str(), status, "{view:?}");
        view
    }
}

/// Tries until it holds, for at most ten seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
