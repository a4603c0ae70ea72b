//! The stored session: one token per server address, in a file that only its owner can read.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub username: String,
    pub token: String,
    pub expires_at: String,
}

/// Where neither an option nor the environment nor a chosen site says it.
const SERVER: &str = "http://localhost:8000";

/// The server that is meant: the one given, else that of the site in use.
pub fn server(given: Option<String>, sessions: Option<&Sessions>) -> String {
    let given = given.filter(|url| !url.is_empty());
    given.or_else(|| sessions?.site()).unwrap_or_else(|| SERVER.to_owned())
}

/// The file of sessions. Its content: server address → session.
#[derive(Debug, Clone)]
pub struct Sessions {
    file: PathBuf,
}

type Content = BTreeMap<String, Stored>;

impl Sessions {
    /// `$XDG_CONFIG_HOME/docklet/session.json`, or below `~/.config`.
    pub fn locate() -> Option<Self> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let home = || {
            absolute("HOME")
                .or_else(|| nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|u| u.dir))
        };
        let config = absolute("XDG_CONFIG_HOME").or_else(|| home().map(|h| h.join(".config")))?;
        Some(Self::at(config.join("docklet").join("session.json")))
    }

    pub fn at(file: PathBuf) -> Self {
        Self { file }
    }

    pub fn path(&self) -> &Path {
        &self.file
    }

    pub fn get(&self, url: &str) -> io::Result<Option<Stored>> {
        Ok(self.read()?.remove(key(url)))
    }

    pub fn put(&self, url: &str, session: Stored) -> io::Result<()> {
        // A file that cannot be understood holds nothing worth keeping.
        let mut content = self.read().unwrap_or_default();
        content.insert(key(url).to_owned(), session);
        self.write(&content)
    }

    /// True when there was one.
    pub fn forget(&self, url: &str) -> io::Result<bool> {
        let mut content = self.read()?;
        let was = content.remove(key(url)).is_some();
        if was {
            self.write(&content)?;
        }
        Ok(was)
    }

    /// The address of the site in use.
    pub fn site(&self) -> Option<String> {
        let text = fs::read_to_string(self.site_file()).ok()?;
        Some(text.trim().to_owned()).filter(|url| !url.is_empty())
    }

    pub fn use_site(&self, url: &str) -> io::Result<()> {
        replace(&self.site_file(), format!("{}\n", key(url)).as_bytes())
    }

    fn site_file(&self) -> PathBuf {
        self.file.with_file_name("site")
    }

    fn read(&self) -> io::Result<Content> {
        match fs::read(&self.file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Content::new()),
            Err(e) => Err(e),
        }
    }

    fn write(&self, content: &Content) -> io::Result<()> {
        replace(&self.file, &serde_json::to_vec_pretty(content)?)
    }
}

/// Through a new file, so that a full disk or a second `docklet login` never leaves half a file.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let Some(dir) = file.parent() else { return Err(io::ErrorKind::InvalidInput.into()) };
    if !dir.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let fresh = file.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        written.write_all(bytes)?;
        written.sync_all()?;
        fs::rename(&fresh, file)
    };
    let outcome = write();
    if outcome.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    outcome
}

/// `http://a:8000/` and `http://a:8000` are one server.
fn key(url: &str) -> &str {
    url.trim_end_matches('/')
}
