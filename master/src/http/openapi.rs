//! `GET /api/v1/openapi.json`: the API's own description. Answers to a wrong method are read from it, too.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse};
use docklet_types::problem::{Code, Problem};
use std::sync::LazyLock;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::problem::ApiError;
use super::{
    events, health, hosts, images, maintenance, masters, metrics, moves, nodes, ports, sessions, sites, users,
    vclusters,
};

#[derive(OpenApi)]
#[openapi(
    info(title = "Docklet", description = "Private virtual clusters. Errors are `application/problem+json` with a stable `code`."),
    paths(
        sessions::create, sessions::end,
        users::me, users::list, users::create, users::get, users::change, users::remove,
        vclusters::list, vclusters::create, vclusters::what_if, vclusters::get, vclusters::change, vclusters::delete,
        vclusters::start, vclusters::stop, vclusters::retry, moves::ask, vclusters::operations,
        nodes::list, nodes::exec, nodes::logs, nodes::app, nodes::start_app, nodes::terminal,
        ports::list, ports::publish, ports::unpublish,
        images::list, hosts::list, hosts::get, hosts::change, hosts::remove, masters::list,
        sites::list, maintenance::show, maintenance::begin, maintenance::end, events::events, health::healthz, health::readyz, metrics::show, show,
    ),
    components(schemas(Problem)),
    modifiers(&Security),
    security(("bearer" = []), ("cookie" = []))
)]
struct Api;

struct Security;

impl Modify for Security {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let components = api.components.get_or_insert_default();
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token of `POST /api/v1/sessions`"))
            .build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        let cookie = ApiKeyValue::with_description(
            "docklet_session",
            "The portal's own; changes also need the portal's `Origin`",
        );
        components.add_security_scheme("cookie", SecurityScheme::ApiKey(ApiKey::Cookie(cookie)));
    }
}

static DOCUMENT: LazyLock<utoipa::openapi::OpenApi> = LazyLock::new(Api::openapi);

/// The description itself, for tests.
#[must_use]
pub fn document() -> &'static utoipa::openapi::OpenApi {
    &DOCUMENT
}

/// The methods of a path pattern, as `Allow` names them.
fn methods(pattern: &str) -> Vec<&'static str> {
    let Some(item) = DOCUMENT.paths.paths.get(pattern) else { return Vec::new() };
    [
        ("GET", item.get.is_some()),
        ("POST", item.post.is_some()),
        ("PATCH", item.patch.is_some()),
        ("DELETE", item.delete.is_some()),
    ]
    .into_iter()
    .filter_map(|(method, there)| there.then_some(method))
    .collect()
}

/// This description.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "health", security(()), responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub async fn show() -> Result<HttpResponse, ApiError> {
    let json = DOCUMENT.to_json().map_err(ApiError::internal)?;
    Ok(HttpResponse::Ok().content_type("application/json").body(json))
}

/// The answer of every resource of the API to a method that it does not have.
///
/// # Errors
/// Always.
pub async fn wrong_method(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let allowed = request.match_pattern().map(|pattern| methods(&pattern)).unwrap_or_default();
    let error = ApiError::new(Code::MethodNotAllowed, format!("{} is not supported here.", shown(request.method())));
    Err(if allowed.is_empty() { error } else { error.allowing(allowed.join(", ")) })
}

fn shown(method: &Method) -> String {
    method.as_str().chars().take(20).collect()
}
