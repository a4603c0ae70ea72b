//! A worker on a host and a store in memory, and the plans a master would write.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use docklet_store::keys::{Key, Keys};
use docklet_store::memory::MemoryStore;
use docklet_store::{Store, Txn};
use docklet_types::id::{IdRange, NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::name::HostName;
use docklet_types::net::Mac;
use docklet_types::paths::Paths;
use docklet_types::plan::{Network, NodePlan, VclusterPlan};
use docklet_types::report::{NodeReport, NodeState, VclusterReport};
use docklet_types::size::Size;
use docklet_types::spec::{SshKeyPair, VclusterKeys, Wanted};
use docklet_worker::{Settings, Timing, Worker};

use crate::host::TestHost;

pub struct Site {
    pub host: TestHost,
    pub store: MemoryStore,
    pub keys: Keys,
    pub name: HostName,
    directory: tempfile::TempDir,
}

pub fn node_id(n: u8) -> NodeId {
    format!("00000000-0000-7000-8000-0000000000{n:02x}").parse().unwrap()
}

pub fn vcluster_id(n: u8) -> VclusterId {
    format!("00000000-0000-7000-9000-0000000000{n:02x}").parse().unwrap()
}

/// Node `n`, of vcluster 1.
pub fn node(n: u8, wanted: Wanted, generation: u64) -> NodePlan {
    let id = node_id(n);
    NodePlan {
        id,
        vcluster: vcluster_id(1),
        owner: "alice".parse().unwrap(),
        name: format!("node{n}").parse().unwrap(),
        generation,
        wanted,
        attempt: 0,
        image: ImageRef {
            name: "base".parse().unwrap(),
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
        },
        size: Size::new(1.0, 64, 64).unwrap(),
        range: IdRange::new(0).unwrap(),
        ip: [172, 16, 0, 2 + n].into(),
        mac: Mac::of_address([172, 16, 0, 2 + n].into()),
        moving: None,
        frozen: false,
        planned_at: None,
    }
}

pub fn vcluster(wanted: Wanted, generation: u64) -> VclusterPlan {
    let pair = SshKeyPair { private: String::new(), public: String::new() };
    VclusterPlan {
        id: vcluster_id(1),
        owner: "alice".parse().unwrap(),
        name: "demo".parse().unwrap(),
        generation,
        wanted,
        range: IdRange::new(0).unwrap(),
        network: Network { subnet: "172.16.0.0/24".parse().unwrap(), vni: 1 },
        peers: Vec::new(),
        hosts: std::collections::BTreeMap::new(),
        forwards: Vec::new(),
        limits: docklet_types::rate::RateLimits::default(),
        keys: VclusterKeys { user: pair.clone(), host: pair },
    }
}

impl Site {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self {
            host: TestHost::default(),
            store: MemoryStore::new(),
            keys: Keys::new(&"test".parse().unwrap()),
            name: "h1".parse().unwrap(),
            directory,
        }
    }

    pub fn prefix(&self) -> &Path {
        self.directory.path()
    }

    pub fn paths(&self) -> Paths {
        Paths::new(self.prefix())
    }

    pub fn worker(&self) -> Worker {
        let timing = Timing {
            ready_deadline: Duration::from_secs(30),
            boot_patience: Duration::from_millis(200),
            stop_grace: Duration::from_millis(50),
            look_every: Duration::from_millis(150),
            first_contact: Duration::from_millis(300),
            alive: Duration::from_secs(5),
        };
        let settings = Settings {
            agent_port: None,
            cluster: "test".parse().unwrap(),
            host: self.name.clone(),
            paths: self.paths(),
            default_image: "base".parse().unwrap(),
            timing,
        };
        Worker::start(settings, Arc::new(self.host.clone()), Arc::new(self.store.clone()))
    }

    pub async fn plan_node(&self, plan: &NodePlan) {
        let key = self.keys.write(&Key::NodePlan(self.name.clone(), plan.id));
        self.store.txn(Txn::new().put(key, plan).unwrap()).await.unwrap();
    }

    pub async fn plan_vcluster(&self, plan: &VclusterPlan) {
        let key = self.keys.write(&Key::VclusterPlan(self.name.clone(), plan.id));
        self.store.txn(Txn::new().put(key, plan).unwrap()).await.unwrap();
    }

    /// Plans vcluster 1 with nodes 1 to `nodes`.
    pub async fn plan(&self, nodes: u8, wanted: Wanted, generation: u64) {
        let share = if wanted == Wanted::Absent { Wanted::Absent } else { Wanted::Running };
        self.plan_vcluster(&vcluster(share, generation)).await;
        for n in 1..=nodes {
            self.plan_node(&node(n, wanted, generation)).await;
        }
    }

    /// What a master does once absence was reported.
    pub async fn forget(&self, nodes: u8) {
        let mut txn = Txn::new();
        for n in 1..=nodes {
            txn = txn.delete(self.keys.write(&Key::NodePlan(self.name.clone(), node_id(n))));
            txn = txn.delete(self.keys.write(&Key::NodeReport(self.name.clone(), node_id(n))));
        }
        txn = txn.delete(self.keys.write(&Key::VclusterPlan(self.name.clone(), vcluster_id(1))));
        txn = txn.delete(self.keys.write(&Key::VclusterReport(self.name.clone(), vcluster_id(1))));
        self.store.txn(txn).await.unwrap();
    }

    pub async fn report(&self, n: u8) -> Option<NodeReport> {
        let entry = self.store.get(&self.keys.write(&Key::NodeReport(self.name.clone(), node_id(n)))).await.ok()??;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    pub async fn vcluster_report(&self) -> Option<VclusterReport> {
        let entry =
            self.store.get(&self.keys.write(&Key::VclusterReport(self.name.clone(), vcluster_id(1)))).await.ok()??;
        Some(serde_json::from_slice(&entry.value).unwrap())
    }

    /// Waits until the node's report of at least that generation has the state.
    pub async fn reaches(&self, n: u8, state: NodeState, generation: u64) -> NodeReport {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let report = self.report(n).await;
            if let Some(report) = report.clone().filter(|r| r.state == state && r.generation >= generation) {
                return report;
            }
            assert!(
                Instant::now() < deadline,
                "node{n} is not {state:?} but {report:?}; the host runs {:?}",
                self.host.running()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn all_reach(&self, nodes: u8, state: NodeState, generation: u64) {
        for n in 1..=nodes {
            self.reaches(n, state, generation).await;
        }
    }
}

/// Waits until it is so.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
