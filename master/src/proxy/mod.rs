//! The one public door to everything in the nodes: apps by host name, their sign-in, and terminals.
//!
//! Flow of a connection: [`front`] reads the head of each request (`wire`) and lends the connection to the portal's server
//! (`portal`) where it is not for an app. For an app, `address` reads the host name strictly into names; `visitor` says
//! whose cookie it is (on every request); `routes` gives the node's id; `upstream` takes or dials a connection through
//! [`agent::NodeAccess`]; `headers` decides what may pass in each direction; `exchange` carries the bytes, and `tunnel`
//! takes over after a verified 101. `sso` is how the cookie of an app's origin comes to be.
//!
//! Why a user's content never meets the portal: each app has an origin of its own, the portal's cookie is host-only and
//! is stripped besides, and what an app sets for a wider domain is narrowed to its own.

pub mod address;
pub mod agent;
mod apps;
mod client;
mod exchange;
pub mod front;
mod headers;
mod pages;
mod portal;
pub mod routes;
pub mod sso;
pub mod terminal;
mod tunnel;
mod upstream;
mod visitor;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::dev::RequestHead;
use actix_web::{HttpResponse, guard, web};
use docklet_types::config::Config;

use self::address::Public;
use self::agent::NodeAccess;
use self::routes::Routes;
use self::wire::request::Head;
use crate::auth::{PortalAddress, Sessions};

/// What the proxy needs of the rest of the master.
pub struct Parts {
    pub public: Public,
    pub routes: Arc<dyn Routes>,
    pub access: Arc<dyn NodeAccess>,
    /// Its `watch_over` must run, so that what another master ended ends here too.
    pub sessions: Sessions,
    pub limits: Limits,
}

/// Caps and deadlines. There is no limit on how long a request takes in all, only on how long nothing moves.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connecting to the port inside the node.
    pub dial: Duration,
    /// No byte of a request's answer for so long.
    pub idle: Duration,
    /// No byte either way on an upgraded connection for so long.
    pub tunnel_idle: Duration,
    /// The same, once the client has closed its half.
    pub half_closed_idle: Duration,
    /// An unused connection to an app is kept for so long.
    pub keep: Duration,
    /// Unused connections kept per session, node and port (and server thread).
    pub keep_each: usize,
    /// Requests and tunnels of one node at the same time.
    pub per_node: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(10),
            idle: Duration::from_secs(600),
            tunnel_idle: Duration::from_secs(3600),
            half_closed_idle: Duration::from_secs(60),
            keep: Duration::from_secs(15),
            keep_each: 64,
            per_node: 16_384,
        }
    }
}

/// What is open, and what was done since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub requests: AtomicU64,
    pub dials: AtomicU64,
    pub dial_failures: AtomicU64,
    pub tunnels_open: AtomicU64,
    pub terminals_open: AtomicU64,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The proxy: shared by all server threads.
pub struct Proxy {
    pub(crate) public: Public,
    pub(crate) routes: Arc<dyn Routes>,
    pub(crate) access: Arc<dyn NodeAccess>,
    pub(crate) sessions: Sessions,
    pub(crate) portal: PortalAddress,
    pub(crate) limits: Limits,
    pub(crate) open: apps::OpenPerNode,
    pub counters: Counters,
}

impl Proxy {
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            portal: PortalAddress::new(parts.public.portal()),
            public: parts.public,
            routes: parts.routes,
            access: parts.access,
            sessions: parts.sessions,
            limits: parts.limits,
            open: apps::OpenPerNode::default(),
            counters: Counters::default(),
        })
    }

    /// The address of an app as browsers open it, with `path` starting with `/`.
    #[must_use]
    pub fn app_url(&self, app: &address::AppAddress, path: &str) -> String {
        self.public.app_url(app, path)
    }

    /// Whether a request is for an app, well formed or not: such a one never sees the portal.
    fn is_for_apps(&self, head: &Head) -> bool {
        let hosts = head.all("host").filter_map(|host| std::str::from_utf8(host).ok());
        hosts.chain(head.authority()).any(|host| self.public.is_app_host(host))
    }
}

/// What browsers type, from the configuration.
///
/// # Errors
/// Where PORTAL_URL has no host.
pub fn public_of(config: &Config) -> Result<Public, address::PublicError> {
    Public::new(&config.portal_url, &config.apps_domain)
}

/// Registers `/apps/open` and the terminal with the portal's server, which answers nothing else on the apps' hosts. Call
/// it before anything that catches their paths; wrap no middleware around it that changes bodies.
pub fn configure(service: &mut web::ServiceConfig, proxy: &Arc<Proxy>) {
    let for_guard = Arc::clone(proxy);
    let is_for_apps =
        move |head: &RequestHead| address::host_of(head).is_some_and(|host| for_guard.public.is_app_host(host));
    service
        // The front serves these. What it could not follow to its end, and was refused, ends here.
        .service(
            web::scope("")
                .guard(guard::fn_guard(move |context| is_for_apps(context.head())))
                .default_service(web::to(|| async { HttpResponse::MisdirectedRequest().force_close().finish() })),
        )
        .service(
            web::resource("/apps/open").app_data(web::Data::from(Arc::clone(proxy))).route(web::get().to(sso::open)),
        )
        .service(
            web::resource("/api/v1/vclusters/{name}/nodes/{node}/terminal")
                .app_data(web::Data::from(Arc::clone(proxy)))
                .route(web::get().to(terminal::handle)),
        );
}
