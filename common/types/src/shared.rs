//! What tells the shared directory from an empty mount point.

use serde::{Deserialize, Serialize};

use crate::name::ClusterName;

/// The file `FS_PREFIX/global/.docklet`: a master writes it, workers look for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Whose directory it is.
    pub cluster: ClusterName,
}
