//! The fake host, watched: it also hangs where a test says so, leaves traces that observing does not show, and writes
//! down what no sound worker asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use docklet_types::agent::{ExecOutput, Part};
use docklet_types::host::{Capacity, Check, CheckOutcome};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::name::ImageName;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::Forward;
use docklet_worker_host::fake::{FakeHost, Op};
use docklet_worker_host::*;
use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Default)]
struct Watched {
    hanging: Option<Op>,
    /// Calls that hang.
    stuck: u64,
    unfit: bool,
    /// Nodes that a half-made disk may have left files of.
    traces: BTreeSet<NodeId>,
    nonsense: Vec<String>,
}

/// See the module. Clones are the same host.
#[derive(Clone)]
pub struct TestHost {
    pub fake: FakeHost,
    watched: Arc<Mutex<Watched>>,
    lifted: watch::Sender<()>,
}

impl Default for TestHost {
    fn default() -> Self {
        let fake = FakeHost::new();
        // Others get their turn in between, as on a real host.
        for op in [
            Op::EnsureImage,
            Op::EnsureDisk,
            Op::EnsureVcluster,
            Op::EnsurePort,
            Op::Start,
            Op::WaitReady,
            Op::Stop,
            Op::RemoveDisk,
            Op::RemovePort,
        ] {
            fake.delay(op, Duration::from_millis(1));
        }
        Self { fake, watched: Arc::default(), lifted: watch::Sender::new(()) }
    }
}

impl TestHost {
    /// The next `times` calls fail with this code.
    pub fn fail(&self, op: Op, times: u64, code: &str) {
        self.fake.fail(op, times, HostError::new(code, format!("{op:?} was told to fail")));
    }

    /// Calls do not return until [`TestHost::mend`].
    pub fn hang(&self, op: Op) {
        self.watched.lock().hanging = Some(op);
    }

    /// How many calls have hung so far.
    pub fn stuck(&self) -> u64 {
        self.watched.lock().stuck
    }

    pub fn mend(&self) {
        self.fake.heal();
        self.watched.lock().hanging = None;
        self.lifted.send_replace(());
    }

    pub fn set_unfit(&self, unfit: bool) {
        self.watched.lock().unfit = unfit;
    }

    /// A node that somebody else put here.
    pub async fn put_running(&self, plan: &NodePlan, vcluster: &VclusterPlan) -> i32 {
        self.fake.ensure_image(&plan.image).await.unwrap();
        self.fake.ensure_disk(plan, vcluster).await.unwrap();
        self.fake.ensure_vcluster(vcluster).await.unwrap();
        self.fake.ensure_port(plan).await.unwrap();
        let pid = self.fake.start(plan, vcluster).await.unwrap();
        self.fake.wait_ready(plan.id, Duration::from_secs(1)).await.unwrap();
        pid
    }

    pub fn pid(&self, id: NodeId) -> Option<i32> {
        self.fake.state().nodes.get(&id)?.init
    }

    pub fn is_ready(&self, id: NodeId) -> bool {
        self.fake.state().nodes.get(&id).is_some_and(|n| n.ready)
    }

    /// Process ids of all nodes that run.
    pub fn running(&self) -> Vec<(NodeId, i32)> {
        self.fake.state().nodes.iter().filter_map(|(id, n)| Some((*id, n.init?))).collect()
    }

    pub fn calls(&self, op: Op) -> u64 {
        self.fake.calls(op)
    }

    pub fn is_empty(&self) -> bool {
        let state = self.fake.state();
        state.nodes.is_empty() && state.vclusters.is_empty() && self.watched.lock().traces.is_empty()
    }

    /// Every call so far made sense.
    pub fn assert_sound(&self) {
        assert_eq!(self.watched.lock().nonsense, Vec::<String>::new());
    }

    async fn pass(&self, op: Op) {
        let mut lifted = self.lifted.subscribe();
        if self.watched.lock().hanging == Some(op) {
            self.watched.lock().stuck += 1;
        }
        while self.watched.lock().hanging == Some(op) {
            lifted.changed().await.unwrap();
        }
    }

    fn expect(&self, good: bool, what: impl FnOnce() -> String) {
        if !good {
            self.watched.lock().nonsense.push(what());
        }
    }
}

#[async_trait]
impl Images for TestHost {
    async fn ensure_image(&self, image: &ImageRef) -> Result<()> {
        let done = self.fake.ensure_image(image).await;
        self.pass(Op::EnsureImage).await;
        done
    }

    async fn newest_image(&self, name: &ImageName) -> Result<Option<ImageRef>> {
        self.fake.newest_image(name).await
    }
}

#[async_trait]
impl Disks for TestHost {
    async fn ensure_disk(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<()> {
        self.watched.lock().traces.insert(node.id);
        let has_image = self.fake.state().images.contains(&node.image.digest);
        self.expect(has_image, || format!("a disk of {} before its image", node.id));
        let done = self.fake.ensure_disk(node, vcluster).await;
        self.pass(Op::EnsureDisk).await;
        done
    }

    async fn remove_disk(&self, id: NodeId) -> Result<()> {
        let runs = self.fake.state().nodes.get(&id).is_some_and(|n| n.init.is_some() || n.unsettled);
        self.expect(!runs, || format!("the disk of {id} removed while it runs, or may"));
        self.fake.remove_disk(id).await?;
        self.watched.lock().traces.remove(&id);
        Ok(())
    }
}

#[async_trait]
impl Networks for TestHost {
    async fn ensure_vcluster(&self, vcluster: &VclusterPlan) -> Result<Vec<Forward>> {
        let done = self.fake.ensure_vcluster(vcluster).await;
        self.pass(Op::EnsureVcluster).await;
        done
    }

    async fn remove_vcluster(&self, id: VclusterId) -> Result<()> {
        self.fake.remove_vcluster(id).await
    }

    async fn ensure_port(&self, node: &NodePlan) -> Result<()> {
        let bridge = self.fake.state().vclusters.get(&node.vcluster).is_some_and(|v| v.bridge);
        self.expect(bridge, || format!("a port of {} before its bridge", node.id));
        let done = self.fake.ensure_port(node).await;
        self.pass(Op::EnsurePort).await;
        done
    }

    async fn remove_port(&self, id: NodeId) -> Result<()> {
        self.fake.remove_port(id).await
    }
}

#[async_trait]
impl Containers for TestHost {
    async fn start(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<i32> {
        let fit = self.fake.state().nodes.get(&node.id).is_some_and(|n| n.disk && n.port && n.init.is_none());
        self.expect(fit, || format!("{} started while it runs, or without disk and port", node.id));
        let done = self.fake.start(node, vcluster).await;
        self.pass(Op::Start).await;
        done
    }

    async fn wait_ready(&self, id: NodeId, deadline: Duration) -> Result<()> {
        let up = async {
            self.pass(Op::WaitReady).await;
            self.fake.wait_ready(id, deadline).await
        };
        let late = |_| Err(HostError::new("not_ready", "The node did not come up in time."));
        tokio::time::timeout(deadline, up).await.unwrap_or_else(late)
    }

    async fn wait_end(&self, id: NodeId) {
        self.fake.wait_end(id).await;
    }

    async fn stop(&self, id: NodeId, grace: Duration) -> Result<()> {
        self.fake.stop(id, grace).await
    }

    async fn freeze(&self, id: NodeId) -> Result<()> {
        let done = self.fake.freeze(id).await;
        self.pass(Op::Freeze).await;
        done
    }

    async fn thaw(&self, node: &NodePlan) -> Result<()> {
        self.fake.thaw(node).await
    }
}

#[async_trait]
impl Moves for TestHost {
    async fn begin_move(&self, node: &NodePlan, number: u64) -> Result<()> {
        self.fake.begin_move(node, number).await
    }
    async fn end_move(&self, id: NodeId) -> Result<()> {
        self.fake.end_move(id).await
    }
    async fn send_disk(&self, id: NodeId, number: u64, part: Part, based: bool) -> Result<OwnedFd> {
        self.fake.send_disk(id, number, part, based).await
    }
    async fn take_disk(&self, id: NodeId, number: u64, part: Part) -> Result<Option<OwnedFd>> {
        self.fake.take_disk(id, number, part).await
    }
}

#[async_trait]
impl Access for TestHost {
    async fn dial(&self, id: NodeId, port: u16) -> Result<Option<OwnedFd>> {
        self.fake.dial(id, port).await
    }
    async fn wait_port(&self, id: NodeId, port: u16, timeout: Duration) -> Result<bool> {
        self.fake.wait_port(id, port, timeout).await
    }
    async fn terminal(&self, id: NodeId, session: &str, cols: u16, rows: u16) -> Result<OwnedFd> {
        self.fake.terminal(id, session, cols, rows).await
    }
    async fn exec(&self, id: NodeId, argv: &[String], stdin: &str, timeout: Duration) -> Result<Option<ExecOutput>> {
        let done = self.fake.exec(id, argv, stdin, timeout).await;
        self.pass(Op::Exec).await;
        done
    }
    async fn logs(&self, id: NodeId, lines: u32) -> Result<String> {
        self.fake.logs(id, lines).await
    }
}

#[async_trait]
impl Machine for TestHost {
    async fn prepare(&self) -> Result<Vec<Check>> {
        if self.watched.lock().unfit {
            let message = "the kernel is what it is".to_owned();
            return Ok(vec![Check { name: "idmapped_mounts".to_owned(), outcome: CheckOutcome::Failed, message }]);
        }
        self.fake.prepare().await
    }
    async fn watch(&self) -> Vec<Check> {
        self.fake.watch().await
    }
    async fn capacity(&self) -> Result<Capacity> {
        self.fake.capacity().await
    }
    fn address(&self) -> Option<std::net::Ipv4Addr> {
        self.fake.address()
    }

    async fn observe(&self) -> Result<Observed> {
        self.fake.observe().await
    }
    async fn limits_hit(&self, nodes: Vec<NodeId>) -> BTreeMap<NodeId, Hits> {
        self.fake.limits_hit(nodes).await
    }
    async fn inventory(&self) -> Result<Vec<Owned>> {
        self.fake.inventory().await
    }
}
