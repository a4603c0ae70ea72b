//! `/api/v1/sessions`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::header::USER_AGENT;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_master_db::sessions::SessionKind;
use docklet_types::problem::Problem;
use docklet_types::view::{Session, SignIn};
use std::net::{IpAddr, Ipv4Addr};

use super::body::Json;
use super::problem::ApiError;
use crate::auth::gate::{Gate, SignedIn};
use crate::auth::{Actor, Sessions};

/// Signs in on behalf of a request.
///
/// # Errors
/// As the gate says.
pub async fn sign_in(request: &HttpRequest, gate: &Gate, username: &str, password: &str, kind: SessionKind) -> Result<SignedIn, ApiError> {
    // Of the connection: what a header says of it anybody can write.
    let address = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
    let agent = request.headers().get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    Ok(gate.sign_in(username, password, address, kind, agent).await?)
}

/// Signs in. The token goes into `Authorization: Bearer …`; it is shown this once.
#[utoipa::path(post, path = "/api/v1/sessions", tag = "sessions", request_body = SignIn, security(()), responses(
    (status = 201, description = "Signed in", body = Session),
    (status = 401, description = "`wrong_password`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`account_disabled`", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`invalid`", body = Problem, content_type = "application/problem+json"),
    (status = 429, description = "`too_many_requests`", body = Problem, content_type = "application/problem+json")))]
pub async fn create(request: HttpRequest, gate: web::Data<Gate>, body: Json<SignIn>) -> Result<HttpResponse, ApiError> {
    let signed_in = sign_in(&request, &gate, &body.value.username, &body.value.password, SessionKind::Api).await?;
    let session = Session { token: signed_in.token.reveal().to_owned(), expires_at: signed_in.expires_at.to_string() };
    Ok(HttpResponse::Created().json(session))
}

/// Signs out: the token is good no more, and its open sockets close.
#[utoipa::path(delete, path = "/api/v1/sessions/current", tag = "sessions", responses((status = 204, description = "Signed out")))]
pub async fn end(actor: Actor, sessions: web::Data<Sessions>) -> Result<HttpResponse, ApiError> {
    sessions.end(actor.session()).await?;
    Ok(HttpResponse::NoContent().finish())
}
