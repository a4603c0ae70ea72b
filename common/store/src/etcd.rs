//! etcd behind the [`Store`] trait.
//!
//! Unary calls recover by themselves after a member restarts; a watch ends, and the caller lists again (see `mirror`).
//! Every call has a deadline, because a channel without a reachable member would wait for ever.

use async_trait::async_trait;
use docklet_types::paths::IdentityFiles;
use etcd_client as api;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{
    Compare, Entry, Event, Keeper, LeaseId, Listing, Outcome, Result, Revisions, Store, StoreError, Txn, Watch, Write,
};

/// How long one call may take before the store counts as unreachable.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long etcd may leave a connection without any answer. One that is merely behind must not be given all watches and
/// leases to open anew as well.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);
/// What etcd says where somebody's rights changed while a call was under way: the same call works.
const RIGHTS_CHANGED: &str = "revision of auth store is old";
/// What the client says where it found no connection to the member that it chose: nothing was sent, and another member
/// may take the call.
const NOT_CONNECTED: &str = "tcp connect error";
/// What a member says that knows no leader. It does not even pass the call on.
pub(crate) const NO_LEADER: &str = "etcdserver: no leader";
/// Entries in one answer with values.
const PAGE: usize = 1000;
/// Keys in one answer without.
const KEYS_PAGE: i64 = 20_000;
/// What is taken in one answer. A watch that is behind is told of up to a thousand revisions at once, and a page may hold
/// large documents; gRPC's own limit of 4 MiB would end either for ever.
const MAX_MESSAGE: usize = i32::MAX as usize;

/// Where the members are and how to prove who we are.
#[derive(Debug, Clone)]
pub struct EtcdAddress {
    /// `host:port` each.
    pub members: Vec<String>,
    /// Plain HTTP where absent.
    pub identity: Option<IdentityFiles>,
}

impl EtcdAddress {
    /// The members, with these certificates if there is an authority. Ask again after a failure: the master of this
    /// machine may just be making them.
    #[must_use]
    pub fn new(members: &[String], identity: IdentityFiles) -> Self {
        let identity = identity.authority.exists().then_some(identity);
        Self { members: members.to_vec(), identity }
    }
}

/// Why etcd cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read the etcd certificate {path}")]
    Certificate {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot set up the connection to etcd")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// See the module.
#[derive(Clone)]
pub struct EtcdStore {
    pub(crate) client: api::Client,
}

impl EtcdStore {
    /// Sets up the connection; members are reached with the first call.
    ///
    /// # Errors
    /// Where a certificate cannot be read or is none.
    pub async fn connect(address: &EtcdAddress) -> std::result::Result<Self, ConnectError> {
        let mut options = api::ConnectOptions::new()
            .with_require_leader(true)
            .with_connect_timeout(Duration::from_secs(2))
            .with_keep_alive(Duration::from_secs(5), ANSWERS_WITHIN)
            .with_keep_alive_while_idle(true);
        if let Some(files) = &address.identity {
            let tls = api::TlsOptions::new()
                .ca_certificate(api::Certificate::from_pem(read_file(&files.authority)?))
                .identity(api::Identity::from_pem(read_file(&files.certificate)?, read_file(&files.key)?));
            options = options.with_tls(tls);
        }
        let client = api::Client::connect(&address.members, Some(options))
            .await
            .map_err(|e| ConnectError::Setup(Box::new(e)))?;
        Ok(Self { client })
    }

    /// Whether a member answers a linearised read, that is, whether there is a quorum.
    pub async fn is_healthy(&self) -> bool {
        self.get("/docklet/health").await.is_ok()
    }
}

fn read_file(path: &Path) -> std::result::Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::Certificate { path: path.to_owned(), source })
}

/// Sorts an error into "may work later" and "will not".
fn sorted(action: &'static str, error: api::Error) -> StoreError {
    let refused = match &error {
        // gRPC codes: invalid argument 3, not found 5, permission denied 7, failed precondition 9, out of range 11, unauthenticated 16.
        api::Error::GRpcStatus(status) if status.message().contains(RIGHTS_CHANGED) => false,
        api::Error::GRpcStatus(status) => matches!(status.code() as i32, 3 | 5 | 7 | 9 | 11 | 16),
        api::Error::InvalidArgs(_) => true,
        _ => false,
    };
    if refused {
        StoreError::Refused { action, source: Box::new(error) }
    } else {
        StoreError::Unavailable { action, source: Some(Box::new(error)) }
    }
}

/// Whether etcd has done nothing and the same call may work at once: somebody's rights changed meanwhile, or the member
/// that was chosen is down.
fn is_passing(error: &StoreError) -> bool {
    let StoreError::Unavailable { source: Some(source), .. } = error else { return false };
    let said = source.to_string();
    said.contains(RIGHTS_CHANGED) || said.contains(NOT_CONNECTED)
}

/// Whether an error of this text means that etcd has done nothing and never will.
pub(crate) fn means_no_effect(said: &str) -> bool {
    [RIGHTS_CHANGED, NOT_CONNECTED, NO_LEADER].iter().any(|text| said.contains(text))
}

/// Repeats a call where etcd has done nothing and may do it at once.
pub(crate) async fn steady<T, F: Future<Output = Result<T>>>(mut call: impl FnMut() -> F) -> Result<T> {
    for _ in 0..20 {
        match call().await {
            Err(error) if is_passing(&error) => tokio::time::sleep(Duration::from_millis(10)).await,
            other => return other,
        }
    }
    call().await
}

pub(crate) async fn within<T>(
    action: &'static str,
    call: impl Future<Output = std::result::Result<T, api::Error>>,
) -> Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(|e| sorted(action, e)),
        Err(_) => Err(StoreError::Unavailable { action, source: None }),
    }
}

fn entry(kv: &api::KeyValue) -> Entry {
    Entry {
        key: String::from_utf8_lossy(kv.key()).into_owned(),
        value: kv.value().to_vec(),
        revision: kv.mod_revision(),
    }
}

/// The first key after all that start with `prefix`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key that comes after this one.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

fn revision_of(answer: &api::GetResponse) -> i64 {
    answer.header().map_or(0, api::ResponseHeader::revision)
}

fn key_of(kv: &api::KeyValue) -> (String, i64) {
    (String::from_utf8_lossy(kv.key()).into_owned(), kv.mod_revision())
}

impl EtcdStore {
    async fn range(&self, from: &[u8], end: &[u8], options: api::GetOptions) -> Result<api::GetResponse> {
        let options = options.with_range(end);
        let page = || {
            let (mut client, options) = (self.kv(), options.clone());
            async move { within("list keys", client.get(from, Some(options))).await }
        };
        steady(page).await
    }

    /// All keys of a range as of a revision.
    async fn keys_from(&self, from: &[u8], end: &[u8], revision: i64) -> Result<Vec<(String, i64)>> {
        let (mut from, mut keys) = (from.to_vec(), Vec::new());
        loop {
            let options = api::GetOptions::new().with_limit(KEYS_PAGE).with_keys_only().with_revision(revision);
            let page = self.range(&from, end, options).await?;
            keys.extend(page.kvs().iter().map(key_of));
            match page.kvs().last() {
                Some(last) if page.more() => from = after(last.key()),
                _ => return Ok(keys),
            }
        }
    }

    fn kv(&self) -> api::KvClient {
        self.client.kv_client().max_decoding_message_size(MAX_MESSAGE)
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let read = || {
            let mut client = self.kv();
            async move { within("read a key", client.get(key, None)).await }
        };
        Ok(steady(read).await?.kvs().first().map(entry))
    }

    async fn list(&self, prefix: &str) -> Result<Listing> {
        let end = prefix_end(prefix);
        let options = api::GetOptions::new().with_limit(PAGE as i64);
        let first = self.range(prefix.as_bytes(), &end, options).await?;
        let revision = revision_of(&first);
        let mut entries: Vec<Entry> = first.kvs().iter().map(entry).collect();
        let Some(last) = first.kvs().last().filter(|_| first.more()) else {
            return Ok(Listing { entries, revision });
        };
        // etcd walks over all keys up to the end of what is asked for, whatever the limit: where there are many pages, each
        // must say where it ends.
        let keys = self.keys_from(&after(last.key()), &end, revision).await?;
        for page in keys.chunks(PAGE) {
            let [(from, _), ..] = page else { continue };
            let to = after(page[page.len() - 1].0.as_bytes());
            let options = api::GetOptions::new().with_revision(revision);
            entries.extend(self.range(from.as_bytes(), &to, options).await?.kvs().iter().map(entry));
        }
        Ok(Listing { entries, revision })
    }

    async fn revisions(&self, prefix: &str) -> Result<Revisions> {
        let end = prefix_end(prefix);
        let options = api::GetOptions::new().with_limit(KEYS_PAGE).with_keys_only();
        let first = self.range(prefix.as_bytes(), &end, options).await?;
        let revision = revision_of(&first);
        let mut keys: Vec<(String, i64)> = first.kvs().iter().map(key_of).collect();
        if let Some(last) = first.kvs().last().filter(|_| first.more()) {
            keys.extend(self.keys_from(&after(last.key()), &end, revision).await?);
        }
        Ok(Revisions { keys, revision })
    }

    async fn txn(&self, txn: Txn) -> Result<Outcome> {
        let compares: Vec<api::Compare> = txn
            .compares
            .into_iter()
            .map(|compare| match compare {
                Compare::Absent { key } => api::Compare::version(key, api::CompareOp::Equal, 0),
                Compare::Unchanged { key, revision } => {
                    api::Compare::mod_revision(key, api::CompareOp::Equal, revision)
                }
            })
            .collect();
        let writes: Vec<api::TxnOp> = txn
            .writes
            .into_iter()
            .map(|write| match write {
                Write::Put { key, value, lease } => {
                    let options = lease.map(|l| api::PutOptions::new().with_lease(l.0));
                    api::TxnOp::put(key, value, options)
                }
                Write::Delete { key } => api::TxnOp::delete(key, None),
            })
            .collect();
        let txn = api::Txn::new().when(compares).and_then(writes);
        let commit = || {
            let (mut client, txn) = (self.kv(), txn.clone());
            async move { within("commit a transaction", client.txn(txn)).await }
        };
        let answer = steady(commit).await?;
        if answer.succeeded() {
            Ok(Outcome::Committed { revision: answer.header().map_or(0, api::ResponseHeader::revision) })
        } else {
            Ok(Outcome::Conflict)
        }
    }

    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>> {
        let mut client = self.client.watch_client().max_decoding_message_size(MAX_MESSAGE);
        let options = api::WatchOptions::new().with_prefix().with_start_revision(revision);
        let stream = within("watch keys", client.watch(prefix, Some(options))).await?;
        Ok(Box::new(EtcdWatch { stream }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let answer = within("grant a lease", self.client.lease_client().grant(seconds, None)).await?;
        Ok(LeaseId(answer.id()))
    }

    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>> {
        Ok(Box::new(EtcdKeeper { client: self.client.lease_client(), lease, stream: None }))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let mut client = self.client.lease_client();
        match within("revoke a lease", client.revoke(lease.0)).await {
            // Already gone.
            Err(StoreError::Refused { .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// One stream for as long as the lease is kept: opening one is most of what a sign of life costs etcd, and thousands of
/// hosts give one every few seconds.
struct EtcdKeeper {
    client: api::LeaseClient,
    lease: LeaseId,
    stream: Option<(api::LeaseKeeper, api::LeaseKeepAliveStream)>,
}

impl EtcdKeeper {
    async fn sign(&mut self) -> std::result::Result<bool, api::Error> {
        let Some((sender, answers)) = &mut self.stream else {
            // The first sign and its answer come with the stream; a lease that is gone is told as this error.
            return match self.client.keep_alive(self.lease.0).await {
                Err(api::Error::LeaseKeepAliveError(_)) => Ok(false),
                opened => {
                    self.stream = Some(opened?);
                    Ok(true)
                }
            };
        };
        sender.keep_alive().await?;
        match answers.message().await? {
            Some(answer) => Ok(answer.ttl() > 0),
            None => Err(api::Error::LeaseKeepAliveError("the stream has ended".to_owned())),
        }
    }
}

#[async_trait]
impl Keeper for EtcdKeeper {
    async fn beat(&mut self) -> Result<bool> {
        within("keep a lease", self.sign()).await
    }
}

struct EtcdWatch {
    stream: api::WatchStream,
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Vec<Event>> {
        loop {
            let message = match self.stream.message().await {
                Ok(Some(message)) if !message.canceled() => message,
                _ => return Err(StoreError::WatchEnded),
            };
            let events: Vec<Event> = message
                .events()
                .iter()
                .filter_map(|event| {
                    let kv = event.kv()?;
                    Some(match event.event_type() {
                        api::EventType::Put => Event::Put(entry(kv)),
                        api::EventType::Delete => Event::Delete {
                            key: String::from_utf8_lossy(kv.key()).into_owned(),
                            revision: kv.mod_revision(),
                        },
                    })
                })
                .collect();
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }
}
