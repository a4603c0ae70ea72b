//! The loop: an event wakes it; it reads the plans again, compares, and starts what is to be done.
//!
//! One task ([`actor`]) owns all state and never waits for the host. What touches the host runs in tasks of its own
//! ([`task`]), at most one per node and per vcluster; each tells the loop how it went, and the loop compares again. A
//! node whose task failed, or whose init ended by itself, is looked at afresh before anything else is done to it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use docklet_store::Store;
use docklet_store::held::Held;
use docklet_store::keys::{Key, Keys};
use docklet_store::mirror::Mirror;
use docklet_types::host::{Capacity, Check};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::name::{ClusterName, HostName, ImageName};
use docklet_types::paths::Paths;
use docklet_types::report::Step;
use docklet_types::time::Micros;
use docklet_worker_host::{Hits, Host, HostError, Observed};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::clock::Steady;
use crate::ledger::Ledger;
use crate::plans::Plans;
use crate::report::Reporter;

mod actor;
mod entry;
mod lost;
mod remains;
mod share;
mod task;
mod upkeep;

use actor::Loop;
use task::{Context, NodeOutcome, VclusterOutcome};

/// Who this worker is and where its things lie.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cluster: ClusterName,
    pub host: HostName,
    pub paths: Paths,
    /// Where masters of other hosts reach this worker, if they do.
    pub agent_port: Option<u16>,
    /// Unpacked ahead of the first node that needs it.
    pub default_image: ImageName,
    pub timing: Timing,
}

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the start of init to its being up.
    pub ready_deadline: Duration,
    /// After this a booting node no longer keeps others from booting.
    pub boot_patience: Duration,
    /// What init gets to shut down when a node is stopped.
    pub stop_grace: Duration,
    /// The whole host is looked at this often.
    pub look_every: Duration,
    /// How long to wait for the store at the start before the local copy of the plans is followed.
    pub first_contact: Duration,
    /// The key that says that this host is alive goes this long after the worker.
    pub alive: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ready_deadline: Duration::from_secs(90),
            boot_patience: Duration::from_secs(10),
            stop_grace: Duration::from_secs(10),
            look_every: Duration::from_secs(30),
            first_contact: Duration::from_secs(3),
            alive: Duration::from_secs(15),
        }
    }
}

/// What wakes the loop.
#[derive(Debug)]
enum Event {
    StepBegan(NodeId, Step, Micros),
    StepEnded(NodeId, Step, Micros),
    NodeDone(NodeId, NodeOutcome),
    VclusterDone(VclusterId, VclusterOutcome),
    /// Whoever asked it to.
    InitEnded {
        id: NodeId,
        pid: i32,
        log: Option<String>,
    },
    /// What the host held at some moment after `began`.
    Looked {
        began: u64,
        seen: Result<Observed, HostError>,
    },
    /// Without checks where only the capacity was looked at.
    Checked(Option<Vec<Check>>, Option<Capacity>),
    Watched(Vec<Check>),
    /// It is time to see what limits nodes ran into.
    LimitsDue,
    /// Of these inits.
    LimitsHit(Vec<(NodeId, i32)>, BTreeMap<NodeId, Hits>),
    Saved(u64),
    /// Of what goes without a plan; whether nothing of it is left.
    NodeCleared(NodeId, bool),
    VclusterCleared(VclusterId, bool),
    Stop(oneshot::Sender<()>),
}

/// A worker at work. Dropping it ends it at once, as a crash would; the nodes run on either way.
pub struct Worker {
    events: mpsc::UnboundedSender<Event>,
    task: tokio::task::JoinHandle<()>,
    started: watch::Receiver<bool>,
    plans: Arc<Mirror<Plans>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Worker {
    /// Starts following the plans of `settings.host`.
    #[must_use]
    pub fn start(settings: Settings, host: Arc<dyn Host>, store: Arc<dyn Store>) -> Self {
        let (events, inbox) = mpsc::unbounded_channel();
        let (started, started_signal) = watch::channel(false);
        let keys = Keys::new(&settings.cluster);
        let ledger = Ledger::load(&settings.paths.worker_state(), &settings.host).unwrap_or_else(|error| {
            tracing::error!(%error, source = error.source().map(ToString::to_string), "the local copy of the plans is of no use; waiting for the store");
            None
        });
        let ledger = ledger.unwrap_or_else(|| Ledger::new(settings.host.clone()));
        let copy = Plans::new(
            keys.clone(),
            settings.host.clone(),
            ledger.nodes.iter().map(|r| r.plan.clone()).collect(),
            ledger.vclusters.clone(),
        );
        let plans = Arc::new(Mirror::start_cold(store.clone(), keys.plans_of(&settings.host), copy));
        let alive = Held::start(
            store.clone(),
            keys.write(&Key::Alive(settings.host.clone())),
            settings.host.as_str().as_bytes().to_vec(),
            settings.timing.alive,
        );
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let context = Arc::new(Context {
            host,
            timing: settings.timing,
            work: Semaphore::new((4 * cpus).max(8)),
            boots: Arc::new(Semaphore::new((16 * cpus).max(32))),
            events: events.clone(),
        });
        let reporter = Reporter::start(store.clone());
        let actor = Loop::new(settings, context, store, keys, plans.clone(), reporter, ledger, Steady::start());
        let task = tokio::spawn(async move {
            let _alive = alive;
            actor.run(inbox, started).await;
        });
        Self { events, task, started: started_signal, plans }
    }

    /// Returns once the host was checked and looked at and its nodes were adopted; `false` where the loop broke off before.
    pub async fn wait_started(&self) -> bool {
        self.started.clone().wait_for(|s| *s).await.is_ok()
    }

    /// Whether the plans are those of the store now, rather than of the last contact.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.plans.is_live()
    }

    /// Returns when the loop has ended, which without [`Worker::stop`] means that it broke off.
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Ends in good order: what is under way is finished or put off, what was seen is reported. Nodes run on.
    pub async fn stop(mut self) {
        let (done, wait) = oneshot::channel();
        if self.events.send(Event::Stop(done)).is_ok() {
            let _ = wait.await;
        }
        let _ = (&mut self.task).await;
    }
}
