//! Where things lie under FS_PREFIX. One place, so that no two parts disagree.

use std::path::{Path, PathBuf};

use crate::id::{NodeId, VclusterId};
use crate::name::{HostName, ImageName, UserName};

/// How one program proves who it is: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// The authority that everybody is checked by. The last of the three that is written.
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// All paths of one installation on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    prefix: PathBuf,
}

impl Paths {
    #[must_use]
    pub fn new(fs_prefix: impl Into<PathBuf>) -> Self {
        Self { prefix: fs_prefix.into() }
    }

    #[must_use]
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }
    /// Everything of this host alone.
    #[must_use]
    pub fn local(&self) -> PathBuf {
        self.prefix.join("local")
    }
    /// Shared by all hosts: user data, images.
    #[must_use]
    pub fn global(&self) -> PathBuf {
        self.prefix.join("global")
    }
    /// Says whose the shared directory is; without it, nothing is mounted there.
    #[must_use]
    pub fn shared_marker(&self) -> PathBuf {
        self.global().join(".docklet")
    }
    /// Is there once this host's master has seen the marker: a directory without it is then not the shared one.
    #[must_use]
    pub fn shared_was_seen(&self) -> PathBuf {
        self.local().join("shared_was_seen")
    }
    #[must_use]
    pub fn generated_password(&self) -> PathBuf {
        self.local().join("generated_password.txt")
    }
    #[must_use]
    pub fn log_file(&self, program: &str) -> PathBuf {
        self.local().join("log").join(format!("{program}.log"))
    }
    #[must_use]
    pub fn pid_file(&self, program: &str) -> PathBuf {
        self.run().join(format!("{program}.pid"))
    }
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.local().join("run")
    }
    /// The worker's socket for the master of the same host; only root may connect.
    #[must_use]
    pub fn worker_socket(&self) -> PathBuf {
        self.run().join("worker.sock")
    }
    /// The local etcd: its data and pid file.
    #[must_use]
    pub fn etcd(&self) -> PathBuf {
        self.local().join("etcd")
    }
    /// Certificates and keys of this machine's programs; readable by root alone.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.local().join("identity")
    }
    fn identity_of(&self, program: &str) -> IdentityFiles {
        let directory = self.identity();
        IdentityFiles {
            authority: directory.join("ca.crt"),
            certificate: directory.join(format!("{program}.crt")),
            key: directory.join(format!("{program}.key")),
        }
    }
    #[must_use]
    pub fn master_identity(&self) -> IdentityFiles {
        self.identity_of("master")
    }
    #[must_use]
    pub fn worker_identity(&self) -> IdentityFiles {
        self.identity_of("worker")
    }
    /// That of the local etcd.
    #[must_use]
    pub fn etcd_identity(&self) -> IdentityFiles {
        self.identity_of("etcd")
    }
    /// The key of the cluster's authority; masters have it.
    #[must_use]
    pub fn authority_key(&self) -> PathBuf {
        self.identity().join("ca.key")
    }
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.local().join("master").join("docklet.db")
    }
    /// Where nodes write: a btrfs file system, or a plain directory.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.local().join("pool")
    }
    /// The sparse file behind the pool where STORAGE=file.
    #[must_use]
    pub fn pool_file(&self) -> PathBuf {
        self.local().join("pool.img")
    }
    /// The disk of one node: `upper` and `work`.
    #[must_use]
    pub fn node_disk(&self, id: NodeId) -> PathBuf {
        self.pool().join("nodes").join(id.to_string())
    }
    #[must_use]
    pub fn node_disks(&self) -> PathBuf {
        self.pool().join("nodes")
    }
    /// Copies of a node's disk while it moves to or from this host.
    #[must_use]
    pub fn node_move(&self, id: NodeId) -> PathBuf {
        self.node_moves().join(id.to_string())
    }
    #[must_use]
    pub fn node_moves(&self) -> PathBuf {
        self.pool().join("moves")
    }
    /// Host-side state of one node: configuration, console log, sockets.
    #[must_use]
    pub fn node_state(&self, id: NodeId) -> PathBuf {
        self.node_states().join(id.to_string())
    }
    #[must_use]
    pub fn node_states(&self) -> PathBuf {
        self.local().join("nodes")
    }
    /// Host-side state of one vcluster: its hosts file and keys.
    #[must_use]
    pub fn vcluster_state(&self, id: VclusterId) -> PathBuf {
        self.vcluster_states().join(id.to_string())
    }
    #[must_use]
    pub fn vcluster_states(&self) -> PathBuf {
        self.local().join("vclusters")
    }
    /// liblxc's own directory of containers.
    #[must_use]
    pub fn lxc(&self) -> PathBuf {
        self.local().join("lxc")
    }
    /// Layers unpacked on this host.
    #[must_use]
    pub fn unpacked_images(&self) -> PathBuf {
        self.local().join("images")
    }
    /// The worker's copy of its plans, for a start without etcd.
    #[must_use]
    pub fn worker_state(&self) -> PathBuf {
        self.local().join("worker")
    }
    /// OCI image layouts, one directory per image.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.global().join("images")
    }
    #[must_use]
    pub fn image_layout(&self, name: &ImageName) -> PathBuf {
        self.images().join(name.as_str())
    }
    /// A user's data: `~/nfs` in each of the user's nodes.
    #[must_use]
    pub fn user_data(&self, user: &UserName) -> PathBuf {
        self.global().join("users").join(user.as_str()).join("data")
    }
    /// Where a host makes it, before it is put in its place. No user's name begins with a dot, and no name holds `--`.
    #[must_use]
    pub fn user_draft(&self, user: &UserName, host: &HostName) -> PathBuf {
        self.global().join("users").join(format!(".new-{host}--{user}"))
    }
}
