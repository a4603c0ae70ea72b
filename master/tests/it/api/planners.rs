//! Several planners at once, on the store in memory, with watches that lie, and on a real etcd: no address, network or place
//! is given twice, no host is overfull, and what users hold is what their vclusters add up to.

use super::support::host::FakeHost;
use super::support::{Master, PASSWORD, directory, eventually, master};
use docklet_master::app::change::{Action, ChangeError};
use docklet_master::app::create::{CreateError, NewVcluster};
use docklet_master::app::vclusters::Vclusters;
use docklet_master::auth::passwords::{Password, hash_now};
use docklet_master_db::Db;
use docklet_store::Store;
use docklet_store::etcd::{EtcdAddress, EtcdStore};
use docklet_store::keys::{Key, Keys};
use docklet_store::memory::MemoryStore;
use docklet_store::unreliable::{Lies, Unreliable};
use docklet_types::label::Labels;
use docklet_types::name::{UserName, VclusterName};
use docklet_types::plan::{Network, NodePlan};
use docklet_types::size::Size;
use docklet_types::spec::{Usage, VclusterSpec};
use docklet_types::time::Micros;
use docklet_types::view::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const USERS: usize = 6;
const HOSTS: usize = 3;
/// Of one user; the cap of every test's site.
const CAP: u32 = 6;
/// Memory of a node: six fill a host, so that the hosts are too few for all.
const MEMORY_MIB: u32 = 2600;

/// A real etcd in a directory of its own, ended when dropped.
struct Etcd {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn etcd() -> (Etcd, EtcdStore) {
    // Its own choice of a free port would not be told to us: each try takes another until one is free.
    let first = 30_000 + (std::process::id() % 1000) as u16 * 2;
    for port in (0..20).map(|attempt| first + attempt * 2) {
        let dir = tempfile::tempdir().unwrap();
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
        let child = Command::new("etcd")
            .args(["--name", "t", "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("t={peer}"), "--max-txn-ops", "4096"])
            .arg("--data-dir")
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package etcd-server is installed");
        let mut etcd = Etcd { child, _dir: dir };
        let address = EtcdAddress { members: vec![format!("127.0.0.1:{port}")], identity: None };
        let store = EtcdStore::connect(&address).await.unwrap();
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

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Looks at everything as of one revision.
async fn check(store: &dyn Store, keys: &Keys) {
    let (mut nodes, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut networks: BTreeMap<_, Network> = BTreeMap::new();
    let mut memory: BTreeMap<String, u64> = BTreeMap::new();
    let mut plans: Vec<NodePlan> = Vec::new();
    let (mut held, mut wanted): (BTreeMap<UserName, Usage>, BTreeMap<UserName, Usage>) = Default::default();
    for entry in store.list(keys.root()).await.unwrap().entries {
        match keys.read(&entry.key) {
            Some(Key::NodePlan(host, id)) => {
                let plan: NodePlan = serde_json::from_slice(&entry.value).unwrap();
                assert!(nodes.insert(id), "{id} has two places");
                assert!(addresses.insert(plan.ip), "{} is given twice", plan.ip);
                *memory.entry(host.to_string()).or_default() += u64::from(plan.size.memory_mib);
                plans.push(plan);
            }
            Some(Key::Network(id)) => {
                let network: Network = serde_json::from_slice(&entry.value).unwrap();
                for (other, taken) in &networks {
                    let apart =
                        !taken.subnet.contains(network.subnet.base()) && !network.subnet.contains(taken.subnet.base());
                    assert!(apart && taken.vni != network.vni, "{id} and {other} share a network");
                }
                networks.insert(id, network);
            }
            Some(Key::Usage(user)) => drop(held.insert(user, serde_json::from_slice(&entry.value).unwrap())),
            Some(Key::Spec(_)) => {
                let spec: VclusterSpec = serde_json::from_slice(&entry.value).unwrap();
                let sum = wanted.entry(spec.owner.clone()).or_default();
                *sum = sum.plus(Usage { vclusters: 1, ..Usage::of_nodes(&spec.nodes) });
            }
            _ => {}
        }
    }
    for plan in plans {
        assert!(networks[&plan.vcluster].subnet.contains(plan.ip), "{} is outside of its network", plan.ip);
    }
    for (host, used) in memory {
        assert!(used <= 16_384, "{host} is overfull: {used}");
    }
    for (user, usage) in held {
        assert_eq!(usage, wanted.remove(&user).unwrap_or_default(), "what {user} holds");
        assert!(usage.nodes <= CAP, "{user} is over the cap");
    }
    assert!(wanted.is_empty(), "nothing is counted of {wanted:?}");
}

/// What each user does, and how the masters' watches lie meanwhile. What hosts see is right.
#[derive(Clone, Copy)]
struct Load {
    rounds: usize,
    /// So many names each gives to vclusters, of at most so many nodes.
    vclusters: u64,
    nodes: u64,
    lies: Lies,
}

/// One user's doings, at this master and at that.
async fn user(masters: Vec<Arc<Vclusters>>, name: UserName, seed: u64, doings: Load) {
    let mut dice = Dice(seed);
    for _ in 0..doings.rounds {
        let at = &masters[usize::try_from(dice.below(masters.len() as u64)).unwrap()];
        let vcluster: VclusterName = format!("v{}", dice.below(doings.vclusters)).parse().unwrap();
        let count = u32::try_from(1 + dice.below(doings.nodes)).unwrap();
        let action = match dice.below(6) {
            0 | 1 => {
                let new = NewVcluster {
                    name: vcluster,
                    nodes: count,
                    image: "base".parse().unwrap(),
                    size: Size::new(1.0, MEMORY_MIB, 1024).unwrap(),
                    host_labels: Labels::default(),
                };
                match at.create(&name, &name, new, None).await {
                    Ok(_) | Err(CreateError::NameTaken { .. } | CreateError::Refused(_)) => continue,
                    Err(error) => panic!("{name} cannot create: {error:?}"),
                }
            }
            2 => Action::Scale(count),
            3 => Action::Stop,
            4 => Action::Start,
            _ => Action::Delete,
        };
        match at.change(&name, &name, &vcluster, action).await {
            Ok(_) | Err(ChangeError::NotFound | ChangeError::Deleting | ChangeError::Refused(_)) => {}
            Err(error) => panic!("{name} cannot {action:?}: {error:?}"),
        }
        tokio::time::sleep(Duration::from_millis(dice.below(30))).await;
    }
}

fn vclusters(master: &Master) -> Arc<Vclusters> {
    master.assembly.as_ref().unwrap().parts.vclusters.clone()
}

async fn load(store: Arc<dyn Store>, doings: Load) {
    let (dir, access) = (directory(), Arc::default());
    let db = Db::open_file(&dir.path().join("docklet.db")).await.unwrap();
    let hash = hash_now(&Password::parse(PASSWORD).unwrap()).unwrap();
    let names: Vec<UserName> = (0..USERS).map(|n| format!("user{n}").parse().unwrap()).collect();
    for name in &names {
        db.create_user(name, &hash, Role::User, Micros::now()).await.unwrap();
    }
    let (mut masters, mut watches) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let own = Unreliable::new(store.clone(), n, doings.lies);
        watches.push(own.clone());
        let extra = format!("HOST_NAME=front{n}\nUSER_MAX_CPU=64\nUSER_MAX_MEMORY_MIB=65536\nMEMORY_OVERCOMMIT=1");
        masters.push(master(dir.path(), &extra, db.clone(), Arc::new(own), Arc::clone(&access)).await.0);
    }
    let keys = Keys::new(&"test".parse().unwrap());
    let mut hosts = Vec::new();
    for n in 0..HOSTS {
        hosts.push(FakeHost::start(store.clone(), keys.clone(), &format!("h{n}")).await);
    }
    let all: Vec<Arc<Vclusters>> = masters.iter().map(vclusters).collect();
    let users: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| tokio::spawn(user(all.clone(), name.clone(), n as u64, doings)))
        .collect();
    while !users.iter().all(tokio::task::JoinHandle::is_finished) {
        check(store.as_ref(), &keys).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for user in users {
        user.await.unwrap();
    }
    // Everything is seen by all, and everything goes.
    for own in &watches {
        own.lie(Lies::default());
        own.end_watches();
    }
    eventually("nothing is left", || async {
        for name in &names {
            for view in all[0].list(Some(name)) {
                let vcluster: VclusterName = view.name.parse().unwrap();
                let _ = all[1].change(name, name, &vcluster, Action::Delete).await;
            }
        }
        check(store.as_ref(), &keys).await;
        let left = store.list(keys.root()).await.unwrap().entries;
        let of_vclusters = left.iter().filter(|entry| match keys.read(&entry.key) {
            Some(Key::Usage(_)) => serde_json::from_slice::<Usage>(&entry.value).unwrap() != Usage::default(),
            Some(Key::NetworkAlloc | Key::HostAlloc(_) | Key::Host(_) | Key::Alive(_) | Key::Master(_)) => false,
            _ => true,
        });
        of_vclusters.count() == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_memory() {
    load(Arc::new(MemoryStore::new()), Load { rounds: 60, vclusters: 3, nodes: 5, lies: Lies::default() }).await;
}

/// What a master missed it cannot know; what it must not do without knowing is refused.
#[tokio::test(flavor = "multi_thread")]
async fn with_watches_that_swallow_and_come_late() {
    let lies = Lies { swallowed: 5, ended: 1, late_millis: 20, ..Lies::default() };
    load(Arc::new(MemoryStore::new()), Load { rounds: 60, vclusters: 3, nodes: 5, lies }).await;
    // Each waits for room, which now one master sees come free and now another.
    load(Arc::new(MemoryStore::new()), Load { rounds: 150, vclusters: 6, nodes: 1, lies }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_etcd() {
    let (_etcd, store) = etcd().await;
    load(Arc::new(store), Load { rounds: 40, vclusters: 3, nodes: 5, lies: Lies::default() }).await;
}
