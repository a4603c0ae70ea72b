//! What a vcluster's network does towards the outside: published ports and rate limits.
//!
//! A published port of the host that holds a node leads to a port of the node.
//!
//! Both are part of what is wanted, so that they survive everything and follow the node. A key per protocol and public
//! port, written in the same transaction, makes each the only one in the installation. Nothing starts or stops, so a
//! change of ports is no operation of the history.

use docklet_master_db::DbError;
use docklet_master_plan::admit::{self, MAX_PORTS, Refusal};
use docklet_master_plan::view;
use docklet_store::keys::Key;
use docklet_store::{Outcome, StoreError};
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::port::{PortMapping, Protocol};
use docklet_types::rate::RateLimits;
use docklet_types::spec::{Usage, VclusterSpec, Wanted};
use docklet_types::view::{PortView, PublishPort, Role, VclusterView};
use uuid::Uuid;

use super::change::{Present, in_view};
use super::create::{FieldError, TRIES};
use super::vclusters::{NoSuchVcluster, Vclusters};

/// A request to publish, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPort {
    pub node: NodeName,
    pub port: u16,
    pub protocol: Protocol,
    /// As asked for: whether it may be is not judged yet.
    pub public: Option<i64>,
}

impl NewPort {
    /// # Errors
    /// The first field that is wrong.
    pub fn parse(request: &PublishPort) -> Result<Self, FieldError> {
        let port = u16::try_from(request.port).ok().filter(|port| *port > 0);
        Ok(Self {
            node: request.node.parse().map_err(|e| FieldError::new("node", e))?,
            port: port.ok_or_else(|| FieldError::new("port", "port is from 1 to 65535"))?,
            protocol: request.protocol,
            public: request.public_port,
        })
    }
}

/// Why no port was published or given back.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("there is no vcluster of that name")]
    NoVcluster,
    #[error("there is no node of that name")]
    NoNode,
    #[error("the vcluster has not published that port")]
    NotPublished,
    #[error("the vcluster is being deleted")]
    Deleting,
    #[error("the port is taken")]
    Taken { public: u16, protocol: Protocol },
    #[error(transparent)]
    Refused(Refusal),
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
    #[error("a document in the store cannot be read")]
    Unreadable(#[source] serde_json::Error),
    #[error("the database does not answer")]
    Db(#[source] DbError),
}

impl Vclusters {
    /// # Errors
    /// [`NoSuchVcluster`]
    pub fn ports(&self, owner: &UserName, name: &VclusterName) -> Result<Vec<PortView>, NoSuchVcluster> {
        self.view.read(|cluster| {
            let spec = cluster.find(owner, name).ok_or(NoSuchVcluster)?;
            Ok(view::ports(cluster, &spec.value))
        })
    }

    /// Publishes a port of a node. What is published like that already is answered and not written again.
    ///
    /// # Errors
    /// See [`PortError`].
    pub async fn publish(
        &self,
        actor: &UserName,
        owner: &UserName,
        name: &VclusterName,
        new: &NewPort,
    ) -> Result<PortView, PortError> {
        let asked = new.public.map(|p| self.settings.ports.admit(p)).transpose().map_err(PortError::Refused)?;
        let user = self.db.user_by_name(owner).await.map_err(PortError::Db)?;
        let cap = user.is_none_or(|u| u.role == Role::User).then_some(&self.settings.user_cap);
        let mut present = self.view.read(|cluster| in_view(cluster, owner, name)).ok_or(PortError::NoVcluster)?;
        let id = present.spec.id;
        for _ in 0..TRIES {
            let node = present.spec.nodes.iter().find(|n| n.name == new.node).ok_or(PortError::NoNode)?.id;
            if present.spec.wanted == Wanted::Absent {
                return Err(PortError::Deleting);
            }
            let same = |p: &&PortMapping| asked == Some(p.public) && p.protocol == new.protocol;
            let public = match (asked, present.spec.ports.iter().find(same)) {
                (_, Some(p)) if p.node == node && p.port == new.port => return self.shown(&present.spec, *p),
                (Some(public), Some(_)) => return Err(PortError::Taken { public, protocol: new.protocol }),
                (Some(public), None) => public,
                (None, _) => {
                    let seed = Uuid::new_v4().as_u64_pair().0;
                    let choose = self.view.read(|c| self.settings.ports.choose(c, new.protocol, seed));
                    choose.map_err(PortError::Refused)?
                }
            };
            let mapping = PortMapping { protocol: new.protocol, public, node, port: new.port };
            let mut spec = present.spec.clone();
            spec.ports.push(mapping);
            if spec.ports.len() > MAX_PORTS {
                return Err(PortError::Refused(Refusal::PortCount));
            }
            let used = present.usage.map_or_else(Usage::default, |(used, _)| used);
            admit::within_cap(cap, used, present.usage_with(&spec)).map_err(PortError::Refused)?;
            if self.amend(&mut spec, &present).await? {
                tracing::info!(vcluster = %id, owner = %owner, name = %name, node = %new.node, protocol = %new.protocol, public, port = new.port, actor = %actor, "a port was published");
                return self.shown(&spec, mapping);
            }
            // Whose is it? Only one's own choice is tried again elsewhere.
            let key = self.keys.write(&Key::Port(new.protocol, public));
            if asked.is_some()
                && self
                    .store
                    .get(&key)
                    .await
                    .map_err(PortError::Store)?
                    .is_some_and(|e| !is_of(&e.value, &present.spec))
            {
                return Err(PortError::Taken { public, protocol: new.protocol });
            }
            present = self.again_from_store(&present, owner).await?;
        }
        Err(PortError::Contended)
    }

    /// Gives a published port back.
    ///
    /// # Errors
    /// See [`PortError`].
    pub async fn unpublish(
        &self,
        actor: &UserName,
        owner: &UserName,
        name: &VclusterName,
        protocol: Protocol,
        public: u16,
    ) -> Result<(), PortError> {
        let mut present = self.view.read(|cluster| in_view(cluster, owner, name)).ok_or(PortError::NoVcluster)?;
        for _ in 0..TRIES {
            let mut spec = present.spec.clone();
            spec.ports.retain(|p| (p.protocol, p.public) != (protocol, public));
            if spec.ports.len() == present.spec.ports.len() {
                return Err(PortError::NotPublished);
            }
            if self.amend(&mut spec, &present).await? {
                tracing::info!(vcluster = %spec.id, owner = %owner, name = %name, %protocol, public, actor = %actor, "a port was given back");
                return Ok(());
            }
            present = self.again_from_store(&present, owner).await?;
        }
        Err(PortError::Contended)
    }

    /// Sets how much the vcluster may carry over its boundary, and returns how it looks then.
    ///
    /// # Errors
    /// See [`PortError`].
    pub async fn limit(
        &self,
        actor: &UserName,
        owner: &UserName,
        name: &VclusterName,
        limits: RateLimits,
    ) -> Result<VclusterView, PortError> {
        let mut present = self.view.read(|cluster| in_view(cluster, owner, name)).ok_or(PortError::NoVcluster)?;
        for _ in 0..TRIES {
            let mut spec = present.spec.clone();
            if spec.wanted == Wanted::Absent {
                return Err(PortError::Deleting);
            }
            spec.limits = limits;
            if spec == present.spec || self.amend(&mut spec, &present).await? {
                tracing::info!(vcluster = %spec.id, owner = %owner, name = %name, ingress = limits.ingress_kbit, egress = limits.egress_kbit, actor = %actor, "rates were limited");
                return self.by_id(spec.id).ok_or(PortError::NoVcluster);
            }
            present = self.again_from_store(&present, owner).await?;
        }
        Err(PortError::Contended)
    }

    /// Writes a spec that differs in what starts and stops nothing; `false` where somebody else wrote meanwhile.
    async fn amend(&self, spec: &mut VclusterSpec, present: &Present) -> Result<bool, PortError> {
        spec.generation += 1;
        let txn = self.transaction(spec, present).map_err(PortError::Store)?;
        let outcome = self.store.txn(txn).await.map_err(PortError::Store)?;
        if let Outcome::Committed { revision } = outcome {
            self.view.reached(revision).await;
        }
        Ok(outcome != Outcome::Conflict)
    }

    async fn again_from_store(&self, present: &Present, owner: &UserName) -> Result<Present, PortError> {
        use super::change::ChangeError;
        match self.in_store(present.spec.id, owner).await {
            Ok(found) => found.ok_or(PortError::NoVcluster),
            Err(ChangeError::Store(error)) => Err(PortError::Store(error)),
            Err(ChangeError::Unreadable(error)) => Err(PortError::Unreadable(error)),
            Err(_) => Err(PortError::Contended),
        }
    }

    fn shown(&self, spec: &VclusterSpec, mapping: PortMapping) -> Result<PortView, PortError> {
        self.view.read(|cluster| view::port(cluster, spec, &mapping)).ok_or(PortError::NoNode)
    }
}

fn is_of(value: &[u8], spec: &VclusterSpec) -> bool {
    serde_json::from_slice(value).is_ok_and(|id: docklet_types::id::VclusterId| id == spec.id)
}
