//! The shared directory, FS_PREFIX/global.
//!
//! A shared file system may hang, and who asks it for anything then sleeps in the kernel, where no signal ends him. So
//! no thread of the worker touches it: helpers do. One of them asks whether it answers before others are sent; it is
//! given up after a deadline, and while it hangs no other is started and everybody is told at once.

use docklet_types::host::Check;
use docklet_types::name::ClusterName;
use docklet_types::paths::Paths;
use docklet_types::report::Reason;
use docklet_types::shared::Marker;
use nix::sys::statfs::statfs;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::{helper, machine, private_directory, remove_tree};
use crate::{HostError, Result};

/// The code of every failure of the directory, and the name of its check.
pub const NAME: &str = "shared_directory";
/// The directory has this long to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is good for this long: nodes of one user are often started at once.
const FRESH: Duration = Duration::from_secs(1);
/// Whoever works in the directory is given up once it no longer answers, which is asked this often.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Asks the helper whether the directory is there, and for a user's data in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareRequest {
    pub global: PathBuf,
    pub marker: PathBuf,
    pub cluster: ClusterName,
    #[serde(default)]
    pub home: Option<Home>,
}

/// A user's data, made where it is not yet.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Home {
    pub data: PathBuf,
    /// Where this host makes it before it is put in its place.
    pub draft: PathBuf,
    /// The host's id of the root of the user's nodes.
    pub owner: u32,
}

fn refused(text: String) -> Reason {
    Reason::new(NAME, text)
}

/// Runs in the helper.
pub fn look(request: &ShareRequest) -> std::result::Result<(), Reason> {
    let ShareRequest { global, marker, cluster, home } = request;
    let shown = global.display();
    let unusable = |e: &dyn std::fmt::Display| refused(format!("{shown} cannot be used: {e}. Mount it anew."));
    statfs(global).map_err(|e| unusable(&e))?;
    let written = match fs::read(marker) {
        Ok(bytes) => serde_json::from_slice::<Marker>(&bytes).map_err(|e| unusable(&e))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(refused(format!(
                "{shown} is not the directory that this cluster shares: it has no file .docklet. Mount it. Where it is \
                 the right one, start docklet-master, which writes the file."
            )));
        }
        Err(e) => return Err(unusable(&e)),
    };
    if written.cluster != *cluster {
        return Err(refused(format!(
            "{shown} is the shared directory of the cluster {}, not of {cluster}. Mount the right one.",
            written.cluster
        )));
    }
    home.as_ref().map_or(Ok(()), |home| {
        let what = "The directory of the user's data could not be made";
        make_home(home).map_err(|e| crate::reason::failed("boot_failed", what, &e).0)
    })
}

/// Never changed once it is there. It is made apart and put in its place whole: a client of GlusterFS that makes a directory
/// while another client looks for it may go on with one that nobody else has, and later with none ("stale file handle").
fn make_home(home: &Home) -> io::Result<()> {
    let (Some(place), Some(name)) = (home.data.parent(), home.data.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    if home.data.is_dir() {
        return Ok(());
    }
    // What a helper left that was ended.
    remove_tree(&home.draft)?;
    let draft = home.draft.join(name);
    private_directory(&draft)?;
    std::os::unix::fs::chown(&draft, Some(home.owner), Some(home.owner))?;
    let placed = match fs::rename(&home.draft, place) {
        // Another host was quicker.
        Err(_) if home.data.is_dir() => Ok(()),
        // The place has been there without the data.
        Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            fs::rename(&draft, &home.data)
        }
        other => other,
    };
    let removed = remove_tree(&home.draft);
    placed.and(removed)
}

/// A helper that was asked and has not answered yet.
type Asked = JoinHandle<Result<()>>;

#[derive(Default)]
struct State {
    asked: Option<Asked>,
    /// Users' data that was seen a moment ago.
    homes: HashMap<PathBuf, Instant>,
}

/// See the module.
pub struct Share {
    global: PathBuf,
    marker: PathBuf,
    cluster: ClusterName,
    state: Mutex<State>,
}

impl Share {
    pub fn new(paths: &Paths, cluster: ClusterName) -> Self {
        Self { global: paths.global(), marker: paths.shared_marker(), cluster, state: Mutex::default() }
    }

    fn hangs(&self) -> HostError {
        HostError(refused(format!(
            "{} does not answer. See to its servers and to the network between; what waits for it goes on by itself.",
            self.global.display()
        )))
    }

    async fn ask(&self, program: &Path, home: Option<Home>) -> Result<()> {
        let mut state = self.state.lock().await;
        state.homes.retain(|_, seen| seen.elapsed() < FRESH);
        if home.as_ref().is_some_and(|home| state.homes.contains_key(&home.data)) {
            return Ok(());
        }
        if state.asked.as_ref().is_some_and(|asked| !asked.is_finished()) {
            return Err(self.hangs());
        }
        let request = ShareRequest {
            global: self.global.clone(),
            marker: self.marker.clone(),
            cluster: self.cluster.clone(),
            home: home.clone(),
        };
        let program = program.to_owned();
        // Without a deadline of its own: a helper that hangs is remembered until it ends.
        let call = async move { helper::call(&program, "share", "docklet-share", &request, Duration::MAX).await };
        let asked = state.asked.insert(tokio::spawn(call));
        let answer = match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => return Err(self.hangs()),
        };
        state.asked = None;
        answer.map_err(|e| HostError::new("helper_failed", format!("The helper was given up: {e}.")))??;
        state.homes.extend(home.map(|home| (home.data, Instant::now())));
        Ok(())
    }

    /// Whether the directory answers, and is the one that it should be.
    pub async fn answers(&self, program: &Path) -> Result<()> {
        self.ask(program, None).await
    }

    /// Makes sure of a user's data.
    pub async fn home(&self, program: &Path, home: Home) -> Result<()> {
        self.ask(program, Some(home)).await
    }

    pub async fn check(&self, program: &Path) -> Check {
        match self.answers(program).await {
            Ok(()) => machine::ok(NAME, format!("{} is the one that all hosts share", self.global.display())),
            Err(HostError(reason)) => machine::failed(NAME, reason.message.trim_end_matches('.')),
        }
    }

    /// Waits for work in the directory, for as long as the directory answers.
    pub async fn while_it_answers<T>(&self, program: &Path, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.answers(program).await?;
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(ASK_AGAIN) => self.answers(program).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn home(users: &Path, host: &str) -> Home {
        Home { data: users.join("ada/data"), draft: users.join(format!(".new-{host}-ada")), owner: 1_000_000 }
    }

    fn names(of: &Path) -> Vec<String> {
        fs::read_dir(of).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_users_data_is_made_once_and_nothing_else_is_left() {
        let users = tempfile::tempdir().unwrap();
        let users = users.path();
        make_home(&home(users, "h1")).unwrap();
        let made = fs::metadata(users.join("ada/data")).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1_000_000, 1_000_000, 0o700));
        fs::write(users.join("ada/data/file"), "kept").unwrap();
        make_home(&home(users, "h2")).unwrap();
        assert_eq!(fs::metadata(users.join("ada/data")).unwrap().ino(), made.ino());
        assert_eq!(names(users), ["ada"]);
        // Something else of the user's is there, and a helper was ended halfway.
        fs::remove_dir_all(users.join("ada/data")).unwrap();
        fs::write(users.join("ada/other"), "").unwrap();
        fs::create_dir_all(users.join(".new-h1-ada/half")).unwrap();
        make_home(&home(users, "h1")).unwrap();
        assert_eq!(fs::metadata(users.join("ada/data")).unwrap().uid(), 1_000_000);
        assert!(users.join("ada/other").exists());
        assert_eq!(names(users), ["ada"]);
    }

    #[test]
    fn of_hosts_that_make_it_at_once_one_does() {
        let users = tempfile::tempdir().unwrap();
        let users = users.path();
        for _ in 0..50 {
            std::thread::scope(|scope| {
                for host in ["h1", "h2", "h3"] {
                    scope.spawn(move || {
                        make_home(&home(users, host)).unwrap();
                        fs::write(users.join("ada/data").join(host), "").unwrap();
                    });
                }
            });
            assert_eq!(names(&users.join("ada/data")).len(), 3, "none took it from under another");
            assert_eq!(names(users), ["ada"]);
            fs::remove_dir_all(users.join("ada")).unwrap();
        }
    }
}
