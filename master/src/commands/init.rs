//! `docklet-master init`: a new system. It looks first and acts after, and never leaves nodes without a record of them.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docklet_daemon::Program;
use docklet_daemon::config::Loaded;
use docklet_master_db::users::CreateUserError;
use docklet_master_db::{Db, DbError};
use docklet_store::etcd::{ConnectError, EtcdStore};
use docklet_store::keys::{Key, Keys};
use docklet_store::{Store, StoreError, Txn};
use docklet_types::config::Config;
use docklet_types::join::overlap;
use docklet_types::name::{HostName, UserName};
use docklet_types::paths::Paths;
use docklet_types::spec::VclusterSpec;
use docklet_types::time::Micros;
use docklet_types::view::Role;
use rand::TryRngCore as _;

use super::run::{RunError, listen, open_database, runtime};
use super::{Failure, Outcome, running, start};
use crate::app::{masters, share};
use crate::auth::passwords::{HashError, Password, hash_now};
use crate::etcd::{EtcdError, LocalEtcd};

/// The first account.
const ROOT: &str = "root";
/// Letters of generated passwords: none that looks like another. 32 of them, five bits each.
const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz23456789A";
/// 100 bits.
const PASSWORD_LENGTH: usize = 20;
/// Keys deleted in one transaction.
const BATCH: usize = 100;

/// Why there is no new system.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("it runs (process {0}); stop it first: docklet-master stop")]
    Running(i32),
    #[error(
        "there is already a system in {0}; `docklet-master start` starts it. `init --force` throws away its accounts, sessions and history, but for accounts that other sites use"
    )]
    Exists(String),
    #[error(
        "the database of DATABASE_URL has accounts and does not say of which site. They may be another site's that runs: start a \
         master of this version there first. Where nothing uses them any more, give this site an empty database"
    )]
    Whose,
    #[error("other masters of it run: {}. Stop them first (docklet-master stop, there)", .0.iter().map(HostName::as_str).collect::<Vec<_>>().join(", "))]
    OtherMasters(Vec<HostName>),
    #[error(
        "the system that is there still has {}: {}. Their nodes would be left without a record. Delete them first \
         (docklet delete, as root with --owner), then try again",
        if .0.len() == 1 { "a vcluster".to_owned() } else { format!("{} vclusters", .0.len()) },
        .0.join(", ")
    )]
    HasVclusters(Vec<String>),
    #[error(
        "hosts still hold nodes of deleted vclusters ({plans} plans). Let their workers finish (docklet-worker start), then try again"
    )]
    HasPlans { plans: usize },
    #[error("{0}")]
    Overlap(String),
    #[error("this machine does not tell what networks it is connected to")]
    Networks(#[source] io::Error),
    #[error("cannot tell whether the system that is there still has vclusters")]
    Unknown(#[source] EtcdError),
    #[error(transparent)]
    Run(RunError),
    #[error(transparent)]
    Etcd(EtcdError),
    #[error("cannot connect to etcd")]
    Connect(#[source] ConnectError),
    #[error("the cluster's store cannot be read or written")]
    Store(#[source] StoreError),
    #[error("cannot make {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("the operating system gives no randomness")]
    Randomness(#[source] rand::rand_core::OsError),
    #[error("the password of root cannot be hashed")]
    Hash(#[source] HashError),
    #[error("the account root cannot be made")]
    Account(#[source] CreateUserError),
    #[error("the accounts cannot be read or removed")]
    Accounts(#[source] DbError),
}

pub(super) fn init(program: &Program, loaded: &Loaded, paths: &Paths, force: bool) -> Outcome {
    let runtime = runtime().map_err(|e| Failure::of(&e))?;
    if !force {
        // Before anything else: the most frequent reason, with the most useful answer.
        runtime.block_on(refuse_existing(&loaded.config, paths)).map_err(|e| Failure::of(&e))?;
    }
    if let Some(pid) = running(program)? {
        return Err(Failure::of(&InitError::Running(pid)));
    }
    let made = runtime.block_on(set_up(&loaded.config, paths)).map_err(|e| Failure::of(&e))?;
    drop(runtime);
    let started = start(program, loaded)?;
    Ok(if made {
        format!("{started}\nSign in as {ROOT}; the password is in {}", paths.generated_password().display())
    } else {
        format!("{started}\nThe accounts of the database are there already; sign in with one of them")
    })
}

/// Whether somebody was ever able to sign in here.
async fn exists(config: &Config, paths: &Paths) -> Result<bool, InitError> {
    if config.database_url.is_none() && !paths.database().exists() {
        return Ok(false);
    }
    let db = open_database(config, paths).await.map_err(InitError::Run)?;
    let there = is_there(&db, config).await.map_err(InitError::Accounts);
    db.close().await;
    there
}

/// Whether the accounts are this site's already, and not only those of others that it is to share.
async fn is_there(db: &Db, config: &Config) -> Result<bool, DbError> {
    let sites = db.sites().await?;
    let ours = sites.is_empty() || sites.iter().any(|site| site == config.cluster_name.as_str());
    Ok(ours && !db.users().await?.is_empty())
}

/// A database that others may share and that no master of this version has used yet: nobody can tell whose accounts it has.
async fn refuse_unknown(config: &Config, paths: &Paths) -> Result<(), InitError> {
    if config.sites.0.is_empty() {
        return Ok(());
    }
    let db = open_database(config, paths).await.map_err(InitError::Run)?;
    let unknown = async { Ok(db.sites().await?.is_empty() && !db.users().await?.is_empty()) };
    let unknown = unknown.await.map_err(InitError::Accounts);
    db.close().await;
    if unknown? { Err(InitError::Whose) } else { Ok(()) }
}

async fn refuse_existing(config: &Config, paths: &Paths) -> Result<(), InitError> {
    if exists(config, paths).await? { Err(InitError::Exists(place(config, paths))) } else { Ok(()) }
}

/// Where the accounts are, for people.
fn place(config: &Config, paths: &Paths) -> String {
    match config.database_url {
        Some(_) => "the database of DATABASE_URL".to_owned(),
        None => paths.prefix().display().to_string(),
    }
}

async fn set_up(config: &Config, paths: &Paths) -> Result<bool, InitError> {
    // Everything that can stand in the way is looked at before anything is changed.
    refuse_unknown(config, paths).await?;
    let there = exists(config, paths).await?;
    let networks = docklet_daemon::networks::connected().map_err(InitError::Networks)?;
    if let Some(message) = overlap(&networks, config.cluster_net) {
        return Err(InitError::Overlap(message));
    }
    drop(listen(config).map_err(InitError::Run)?);
    make_directories(paths)?;
    share::mark(paths, &config.cluster_name)
        .map_err(|source| InitError::Write { path: paths.shared_marker(), source })?;
    let etcd =
        LocalEtcd::ensure(config, paths).await.map_err(if there { InitError::Unknown } else { InitError::Etcd })?;
    let done = with_etcd(config, paths, &etcd, there).await;
    // `run` starts it again as its own child.
    etcd.stop().await;
    done
}

async fn with_etcd(config: &Config, paths: &Paths, etcd: &LocalEtcd, there: bool) -> Result<bool, InitError> {
    let store: Arc<dyn Store> = Arc::new(EtcdStore::connect(etcd.address()).await.map_err(InitError::Connect)?);
    let keys = Keys::new(&config.cluster_name);
    let here = docklet_daemon::config::host_name(config.host_name.as_ref());
    let others = masters::others(store.as_ref(), &keys, &here).await.map_err(InitError::Store)?;
    if !others.is_empty() {
        return Err(InitError::OtherMasters(others));
    }
    refuse_with_vclusters(store.as_ref(), &keys).await?;
    forget_leftovers(store.as_ref(), &keys).await?;
    if there {
        forget_accounts(config, paths).await?;
    }
    make_root(config, paths).await
}

/// A vcluster without its accounts and history would be nodes that nobody can reach or delete.
async fn refuse_with_vclusters(store: &dyn Store, keys: &Keys) -> Result<(), InitError> {
    let listing = store.list(keys.root()).await.map_err(InitError::Store)?;
    let (mut names, mut plans) = (Vec::new(), 0);
    for entry in &listing.entries {
        match keys.read(&entry.key) {
            Some(Key::Spec(id)) => names.push(match serde_json::from_slice::<VclusterSpec>(&entry.value) {
                Ok(spec) => format!("{}/{}", spec.owner, spec.name),
                Err(_) => id.to_string(),
            }),
            Some(Key::NodePlan(..) | Key::VclusterPlan(..)) => plans += 1,
            _ => {}
        }
    }
    names.sort();
    match (names.is_empty(), plans) {
        (false, _) => Err(InitError::HasVclusters(names)),
        (true, 1..) => Err(InitError::HasPlans { plans }),
        (true, 0) => Ok(()),
    }
}

/// What an earlier system left and no vcluster needs: names, sums, counters. What hosts say of themselves stays.
async fn forget_leftovers(store: &dyn Store, keys: &Keys) -> Result<(), InitError> {
    let listing = store.list(keys.root()).await.map_err(InitError::Store)?;
    let old: Vec<&str> = listing
        .entries
        .iter()
        .filter(|entry| {
            matches!(
                keys.read(&entry.key),
                Some(Key::Name(..) | Key::Usage(_) | Key::Network(_) | Key::VclusterAlloc(_) | Key::Maintenance)
            )
        })
        .map(|entry| entry.key.as_str())
        .collect();
    for batch in old.chunks(BATCH) {
        let txn = batch.iter().fold(Txn::new(), |txn, key| txn.delete(*key));
        store.txn(txn).await.map_err(InitError::Store)?;
    }
    Ok(())
}

fn make_directories(paths: &Paths) -> Result<(), InitError> {
    let wanted = [
        (paths.local(), 0o755),
        (paths.run(), 0o755),
        (paths.local().join("log"), 0o755),
        (paths.global(), 0o755),
        (paths.images(), 0o755),
        (paths.global().join("users"), 0o711),
    ];
    for (path, mode) in wanted {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(|source| InitError::Directory { path, source })?;
    }
    Ok(())
}

/// Removes all accounts one by one: the counter of id blocks goes on, so that no new user owns an old one's files. Those
/// that other sites use, too, stay.
async fn forget_accounts(config: &Config, paths: &Paths) -> Result<(), InitError> {
    let db = open_database(config, paths).await.map_err(InitError::Run)?;
    let db = db.at_site(&config.cluster_name).await.map_err(InitError::Accounts)?;
    let shared = db.sites().await.map_err(InitError::Accounts)?.len() > 1;
    db.forget_site().await.map_err(InitError::Accounts)?;
    for user in db.users().await.map_err(InitError::Accounts)? {
        set_data_aside(paths, &user.name, &user.id.to_string())?;
        if !shared {
            db.remove_user(user.id, &user.name).await.map_err(InitError::Accounts)?;
        }
    }
    db.close().await;
    remove(&paths.generated_password())
}

/// Files are not deleted, but a later user of the same name must not find them.
fn set_data_aside(paths: &Paths, name: &UserName, id: &str) -> Result<(), InitError> {
    let data = paths.user_data(name);
    let Some(home) = data.parent() else { return Ok(()) };
    match std::fs::rename(home, home.with_file_name(format!(".removed-{name}-{id}-{}", Micros::now().0))) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(InitError::Write { path: home.to_owned(), source: e }),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> Result<(), InitError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(InitError::Remove { path: path.to_owned(), source: e }),
        _ => Ok(()),
    }
}

fn generate() -> Result<String, InitError> {
    let mut bytes = [0u8; PASSWORD_LENGTH];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(InitError::Randomness)?;
    Ok(bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect())
}

/// Makes the first account, unless other sites share theirs; whether it did. The password is in its file before the account
/// is there, so that an account without a known password cannot be.
async fn make_root(config: &Config, paths: &Paths) -> Result<bool, InitError> {
    let db = open_database(config, paths).await.map_err(InitError::Run)?;
    let there = async { Ok(!db.at_site(&config.cluster_name).await?.users().await?.is_empty()) };
    let there = there.await.map_err(InitError::Accounts);
    db.close().await;
    if there? {
        return Ok(false);
    }
    let text = generate()?;
    let password = Password::parse(&text).map_err(|_| InitError::Hash(HashError::Failed))?;
    let hash = hash_now(&password).map_err(InitError::Hash)?;
    write_secret(&paths.generated_password(), &text)?;
    let name: UserName = ROOT.parse().map_err(|_| InitError::Hash(HashError::Failed))?;
    let db = open_database(config, paths).await.map_err(InitError::Run)?;
    let made = db.create_user(&name, &hash, Role::Admin, Micros::now()).await;
    db.close().await;
    match made {
        Ok(_) => Ok(true),
        // Another master was set up at the same moment: its password is the right one.
        Err(CreateUserError::Taken) => {
            remove(&paths.generated_password())?;
            Err(InitError::Exists(place(config, paths)))
        }
        Err(error) => Err(InitError::Account(error)),
    }
}

fn write_secret(path: &Path, text: &str) -> Result<(), InitError> {
    remove(path)?;
    let write = || {
        // Made anew, so that no earlier file's permissions or readers count.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()
    };
    write().map_err(|source| InitError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn generated_passwords_are_good_ones() {
        let (one, two) = (generate().unwrap(), generate().unwrap());
        assert_eq!(one.len(), PASSWORD_LENGTH);
        assert_ne!(one, two);
        assert!(Password::parse(&one).is_ok());
    }

    #[test]
    fn the_password_file_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "old").unwrap();
        write_secret(&file, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new\n");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
