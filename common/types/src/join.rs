//! How a host joins: the token an operator carries to it, and what its worker and a master say to each other.
//!
//! Spoken over TLS at MASTER_IP:MASTER_PORT, one request per connection: a u32 big-endian length and the JSON of
//! [`MasterRequest`]; back come a length and the JSON of [`MasterReply`]. The worker knows the master by the authority's
//! fingerprint in its token, later by the authority itself.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{ClusterName, HostName};
use crate::net::Subnet;
use crate::report::Reason;
use crate::time::Micros;

/// The largest request or reply in bytes.
pub const MAX_MESSAGE: u32 = 64 << 10;
/// The name in every master's certificate.
pub const MASTER_IDENTITY: &str = "docklet-master";
/// How far a host's clock may be from the master's, in seconds: certificates and expiries depend on it.
pub const CLOCK_TOLERANCE_S: i64 = 300;

/// The name by which masters know the worker of a host: in each of its certificates.
#[must_use]
pub fn worker_identity(host: &HostName) -> String {
    format!("worker-{host}")
}

/// A token good for one join: which it is, its secret, and by what the master is recognised.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// 12 hexadecimal digits.
    pub id: String,
    /// 32 hexadecimal digits: 128 random bits.
    pub secret: String,
    /// SHA-256 of the authority's certificate, as 64 hexadecimal digits.
    pub authority: String,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.authority)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret must never reach a log.
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token, or not the whole of it; `docklet-master token` prints one")]
pub struct JoinTokenError;

impl FromStr for JoinToken {
    type Err = JoinTokenError;

    fn from_str(text: &str) -> Result<Self, JoinTokenError> {
        let hex = |part: &str, length: usize| {
            let good = part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            good.then(|| part.to_owned()).ok_or(JoinTokenError)
        };
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, authority] = parts.as_slice() else { return Err(JoinTokenError) };
        Ok(Self { id: hex(id, 12)?, secret: hex(secret, 32)?, authority: hex(authority, 64)? })
    }
}

/// What the store keeps of a token that was handed out. Key: `tokens/<id>`, gone some time after the token expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedToken {
    /// SHA-256 of the secret, as hexadecimal digits.
    pub secret_sha256: String,
    pub expires_at: Micros,
    /// The only host that it is good for, which may take the place of one of that name.
    pub host: Option<HostName>,
    /// The host that used it.
    pub used_by: Option<HostName>,
}

/// A host that joined. Key: `joined/<host>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedHost {
    /// The name in its certificates that is of this join alone; its user in etcd.
    pub identity: String,
    pub joined_at: Micros,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum MasterRequest {
    /// Asks to be let in.
    Join {
        token_id: String,
        secret: String,
        host: HostName,
        /// A PKCS #10 request in PEM. Only its key counts; the master decides the names.
        request: String,
        /// What else the host is connected to.
        networks: Vec<HostNetwork>,
        /// The host's clock.
        now: Micros,
    },
    /// Asks for a new certificate, from a connection that shows the present one.
    Renew { host: HostName, request: String, now: Micros },
}

/// A network that a host is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostNetwork {
    pub device: String,
    pub net: Subnet,
}

/// Says which of a machine's networks overlaps that of nodes, and what to do about it.
#[must_use]
pub fn overlap<'a>(networks: impl IntoIterator<Item = &'a HostNetwork>, cluster_net: Subnet) -> Option<String> {
    let other = networks.into_iter().find(|other| other.net.overlaps(&cluster_net))?;
    Some(format!(
        "This machine is connected to {} by {}, which overlaps the cluster's CLUSTER_NET {cluster_net}: nodes would not \
         reach the one or the other. Renumber that network, or set up the cluster with another CLUSTER_NET.",
        other.net, other.device
    ))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MasterReply {
    Joined(Box<Membership>),
    Renewed {
        /// PEM.
        certificate: String,
    },
    Refused(Reason),
}

/// What a host needs to be part of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub authority: String,
    pub cluster_name: ClusterName,
    pub cluster_net: Subnet,
    /// `host:port` each, as this host reaches them.
    pub etcd: Vec<String>,
    pub master_ip: IpAddr,
    pub master_port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_printed() {
        let token = JoinToken { id: "0123456789ab".to_owned(), secret: "0".repeat(32), authority: "f".repeat(64) };
        assert_eq!(format!(" {token}\n").parse::<JoinToken>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn a_network_inside_that_of_nodes_is_named() {
        let network = |device: &str, net: &str| HostNetwork { device: device.to_owned(), net: net.parse().unwrap() };
        let (wan, lan) = (network("eth0", "192.168.1.0/24"), network("eth1", "172.16.9.0/24"));
        let cluster_net = "172.16.0.1/16".parse().unwrap();
        assert_eq!(overlap([&wan], cluster_net), None);
        let told = overlap([&wan, &lan], cluster_net).unwrap();
        assert!(told.contains("172.16.9.0/24 by eth1") && told.contains("CLUSTER_NET 172.16.0.0/16"), "{told}");
        assert!(overlap([&network("tun0", "172.0.0.0/8")], cluster_net).is_some(), "one that is larger");
    }

    #[test]
    fn half_a_token_is_none() {
        let whole = format!("0123456789ab.{}.{}", "0".repeat(32), "f".repeat(64));
        for bad in ["", "x", &whole[..whole.len() - 1], &whole[1..], &whole.replace('f', "F"), &format!("{whole}.x")] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad:?} was accepted");
        }
    }
}
