//! Letting a host in, and renewing the certificate of one that is in.

use std::net::IpAddr;
use std::sync::Arc;

use docklet_identity::authority::{Authority, AuthorityError, Holder, new_worker_identity};
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::config::Config;
use docklet_types::join::{
    CLOCK_TOLERANCE_S, HostNetwork, IssuedToken, JoinedHost, MasterReply, MasterRequest, Membership, overlap,
};
use docklet_types::name::{ClusterName, HostName};
use docklet_types::net::Subnet;
use docklet_types::report::Reason;
use docklet_types::time::Micros;
use serde::de::DeserializeOwned;

use super::tokens;
use super::users::Users;
use crate::http::problem::chain;

/// What a host is told of the cluster it joins.
#[derive(Debug, Clone)]
struct Facts {
    cluster_name: ClusterName,
    cluster_net: Subnet,
    etcd: Vec<String>,
    master_ip: IpAddr,
    master_port: u16,
    lifetime_s: i64,
}

/// See the module.
pub struct Admission {
    store: Arc<dyn Store>,
    keys: Keys,
    authority: Authority,
    users: Users,
    facts: Facts,
}

/// Why a request was not granted.
enum Refusal {
    /// For the host's operator.
    Told(Reason),
    Store(StoreError),
    Authority(AuthorityError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        Self::Authority(error)
    }
}

/// A document with the revision it was read at.
struct Read<T> {
    revision: Option<i64>,
    value: Option<T>,
}

/// What is known when a host asks to be let in.
struct Application<'a> {
    host: &'a HostName,
    secret: &'a str,
    token: Option<&'a IssuedToken>,
    /// A host of that name joined or described itself.
    name_is_taken: bool,
    networks: &'a [HostNetwork],
    cluster_net: Subnet,
    /// The host's clock.
    theirs: Micros,
    now: Micros,
}

/// Whether a host may come in.
fn decide(asked: &Application<'_>) -> Result<(), Reason> {
    let host = asked.host;
    // The same answer for a token that never was and one with another secret.
    let known = asked.token.filter(|t| t.secret_sha256 == tokens::hash(asked.secret));
    let Some(token) = known else {
        return Err(Reason::new(
            "token_unknown",
            "The cluster does not know this token. `docklet-master token` on a master prints a new one.",
        ));
    };
    if let Some(other) = &token.used_by {
        return Err(Reason::new(
            "token_used",
            format!(
                "The token was used by the host {other}; each is good for one. `docklet-master token` on a master prints a new one."
            ),
        ));
    }
    if token.expires_at <= asked.now {
        return Err(Reason::new(
            "token_expired",
            format!(
                "The token was good until {}. `docklet-master token` on a master prints a new one.",
                token.expires_at
            ),
        ));
    }
    if let Some(only) = token.host.as_ref().filter(|only| *only != host) {
        return Err(Reason::new(
            "token_for_other_host",
            format!("The token is for the host {only}, and this one is called {host} (HOST_NAME in docklet.conf)."),
        ));
    }
    clocks_agree(asked.theirs, asked.now)?;
    if let Some(message) = overlap(asked.networks, asked.cluster_net) {
        return Err(Reason::new("overlapping_cluster_net", message));
    }
    // A token that names the host is the operator's word that this machine takes the old one's place.
    if asked.name_is_taken && token.host.is_none() {
        return Err(Reason::new(
            "host_taken",
            format!(
                "There is a host called {host} already. Set another HOST_NAME in docklet.conf; or, if this machine takes \
                 its place, use a token made with `docklet-master token --host {host}`."
            ),
        ));
    }
    Ok(())
}

fn clocks_agree(theirs: Micros, now: Micros) -> Result<(), Reason> {
    let behind = (now.0 - theirs.0) / 1_000_000;
    if behind.abs() <= CLOCK_TOLERANCE_S {
        return Ok(());
    }
    let direction = if behind > 0 { "behind" } else { "ahead of" };
    Err(Reason::new(
        "clock_differs",
        format!(
            "This host's clock is {} s {direction} the master's; certificates would not be good. Set it (chrony or \
             systemd-timesyncd keep it so) and try again.",
            behind.abs()
        ),
    ))
}

impl Admission {
    #[must_use]
    pub fn new(config: &Config, store: Arc<dyn Store>, authority: Authority, users: Users) -> Self {
        let facts = Facts {
            cluster_name: config.cluster_name.clone(),
            cluster_net: config.cluster_net,
            etcd: config.etcd_for_others(),
            master_ip: config.master_ip,
            master_port: config.master_port,
            lifetime_s: i64::from(config.certificate_days) * 24 * 3600,
        };
        Self { store, keys: Keys::new(&config.cluster_name), authority, users, facts }
    }

    /// Answers one request. `shown` are the names of the certificate that the peer proved to have; none without one.
    pub async fn answer(&self, request: MasterRequest, shown: &[String]) -> MasterReply {
        let (host, outcome) = match request {
            MasterRequest::Join { token_id, secret, host, request, networks, now } => {
                let outcome = self.join(&host, (&token_id, &secret), &request, &networks, now).await;
                (host, outcome.map(|m| MasterReply::Joined(Box::new(m))))
            }
            MasterRequest::Renew { host, request, now } => {
                let outcome = self.renew(&host, &request, now, shown).await;
                (host, outcome.map(|certificate| MasterReply::Renewed { certificate }))
            }
        };
        let reason = match outcome {
            Ok(reply) => return reply,
            Err(Refusal::Told(reason)) => reason,
            Err(Refusal::Authority(error @ AuthorityError::Request(_))) => {
                Reason::new("bad_request", format!("{}.", chain(&error)))
            }
            Err(Refusal::Authority(error)) => {
                tracing::error!(%host, error = chain(&error), "cannot make a certificate");
                Reason::new("master_failed", "The master cannot make a certificate now; its log says why.")
            }
            Err(Refusal::Store(error)) => {
                tracing::warn!(%host, error = chain(&error), "the store cannot take a host");
                Reason::new("store_unavailable", "The cluster's store does not answer now. Try again in a moment.")
            }
        };
        tracing::info!(%host, code = reason.code, "refused a host");
        MasterReply::Refused(reason)
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Read<T>, StoreError> {
        let entry = self.store.get(key).await?;
        Ok(Read {
            revision: entry.as_ref().map(|e| e.revision),
            value: entry.and_then(|e| serde_json::from_slice(&e.value).ok()),
        })
    }

    async fn join(
        &self,
        host: &HostName,
        (token_id, secret): (&str, &str),
        request: &str,
        networks: &[HostNetwork],
        theirs: Micros,
    ) -> Result<Membership, Refusal> {
        let hex = token_id.bytes().all(|b| b.is_ascii_hexdigit()) && token_id.len() == 12;
        let token_key = self.keys.write(&Key::Token(if hex { token_id.to_owned() } else { String::new() }));
        let joined_key = self.keys.write(&Key::Joined(host.clone()));
        let now = Micros::now();
        let token: Read<IssuedToken> = self.read(&token_key).await?;
        let before: Read<JoinedHost> = self.read(&joined_key).await?;
        let described = self.store.get(&self.keys.write(&Key::Host(host.clone()))).await?.is_some();
        let asked = Application {
            host,
            secret,
            token: token.value.as_ref(),
            name_is_taken: before.revision.is_some() || described,
            networks,
            cluster_net: self.facts.cluster_net,
            theirs,
            now,
        };
        decide(&asked).map_err(Refusal::Told)?;
        let identity = new_worker_identity(host);
        let holder = Holder::Worker { host, identity: &identity };
        let certificate = self.authority.answer(request, &holder, now, self.facts.lifetime_s)?;
        let used = token.value.map(|token| IssuedToken { used_by: Some(host.clone()), ..token });
        let txn = Txn::new()
            .when(Compare::as_read(&token_key, token.revision))
            .when(Compare::as_read(&joined_key, before.revision))
            .put(&token_key, &used)?
            .put(&joined_key, &JoinedHost { identity: identity.clone(), joined_at: now })?;
        if self.store.txn(txn).await? == Outcome::Conflict {
            return Err(Refusal::Told(Reason::new(
                "contended",
                "Another host joined with this token or under this name at the same moment. Look at `docklet host list`.",
            )));
        }
        self.users.admit(host, &identity).await?;
        tracing::info!(%host, identity, "a host joined");
        let Facts { cluster_name, cluster_net, etcd, master_ip, master_port, .. } = self.facts.clone();
        let authority = self.authority.certificate().to_owned();
        Ok(Membership { certificate, authority, cluster_name, cluster_net, etcd, master_ip, master_port })
    }

    async fn renew(&self, host: &HostName, request: &str, theirs: Micros, shown: &[String]) -> Result<String, Refusal> {
        let joined: Read<JoinedHost> = self.read(&self.keys.write(&Key::Joined(host.clone()))).await?;
        let Some(joined) = joined.value.filter(|joined| shown.contains(&joined.identity)) else {
            return Err(Refusal::Told(Reason::new(
                "not_joined",
                format!(
                    "The certificate shown is not that of the host {host}: it was removed, or another took its place. Join it again."
                ),
            )));
        };
        let now = Micros::now();
        clocks_agree(theirs, now).map_err(Refusal::Told)?;
        let holder = Holder::Worker { host, identity: &joined.identity };
        let certificate = self.authority.answer(request, &holder, now, self.facts.lifetime_s)?;
        tracing::info!(%host, "renewed a host's certificate");
        Ok(certificate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> IssuedToken {
        IssuedToken { secret_sha256: tokens::hash("secret"), expires_at: Micros(2_000_000), host: None, used_by: None }
    }

    fn verdict<'a>(token: &'a IssuedToken, change: impl FnOnce(&mut Application<'a>)) -> Result<(), String> {
        let host: &'static HostName = Box::leak(Box::new("h1".parse().unwrap()));
        let now = Micros(1_000_000);
        let mut asked = Application {
            host,
            secret: "secret",
            token: Some(token),
            name_is_taken: false,
            networks: &[],
            cluster_net: "172.16.0.0/16".parse().unwrap(),
            theirs: now,
            now,
        };
        change(&mut asked);
        decide(&asked).map_err(|reason| reason.code)
    }

    #[test]
    fn a_token_lets_one_host_in() {
        assert_eq!(verdict(&token(), |_| {}), Ok(()));
        let used = IssuedToken { used_by: Some("h2".parse().unwrap()), ..token() };
        assert_eq!(verdict(&used, |_| {}), Err("token_used".to_owned()));
    }

    #[test]
    fn wrong_and_unknown_look_alike() {
        assert_eq!(verdict(&token(), |a| a.secret = "guess"), Err("token_unknown".to_owned()));
        assert_eq!(verdict(&token(), |a| a.token = None), Err("token_unknown".to_owned()));
        // Not even that it was used is told without the secret.
        let used = IssuedToken { used_by: Some("h2".parse().unwrap()), ..token() };
        assert_eq!(verdict(&used, |a| a.secret = "guess"), Err("token_unknown".to_owned()));
    }

    #[test]
    fn time_and_place_are_checked() {
        assert_eq!(
            verdict(&token(), |a| (a.now, a.theirs) = (Micros(3_000_000), Micros(3_000_000))),
            Err("token_expired".to_owned())
        );
        let hour = 3600 * 1_000_000;
        assert_eq!(verdict(&token(), |a| a.theirs = Micros(a.now.0 - hour)), Err("clock_differs".to_owned()));
        assert_eq!(verdict(&token(), |a| a.theirs = Micros(a.now.0 + hour)), Err("clock_differs".to_owned()));
        let other = IssuedToken { host: Some("h9".parse().unwrap()), ..token() };
        assert_eq!(verdict(&other, |_| {}), Err("token_for_other_host".to_owned()));
    }

    #[test]
    fn a_network_that_nodes_would_hide_is_refused() {
        let network = |net: &str| [HostNetwork { device: "eth1".to_owned(), net: net.parse().unwrap() }];
        let (near, far) = (network("172.16.9.0/24"), network("192.168.9.0/24"));
        assert_eq!(verdict(&token(), |a| a.networks = &near), Err("overlapping_cluster_net".to_owned()));
        assert_eq!(verdict(&token(), |a| a.networks = &far), Ok(()));
    }

    #[test]
    fn a_name_is_taken_over_by_explicit_word_only() {
        assert_eq!(verdict(&token(), |a| a.name_is_taken = true), Err("host_taken".to_owned()));
        let named = IssuedToken { host: Some("h1".parse().unwrap()), ..token() };
        assert_eq!(verdict(&named, |a| a.name_is_taken = true), Ok(()));
    }
}
