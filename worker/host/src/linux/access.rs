//! Ways into a running node: sockets made inside its network namespace, shells, commands.

use docklet_types::agent::frame::{self, Control};
use docklet_types::id::NodeId;
use nix::sched::{CloneFlags, setns};
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

use super::proc::{self, Process};
use super::{cgroup, listeners, sys};

/// How long a node may take to answer a connection to itself.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a port is looked for while somebody waits for it.
const LOOK: Duration = Duration::from_millis(10);

type Job = Box<dyn FnOnce() + Send>;

/// A thread that goes into nodes' network namespaces. A socket belongs for ever to the namespace it was made in, so only
/// its making needs the thread; connecting does not. The thread never comes back to the host's namespace.
pub struct Doorman {
    jobs: parking_lot::Mutex<mpsc::Sender<Job>>,
}

impl Doorman {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        // Where no thread can be made the channel is closed, and whoever asks is told so.
        let _ = std::thread::Builder::new().name("doorman".to_owned()).stack_size(128 << 10).spawn(move || {
            for job in inbox {
                job();
            }
        });
        Self { jobs: parking_lot::Mutex::new(jobs) }
    }

    /// Does a piece of work in the process's network namespace. It must not wait for anything.
    async fn inside<T: Send + 'static>(
        &self,
        process: Process,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(enter(process).and_then(|()| work()));
        });
        let gone = || io::Error::other("the thread that enters nodes has ended");
        self.jobs.lock().send(job).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    async fn socket(&self, process: Process, v6: bool) -> io::Result<TcpSocket> {
        let fd = self.inside(process, move || stream_socket(v6)).await?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
    }

    /// Whether a TCP socket listens on `port`, on any address, in the process's network namespace.
    pub async fn listens(&self, process: Process, port: u16) -> io::Result<bool> {
        match self.inside(process, move || listeners::listens_here(port)).await {
            Ok(listens) => Ok(listens && process.alive()),
            // A kernel without sock_diag, or a process that has ended.
            Err(_) => proc::listens(process, port),
        }
    }

    /// Whether something listened on the port before the time was over. Ends early with the process.
    pub async fn wait_port(&self, process: Process, port: u16, timeout: Duration) -> io::Result<bool> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            if self.listens(process, port).await? {
                return Ok(true);
            }
            if !process.alive() || tokio::time::Instant::now() + LOOK > deadline {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A connection to the port inside the node: on its loopback addresses, else on its own. `None`: nothing listens.
    pub async fn dial(&self, process: Process, ip: Option<Ipv4Addr>, port: u16) -> io::Result<Option<OwnedFd>> {
        let mut targets: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
        targets.extend(ip.map(|ip| SocketAddr::from((ip, port))));
        for target in targets {
            let socket = match self.socket(process, target.is_ipv6()).await {
                Err(e) if target.is_ipv6() && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => continue,
                other => other?,
            };
            match tokio::time::timeout(CONNECT, socket.connect(target)).await {
                Ok(Ok(stream)) => return Ok(Some(stream.into_std()?.into())),
                Ok(Err(e)) if refused(&e) => {}
                Ok(Err(e)) => return Err(e),
                Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            }
        }
        Ok(None)
    }
}

/// Nobody is there, or the node has no such address.
fn refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ECONNREFUSED | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EAFNOSUPPORT)
    )
}

/// Moves the calling thread into the process's network namespace.
fn enter(process: Process) -> io::Result<()> {
    let namespace = process.open_proc("ns/net")?;
    Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

fn stream_socket(v6: bool) -> io::Result<OwnedFd> {
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: takes numbers; the descriptor that comes back is ours.
    let fd = sys::check(i64::from(unsafe {
        libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0)
    }))?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A session's name as it may stand in a file name.
pub fn is_session(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Connects to a unix socket by its directory: the whole path may be longer than a socket's address.
pub fn connect_in(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let open = std::fs::File::open(directory)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()))
}

/// Asks the holders of all sessions in the directory to end their shells, and waits until they have, or for `limit`.
pub fn end_terminals(directory: &Path, limit: Duration) -> io::Result<()> {
    let close = serde_json::to_vec(&Control::Close)?;
    let mut waiting = Vec::new();
    for entry in std::fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|n| n.ends_with(".sock")) else { continue };
        // One that does not answer has ended.
        let Ok(mut stream) = connect_in(directory, name) else { continue };
        let told = stream.write_all(&frame::header(frame::CONTROL, close.len() as u32));
        if told.and_then(|()| stream.write_all(&close)).is_ok() {
            waiting.push(stream);
        }
    }
    let deadline = Instant::now() + limit;
    for mut stream in waiting {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        // What the shell says last is nobody's any more; the end of it is the holder's.
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    Ok(())
}

/// What `ps` shows of a helper: the installation by its directory, the node by its container.
pub fn title(lxcpath: &Path, container: &str) -> String {
    format!("docklet-node {} {container}", lxcpath.display())
}

/// The node that a helper's or monitor's command line speaks of, if it is one of this installation.
pub fn node_of_command(command: &str, lxcpath: &Path) -> Option<NodeId> {
    let rest = command.split_once(&format!("{} ", lxcpath.display()))?.1;
    let container = rest.split_whitespace().next()?;
    container.strip_prefix(docklet_types::kernel_names::CONTAINER_PREFIX)?.parse().ok()
}

/// A helper or monitor of a node of this installation.
pub struct Serving {
    pub pid: i32,
    pub node: NodeId,
    pub command: String,
}

/// All of them.
pub fn serving(lxcpath: &Path) -> Vec<Serving> {
    let of = |pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
        // A person's grep for a node is not a process of it.
        let ours = command.starts_with("docklet-node ") || command.starts_with("[lxc monitor]");
        let node = node_of_command(&command, lxcpath).filter(|_| ours)?;
        Some(Serving { pid, node, command })
    };
    proc::all().into_iter().filter_map(of).collect()
}

/// Nodes of this installation that have processes and no file. Every program of the machine is looked at only where there
/// is a container that nobody knows, as of another installation.
pub fn without_files(lxcpath: &Path, known: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
    let unknown = |name: &String| {
        let id =
            name.strip_prefix(docklet_types::kernel_names::CONTAINER_PREFIX).and_then(|n| n.parse::<NodeId>().ok());
        id.is_some_and(|id| !known(id))
    };
    if !cgroup::containers().iter().any(unknown) {
        return Vec::new();
    }
    serving(lxcpath).into_iter().map(|s| s.node).filter(|id| !known(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_no_path() {
        for bad in ["", "..", "a/b", "A", "a b", &"a".repeat(41)] {
            assert!(!is_session(bad), "{bad:?}");
        }
        assert!(is_session("0f-3a"));
    }

    #[test]
    fn a_command_line_tells_its_node() {
        let lxcpath = Path::new("/opt/docklet/local/lxc");
        let id: NodeId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let container = docklet_types::kernel_names::container(id);
        assert_eq!(node_of_command(&format!("{} helper start", title(lxcpath, &container)), lxcpath), Some(id));
        assert_eq!(node_of_command(&format!("[lxc monitor] /opt/docklet/local/lxc {container}"), lxcpath), Some(id));
        assert_eq!(node_of_command(&format!("[lxc monitor] /srv/other/local/lxc {container}"), lxcpath), None);
        assert_eq!(node_of_command("bash", lxcpath), None);
    }
}
