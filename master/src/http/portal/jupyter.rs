//! Jupyter on its way up: POST starts it, the page turns into it.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_web::{JupyterPage, Nav, link};

use super::{go, page, shell};
use crate::app::apps::Apps;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;
use crate::http::query::{NodePath, OwnerQuery, owner};

/// `GET /vclusters/{name}/nodes/{node}/jupyter`
///
/// # Errors
/// `not_found`, `wrong_state`
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    apps: web::Data<Apps>,
    path: web::Path<NodePath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let view = vclusters.get(&owner, &path.name)?;
    let app = apps.get(&owner, &path.name, &path.node).await?;
    // Also when it answers already: the page goes on to the app by itself. A redirect from here would end a form's
    // submission at another origin, which our own policy forbids.
    page(
        StatusCode::OK,
        &JupyterPage { shell: shell(&request, &actor, Nav::Home), view, node: path.node.to_string(), app },
    )
}

/// `POST /vclusters/{name}/nodes/{node}/jupyter`
///
/// # Errors
/// `not_found`, `wrong_state`, `unavailable`
pub async fn start(
    actor: Actor,
    apps: web::Data<Apps>,
    path: web::Path<NodePath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let page = link::jupyter(path.name.as_str(), owner.as_str(), actor.name().as_str(), path.node.as_str());
    let (apps, path) = (apps.into_inner(), path.into_inner());
    Idempotency::run(async move { Ok(apps.start(&owner, &path.name, &path.node).await?) }).await?;
    Ok(go(&page))
}
