//! A new vcluster: parsed, admitted, written in one transaction.

use docklet_daemon::fail;
use docklet_master_db::DbError;
use docklet_master_db::operations::NewOperation;
use docklet_master_db::users::User;
use docklet_master_plan::admit::{self, Refusal};
use docklet_master_plan::cluster::Rev;
use docklet_master_plan::place::{self, Fit};
use docklet_master_plan::warm::{self, Asked};
use docklet_store::keys::Key;
use docklet_store::{Compare, Outcome, StoreError, Txn};
use docklet_types::id::{NodeId, OperationId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::label::{self, Labels};
use docklet_types::name::{ImageName, NodeName, UserName, VclusterName};
use docklet_types::rate::RateLimits;
use docklet_types::report::Reason;
use docklet_types::size::{Cpu, Size};
use docklet_types::spec::{NodeSpec, Usage, VclusterKeys, VclusterSpec, Wanted};
use docklet_types::time::Micros;
use docklet_types::view::{CreateVcluster, Role, SizeRequest, VclusterView};
use uuid::Uuid;

use super::Settings;
use super::images::ImageError;
use super::keys::{self, KeyError};
use super::maintenance::UnderMaintenance;
use super::vclusters::Vclusters;
use crate::http::problem::sentence;

/// Tries until a conflict is told to the client.
pub(super) const TRIES: usize = 50;

/// A field of a request that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FieldError {
    pub field: &'static str,
    pub message: String,
}

impl FieldError {
    pub(crate) fn new(field: &'static str, message: impl ToString) -> Self {
        Self { field, message: message.to_string() }
    }
}

/// Why there is no new vcluster.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error(transparent)]
    Field(FieldError),
    #[error("there is no image {0}")]
    UnknownImage(ImageName),
    #[error("the image cannot be read")]
    Image(#[source] ImageError),
    #[error(transparent)]
    Refused(Refusal),
    /// `deleting`: the old one of that name is on its way out.
    #[error("there is already a vcluster of that name")]
    NameTaken { deleting: bool },
    #[error("there is no user of that name")]
    NoSuchUser,
    #[error("the account is disabled")]
    Disabled,
    #[error(transparent)]
    UnderMaintenance(UnderMaintenance),
    #[error("its keys cannot be made")]
    Keys(#[source] KeyError),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
    #[error("the database does not answer")]
    Db(#[source] DbError),
}

/// A request to create, understood.
#[derive(Debug, Clone, PartialEq)]
pub struct NewVcluster {
    pub name: VclusterName,
    pub nodes: u32,
    pub image: ImageName,
    pub size: Size,
    pub host_labels: Labels,
}

/// # Errors
/// The first part of the size that is wrong.
pub fn size(request: Option<SizeRequest>, default: Size) -> Result<Size, FieldError> {
    let request = request.unwrap_or_default();
    let number = |field: &'static str, value: Option<i64>, default: u32, message: &str| match value {
        None => Ok(default),
        Some(value) => u32::try_from(value).map_err(|_| FieldError::new(field, message)),
    };
    let cpu = match request.cpu {
        None => default.cpu,
        Some(cpu) => Cpu::try_from(cpu).map_err(|e| FieldError::new(e.field(), e))?,
    };
    let size = Size {
        cpu,
        memory_mib: number(
            "size.memory_mib",
            request.memory_mib,
            default.memory_mib,
            "memory_mib is from 32 to 16777216 MiB",
        )?,
        disk_mib: number("size.disk_mib", request.disk_mib, default.disk_mib, "disk_mib is from 64 to 1073741824 MiB")?,
    };
    size.checked().map_err(|e| FieldError::new(e.field(), e))
}

impl NewVcluster {
    /// Turns the request's texts into what they mean, with the operator's defaults for what is left out.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(request: &CreateVcluster, settings: &Settings) -> Result<Self, CreateError> {
        let name = request.name.parse().map_err(|e| CreateError::Field(FieldError::new("name", e)))?;
        let nodes = admit::node_count(request.nodes).map_err(CreateError::Refused)?;
        let image = match request.image.as_deref() {
            None => settings.default_image.clone(),
            Some(text) => text.parse().map_err(|e| CreateError::Field(FieldError::new("image", e)))?,
        };
        let size = size(request.size, settings.default_size).map_err(CreateError::Field)?;
        let host_labels = label::parse(&request.host_labels);
        let host_labels = host_labels.map_err(|e| CreateError::Field(FieldError::new("host_labels", e)))?;
        Ok(Self { name, nodes, image, size, host_labels })
    }
}

pub(super) fn new_node(name: NodeName, image: &ImageRef, size: Size) -> NodeSpec {
    NodeSpec { id: NodeId::from_uuid(Uuid::new_v4()), name, image: image.clone(), size, attempt: 1 }
}

impl Vclusters {
    /// Writes a vcluster that is wanted running. `id` may come from an `Idempotency-Key`, so that a repetition after a
    /// crash finds its own earlier work.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub async fn create(
        &self,
        actor: &UserName,
        owner: &UserName,
        new: NewVcluster,
        id: Option<VclusterId>,
    ) -> Result<VclusterView, CreateError> {
        self.may_begin(actor).await.map_err(CreateError::Db)?.map_err(CreateError::UnderMaintenance)?;
        let id = id.unwrap_or_else(|| VclusterId::from_uuid(Uuid::now_v7()));
        let image = self.images.find(new.image.clone()).await.map_err(|e| match e {
            ImageError::Unknown(name) => CreateError::UnknownImage(name),
            other => CreateError::Image(other),
        })?;
        self.view
            .read(|cluster| {
                admit::fits_some_host(cluster, new.size)?;
                admit::fits_network(&self.settings.policy, None, new.nodes)
            })
            .map_err(CreateError::Refused)?;
        let keys = keys::generate(owner).map_err(CreateError::Keys)?;
        let now = Micros::now();
        let operation = OperationId::from_uuid(Uuid::now_v7());
        let nodes = (1..=new.nodes).map(|n| new_node(NodeName::numbered(n), &image, new.size)).collect();
        let draft = Draft { id, operation, new, image, nodes, keys, now };
        self.write_new(actor, owner, draft).await
    }

    /// Whether such a vcluster would be admitted and find room now. Nothing is reserved.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn what_if(&self, owner: &UserName, new: &NewVcluster) -> Result<Fit, CreateError> {
        let user = self.owner(owner).await?;
        let cap = (user.role == Role::User).then_some(&self.settings.user_cap);
        let (fit, refusal) = self.view.read(|cluster| {
            let used = cluster.usage(owner).map_or_else(Usage::default, |u| *u.value);
            let refusal = admit::within_cap(cap, used, used.plus(Usage::of_size(new.nodes, new.size)))
                .and_then(|()| admit::fits_some_host(cluster, new.size))
                .and_then(|()| admit::fits_network(&self.settings.policy, None, new.nodes));
            let fit = place::what_if(cluster, &self.settings.policy, &new.host_labels, new.size, new.nodes);
            (fit, refusal.err())
        });
        Ok(match refusal {
            // Placement's own reason only says what could be waited for.
            Some(refusal) => {
                let code = if refusal.is_quota() { "over_quota" } else { "invalid" };
                Fit { reason: Some(Reason::new(code, sentence(&refusal))), more: 0, ..fit }
            }
            None => fit,
        })
    }

    async fn write_new(&self, actor: &UserName, owner: &UserName, draft: Draft) -> Result<VclusterView, CreateError> {
        let usage_key = self.keys.write(&Key::Usage(owner.clone()));
        let name_key = self.keys.write(&Key::Name(owner.clone(), draft.new.name.clone()));
        let mut usage = self.view.read(|cluster| cluster.usage(owner).map(|u| (*u.value, u.revision)));
        let mut noted = false;
        let mut cold = false;
        // Before the account is read: another site that removes it looks here afterwards.
        self.db.note_presence(owner).await.map_err(CreateError::Db)?;
        for _ in 0..TRIES {
            // After the guard was read: whoever disables or removes the account writes the guard last.
            let user = self.owner(owner).await?;
            let already = match self.already(owner, &draft) {
                // It may be gone, as another master has shown.
                Err(_) => {
                    self.catch_up(owner).await.map_err(CreateError::Store)?;
                    self.already(owner, &draft)?
                }
                Ok(already) => already,
            };
            if let Some(view) = already {
                return Ok(view);
            }
            let used = usage.map_or_else(Usage::default, |(used, _)| used);
            let warm = if cold { None } else { self.find_warm(&user, &draft) };
            let spec = draft.spec(&user, warm.as_ref().map(|w| &*w.value));
            let would = used.plus(Usage::of(&spec));
            let cap = (user.role == Role::User).then_some(&self.settings.user_cap);
            admit::within_cap(cap, used, would).map_err(CreateError::Refused)?;
            if !noted {
                self.note(actor, &spec, "create").await.map_err(CreateError::Db)?;
                noted = true;
            }
            let spec = VclusterSpec { admitted_at: Some(Micros::now()), ..spec };
            let txn = self
                .creation(&spec, warm.as_ref(), &name_key, &usage_key, usage.map(|(_, revision)| revision), &would)
                .map_err(CreateError::Store)?;
            fail::before("create");
            match self.commit_new(txn, &spec).await {
                Ok(Outcome::Committed { revision }) => {
                    fail::after("create");
                    self.view.reached(revision).await;
                    tracing::info!(vcluster = %spec.id, owner = %owner, name = %spec.name, nodes = spec.nodes.len(), warm = warm.is_some(), actor = %actor, "create was asked for");
                    return Ok(self
                        .by_id(spec.id)
                        .unwrap_or_else(|| self.view.read(|cluster| self.show(cluster, &spec, draft.now))));
                }
                Ok(Outcome::Conflict) if warm.is_some() => {
                    // Whatever became of it: one that is made anew is never in the way. The row names it.
                    self.history.forget(draft.operation).await;
                    (cold, noted) = (true, false);
                }
                Ok(Outcome::Conflict) => {}
                Err(error) => {
                    // Where it may have been written the history's observer finds out.
                    if error.had_no_effect() {
                        self.history.forget(draft.operation).await;
                    }
                    return Err(CreateError::Store(error));
                }
            }
            match self.after_conflict(&name_key, &usage_key, spec.id).await {
                Ok(read) => usage = read,
                Err(error) => {
                    self.history.forget(draft.operation).await;
                    return Err(error);
                }
            }
        }
        self.history.forget(draft.operation).await;
        Err(CreateError::Contended)
    }

    async fn owner(&self, owner: &UserName) -> Result<User, CreateError> {
        let user = self.db.user_by_name(owner).await.map_err(CreateError::Db)?.ok_or(CreateError::NoSuchUser)?;
        if user.disabled { Err(CreateError::Disabled) } else { Ok(user) }
    }

    /// The name in the view: ours (a repetition), somebody else's, or free as far as is known.
    fn already(&self, owner: &UserName, draft: &Draft) -> Result<Option<VclusterView>, CreateError> {
        self.view.read(|cluster| match cluster.find(owner, &draft.new.name) {
            None => Ok(None),
            Some(spec) if spec.value.id == draft.id || spec.value.asked_as == Some(draft.id) => {
                Ok(Some(self.show(cluster, &spec.value, draft.now)))
            }
            Some(spec) => Err(CreateError::NameTaken { deleting: spec.value.wanted == Wanted::Absent }),
        })
    }

    /// A vcluster that is kept warm for this user and serves the request.
    fn find_warm(&self, user: &User, draft: &Draft) -> Option<Rev<VclusterSpec>> {
        if !draft.new.host_labels.is_empty() {
            return None;
        }
        let asked = Asked { owner: &user.name, image: &draft.image, size: draft.new.size, nodes: draft.new.nodes };
        self.view.read(|cluster| warm::find(cluster, &self.settings.policy, asked).cloned())
    }

    fn creation(
        &self,
        spec: &VclusterSpec,
        warm: Option<&Rev<VclusterSpec>>,
        name_key: &str,
        usage_key: &str,
        usage_revision: Option<i64>,
        usage: &Usage,
    ) -> Result<Txn, StoreError> {
        let spec_key = self.keys.write(&Key::Spec(spec.id));
        Txn::new()
            .when(Compare::Absent { key: name_key.to_owned() })
            .when(Compare::as_read(spec_key.clone(), warm.map(|w| w.revision)))
            .when(Compare::as_read(usage_key, usage_revision))
            .put(name_key, &spec.id)?
            .put(spec_key, spec)?
            .put(usage_key, usage)
    }

    /// Where the answer of the store was lost, one look tells whether it was done.
    async fn commit_new(&self, txn: Txn, spec: &VclusterSpec) -> Result<Outcome, StoreError> {
        let is_ours = |bytes: &[u8]| {
            serde_json::from_slice::<VclusterSpec>(bytes).is_ok_and(|found| found.operation == spec.operation)
        };
        match self.store.txn(txn).await {
            Err(error) if error.is_unavailable() => match self.store.get(&self.keys.write(&Key::Spec(spec.id))).await {
                Ok(Some(entry)) if is_ours(&entry.value) => Ok(Outcome::Committed { revision: entry.revision }),
                _ => Err(error),
            },
            other => other,
        }
    }

    /// What stood in the way: the name (an error), or only the guard, which is read anew.
    async fn after_conflict(
        &self,
        name_key: &str,
        usage_key: &str,
        id: VclusterId,
    ) -> Result<Option<(Usage, i64)>, CreateError> {
        if let Some(entry) = self.store.get(name_key).await.map_err(CreateError::Store)? {
            let ours = serde_json::from_slice::<VclusterId>(&entry.value).is_ok_and(|holder| holder == id);
            if !ours {
                return Err(CreateError::NameTaken { deleting: false });
            }
            self.view.reached(entry.revision).await;
        }
        let Some(entry) = self.store.get(usage_key).await.map_err(CreateError::Store)? else { return Ok(None) };
        let usage = serde_json::from_slice(&entry.value)
            .map_err(|source| CreateError::Store(StoreError::Encode { key: usage_key.to_owned(), source }))?;
        Ok(Some((usage, entry.revision)))
    }

    pub(super) async fn note(&self, actor: &UserName, spec: &VclusterSpec, action: &str) -> Result<(), DbError> {
        self.history
            .begin(NewOperation {
                id: spec.operation,
                vcluster: spec.id,
                owner: &spec.owner,
                name: &spec.name,
                action,
                actor,
                started_at: spec.changed_at,
            })
            .await
    }
}

/// What does not depend on the owner's account as it is at the moment of writing.
struct Draft {
    id: VclusterId,
    operation: OperationId,
    new: NewVcluster,
    image: ImageRef,
    nodes: Vec<NodeSpec>,
    keys: VclusterKeys,
    now: Micros,
}

impl Draft {
    /// The spec to write: of a new vcluster, or of the warm one that is taken over.
    fn spec(&self, user: &User, warm: Option<&VclusterSpec>) -> VclusterSpec {
        let fresh = self.fresh(user);
        let Some(warm) = warm else { return fresh };
        let make = |n| new_node(NodeName::numbered(n), &self.image, self.new.size);
        VclusterSpec {
            id: warm.id,
            nodes: warm::nodes(warm, self.new.size, self.new.nodes, make),
            generation: warm.generation + 1,
            keys: warm.keys.clone(),
            asked_as: Some(self.id),
            ..fresh
        }
    }

    fn fresh(&self, user: &User) -> VclusterSpec {
        VclusterSpec {
            id: self.id,
            owner: user.name.clone(),
            range: user.range,
            name: self.new.name.clone(),
            image: self.image.clone(),
            size: self.new.size,
            nodes: self.nodes.clone(),
            ports: Vec::new(),
            limits: RateLimits::default(),
            host_labels: self.new.host_labels.clone(),
            wanted: Wanted::Running,
            generation: 1,
            created_at: self.now,
            changed_at: self.now,
            operation: self.operation,
            keys: self.keys.clone(),
            warm: None,
            asked_as: None,
            admitted_at: None,
        }
    }
}
