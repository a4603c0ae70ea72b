//! `POST /api/v1/vclusters/{name}/move`, for administrators.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::{HostName, NodeName};
use docklet_types::problem::Problem;
use docklet_types::view::{MoveNodes, NodeView};

use super::body::Json;
use super::idempotency::{Idempotency, Reply};
use super::problem::ApiError;
use super::query::{OwnerQuery, VclusterPath, owner};
use crate::app::moves::Moves;
use crate::auth::Actor;

/// Moves a node, or all of the vcluster's, to a host, with disk, name and address. The answer comes at once; `moving` of
/// the nodes tells how far they are.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/move", tag = "vclusters", request_body = MoveNodes,
    params(("name" = String, Path), OwnerQuery), responses(
        (status = 202, description = "Accepted: the nodes that were meant", body = Vec<NodeView>),
        (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`: a node is already on its way elsewhere; `move_needs_btrfs`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid`, with the field", body = Problem, content_type = "application/problem+json")))]
pub async fn ask(
    request: HttpRequest,
    actor: Actor,
    moves: web::Data<Moves>,
    once: web::Data<Idempotency>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    body: Json<MoveNodes>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let owner = owner(&actor, query.owner.as_deref())?;
    let to: HostName = body.value.host.parse().map_err(|e| ApiError::invalid("host", format!("{e}.")))?;
    let node = body.value.node.as_deref().map(str::parse::<NodeName>).transpose();
    let node = node.map_err(|e| ApiError::invalid("node", format!("{e}.")))?;
    let (moves, name, asker) = (moves.into_inner(), path.into_inner().name, actor.clone());
    once.once(&request, &actor, body.digest, move |_| async move {
        Reply::json(StatusCode::ACCEPTED, &moves.ask(&asker, &owner, &name, node.as_ref(), &to).await?)
    })
    .await
}
