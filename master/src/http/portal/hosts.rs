//! Hosts, for administrators; and images, for everybody.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::HostName;
use docklet_types::view::ChangeHost;
use docklet_web::{HostNode, HostPage, HostsPage, ImagesPage, MaintenanceForm, Nav, link};

use super::flash::{self, Done};
use super::{go, page, shell};
use crate::app::hosts::Hosts;
use crate::app::images::Images;
use crate::app::masters::Masters;
use crate::auth::Actor;
use crate::http::hosts::HostPath;
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;

/// `GET /hosts`
///
/// # Errors
/// `not_allowed`
pub async fn list(
    request: HttpRequest,
    actor: Actor,
    hosts: web::Data<Hosts>,
    masters: web::Data<Masters>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let mut response = hosts_page(StatusCode::OK, &request, &actor, &hosts, &masters, MaintenanceForm::default())?;
    flash::forget(&request, &mut response);
    Ok(response)
}

/// The page of all hosts, with the form as it was typed.
pub(super) fn hosts_page(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    hosts: &Hosts,
    masters: &Masters,
    maintenance: MaintenanceForm,
) -> Result<HttpResponse, ApiError> {
    let shell = shell(request, actor, Nav::Hosts);
    page(status, &HostsPage { shell, hosts: hosts.list(), masters: masters.list(), maintenance })
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

async fn change(actor: Actor, hosts: web::Data<Hosts>, name: HostName, change: ChangeHost) -> Result<(), ApiError> {
    actor.must_be_admin()?;
    let hosts = hosts.into_inner();
    Idempotency::run(async move { Ok(hosts.change(&actor, &name, &change).await?) }).await.map(drop)
}

/// `POST /hosts/{name}/cordon`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn cordon(
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(actor, hosts, name.clone(), ChangeHost { cordoned: Some(true), ..ChangeHost::default() }).await?;
    Ok(flash::with(go(&link::host(name.as_str())), Done::HostCordoned, name.as_str()))
}

/// `POST /hosts/{name}/uncordon`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn uncordon(
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(actor, hosts, name.clone(), ChangeHost { cordoned: Some(false), ..ChangeHost::default() }).await?;
    Ok(flash::with(go(&link::host(name.as_str())), Done::HostUncordoned, name.as_str()))
}

/// `POST /hosts/{name}/drain`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn drain(actor: Actor, hosts: web::Data<Hosts>, path: web::Path<HostPath>) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(actor, hosts, name.clone(), ChangeHost { draining: Some(true), ..ChangeHost::default() }).await?;
    Ok(flash::with(go(&link::host(name.as_str())), Done::HostDrained, name.as_str()))
}

/// `POST /hosts/{name}/undrain`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn undrain(
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(actor, hosts, name.clone(), ChangeHost { draining: Some(false), ..ChangeHost::default() }).await?;
    Ok(flash::with(go(&link::host(name.as_str())), Done::HostUndrained, name.as_str()))
}

/// `POST /hosts/{name}/remove`
///
/// # Errors
/// `not_allowed`, `not_found`, `wrong_state`
pub async fn remove(
    actor: Actor,
    hosts: web::Data<Hosts>,
    path: web::Path<HostPath>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let (hosts, name) = (hosts.into_inner(), path.into_inner().name);
    let whom = name.clone();
    Idempotency::run(async move { Ok(hosts.remove(&actor, &whom).await?) }).await?;
    Ok(flash::with(go("/hosts"), Done::HostRemoved, name.as_str()))
}

/// `GET /images`
///
/// # Errors
/// The images cannot be read.
pub async fn images(request: HttpRequest, actor: Actor, images: web::Data<Images>) -> Result<HttpResponse, ApiError> {
    let images = images.list().await?;
    page(StatusCode::OK, &ImagesPage { shell: shell(&request, &actor, Nav::Images), images })
}
