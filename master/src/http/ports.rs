//! `/api/v1/vclusters/{name}/ports`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::VclusterName;
use docklet_types::port::Protocol;
use docklet_types::problem::Problem;
use docklet_types::view::{PortView, PublishPort};
use serde::Deserialize;

use super::body::Json;
use super::idempotency::{Idempotency, Reply};
use super::problem::ApiError;
use super::query::{OwnerQuery, VclusterPath, owner};
use crate::app::ports::NewPort;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;

/// Path of a published port.
#[derive(Debug, Deserialize)]
pub struct PortPath {
    pub name: VclusterName,
    pub protocol: Protocol,
    pub public_port: u16,
}

/// The published ports of a vcluster, and where each is reached.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/ports", tag = "ports", params(("name" = String, Path), OwnerQuery), responses(
    (status = 200, description = "By protocol and public port", body = Vec<PortView>),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    Ok(HttpResponse::Ok().json(vclusters.ports(&owner, &path.name)?))
}

/// Publishes a port of a node at a port of the host that holds it. The node keeps it through restarts and wherever it goes.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/ports", tag = "ports", request_body = PublishPort,
    params(("name" = String, Path), OwnerQuery, ("Idempotency-Key" = Option<String>, Header, description = "Requests with the same key take effect once, for 24 h")),
    responses(
        (status = 201, description = "Published", body = PortView),
        (status = 403, description = "`over_quota`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`: the vcluster, or the node", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`port_taken`, or `wrong_state`: it is being deleted", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid`, with the field", body = Problem, content_type = "application/problem+json")))]
pub async fn publish(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    body: Json<PublishPort>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    // First whether there is one: what is wrong with the rest is nobody else's business.
    vclusters.id_of(&owner, &path.name)?;
    let new = NewPort::parse(&body.value)?;
    let (vclusters, asker, name) = (vclusters.into_inner(), actor.name().clone(), path.into_inner().name);
    once.once(&request, &actor, body.digest, move |_| async move {
        Reply::json(StatusCode::CREATED, &vclusters.publish(&asker, &owner, &name, &new).await?)
    })
    .await
}

/// Gives a published port back. Connections through it end.
#[utoipa::path(delete, path = "/api/v1/vclusters/{name}/ports/{protocol}/{public_port}", tag = "ports",
    params(("name" = String, Path), ("protocol" = String, Path), ("public_port" = u16, Path), OwnerQuery), responses(
        (status = 204, description = "It is free"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn unpublish(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<PortPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let (vclusters, actor, path) = (vclusters.into_inner(), actor.name().clone(), path.into_inner());
    Idempotency::run(async move {
        Ok(vclusters.unpublish(&actor, &owner, &path.name, path.protocol, path.public_port).await?)
    })
    .await?;
    Ok(HttpResponse::NoContent().finish())
}
