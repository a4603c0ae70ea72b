//! A Docklet of its own beside whatever the machine runs: the installed `docklet-master` with the etcd that it starts,
//! in a directory and on ports of its own. It listens on the loopback alone and has no worker.

use docklet_client::{Client, Error};
use docklet_store::etcd::{ConnectError, EtcdAddress, EtcdStore};
use docklet_store::keys::Keys;
use docklet_types::name::{ClusterName, NameError};
use docklet_types::paths::Paths;
use docklet_types::view::CreateUser;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

const CLUSTER: &str = "bench";
pub const PASSWORD: &str = "not a secret, gone in a minute";

#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("{path} cannot be written or read")]
    Files { path: PathBuf, source: io::Error },
    #[error("no free port of the loopback")]
    Port(#[source] io::Error),
    #[error("{program} cannot be run")]
    Run { program: PathBuf, source: io::Error },
    #[error("{program} {command} failed: {said}")]
    Failed { program: PathBuf, command: &'static str, said: String },
    #[error("the master refused or cannot be reached")]
    Client(#[from] Error),
    #[error("its etcd cannot be reached")]
    Connect(#[source] ConnectError),
    #[error("the cluster cannot be named")]
    Name(#[source] NameError),
    #[error("process {pid} cannot be looked at")]
    Process { pid: i32, source: io::Error },
}

pub struct Site {
    dir: PathBuf,
    conf: PathBuf,
    program: PathBuf,
    paths: Paths,
    etcd: String,
    pub url: String,
    pub keys: Keys,
}

fn files(path: &Path) -> impl FnOnce(io::Error) -> SiteError {
    let path = path.to_owned();
    move |source| SiteError::Files { path, source }
}

/// Two free ports in a row: etcd takes the second for its peers.
pub fn two_ports() -> io::Result<u16> {
    let mut last = None;
    for _ in 0..100 {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let port = first.local_addr()?.port();
        match TcpListener::bind(("127.0.0.1", port.saturating_add(1))) {
            Ok(_) if port < u16::MAX => return Ok(port),
            Ok(_) => {}
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("none of a hundred has a free neighbour")))
}

/// The master that lies beside this program, else the one in PATH.
fn beside(name: &str) -> PathBuf {
    let own = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    own.filter(|path| path.exists()).unwrap_or_else(|| PathBuf::from(name))
}

impl Site {
    /// A directory for it; nothing runs yet.
    pub fn new(dir: &Path) -> Result<Self, SiteError> {
        let cluster: ClusterName = CLUSTER.parse().map_err(SiteError::Name)?;
        let etcd = two_ports().map_err(SiteError::Port)?;
        let port = loop {
            let port = two_ports().map_err(SiteError::Port)?;
            if port.abs_diff(etcd) > 1 {
                break port;
            }
        };
        fs::create_dir_all(dir).map_err(files(dir))?;
        let conf = dir.join("docklet.conf");
        let text = format!(
            "CLUSTER_NAME={CLUSTER}\nFS_PREFIX={}\nSTORAGE=directory\nHOST_NAME=bench\nCLUSTER_NET=10.0.0.1/8\n\
             ETCD=localhost:{etcd}\nPROXY_IP=127.0.0.1\nPROXY_PORT={port}\nPORTAL_URL=http://localhost:{port}\n\
             USER_MAX_NODES=1000000\nUSER_MAX_CPU=1000000\nUSER_MAX_MEMORY_MIB=1000000000\n\
             PREBOOT_NODES=0\nDEFAULT_IMAGE=base\nNODE_CPU=0.5\nNODE_MEMORY_MIB=256\nNODE_DISK_MIB=1024\n",
            dir.display()
        );
        fs::write(&conf, text).map_err(files(&conf))?;
        write_image(&Paths::new(dir).images().join("base"))?;
        Ok(Self {
            dir: dir.to_owned(),
            conf,
            program: beside("docklet-master"),
            paths: Paths::new(dir),
            etcd: format!("localhost:{etcd}"),
            url: format!("http://localhost:{port}"),
            keys: Keys::new(&cluster),
        })
    }

    async fn command(&self, command: &'static str) -> Result<(), SiteError> {
        let output = Command::new(&self.program)
            .arg("--config")
            .arg(&self.conf)
            .arg(command)
            .env_remove("DOCKLET_CONF")
            .stdin(Stdio::null())
            .output()
            .await
            .map_err(|source| SiteError::Run { program: self.program.clone(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(SiteError::Failed { program: self.program.clone(), command, said })
    }

    /// Sets it up, starts it and signs in as its first user; the token comes apart.
    pub async fn start(&self) -> Result<(Client, String), SiteError> {
        self.command("init").await?;
        let password = self.paths.generated_password();
        let text = fs::read_to_string(&password).map_err(files(&password))?;
        let client = Client::new(&self.url)?;
        let token = client.sign_in("root", text.trim()).await?.token;
        Ok((client.with_token(&token)?, token))
    }

    /// Makes users, and returns their names.
    pub async fn users(&self, root: &Client, count: usize) -> Result<Vec<String>, SiteError> {
        let mut names = Vec::new();
        for number in 1..=count {
            let username = format!("user{number}");
            let user = CreateUser { username: username.clone(), password: PASSWORD.to_owned(), role: None };
            root.create_user(&user).await?;
            names.push(username);
        }
        Ok(names)
    }

    /// Connections to its etcd.
    pub async fn stores(&self, count: usize) -> Result<Vec<EtcdStore>, SiteError> {
        let address = EtcdAddress::new(std::slice::from_ref(&self.etcd), self.paths.master_identity());
        let mut stores = Vec::new();
        for _ in 0..count {
            stores.push(EtcdStore::connect(&address).await.map_err(SiteError::Connect)?);
        }
        Ok(stores)
    }

    fn pid(path: &Path) -> Result<i32, SiteError> {
        let text = fs::read_to_string(path).map_err(files(path))?;
        text.trim().parse().map_err(|e| SiteError::Files { path: path.to_owned(), source: io::Error::other(e) })
    }

    pub fn master(&self) -> Result<Process, SiteError> {
        Ok(Process { pid: Self::pid(&self.paths.pid_file("docklet-master"))? })
    }

    pub fn etcd(&self) -> Result<Process, SiteError> {
        Ok(Process { pid: Self::pid(&self.paths.etcd().join("etcd.pid"))? })
    }

    /// Of etcd's database on the disk.
    pub fn database_mib(&self) -> f64 {
        let file = self.paths.etcd().join("data/member/snap/db");
        fs::metadata(file).map_or(0.0, |m| m.len() as f64 / f64::from(1 << 20))
    }

    /// Ends it and removes its directory; what is already gone is no error.
    pub async fn remove(&self) {
        if let Err(error) = self.command("stop").await {
            eprintln!("docklet-bench: {}", crate::chain(&error));
        }
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!("docklet-bench: {} is left behind: {error}", self.dir.display());
        }
    }
}

/// An OCI layout whose one layer nobody asks for.
fn write_image(layout: &Path) -> Result<(), SiteError> {
    let (blobs, hex) = (layout.join("blobs/sha256"), "0".repeat(64));
    fs::create_dir_all(&blobs).map_err(files(&blobs))?;
    let digest = format!("sha256:{hex}");
    let layer = serde_json::json!({"digest": digest, "size": 1, "mediaType": "x"});
    let manifest = serde_json::json!({"schemaVersion": 2, "layers": [layer]}).to_string();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": digest, "size": 1, "mediaType": "x"}]});
    for (path, text) in [(blobs.join(hex), manifest), (layout.join("index.json"), index.to_string())] {
        fs::write(&path, text).map_err(files(&path))?;
    }
    Ok(())
}

/// A process, to be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: i32,
}

impl Process {
    pub fn own() -> Self {
        Self { pid: nix::unistd::getpid().as_raw() }
    }

    fn read(self, file: &str) -> Result<String, SiteError> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid))
            .map_err(|source| SiteError::Process { pid: self.pid, source })
    }

    pub fn rss_mib(self) -> Result<f64, SiteError> {
        let status = self.read("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib: f64 = line.and_then(|l| l.trim().split(' ').next()?.parse().ok()).unwrap_or(0.0);
        Ok(kib / 1024.0)
    }

    /// User and system time since its start.
    pub fn cpu_s(self) -> Result<f64, SiteError> {
        let stat = self.read("stat")?;
        // The name may hold anything, a parenthesis too; the numbers come after the last one.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
        Ok(ticks / per_second as f64)
    }
}
