//! The portal's pages: what a use case answered, put into a page of `docklet-web`.
//!
//! Plain forms: a change answers 303 to the page that shows it, a refusal answers with the form and what is wrong. The
//! pieces that live come from [`live`], made of the same states as the pages.

pub mod account;
pub mod assets;
pub mod errors;
mod flash;
pub mod home;
pub mod hosts;
pub mod jupyter;
pub mod live;
pub mod maintenance;
pub mod new;
pub mod sign_in;
pub mod terminal;
pub mod users;
pub mod vcluster;

use actix_web::http::StatusCode;
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::problem::{Code, Problem};
use docklet_types::site::Sites;
use docklet_types::time::Micros;
use docklet_types::view::SiteView;
use docklet_web::{Nav, Notice, Shell, Template, Theme, Viewer};

use super::openapi::wrong_method;
use super::problem::ApiError;
use super::{read, sites};
use crate::auth::{Actor, PortalAddress};
use crate::reconcile::ClusterView;

/// Puts the pages in their places.
pub fn configure(service: &mut web::ServiceConfig) {
    use web::{get, post};
    let at = |path: &str| web::resource(path).default_service(web::to(wrong_method));
    service
        .service(at("/").route(read().to(home::show)))
        .service(at("/sign-in").route(read().to(sign_in::show)).route(post().to(sign_in::sign_in)))
        .service(at("/sign-out").route(post().to(sign_in::sign_out)))
        .service(at("/vclusters").route(post().to(new::create)))
        .service(at("/vclusters/new").route(read().to(new::show)).route(post().to(new::fit)))
        .service(at("/vclusters/{name}").route(read().to(vcluster::show)))
        .service(at("/vclusters/{name}/start").route(post().to(vcluster::start)))
        .service(at("/vclusters/{name}/stop").route(post().to(vcluster::stop)))
        .service(at("/vclusters/{name}/retry").route(post().to(vcluster::retry)))
        .service(at("/vclusters/{name}/scale").route(post().to(vcluster::scale)))
        .service(
            at("/vclusters/{name}/delete").route(read().to(vcluster::ask_delete)).route(post().to(vcluster::delete)),
        )
        .service(at("/vclusters/{name}/ports").route(post().to(vcluster::publish)))
        .service(at("/vclusters/{name}/ports/{protocol}/{public_port}/remove").route(post().to(vcluster::unpublish)))
        .service(at("/vclusters/{name}/terminal").route(read().to(terminal::show)))
        .service(
            at("/vclusters/{name}/nodes/{node}/jupyter")
                .route(read().to(jupyter::show))
                .route(post().to(jupyter::start)),
        )
        .service(at("/account").route(read().to(account::show)))
        .service(at("/account/password").route(post().to(account::password)))
        .service(at("/account/theme").route(post().to(account::theme)))
        .service(at("/account/sign-out-everywhere").route(post().to(account::sign_out_everywhere)))
        .service(at("/users").route(read().to(users::show)).route(post().to(users::create)))
        .service(at("/users/{name}/disable").route(post().to(users::disable)))
        .service(at("/users/{name}/enable").route(post().to(users::enable)))
        .service(at("/users/{name}/password").route(post().to(users::password)))
        .service(at("/users/{name}/delete").route(read().to(users::ask_delete)).route(post().to(users::delete)))
        .service(at("/hosts").route(read().to(hosts::list)))
        .service(at("/hosts/{name}").route(read().to(hosts::show)))
        .service(at("/hosts/{name}/cordon").route(post().to(hosts::cordon)))
        .service(at("/hosts/{name}/uncordon").route(post().to(hosts::uncordon)))
        .service(at("/hosts/{name}/drain").route(post().to(hosts::drain)))
        .service(at("/hosts/{name}/undrain").route(post().to(hosts::undrain)))
        .service(at("/hosts/{name}/remove").route(post().to(hosts::remove)))
        .service(at("/maintenance").route(post().to(maintenance::begin)))
        .service(at("/maintenance/end").route(post().to(maintenance::end)))
        .service(at("/images").route(read().to(hosts::images)))
        .service(at("/assets/{name}").route(read().to(assets::show)))
        .service(at("/favicon.ico").route(read().to(assets::favicon)))
        .service(at("/live/home").route(get().to(live::home)))
        .service(at("/live/vclusters/{name}").route(get().to(live::vcluster)));
}

/// A page with its status.
///
/// # Errors
/// The template cannot be written.
pub fn page(status: StatusCode, page: &impl Template) -> Result<HttpResponse, ApiError> {
    let html = page.render().map_err(ApiError::internal)?;
    Ok(HttpResponse::build(status).content_type("text/html; charset=utf-8").body(html))
}

/// Leads the browser to another page after a change.
#[must_use]
pub fn go(to: &str) -> HttpResponse {
    HttpResponse::SeeOther().insert_header((LOCATION, to)).finish()
}

fn theme_of(actor: &Actor) -> Theme {
    Theme::parse(actor.theme().as_str())
}

/// The frame of a page for who is signed in, with the news that the last change left.
#[must_use]
pub fn shell(request: &HttpRequest, actor: &Actor, nav: Nav) -> Shell {
    let viewer = Viewer { username: actor.name().to_string(), admin: actor.is_admin() };
    Shell::new(viewer, theme_of(actor), nav, Micros::now())
        .with_flash(flash::take(request))
        .with_notice(notice(request))
        .with_sites(all_sites(request))
}

/// The frame for who is not.
#[must_use]
pub fn public_shell(request: &HttpRequest) -> Shell {
    let theme = request.cookie(Theme::COOKIE).map_or(Theme::Auto, |c| Theme::parse(c.value()));
    Shell::public(theme, Micros::now()).with_notice(notice(request)).with_sites(all_sites(request))
}

fn all_sites(request: &HttpRequest) -> Vec<SiteView> {
    match (request.app_data::<web::Data<Sites>>(), request.app_data::<web::Data<PortalAddress>>()) {
        (Some(all), Some(portal)) => sites::shown(all, portal),
        _ => Vec::new(),
    }
}

/// What everybody should know now.
fn notice(request: &HttpRequest) -> Option<Notice> {
    let said = request.app_data::<web::Data<ClusterView>>()?.maintenance()?.value;
    Some(Notice { message: said.message.clone(), until: said.until })
}

/// Whether a problem belongs beside a field of the form that caused it.
fn is_for_form(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::Invalid
            | Code::UnknownImage
            | Code::OverQuota
            | Code::NameTaken
            | Code::PortTaken
            | Code::WrongPassword
            | Code::Maintenance
    )
}

/// 422 for a form that is shown again.
const REFUSED: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
