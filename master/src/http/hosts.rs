//! `/api/v1/hosts`, for administrators.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::name::HostName;
use docklet_types::problem::Problem;
use docklet_types::view::{ChangeHost, HostView};
use serde::Deserialize;
use utoipa::IntoParams;

use super::body::Json;
use super::idempotency::Idempotency;
use super::problem::ApiError;
use crate::app::hosts::Hosts;
use crate::app::moves::Moves;
use crate::auth::Actor;

/// Path of a host.
#[derive(Debug, Deserialize)]
pub struct HostPath {
    pub name: HostName,
}

/// `?lost=`
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LostQuery {
    /// The operator's word that the host is gone with everything on it.
    pub lost: Option<bool>,
}

/// All hosts that ever joined.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", responses(
    (status = 200, description = "By name", body = Vec<HostView>),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(actor: Actor, hosts: web::Data<Hosts>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    Ok(HttpResponse::Ok().json(hosts.list()))
}

/// One host with its checks.
#[utoipa::path(get, path = "/api/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path)), responses(
    (status = 200, description = "The host", body = HostView),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn get(actor: Actor, hosts: web::Data<Hosts>, path: web::Path<HostPath>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let host = hosts.get(&path.name).ok_or_else(|| ApiError::not_found("host"))?;
    Ok(HttpResponse::Ok().json(host))
}

/// Keeps new nodes off a host, or lets them on again (`cordoned`); moves its nodes to other hosts, one by one, or stops
/// doing so (`draining`).
#[utoipa::path(patch, path = "/api/v1/hosts/{name}", tag = "hosts", request_body = ChangeHost, params(("name" = String, Path)), responses(
    (status = 200, description = "Changed", body = HostView),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn change(
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
    body: Json<ChangeHost>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let hosts = hosts.into_inner();
    let view = Idempotency::run(async move { Ok(hosts.change(&actor, &path.name, &body.value).await?) }).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Forgets a host that is gone and holds no node. To come back it must join again. With `?lost=true` what it
/// held is given up: its nodes are made anew on other hosts, with their names and addresses and empty disks, and the
/// host, should it come back, removes what it still has.
#[utoipa::path(delete, path = "/api/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path), LostQuery), responses(
    (status = 204, description = "Removed"),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`: it is alive, or nodes are placed there", body = Problem, content_type = "application/problem+json")))]
pub async fn remove(
    actor: Actor,
    hosts: web::Data<Hosts>,
    moves: web::Data<Moves>,
    path: web::Path<HostPath>,
    query: web::Query<LostQuery>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let (hosts, moves, lost) = (hosts.into_inner(), moves.into_inner(), query.lost.unwrap_or(false));
    Idempotency::run(async move {
        let done = if lost { moves.give_up(&actor, &path.name).await } else { hosts.remove(&actor, &path.name).await };
        Ok(done?)
    })
    .await?;
    Ok(HttpResponse::NoContent().finish())
}
