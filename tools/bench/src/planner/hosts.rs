//! Thousands of hosts that behave towards the store as workers do, and do nothing else: no container, no device.
//!
//! Each holds a lease, watches the prefix of its plans, and reports what it was told as under way and then as done. What
//! all of them see together says how fast nodes get their places, and whether one was ever asked for twice.

use docklet_store::etcd::EtcdStore;
use docklet_store::held::Held;
use docklet_store::keys::{Key, Keys};
use docklet_store::mirror::{Mirror, View};
use docklet_store::{Pause, Store, StoreError, Txn};
use docklet_types::host::{Capacity, HostReport};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::name::{HostName, NameError};
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::{NodeReport, NodeState, Step, StepTiming, VclusterReport};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use futures::future::try_join_all;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Reports in one transaction, as the worker's reporter has it.
const BATCH: usize = 64;
/// Hosts that come up at the same time.
const AT_ONCE: usize = 64;
/// After a write that the store did not take, as a worker has it.
const AGAIN: Duration = Duration::from_millis(100);
/// A worker reads its reports this often, and compares them with what it knows.
const COMPARE: Duration = Duration::from_secs(30);
/// Hosts that answer in a second after all were silent. At a site they would be those whose news the second brought: no two
/// thousand hosts have theirs at the same instant.
const BACK_A_SECOND: u32 = 500;
/// Until a host that cannot describe itself gives up.
const TRIES: usize = 60;

#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("a host cannot be named")]
    Name(#[source] NameError),
    #[error("a host cannot describe itself")]
    Store(#[source] StoreError),
}

/// What all hosts see together.
#[derive(Default)]
pub struct Seen {
    /// Where each node is planned to be.
    pub homes: HashMap<NodeId, (HostName, VclusterId)>,
    /// When each node got its first plan.
    pub placed: Vec<Instant>,
    /// Nodes that were reported as running.
    pub ready: HashSet<NodeId>,
    /// Nodes that were wanted on two hosts at once.
    pub twice: u64,
    /// Plans that came, changed or went.
    pub plans: u64,
    /// Reports that the store did not take at once, and why not the last one.
    pub failed: u64,
    pub last_failure: String,
}

/// Shared by all hosts.
#[derive(Default)]
pub struct Sight(Mutex<Seen>);

impl Sight {
    pub fn look(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn planned(&self, host: &HostName, plan: &NodePlan) {
        let mut seen = self.look();
        seen.plans += 1;
        if plan.is_incoming() {
            return;
        }
        if plan.wanted == Wanted::Absent {
            seen.forget(host, plan.id);
            return;
        }
        match seen.homes.insert(plan.id, (host.clone(), plan.vcluster)) {
            None => seen.placed.push(Instant::now()),
            Some((before, _)) if before != *host => seen.twice += 1,
            Some(_) => {}
        }
    }

    fn failed(&self, error: &StoreError) {
        let mut seen = self.look();
        seen.failed += 1;
        seen.last_failure = crate::chain(error);
    }

    fn gone(&self, host: &HostName, node: NodeId) {
        let mut seen = self.look();
        seen.plans += 1;
        seen.forget(host, node);
    }
}

impl Seen {
    fn forget(&mut self, host: &HostName, node: NodeId) {
        if self.homes.get(&node).is_some_and(|(home, _)| home == host) {
            self.homes.remove(&node);
            self.ready.remove(&node);
        }
    }
}

/// A plan that was not answered yet.
enum Told {
    Node(NodePlan),
    Share(VclusterPlan),
}

/// The plans of one host. What was heard before is not news.
struct Plans {
    keys: Keys,
    host: HostName,
    sight: Arc<Sight>,
    held: HashMap<String, i64>,
    /// The newest of each, by key: a transaction that writes a report twice is refused.
    news: HashMap<String, Told>,
}

impl View for Plans {
    fn apply(&mut self, key: &str, value: Option<&[u8]>, revision: i64) {
        let Some(bytes) = value else {
            self.news.remove(key);
            if self.held.remove(key).is_some()
                && let Some(Key::NodePlan(_, id)) = self.keys.read(key)
            {
                self.sight.gone(&self.host, id);
            }
            return;
        };
        if self.held.insert(key.to_owned(), revision) == Some(revision) {
            return;
        }
        match self.keys.read(key) {
            Some(Key::NodePlan(..)) => {
                if let Ok(plan) = serde_json::from_slice::<NodePlan>(bytes) {
                    self.sight.planned(&self.host, &plan);
                    self.news.insert(key.to_owned(), Told::Node(plan));
                }
            }
            Some(Key::VclusterPlan(..)) => {
                let share = serde_json::from_slice(bytes).ok().map(Told::Share);
                self.news.extend(share.map(|share| (key.to_owned(), share)));
            }
            _ => {}
        }
    }

    fn keys(&self) -> Vec<String> {
        self.held.keys().cloned().collect()
    }
}

struct FakeHost {
    name: HostName,
    store: Arc<dyn Store>,
    keys: Keys,
    sight: Arc<Sight>,
    /// Whether hosts answer their plans.
    answers: watch::Receiver<bool>,
    /// How long after hosts may answer this one does.
    turn: Duration,
    ttl: Duration,
}

impl FakeHost {
    async fn describe(&self) -> Result<(), HostsError> {
        let report = HostReport {
            name: self.name.clone(),
            agent_port: None,
            address: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: "6.1".to_owned(),
            cgroup: "v2".to_owned(),
            storage: "btrfs".to_owned(),
            capacity: Capacity { cpu_millis: 64_000, memory_mib: 256 << 10, disk_mib: 4 << 20 },
            checks: Vec::new(),
            started_at: Micros::now(),
        };
        let txn = Txn::new().put(self.keys.write(&Key::Host(self.name.clone())), &report).map_err(HostsError::Store)?;
        let mut pause = Pause::from(AGAIN);
        for _ in 0..TRIES {
            let began = Instant::now();
            if self.store.txn(txn.clone()).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(pause.after(began.elapsed())).await;
        }
        self.store.txn(txn).await.map(drop).map_err(HostsError::Store)
    }

    /// Until the task is dropped: then its lease runs out, as with a host that lost its power.
    async fn run(mut self, up: tokio::sync::oneshot::Sender<()>) {
        let alive = self.keys.write(&Key::Alive(self.name.clone()));
        let _alive = Held::start(self.store.clone(), alive, self.name.as_str().as_bytes().to_vec(), self.ttl);
        let plans = Plans {
            keys: self.keys.clone(),
            host: self.name.clone(),
            sight: self.sight.clone(),
            held: HashMap::new(),
            news: HashMap::new(),
        };
        let mirror = Mirror::start_cold(self.store.clone(), self.keys.plans_of(&self.name), plans);
        let mut changes = mirror.subscribe();
        mirror.wait_live().await;
        let _ = up.send(());
        let compare = Self::compare(self.store.clone(), self.keys.reports_of(&self.name));
        tokio::select! {
            () = compare => {}
            () = self.answer_all(&mirror, &mut changes) => {}
        }
    }

    async fn answer_all(&mut self, mirror: &Mirror<Plans>, changes: &mut watch::Receiver<i64>) {
        loop {
            let silent = !*self.answers.borrow_and_update();
            if self.answers.wait_for(|answers| *answers).await.is_err() {
                return;
            }
            if silent {
                tokio::time::sleep(self.turn).await;
            }
            let news = mirror.write(|plans| std::mem::take(&mut plans.news));
            if !news.is_empty() {
                self.answer(news.into_values().collect()).await;
            } else if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// First that it is on the way, then that it is there.
    async fn answer(&self, news: Vec<Told>) {
        let began = Micros::now();
        let mut ready = Vec::new();
        for done in [false, true] {
            let mut reports: Vec<(String, Vec<u8>)> = Vec::new();
            for told in &news {
                match told {
                    Told::Node(plan) => {
                        let key = self.keys.write(&Key::NodeReport(self.name.clone(), plan.id));
                        reports.extend(serde_json::to_vec(&node_report(plan, began, done)).ok().map(|v| (key, v)));
                        if done && plan.wanted == Wanted::Running {
                            ready.push(plan.id);
                        }
                    }
                    Told::Share(plan) if !done || plan.wanted == Wanted::Absent => {
                        let key = self.keys.write(&Key::VclusterReport(self.name.clone(), plan.id));
                        reports.extend(serde_json::to_vec(&share_report(plan)).ok().map(|v| (key, v)));
                    }
                    Told::Share(_) => {}
                }
            }
            for batch in reports.chunks(BATCH) {
                self.send(batch).await;
            }
        }
        let mut seen = self.sight.look();
        for id in ready {
            // It may have been told to go meanwhile.
            if seen.homes.contains_key(&id) {
                seen.ready.insert(id);
            }
        }
    }

    /// Tries until the store has it, as a worker does.
    async fn send(&self, reports: &[(String, Vec<u8>)]) {
        let mut pause = Pause::from(AGAIN);
        loop {
            let mut txn = Txn::new();
            for (key, value) in reports {
                txn.writes.push(docklet_store::Write::Put { key: key.clone(), value: value.clone(), lease: None });
            }
            let began = Instant::now();
            let Err(error) = self.store.txn(txn).await else { return };
            self.sight.failed(&error);
            tokio::time::sleep(pause.after(began.elapsed())).await;
        }
    }

    /// What a worker asks of the store though nothing happens. What comes of it is nobody's business here.
    async fn compare(store: Arc<dyn Store>, prefix: String) {
        loop {
            tokio::time::sleep(COMPARE).await;
            let _ = store.list(&prefix).await;
        }
    }
}

fn node_report(plan: &NodePlan, began: Micros, done: bool) -> NodeReport {
    let state = match (plan.wanted, done) {
        (Wanted::Running, true) => NodeState::Ready,
        (Wanted::Running, false) => NodeState::Starting,
        (Wanted::Stopped, true) => NodeState::Stopped,
        (Wanted::Absent, true) => NodeState::Absent,
        (_, false) => NodeState::Stopping,
    };
    let steps: &[Step] = match plan.wanted {
        Wanted::Running => &[Step::Image, Step::Disk, Step::Network, Step::Boot, Step::Ready],
        Wanted::Stopped => &[Step::Stop],
        Wanted::Absent => &[Step::Stop, Step::Remove],
    };
    let taken = if done { steps.len() } else { 1 };
    let timing = |step: &Step| StepTiming { step: *step, started_at: began, ended_at: done.then(Micros::now) };
    NodeReport {
        id: plan.id,
        vcluster: plan.vcluster,
        generation: plan.generation,
        limits_hit: Vec::new(),
        attempt: plan.attempt,
        state,
        reason: None,
        init_pid: (state == NodeState::Ready).then_some(4242),
        steps: steps[..taken].iter().map(timing).collect(),
        at: Micros::now(),
    }
}

fn share_report(plan: &VclusterPlan) -> VclusterReport {
    VclusterReport {
        id: plan.id,
        generation: plan.generation,
        present: plan.wanted != Wanted::Absent,
        reason: None,
        refused: Vec::new(),
        at: Micros::now(),
    }
}

/// See the module. Dropping it ends all hosts.
pub struct Fleet {
    stores: Vec<Arc<dyn Store>>,
    keys: Keys,
    ttl: Duration,
    answers: watch::Sender<bool>,
    hosts: HashMap<HostName, tokio::task::AbortHandle>,
    tasks: JoinSet<()>,
    pub sight: Arc<Sight>,
}

impl Fleet {
    /// Hosts share connections, each of `stores` being one.
    pub fn new(stores: Vec<EtcdStore>, keys: Keys, ttl: Duration) -> Self {
        Self {
            stores: stores.into_iter().map(|store| Arc::new(store) as Arc<dyn Store>).collect(),
            keys,
            ttl,
            answers: watch::Sender::new(true),
            hosts: HashMap::new(),
            tasks: JoinSet::new(),
            sight: Arc::default(),
        }
    }

    /// Whether hosts answer their plans from now on.
    pub fn answer(&self, answers: bool) {
        self.answers.send_replace(answers);
    }

    /// Brings up hosts `from..to` and returns when all of them watch their plans.
    pub async fn bring_up(&mut self, names: &[HostName]) -> Result<(), HostsError> {
        for (group, names) in names.chunks(AT_ONCE).enumerate() {
            let hosts: Vec<FakeHost> =
                names.iter().enumerate().map(|(index, name)| self.host(group * AT_ONCE + index, name)).collect();
            try_join_all(hosts.iter().map(FakeHost::describe)).await?;
            let mut waiting = Vec::new();
            for host in hosts {
                let name = host.name.clone();
                let (sender, up) = tokio::sync::oneshot::channel();
                let task = self.tasks.spawn(host.run(sender));
                if let Some(before) = self.hosts.insert(name, task) {
                    before.abort();
                }
                waiting.push(up);
            }
            for up in waiting {
                // A task that ended is told by its host that never answers.
                let _ = up.await;
            }
        }
        Ok(())
    }

    fn host(&self, number: usize, name: &HostName) -> FakeHost {
        FakeHost {
            name: name.clone(),
            store: self.stores[number % self.stores.len()].clone(),
            keys: self.keys.clone(),
            sight: self.sight.clone(),
            answers: self.answers.subscribe(),
            turn: Duration::from_secs(1) * u32::try_from(number).unwrap_or(u32::MAX) / BACK_A_SECOND,
            ttl: self.ttl,
        }
    }

    /// Cuts the power of a share of the hosts; returns their names.
    pub fn vanish(&mut self, count: usize) -> BTreeSet<HostName> {
        let mut names: Vec<HostName> = self.hosts.keys().cloned().collect();
        names.sort();
        // Every so-many-th, so that it meets vclusters all over.
        let step = (names.len() / count.max(1)).max(1);
        let gone: BTreeSet<HostName> = names.into_iter().step_by(step).take(count).collect();
        for name in &gone {
            if let Some(task) = self.hosts.remove(name) {
                task.abort();
            }
        }
        gone
    }
}

/// `h00001` and so on.
pub fn names(count: usize) -> Result<Vec<HostName>, HostsError> {
    (1..=count).map(|n| format!("h{n:05}").parse().map_err(HostsError::Name)).collect()
}
