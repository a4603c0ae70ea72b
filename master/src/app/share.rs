//! The shared directory, FS_PREFIX/global, as the master touches it.
//!
//! A shared file system may hang, and who asks it for anything then sleeps in the kernel. So a few threads of their own
//! do, with a deadline for whoever waits for them; while all of them hang, everybody is refused at once.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use docklet_types::name::ClusterName;
use docklet_types::paths::Paths;
use docklet_types::shared::Marker;
use tokio::sync::{Semaphore, oneshot};

use crate::http::problem::chain;

/// Threads in the directory at once.
const THREADS: usize = 4;
/// How long anybody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked for the marker until it is there.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The directory did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("FS_PREFIX/global does not answer")]
pub struct Hangs;

/// See the module. Clones share the threads.
#[derive(Clone)]
pub struct Share {
    threads: Arc<Semaphore>,
    patience: Duration,
}

impl Default for Share {
    fn default() -> Self {
        Self { threads: Arc::new(Semaphore::new(THREADS)), patience: PATIENCE }
    }
}

impl Share {
    /// Runs `work`, which may touch the shared directory. After a deadline it is left to itself.
    ///
    /// # Errors
    /// See [`Hangs`].
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Hangs> {
        let threads = self.threads.clone();
        let done = async move {
            let turn = threads.acquire_owned().await.ok()?;
            let (tell, answer) = oneshot::channel();
            // Not one of the runtime's, which waits for all of its threads when it ends.
            let thread = std::thread::Builder::new().name("shared directory".to_owned());
            let started = thread.spawn(move || {
                let _ = tell.send(work());
                drop(turn);
            });
            started.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(self.patience, done).await.ok().flatten().ok_or(Hangs)
    }
}

/// Whose the directory is.
#[derive(Debug, PartialEq, Eq)]
enum Marked {
    Yes,
    /// It was there once: what is there now is another directory.
    Elsewhere,
    Of(ClusterName),
}

impl Marked {
    /// What is wrong, and what to do.
    fn trouble(&self) -> Option<String> {
        match self {
            Self::Yes => None,
            Self::Elsewhere => {
                Some("it is not the directory that it was: it has no file .docklet. Mount it".to_owned())
            }
            Self::Of(other) => Some(format!(
                "it is the shared directory of the cluster {other}. Mount the right one, or remove its file .docklet"
            )),
        }
    }
}

/// Writes the file by which workers know the directory, where none is.
///
/// # Errors
/// The directory cannot be read or written, or is another's.
pub fn mark(paths: &Paths, cluster: &ClusterName) -> io::Result<()> {
    look(paths, cluster)?.trouble().map_or(Ok(()), |text| Err(io::Error::other(text)))
}

fn look(paths: &Paths, cluster: &ClusterName) -> io::Result<Marked> {
    let (file, seen) = (paths.shared_marker(), paths.shared_was_seen());
    let found = match std::fs::read(&file) {
        Ok(bytes) => serde_json::from_slice::<Marker>(&bytes)?.cluster,
        Err(e) if e.kind() == io::ErrorKind::NotFound && seen.exists() => return Ok(Marked::Elsewhere),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            write_whole(&file, &serde_json::to_vec(&Marker { cluster: cluster.clone() })?)?;
            cluster.clone()
        }
        Err(e) => return Err(e),
    };
    if found != *cluster {
        return Ok(Marked::Of(found));
    }
    std::fs::write(seen, "").map(|()| Marked::Yes)
}

/// Readers see all of it or nothing.
fn write_whole(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = file.with_extension(format!("new-{}", std::process::id()));
    std::fs::write(&partial, bytes)?;
    std::fs::rename(partial, file)
}

/// Sees to the marker until it is there.
pub async fn keep_marked(share: Share, paths: Paths, cluster: ClusterName) {
    let mut told = None;
    loop {
        let (at, name) = (paths.clone(), cluster.clone());
        let trouble = match share.run(move || look(&at, &name)).await {
            Ok(Ok(marked)) => match marked.trouble() {
                None => return,
                Some(trouble) => trouble,
            },
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        if told.as_ref() != Some(&trouble) {
            tracing::error!(directory = %paths.global().display(), "the shared directory cannot be used: {trouble}");
            told = Some(trouble);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_directory_that_hangs_is_told_in_time() {
        let share = Share { threads: Arc::new(Semaphore::new(2)), patience: Duration::from_millis(50) };
        // Opening a pipe that nobody writes to waits in the kernel, as a mount that hangs does.
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for _ in 0..3 {
            let hanging = pipe.clone();
            assert!(share.run(move || std::fs::read(hanging)).await.is_err());
        }
        // No thread is left, so that none is started; once it answers, there are again.
        assert_eq!(share.threads.available_permits(), 0);
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
        let patient = Share { patience: PATIENCE, ..share };
        assert_eq!(patient.run(|| 7).await.unwrap(), 7);
    }

    #[test]
    fn the_marker_is_written_once_and_an_empty_mount_point_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths::new(directory.path());
        std::fs::create_dir_all(paths.local()).unwrap();
        std::fs::create_dir_all(paths.global()).unwrap();
        let (mine, other): (ClusterName, ClusterName) = ("mine".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(look(&paths, &mine).unwrap(), Marked::Yes);
        assert_eq!(look(&paths, &mine).unwrap(), Marked::Yes);
        assert_eq!(look(&paths, &other).unwrap(), Marked::Of(mine.clone()));
        std::fs::remove_file(paths.shared_marker()).unwrap();
        assert_eq!(look(&paths, &mine).unwrap(), Marked::Elsewhere);
        assert!(!paths.shared_marker().exists());
    }
}
