//! The worker's copy of its plans on its own disk, and what it must remember of them: with it a host that boots while
//! etcd is down starts what it should, and a worker that was killed knows which restarts it has already done.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use docklet_daemon::fail;
use docklet_types::name::HostName;
use docklet_types::plan::{NodePlan, VclusterPlan};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const FORMAT: u32 = 1;

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    format: u32,
    pub host: HostName,
    pub nodes: Vec<NodeRecord>,
    pub vclusters: Vec<Arc<VclusterPlan>>,
}

/// A plan that is followed, with the part of its history that outlives the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    pub plan: Arc<NodePlan>,
    pub attempt: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacing: Option<i32>,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("{} is not a copy of plans", file.display())]
    Malformed { file: PathBuf, source: serde_json::Error },
    #[error("{} was written by another version or for another host", file.display())]
    Foreign { file: PathBuf },
    #[error("cannot write {}", file.display())]
    Write { file: PathBuf, source: io::Error },
}

fn file_in(directory: &Path) -> PathBuf {
    directory.join("plans.json")
}

impl Ledger {
    #[must_use]
    pub fn new(host: HostName) -> Self {
        Self { format: FORMAT, host, nodes: Vec::new(), vclusters: Vec::new() }
    }

    /// `Ok(None)`: there is none yet.
    ///
    /// # Errors
    /// The file is there and of no use.
    pub fn load(directory: &Path, host: &HostName) -> Result<Option<Self>, LedgerError> {
        let file = file_in(directory);
        let bytes = match fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LedgerError::Read { file, source }),
        };
        let ledger: Self =
            serde_json::from_slice(&bytes).map_err(|source| LedgerError::Malformed { file: file.clone(), source })?;
        if ledger.format == FORMAT && ledger.host == *host {
            Ok(Some(ledger))
        } else {
            Err(LedgerError::Foreign { file })
        }
    }

    /// Replaces the file as a whole: after a crash it is the old one or the new one. It holds private keys, so only
    /// its owner may read it.
    ///
    /// # Errors
    /// Where it cannot be written; the old one is then still there.
    pub fn save(&self, directory: &Path) -> Result<(), LedgerError> {
        let file = file_in(directory);
        let new = directory.join("plans.json.new");
        let write = || -> io::Result<()> {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            out.write_all(&serde_json::to_vec(self)?)?;
            out.sync_all()?;
            fail::before("ledger");
            fs::rename(&new, &file)?;
            fail::after("ledger");
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|source| LedgerError::Write { file, source })
    }
}
