//! `docklet-master token`: lets one host join.

use docklet_daemon::config::Loaded;
use docklet_identity::authority::{Authority, AuthorityError};
use docklet_store::Store as _;
use docklet_store::StoreError;
use docklet_store::keys::Keys;
use docklet_store::patient::PatientEtcd;
use docklet_types::config::Config;
use docklet_types::name::HostName;
use docklet_types::paths::Paths;
use docklet_types::time::Micros;

use super::run::runtime;
use super::{Failure, Outcome};
use crate::membership::tokens::{self, TokenError};

#[derive(Debug, thiserror::Error)]
enum TokenCommandError {
    #[error(
        "other hosts cannot reach this master: MASTER_IP is {0}. Set it to an address of this machine that they reach, then docklet-master restart"
    )]
    Unreachable(std::net::IpAddr),
    #[error(
        "there is no authority here ({0}), so no host can be let in. It is made where the master runs its own etcd; \
         with another etcd, copy the key and certificate of the authority that made its certificates to ca.key and ca.crt there"
    )]
    NoAuthority(String),
    #[error(transparent)]
    Authority(AuthorityError),
    #[error("the store does not answer; is the master running? (docklet-master start)")]
    Store(#[source] StoreError),
    #[error(transparent)]
    Token(TokenError),
}

pub(super) fn token(loaded: &Loaded, paths: &Paths, host: Option<HostName>, hours: u32) -> Outcome {
    let runtime = runtime().map_err(|e| Failure::of(&e))?;
    runtime.block_on(print(&loaded.config, paths, host, hours)).map_err(|e| Failure::of(&e))
}

async fn print(
    config: &Config,
    paths: &Paths,
    host: Option<HostName>,
    hours: u32,
) -> Result<String, TokenCommandError> {
    if !config.is_reachable() {
        return Err(TokenCommandError::Unreachable(config.master_ip));
    }
    let certificate = paths.master_identity().authority;
    let authority = Authority::load(&certificate, &paths.authority_key())
        .map_err(TokenCommandError::Authority)?
        .ok_or_else(|| TokenCommandError::NoAuthority(paths.identity().display().to_string()))?;
    let store = PatientEtcd::new(config.etcd.clone(), paths.master_identity());
    let keys = Keys::new(&config.cluster_name);
    // A plain answer before anything is written.
    store.list(&keys.tokens()).await.map_err(TokenCommandError::Store)?;
    let valid_s = i64::from(hours) * 3600;
    let token = tokens::issue(&store, &keys, &authority.fingerprint(), host, valid_s, Micros::now())
        .await
        .map_err(TokenCommandError::Token)?;
    let address = std::net::SocketAddr::new(config.master_ip, config.master_port);
    Ok(format!("docklet-worker join {address} --token {token}"))
}
