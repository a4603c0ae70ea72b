//! `/api/v1/images`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::problem::Problem;
use docklet_types::view::ImageView;

use super::problem::ApiError;
use crate::app::images::Images;
use crate::auth::Actor;

/// The images that nodes can be made from, the default first.
#[utoipa::path(get, path = "/api/v1/images", tag = "images", responses(
    (status = 200, description = "Images", body = Vec<ImageView>),
    (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(_actor: Actor, images: web::Data<Images>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(images.list().await?))
}
