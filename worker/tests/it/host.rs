//! A host in memory that holds state, refuses what makes no sense, and fails or hangs where a test says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use docklet_types::agent::ExecOutput;
use docklet_types::host::{Capacity, Check, CheckOutcome};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::Reason;
use docklet_worker_host::*;
use parking_lot::Mutex;
use tokio::sync::watch;

/// How one operation misbehaves.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This many times more.
    Fail { code: &'static str, times: u32 },
    /// Until the fault is lifted.
    Hang,
}

#[derive(Debug, Default)]
struct State {
    seen: Observed,
    /// Files that observing does not show.
    traces: BTreeSet<NodeId>,
    images: BTreeSet<String>,
    faults: BTreeMap<&'static str, Fault>,
    unfit: bool,
    next_pid: i32,
    calls: Vec<(&'static str, String)>,
    nonsense: Vec<String>,
}

/// See the module. Clones are the same host.
#[derive(Clone)]
pub struct TestHost {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

impl Default for TestHost {
    fn default() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl TestHost {
    pub fn break_it(&self, operation: &'static str, fault: Fault) {
        self.state.lock().faults.insert(operation, fault);
    }

    pub fn mend(&self) {
        self.state.lock().faults.clear();
        self.changed.send_replace(());
    }

    pub fn set_unfit(&self, unfit: bool) {
        self.state.lock().unfit = unfit;
    }

    pub fn seen(&self) -> Observed {
        self.state.lock().seen.clone()
    }

    pub fn put_node(&self, id: NodeId, node: ObservedNode) {
        self.state.lock().seen.nodes.insert(id, node);
    }

    pub fn pid(&self, id: NodeId) -> Option<i32> {
        self.state.lock().seen.nodes.get(&id)?.init_pid
    }

    pub fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state.seen == Observed::default() && state.traces.is_empty()
    }

    /// What no sound worker asks for, in order.
    pub fn nonsense(&self) -> Vec<String> {
        self.state.lock().nonsense.clone()
    }

    pub fn calls(&self, operation: &str) -> usize {
        self.state.lock().calls.iter().filter(|(o, _)| *o == operation).count()
    }

    /// The node's init ends by itself.
    pub fn kill(&self, id: NodeId) {
        if let Some(node) = self.state.lock().seen.nodes.get_mut(&id) {
            node.init_pid = None;
            node.ready = false;
        }
        self.changed.send_replace(());
    }

    /// Everything stops, and what lies in memory is gone.
    pub fn reboot(&self) {
        let mut state = self.state.lock();
        for node in state.seen.nodes.values_mut() {
            *node = ObservedNode { disk: node.disk, ..ObservedNode::default() };
        }
        for vcluster in state.seen.vclusters.values_mut() {
            vcluster.bridge = false;
        }
        drop(state);
        self.changed.send_replace(());
    }

    async fn call(&self, operation: &'static str, on: String) -> Result<()> {
        self.state.lock().calls.push((operation, on));
        // Others get their turn, as on a real host.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut changed = self.changed.subscribe();
        loop {
            {
                let mut state = self.state.lock();
                match state.faults.get_mut(operation) {
                    None => return Ok(()),
                    Some(Fault::Fail { times: 0, .. }) => return Ok(()),
                    Some(Fault::Fail { code, times }) => {
                        *times -= 1;
                        return Err(HostError(Reason::new(code, format!("{operation} was told to fail"))));
                    }
                    Some(Fault::Hang) => {}
                }
            }
            changed.changed().await.unwrap();
        }
    }

    fn doubt(&self, state: &mut State, text: String) {
        state.nonsense.push(text);
    }
}

#[async_trait]
impl Images for TestHost {
    async fn ensure_image(&self, image: &ImageRef) -> Result<()> {
        self.call("image", image.name.to_string()).await?;
        self.state.lock().images.insert(image.digest.to_string());
        Ok(())
    }
}

#[async_trait]
impl Disks for TestHost {
    async fn ensure_disk(&self, node: &NodePlan, _vcluster: &VclusterPlan) -> Result<()> {
        // A disk that fails half way leaves files behind.
        self.state.lock().traces.insert(node.id);
        self.call("disk", node.id.to_string()).await?;
        let mut state = self.state.lock();
        if !state.images.contains(node.image.digest.as_str()) {
            self.doubt(&mut state, format!("a disk of {} before its image", node.id));
        }
        state.seen.nodes.entry(node.id).or_default().disk = true;
        Ok(())
    }

    async fn remove_disk(&self, id: NodeId) -> Result<()> {
        self.call("remove_disk", id.to_string()).await?;
        let mut state = self.state.lock();
        if state.seen.nodes.get(&id).is_some_and(|n| n.init_pid.is_some()) {
            self.doubt(&mut state, format!("the disk of {id} was removed while it ran"));
        }
        state.traces.remove(&id);
        if let Some(node) = state.seen.nodes.get_mut(&id) {
            node.disk = false;
            if *node == ObservedNode::default() {
                state.seen.nodes.remove(&id);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Networks for TestHost {
    async fn ensure_vcluster(&self, vcluster: &VclusterPlan) -> Result<()> {
        self.call("vcluster", vcluster.id.to_string()).await?;
        let mut state = self.state.lock();
        state.seen.vclusters.insert(vcluster.id, ObservedVcluster { bridge: true, generation: Some(vcluster.generation) });
        Ok(())
    }

    async fn remove_vcluster(&self, id: VclusterId) -> Result<()> {
        self.call("remove_vcluster", id.to_string()).await?;
        self.state.lock().seen.vclusters.remove(&id);
        Ok(())
    }

    async fn ensure_port(&self, node: &NodePlan) -> Result<()> {
        self.call("port", node.id.to_string()).await?;
        let mut state = self.state.lock();
        if !state.seen.vclusters.get(&node.vcluster).is_some_and(|v| v.bridge) {
            self.doubt(&mut state, format!("a port of {} before its bridge", node.id));
        }
        state.seen.nodes.entry(node.id).or_default().port = true;
        Ok(())
    }

    async fn remove_port(&self, id: NodeId) -> Result<()> {
        self.call("remove_port", id.to_string()).await?;
        let mut state = self.state.lock();
        if let Some(node) = state.seen.nodes.get_mut(&id) {
            node.port = false;
            if *node == ObservedNode::default() {
                state.seen.nodes.remove(&id);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Containers for TestHost {
    async fn start(&self, node: &NodePlan, _vcluster: &VclusterPlan) -> Result<i32> {
        self.call("start", node.id.to_string()).await?;
        let mut state = self.state.lock();
        state.next_pid += 1;
        let pid = 1000 + state.next_pid;
        let seen = state.seen.nodes.entry(node.id).or_default();
        let sound = seen.disk && seen.port && seen.init_pid.is_none();
        seen.init_pid = Some(pid);
        seen.ready = false;
        if !sound {
            self.doubt(&mut state, format!("{} was started while running or without disk and port", node.id));
        }
        Ok(pid)
    }

    async fn wait_ready(&self, id: NodeId, deadline: Duration) -> Result<()> {
        let told = tokio::time::timeout(deadline, self.call("ready", id.to_string())).await;
        told.unwrap_or_else(|_| Err(HostError(Reason::new("not_ready", "sshd does not listen"))))?;
        match self.state.lock().seen.nodes.get_mut(&id) {
            Some(node) if node.init_pid.is_some() => {
                node.ready = true;
                Ok(())
            }
            _ => Err(HostError(Reason::new("boot_failed", "init ended"))),
        }
    }

    async fn wait_end(&self, id: NodeId) {
        let mut changed = self.changed.subscribe();
        let pid = self.pid(id);
        while self.pid(id).is_some() && self.pid(id) == pid {
            changed.changed().await.unwrap();
        }
    }

    async fn stop(&self, id: NodeId, _grace: Duration) -> Result<()> {
        self.call("stop", id.to_string()).await?;
        self.kill(id);
        Ok(())
    }
}

#[async_trait]
impl Access for TestHost {
    async fn dial(&self, id: NodeId, port: u16) -> Result<Option<OwnedFd>> {
        if self.pid(id).is_none() {
            return Err(HostError(Reason::new("not_running", "it does not run")));
        }
        if port != 80 {
            return Ok(None);
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"hello from the node").unwrap();
        Ok(Some(ours.into()))
    }

    async fn wait_port(&self, _id: NodeId, port: u16, _timeout: Duration) -> Result<bool> {
        Ok(port == 80)
    }

    async fn terminal(&self, id: NodeId, _session: &str, _cols: u16, _rows: u16) -> Result<OwnedFd> {
        self.dial(id, 80).await?.ok_or_else(|| HostError(Reason::new("terminal_failed", "no")))
    }

    async fn exec(&self, id: NodeId, argv: &[String], stdin: &str, _timeout: Duration) -> Result<Option<ExecOutput>> {
        self.call("exec", id.to_string()).await?;
        Ok(Some(ExecOutput { exit_code: 0, stdout: format!("{}: {stdin}", argv.join(" ")), stderr: String::new(), truncated: false }))
    }

    async fn logs(&self, _id: NodeId, _lines: u32) -> Result<String> {
        Ok("the console".to_owned())
    }
}

#[async_trait]
impl Machine for TestHost {
    async fn prepare(&self) -> Result<Vec<Check>> {
        let outcome = if self.state.lock().unfit { CheckOutcome::Failed } else { CheckOutcome::Ok };
        Ok(vec![Check { name: "idmapped_mounts".to_owned(), outcome, message: "the kernel is what it is".to_owned() }])
    }

    async fn capacity(&self) -> Result<Capacity> {
        Ok(Capacity { cpu_millis: 2000, memory_mib: 4096, disk_mib: 65536 })
    }

    async fn observe(&self) -> Result<Observed> {
        self.call("observe", String::new()).await?;
        Ok(self.seen())
    }

    async fn inventory(&self) -> Result<Vec<Owned>> {
        let seen = self.seen();
        let nodes = seen.nodes.keys().map(|id| Owned { kind: "directory", label: id.to_string(), owner: Owner::Node(*id) });
        let vclusters = seen.vclusters.keys().map(|id| Owned { kind: "link", label: id.to_string(), owner: Owner::Vcluster(*id) });
        Ok(nodes.chain(vclusters).collect())
    }
}
