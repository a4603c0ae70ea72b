//! Disks on their way to another host and from one.
//!
//! `pool/moves/<node-id>/` holds the copies of one move: on the host that the node leaves two read-only snapshots, on the
//! other what `btrfs receive` makes of them, in `in/`, which is all that the program sees of the file system. When the last
//! part is there, a writable snapshot of it becomes the node's disk. `move.json` names the move; nothing is sent or taken
//! without it, and `taken-*` says which parts are complete. The disk's own marker (`disk::COMPLETE`) travels inside.
//!
//! Where btrfs counts an extent for the subvolume that wrote it, what came in the first part is never counted for the
//! node's new disk. So the subvolumes of a moved node share a group, and the limit is the group's (`groups.json`).

use async_trait::async_trait;
use docklet_types::agent::Part;
use docklet_types::agent::disk::Control;
use docklet_types::id::NodeId;
use docklet_types::paths::Paths;
use docklet_types::plan::NodePlan;
use docklet_types::report::Reason;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{OwnedMutexGuard, watch};

use super::pool::Groups;
use super::run::{self, State};
use super::{LinuxHost, btrfs, private_directory, remove_tree, sys};
use crate::courier::{self, TakeError};
use crate::reason::{chain, failed};
use crate::{HostError, Moves, Result};

const NOTE: &str = "move.json";
/// What `btrfs receive` may see.
const IN: &str = "in";

/// What a move is, as its directory says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    number: u64,
    disk_mib: u32,
    /// The group of what has come, where there is one.
    groups: Groups,
}

impl Note {
    fn read(directory: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(directory.join(NOTE)).ok()?).ok()
    }

    fn write(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("move.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, directory.join(NOTE))
    }
}

/// The number of the move that a node's copies are for.
pub fn number(paths: &Paths, id: NodeId) -> Option<u64> {
    Note::read(&paths.node_move(id)).map(|note| note.number)
}

const fn name(part: Part) -> &'static str {
    match part {
        Part::First => "first",
        Part::Last => "last",
    }
}

fn marker(directory: &Path, part: Part) -> PathBuf {
    directory.join(format!("taken-{}", name(part)))
}

/// Removes a subvolume of a directory; already gone is success.
fn destroy(directory: &Path, name: &str) -> io::Result<()> {
    if directory.join(name).exists() { btrfs::destroy_subvolume(&File::open(directory)?, name) } else { Ok(()) }
}

/// Removes everything of a move. The groups of what it held are returned: btrfs lets go of them later.
fn clear(directory: &Path) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for parent in [directory.to_path_buf(), directory.join(IN)] {
        let entries = match fs::read_dir(&parent) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name() != IN {
                let open = File::open(entry.path())?;
                ids.extend(btrfs::subvolume_id(&open));
                btrfs::destroy_subvolume(&File::open(&parent)?, &entry.file_name().to_string_lossy())?;
            }
        }
    }
    remove_tree(directory)?;
    Ok(ids)
}

/// The two halves of the worker's own stream: one stays here, the other is handed out.
fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

fn broken(what: &str, error: &dyn std::error::Error) -> Reason {
    Reason::new("move_failed", format!("{what}: {}.", chain(error)))
}

/// Has a program killed when this one ends, so that the next worker finds nobody at work on the copies.
fn end_with_worker(command: &mut Command) {
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(sys::end_with_parent) };
}

/// The last words of a program.
async fn complaint(child: &mut Child) -> String {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let mut kept = Vec::new();
        let _ = (&mut stderr).take(4096).read_to_end(&mut kept).await;
        // Whatever is beyond that must not block the program.
        let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        said = String::from_utf8_lossy(&kept).trim().to_owned();
    }
    said
}

impl LinuxHost {
    /// The node's move, for one stream at a time.
    fn enter_move(&self, id: NodeId, number: u64) -> Result<Session> {
        let (turn, cancelled) = {
            let mut moving = self.inner.moving.lock();
            let slot = moving.entry(id).or_default();
            (slot.turn.clone(), slot.cancel.subscribe())
        };
        let busy = |_| HostError::new("move_busy", "Another stream of this node's disk is under way.");
        let turn = turn.try_lock_owned().map_err(busy)?;
        let directory = self.inner.paths.node_move(id);
        match Note::read(&directory) {
            Some(note) if note.number == number => Ok(Session { directory, note, turn, cancelled }),
            _ => Err(HostError::new("move_not_begun", "This host has not been told of that move of the node.")),
        }
    }

    /// Ends what is under way for a node, and waits for its end.
    async fn interrupt_move(&self, id: NodeId) -> OwnedMutexGuard<()> {
        let (turn, cancel) = {
            let mut moving = self.inner.moving.lock();
            let slot = moving.entry(id).or_default();
            (slot.turn.clone(), slot.cancel.clone())
        };
        cancel.send_modify(|n| *n += 1);
        turn.lock_owned().await
    }

    /// Removes what a move has left of a node.
    pub(super) async fn clear_move(&self, id: NodeId) -> Result<()> {
        let directory = self.inner.paths.node_move(id);
        if !directory.exists() {
            return Ok(());
        }
        let guard = self.interrupt_move(id).await;
        let cleared = self
            .blocking(move |inner| {
                let note = Note::read(&directory);
                let mut groups = clear(&directory)?;
                match note {
                    // The disk stays, and is now all that counts.
                    Some(note) if inner.paths.node_disk(id).exists() => {
                        if let Some(group) = note.groups.above {
                            let root = File::open(inner.paths.pool())?;
                            btrfs::limit_group(&root, group, u64::from(note.disk_mib) << 20)?;
                            groups.clear();
                        }
                    }
                    Some(note) => groups.extend(note.groups.all()),
                    None => {}
                }
                inner.pool.abandon(groups);
                // What only the copies held is the node's to use again.
                btrfs::sync_and_clean(&File::open(inner.paths.pool())?)
            })
            .await?;
        self.inner.moving.lock().remove(&id);
        drop(guard);
        cleared.map_err(|e| failed("disk_failed", "The copies of a node that moved could not be removed", &e))
    }
}

#[async_trait]
impl Moves for LinuxHost {
    async fn begin_move(&self, node: &NodePlan, number: u64) -> Result<()> {
        if !self.inner.pool.has_limits() {
            return Err(HostError::new("move_needs_btrfs", "This host keeps disks in a plain directory."));
        }
        let directory = self.inner.paths.node_move(node.id);
        if Note::read(&directory).is_some_and(|note| note.number == number) {
            return Ok(());
        }
        self.clear_move(node.id).await?;
        let disk_mib = node.size.disk_mib;
        let made = self.blocking(move |inner| {
            private_directory(&inner.paths.node_moves())?;
            private_directory(&directory)?;
            private_directory(&directory.join(IN))?;
            Note { number, disk_mib, groups: Groups::default() }.write(&directory)
        });
        made.await?.map_err(|e| failed("disk_failed", &format!("The move of node {} could not begin", node.name), &e))
    }

    async fn end_move(&self, id: NodeId) -> Result<()> {
        self.clear_move(id).await
    }

    async fn send_disk(&self, id: NodeId, number: u64, part: Part, based: bool) -> Result<OwnedFd> {
        const WHAT: &str = "The node's disk could not be sent";
        let session = self.enter_move(id, number)?;
        let directory = session.directory.clone();
        if part == Part::Last && run::look(&self.state(id)) != State::Stopped {
            return Err(HostError::new(
                "still_running",
                "The node runs; the last copy of its disk is taken after its end.",
            ));
        }
        let (mut ours, theirs) = pair().map_err(|e| failed("move_failed", WHAT, &e))?;
        let disk = self.inner.paths.node_disk(id);
        if !disk.exists() {
            // It never ran: its disk is made where it is first started.
            session.run(async move {
                let _ = courier::close(&mut ours, &Control::Complete { bytes: 0 }).await;
                courier::until_closed(&mut ours).await;
            });
            return Ok(theirs);
        }
        let copy = directory.clone();
        let taken = self.blocking(move |_| {
            // A first copy that was not taken is old by now; the last one cannot have changed.
            if part == Part::First {
                destroy(&copy, name(part))?;
            }
            if copy.join(name(part)).exists() {
                return Ok(());
            }
            btrfs::snapshot(&File::open(disk)?, &File::open(&copy)?, name(part), true)
        });
        taken.await?.map_err(|e: io::Error| failed("move_failed", WHAT, &e))?;
        let mut command = Command::new("btrfs");
        command.args(["send", "-q"]);
        if part == Part::Last && based {
            command.arg("-p").arg(directory.join(name(Part::First)));
        }
        command.arg(directory.join(name(part)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        end_with_worker(&mut command);
        let mut child = command.spawn().map_err(|e| failed("move_failed", WHAT, &e))?;
        session.run(async move {
            let last = match send(&mut child, &mut ours).await {
                Ok(bytes) => Control::Complete { bytes },
                Err(reason) => Control::Failed(reason),
            };
            let _ = courier::close(&mut ours, &last).await;
            courier::until_closed(&mut ours).await;
        });
        Ok(theirs)
    }

    async fn take_disk(&self, id: NodeId, number: u64, part: Part) -> Result<Option<OwnedFd>> {
        const WHAT: &str = "The node's disk could not be taken";
        let session = self.enter_move(id, number)?;
        let (directory, note) = (session.directory.clone(), session.note.clone());
        if marker(&directory, part).exists() {
            return Ok(None);
        }
        if self.blocking(|inner| inner.pool.is_full()).await? {
            return Err(HostError::new("out_of_space", "The pool of the host that the node was to go to is full."));
        }
        let place = directory.join(IN);
        let disk = self.inner.paths.node_disk(id);
        let cleared = self.blocking(move |inner| {
            // Of a stream that broke off.
            destroy(&place, name(part))?;
            if part == Part::Last && disk.exists() { inner.pool.remove(id).map_err(io::Error::other) } else { Ok(()) }
        });
        cleared.await?.map_err(|e| failed("move_failed", WHAT, &e))?;
        let (mut ours, theirs) = pair().map_err(|e| failed("move_failed", WHAT, &e))?;
        let host = self.clone();
        session.run(async move {
            let last = match host.take(id, &directory, note, part, &mut ours).await {
                Ok(()) => Control::Taken,
                Err(reason) => {
                    tracing::warn!(node = %id, number, code = reason.code, reason = reason.message, "a disk was not taken");
                    Control::Failed(reason)
                }
            };
            let _ = courier::close(&mut ours, &last).await;
            courier::until_closed(&mut ours).await;
        });
        Ok(Some(theirs))
    }
}

async fn send(child: &mut Child, to: &mut UnixStream) -> std::result::Result<u64, Reason> {
    const WHAT: &str = "The node's disk could not be sent";
    let Some(mut stdout) = child.stdout.take() else { return Err(Reason::new("move_failed", WHAT)) };
    let sent = courier::pack(&mut stdout, to).await.map_err(|e| broken(WHAT, &e))?;
    let said = complaint(child).await;
    let status = child.wait().await.map_err(|e| broken(WHAT, &e))?;
    if status.success() { Ok(sent) } else { Err(Reason::new("move_failed", format!("{WHAT}: {said}"))) }
}

impl LinuxHost {
    /// Takes one part to its end, and where it is the last, makes it the node's disk.
    async fn take(
        &self,
        id: NodeId,
        directory: &Path,
        mut note: Note,
        part: Part,
        from: &mut UnixStream,
    ) -> std::result::Result<(), Reason> {
        const WHAT: &str = "The node's disk could not be taken";
        let place = directory.join(IN);
        let mut command = Command::new("btrfs");
        // It sees nothing but an empty directory, and ends where the stream says so.
        command.args(["receive", "-q", "-C", "-e"]).arg(&place);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        end_with_worker(&mut command);
        let mut child = command.spawn().map_err(|e| broken(WHAT, &e))?;
        let Some(mut stdin) = child.stdin.take() else { return Err(Reason::new("move_failed", WHAT)) };
        // Twice the disk: what was overwritten between the copies counts in both. The group below is what really holds.
        let bytes = u64::from(note.disk_mib) << 20;
        let mut counted = false;
        let came = {
            let (pool, note, subvolume) = (&self.inner.pool, &mut note, place.join(name(part)));
            let each = || {
                if !counted && subvolume.exists() {
                    counted = true;
                    pool.count(&subvolume, &mut note.groups, bytes * 2)?;
                    note.write(directory)?;
                }
                Ok(())
            };
            courier::unpack(from, &mut stdin, bytes * 3 + (256 << 20), each).await
        };
        let _ = stdin.shutdown().await;
        drop(stdin);
        let came = match came {
            Ok(came) => came,
            Err(TakeError::Write(error)) => {
                // The program says better than a closed pipe what was wrong.
                let said = complaint(&mut child).await;
                let what = if said.is_empty() { error.to_string() } else { said };
                return Err(refused(&what));
            }
            Err(TakeError::Sender(reason)) => return Err(reason),
            Err(error) => return Err(broken(WHAT, &error)),
        };
        if came > 0 {
            let said = complaint(&mut child).await;
            if !child.wait().await.map_err(|e| broken(WHAT, &e))?.success() {
                return Err(refused(&said));
            }
        }
        let (at, place, number) = (directory.to_path_buf(), place.clone(), note.number);
        let kept = self.blocking(move |inner| {
            if came > 0 {
                let subvolume = place.join(name(part));
                // Small ones are over before anybody looked.
                inner.pool.count(&subvolume, &mut note.groups, bytes * 2)?;
                note.write(&at)?;
                if part == Part::Last {
                    inner.pool.adopt(id, &subvolume, &mut note.groups, bytes)?;
                    note.write(&at)?;
                }
            }
            // On disk before anybody hears of it: the other copy may go then.
            let root = File::open(inner.paths.pool())?;
            sys::syncfs(root.as_fd())?;
            fs::write(marker(&at, part), "")?;
            sys::syncfs(root.as_fd())
        });
        let kept = kept.await.map_err(|HostError(reason)| reason)?;
        kept.map_err(|e| failed("move_failed", WHAT, &e).0)?;
        tracing::info!(node = %id, number, part = name(part), bytes = came, "took a disk");
        Ok(())
    }
}

/// What `btrfs receive` said when it gave up.
fn refused(said: &str) -> Reason {
    if said.contains("No space left") || said.contains("quota exceeded") {
        return Reason::new("out_of_space", "The node's disk did not fit into the host that it was to go to.");
    }
    Reason::new("move_failed", format!("The node's disk could not be taken: {said}"))
}

/// A stream that was let in. It is the only one of its node for as long as this is there.
struct Session {
    directory: PathBuf,
    note: Note,
    turn: OwnedMutexGuard<()>,
    cancelled: watch::Receiver<u64>,
}

impl Session {
    /// Runs to the end of the work, or until somebody interrupts it.
    fn run(self, work: impl Future<Output = ()> + Send + 'static) {
        let Self { turn, mut cancelled, .. } = self;
        tokio::spawn(async move {
            tokio::select! {
                () = work => {}
                _ = cancelled.changed() => {}
            }
            drop(turn);
        });
    }
}

/// Of one node: who may stream now, and a way to end that.
pub struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    cancel: watch::Sender<u64>,
}

impl Default for Slot {
    fn default() -> Self {
        Self { turn: Arc::default(), cancel: watch::Sender::new(0) }
    }
}
