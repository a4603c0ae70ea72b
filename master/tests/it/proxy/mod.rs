//! The proxy in front of scripted apps: real sockets on both sides, real sessions in SQLite, nodes played by listeners.

mod agent;
mod apps;
mod client;
mod front;
mod origins;
mod shells;
mod smuggling;
mod terminals;
mod tunnels;
mod upstreams;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, web};
use async_trait::async_trait;
use docklet_master::auth::Sessions;
use docklet_master::auth::token::TokenHash;
use docklet_master::proxy::address::{AppAddress, Public};
use docklet_master::proxy::agent::{AccessError, NodeAccess, NodeStream, ShellName, WindowSize};
use docklet_master::proxy::routes::{RouteName, RouteTarget, Routes};
use docklet_master::proxy::{self, Limits, Parts, Proxy};
use docklet_master_db::Db;
use docklet_master_db::sessions::SessionKind;
use docklet_types::agent::{ExecOutput, Part};
use docklet_types::id::{NodeId, UserId};
use docklet_types::time::Micros;
use docklet_types::view::Role;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use client::Reply;
use shells::Shells;

/// Nodes whose ports are listeners of the test.
#[derive(Default)]
pub struct FakeNodes {
    ports: Mutex<HashMap<(NodeId, u16), SocketAddr>>,
    running: Mutex<HashMap<NodeId, bool>>,
    pub shells: Shells,
}

impl FakeNodes {
    pub fn listen(&self, node: NodeId, port: u16, at: SocketAddr) {
        self.ports.lock().insert((node, port), at);
    }

    pub fn set_running(&self, node: NodeId, running: bool) {
        self.running.lock().insert(node, running);
    }

    fn must_run(&self, node: NodeId) -> Result<(), AccessError> {
        if self.running.lock().get(&node).copied().unwrap_or(false) { Ok(()) } else { Err(AccessError::NotRunning) }
    }
}

#[async_trait]
impl NodeAccess for FakeNodes {
    async fn dial(&self, target: &RouteTarget, port: u16) -> Result<NodeStream, AccessError> {
        self.must_run(target.node)?;
        let at = self.ports.lock().get(&(target.node, port)).copied().ok_or(AccessError::Refused)?;
        let stream = TcpStream::connect(at).await.map_err(|_| AccessError::Refused)?;
        stream.set_nodelay(true).unwrap();
        Ok(Box::new(stream))
    }

    async fn wait_port(&self, target: &RouteTarget, port: u16, _: Duration) -> Result<(), AccessError> {
        self.dial(target, port).await.map(|_| ())
    }

    async fn terminal(
        &self,
        target: &RouteTarget,
        shell: &ShellName,
        _: WindowSize,
    ) -> Result<NodeStream, AccessError> {
        self.must_run(target.node)?;
        Ok(self.shells.attach(target.node, shell.as_str()))
    }

    async fn exec(&self, _: &RouteTarget, _: Vec<String>, _: String, _: Duration) -> Result<ExecOutput, AccessError> {
        Err(AccessError::NotRunning)
    }

    async fn logs(&self, _: &RouteTarget, _: u32) -> Result<String, AccessError> {
        Err(AccessError::NotRunning)
    }

    async fn send_disk(&self, _: &RouteTarget, _: u64, _: Part, _: bool) -> Result<NodeStream, AccessError> {
        Err(AccessError::NotRunning)
    }

    async fn take_disk(&self, _: &RouteTarget, _: u64, _: Part) -> Result<Option<NodeStream>, AccessError> {
        Err(AccessError::NotRunning)
    }
}

/// Routes as a test makes them.
#[derive(Default)]
pub struct KnownRoutes(Mutex<HashMap<RouteName, RouteTarget>>);

impl Routes for KnownRoutes {
    fn find(&self, name: &RouteName) -> Option<RouteTarget> {
        self.0.lock().get(name).cloned()
    }
}

/// An account that is signed in to the portal.
pub struct Person {
    pub id: UserId,
    pub token: String,
    pub session: TokenHash,
}

impl Person {
    pub fn cookie(&self) -> String {
        format!("docklet_session={}", self.token)
    }
}

/// The public port with what lies behind it.
pub struct Door {
    pub at: SocketAddr,
    pub public: Public,
    pub sessions: Sessions,
    pub db: Db,
    pub nodes: Arc<FakeNodes>,
    pub routes: Arc<KnownRoutes>,
    pub proxy: Arc<Proxy>,
    known: Mutex<Vec<(AppAddress, RouteTarget)>>,
    server: ServerHandle,
    _directory: tempfile::TempDir,
}

impl Door {
    pub async fn open() -> Self {
        Self::open_with(Limits::default()).await
    }

    pub async fn open_with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::open_file(&directory.path().join("docklet.db")).await.unwrap();
        let sessions = Sessions::new(db.clone(), 1);
        tokio::spawn(sessions.clone().watch_over());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let public = Public::new(&format!("http://localhost:{}", at.port()), "localhost").unwrap();
        let (nodes, routes) = (Arc::new(FakeNodes::default()), Arc::new(KnownRoutes::default()));
        let proxy = Proxy::new(Parts {
            public: public.clone(),
            routes: Arc::clone(&routes) as _,
            access: Arc::clone(&nodes) as _,
            sessions: sessions.clone(),
            limits,
        });
        let served = Arc::clone(&proxy);
        let server = proxy::front::serve(Arc::clone(&proxy), listener, NonZeroUsize::MIN, move || {
            let portal = |_: web::Bytes| async { HttpResponse::Ok().body("the portal") };
            App::new()
                .configure(|service| proxy::configure(service, &served))
                .service(web::scope("").default_service(web::to(portal)))
        })
        .unwrap();
        let handle = server.handle();
        tokio::spawn(server);
        Self {
            at,
            public,
            sessions,
            db,
            nodes,
            routes,
            proxy,
            known: Mutex::default(),
            server: handle,
            _directory: directory,
        }
    }

    /// Stops the server as the programs do.
    pub async fn stop(&self) {
        self.server.stop(true).await;
    }

    pub async fn person(&self, name: &str, role: Role) -> Person {
        let user = self.db.create_user(&name.parse().unwrap(), "no hash", role, Micros::now()).await.unwrap();
        let (token, _) = self.sessions.begin(user.id, SessionKind::Portal, "test", "127.0.0.1").await.unwrap();
        Person { id: user.id, token: token.reveal().to_owned(), session: token.hash() }
    }

    /// A running node `node1` of the owner's vcluster `demo`, and the address of one of its ports.
    pub fn node(&self, owner: &str, port: u16) -> (NodeId, AppAddress) {
        let app = AppAddress::parse_label(&format!("{port}--node1--demo--{owner}")).unwrap();
        let node = NodeId::from_uuid(uuid::Uuid::now_v7());
        let mut known = self.known.lock();
        known.retain(|(other, _)| other.user != app.user);
        known.push((app.clone(), RouteTarget { node, host: "host1".parse().unwrap(), agent: None }));
        *self.routes.0.lock() = known
            .iter()
            .map(|(app, target)| ((app.user.clone(), app.vcluster.clone(), app.node.clone()), target.clone()))
            .collect();
        self.nodes.set_running(node, true);
        (node, app)
    }

    /// A node with an app at that listener.
    pub fn app(&self, owner: &str, at: SocketAddr) -> AppAddress {
        let (node, app) = self.node(owner, 8888);
        self.nodes.listen(node, 8888, at);
        app
    }

    pub fn host(&self, app: &AppAddress) -> String {
        self.public.app_host(app)
    }

    pub fn origin(&self, app: &AppAddress) -> String {
        format!("http://{}", self.host(app))
    }

    pub fn portal_host(&self) -> String {
        format!("localhost:{}", self.at.port())
    }

    /// A GET with these headers, on a connection of its own.
    pub async fn get(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        client::exchange(self.at, "GET", host, path, headers, b"").await
    }

    /// Goes through the whole sign-in of an app's origin; the `Cookie` for it.
    pub async fn app_cookie(&self, person: &Person, app: &AppAddress) -> String {
        let query = format!("/apps/open?host={}&next=%2F", self.host(app));
        let opened = self.get(&self.portal_host(), &query, &[("cookie", &person.cookie())]).await;
        assert_eq!(opened.status, 303, "{opened:?}");
        let path = opened.header("location").unwrap().strip_prefix(&self.origin(app)).unwrap().to_owned();
        let redeemed = self.get(&self.host(app), &path, &[]).await;
        assert_eq!(redeemed.status, 303, "{redeemed:?}");
        redeemed.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The workers end by themselves; a test does not wait for connections it left open.
        drop(self.server.stop(false));
    }
}

/// Waits until `what` holds.
pub async fn eventually(within: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + within;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until `count` has grown and then stayed the same for a tenth of a second.
pub async fn settled(what: &str, count: impl Fn() -> usize) -> usize {
    let (mut last, mut since) = (0, Instant::now());
    eventually(Duration::from_secs(10), what, || {
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() >= Duration::from_millis(100)
    })
    .await;
    last
}

/// Open descriptors of this process.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// This process's memory in bytes.
pub fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}
