//! The HTTP surface: thin handlers that extract, call a use case, convert.
//!
//! One module per resource of the API, `portal` for the pages. [`configure`] puts everything in its place: first what
//! belongs to the proxy (apps by host name, terminals), then, behind [`edge`], the API and the portal.

mod body;
mod edge;
mod errors;
pub mod events;
pub mod health;
pub mod hosts;
pub mod idempotency;
pub mod images;
pub mod maintenance;
pub mod masters;
pub mod metrics;
pub mod moves;
pub mod nodes;
pub mod openapi;
pub mod portal;
pub mod ports;
pub mod problem;
mod query;
pub mod server;
pub mod sessions;
pub mod sites;
mod sse;
pub mod users;
pub mod vclusters;
pub mod waiting;

use actix_web::middleware::from_fn;
use actix_web::{HttpRequest, HttpResponse, guard, web};
use docklet_types::problem::Code;

use self::idempotency::Idempotency;
use self::metrics::Metrics;
use self::openapi::wrong_method;
use self::problem::ApiError;
use crate::proxy;

pub use self::server::Parts;

fn form_error(error: actix_web::error::UrlencodedError, _: &HttpRequest) -> actix_web::Error {
    let code = if matches!(error, actix_web::error::UrlencodedError::Overflow { .. }) {
        Code::TooLarge
    } else {
        Code::MalformedBody
    };
    ApiError::new(code, format!("The form cannot be read: {error}.")).into()
}

async fn nothing_here() -> Result<HttpResponse, ApiError> {
    Err(ApiError::new(Code::NotFound, "There is nothing at this address."))
}

/// GET, and HEAD, whose answer is the same without its body.
fn read() -> actix_web::Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

fn resource(path: &str) -> actix_web::Resource {
    web::resource(path).default_service(web::to(wrong_method))
}

fn api(service: &mut web::ServiceConfig) {
    use web::{delete, get, patch, post};
    let v1 = |path: &str| resource(&format!("/api/v1{path}"));
    service
        .service(v1("/openapi.json").route(read().to(openapi::show)))
        .service(v1("/sessions").route(post().to(sessions::create)))
        .service(v1("/sessions/current").route(delete().to(sessions::end)))
        .service(v1("/me").route(read().to(users::me)))
        .service(v1("/users").route(read().to(users::list)).route(post().to(users::create)))
        .service(
            v1("/users/{name}")
                .route(read().to(users::get))
                .route(patch().to(users::change))
                .route(delete().to(users::remove)),
        )
        .service(v1("/vclusters").route(read().to(vclusters::list)).route(post().to(vclusters::create)))
        // Only POST, so that a vcluster of that name can be looked at.
        .service(v1("/vclusters/what-if").guard(guard::Post()).route(post().to(vclusters::what_if)))
        .service(
            v1("/vclusters/{name}")
                .route(read().to(vclusters::get))
                .route(patch().to(vclusters::change))
                .route(delete().to(vclusters::delete)),
        )
        .service(v1("/vclusters/{name}/start").route(post().to(vclusters::start)))
        .service(v1("/vclusters/{name}/stop").route(post().to(vclusters::stop)))
        .service(v1("/vclusters/{name}/retry").route(post().to(vclusters::retry)))
        .service(v1("/vclusters/{name}/move").route(post().to(moves::ask)))
        .service(v1("/vclusters/{name}/operations").route(read().to(vclusters::operations)))
        .service(v1("/vclusters/{name}/nodes").route(read().to(nodes::list)))
        .service(
            v1("/vclusters/{name}/nodes/{node}/exec")
                .app_data(web::PayloadConfig::new(body::LARGE_LIMIT))
                .route(post().to(nodes::exec)),
        )
        .service(v1("/vclusters/{name}/nodes/{node}/logs").route(read().to(nodes::logs)))
        .service(
            v1("/vclusters/{name}/nodes/{node}/apps/{app}")
                .route(read().to(nodes::app))
                .route(post().to(nodes::start_app)),
        )
        .service(v1("/vclusters/{name}/ports").route(read().to(ports::list)).route(post().to(ports::publish)))
        .service(v1("/vclusters/{name}/ports/{protocol}/{public_port}").route(delete().to(ports::unpublish)))
        .service(v1("/images").route(read().to(images::list)))
        .service(v1("/hosts").route(read().to(hosts::list)))
        .service(
            v1("/hosts/{name}")
                .route(read().to(hosts::get))
                .route(patch().to(hosts::change))
                .route(delete().to(hosts::remove)),
        )
        .service(v1("/sites").route(read().to(sites::list)))
        .service(v1("/masters").route(read().to(masters::list)))
        .service(
            v1("/maintenance")
                .route(read().to(maintenance::show))
                .route(post().to(maintenance::begin))
                .route(delete().to(maintenance::end)),
        )
        .service(v1("/events").route(get().to(events::events)))
        .service(resource("/healthz").route(read().to(health::healthz)))
        .service(resource("/readyz").route(read().to(health::readyz)))
        .service(resource("/metrics").route(read().to(metrics::show)));
}

/// Everything that the public port serves.
pub fn configure(service: &mut web::ServiceConfig, parts: &Parts) {
    parts.register(service);
    service
        .app_data(web::QueryConfig::default().error_handler(query::bad_query))
        .app_data(web::PathConfig::default().error_handler(query::bad_path))
        .app_data(web::FormConfig::default().limit(body::LIMIT).error_handler(form_error))
        .app_data(web::PayloadConfig::new(body::LIMIT));
    proxy::configure(service, &parts.proxy);
    service.service(
        web::scope("")
            .wrap(from_fn(edge::edge))
            .configure(api)
            .configure(portal::configure)
            .default_service(web::to(nothing_here)),
    );
}
