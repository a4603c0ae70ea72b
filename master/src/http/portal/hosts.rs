//! Hosts, for administrators; and images, for everybody.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_web::{HostNode, HostPage, HostsPage, ImagesPage, Nav};

use super::{page, shell};
use crate::app::hosts::Hosts;
use crate::app::images::Images;
use crate::auth::Actor;
use crate::http::hosts::HostPath;
use crate::http::problem::ApiError;

/// What makes a machine that has the packages and our configuration a host.
const JOIN: &str = "sudo ./prepare.sh && sudo docklet-worker start";

/// `GET /hosts`
///
/// # Errors
/// `not_allowed`
pub async fn list(request: HttpRequest, actor: Actor, hosts: web::Data<Hosts>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    page(
        StatusCode::OK,
        &HostsPage { shell: shell(&request, &actor, Nav::Hosts), hosts: hosts.list(), join_command: JOIN.to_owned() },
    )
}

/// `GET /hosts/{name}`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let host = hosts.get(&path.name).ok_or_else(|| ApiError::not_found("host"))?;
    let nodes = hosts
        .nodes(&path.name)
        .into_iter()
        .map(|n| HostNode { owner: n.owner.to_string(), vcluster: n.vcluster.to_string(), node: n.node })
        .collect();
    page(StatusCode::OK, &HostPage { shell: shell(&request, &actor, Nav::Hosts), host, nodes })
}

/// `GET /images`
///
/// # Errors
/// The images cannot be read.
pub async fn images(request: HttpRequest, actor: Actor, images: web::Data<Images>) -> Result<HttpResponse, ApiError> {
    let images = images.list().await?;
    page(StatusCode::OK, &ImagesPage { shell: shell(&request, &actor, Nav::Images), images })
}
