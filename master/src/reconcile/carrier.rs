//! Carries disks between hosts: the one part of a move that plans and reports cannot do by themselves.
//!
//! Only masters speak to workers, so the bytes pass through here: a stream is asked of the host that the node leaves and
//! written into one of the host that it goes to. Woken by any change, the loop looks at every move, does what
//! [`haul`] says, and notes the outcome in the move's document, comparing its revision. It remembers nothing that
//! matters: when it dies the streams break, nothing of them counts, and another master begins the part again. Of two at
//! once the workers let one in.

use docklet_daemon::fail;
use docklet_master_plan::cluster::{Cluster, HostState, Rev};
use docklet_master_plan::moving::{Haul, haul};
use docklet_master_plan::plan::settled_losses;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Store, StoreError, Txn};
use docklet_types::agent::disk::Control;
use docklet_types::agent::{Part, frame};
use docklet_types::id::NodeId;
use docklet_types::moves::{Move, Stage, Trip};
use docklet_types::name::HostName;
use docklet_types::report::Reason;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::view::ClusterView;
use crate::proxy::agent::{AccessError, NodeAccess};
use crate::proxy::routes::RouteTarget;

/// How often progress is written down, and time is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Between two tries of one part.
const PAUSE: Duration = Duration::from_secs(2);
/// Tries of one part that break off before the move is given up.
const TRIES: u32 = 3;
/// A host may take this long to do what its plan says: to make ready, or to stop the node with its hook.
const PATIENCE: Duration = Duration::from_secs(90);
/// A stream on which nothing moves for so long is broken.
const IDLE: Duration = Duration::from_secs(20);
/// After this a node whose move failed is tried again, where its host is being emptied.
const AGAIN: Duration = Duration::from_secs(60);
/// The largest answer in bytes.
const MAX_ANSWER: u32 = 64 << 10;

/// See the module.
pub struct Carrier {
    store: Arc<dyn Store>,
    keys: Keys,
    view: Arc<ClusterView>,
    access: Arc<dyn NodeAccess>,
    /// Wakes the loop when a part was carried: a node waits for it.
    carried: Arc<Notify>,
}

/// What this process knows of one move; another would begin anew.
struct Carried {
    number: u64,
    stage: Stage,
    /// When this stage was first seen here.
    since: Instant,
    tries: u32,
    not_before: Instant,
    bytes: Arc<AtomicU64>,
    /// When progress was last written down.
    noted: Instant,
    task: Option<JoinHandle<Result<(), CarryError>>>,
}

impl Drop for Carried {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum CarryError {
    #[error("the worker of {host} did not give a stream")]
    Ask {
        host: HostName,
        #[source]
        source: AccessError,
    },
    #[error("the stream between the hosts broke off")]
    Broken(#[source] io::Error),
    #[error("the answer of the host that took the disk cannot be read")]
    Answer,
    #[error("{}", .0.message)]
    Refused(Reason),
}

/// What to do after a part did not come about.
enum After {
    /// Another master carries it, or a worker has not read its plan yet.
    Wait,
    TryAgain(Reason),
    GiveUp(Reason),
}

impl CarryError {
    fn judge(self) -> After {
        match self {
            Self::Ask { source: AccessError::Failed(reason), .. } | Self::Refused(reason) => match reason.code.as_str()
            {
                "move_busy" | "move_not_begun" | "still_running" => After::Wait,
                "move_failed" => After::TryAgain(reason),
                _ => After::GiveUp(reason),
            },
            error => After::TryAgain(Reason::new("move_failed", format!("{}.", crate::http::problem::chain(&error)))),
        }
    }
}

impl Carrier {
    #[must_use]
    pub fn new(store: Arc<dyn Store>, keys: Keys, view: Arc<ClusterView>, access: Arc<dyn NodeAccess>) -> Self {
        Self { store, keys, view, access, carried: Arc::default() }
    }

    /// Carries until the task is dropped.
    pub async fn run(self) {
        let mut changes = self.view.subscribe();
        let mut carried: HashMap<NodeId, Carried> = HashMap::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.look(&mut carried).await {
                tracing::debug!(%error, "cannot note how far a move is; trying again");
            }
            if carried.is_empty() {
                if changes.changed().await.is_err() {
                    return;
                }
            } else {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    () = self.carried.notified() => {}
                    _ = tick.tick() => {}
                }
            }
        }
    }

    async fn look(&self, carried: &mut HashMap<NodeId, Carried>) -> Result<(), StoreError> {
        let (moves, losses) = self.view.read(|cluster| {
            let moves: Vec<_> =
                cluster.moves().map(|m| (m.clone(), haul(cluster, &m.value), trouble(cluster, &m.value))).collect();
            (moves, settled_losses(cluster))
        });
        for (host, revision) in losses {
            self.settle(host, revision).await?;
        }
        carried.retain(|node, _| moves.iter().any(|(m, ..)| m.value.node == *node));
        for (moving, haul, trouble) in moves {
            let doc = &moving.value;
            if doc.stage == Stage::Waiting {
                continue;
            }
            let number = doc.trip.as_ref().map_or(0, |t| t.number);
            let now = Instant::now();
            let known = carried.get(&doc.node).is_some_and(|c| c.number == number && c.stage == doc.stage);
            if !known {
                let bytes = Arc::new(AtomicU64::new(doc.trip.as_ref().map_or(0, |t| t.bytes)));
                let fresh = Carried {
                    number,
                    stage: doc.stage,
                    since: now,
                    tries: 0,
                    not_before: now,
                    bytes,
                    noted: now,
                    task: None,
                };
                carried.insert(doc.node, fresh);
            }
            let Some(state) = carried.get_mut(&doc.node) else { continue };
            if doc.stage == Stage::Failed {
                // A host that is emptied goes on trying; what somebody asked for stays as it ended.
                let drained = self.view.read(|cluster| is_drained(cluster, doc.node));
                if drained && state.since.elapsed() > AGAIN {
                    self.forget(&moving).await?;
                }
                continue;
            }
            if let (Some(reason), true) = (trouble, doc.stage != Stage::Arrived) {
                self.fail(&moving, reason).await?;
                continue;
            }
            if let Some(haul) = haul {
                self.serve(&moving, &haul, state).await?;
            }
        }
        Ok(())
    }

    async fn serve(&self, moving: &Rev<Move>, haul: &Haul, state: &mut Carried) -> Result<(), StoreError> {
        let (part, done) = match haul {
            Haul::First(_) => (Part::First, Stage::Copied),
            Haul::Last(_) => (Part::Last, Stage::Arrived),
            Haul::AwaitStop(trip) if state.since.elapsed() > PATIENCE => {
                let what = format!("The host {} did not stop the node in time. The node stays there.", trip.from);
                return self.fail(moving, Reason::new("move_stop_timed_out", what)).await;
            }
            Haul::AwaitStop(_) => return Ok(()),
        };
        let trip = haul.trip();
        match state.task.take() {
            Some(task) if task.is_finished() => {
                let reason = match task.await {
                    Ok(Ok(())) => return self.reached(moving, trip, done, state).await,
                    Ok(Err(error)) => error.judge(),
                    Err(_) => After::TryAgain(Reason::new("internal", "The master gave up carrying the node's disk.")),
                };
                state.not_before = Instant::now() + PAUSE;
                match reason {
                    After::Wait
                        if state.since.elapsed() > PATIENCE
                            && state.tries == 0
                            && trip.bytes == state.bytes.load(Ordering::Relaxed) =>
                    {
                        let what = "One of the hosts did not make ready in time. The node stays where it is.";
                        return self.fail(moving, Reason::new("move_timed_out", what)).await;
                    }
                    After::Wait => {}
                    After::TryAgain(reason) => {
                        state.tries += 1;
                        tracing::warn!(node = %moving.value.node, tries = state.tries, reason = reason.message, "a disk was not carried");
                        if state.tries >= TRIES {
                            return self.fail(moving, reason).await;
                        }
                    }
                    After::GiveUp(reason) => return self.fail(moving, reason).await,
                }
            }
            Some(task) => {
                state.task = Some(task);
                return self.progress(moving, trip, state).await;
            }
            None if state.not_before <= Instant::now() => {
                let (access, bytes) = (self.access.clone(), state.bytes.clone());
                let (hosts, trip) = (self.targets(moving.value.node, trip), trip.clone());
                let done = self.carried.clone();
                state.task = Some(tokio::spawn(async move {
                    let outcome = carry(access.as_ref(), hosts, &trip, part, &bytes).await;
                    // The loop looks after this task has ended, or at the next tick.
                    done.notify_one();
                    outcome
                }));
            }
            None => {}
        }
        Ok(())
    }

    /// How the workers of source and target are reached.
    fn targets(&self, node: NodeId, trip: &Trip) -> [RouteTarget; 2] {
        self.view.read(|cluster| {
            [&trip.from, &trip.to].map(|host| {
                let agent = cluster.host(host).and_then(|h| h.report.as_ref()).and_then(|r| r.value.agent());
                RouteTarget { node, host: host.clone(), agent }
            })
        })
    }

    async fn put(&self, moving: &Rev<Move>, changed: &Move) -> Result<(), StoreError> {
        let key = self.keys.write(&Key::Move(moving.value.node));
        let unchanged = Compare::Unchanged { key: key.clone(), revision: moving.revision };
        fail::before("carry");
        // On a conflict somebody was quicker: the next look shows how.
        self.store.txn(Txn::new().when(unchanged).put(key, changed)?).await?;
        fail::after("carry");
        Ok(())
    }

    async fn reached(&self, moving: &Rev<Move>, trip: &Trip, stage: Stage, state: &Carried) -> Result<(), StoreError> {
        let bytes = state.bytes.load(Ordering::Relaxed);
        let trip = Trip { bytes, based: trip.based || stage == Stage::Copied, ..trip.clone() };
        tracing::info!(node = %moving.value.node, from = %trip.from, to = %trip.to, bytes, ?stage, millis = state.since.elapsed().as_millis(), "a disk was carried");
        self.put(moving, &Move { stage, trip: Some(trip), ..(*moving.value).clone() }).await
    }

    async fn progress(&self, moving: &Rev<Move>, trip: &Trip, state: &mut Carried) -> Result<(), StoreError> {
        let bytes = state.bytes.load(Ordering::Relaxed);
        // Other changes wake this, too: once per tick is often enough.
        if bytes == trip.bytes || state.noted.elapsed() < TICK {
            return Ok(());
        }
        state.noted = Instant::now();
        let trip = Trip { bytes, ..trip.clone() };
        self.put(moving, &Move { trip: Some(trip), ..(*moving.value).clone() }).await
    }

    async fn fail(&self, moving: &Rev<Move>, reason: Reason) -> Result<(), StoreError> {
        tracing::warn!(node = %moving.value.node, code = reason.code, reason = reason.message, "a node does not move");
        self.put(moving, &Move { stage: Stage::Failed, reason: Some(reason), ..(*moving.value).clone() }).await
    }

    async fn forget(&self, moving: &Rev<Move>) -> Result<(), StoreError> {
        let key = self.keys.write(&Key::Move(moving.value.node));
        let unchanged = Compare::Unchanged { key: key.clone(), revision: moving.revision };
        self.store.txn(Txn::new().when(unchanged).delete(key)).await.map(drop)
    }

    /// A lost host has let go of everything: it is a host like any other again.
    async fn settle(&self, host: HostName, revision: i64) -> Result<(), StoreError> {
        let key = self.keys.write(&Key::Lost(host.clone()));
        let unchanged = Compare::Unchanged { key: key.clone(), revision };
        tracing::info!(%host, "a host that was given up for lost is empty and may be used again");
        self.store.txn(Txn::new().when(unchanged).delete(key)).await.map(drop)
    }
}

/// Why a move cannot go on: one of its hosts is away.
fn trouble(cluster: &Cluster, moving: &Move) -> Option<Reason> {
    let trip = moving.trip.as_ref()?;
    let away = [&trip.to, &trip.from].into_iter().find(|host| !cluster.host(host).is_some_and(|h| h.alive))?;
    Some(Reason::new(
        "host_unreachable",
        format!("The host {away} could not be reached while the node moved. The node stays on {}.", trip.from),
    ))
}

fn is_drained(cluster: &Cluster, node: NodeId) -> bool {
    let home = cluster.node(node).and_then(|p| p.plan.as_ref()).map(|(host, _)| host);
    home.and_then(|host| cluster.host(host)).is_some_and(HostState::is_draining)
}

/// Carries one part from its beginning to the word that it is on disk.
async fn carry(
    access: &dyn NodeAccess,
    [source, target]: [RouteTarget; 2],
    trip: &Trip,
    part: Part,
    bytes: &AtomicU64,
) -> Result<(), CarryError> {
    let ask = |host: &HostName| {
        let host = host.clone();
        |source| CarryError::Ask { host, source }
    };
    let taken = access.take_disk(&target, trip.number, part).await.map_err(ask(&trip.to))?;
    let Some(to) = taken else { return Ok(()) };
    let based = part == Part::Last && trip.based;
    let mut from = access.send_disk(&source, trip.number, part, based).await.map_err(ask(&trip.from))?;
    let (mut answers, mut to) = tokio::io::split(to);
    let copy = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = timeout(IDLE, from.read(&mut buffer)).await.map_err(late)??;
            if n == 0 {
                return timeout(IDLE, to.shutdown()).await.map_err(late)?;
            }
            timeout(IDLE, to.write_all(&buffer[..n])).await.map_err(late)??;
            bytes.fetch_add(n as u64, Ordering::Relaxed);
        }
    };
    let answer = read_answer(&mut answers);
    tokio::pin!(answer);
    tokio::select! {
        // One that gives up says so at once.
        answer = &mut answer => return judge(answer?),
        copied = copy => copied.map_err(CarryError::Broken)?,
    }
    // What came is written out first, which may take a while.
    judge(timeout(PATIENCE, answer).await.map_err(|e| CarryError::Broken(late(e)))??)
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::ErrorKind::TimedOut.into()
}

fn judge(answer: Control) -> Result<(), CarryError> {
    match answer {
        Control::Taken => Ok(()),
        Control::Failed(reason) => Err(CarryError::Refused(reason)),
        Control::Complete { .. } => Err(CarryError::Answer),
    }
}

async fn read_answer(from: &mut (impl AsyncRead + Unpin)) -> Result<Control, CarryError> {
    let mut header = [0; frame::HEADER];
    from.read_exact(&mut header).await.map_err(CarryError::Broken)?;
    let [kind, a, b, c, d] = header;
    let length = u32::from_be_bytes([a, b, c, d]);
    if kind != frame::CONTROL || length > MAX_ANSWER {
        return Err(CarryError::Answer);
    }
    let mut json = vec![0; length as usize];
    from.read_exact(&mut json).await.map_err(CarryError::Broken)?;
    serde_json::from_slice(&json).map_err(|_| CarryError::Answer)
}
