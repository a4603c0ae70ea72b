//! `/api/v1/maintenance`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::problem::Problem;
use docklet_types::view::{BeginMaintenance, MaintenanceView};

use super::body::Json;
use super::idempotency::Idempotency;
use super::problem::ApiError;
use crate::app::maintenance::Maintenances;
use crate::auth::Actor;

/// Whether maintenance is on.
#[utoipa::path(get, path = "/api/v1/maintenance", tag = "maintenance", responses(
    (status = 200, description = "How it is now", body = MaintenanceView)))]
pub async fn show(actor: Actor, maintenances: web::Data<Maintenances>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(maintenances.show(&actor)))
}

/// Begins maintenance, or changes what is said of it. Until it ends only administrators create, start, retry and grow
/// vclusters; everybody else gets `maintenance`. What runs goes on, and may be stopped and deleted.
#[utoipa::path(post, path = "/api/v1/maintenance", tag = "maintenance", request_body = BeginMaintenance, responses(
    (status = 200, description = "It is on", body = MaintenanceView),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`invalid`, with the field", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn begin(
    actor: Actor,
    maintenances: web::Data<Maintenances>,
    body: Json<BeginMaintenance>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let maintenances = maintenances.into_inner();
    let view = Idempotency::run(async move { Ok(maintenances.begin(&actor, &body.value).await?) }).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Ends maintenance; nothing happens where it is not on.
#[utoipa::path(delete, path = "/api/v1/maintenance", tag = "maintenance", responses(
    (status = 204, description = "It is over"),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn end(actor: Actor, maintenances: web::Data<Maintenances>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let maintenances = maintenances.into_inner();
    Idempotency::run(async move { Ok(maintenances.end(&actor).await?) }).await?;
    Ok(HttpResponse::NoContent().finish())
}
