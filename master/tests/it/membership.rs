//! Hosts that join, over a real etcd with certificates: who is let in, and how far.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use docklet_identity::authority::{Authority, request, request_again};
use docklet_identity::files::install;
use docklet_identity::message;
use docklet_identity::tls::{Tls, joining_client, server_name};
use docklet_master::etcd::LocalEtcd;
use docklet_master::membership::users::Users;
use docklet_master::membership::{self, Admission, endpoint, tokens};
use docklet_store::keys::{Key, Keys};
use docklet_store::patient::PatientEtcd;
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::config::Config;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::join::{JoinToken, MASTER_IDENTITY, MAX_MESSAGE, MasterReply, MasterRequest, Membership};
use docklet_types::name::HostName;
use docklet_types::paths::{IdentityFiles, Paths};
use docklet_types::port::Protocol;
use docklet_types::time::Micros;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use uuid::Uuid;

struct Site {
    etcd: Option<LocalEtcd>,
    store: Arc<PatientEtcd>,
    keys: Keys,
    config: Config,
    fingerprint: String,
    address: SocketAddr,
    tasks: Vec<JoinSet<()>>,
    directory: tempfile::TempDir,
}

impl Site {
    async fn up() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::Builder::new().prefix("dk").tempdir_in("/tmp").unwrap();
        let (config, mut etcd) = start_etcd(&directory).await;
        let paths = Paths::new(&config.fs_prefix);
        let keys = Keys::new(&config.cluster_name);
        let store = Arc::new(PatientEtcd::new(config.etcd.clone(), paths.master_identity()));
        let authority = etcd.take_authority().unwrap();
        let fingerprint = authority.fingerprint();
        let host = "here".parse().unwrap();
        let started = membership::start(&config, &paths, Arc::clone(&store), authority, host).await.unwrap();
        // Not reachable for others by its configuration, so the endpoint is opened here.
        let listener = endpoint::listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let users = Users::new(Some(Arc::clone(&store)), keys.clone());
        let authority = Authority::load(&paths.master_identity().authority, &paths.authority_key()).unwrap().unwrap();
        let admission = Arc::new(Admission::new(&config, store.clone(), authority, users));
        let mut served = JoinSet::new();
        served.spawn(endpoint::serve(listener, Tls::new(paths.master_identity()).with_anonymous(), admission));
        let tasks = vec![started, served];
        Self { etcd: Some(etcd), store, keys, config, fingerprint, address, tasks, directory }
    }

    async fn down(mut self) {
        for tasks in &mut self.tasks {
            tasks.shutdown().await;
        }
        self.etcd.take().unwrap().stop().await;
    }

    async fn token(&self, host: Option<&str>) -> JoinToken {
        let host = host.map(|name| name.parse().unwrap());
        tokens::issue(self.store.as_ref(), &self.keys, &self.fingerprint, host, 60, Micros::now()).await.unwrap()
    }

    async fn ask(&self, client: Arc<ClientConfig>, asked: &MasterRequest) -> std::io::Result<MasterReply> {
        let stream = TcpStream::connect(self.address).await?;
        let mut stream = TlsConnector::from(client).connect(server_name(MASTER_IDENTITY)?, stream).await?;
        message::write(&mut stream, asked, MAX_MESSAGE).await.map_err(std::io::Error::other)?;
        message::read(&mut stream, MAX_MESSAGE).await.map_err(std::io::Error::other)
    }

    /// Joins as that host; its files lie where a worker's would.
    async fn join(&self, host: &str, token: &JoinToken) -> Result<(IdentityFiles, Membership), String> {
        let (key, request) = request().unwrap();
        let asked = MasterRequest::Join {
            token_id: token.id.clone(),
            secret: token.secret.clone(),
            host: host.parse().unwrap(),
            request,
            networks: Vec::new(),
            now: Micros::now(),
        };
        let client = Arc::new(joining_client(&token.authority).unwrap());
        match self.ask(client, &asked).await.map_err(|e| e.to_string())? {
            MasterReply::Joined(membership) => {
                let files = Paths::new(self.directory.path().join(host)).worker_identity();
                install(&files, &key, &membership.certificate, &membership.authority).unwrap();
                Ok((files, *membership))
            }
            MasterReply::Refused(reason) => Err(reason.code),
            MasterReply::Renewed { .. } => panic!("renewed"),
        }
    }

    fn worker(&self, files: &IdentityFiles) -> PatientEtcd {
        PatientEtcd::new(self.config.etcd.clone(), files.clone())
    }
}

/// At a port of its own; tests run side by side in processes of their own.
async fn start_etcd(directory: &tempfile::TempDir) -> (Config, LocalEtcd) {
    let first = 32_000 + (std::process::id() % 8_000) as u16 * 2;
    for attempt in 0..10 {
        let port = first + attempt * 2;
        let prefix: PathBuf = directory.path().join(attempt.to_string());
        let text = format!("FS_PREFIX={}\nETCD=localhost:{port}\nCLUSTER_NAME=test\n", prefix.display());
        let config = Config::parse(&text, []).unwrap();
        if let Ok(etcd) = LocalEtcd::ensure(&config, &Paths::new(&prefix)).await {
            return (config, etcd);
        }
    }
    panic!("etcd does not start");
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Refused { .. }))
}

async fn write(store: &dyn Store, key: String) -> Result<Outcome, StoreError> {
    store.txn(Txn::new().put(key, &"text").unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_joined_may_touch_its_own_and_nothing_else() {
    let site = Site::up().await;
    let (files, membership) = site.join("h1", &site.token(None).await).await.unwrap();
    site.join("h2", &site.token(None).await).await.unwrap();
    assert_eq!(membership.cluster_name.as_str(), "test");
    let (h1, h2): (HostName, HostName) = ("h1".parse().unwrap(), "h2".parse().unwrap());
    let worker = site.worker(&files);
    // What a worker does.
    assert!(worker.list(&site.keys.plans_of(&h1)).await.is_ok());
    assert!(worker.watch(&site.keys.plans_of(&h1), 1).await.is_ok());
    for key in [site.keys.reports_of(&h1) + "nodes/x", site.keys.write(&Key::Host(h1.clone()))] {
        assert!(matches!(write(&worker, key).await, Ok(Outcome::Committed { .. })));
    }
    let lease = worker.grant(std::time::Duration::from_secs(5)).await.unwrap();
    let mut alive = Txn::new();
    let key = site.keys.write(&Key::Alive(h1.clone()));
    alive.writes.push(docklet_store::Write::Put { key: key.clone(), value: b"1".to_vec(), lease: Some(lease) });
    assert!(worker.txn(alive).await.is_ok());
    assert!(worker.keep(lease).await.unwrap().beat().await.unwrap());
    worker.revoke(lease).await.unwrap();
    assert_eq!(site.store.get(&key).await.unwrap(), None);
    // What it does not.
    assert!(refused(worker.list(site.keys.root()).await));
    assert!(refused(worker.list(&site.keys.plans_of(&h2)).await));
    assert!(refused(worker.get(&site.keys.write(&Key::Host(h2.clone()))).await));
    assert!(refused(worker.list(&site.keys.tokens()).await));
    assert!(refused(write(&worker, site.keys.plans_of(&h1) + "nodes/x").await));
    assert!(refused(write(&worker, site.keys.reports_of(&h2) + "nodes/x").await));
    assert!(refused(write(&worker, site.keys.write(&Key::Alive(h2))).await));
    assert!(refused(write(&worker, site.keys.write(&Key::Joined(h1))).await));
    site.down().await;
}

/// One key of each kind: what concerns a host, that one's. A new kind does not compile before it is here.
fn of_each_kind(host: &HostName) -> Vec<Key> {
    let (node, vcluster) = (NodeId::from_uuid(Uuid::from_u128(1)), VclusterId::from_uuid(Uuid::from_u128(2)));
    let (owner, name) = ("alice".parse().unwrap(), "demo".parse().unwrap());
    let all = vec![
        Key::Spec(vcluster),
        Key::Name(owner, name),
        Key::Usage("alice".parse().unwrap()),
        Key::Port(Protocol::Tcp, 20_000),
        Key::Network(vcluster),
        Key::NetworkAlloc,
        Key::HostAlloc(host.clone()),
        Key::VclusterAlloc(vcluster),
        Key::NodePlan(host.clone(), node),
        Key::VclusterPlan(host.clone(), vcluster),
        Key::NodeReport(host.clone(), node),
        Key::VclusterReport(host.clone(), vcluster),
        Key::Host(host.clone()),
        Key::HostSettings(host.clone()),
        Key::Alive(host.clone()),
        Key::Joined(host.clone()),
        Key::Token("0123456789ab".to_owned()),
        Key::Master(host.clone()),
        Key::Move(node),
        Key::Lost(host.clone()),
        Key::Cleared(host.clone()),
        Key::Maintenance,
    ];
    for key in &all {
        match key {
            Key::Spec(_) | Key::Name(..) | Key::Usage(_) | Key::Port(..) | Key::Network(_) | Key::NetworkAlloc => {}
            Key::HostAlloc(_) | Key::VclusterAlloc(_) | Key::NodePlan(..) | Key::VclusterPlan(..) => {}
            Key::NodeReport(..) | Key::VclusterReport(..) | Key::Host(_) | Key::HostSettings(_) | Key::Alive(_) => {}
            Key::Joined(_) | Key::Token(_) | Key::Master(_) | Key::Move(_) | Key::Lost(_) | Key::Cleared(_) => {}
            Key::Maintenance => {}
        }
    }
    all
}

/// Whether a watch is told that it may not be, be it at once or in place of its first event.
async fn watch_refused(store: &dyn Store, key: &str) -> bool {
    match store.watch(key, 1).await {
        Ok(mut watch) => {
            tokio::time::timeout(std::time::Duration::from_secs(10), watch.next()).await.is_ok_and(|told| told.is_err())
        }
        other => refused(other.map(|_| ())),
    }
}

/// Its certificate in other hands: nothing of another host's or of the cluster's is read, written, removed or watched.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_worker_reaches_nothing_of_another() {
    let site = Site::up().await;
    let (stolen, _) = site.join("h1", &site.token(None).await).await.unwrap();
    let (files, _) = site.join("h2", &site.token(None).await).await.unwrap();
    let (thief, victim) = (site.worker(&stolen), site.worker(&files));
    let (own, other): (HostName, HostName) = ("h1".parse().unwrap(), "h2".parse().unwrap());
    let report = site.keys.reports_of(&own) + "nodes/x";
    for key in of_each_kind(&other) {
        let key = site.keys.write(&key);
        if site.store.get(&key).await.unwrap().is_none() {
            assert!(matches!(write(site.store.as_ref(), key.clone()).await, Ok(Outcome::Committed { .. })));
        }
        let before = site.store.get(&key).await.unwrap();
        assert!(refused(thief.get(&key).await), "{key} was read");
        assert!(refused(thief.list(&key).await), "{key} was listed");
        assert!(watch_refused(&thief, &key).await, "{key} was watched");
        assert!(refused(write(&thief, key.clone()).await), "{key} was written");
        assert!(refused(thief.txn(Txn::new().delete(key.clone())).await), "{key} was removed");
        // Whether it is there is not told by what comes of a change of one's own, either.
        let asking = Txn::new().when(Compare::Absent { key: key.clone() }).put(report.clone(), &"text").unwrap();
        assert!(refused(thief.txn(asking).await), "{key} was asked for");
        assert_eq!(site.store.get(&key).await.unwrap(), before, "{key} has changed");
    }
    assert!(refused(thief.list("").await) && refused(thief.list("/docklet/").await), "everything at once");
    // The other's lease: ended, it would be taken for dead.
    let lease = victim.grant(std::time::Duration::from_secs(60)).await.unwrap();
    let alive = site.keys.write(&Key::Alive(other));
    let mut shown = Txn::new();
    shown.writes.push(docklet_store::Write::Put { key: alive.clone(), value: b"1".to_vec(), lease: Some(lease) });
    assert!(matches!(victim.txn(shown).await, Ok(Outcome::Committed { .. })));
    // A refusal counts as gone already; what counts is the key.
    let _ = thief.revoke(lease).await;
    assert!(site.store.get(&alive).await.unwrap().is_some(), "another's lease was ended");
    assert!(victim.keep(lease).await.unwrap().beat().await.unwrap());
    site.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_certificate_of_the_cluster_nobody_gets_in() {
    let site = Site::up().await;
    let stranger = Paths::new(site.directory.path().join("stranger"));
    let (certificate, key) = (stranger.worker_identity().authority, stranger.authority_key());
    let authority = Authority::make("another cluster", &certificate, &key, Micros::now()).unwrap();
    let host = "h1".parse().unwrap();
    let holder = docklet_identity::authority::Holder::Worker { host: &host, identity: "worker-h1-0" };
    authority.equip(&holder, &stranger.worker_identity(), Micros::now(), 3600).unwrap();
    // etcd takes it no more than it takes etcd.
    assert!(site.worker(&stranger.worker_identity()).list(&site.keys.plans_of(&host)).await.is_err());
    // A token of another cluster does not take this master for its own.
    let foreign = JoinToken { authority: authority.fingerprint(), ..site.token(None).await };
    assert!(site.join("h1", &foreign).await.unwrap_err().contains("certificate"));
    // A certificate of another cluster cannot be renewed here.
    let asked = MasterRequest::Renew {
        host,
        request: request_again(&stranger.worker_identity().key).unwrap(),
        now: Micros::now(),
    };
    let client = Tls::new(stranger.worker_identity()).client().unwrap();
    assert!(site.ask(client, &asked).await.is_err());
    site.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_good_once_and_a_name_is_not_taken_over() {
    let site = Site::up().await;
    let token = site.token(None).await;
    let guessed = JoinToken { secret: "0".repeat(32), ..token.clone() };
    assert_eq!(site.join("h1", &guessed).await.unwrap_err(), "token_unknown");
    let (old, _) = site.join("h1", &token).await.unwrap();
    assert_eq!(site.join("h2", &token).await.unwrap_err(), "token_used");
    assert_eq!(site.join("h1", &site.token(None).await).await.unwrap_err(), "host_taken");
    // With the operator's word it takes the place, and what it had before is good for nothing.
    let host: HostName = "h1".parse().unwrap();
    let worker = site.worker(&old);
    assert!(worker.list(&site.keys.plans_of(&host)).await.is_ok());
    let fresh = Paths::new(site.directory.path().join("fresh"));
    let token = site.token(Some("h1")).await;
    let (key, asked) = request().unwrap();
    let asked = MasterRequest::Join {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        host: host.clone(),
        request: asked,
        networks: Vec::new(),
        now: Micros::now(),
    };
    let reply = site.ask(Arc::new(joining_client(&token.authority).unwrap()), &asked).await.unwrap();
    let MasterReply::Joined(membership) = reply else { panic!("{reply:?}") };
    install(&fresh.worker_identity(), &key, &membership.certificate, &membership.authority).unwrap();
    assert!(site.worker(&fresh.worker_identity()).list(&site.keys.plans_of(&host)).await.is_ok());
    super::eventually(async || refused(worker.list(&site.keys.plans_of(&host)).await)).await;
    site.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_renewed_until_its_host_is_removed() {
    let site = Site::up().await;
    let (files, _) = site.join("h1", &site.token(None).await).await.unwrap();
    let host: HostName = "h1".parse().unwrap();
    let renewal = |name: &HostName| MasterRequest::Renew {
        host: name.clone(),
        request: request_again(&files.key).unwrap(),
        now: Micros::now(),
    };
    let client = || Tls::new(files.clone()).client().unwrap();
    let reply = site.ask(client(), &renewal(&host)).await.unwrap();
    let MasterReply::Renewed { certificate } = reply else { panic!("{reply:?}") };
    docklet_identity::files::write_private(&files.certificate, &certificate).unwrap();
    let worker = site.worker(&files);
    assert!(worker.list(&site.keys.plans_of(&host)).await.is_ok());
    // Not for another host, and not without the certificate.
    let code = |reply: MasterReply| match reply {
        MasterReply::Refused(reason) => reason.code,
        other => panic!("{other:?}"),
    };
    site.join("h2", &site.token(None).await).await.unwrap();
    assert_eq!(code(site.ask(client(), &renewal(&"h2".parse().unwrap())).await.unwrap()), "not_joined");
    let anonymous = Arc::new(joining_client(&site.fingerprint).unwrap());
    assert_eq!(code(site.ask(anonymous, &renewal(&host)).await.unwrap()), "not_joined");
    // A clock that is far off is told before certificates fail by it.
    let MasterRequest::Renew { host, request, now } = renewal(&host) else { unreachable!() };
    let late = MasterRequest::Renew { host: host.clone(), request, now: now.plus_seconds(-3600) };
    assert_eq!(code(site.ask(client(), &late).await.unwrap()), "clock_differs");
    // Removed: etcd lets it in no more.
    let key = site.keys.write(&Key::Joined(host.clone()));
    site.store.txn(Txn::new().delete(key)).await.unwrap();
    assert_eq!(code(site.ask(client(), &renewal(&host)).await.unwrap()), "not_joined");
    super::eventually(async || refused(worker.list(&site.keys.plans_of(&host)).await)).await;
    site.down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_of_the_masters_machine_needs_no_token() {
    let site = Site::up().await;
    let paths = Paths::new(&site.config.fs_prefix);
    let host: HostName = "here".parse().unwrap();
    let worker = site.worker(&paths.worker_identity());
    super::eventually(async || worker.list(&site.keys.plans_of(&host)).await.is_ok()).await;
    assert!(refused(worker.list(site.keys.root()).await));
    site.down().await;
}
