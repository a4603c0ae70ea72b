//! Certificates and keys on disk: readable by root alone, replaced as a whole.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use docklet_types::paths::IdentityFiles;

#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub struct FileError {
    pub doing: &'static str,
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// The text of a file.
///
/// # Errors
/// It is not there, or not text.
pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError { doing: "read", path: path.to_owned(), source })
}

/// Puts a file in its place that only its owner may read; whoever reads meanwhile has the old one or the new one.
///
/// # Errors
/// The directory cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), FileError> {
    let fresh = path.with_extension("new");
    let attempt = || {
        if let Some(directory) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    attempt().map_err(|source| FileError { doing: "write", path: path.to_owned(), source })
}

/// Writes the three files; the authority's last, because whoever finds it takes the others as complete.
///
/// # Errors
/// The directory cannot be written.
pub fn install(files: &IdentityFiles, key: &str, certificate: &str, authority: &str) -> Result<(), FileError> {
    write_private(&files.key, key)?;
    write_private(&files.certificate, certificate)?;
    if fs::read_to_string(&files.authority).is_ok_and(|text| text == authority) {
        return Ok(());
    }
    write_private(&files.authority, authority)
}
