//! Puts the parts together: from a configuration, a database, a store and a way into nodes to what the server serves.
//! The tests do the same over a store in memory.

use std::sync::Arc;
use std::time::Duration;

use docklet_master_db::{Db, DbError};
use docklet_store::held::Held;
use docklet_store::keys::Keys;
use docklet_store::{Store, StoreError};
use docklet_types::config::Config;
use docklet_types::paths::Paths;
use tokio::task::JoinSet;

use crate::app::Settings;
use crate::app::apps::Apps;
use crate::app::history::History;
use crate::app::hosts::Hosts;
use crate::app::images::Images;
use crate::app::maintenance::Maintenances;
use crate::app::masters::{Masters, ShowUpError};
use crate::app::moves::Moves;
use crate::app::nodes::Nodes;
use crate::app::share::{self, Share};
use crate::app::users::Users;
use crate::app::vclusters::Vclusters;
use crate::app::warm::WarmNodes;
use crate::auth::gate::Gate;
use crate::auth::passwords::{HashError, Passwords};
use crate::auth::{PortalAddress, Sessions};
use crate::http::Parts;
use crate::http::idempotency::Idempotency;
use crate::http::metrics::Metrics;
use crate::http::problem::chain;
use crate::proxy::address::PublicError;
use crate::proxy::agent::NodeAccess;
use crate::proxy::{self, Limits, Proxy};
use crate::reconcile::{Carrier, ClusterView, Planner};

/// How often expired rows are dropped.
const PURGE: Duration = Duration::from_secs(600);
/// How often memory of what is gone is given back.
const TIDY: Duration = Duration::from_secs(60);

/// Why the parts do not fit.
#[derive(Debug, thiserror::Error)]
pub enum AssemblyError {
    #[error(transparent)]
    Public(PublicError),
    #[error("the accounts cannot be used")]
    Site(#[source] DbError),
    #[error("passwords cannot be checked")]
    Passwords(#[source] HashError),
    #[error("the cluster's state cannot be read")]
    Store(#[source] StoreError),
    #[error(transparent)]
    ShowUp(ShowUpError),
}

/// What the server serves, and the tasks behind it. Dropping it ends the tasks.
pub struct Assembly {
    pub parts: Parts,
    tasks: JoinSet<()>,
    here: Held,
}

impl Assembly {
    /// Reads the cluster's state once and starts what runs in the background. Needs a tokio runtime.
    ///
    /// # Errors
    /// See [`AssemblyError`].
    pub async fn start(
        config: &Config,
        db: Db,
        store: Arc<dyn Store>,
        access: Arc<dyn NodeAccess>,
    ) -> Result<Self, AssemblyError> {
        let paths = Paths::new(&config.fs_prefix);
        let keys = Keys::new(&config.cluster_name);
        let settings = Settings::of(config);
        let public = proxy::public_of(config).map_err(AssemblyError::Public)?;
        let apps_origin = format!("{}://*.{}{}", public.scheme(), config.apps_domain, port_of(public.portal()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let passwords = Arc::new(Passwords::new(cores).map_err(AssemblyError::Passwords)?);
        let db = db.at_site(&config.cluster_name).await.map_err(AssemblyError::Site)?;
        let sessions = Sessions::new(db.clone(), config.session_hours);
        let view = ClusterView::start(store.clone(), keys.clone()).await.map_err(AssemblyError::Store)?;
        let history = History::new(db.clone(), view.clone());
        let share = Share::default();
        let images = Images::new(&paths, config.default_image.clone(), share.clone());
        let nodes = Arc::new(Nodes::new(view.clone(), access.clone()));
        let apps = Apps::new(nodes.clone(), public.clone());
        let proxy = Proxy::new(proxy::Parts {
            public,
            routes: view.clone(),
            access: access.clone(),
            sessions: sessions.clone(),
            limits: Limits::default(),
        });
        let gate = Arc::new(Gate::new(db.clone(), passwords.clone(), sessions.clone()));
        let masters = Arc::new(Masters::new(config, view.clone()));
        let here = masters.show_up(store.clone(), &keys).await.map_err(AssemblyError::ShowUp)?;
        let policy = settings.policy;
        let vclusters = Arc::new(Vclusters::new(
            store.clone(),
            keys.clone(),
            view.clone(),
            db.clone(),
            images.clone(),
            history.clone(),
            settings,
        ));
        let warm = WarmNodes::new(vclusters.clone(), config.preboot);
        let parts = Parts {
            moves: Arc::new(Moves::new(store.clone(), keys.clone(), view.clone(), vclusters.clone())),
            vclusters,
            users: Arc::new(Users::new(
                db.clone(),
                store.clone(),
                keys.clone(),
                view.clone(),
                passwords,
                gate.clone(),
                sessions.clone(),
                paths.clone(),
                share.clone(),
                warm.clone(),
            )),
            hosts: Arc::new(Hosts::new(store.clone(), keys.clone(), view.clone())),
            masters,
            maintenances: Arc::new(Maintenances::new(store.clone(), &keys, view.clone())),
            idempotency: Idempotency::new(db.clone()),
            portal: PortalAddress::new(&config.portal_url),
            metrics: Arc::new(Metrics::new()),
            history: history.clone(),
            nodes,
            apps: apps.clone(),
            images,
            warm: warm.clone(),
            view: view.clone(),
            db: db.clone(),
            sessions: sessions.clone(),
            gate: gate.clone(),
            proxy,
            paths,
            sites: config.sites.clone(),
            apps_origin,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(Carrier::new(store.clone(), keys.clone(), view.clone(), access).run());
        tasks.spawn(share::keep_marked(share, parts.paths.clone(), config.cluster_name.clone()));
        tasks.spawn(Planner { store, keys, view: view.clone(), policy }.run());
        tasks.spawn(warm.run());
        tasks.spawn(sessions.watch_over());
        tasks.spawn(history.run());
        tasks.spawn(tidy(gate, apps, view));
        tasks.spawn(purge(db));
        Ok(Self { parts, tasks, here })
    }

    /// Ends the tasks and waits for them.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        self.here.release().await;
    }
}

/// `:8000` of `http://localhost:8000`; nothing where it is the scheme's own.
fn port_of(origin: &str) -> &str {
    let authority = origin.split_once("://").map_or(origin, |(_, a)| a);
    authority.rfind(':').map_or("", |i| &authority[i..])
}

async fn tidy(gate: Arc<Gate>, apps: Arc<Apps>, view: Arc<ClusterView>) {
    let mut tick = tokio::time::interval(TIDY);
    loop {
        tick.tick().await;
        gate.tidy();
        apps.keep_only(|node| view.read(|cluster| cluster.node(node).is_some()));
    }
}

async fn purge(db: Db) {
    let mut tick = tokio::time::interval(PURGE);
    loop {
        tick.tick().await;
        match db.purge().await {
            Ok(0) => {}
            Ok(rows) => tracing::debug!(rows, "dropped what expired"),
            Err(error) => tracing::warn!(error = chain(&error), "cannot drop what expired"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_origins() {
        assert_eq!(port_of("http://localhost:8000"), ":8000");
        assert_eq!(port_of("https://docklet.example.org"), "");
    }
}
