//! Becoming part of a cluster, and staying in it: the worker's side of [`docklet_types::join`].

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use docklet_identity::authority::{self, AuthorityError};
use docklet_identity::certificate;
use docklet_identity::files::{self, FileError};
use docklet_identity::message::{self, MessageError};
use docklet_identity::tls::{self, Tls, TlsError, server_name};
use docklet_types::config::{Config, with_values};
use docklet_types::join::{JoinToken, MASTER_IDENTITY, MAX_MESSAGE, MasterReply, MasterRequest, Membership};
use docklet_types::name::HostName;
use docklet_types::paths::{IdentityFiles, Paths};
use docklet_types::report::Reason;
use docklet_types::time::Micros;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A master answers within this.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the certificate is looked at.
const LOOK: Duration = Duration::from_secs(3600);

/// Why this host is not let in, or its certificate not renewed.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("the master at {address} cannot be reached; is it running, and MASTER_IP its address?")]
    Connect { address: String, source: io::Error },
    #[error("the master at {address} is not the one that made the token, or not the cluster's")]
    Stranger { address: String, source: io::Error },
    #[error("the master at {address} does not answer")]
    Silent { address: String },
    #[error("the master at {address} broke off")]
    Broken { address: String, source: MessageError },
    #[error("{}", .0.message)]
    Refused(Reason),
    #[error("the master at {address} answered something else than was asked")]
    Protocol { address: String },
    #[error(transparent)]
    Tls(TlsError),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    #[error(transparent)]
    Authority(AuthorityError),
    #[error(transparent)]
    File(FileError),
    #[error("cannot {doing} {}", path.display())]
    Configuration { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("this host's networks cannot be listed")]
    Networks(#[source] io::Error),
    #[error(
        "this host holds nodes of the cluster {cluster} ({}); `docklet-worker uninstall --yes` removes them", path.display()
    )]
    HasNodes { cluster: String, path: PathBuf },
}

/// What a join came to.
#[derive(Debug)]
pub struct Joined {
    pub membership: Membership,
    /// Keys of the configuration that were changed: name, old value, new value.
    pub changed: Vec<(&'static str, String, String)>,
}

/// Joins the cluster of the master at `address` (`host:port`), and writes what that takes into the configuration.
///
/// # Errors
/// See [`MembershipError`]. Nothing is changed then, but a token that the master took is used up.
pub async fn join(
    address: &str,
    token: &JoinToken,
    host: &HostName,
    config: &Config,
    file: &Path,
    paths: &Paths,
) -> Result<Joined, MembershipError> {
    let states = paths.node_states();
    if std::fs::read_dir(&states).is_ok_and(|mut nodes| nodes.next().is_some()) {
        return Err(MembershipError::HasNodes { cluster: config.cluster_name.to_string(), path: states });
    }
    // What can fail here fails before the token is used up.
    let text = std::fs::read_to_string(file).map_err(|source| MembershipError::Configuration {
        doing: "read",
        path: file.to_owned(),
        source,
    })?;
    let networks = docklet_daemon::networks::connected().map_err(MembershipError::Networks)?;
    let (key, request) = authority::request().map_err(MembershipError::Authority)?;
    let client = tls::joining_client(&token.authority).map_err(MembershipError::Setup)?;
    let asked = MasterRequest::Join {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        host: host.clone(),
        request,
        networks,
        now: Micros::now(),
    };
    let membership = match ask(address, Arc::new(client), &asked).await? {
        MasterReply::Joined(membership) => *membership,
        MasterReply::Refused(reason) => return Err(MembershipError::Refused(reason)),
        MasterReply::Renewed { .. } => return Err(MembershipError::Protocol { address: address.to_owned() }),
    };
    let identity = paths.worker_identity();
    files::install(&identity, &key, &membership.certificate, &membership.authority).map_err(MembershipError::File)?;
    let changed = changes(config, &membership);
    let values: Vec<(&str, &str)> = changed.iter().map(|(key, _, new)| (*key, new.as_str())).collect();
    let wrote = |path: PathBuf| move |source| MembershipError::Configuration { doing: "write", path, source };
    if !values.is_empty() {
        let kept = file.with_extension("conf.before-join");
        std::fs::copy(file, &kept).map_err(wrote(kept))?;
        std::fs::write(file, with_values(&text, &values)).map_err(wrote(file.to_owned()))?;
    }
    Ok(Joined { membership, changed })
}

/// The values that the cluster needs other than they are.
fn changes(config: &Config, membership: &Membership) -> Vec<(&'static str, String, String)> {
    [
        ("CLUSTER_NAME", config.cluster_name.to_string(), membership.cluster_name.to_string()),
        ("CLUSTER_NET", config.cluster_net.to_string(), membership.cluster_net.to_string()),
        ("ETCD", config.etcd.join(","), membership.etcd.join(",")),
        ("MASTER_IP", config.master_ip.to_string(), membership.master_ip.to_string()),
        ("MASTER_PORT", config.master_port.to_string(), membership.master_port.to_string()),
    ]
    .into_iter()
    .filter(|(_, old, new)| old != new)
    .collect()
}

/// Gets a new certificate for the key that is there.
///
/// # Errors
/// See [`MembershipError`]. The old certificate stays then.
pub async fn renew(config: &Config, host: &HostName, identity: &IdentityFiles) -> Result<(), MembershipError> {
    let address = std::net::SocketAddr::new(config.master_ip, config.master_port).to_string();
    let request = authority::request_again(&identity.key).map_err(MembershipError::Authority)?;
    let client = Tls::new(identity.clone()).client().map_err(MembershipError::Tls)?;
    let asked = MasterRequest::Renew { host: host.clone(), request, now: Micros::now() };
    match ask(&address, client, &asked).await? {
        MasterReply::Renewed { certificate } => {
            files::write_private(&identity.certificate, &certificate).map_err(MembershipError::File)
        }
        MasterReply::Refused(reason) => Err(MembershipError::Refused(reason)),
        MasterReply::Joined(_) => Err(MembershipError::Protocol { address }),
    }
}

/// Renews the certificate before it ends, until dropped.
pub async fn keep(config: Config, host: HostName, identity: IdentityFiles) {
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let Some(own) = files::read(&identity.certificate).ok().and_then(|pem| certificate::der(&pem)) else {
            continue;
        };
        if !certificate::is_due(&own, Micros::now()) {
            continue;
        }
        match renew(&config, &host, &identity).await {
            Ok(()) => tracing::info!("the certificate is renewed"),
            Err(error) => {
                let until = certificate::validity(&own).map_or_else(String::new, |(_, end)| end.to_string());
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, until, "the certificate cannot be renewed; trying again in an hour");
            }
        }
    }
}

async fn ask(
    address: &str,
    client: Arc<rustls::ClientConfig>,
    request: &MasterRequest,
) -> Result<MasterReply, MembershipError> {
    let address = address.to_owned();
    let broken = |source| MembershipError::Broken { address: address.clone(), source };
    let exchange = async {
        let stream = TcpStream::connect(&address)
            .await
            .map_err(|source| MembershipError::Connect { address: address.clone(), source })?;
        let stranger = |source| MembershipError::Stranger { address: address.clone(), source };
        let name = server_name(MASTER_IDENTITY).map_err(stranger)?;
        let mut stream = TlsConnector::from(client).connect(name, stream).await.map_err(stranger)?;
        message::write(&mut stream, request, MAX_MESSAGE).await.map_err(broken)?;
        let reply = message::read(&mut stream, MAX_MESSAGE).await.map_err(broken)?;
        let _ = stream.shutdown().await;
        Ok(reply)
    };
    tokio::time::timeout(PATIENCE, exchange)
        .await
        .unwrap_or_else(|_| Err(MembershipError::Silent { address: address.clone() }))
}

/// Where masters of other hosts reach this worker; nowhere in a system of one machine.
#[must_use]
pub fn endpoint(config: &Config) -> Option<std::net::SocketAddr> {
    config.is_reachable().then(|| std::net::SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), config.worker_port))
}
