//! One suite for every store: what etcd does is what the one in memory must do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use docklet_store::etcd::{EtcdAddress, EtcdStore};
use docklet_store::held::Held;
use docklet_store::memory::MemoryStore;
use docklet_store::mirror::{Mirror, View};
use docklet_store::unreliable::{Dice, Lies, Unreliable};
use docklet_store::{Compare, Event, Outcome, Store, Txn, Write};
use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A real etcd in a directory of its own, ended when dropped.
struct Etcd {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &TempDir) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
    Command::new("etcd")
        .args(["--name", "t", "--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("t={peer}"),
        ])
        .arg("--data-dir")
        .arg(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd can be started (Debian's package etcd-server)")
}

impl Etcd {
    async fn start() -> (Self, EtcdStore) {
        // Tests run side by side, in one process or in many: each begins at a port of its own and goes on until one is free.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        for _ in 0..20 {
            let dir = TempDir::new().unwrap();
            let pair = std::process::id().wrapping_mul(50).wrapping_add(STARTED.fetch_add(1, Ordering::Relaxed));
            let port = 20_000 + (pair % 6_000) as u16 * 2;
            let mut etcd = Self { child: spawn(port, &dir), port, dir };
            let store = etcd.connect().await;
            for _ in 0..200 {
                if etcd.child.try_wait().unwrap().is_some() {
                    break;
                }
                if store.is_healthy().await {
                    return (etcd, store);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        panic!("etcd does not start");
    }

    async fn connect(&self) -> EtcdStore {
        EtcdStore::connect(&EtcdAddress { members: vec![format!("127.0.0.1:{}", self.port)], identity: None })
            .await
            .unwrap()
    }

    /// The first of etcd's own figures that begins so; 0 as long as there is none.
    async fn metric(&self, begins: &str) -> f64 {
        let ask = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text = ask.await.unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(begins));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{signal}"), pid]).status().unwrap().success());
    }

    fn compact(&self, revision: i64) {
        let endpoint = format!("--endpoints=http://127.0.0.1:{}", self.port);
        let status = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&endpoint, "compaction", &revision.to_string()])
            .stdout(Stdio::null())
            .status();
        assert!(status.expect("etcdctl can be started (Debian's package etcd-client)").success());
    }

    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.port, &self.dir);
    }
}

macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod memory {
            $(#[tokio::test] async fn $test() { super::$test(super::Arc::new(super::MemoryStore::new())).await; })*
        }
        mod etcd {
            $(#[tokio::test] async fn $test() {
                let (_etcd, store) = super::Etcd::start().await;
                super::$test(super::Arc::new(store)).await;
            })*
        }
    };
}

on_every_store!(
    reads_what_was_written,
    lists_a_prefix_only,
    a_transaction_is_all_or_nothing,
    of_two_writers_one_wins,
    watches_from_a_revision,
    a_lease_that_is_not_kept_ends,
    a_held_key_stays,
    a_mirror_follows,
    lists_more_than_a_page
);

fn put(key: &str, value: &str) -> Txn {
    Txn { compares: vec![], writes: vec![Write::Put { key: key.into(), value: value.into(), lease: None }] }
}

async fn committed(store: &dyn Store, txn: Txn) -> i64 {
    match store.txn(txn).await.unwrap() {
        Outcome::Committed { revision } => revision,
        Outcome::Conflict => panic!("conflict"),
    }
}

async fn reads_what_was_written(store: Arc<dyn Store>) {
    assert_eq!(store.get("/a").await.unwrap(), None);
    let revision = committed(&*store, put("/a", "1")).await;
    let entry = store.get("/a").await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.revision), (&b"1"[..], revision));
    committed(&*store, Txn::new().delete("/a").delete("/never")).await;
    assert_eq!(store.get("/a").await.unwrap(), None);
}

async fn lists_a_prefix_only(store: Arc<dyn Store>) {
    for key in ["/a/1", "/a/2", "/ab", "/b"] {
        committed(&*store, put(key, key)).await;
    }
    let listing = store.list("/a/").await.unwrap();
    assert_eq!(listing.entries.iter().map(|e| e.key.as_str()).collect::<Vec<_>>(), ["/a/1", "/a/2"]);
    assert!(listing.revision >= listing.entries[1].revision);
}

async fn lists_more_than_a_page(store: Arc<dyn Store>) {
    committed(&*store, put("/mana", "before")).await;
    // Together far more than what gRPC takes at once unless it is told otherwise.
    let value = vec![b'x'; 5_000];
    for block in 0..22 {
        let writes = (0..100)
            .map(|i| Write::Put { key: format!("/many/{block:02}-{i:02}"), value: value.clone(), lease: None })
            .collect();
        committed(&*store, Txn { compares: vec![], writes }).await;
    }
    committed(&*store, put("/many/00-00", "changed")).await;
    committed(&*store, put("/many0", "after")).await;
    let listing = store.list("/many/").await.unwrap();
    assert_eq!(listing.entries.len(), 2200);
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key), "no entry twice");
    assert_eq!(listing.entries[0].value, b"changed");
    assert!(listing.entries[1..].iter().all(|e| e.value == value));
    let revisions = store.revisions("/many/").await.unwrap();
    let listed: Vec<_> = listing.entries.into_iter().map(|e| (e.key, e.revision)).collect();
    assert_eq!((revisions.keys, revisions.revision), (listed, listing.revision));
}

async fn a_transaction_is_all_or_nothing(store: Arc<dyn Store>) {
    let revision = committed(&*store, put("/a", "1")).await;
    let stale = Txn::new().when(Compare::Unchanged { key: "/a".into(), revision: revision - 1 }).delete("/a");
    assert_eq!(store.txn(stale).await.unwrap(), Outcome::Conflict);
    let exists = Txn { compares: vec![Compare::Absent { key: "/a".into() }], ..put("/b", "2") };
    assert_eq!(store.txn(exists).await.unwrap(), Outcome::Conflict);
    assert_eq!(store.get("/b").await.unwrap(), None);
    let fits = Txn::new().when(Compare::as_read("/a", Some(revision))).when(Compare::as_read("/b", None)).delete("/a");
    assert!(matches!(store.txn(fits).await.unwrap(), Outcome::Committed { .. }));
}

async fn of_two_writers_one_wins(store: Arc<dyn Store>) {
    let revision = committed(&*store, put("/slot", "free")).await;
    let claim =
        |who: &str| Txn { compares: vec![Compare::Unchanged { key: "/slot".into(), revision }], ..put("/slot", who) };
    let (a, b) = tokio::join!(store.txn(claim("a")), store.txn(claim("b")));
    let wins = [a.unwrap(), b.unwrap()].iter().filter(|o| matches!(o, Outcome::Committed { .. })).count();
    assert_eq!(wins, 1);
}

async fn watches_from_a_revision(store: Arc<dyn Store>) {
    let first = committed(&*store, put("/w/1", "a")).await;
    committed(&*store, put("/other", "x")).await;
    let mut watch = store.watch("/w/", first + 1).await.unwrap();
    let both = Txn {
        compares: vec![],
        writes: vec![
            Write::Delete { key: "/w/1".into() },
            Write::Put { key: "/w/2".into(), value: b"b".to_vec(), lease: None },
        ],
    };
    let revision = committed(&*store, both).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(tokio::time::timeout(Duration::from_secs(5), watch.next()).await.unwrap().unwrap());
    }
    assert!(seen.iter().all(|e| e.revision() == revision));
    assert!(seen.iter().any(|e| matches!(e, Event::Delete { key, .. } if key == "/w/1")));
    assert!(seen.iter().any(|e| matches!(e, Event::Put(entry) if entry.key == "/w/2" && entry.value == b"b")));
}

async fn a_lease_that_is_not_kept_ends(store: Arc<dyn Store>) {
    let lease = store.grant(Duration::from_secs(1)).await.unwrap();
    let writes = vec![Write::Put { key: "/alive".into(), value: b"1".to_vec(), lease: Some(lease) }];
    committed(&*store, Txn { compares: vec![], writes }).await;
    let mut keeper = store.keep(lease).await.unwrap();
    for _ in 0..3 {
        assert!(keeper.beat().await.unwrap());
    }
    eventually("the leased key goes", async || store.get("/alive").await.unwrap().is_none()).await;
    assert!(!keeper.beat().await.unwrap());
    assert!(!store.keep(lease).await.unwrap().beat().await.unwrap());
    store.revoke(lease).await.unwrap();
}

async fn a_held_key_stays(store: Arc<dyn Store>) {
    let held = Held::start(store.clone(), "/held".into(), b"1".to_vec(), Duration::from_secs(1));
    eventually("the key is there", async || store.get("/held").await.unwrap().is_some()).await;
    // Longer than the lease: somebody must be keeping it.
    let until = tokio::time::Instant::now() + Duration::from_millis(2500);
    while tokio::time::Instant::now() < until {
        assert!(store.get("/held").await.unwrap().is_some());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(held);
    eventually("the key goes", async || store.get("/held").await.unwrap().is_none()).await;
}

#[derive(Default)]
struct Copy(BTreeMap<String, Vec<u8>>);

impl View for Copy {
    fn apply(&mut self, key: &str, value: Option<&[u8]>, _revision: i64) {
        match value {
            Some(value) => self.0.insert(key.into(), value.into()),
            None => self.0.remove(key),
        };
    }
    fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }
}

async fn a_mirror_follows(store: Arc<dyn Store>) {
    committed(&*store, put("/m/1", "a")).await;
    let mirror = Mirror::start(store.clone(), "/m/".into(), Copy::default()).await.unwrap();
    assert_eq!(mirror.read(|c| c.0.len()), 1);
    let revision = committed(&*store, put("/m/2", "b")).await;
    assert!(mirror.reached(revision, Duration::from_secs(5)).await);
    assert_eq!(mirror.read(|c| c.0.get("/m/2").cloned()), Some(b"b".to_vec()));
    let revision = committed(&*store, Txn::new().delete("/m/1")).await;
    assert!(mirror.reached(revision, Duration::from_secs(5)).await);
    assert_eq!(mirror.read(|c| c.0.len()), 1);
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "in 30 s it did not happen that {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_mirror_survives_a_restart_of_etcd() {
    let (mut etcd, store) = Etcd::start().await;
    let store: Arc<dyn Store> = Arc::new(store);
    committed(&*store, put("/m/old", "a")).await;
    let mirror = Mirror::start(store.clone(), "/m/".into(), Copy::default()).await.unwrap();
    etcd.restart();
    eventually("a write succeeds again", async || store.txn(put("/m/new", "b")).await.is_ok()).await;
    eventually("the mirror has it", async || mirror.read(|c| c.0.len()) == 2).await;
}

#[tokio::test]
async fn a_key_is_held_over_one_stream_and_through_a_restart_of_etcd() {
    let (mut etcd, store) = Etcd::start().await;
    let store: Arc<dyn Store> = Arc::new(store);
    let ttl = Duration::from_secs(1);
    let _held = Held::start(store.clone(), "/held".into(), b"1".to_vec(), ttl);
    eventually("signs were given", async || etcd.metric("etcd_debugging_lease_renewed_total").await >= 4.0).await;
    let streams = "grpc_server_started_total{grpc_method=\"LeaseKeepAlive\"";
    assert_eq!(etcd.metric(streams).await, 1.0);
    etcd.restart();
    eventually("signs are given again", async || etcd.metric("etcd_debugging_lease_renewed_total").await >= 4.0).await;
    assert!(store.get("/held").await.unwrap().is_some());
}

#[tokio::test]
async fn a_mirror_survives_an_outage_and_compaction() {
    let memory = MemoryStore::new();
    let store: Arc<dyn Store> = Arc::new(memory.clone());
    committed(&*store, put("/m/gone", "a")).await;
    let mirror = Mirror::start(store.clone(), "/m/".into(), Copy::default()).await.unwrap();
    memory.set_down(true);
    assert!(store.get("/m/gone").await.is_err_and(|e| e.is_unavailable() && e.had_no_effect()));
    eventually("the mirror knows that it is behind", async || !mirror.is_live()).await;
    memory.set_down(false);
    committed(&*store, Txn::new().delete("/m/gone")).await;
    memory.compact();
    eventually("what went meanwhile is noticed", async || mirror.read(|c| c.0.is_empty())).await;
}

/// Calls go to any member; one that is down takes none.
#[tokio::test]
async fn a_member_that_is_down_is_passed_over() {
    let (etcd, _) = Etcd::start().await;
    // Nothing listens on port 1.
    let members = vec!["127.0.0.1:1".to_owned(), format!("127.0.0.1:{}", etcd.port)];
    let store = EtcdStore::connect(&EtcdAddress { members, identity: None }).await.unwrap();
    for n in 0..50 {
        committed(&store, put("/a", &n.to_string())).await;
        assert!(store.get("/a").await.unwrap().is_some());
        assert_eq!(store.list("/a").await.unwrap().entries.len(), 1);
    }
}

/// A change that was refused needs no looking for; one whose answer was lost does.
#[tokio::test]
async fn it_is_known_which_calls_had_no_effect() {
    let (mut etcd, store) = Etcd::start().await;
    committed(&store, put("/a", "1")).await;
    // The process stands still: the call may be in its socket.
    etcd.signal("STOP");
    let lost = store.txn(put("/a", "2")).await.unwrap_err();
    assert!(lost.is_unavailable() && !lost.had_no_effect(), "{lost:?}");
    etcd.signal("CONT");
    etcd.child.kill().unwrap();
    etcd.child.wait().unwrap();
    // Once the connection is known to be gone.
    eventually("nobody takes the call", async || {
        let refused = store.txn(put("/a", "3")).await.unwrap_err();
        assert!(refused.is_unavailable(), "{refused:?}");
        refused.had_no_effect()
    })
    .await;
}

/// The copy is right again after the time between two lists, whatever the watches kept to themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_survives_watches_that_swallow_repeat_and_end() {
    const RELIST: Duration = Duration::from_millis(300);
    let one = async |seed| {
        let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let dice = Dice::new(seed);
        let lies = Lies { swallowed: 30, repeated: 30, ended: 10, late_millis: 0 };
        let store: Arc<dyn Store> = Arc::new(Unreliable::new(memory.clone(), seed, lies));
        let mirror = Mirror::start_listing_every(RELIST, store, "/m/".into(), Copy::default());
        for n in 0..300 {
            let key = format!("/m/{}", dice.below(12));
            let txn = if dice.below(3) == 0 { Txn::new().delete(key) } else { put(&key, &format!("{n}")) };
            committed(&*memory, txn).await;
            if dice.below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(dice.below(10))).await;
            }
        }
        let entries = memory.list("/m/").await.unwrap().entries;
        let truth: BTreeMap<_, _> = entries.into_iter().map(|e| (e.key, e.value)).collect();
        eventually(&format!("the copy is right (seed {seed})"), async || mirror.read(|copy| copy.0 == truth)).await;
    };
    futures::future::join_all((0..40).map(one)).await;
}

/// Values are read once, however often the keys are compared.
#[tokio::test]
async fn a_mirror_that_lost_nothing_lists_once() {
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let store = Arc::new(Unreliable::new(memory.clone(), 0, Lies::default()));
    let relist = Duration::from_millis(200);
    let mirror = Mirror::start_listing_every(relist, store.clone(), "/m/".into(), Copy::default());
    for n in 0..100 {
        committed(&*memory, put(&format!("/m/{}", n % 7), &format!("{n}"))).await;
        committed(&*memory, Txn::new().delete(format!("/m/{}", n % 3))).await;
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    eventually("keys were compared", async || store.comparisons() >= 4).await;
    let truth = memory.list("/m/").await.unwrap().entries.len();
    eventually("the copy is right", async || mirror.read(|copy| copy.0.len()) == truth).await;
    assert_eq!(store.lists(), 1);
}

/// What a watch would have told is compacted away while nobody watches, and the member is another process afterwards.
#[tokio::test]
async fn a_mirror_survives_compaction_while_etcd_is_away() {
    let (mut etcd, store) = Etcd::start().await;
    let store: Arc<dyn Store> = Arc::new(store);
    committed(&*store, put("/m/gone", "a")).await;
    committed(&*store, put("/m/changed", "a")).await;
    let mirror = Mirror::start(store.clone(), "/m/".into(), Copy::default()).await.unwrap();
    // The process stands still: the connection stays, and nothing comes.
    etcd.signal("STOP");
    eventually("the mirror knows that it is behind", async || !mirror.is_live()).await;
    etcd.signal("CONT");
    etcd.restart();
    let other = etcd.connect().await;
    eventually("a write succeeds", async || other.txn(Txn::new().delete("/m/gone")).await.is_ok()).await;
    let revision = committed(&other, put("/m/changed", "b")).await;
    etcd.compact(revision);
    let truth = BTreeMap::from([("/m/changed".to_owned(), b"b".to_vec())]);
    eventually("what went meanwhile is noticed", async || mirror.read(|copy| copy.0 == truth)).await;
    // And it follows again.
    committed(&other, put("/m/after", "c")).await;
    eventually("it follows", async || mirror.read(|copy| copy.0.contains_key("/m/after"))).await;
}
