//! A node with the upstream in it, and the ways there: through Docklet, and from within the node's network namespace.

use docklet_client::{Client, Error, Target, WaitError};
use docklet_types::name::UserName;
use docklet_types::paths::Paths;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, Exec, ExecResult, SizeRequest};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, lookup_host};

use super::http::{Head, HeadError};
use crate::docklet::{DockletError, Server, sign_in};

/// The upstream's port in the node.
pub const PORT: u16 = 8080;
/// The only node.
pub const NODE: &str = "node1";
const PROGRAM: &str = "docklet-bench-upstream";

#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub server: Server,
    /// Seconds until the node must be ready or gone.
    #[arg(long, default_value = "120", value_parser = |t: &str| t.parse().map(Duration::from_secs))]
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error(transparent)]
    Docklet(#[from] DockletError),
    #[error("{0:?} is not http://HOST[:PORT]: other addresses are not measured")]
    Url(String),
    #[error("could not put the upstream into {path}")]
    Program { path: PathBuf, source: io::Error },
    #[error("{what} failed in the node: {told}")]
    Exec { what: &'static str, told: String },
    #[error("no process on this host is in the node's network (does the node run on another host?)")]
    Elsewhere,
    #[error("could not connect to {0}")]
    Connect(String, #[source] io::Error),
    #[error("could not sign in to the app")]
    Head(#[from] HeadError),
    #[error("signing in to the app was answered with {status} instead of {expected}")]
    SignIn { status: u16, expected: &'static str },
}

pub type Result<T> = std::result::Result<T, SiteError>;

/// A vcluster of one node, and what is needed to speak to it.
pub struct Site {
    pub client: Client,
    pub token: String,
    pub vcluster: String,
    pub server: SocketAddr,
    pub user: String,
    image: String,
    own_session: bool,
    timeout: Duration,
    /// A vcluster may be there.
    made: bool,
    /// The upstream, where nodes of this user see it.
    program: Option<PathBuf>,
    /// The node's network namespace, held open.
    network: Option<File>,
}

/// A browser's way to one port of the node.
#[derive(Debug, Clone)]
pub struct Door {
    /// For `Host`.
    pub host: String,
    /// For `Cookie`: `name=value`.
    pub cookie: String,
}

impl Site {
    pub async fn sign_in(options: &Options, image: &str) -> Result<Self> {
        let (client, token, own_session) = sign_in(&options.server).await?;
        let authority = options.server.url.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let wrong = || SiteError::Url(options.server.url.clone());
        let authority = authority.ok_or_else(wrong)?;
        let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let mut found = lookup_host(&authority).await.map_err(|_| wrong())?;
        let user = client.me().await.map_err(DockletError::from)?.username;
        Ok(Self {
            client,
            token,
            vcluster: fresh_name(),
            // The master listens on IPv4 where nothing else is configured.
            server: found.find(SocketAddr::is_ipv4).ok_or_else(wrong)?,
            user,
            image: image.to_owned(),
            own_session,
            timeout: options.timeout,
            made: false,
            program: None,
            network: None,
        })
    }

    /// Another vcluster of the same user, not there yet.
    pub fn another(&self) -> Self {
        Self {
            client: self.client.clone(),
            token: self.token.clone(),
            vcluster: fresh_name(),
            server: self.server,
            user: self.user.clone(),
            image: self.image.clone(),
            own_session: false,
            timeout: self.timeout,
            made: false,
            program: None,
            network: None,
        }
    }

    /// Asks for the node.
    pub async fn create(&mut self) -> Result<Target> {
        let cpus = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        let request = CreateVcluster {
            name: self.vcluster.clone(),
            nodes: 1,
            image: Some(self.image.clone()),
            // The upstream must not be what is waited for.
            size: Some(SizeRequest { cpu: Some(cpus), memory_mib: Some(2048), ..SizeRequest::default() }),
            ..CreateVcluster::default()
        };
        self.made = true;
        let view = self.client.create(&request).await.map_err(DockletError::from)?;
        Ok(Target::of(&view, Status::Running))
    }

    /// Returns when the node is ready.
    pub async fn ready(&self, target: Target) -> Result<()> {
        Ok(self.client.wait(&self.vcluster, target, self.timeout).await.map(drop).map_err(DockletError::Ready)?)
    }

    /// Makes the node and enters its network.
    pub async fn launch(&mut self) -> Result<()> {
        let target = self.create().await?;
        self.ready(target).await?;
        let link = self.exec("readlink", &["readlink", "/proc/self/ns/net"], 10).await?;
        self.network = Some(network_of(link.trim()).ok_or(SiteError::Elsewhere)?);
        Ok(())
    }

    /// Starts the upstream in the node, which is this program itself.
    pub async fn start_upstream(&mut self, fs_prefix: &Path) -> Result<()> {
        let user: UserName = self.user.parse().map_err(|_| SiteError::Elsewhere)?;
        let path = Paths::new(fs_prefix).user_data(&user).join(format!("{PROGRAM}-{}", self.vcluster));
        self.program = Some(path.clone());
        let copy = fs::copy("/proc/self/exe", &path)
            .and_then(|_| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
        copy.map_err(|source| SiteError::Program { path, source })?;
        let program = format!("/root/nfs/{PROGRAM}-{}", self.vcluster);
        let port = PORT.to_string();
        let unit = ["systemd-run", "--quiet", "--unit=docklet-bench-upstream", "--property=LimitNOFILE=65536"];
        let upstream = [program.as_str(), "upstream", "--port", &port];
        self.exec("systemd-run", &[&unit[..], &upstream[..]].concat(), 30).await?;
        Ok(())
    }

    /// Runs a command in the node; what it printed.
    pub async fn exec(&self, what: &'static str, argv: &[&str], timeout_s: u32) -> Result<String> {
        let request = Exec {
            argv: argv.iter().map(|&a| a.to_owned()).collect(),
            stdin: String::new(),
            timeout_s: Some(timeout_s),
        };
        let done: ExecResult = self.client.exec(&self.vcluster, NODE, &request).await.map_err(DockletError::from)?;
        match done.exit_code {
            0 => Ok(done.stdout),
            code => Err(SiteError::Exec { what, told: format!("exit code {code}: {}", done.stderr.trim()) }),
        }
    }

    /// Signs in at the origin of a port of the node, as a browser is sent to.
    pub async fn door(&self, port: u16) -> Result<Door> {
        let label = format!("{port}--{NODE}--{}--{}", self.vcluster, self.user);
        let path = format!("/apps/open?host={label}&next=%2F");
        let portal = self.get(&path, "localhost", &format!("docklet_session={}", self.token)).await?;
        let to = portal.field("location").filter(|_| portal.status() == 303);
        let expected = "a way to the app (303)";
        let to = to.ok_or(SiteError::SignIn { status: portal.status(), expected })?;
        let (host, path) = to
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .ok_or(SiteError::SignIn { status: portal.status(), expected })?;
        let app = self.get(&format!("/{path}"), host, "").await?;
        let cookie = app.field("set-cookie").and_then(|text| text.split(';').next());
        let cookie = cookie.ok_or(SiteError::SignIn { status: app.status(), expected: "a cookie (303)" })?;
        Ok(Door { host: host.to_owned(), cookie: cookie.to_owned() })
    }

    /// One request to the server.
    async fn get(&self, path: &str, host: &str, cookie: &str) -> Result<Head> {
        let mut stream =
            TcpStream::connect(self.server).await.map_err(|e| SiteError::Connect(self.server.to_string(), e))?;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nAccept: text/html\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(HeadError::Io)?;
        Head::read(&mut stream, &mut Vec::new()).await?.ok_or(SiteError::Head(HeadError::Unreadable))
    }

    /// The node's network namespace, good until this is cleaned.
    pub fn network(&self) -> Result<PathBuf> {
        let held = self.network.as_ref().ok_or(SiteError::Elsewhere)?;
        Ok(PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), held.as_raw_fd())))
    }

    /// Removes everything; errors are told but stop nothing.
    pub async fn clean(&mut self) {
        self.network = None;
        if self.made {
            match self.client.delete_and_wait(&self.vcluster, self.timeout).await {
                Ok(()) => self.made = false,
                Err(WaitError::Client(e)) if Error::is_not_found(&e) => self.made = false,
                Err(e) => eprintln!("docklet-bench: vcluster {} is left behind: {}", self.vcluster, crate::chain(&e)),
            }
        }
        if let Some(program) = self.program.take()
            && let Err(e) = fs::remove_file(&program)
            && e.kind() != io::ErrorKind::NotFound
        {
            eprintln!("docklet-bench: {} is left behind: {e}", program.display());
        }
        if self.own_session {
            let _ = self.client.sign_out().await;
            self.own_session = false;
        }
    }
}

/// A name of its own: whatever else the machine runs stays as it is.
fn fresh_name() -> String {
    format!("bench-{}", &uuid::Uuid::new_v4().simple().to_string()[..8])
}

/// The namespace with that link, through some process of this host that is in it.
fn network_of(link: &str) -> Option<File> {
    let inode: u64 = link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    fs::read_dir("/proc").ok()?.filter_map(std::result::Result::ok).find_map(|process| {
        let file = File::open(process.path().join("ns/net")).ok()?;
        file.metadata().is_ok_and(|found| found.ino() == inode).then_some(file)
    })
}

/// Where a side takes its connections.
#[derive(Debug, Clone)]
pub enum Way {
    /// On this host.
    Here(SocketAddr),
    /// In a network namespace, on its loopback: the node itself, with no proxy between.
    Within(PathBuf, u16),
}

impl Way {
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = match self {
            Self::Here(address) => TcpStream::connect(address).await?,
            Self::Within(network, port) => {
                let (network, port) = (network.clone(), *port);
                // Namespaces belong to threads: this one ends with its connection made.
                let made = std::thread::spawn(move || {
                    setns(File::open(network)?, CloneFlags::CLONE_NEWNET)?;
                    std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                });
                let stream = made.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))?;
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)?
            }
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}
