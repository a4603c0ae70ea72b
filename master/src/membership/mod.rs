//! Who belongs to the cluster: the certificates of this machine ([`own`]), tokens to join with ([`tokens`]), letting
//! hosts in and renewing their certificates ([`admission`], over [`endpoint`]), and who may enter etcd ([`users`]).
//!
//! What the store says under `joined/` is the truth; etcd's users follow from it. [`start`] puts all of it to work.

pub mod admission;
pub mod endpoint;
pub mod own;
pub mod tokens;
pub mod users;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use docklet_identity::authority::Authority;
use docklet_identity::tls::Tls;
use docklet_store::StoreError;
use docklet_store::etcd_users::Limits;
use docklet_store::keys::Keys;
use docklet_store::patient::PatientEtcd;
use docklet_types::config::Config;
use docklet_types::name::HostName;
use docklet_types::paths::Paths;
use tokio::task::JoinSet;

pub use admission::Admission;
use users::Users;

use crate::http::problem::chain;

/// How long to wait until etcd is asked again.
const RETRY: Duration = Duration::from_millis(500);
/// How often this machine's certificates are looked at.
const LOOK: Duration = Duration::from_secs(3600);

/// Why hosts cannot be looked after.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("cannot set up who may enter etcd")]
    Limits(#[source] StoreError),
    #[error("cannot listen on {address} (MASTER_IP and MASTER_PORT in the configuration)")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    OwnWorker(own::OwnWorkerError),
}

/// Sets limits in etcd, lets this machine's worker in, and serves hosts that join. Dropping the tasks ends it.
///
/// # Errors
/// See [`MembershipError`].
pub async fn start(
    config: &Config,
    paths: &Paths,
    etcd: Arc<PatientEtcd>,
    authority: Authority,
    host: HostName,
) -> Result<JoinSet<()>, MembershipError> {
    let keys = Keys::new(&config.cluster_name);
    let ours = match limits(&etcd).await.map_err(MembershipError::Limits)? {
        Limits::Hold => true,
        Limits::Weak { version } => {
            tracing::warn!(
                version,
                "this etcd can be talked past its access control (CVE-2026-44283); 3.4.44 or later keeps a stolen host's certificate to its own keys"
            );
            true
        }
        Limits::Foreign => {
            tracing::warn!("etcd has users or keys of somebody else, so its access control is left alone");
            false
        }
    };
    let users = Users::new(ours.then(|| Arc::clone(&etcd)), keys.clone());
    own::admit_worker(&authority, config, paths, etcd.as_ref(), &keys, &host)
        .await
        .map_err(MembershipError::OwnWorker)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(users.clone().follow());
    tasks.spawn(keep_own(config.clone(), paths.clone(), Arc::clone(&etcd), host));
    if config.is_reachable() {
        let address = SocketAddr::new(config.master_ip, config.master_port);
        let listener = endpoint::listen(address).await.map_err(|source| MembershipError::Listen { address, source })?;
        tracing::info!(%address, "hosts can join");
        let admission = Arc::new(Admission::new(config, etcd, authority, users));
        tasks.spawn(endpoint::serve(listener, Tls::new(paths.master_identity()).with_anonymous(), admission));
    }
    Ok(tasks)
}

/// Waits for etcd where it has no quorum just now.
async fn limits(etcd: &PatientEtcd) -> Result<Limits, StoreError> {
    let mut told = false;
    loop {
        let limits = async { etcd.store().await?.ensure_limits().await };
        match limits.await {
            Err(error) if error.is_unavailable() => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(error = chain(&error), "waiting for etcd");
                }
                tokio::time::sleep(RETRY).await;
            }
            done => return done,
        }
    }
}

/// Renews this machine's certificates before they end.
async fn keep_own(config: Config, paths: Paths, etcd: Arc<PatientEtcd>, host: HostName) {
    let keys = Keys::new(&config.cluster_name);
    let mut tick = tokio::time::interval(LOOK);
    tick.tick().await;
    loop {
        tick.tick().await;
        let authority = match own::prepare(&config, &paths) {
            Ok(own) => own.authority,
            Err(error) => {
                tracing::error!(error = chain(&error), "cannot renew this machine's certificates");
                continue;
            }
        };
        let Some(authority) = authority else { continue };
        if let Err(error) = own::admit_worker(&authority, &config, &paths, etcd.as_ref(), &keys, &host).await {
            tracing::error!(error = chain(&error), "cannot renew the certificate of this machine's worker");
        }
    }
}
