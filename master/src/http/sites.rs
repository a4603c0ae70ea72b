//! `/api/v1/sites`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::site::{Site, Sites};
use docklet_types::view::SiteView;

use super::problem::ApiError;
use crate::auth::{Actor, PortalAddress};

/// The sites that an account is good at, as the operator lists them; empty where there is only this one.
#[utoipa::path(get, path = "/api/v1/sites", tag = "sites", responses(
    (status = 200, description = "In the operator's order", body = Vec<SiteView>)))]
pub async fn list(
    _: Actor,
    sites: web::Data<Sites>,
    portal: web::Data<PortalAddress>,
) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(shown(&sites, &portal)))
}

pub(super) fn shown(sites: &Sites, portal: &PortalAddress) -> Vec<SiteView> {
    let view = |site: &Site| SiteView { name: site.name.clone(), url: site.url.clone(), here: site.url == portal.url };
    sites.0.iter().map(view).collect()
}
