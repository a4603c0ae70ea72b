//! Problems as pages.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse};
use docklet_types::problem::{Code, Problem};
use docklet_web::{ErrorPage, Nav, NotFoundPage};

use super::{page as render, public_shell, shell};
use crate::auth::{Actor, PortalAddress, csrf};
use crate::http::problem::ApiError;

/// The page that tells of a problem.
///
/// # Errors
/// The page cannot be written.
pub async fn page(request: &HttpRequest, problem: &Problem) -> Result<HttpResponse, ApiError> {
    let frame = match Actor::of(request).await {
        Ok(actor) => shell(request, &actor, Nav::None),
        Err(_) => public_shell(request),
    };
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if problem.code == Code::NotFound {
        return render(status, &NotFoundPage { shell: frame });
    }
    render(status, &ErrorPage { shell: frame, problem: problem.clone(), back: came_from(request) })
}

/// The page before, where it is one of ours.
fn came_from(request: &HttpRequest) -> Option<String> {
    let referer = request.headers().get("referer")?.to_str().ok()?;
    let start = referer.find("://")? + 3;
    let slash = start + referer[start..].find('/')?;
    let portal = request.app_data::<actix_web::web::Data<PortalAddress>>()?;
    csrf::is_own_origin(request, portal, &referer[..slash]).then(|| referer[slash..].to_owned())
}
