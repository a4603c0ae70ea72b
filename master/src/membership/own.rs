//! The certificates of this machine: the authority, the master's, the local etcd's, and those of a worker beside it.

use docklet_identity::authority::{Authority, AuthorityError, Holder, new_worker_identity};
use docklet_identity::certificate;
use docklet_identity::files;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::config::Config;
use docklet_types::join::JoinedHost;
use docklet_types::name::HostName;
use docklet_types::paths::{IdentityFiles, Paths};
use docklet_types::time::Micros;

/// What this machine proves itself with.
pub struct Own {
    /// Absent where the authority's key is elsewhere, or etcd takes connections without certificates.
    pub authority: Option<Authority>,
    /// It was made just now, so nothing that runs can know it.
    pub is_new: bool,
}

/// Sees to it that everything is there and good for some time: called at each start, and once in a while.
///
/// # Errors
/// Files cannot be read or written.
pub fn prepare(config: &Config, paths: &Paths) -> Result<Own, AuthorityError> {
    let (certificate, key) = (paths.identity().join("ca.crt"), paths.authority_key());
    let now = Micros::now();
    let mut is_new = false;
    let authority = match Authority::load(&certificate, &key)? {
        None if config.etcd_is_local() && !certificate.exists() => {
            is_new = true;
            Some(Authority::make(&format!("Docklet {}", config.cluster_name), &certificate, &key, now)?)
        }
        found => found,
    };
    if let Some(authority) = &authority {
        keep(authority, &Holder::Master, &paths.master_identity(), config, is_new)?;
        if config.etcd_is_local() {
            let names = etcd_names(config);
            keep(authority, &Holder::Etcd { reached_at: &names }, &paths.etcd_identity(), config, is_new)?;
        }
    }
    Ok(Own { authority, is_new })
}

/// Where the local etcd is reached.
fn etcd_names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    if config.is_reachable() {
        names.push(config.master_ip.to_string());
    }
    names
}

fn lifetime_s(config: &Config) -> i64 {
    i64::from(config.certificate_days) * 24 * 3600
}

/// Makes a certificate where there is none, where it ends soon, or where it names other places than it should.
fn keep(
    authority: &Authority,
    holder: &Holder<'_>,
    files: &IdentityFiles,
    config: &Config,
    anew: bool,
) -> Result<(), AuthorityError> {
    let now = Micros::now();
    let good = present(files).is_some_and(|der| {
        let right = match holder {
            Holder::Etcd { reached_at } => certificate::names(&der) == **reached_at,
            Holder::Master | Holder::Worker { .. } => true,
        };
        right && !certificate::is_due(&der, now)
    });
    if good && !anew { Ok(()) } else { authority.equip(holder, files, now, lifetime_s(config)) }
}

fn present(files: &IdentityFiles) -> Option<Vec<u8>> {
    certificate::der(&files::read(&files.certificate).ok()?)
}

/// Why the worker of this machine has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum OwnWorkerError {
    #[error("the certificate of this machine's worker cannot be made")]
    Authority(#[source] AuthorityError),
    #[error("the store cannot take this machine's worker")]
    Store(#[source] StoreError),
}

/// Lets the worker of this machine in without a token: whoever is root here has the authority's key anyway.
///
/// # Errors
/// See [`OwnWorkerError`].
pub async fn admit_worker(
    authority: &Authority,
    config: &Config,
    paths: &Paths,
    store: &dyn Store,
    keys: &Keys,
    host: &HostName,
) -> Result<(), OwnWorkerError> {
    let files = paths.worker_identity();
    let key = keys.write(&Key::Joined(host.clone()));
    let entry = store.get(&key).await.map_err(OwnWorkerError::Store)?;
    let own = present(&files).and_then(|der| certificate::common_name(&der));
    let identity = match (entry.as_ref().and_then(|e| serde_json::from_slice::<JoinedHost>(&e.value).ok()), own) {
        (Some(joined), Some(own)) if joined.identity == own => own,
        // The name is another machine's, or this machine joined anew elsewhere: not ours to decide.
        (Some(_), _) => {
            tracing::warn!(
                %host,
                "another machine joined under this one's name, so a worker here gets no certificate: set another \
                 HOST_NAME, or, if this machine takes its place, let it join with a token made with `--host {host}`"
            );
            return Ok(());
        }
        (None, own) => {
            let identity = own.unwrap_or_else(|| new_worker_identity(host));
            let joined = JoinedHost { identity: identity.clone(), joined_at: Micros::now() };
            let txn = Txn::new()
                .when(Compare::as_read(&key, entry.map(|e| e.revision)))
                .put(&key, &joined)
                .map_err(OwnWorkerError::Store)?;
            if store.txn(txn).await.map_err(OwnWorkerError::Store)? == Outcome::Conflict {
                tracing::info!(%host, "this machine's name was joined under at the same moment; looked at again later");
                return Ok(());
            }
            identity
        }
    };
    let holder = Holder::Worker { host, identity: &identity };
    keep(authority, &holder, &files, config, false).map_err(OwnWorkerError::Authority)
}
