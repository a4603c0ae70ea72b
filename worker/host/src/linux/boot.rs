//! Nodes up and down.
//!
//! Up: the worker binds the socket that init will report to, a helper starts the container, init says READY=1, sshd listens.
//! Down: the worker signals init itself through a pidfd; liblxc's monitor then removes cgroups and cable and ends, and
//! the worker removes what it may have left.

use async_trait::async_trait;
use docklet_types::id::NodeId;
use docklet_types::kernel_names;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::report::Reason;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixDatagram;
use tokio::time::{Instant, timeout, timeout_at};

use super::container::{self, HostFacts, StartRequest, Started};
use super::proc::{self, Process};
use super::rootfs::Rootfs;
use super::run::{self, Run, State};
use super::share::Home;
use super::{Inner, LinuxHost, access, apparmor, cgroup, helper, network, sys};
use crate::reason::failed;
use crate::{Containers, HostError, Result};

/// The longest that a start may take before the helper is given up.
const START: Duration = Duration::from_secs(30);
/// How long the monitor may take to clean up after init has ended, before the worker does it.
const CLEAN_UP: Duration = Duration::from_secs(5);
/// How long what was killed may take to end. Only what sleeps in the kernel takes longer.
const KILLED: Duration = Duration::from_secs(20);
/// How long an open shell may take to end before the node is asked to.
const HANG_UP: Duration = Duration::from_millis(500);
/// How often sshd is looked for once init is up.
const LOOK: Duration = Duration::from_millis(5);
/// The port of sshd.
const SSH: u16 = 22;
const NOTIFY: &str = "notify";

/// `SIGRTMIN+3`, which asks systemd to power off.
fn halt_signal() -> i32 {
    libc::SIGRTMIN() + 3
}

/// Binds the socket that the node's init reports to. Whoever was bound there before no longer hears it.
fn bind_report(directory: &Path, owner: u32) -> io::Result<UnixDatagram> {
    let open = std::fs::File::open(directory)?;
    // Through the descriptor, because the whole path may be longer than a socket's address.
    let base = format!("/proc/self/fd/{}", open.as_raw_fd());
    let temporary = format!("{base}/{NOTIFY}.new");
    let _ = std::fs::remove_file(&temporary);
    let socket = UnixDatagram::bind(&temporary)?;
    std::os::unix::fs::chown(&temporary, Some(owner), Some(owner))?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, format!("{base}/{NOTIFY}"))?;
    Ok(socket)
}

/// Returns when init has sent `READY=1`.
async fn report(socket: &UnixDatagram) {
    let mut buffer = [0; 4096];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(n) if buffer[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") => return,
            Ok(_) => {}
            // Nothing can come any more; the caller's deadline ends this.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Returns when the process behind the pidfd has ended.
async fn end_of(pidfd: OwnedFd) {
    // SAFETY: an OwnedFd stays open and the same for as long as the AsyncFd that owns it.
    if let Ok(pidfd) = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
        let _ = pidfd.readable().await;
    }
}

async fn end_of_process(process: Process) {
    if let Ok(Some(pidfd)) = process.open() {
        end_of(pidfd).await;
    }
}

impl LinuxHost {
    fn start_request(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<StartRequest> {
        let paths = &self.inner.paths;
        let layers = self.inner.images.layers(&node.image)?;
        let what = format!("Node {} could not be started", node.name);
        let state = self.inner.make_state(node).map_err(|e| failed("boot_failed", &what, &e))?;
        let bridge_mtu = std::fs::read_to_string(format!("/sys/class/net/{}/mtu", kernel_names::bridge(vcluster.id)));
        let cgroups = cgroup::tree();
        let facts = HostFacts {
            seccomp: &paths.lxc().join("node.seccomp"),
            state: &state,
            features: cgroup::features(),
            lxcfs: container::lxcfs_is_live(),
            apparmor: apparmor::profile(),
            mtu: bridge_mtu.ok().and_then(|m| m.trim().parse().ok()).filter(|m| *m != 1500),
            has_data: true,
            cgroups: cgroups.as_ref(),
        };
        let config = container::config(node, vcluster, &facts);
        Ok(StartRequest {
            container: kernel_names::container(node.id),
            lxcpath: paths.lxc(),
            rootfs: Rootfs {
                layers,
                disk: paths.node_disk(node.id),
                first_id: node.range.first_id(),
                notify: state.join("notify"),
                hosts: paths.vcluster_state(vcluster.id).join("hosts"),
                data: Some(paths.user_data(&node.owner)),
                hostname: node.name.to_string(),
                cgroups,
            },
            config,
            state: state.clone(),
        })
    }

    /// The socket of a node that is on its way up; bound anew where this worker did not start the node.
    fn listen_again(&self, id: NodeId) -> Option<Arc<UnixDatagram>> {
        if let Some(socket) = self.inner.reports.lock().get(&id) {
            return Some(Arc::clone(socket));
        }
        let owner = self.note(id)?.first_id;
        bind_report(&self.state(id).join("notify"), owner).ok().map(Arc::new)
    }

    fn not_ready(&self, id: NodeId, what: &str) -> HostError {
        let reason = Reason::new("not_ready", what);
        let log = container::tail(&self.state(id).join("console.log"), 20);
        HostError(if log.is_empty() { reason } else { reason.with_log(log) })
    }

    /// Ends init and waits for its monitor.
    async fn bring_down(&self, run: Run, grace: Duration) -> io::Result<()> {
        if let Some(init) = run.init.open()? {
            let signal = |number| match sys::pidfd_signal(std::os::fd::AsFd::as_fd(&init), number) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                other => other,
            };
            if !grace.is_zero() {
                signal(halt_signal())?;
                let _ = timeout(grace, end_of_process(run.init)).await;
            }
            signal(libc::SIGKILL)?;
            if timeout(KILLED, end_of(init)).await.is_err() {
                let text = "a process of it does not end; it may wait for the shared directory (~/nfs)";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
        self.bring_monitor_down(run.monitor).await
    }

    /// Ends the node's terminals. A shell at a prompt ignores what asks others to end, and init would wait for it.
    async fn hang_up(&self, id: NodeId) {
        let directory = self.state(id).join("terminals");
        let _ = self.blocking(move |_| access::end_terminals(&directory, HANG_UP)).await;
    }

    /// Ends a start whose helper was cut off: what it forked may still be on its way, and its cable is in the way of the
    /// next one.
    async fn clear_half_started(&self, id: NodeId) -> io::Result<()> {
        let cleared = self.blocking(move |inner| {
            let is_start = |s: &access::Serving| {
                s.node == id && (s.command.ends_with(" helper start") || s.command.starts_with("[lxc monitor]"))
            };
            // One may fork another and end while all are listed, and neither then be seen: once nothing is not enough.
            let mut nothing = 0;
            for _ in 0..20 {
                let left: Vec<_> = access::serving(&inner.paths.lxc()).into_iter().filter(is_start).collect();
                if left.is_empty() {
                    nothing += 1;
                    if nothing == 2 {
                        return cgroup::clear(&kernel_names::container(id));
                    }
                    continue;
                }
                nothing = 0;
                for process in left.iter().filter_map(|s| Process::current(s.pid)) {
                    process.kill(1000)?;
                }
            }
            Err(io::Error::new(io::ErrorKind::TimedOut, "processes of an earlier start do not end"))
        });
        cleared.await.map_err(io::Error::other)??;
        network::remove_link(&kernel_names::veth(id)).await.map_err(io::Error::other)
    }

    async fn bring_monitor_down(&self, monitor: Process) -> io::Result<()> {
        if timeout(CLEAN_UP, end_of_process(monitor)).await.is_ok() {
            return Ok(());
        }
        // It hangs, or it is starting init anew. Its own death takes init along.
        let init = proc::init_below(monitor);
        monitor.kill(1000)?;
        if let Some(init) = init {
            init.kill(1000)?;
        }
        Ok(())
    }
}

/// While it lives, nobody gets into the node any more: a shell opened now would only be in the way of its end.
struct Stopping {
    inner: Arc<Inner>,
    id: NodeId,
}

impl Stopping {
    fn begin(inner: &Arc<Inner>, id: NodeId) -> Self {
        inner.stopping.lock().insert(id);
        Self { inner: Arc::clone(inner), id }
    }
}

impl Drop for Stopping {
    fn drop(&mut self) {
        self.inner.stopping.lock().remove(&self.id);
    }
}

#[async_trait]
impl Containers for LinuxHost {
    async fn start(&self, node: &NodePlan, vcluster: &VclusterPlan) -> Result<i32> {
        self.inner.seen.lock().insert(node.id);
        if let Some(init) = run::init(&self.state(node.id)) {
            return Ok(init.pid);
        }
        let what = format!("Node {} could not be started", node.name);
        if run::look(&self.state(node.id)) == State::Unclear {
            self.clear_half_started(node.id).await.map_err(|e| failed("boot_failed", &what, &e))?;
        }
        let home = Home {
            data: self.inner.paths.user_data(&node.owner),
            draft: self.inner.paths.user_draft(&node.owner, &self.inner.name),
            owner: node.range.first_id(),
        };
        self.inner.share.home(&self.program, home).await?;
        let request = self.start_request(node, vcluster)?;
        run::announce(&request.state).map_err(|e| failed("boot_failed", &what, &e))?;
        let socket =
            bind_report(&request.rootfs.notify, node.range.first_id()).map_err(|e| failed("boot_failed", &what, &e))?;
        self.inner.reports.lock().insert(node.id, Arc::new(socket));
        let title = access::title(&request.lxcpath, &request.container);
        let started: Result<Started> = {
            let _turn = self.inner.helpers.acquire().await;
            helper::call(&self.program, "start", &title, &request, START).await
        };
        match started {
            Ok(Started { run, found }) => {
                if found {
                    // Its init may have spoken to the socket before this one.
                    self.inner.reports.lock().remove(&node.id);
                }
                Ok(run.init.pid)
            }
            Err(e) => {
                self.inner.reports.lock().remove(&node.id);
                // The helper binds the user's data: where that hangs, so did the helper.
                self.inner.share.answers(&self.program).await?;
                Err(e)
            }
        }
    }

    async fn wait_ready(&self, id: NodeId, deadline: Duration) -> Result<()> {
        let until = Instant::now() + deadline;
        let state = self.state(id);
        let seconds = deadline.as_secs();
        let Some(init) = run::init(&state) else {
            return Err(self.not_ready(id, "The node ended while it booted."));
        };
        if run::is_ready(&state, init) {
            return Ok(());
        }
        let adopted = !self.inner.reports.lock().contains_key(&id);
        if let Some(socket) = self.listen_again(id) {
            // A node that came up while no worker listened has told nobody: its sshd speaks for it.
            let by_itself = async {
                if !adopted {
                    std::future::pending::<()>().await;
                }
                while !self.inner.doorman.listens(init, SSH).await.unwrap_or(false) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let up = async {
                tokio::select! {
                    () = report(&socket) => true,
                    () = by_itself => true,
                    () = end_of_process(init) => false,
                }
            };
            match timeout_at(until, up).await {
                Ok(true) => {}
                Ok(false) => return Err(self.not_ready(id, "The node ended while it booted.")),
                Err(_) => return Err(self.not_ready(id, &format!("The node did not come up within {seconds} s."))),
            }
        }
        loop {
            match self.inner.doorman.listens(init, SSH).await {
                Ok(true) => break,
                _ if !init.alive() => return Err(self.not_ready(id, "The node ended while it booted.")),
                _ if Instant::now() > until => {
                    return Err(self
                        .not_ready(id, &format!("The node came up, but its sshd did not listen within {seconds} s.")));
                }
                _ => tokio::time::sleep(LOOK).await,
            }
        }
        self.inner.reports.lock().remove(&id);
        run::mark_ready(&state, init).map_err(|e| failed("not_ready", "The node's state could not be written", &e))
    }

    async fn wait_end(&self, id: NodeId) {
        if let Some(init) = run::init(&self.state(id)) {
            end_of_process(init).await;
        }
    }

    async fn freeze(&self, id: NodeId) -> Result<()> {
        let frozen = self.blocking(move |_| cgroup::freeze(&kernel_names::container(id))).await?;
        frozen.map_err(|e| failed("freeze_failed", "The node could not be frozen", &e))
    }

    async fn thaw(&self, node: &NodePlan) -> Result<()> {
        let (id, size) = (node.id, node.size);
        let thawed = self.blocking(move |inner| {
            // The limits first: it never runs beyond them.
            cgroup::limit(&kernel_names::container(id), &size)?;
            inner.pool.create(id, size.disk_mib).map_err(io::Error::other)?;
            cgroup::thaw(&kernel_names::container(id))
        });
        thawed.await?.map_err(|e| failed("thaw_failed", &format!("Node {} could not be thawed", node.name), &e))
    }

    async fn stop(&self, id: NodeId, grace: Duration) -> Result<()> {
        self.inner.seen.lock().insert(id);
        self.inner.reports.lock().remove(&id);
        let _stopping = Stopping::begin(&self.inner, id);
        let what = "The node could not be stopped";
        let thawed = self.blocking(move |_| cgroup::thaw(&kernel_names::container(id))).await?;
        thawed.map_err(|e| failed("stop_failed", what, &e))?;
        let state = self.state(id);
        let down = match run::look(&state) {
            State::Running(run) => {
                if !grace.is_zero() {
                    self.hang_up(id).await;
                }
                self.bring_down(run, grace).await
            }
            State::Changing(monitor) => self.bring_monitor_down(monitor).await,
            State::Unclear => self.clear_half_started(id).await,
            // Its files are gone, and cannot tell.
            State::Stopped if !state.is_dir() => self.clear_half_started(id).await,
            State::Stopped => Ok(()),
        };
        down.map_err(|e| failed("stop_failed", what, &e))?;
        // All of it is gone already when the monitor did its work.
        let container = kernel_names::container(id);
        let cleared = self.blocking(move |_| cgroup::clear(&container)).await?;
        cleared.map_err(|e| failed("stop_failed", "The node's control groups could not be removed", &e))?;
        network::remove_link(&kernel_names::veth(id))
            .await
            .map_err(|e| failed("stop_failed", "The node's network link could not be removed", &e))?;
        if state.is_dir() { run::ended(&state).map_err(|e| failed("stop_failed", what, &e)) } else { Ok(()) }
    }
}
