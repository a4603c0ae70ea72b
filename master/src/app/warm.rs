//! Nodes that are booted before they are asked for.
//!
//! Who signs in, or opens the form for a new vcluster, will probably make one: a warm vcluster of the default image and
//! size is written for them, once, for a while. `create` takes it over; what nobody takes over goes again.

use std::sync::Arc;
use std::time::Duration;

use docklet_master_db::DbError;
use docklet_master_db::users::User;
use docklet_master_plan::cluster::Rev;
use docklet_master_plan::{admit, warm};
use docklet_store::keys::Key;
use docklet_store::{Compare, Outcome, StoreError, Txn};
use docklet_types::config::Preboot;
use docklet_types::id::{OperationId, VclusterId};
use docklet_types::image::ImageRef;
use docklet_types::label::Labels;
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::rate::RateLimits;
use docklet_types::spec::{NodeSpec, Usage, VclusterSpec, Wanted, Warm};
use docklet_types::time::Micros;
use docklet_types::view::Role;
use uuid::Uuid;

use super::create::{TRIES, new_node};
use super::images::ImageError;
use super::keys::{self, KeyError};
use super::vclusters::Vclusters;
use crate::http::problem::chain;

/// After the store did not answer.
const AGAIN: Duration = Duration::from_secs(2);
/// It is shown nowhere, and is replaced when it is taken over.
const NAME: &str = "warm";

/// Why nothing is kept warm. Nobody is told: the next vcluster only takes a little longer.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    #[error("the image cannot be read")]
    Image(#[source] ImageError),
    #[error("its keys cannot be made")]
    Keys(#[source] KeyError),
    #[error("the name {NAME} is none")]
    Name,
    #[error("too many changes at the same time")]
    Contended,
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
    #[error("the database does not answer")]
    Db(#[source] DbError),
}

/// See the module.
#[derive(Clone)]
pub struct WarmNodes {
    vclusters: Arc<Vclusters>,
    preboot: Preboot,
}

impl WarmNodes {
    #[must_use]
    pub const fn new(vclusters: Arc<Vclusters>, preboot: Preboot) -> Self {
        Self { vclusters, preboot }
    }

    /// Whether the operator wants any; pages ask for none else.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.preboot.nodes > 0
    }

    /// Keeps nodes ready for this user, in the background: whoever asks does not wait.
    pub fn expect(&self, owner: &UserName) {
        // What is begun for nobody yet is begun by nobody's right.
        if !self.is_on() || self.vclusters.view.maintenance().is_some() {
            return;
        }
        let (warm, owner) = (self.clone(), owner.clone());
        tokio::spawn(async move {
            if let Err(error) = warm.keep(&owner).await {
                tracing::warn!(%owner, error = chain(&error), "no nodes are booted ahead");
            }
        });
    }

    /// Sees to it that the user has a warm vcluster with most of its time left.
    ///
    /// # Errors
    /// See [`WarmError`].
    pub async fn keep(&self, owner: &UserName) -> Result<(), WarmError> {
        let vclusters = &self.vclusters;
        let image = vclusters.images.find(vclusters.settings.default_image.clone()).await.map_err(WarmError::Image)?;
        vclusters.db.note_presence(owner).await.map_err(WarmError::Db)?;
        for _ in 0..TRIES {
            let usage = vclusters.view.read(|cluster| cluster.usage(owner).map(|u| (*u.value, u.revision)));
            // After the guard was read, as for every vcluster.
            let user = vclusters.db.user_by_name(owner).await.map_err(WarmError::Db)?;
            let Some(user) = user.filter(|u| !u.disabled) else { return Ok(()) };
            let nodes = self.count(&user, usage.map_or_else(Usage::default, |(used, _)| used));
            if nodes == 0 {
                return Ok(());
            }
            let now = Micros::now();
            let until = now.plus_seconds(i64::from(self.preboot.minutes) * 60);
            let txn = match self.present(owner, &image).await? {
                Some(spec) if lasts(&spec.value, now, until) => return Ok(()),
                Some(spec) => {
                    let longer = VclusterSpec { warm: Some(Warm { until }), ..(*spec.value).clone() };
                    self.replacement(&spec, &longer)
                }
                None => self.creation(&self.spec(&user, &image, nodes, now, until)?, usage),
            };
            let outcome = vclusters.store.txn(txn.map_err(WarmError::Store)?).await.map_err(WarmError::Store)?;
            if let Outcome::Committed { revision } = outcome {
                vclusters.view.reached(revision).await;
                return Ok(());
            }
            // Somebody else changed the guard or the spec: their news is on its way.
            let mut changes = vclusters.view.subscribe();
            let _ = tokio::time::timeout(Duration::from_millis(200), changes.changed()).await;
        }
        Err(WarmError::Contended)
    }

    /// How many nodes: as many as the operator said, and no more than the user could have.
    fn count(&self, user: &User, used: Usage) -> u32 {
        let settings = &self.vclusters.settings;
        let cap = (user.role == Role::User).then_some(&settings.user_cap);
        let size = settings.default_size;
        let would = |nodes| used.plus(Usage::of_size(nodes, size));
        (1..=self.preboot.nodes).rev().find(|n| admit::within_cap(cap, used, would(*n)).is_ok()).unwrap_or(0)
    }

    /// The one there is. Those of an image that is no longer the default go.
    async fn present(&self, owner: &UserName, image: &ImageRef) -> Result<Option<Rev<VclusterSpec>>, WarmError> {
        let all = self.of(owner);
        let (mut fitting, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|s| s.value.image == *image);
        for spec in others {
            self.retire(&spec).await.map_err(WarmError::Store)?;
        }
        Ok(fitting.pop())
    }

    fn of(&self, owner: &UserName) -> Vec<Rev<VclusterSpec>> {
        self.vclusters.view.read(|cluster| {
            cluster.warm_of(owner).filter(|spec| spec.value.wanted != Wanted::Absent).cloned().collect()
        })
    }

    fn spec(
        &self,
        user: &User,
        image: &ImageRef,
        nodes: u32,
        now: Micros,
        until: Micros,
    ) -> Result<VclusterSpec, WarmError> {
        let size = self.vclusters.settings.default_size;
        let name: VclusterName = NAME.parse().map_err(|_| WarmError::Name)?;
        let nodes: Vec<NodeSpec> = (1..=nodes).map(|n| new_node(NodeName::numbered(n), image, size)).collect();
        Ok(VclusterSpec {
            id: VclusterId::from_uuid(Uuid::now_v7()),
            owner: user.name.clone(),
            range: user.range,
            name,
            image: image.clone(),
            size,
            nodes,
            ports: Vec::new(),
            limits: RateLimits::default(),
            host_labels: Labels::default(),
            wanted: Wanted::Running,
            generation: 1,
            created_at: now,
            changed_at: now,
            operation: OperationId::from_uuid(Uuid::now_v7()),
            keys: keys::generate(&user.name).map_err(WarmError::Keys)?,
            warm: Some(Warm { until }),
            asked_as: None,
            admitted_at: None,
        })
    }

    /// With the owner's guard, so that neither two masters nor two sign-ins make one each.
    fn creation(&self, spec: &VclusterSpec, usage: Option<(Usage, i64)>) -> Result<Txn, StoreError> {
        let keys = &self.vclusters.keys;
        let (guard, key) = (keys.write(&Key::Usage(spec.owner.clone())), keys.write(&Key::Spec(spec.id)));
        let (used, revision) = usage.map_or_else(|| (Usage::default(), None), |(used, r)| (used, Some(r)));
        Txn::new()
            .when(Compare::as_read(guard.clone(), revision))
            .when(Compare::Absent { key: key.clone() })
            .put(guard, &used)?
            .put(key, spec)
    }

    fn replacement(&self, old: &Rev<VclusterSpec>, new: &VclusterSpec) -> Result<Txn, StoreError> {
        let key = self.vclusters.keys.write(&Key::Spec(new.id));
        Txn::new().when(Compare::Unchanged { key: key.clone(), revision: old.revision }).put(key, new)
    }

    /// Asks for a warm vcluster to go. Where it changed meanwhile it is looked at again.
    async fn retire(&self, spec: &Rev<VclusterSpec>) -> Result<(), StoreError> {
        let mut gone = (*spec.value).clone();
        gone.wanted = Wanted::Absent;
        gone.generation += 1;
        if let Outcome::Committed { revision } = self.vclusters.store.txn(self.replacement(spec, &gone)?).await? {
            self.vclusters.view.reached(revision).await;
        }
        Ok(())
    }

    /// Lets go of all that is kept for a user.
    ///
    /// # Errors
    /// [`WarmError::Store`]
    pub async fn forget(&self, owner: &UserName) -> Result<(), WarmError> {
        for spec in self.of(owner) {
            self.retire(&spec).await.map_err(WarmError::Store)?;
        }
        Ok(())
    }

    /// Takes away what is outdated, until the task is dropped. Any number of masters may do so.
    pub async fn run(self) {
        let view = &self.vclusters.view;
        let (mut changes, mut waiting) = (view.subscribe(), view.subscribe_waiting());
        loop {
            let pressed = view.is_pressed();
            let now = Micros::now();
            let (outdated, next) =
                view.read(|cluster| (warm::outdated(cluster, now, pressed), warm::next_end(cluster)));
            let mut refused = false;
            for spec in outdated {
                if let Err(error) = self.retire(&spec).await {
                    tracing::warn!(vcluster = %spec.value.id, error = chain(&error), "nodes that were booted ahead stay a while longer");
                    refused = true;
                }
            }
            let rest = next.map(|at| Duration::from_millis(at.millis_since(now)));
            let end = async {
                match rest {
                    _ if refused => tokio::time::sleep(AGAIN).await,
                    Some(rest) => tokio::time::sleep(rest + Duration::from_millis(1)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed(), if !refused => if changed.is_err() { return },
                changed = waiting.changed(), if !refused => if changed.is_err() { return },
                () = end => {}
            }
        }
    }
}

/// Whether more than half of the time is left.
fn lasts(spec: &VclusterSpec, now: Micros, until: Micros) -> bool {
    spec.warm.is_some_and(|w| w.until.millis_since(now) * 2 > until.millis_since(now))
}
