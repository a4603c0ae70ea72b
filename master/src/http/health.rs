//! `GET /healthz`: the process answers. `GET /readyz`: it can do its work, or what is missing.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_master_db::Db;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::RETRY_SECONDS;
use crate::reconcile::ClusterView;

/// What a master needs to do its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    pub ready: bool,
    /// Changes can be taken.
    pub store: bool,
    pub database: bool,
}

/// The process answers.
#[utoipa::path(get, path = "/healthz", tag = "health", security(()), responses((status = 200, description = "Alive", body = String, content_type = "text/plain")))]
pub async fn healthz() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// Whether it can do its work.
#[utoipa::path(get, path = "/readyz", tag = "health", security(()), responses(
    (status = 200, description = "Ready", body = Readiness),
    (status = 503, description = "Something is missing", body = Readiness)))]
pub async fn readyz(view: web::Data<ClusterView>, db: web::Data<Db>) -> HttpResponse {
    told(view.is_live(), db.ping().await.is_ok())
}

pub(super) fn told(store: bool, database: bool) -> HttpResponse {
    let readiness = Readiness { ready: store && database, store, database };
    if readiness.ready {
        HttpResponse::Ok().json(readiness)
    } else {
        HttpResponse::ServiceUnavailable().insert_header(("retry-after", RETRY_SECONDS)).json(readiness)
    }
}
