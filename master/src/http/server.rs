//! What the handlers need, and the server itself.

use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::{App, web};
use docklet_master_db::Db;
use docklet_types::paths::Paths;
use docklet_types::site::Sites;

use super::{Idempotency, Metrics};
use crate::app::apps::Apps;
use crate::app::history::History;
use crate::app::hosts::Hosts;
use crate::app::images::Images;
use crate::app::maintenance::Maintenances;
use crate::app::masters::Masters;
use crate::app::moves::Moves;
use crate::app::nodes::Nodes;
use crate::app::users::Users;
use crate::app::vclusters::Vclusters;
use crate::app::warm::WarmNodes;
use crate::auth::gate::Gate;
use crate::auth::{PortalAddress, Sessions};
use crate::proxy::{Proxy, front};
use crate::reconcile::ClusterView;

/// What the handlers need, each of it apart. Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    pub vclusters: Arc<Vclusters>,
    pub history: Arc<History>,
    pub nodes: Arc<Nodes>,
    pub apps: Arc<Apps>,
    pub users: Arc<Users>,
    pub hosts: Arc<Hosts>,
    pub masters: Arc<Masters>,
    pub maintenances: Arc<Maintenances>,
    pub moves: Arc<Moves>,
    pub warm: WarmNodes,
    pub images: Images,
    pub view: Arc<ClusterView>,
    pub db: Db,
    pub sessions: Sessions,
    pub gate: Arc<Gate>,
    pub portal: PortalAddress,
    pub proxy: Arc<Proxy>,
    pub metrics: Arc<Metrics>,
    pub idempotency: Idempotency,
    pub paths: Paths,
    pub sites: Sites,
    /// What forms of the sign-in page may lead to besides ourselves: the apps' origins.
    pub apps_origin: String,
}

/// The apps' origins as a Content-Security-Policy names them.
#[derive(Debug, Clone)]
pub struct AppsOrigin(pub String);

impl Parts {
    pub(super) fn register(&self, service: &mut web::ServiceConfig) {
        let shared = |service: &mut web::ServiceConfig| {
            service
                .app_data(web::Data::from(Arc::clone(&self.vclusters)))
                .app_data(web::Data::from(Arc::clone(&self.history)))
                .app_data(web::Data::from(Arc::clone(&self.nodes)))
                .app_data(web::Data::from(Arc::clone(&self.apps)))
                .app_data(web::Data::from(Arc::clone(&self.users)))
                .app_data(web::Data::from(Arc::clone(&self.hosts)))
                .app_data(web::Data::from(Arc::clone(&self.masters)))
                .app_data(web::Data::from(Arc::clone(&self.maintenances)))
                .app_data(web::Data::from(Arc::clone(&self.moves)))
                .app_data(web::Data::from(Arc::clone(&self.view)))
                .app_data(web::Data::from(Arc::clone(&self.gate)))
                .app_data(web::Data::from(Arc::clone(&self.proxy)))
                .app_data(web::Data::from(Arc::clone(&self.metrics)));
        };
        shared(service);
        service
            .app_data(web::Data::new(self.images.clone()))
            .app_data(web::Data::new(self.warm.clone()))
            .app_data(web::Data::new(self.db.clone()))
            .app_data(web::Data::new(self.sessions.clone()))
            .app_data(web::Data::new(self.portal.clone()))
            .app_data(web::Data::new(self.idempotency.clone()))
            .app_data(web::Data::new(self.paths.clone()))
            .app_data(web::Data::new(self.sites.clone()))
            .app_data(web::Data::new(AppsOrigin(self.apps_origin.clone())));
    }
}

/// Serves on a port that is already bound.
///
/// # Errors
/// The listener cannot be used.
pub fn serve(parts: Parts, listener: TcpListener) -> std::io::Result<Server> {
    let proxy = Arc::clone(&parts.proxy);
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    front::serve(proxy, listener, threads, move || {
        let parts = parts.clone();
        App::new().configure(move |service| super::configure(service, &parts))
    })
}
