//! `/api/v1/vclusters/{name}/nodes`. The terminal's WebSocket is in `proxy::terminal`.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::{NodeName, VclusterName};
use docklet_types::problem::{Code, Problem};
use docklet_types::view::{AppStatus, AppView, Exec, ExecResult, Logs, NodeView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::body::Json;
use super::idempotency::{Idempotency, Reply};
use super::problem::ApiError;
use super::query::{NodePath, OwnerQuery, VclusterPath, owner};
use crate::app::apps::{Apps, JUPYTER};
use crate::app::nodes::{DEFAULT_LINES, MAX_LINES, Nodes};
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;

/// `?owner=&lines=`
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// Whose vcluster is meant; for administrators. One's own where absent.
    pub owner: Option<String>,
    /// 1 to 10000; 200 where absent.
    #[param(minimum = 1, maximum = 10000)]
    pub lines: Option<u32>,
}

/// Path of an app.
#[derive(Debug, Deserialize)]
pub struct AppPath {
    pub name: VclusterName,
    pub node: NodeName,
    pub app: String,
}

/// The nodes in order, then those on their way out.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/nodes", tag = "nodes", params(("name" = String, Path), OwnerQuery), responses(
    (status = 200, description = "Nodes", body = Vec<NodeView>),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    Ok(HttpResponse::Ok().json(vclusters.nodes(&owner, &path.name)?))
}

/// Runs a command in the node as its root and waits for its end. `argv` goes to exec as it is; there is no shell in between.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/nodes/{node}/exec", tag = "nodes", request_body = Exec,
    params(("name" = String, Path), ("node" = String, Path), OwnerQuery), responses(
        (status = 200, description = "It ended", body = ExecResult),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "`timeout`: it was ended", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`: the node does not run", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn exec(
    request: HttpRequest,
    actor: Actor,
    nodes: web::Data<Nodes>,
    once: web::Data<Idempotency>,
    path: web::Path<NodePath>,
    query: web::Query<OwnerQuery>,
    body: Json<Exec>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let (nodes, path) = (nodes.into_inner(), path.into_inner());
    once.once(&request, &actor, body.digest, move |_| async move {
        Reply::json(StatusCode::OK, &nodes.exec(&owner, &path.name, &path.node, body.value).await?)
    })
    .await
}

/// The end of the node's console.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/nodes/{node}/logs", tag = "nodes",
    params(("name" = String, Path), ("node" = String, Path), LogsQuery), responses(
        (status = 200, description = "Text", body = Logs),
        (status = 400, description = "`bad_query`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn logs(
    actor: Actor,
    nodes: web::Data<Nodes>,
    path: web::Path<NodePath>,
    query: web::Query<LogsQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let lines = query.lines.unwrap_or(DEFAULT_LINES);
    if !(1..=MAX_LINES).contains(&lines) {
        return Err(ApiError::new(Code::BadQuery, format!("lines is from 1 to {MAX_LINES}.")).at("lines"));
    }
    let text = nodes.logs(&owner, &path.name, &path.node, lines).await?;
    Ok(HttpResponse::Ok().json(Logs { text }))
}

fn known(app: &str) -> Result<(), ApiError> {
    if app == JUPYTER { Ok(()) } else { Err(ApiError::not_found("app")) }
}

/// Whether the app runs and where a browser opens it. `jupyter` is the one there is.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/nodes/{node}/apps/{app}", tag = "nodes",
    params(("name" = String, Path), ("node" = String, Path), ("app" = String, Path), OwnerQuery), responses(
        (status = 200, description = "The app", body = AppView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`", body = Problem, content_type = "application/problem+json")))]
pub async fn app(
    actor: Actor,
    apps: web::Data<Apps>,
    path: web::Path<AppPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    known(&path.app)?;
    Ok(HttpResponse::Ok().json(apps.get(&owner, &path.name, &path.node).await?))
}

/// Starts the app where it does not run. 200 when it answers already, else 202.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/nodes/{node}/apps/{app}", tag = "nodes",
    params(("name" = String, Path), ("node" = String, Path), ("app" = String, Path), OwnerQuery), responses(
        (status = 200, description = "It runs", body = AppView),
        (status = 202, description = "It starts", body = AppView),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`: the node does not run", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn start_app(
    request: HttpRequest,
    actor: Actor,
    apps: web::Data<Apps>,
    once: web::Data<Idempotency>,
    path: web::Path<AppPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    known(&path.app)?;
    let (apps, path) = (apps.into_inner(), path.into_inner());
    once.once(&request, &actor, [0; 32], move |_| async move {
        let view = apps.start(&owner, &path.name, &path.node).await?;
        let status = if view.status == AppStatus::Running { StatusCode::OK } else { StatusCode::ACCEPTED };
        Reply::json(status, &view)
    })
    .await
}

/// A shell in the node over a WebSocket: binary messages are bytes, text messages JSON such as
/// `{"resize":{"cols":80,"rows":24}}`.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/nodes/{node}/terminal", tag = "nodes",
    params(("name" = String, Path), ("node" = String, Path), OwnerQuery,
        ("session" = Option<String>, Query, description = "Names the shell to come back to: `[a-z0-9-]{1,40}`"),
        ("cols" = Option<u16>, Query), ("rows" = Option<u16>, Query)), responses(
        (status = 101, description = "The WebSocket is open"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`: the node does not run", body = Problem, content_type = "application/problem+json")))]
#[allow(dead_code, reason = "describes what `proxy::terminal` serves")]
pub async fn terminal() {}
