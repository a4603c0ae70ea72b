//! `GET /vclusters/{name}/terminal?node=`

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_web::{Nav, TerminalPage};
use serde::Deserialize;

use super::{page, shell};
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::problem::ApiError;
use crate::http::query::{VclusterPath, owner};

/// `?owner=&node=`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TerminalQuery {
    owner: Option<String>,
    node: Option<String>,
}

/// The first node where none is named.
///
/// # Errors
/// `not_found`
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<TerminalQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let (view, nodes) = (vclusters.get(&owner, &path.name)?, vclusters.nodes(&owner, &path.name)?);
    let node = match &query.node {
        Some(node) if nodes.iter().any(|n| n.name == *node) => node.clone(),
        Some(_) => return Err(ApiError::not_found("node")),
        None => nodes.first().map(|n| n.name.clone()).unwrap_or_default(),
    };
    page(StatusCode::OK, &TerminalPage { shell: shell(&request, &actor, Nav::Home), view, nodes, node })
}
