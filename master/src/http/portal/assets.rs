//! `/assets/…`: styles and scripts under names that hold a hash of their content.

use actix_web::http::header::{ACCEPT_ENCODING, LOCATION};
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_web::assets;

use crate::http::problem::ApiError;

/// `GET /assets/{name}`
///
/// # Errors
/// `not_found`
pub async fn show(request: HttpRequest, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let asset = assets::get(&name).ok_or_else(|| ApiError::not_found("file"))?;
    let gzip_taken =
        request.headers().get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).is_some_and(|v| v.contains("gzip"));
    let mut response = HttpResponse::Ok();
    response
        .content_type(asset.content_type)
        .insert_header(("cache-control", assets::CACHE_CONTROL))
        .insert_header(("vary", "accept-encoding"));
    Ok(match asset.gzip.filter(|_| gzip_taken) {
        Some(gzip) => response.insert_header(("content-encoding", "gzip")).body(gzip.into_owned()),
        None => response.body(asset.body.into_owned()),
    })
}

/// `GET /favicon.ico`, which browsers ask for unasked.
pub async fn favicon() -> HttpResponse {
    HttpResponse::MovedPermanently()
        .insert_header((LOCATION, assets::url("favicon.svg")))
        .insert_header(("cache-control", "public, max-age=86400"))
        .finish()
}
