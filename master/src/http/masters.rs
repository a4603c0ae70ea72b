//! `/api/v1/masters`, for administrators.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::problem::Problem;
use docklet_types::view::MasterView;

use super::problem::ApiError;
use crate::app::masters::Masters;
use crate::auth::Actor;

/// All masters that are at work. One that died is listed for some seconds more.
#[utoipa::path(get, path = "/api/v1/masters", tag = "hosts", responses(
    (status = 200, description = "By name", body = Vec<MasterView>),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(actor: Actor, masters: web::Data<Masters>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    Ok(HttpResponse::Ok().json(masters.list()))
}
