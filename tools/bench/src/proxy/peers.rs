//! The proxies that Docklet is measured beside: nginx and configurable-http-proxy.
//!
//! Each runs with its own files, takes connections on a loopback port of the host, as Docklet does, and makes its own to
//! the loopback of the node, as Docklet does: it is started in the node's network namespace with the listening socket
//! as its standard input. So no side pays for a bridge that the others do not cross.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

use super::site::PORT;

/// A peer must serve within so long.
const START: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("{program} is not installed (prepare.sh --deps installs it)")]
    Missing { program: &'static str },
    #[error("npm ci in {0} failed: {1}")]
    Npm(PathBuf, String),
    #[error("could not {what}")]
    Io { what: &'static str, source: io::Error },
    #[error("{0} ended at once: {1}")]
    Ended(&'static str, String),
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> PeerError {
    move |source| PeerError::Io { what, source }
}

/// A proxy that runs. Dropping it ends it and removes its files.
pub struct Peer {
    pub name: &'static str,
    pub version: String,
    pub address: SocketAddr,
    process: Child,
    files: PathBuf,
}

impl Peer {
    pub fn pid(&self) -> u32 {
        self.process.id().unwrap_or(0)
    }

    /// Ends it and waits until it is gone.
    pub async fn end(mut self) {
        // nginx ends its workers only when it is asked to.
        if let Some(pid) = self.process.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        if tokio::time::timeout(Duration::from_secs(5), self.process.wait()).await.is_err() {
            let _ = self.process.kill().await;
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.files);
    }
}

/// A loopback port of the host, taken.
fn listen() -> Result<(TcpListener, SocketAddr), PeerError> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io_error("take a port"))?;
    // The standard library's backlog of 128 is short for thousands of sockets that open at once.
    nix::sys::socket::listen(
        &socket,
        nix::sys::socket::Backlog::new(4096).unwrap_or(nix::sys::socket::Backlog::MAXCONN),
    )
    .map_err(|e| PeerError::Io { what: "take a port", source: e.into() })?;
    // nginx takes an inherited socket as it is: a worker that another beat to a connection would wait in accept(2).
    socket.set_nonblocking(true).map_err(io_error("take a port"))?;
    let address = socket.local_addr().map_err(io_error("take a port"))?;
    Ok((socket, address))
}

fn files(name: &str) -> Result<PathBuf, PeerError> {
    let directory = std::env::temp_dir().join(format!("docklet-bench-{}-{name}", std::process::id()));
    fs::create_dir_all(&directory).map_err(io_error("make a directory"))?;
    Ok(directory)
}

/// The program within the node's network, with the port of the host as its standard input.
fn within(network: &Path, listener: TcpListener, log: &Path) -> Result<Command, PeerError> {
    let log = File::create(log).map_err(io_error("make a log"))?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.display())).arg("--");
    command
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone().map_err(io_error("make a log"))?)
        .stderr(log)
        .kill_on_drop(true);
    Ok(command)
}

async fn output(program: &'static str, arguments: &[&str]) -> Result<String, PeerError> {
    match Command::new(program).args(arguments).output().await {
        Ok(done) => Ok(String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PeerError::Missing { program }),
        Err(source) => Err(PeerError::Io { what: "ask a program for its version", source }),
    }
}

/// Waits until the peer answers, which only a peer that runs can.
async fn serving(mut peer: Peer, log: &Path) -> Result<Peer, PeerError> {
    let answered = async {
        loop {
            if super::probe(peer.address).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::select! {
        () = answered => false,
        _ = peer.process.wait() => true,
        () = tokio::time::sleep(START) => true,
    };
    if ended {
        let told = fs::read_to_string(log).unwrap_or_default();
        let name = peer.name;
        peer.end().await;
        return Err(PeerError::Ended(name, told.trim().to_owned()));
    }
    Ok(peer)
}

/// nginx as a plain reverse proxy: it keeps connections to the upstream, and checks nobody.
pub async fn nginx(network: &Path) -> Result<Peer, PeerError> {
    let version = output("nginx", &["-v"]).await?;
    let version = version.rsplit('/').next().unwrap_or_default().to_owned();
    let (listener, address) = listen()?;
    let files = files("nginx")?;
    let (configuration, log) = (files.join("nginx.conf"), files.join("log"));
    fs::write(&configuration, nginx_conf(&files, address)).map_err(io_error("write nginx.conf"))?;
    let mut command = within(network, listener, &log)?;
    // nginx takes over the sockets whose numbers this names.
    command.env("NGINX", "0;").arg("nginx").arg("-e").arg(&log).arg("-c").arg(&configuration);
    let process = command.spawn().map_err(io_error("start nginx"))?;
    serving(Peer { name: "nginx", version, address, process, files }, &log).await
}

fn nginx_conf(files: &Path, address: SocketAddr) -> String {
    let files = files.display();
    format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile 65536;
pid {files}/pid;
error_log {files}/log;
events {{ worker_connections 30000; }}
http {{
  access_log off;
  tcp_nodelay on;
  client_max_body_size 0;
  keepalive_requests 1000000000;
  client_body_temp_path {files}/client;
  proxy_temp_path {files}/proxy;
  fastcgi_temp_path {files}/fastcgi;
  uwsgi_temp_path {files}/uwsgi;
  scgi_temp_path {files}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream node {{ server 127.0.0.1:{PORT}; keepalive 128; keepalive_requests 1000000000; }}
  server {{
    listen {address};
    proxy_http_version 1.1;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_read_timeout 1h;
    location / {{ proxy_pass http://node; }}
  }}
}}
"
    )
}

/// configurable-http-proxy, which sends everything to the upstream. `directory` holds its lock file.
pub async fn chp(network: &Path, directory: &Path) -> Result<Peer, PeerError> {
    output("node", &["--version"]).await?;
    let program = directory.join("node_modules/configurable-http-proxy/bin/configurable-http-proxy");
    if !program.exists() {
        let npm = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"])
            .arg(directory)
            .output()
            .await
            .map_err(io_error("run npm"))?;
        if !npm.status.success() {
            let told = String::from_utf8_lossy(&npm.stderr).trim().to_owned();
            return Err(PeerError::Npm(directory.to_owned(), told));
        }
    }
    let text = program.to_string_lossy().into_owned();
    let version = output("node", &[&text, "--version"]).await?;
    let (listener, address) = listen()?;
    let files = files("chp")?;
    let log = files.join("log");
    let mut command = within(network, listener, &log)?;
    command
        .env("PEER_PORT", address.port().to_string())
        .args(["node", "--require"])
        .arg(directory.join("inherit.cjs"))
        .arg(&program)
        .args(["--log-level", "error", "--ip", "127.0.0.1", "--port", &address.port().to_string()])
        // In the node's namespace, where nothing else takes it.
        .args(["--api-ip", "127.0.0.1", "--api-port", "8091"])
        .args(["--default-target", &format!("http://127.0.0.1:{PORT}")]);
    let process = command.spawn().map_err(io_error("start configurable-http-proxy"))?;
    serving(Peer { name: "configurable-http-proxy", version, address, process, files }, &log).await
}
