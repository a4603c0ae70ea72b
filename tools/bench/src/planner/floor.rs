//! The floor: what an etcd that does nothing else takes on the same disk, with values as large as the planner's.

use docklet_store::etcd::{ConnectError, EtcdAddress, EtcdStore};
use docklet_store::{Compare, Store, StoreError, Txn, Write};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use super::figures::{Floor as Figures, rounded};
use super::site::two_ports;

/// Clients that write at the same time.
const CLIENTS: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    #[error("no free port of the loopback")]
    Port(#[source] io::Error),
    #[error("etcd cannot be started (Debian's package etcd-server)")]
    Spawn(#[source] io::Error),
    #[error("etcd cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("etcd does not answer")]
    Silent,
    #[error("etcd does not take a write")]
    Store(#[source] StoreError),
    #[error("a client ended")]
    Task(#[source] tokio::task::JoinError),
}

/// How large the documents of one placement are, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub plan: usize,
    pub share: usize,
}

/// A running etcd without certificates, which ends with this value.
pub struct Floor {
    child: Child,
    store: EtcdStore,
    /// No key is written twice.
    next: Arc<AtomicUsize>,
}

impl Floor {
    pub async fn start(dir: &Path) -> Result<Self, FloorError> {
        let port = two_ports().map_err(FloorError::Port)?;
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", port + 1));
        let child = Command::new("etcd")
            .args(["--name", "floor", "--logger", "zap", "--log-level", "error", "--data-dir"])
            .arg(dir.join("floor"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("floor={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(FloorError::Spawn)?;
        let address = EtcdAddress { members: vec![format!("127.0.0.1:{port}")], identity: None };
        let store = EtcdStore::connect(&address).await.map_err(FloorError::Connect)?;
        let floor = Self { child, store, next: Arc::default() };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !floor.store.is_healthy().await {
            if Instant::now() > deadline {
                return Err(FloorError::Silent);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(floor)
    }

    pub async fn stop(mut self) {
        // Already gone is as good.
        let _ = self.child.kill().await;
    }

    /// One round of each kind, for so long each.
    pub async fn round(
        &self,
        sizes: Sizes,
        nodes: usize,
        each: Duration,
        into: &mut Figures,
    ) -> Result<(), FloorError> {
        into.clients = CLIENTS;
        let single = move |first: usize| single(first, sizes);
        into.single_per_second.push(self.rate(1, each, 1, single).await?);
        into.concurrent_per_second.push(self.rate(CLIENTS, each, 1, single).await?);
        let placing = move |first: usize| placing(first, nodes, sizes);
        into.placements_per_second.push(self.rate(CLIENTS / 2, each, nodes, placing).await?);
        Ok(())
    }

    /// What `txn` counts for, per second.
    async fn rate(
        &self,
        clients: usize,
        each: Duration,
        worth: usize,
        txn: impl Fn(usize) -> Txn + Copy + Send + 'static,
    ) -> Result<f64, FloorError> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (store, next) = (self.store.clone(), self.next.clone());
            tasks.spawn(async move {
                let mut done = 0;
                while began.elapsed() < each {
                    let first = next.fetch_add(worth, Ordering::Relaxed);
                    store.txn(txn(first)).await.map_err(FloorError::Store)?;
                    done += worth;
                }
                Ok::<usize, FloorError>(done)
            });
        }
        let mut done = 0;
        while let Some(task) = tasks.join_next().await {
            done += task.map_err(FloorError::Task)??;
        }
        Ok(rounded(done as f64 / began.elapsed().as_secs_f64()))
    }
}

fn put(key: String, bytes: usize) -> Write {
    Write::Put { key, value: vec![b'x'; bytes], lease: None }
}

fn single(first: usize, sizes: Sizes) -> Txn {
    Txn { compares: Vec::new(), writes: vec![put(format!("/floor/plans/{first}"), sizes.plan)] }
}

/// Each node on a host of its own, as the planner spreads them: plan, share and the host's counter.
fn placing(first: usize, nodes: usize, sizes: Sizes) -> Txn {
    let mut txn = Txn::new();
    for index in first..first + nodes {
        let plan = format!("/floor/plans/{index}");
        txn.compares.push(Compare::Absent { key: plan.clone() });
        txn.writes.push(put(plan, sizes.plan));
        txn.writes.push(put(format!("/floor/shares/{index}"), sizes.share));
        txn.writes.push(put(format!("/floor/counters/{}", index % 5000), 38));
    }
    txn
}
