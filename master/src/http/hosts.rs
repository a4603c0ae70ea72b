//! `/api/v1/hosts`, for administrators.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::name::HostName;
use docklet_types::problem::Problem;
use docklet_types::view::HostView;
use serde::Deserialize;

use super::problem::ApiError;
use crate::app::hosts::Hosts;
use crate::auth::Actor;

/// Path of a host.
#[derive(Debug, Deserialize)]
pub struct HostPath {
    pub name: HostName,
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
