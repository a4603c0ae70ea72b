//! Starts the local etcd and starts it again when it ends.
//!
//! etcd outlives a master that is killed: the next one finds it by its answer, and its end by a pid file.

use docklet_identity::authority::{Authority, AuthorityError};
use docklet_store::etcd::{ConnectError, EtcdAddress, EtcdStore};
use docklet_types::config::Config;
use docklet_types::paths::{IdentityFiles, Paths};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::membership::own::{self, Own};

/// How long etcd may take from its start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How often a running etcd is looked at when it is not a child of this process.
const LOOK: Duration = Duration::from_millis(500);

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error(transparent)]
    Certificates(AuthorityError),
    #[error("cannot connect to etcd")]
    Connect(#[source] ConnectError),
    #[error("cannot start etcd ({program}); is the package etcd-server installed?")]
    Spawn {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot prepare {path} for etcd")]
    Prepare {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("etcd ended right after its start; the end of {log}:\n{tail}")]
    Ended { log: String, tail: String },
    #[error("etcd at {address} does not answer; start it, or correct ETCD")]
    NoAnswer { address: String },
    #[error(
        "something listens on {address}, but it is no etcd that takes our certificates ({dir}); stop it, or set ETCD to another port"
    )]
    Foreign { address: String, dir: PathBuf },
}

const PROGRAM: &str = "etcd";
/// When etcd refuses every write. A hundred thousand nodes that come and go take more than etcd's own 2 GiB; above 8 it warns.
const QUOTA_BYTES: &str = "8589934592";
/// Writes that etcd keeps in memory for members that are behind, beyond the last 5,000. The planner's have up to a megabyte:
/// etcd's own 100,000 would be gigabytes.
const SNAPSHOT_COUNT: &str = "5000";

/// The store's server as this master sees it.
pub struct LocalEtcd {
    address: EtcdAddress,
    authority: Option<Authority>,
    supervisor: Option<tokio::task::JoinHandle<()>>,
    pid_file: PathBuf,
}

impl LocalEtcd {
    /// Makes sure that etcd answers: uses one that does, else starts one where the configuration says localhost.
    ///
    /// # Errors
    /// With what to do about it.
    pub async fn ensure(config: &Config, paths: &Paths) -> Result<Self, EtcdError> {
        let pid_file = paths.etcd().join("etcd.pid");
        let listens = config.etcd_is_local() && TcpStream::connect(&config.etcd[0]).await.is_ok();
        let foreign = listens && !pid_file.exists();
        let own = if foreign && !paths.master_identity().authority.exists() {
            // One that takes connections without certificates, by the look of it.
            Own { authority: None, is_new: false }
        } else {
            own::prepare(config, paths).map_err(EtcdError::Certificates)?
        };
        let Own { authority, is_new } = own;
        let address = EtcdAddress::new(&config.etcd, paths.master_identity());
        if foreign {
            if wait_healthy(&address, Duration::from_secs(5)).await.is_err() {
                return Err(EtcdError::Foreign { address: config.etcd[0].clone(), dir: paths.identity() });
            }
            return Ok(Self { address, authority, supervisor: None, pid_file });
        }
        if !config.etcd_is_local() {
            wait_healthy(&address, Duration::from_secs(10)).await?;
            return Ok(Self { address, authority, supervisor: None, pid_file });
        }
        let server = Server {
            listens_at: listens_at(config),
            identity: paths.etcd_identity(),
            dir: paths.etcd(),
            log: paths.log_file("etcd"),
            pid_file: pid_file.clone(),
        };
        let adopted = listens && !is_new;
        if listens && is_new {
            // It was started with certificates that are no more.
            end(&pid_file).await;
        }
        let child = if adopted { None } else { Some(server.start()?) };
        let child = server.wait_up(child, &address).await?;
        let supervisor = Some(tokio::spawn(supervise(server, child, address.clone())));
        Ok(Self { address, authority, supervisor, pid_file })
    }

    /// What certificates are made with, where this machine has it. Leaves it to the caller.
    pub fn take_authority(&mut self) -> Option<Authority> {
        self.authority.take()
    }

    #[must_use]
    pub fn address(&self) -> &EtcdAddress {
        &self.address
    }

    /// Ends the etcd that a master started; leaves others alone.
    pub async fn stop(mut self) {
        let Some(supervisor) = self.supervisor.take() else { return };
        supervisor.abort();
        end(&self.pid_file).await;
    }
}

/// Ends the etcd of a pid file.
async fn end(pid_file: &Path) {
    let Some(pid) = read_pid(pid_file).filter(|pid| is_etcd(*pid)) else { return };
    let _ = kill(pid, Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(5);
    while is_etcd(pid) && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
    }
    let _ = fs::remove_file(pid_file);
}

/// Where the local etcd listens: on the loopback, and for other hosts where there are any.
fn listens_at(config: &Config) -> Vec<SocketAddr> {
    let port = config.etcd[0].rsplit_once(':').and_then(|(_, p)| p.parse().ok()).unwrap_or(2379);
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let others = config.is_reachable().then(|| SocketAddr::new(config.master_ip, port));
    std::iter::once(loopback).chain(others).collect()
}

async fn wait_healthy(address: &EtcdAddress, limit: Duration) -> Result<(), EtcdError> {
    let store = EtcdStore::connect(address).await.map_err(EtcdError::Connect)?;
    let deadline = Instant::now() + limit;
    loop {
        if timeout(Duration::from_secs(2), store.is_healthy()).await == Ok(true) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(EtcdError::NoAnswer { address: address.members.join(",") });
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn read_pid(file: &Path) -> Option<Pid> {
    fs::read_to_string(file).ok()?.trim().parse().ok().map(Pid::from_raw)
}

/// Whether that process is an etcd: a pid may have been given to another program since.
fn is_etcd(pid: Pid) -> bool {
    let alive = fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
    alive && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == PROGRAM)
}

struct Server {
    listens_at: Vec<SocketAddr>,
    identity: IdentityFiles,
    dir: PathBuf,
    log: PathBuf,
    pid_file: PathBuf,
}

impl Server {
    fn start(&self) -> Result<Child, EtcdError> {
        let prepare = |path: &Path| {
            let path = path.to_owned();
            move |source| EtcdError::Prepare { path, source }
        };
        let data = self.dir.join("data");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&data).map_err(prepare(&data))?;
        if let Some(parent) = self.log.parent() {
            fs::create_dir_all(parent).map_err(prepare(parent))?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).map_err(prepare(&self.log))?;
        let copy = log.try_clone().map_err(prepare(&self.log))?;
        let urls: Vec<String> = self.listens_at.iter().map(|address| format!("https://{address}")).collect();
        let port = self.listens_at[0].port();
        let peer = format!("https://127.0.0.1:{}", if port == u16::MAX { port - 1 } else { port + 1 });
        let urls = urls.join(",");
        let IdentityFiles { authority: ca, certificate: crt, key } = &self.identity;
        let mut command = std::process::Command::new(PROGRAM);
        command
            .args(["--name", "docklet", "--logger", "zap", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("docklet={peer}")])
            .arg("--client-cert-auth")
            .arg("--trusted-ca-file")
            .arg(ca)
            .arg("--cert-file")
            .arg(crt)
            .arg("--key-file")
            .arg(key)
            .arg("--peer-client-cert-auth")
            .arg("--peer-trusted-ca-file")
            .arg(ca)
            .arg("--peer-cert-file")
            .arg(crt)
            .arg("--peer-key-file")
            .arg(key)
            // Nobody reads what was: who lost the thread lists anew.
            .args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"])
            .args(["--max-txn-ops", "4096", "--max-request-bytes", "8388608"])
            .args(["--quota-backend-bytes", QUOTA_BYTES, "--snapshot-count", SNAPSHOT_COUNT])
            // systemd waits to hear from the master, not from etcd.
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            // A group of its own: a terminal's Ctrl-C is for the master, which ends etcd itself.
            .process_group(0);
        if std::env::var_os("GOGC").is_none() {
            // Each watch and lease of a host is a stream of some 100 KiB, and with thousands of hosts nearly half of etcd's
            // time went into collecting garbage among them.
            command.env("GOGC", "200");
        }
        let child = Command::from(command).spawn().map_err(|source| EtcdError::Spawn { program: PROGRAM, source })?;
        if let Some(pid) = child.id() {
            fs::write(&self.pid_file, format!("{pid}\n")).map_err(prepare(&self.pid_file))?;
        }
        Ok(child)
    }

    /// Returns once etcd answers, with the child if it is one.
    async fn wait_up(&self, mut child: Option<Child>, address: &EtcdAddress) -> Result<Option<Child>, EtcdError> {
        let healthy = wait_healthy(address, START_DEADLINE);
        match &mut child {
            None => healthy.await?,
            Some(running) => tokio::select! {
                answer = healthy => answer?,
                _ = running.wait() => {
                    let _ = fs::remove_file(&self.pid_file);
                    return Err(EtcdError::Ended { log: self.log.display().to_string(), tail: tail(&self.log) });
                }
            },
        }
        Ok(child)
    }

    async fn wait_end(&self, child: Option<Child>) {
        if let Some(mut child) = child {
            let _ = child.wait().await;
            return;
        }
        // Of an earlier master: not a child, so it is looked at.
        while read_pid(&self.pid_file).is_some_and(is_etcd) {
            sleep(LOOK).await;
        }
    }
}

async fn supervise(server: Server, mut child: Option<Child>, address: EtcdAddress) {
    let mut pause = Duration::from_millis(100);
    loop {
        server.wait_end(child.take()).await;
        tracing::warn!(log = %server.log.display(), "etcd has ended; starting it again");
        loop {
            let up = match server.start() {
                Ok(started) => server.wait_up(Some(started), &address).await,
                Err(error) => Err(error),
            };
            match up {
                Ok(running) => {
                    child = running;
                    pause = Duration::from_millis(100);
                    tracing::info!("etcd answers again");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot start etcd; trying again");
                    sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(10));
                }
            }
        }
    }
}

/// The last lines of a log, without reading the whole of it.
fn tail(path: &Path) -> String {
    use std::io::{Seek, SeekFrom};
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(2000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
