//! A host that reads its plans and reports what it was told to do as done, or as failed at a step.

use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Store, Txn};
use docklet_types::host::{Capacity, HostReport};
use docklet_types::name::HostName;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::{NodeReport, NodeState, Reason, Step, StepTiming, VclusterReport};
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
struct Mood {
    /// Starts fail at this step.
    fails_at: Option<Step>,
    /// Nothing is reported.
    asleep: bool,
}

pub struct FakeHost {
    store: Arc<dyn Store>,
    keys: Keys,
    name: HostName,
    mood: Arc<Mutex<Mood>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeHost {
    pub async fn start(store: Arc<dyn Store>, keys: Keys, name: &str) -> Self {
        let name: HostName = name.parse().unwrap();
        let report = HostReport {
            name: name.clone(),
            address: None,
            agent_port: None,
            version: "test".to_owned(),
            kernel: "6.0".to_owned(),
            cgroup: "v2".to_owned(),
            storage: "btrfs".to_owned(),
            capacity: Capacity { cpu_millis: 8000, memory_mib: 16_384, disk_mib: 100_000 },
            checks: Vec::new(),
            started_at: Micros::now(),
        };
        let txn = Txn::new().put(keys.write(&Key::Host(name.clone())), &report).unwrap();
        let txn = txn.put(keys.write(&Key::Alive(name.clone())), &true).unwrap();
        store.txn(txn).await.unwrap();
        let mood = Arc::new(Mutex::new(Mood::default()));
        let worker = Worker { store: store.clone(), keys: keys.clone(), name: name.clone(), mood: mood.clone() };
        let task = tokio::spawn(worker.run());
        Self { store, keys, name, mood, task }
    }

    /// From now on starts fail at that step; `None`: they go well.
    pub fn fail_at(&self, step: Option<Step>) {
        self.mood.lock().unwrap().fails_at = step;
    }

    /// Stops reporting, or goes on.
    pub async fn sleep(&self, asleep: bool) {
        self.mood.lock().unwrap().asleep = asleep;
        self.poke().await;
    }

    /// What it says of where its disks lie.
    pub async fn store_disks_in(&self, storage: &str) {
        let key = self.keys.write(&Key::Host(self.name.clone()));
        let entry = self.store.get(&key).await.unwrap().unwrap();
        let report: HostReport = serde_json::from_slice(&entry.value).unwrap();
        let report = HostReport { storage: storage.to_owned(), ..report };
        self.store.txn(Txn::new().put(key, &report).unwrap()).await.unwrap();
    }

    /// Any write wakes the worker.
    async fn poke(&self) {
        let txn = Txn::new().put(self.keys.write(&Key::Alive(self.name.clone())), &true).unwrap();
        let _ = self.store.txn(txn).await;
    }

    /// The host is cut off: its lease expired.
    pub async fn die(&self) {
        self.mood.lock().unwrap().asleep = true;
        self.store.txn(Txn::new().delete(self.keys.write(&Key::Alive(self.name.clone())))).await.unwrap();
    }
}

struct Worker {
    store: Arc<dyn Store>,
    keys: Keys,
    name: HostName,
    mood: Arc<Mutex<Mood>>,
}

impl Worker {
    async fn run(self) {
        loop {
            // A store that is down comes back.
            if self.follow().await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
    }

    async fn follow(&self) -> Result<(), docklet_store::StoreError> {
        let listing = self.store.list(self.keys.root()).await?;
        let mut watch = self.store.watch(self.keys.root(), listing.revision + 1).await?;
        loop {
            self.work().await?;
            watch.next().await?;
        }
    }

    async fn work(&self) -> Result<(), docklet_store::StoreError> {
        let fails_at = {
            let mood = self.mood.lock().unwrap();
            if mood.asleep {
                return Ok(());
            }
            mood.fails_at
        };
        for entry in self.store.list(&self.keys.plans_of(&self.name)).await?.entries {
            // Nothing is reported of a plan that has gone meanwhile.
            let unchanged = Compare::Unchanged { key: entry.key.clone(), revision: entry.revision };
            match self.keys.read(&entry.key) {
                Some(Key::NodePlan(_, id)) => {
                    let plan: NodePlan = serde_json::from_slice(&entry.value).unwrap();
                    let key = self.keys.write(&Key::NodeReport(self.name.clone(), id));
                    let before = self.store.get(&key).await?;
                    let before: Option<NodeReport> = before.map(|r| serde_json::from_slice(&r.value).unwrap());
                    let answers = |r: &NodeReport| r.generation == plan.generation && r.attempt == plan.attempt;
                    if !before.as_ref().is_some_and(answers) {
                        let stood = before.is_some_and(|r| r.state == NodeState::Frozen);
                        let report = report(&plan, stood, fails_at);
                        self.store.txn(Txn::new().when(unchanged).put(key, &report).unwrap()).await?;
                    }
                }
                Some(Key::VclusterPlan(_, id)) => {
                    let plan: VclusterPlan = serde_json::from_slice(&entry.value).unwrap();
                    let key = self.keys.write(&Key::VclusterReport(self.name.clone(), id));
                    let answered = self.store.get(&key).await?.is_some_and(|report| {
                        let report: VclusterReport = serde_json::from_slice(&report.value).unwrap();
                        report.generation == plan.generation
                    });
                    if !answered {
                        let present = plan.wanted != Wanted::Absent;
                        let report = VclusterReport {
                            id,
                            generation: plan.generation,
                            present,
                            reason: None,
                            refused: Vec::new(),
                            at: Micros::now(),
                        };
                        self.store.txn(Txn::new().when(unchanged).put(key, &report).unwrap()).await?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn report(plan: &NodePlan, stood: bool, fails_at: Option<Step>) -> NodeReport {
    const UP: [Step; 5] = [Step::Image, Step::Disk, Step::Network, Step::Boot, Step::Ready];
    let now = Micros::now();
    let done = |step| StepTiming { step, started_at: now, ended_at: Some(now) };
    let (state, steps) = match plan.wanted {
        Wanted::Absent => (NodeState::Absent, vec![Step::Stop, Step::Remove]),
        Wanted::Stopped => (NodeState::Stopped, vec![Step::Stop]),
        Wanted::Running if plan.frozen => (NodeState::Frozen, [&UP[..], &[Step::Freeze]].concat()),
        Wanted::Running if stood => (NodeState::Ready, vec![Step::Thaw]),
        Wanted::Running => (NodeState::Ready, UP.to_vec()),
    };
    let failed = fails_at.filter(|step| steps.contains(step));
    let steps: Vec<StepTiming> = match failed {
        Some(at) => steps.into_iter().take_while(|step| *step <= at).map(done).collect(),
        None => steps.into_iter().map(done).collect(),
    };
    NodeReport {
        id: plan.id,
        vcluster: plan.vcluster,
        generation: plan.generation,
        limits_hit: Vec::new(),
        attempt: plan.attempt,
        state: if failed.is_some() { NodeState::Failed } else { state },
        reason: failed.map(|step| {
            Reason::new("test_failure", format!("The step {step} was told to fail.")).with_log("line 1\nline 2")
        }),
        init_pid: None,
        steps,
        at: now,
    }
}
