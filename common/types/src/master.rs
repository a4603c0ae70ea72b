//! What a master says of itself.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

use crate::name::HostName;
use crate::time::Micros;

/// A master as it describes itself. Key: `masters/<name>`, leased: it is there while the master lives and reaches the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterReport {
    /// HOST_NAME, else made from the machine's name.
    pub name: HostName,
    /// Where it serves API, portal and proxy.
    pub address: SocketAddr,
    pub version: String,
    pub started_at: Micros,
}
