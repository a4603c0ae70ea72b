//! `docklet-master run`: the master itself.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use docklet_daemon::config::Loaded;
use docklet_daemon::{Program, Ready};
use docklet_identity::tls::Tls;
use docklet_master_db::{Db, DbError, OpenError};
use docklet_store::patient::PatientEtcd;
use docklet_types::config::Config;
use docklet_types::paths::Paths;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::{Failure, Outcome};
use crate::assembly::{Assembly, AssemblyError};
use crate::etcd::{EtcdError, LocalEtcd};
use crate::http::problem::chain;
use crate::http::{server, waiting};
use crate::membership::{self, MembershipError};
use crate::proxy::agent::Agents;

/// Open files that the master asks for: a WebSocket takes two.
const DESCRIPTORS: u64 = 262_144;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Why the master does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("cannot start threads")]
    Runtime(#[source] io::Error),
    #[error("cannot listen on {address} (PROXY_IP and PROXY_PORT in the configuration)")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("nothing is set up here yet; `docklet-master init` does it")]
    NotSetUp,
    #[error(transparent)]
    Etcd(EtcdError),
    #[error(transparent)]
    Membership(MembershipError),
    #[error(transparent)]
    Database(OpenError),
    #[error(transparent)]
    Accounts(DbError),
    #[error(transparent)]
    Assembly(AssemblyError),
    #[error("the server ended")]
    Serve(#[source] io::Error),
}

/// Takes the public port.
pub(super) fn listen(config: &Config) -> Result<TcpListener, RunError> {
    let address = SocketAddr::new(config.proxy_ip, config.proxy_port);
    let open = || {
        let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    open().map_err(|source| RunError::Listen { address, source })
}

/// Opens the configured database.
pub(super) async fn open_database(config: &Config, paths: &Paths) -> Result<Db, RunError> {
    match &config.database_url {
        Some(url) => Db::open_url(url).await,
        None => Db::open_file(&paths.database()).await,
    }
    .map_err(RunError::Database)
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, RunError> {
    // Two providers are linked in; without a choice the first TLS connection panics. A second choice changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RunError::Runtime)
}

/// Root may go beyond what it was started with; who may not takes what is there.
fn raise_descriptor_limit() {
    use nix::libc;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structures live across the calls, which read or write nothing else.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 || limit.rlim_cur >= DESCRIPTORS {
            return;
        }
        let wanted = libc::rlimit { rlim_cur: DESCRIPTORS, rlim_max: limit.rlim_max.max(DESCRIPTORS) };
        let most = libc::rlimit { rlim_cur: limit.rlim_max.min(DESCRIPTORS), rlim_max: limit.rlim_max };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) != 0
            && libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) != 0
        {
            tracing::warn!("the limit of open files cannot be raised");
        }
    }
}

pub(super) fn run(program: &Program, loaded: &Loaded, paths: &Paths) -> Outcome {
    let ready = program.enter(loaded.config.log_level).map_err(|e| Failure::of(&e))?;
    raise_descriptor_limit();
    let done = runtime().and_then(|runtime| runtime.block_on(serve(ready, &loaded.config, paths)));
    done.map(|()| String::new()).map_err(|error| {
        tracing::error!(error = chain(&error), "cannot run");
        Failure::of(&error)
    })
}

async fn serve(mut ready: Ready, config: &Config, paths: &Paths) -> Result<(), RunError> {
    // First what fails fast and concerns others: the port.
    let listener = listen(config)?;
    if config.database_url.is_none() && !paths.database().exists() {
        return Err(RunError::NotSetUp);
    }
    let db = open_database(config, paths).await?;
    if db.users().await.map_err(RunError::Accounts)?.is_empty() {
        return Err(RunError::NotSetUp);
    }
    let mut ended = Signals::listen().map_err(RunError::Runtime)?;
    let Some(mut etcd) = etcd_that_answers(&mut ready, &mut ended, config, paths, &db, &listener).await? else {
        ready.stopping();
        db.close().await;
        tracing::info!("stopped");
        return Ok(());
    };
    let served = until_told(&mut ready, &mut ended, config, paths, db.clone(), listener, &mut etcd).await;
    ready.stopping();
    etcd.stop().await;
    db.close().await;
    tracing::info!("stopped");
    served
}

/// Waits for an etcd of several members, which may have no quorum for hours, and tells so on the public port meanwhile;
/// `None` where told to stop first. A local etcd answers or has a reason that waiting does not mend.
async fn etcd_that_answers(
    ready: &mut Ready,
    ended: &mut Signals,
    config: &Config,
    paths: &Paths,
    db: &Db,
    listener: &TcpListener,
) -> Result<Option<LocalEtcd>, RunError> {
    let error = match LocalEtcd::ensure(config, paths).await {
        Err(error @ EtcdError::NoAnswer { .. }) if !config.etcd_is_local() => error,
        done => return done.map(Some).map_err(RunError::Etcd),
    };
    tracing::error!(error = chain(&error), "waiting for etcd");
    let server = listener.try_clone().and_then(|port| waiting::serve(db.clone(), port)).map_err(RunError::Serve)?;
    let handle = server.handle();
    let server = tokio::spawn(server);
    ready.ready();
    let answered = tokio::select! {
        answered = ensure_patiently(config, paths) => answered.map(Some),
        () = ended.wait() => Ok(None),
    };
    handle.stop(true).await;
    // It has let go of the port, however it ended.
    let _ = server.await;
    answered.map_err(RunError::Etcd)
}

async fn ensure_patiently(config: &Config, paths: &Paths) -> Result<LocalEtcd, EtcdError> {
    loop {
        match LocalEtcd::ensure(config, paths).await {
            Err(EtcdError::NoAnswer { .. }) => {}
            done => return done,
        }
    }
}

async fn until_told(
    ready: &mut Ready,
    ended: &mut Signals,
    config: &Config,
    paths: &Paths,
    db: Db,
    listener: TcpListener,
    etcd: &mut LocalEtcd,
) -> Result<(), RunError> {
    let store = Arc::new(PatientEtcd::new(config.etcd.clone(), paths.master_identity()));
    let host = docklet_daemon::config::host_name(config.host_name.as_ref());
    let mut membership = match etcd.take_authority() {
        Some(authority) => membership::start(config, paths, Arc::clone(&store), authority, host.clone())
            .await
            .map_err(RunError::Membership)?,
        None => JoinSet::new(),
    };
    let access = Arc::new(Agents::of_all_hosts(paths.worker_socket(), host, Tls::new(paths.master_identity())));
    let assembly = Assembly::start(config, db, store, access).await.map_err(RunError::Assembly)?;
    let address = listener.local_addr().map_err(RunError::Serve)?;
    let server = server::serve(assembly.parts.clone(), listener).map_err(RunError::Serve)?;
    let handle = server.handle();
    tracing::info!(%address, portal = config.portal_url, version = env!("CARGO_PKG_VERSION"), "serving");
    ready.ready();
    let mut server = tokio::spawn(server);
    let done = tokio::select! {
        done = &mut server => done.unwrap_or_else(|e| Err(io::Error::other(e))).map_err(RunError::Serve),
        () = ended.wait() => {
            tracing::info!("told to stop");
            handle.stop(true).await;
            Ok(())
        }
    };
    assembly.stop().await;
    membership.shutdown().await;
    done
}

/// The signals that end the master in good order.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
