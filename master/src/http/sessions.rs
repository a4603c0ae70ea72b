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
use crate::app::warm::WarmNodes;
use crate::auth::gate::{Gate, SignedIn};
use crate::auth::{Actor, PortalAddress, Sessions};

/// Where the client is. What a header says of it anybody can write; it is believed only of a web server on this machine,
/// and only where there must be one: we speak plain HTTP, so an https:// PORTAL_URL means that another takes TLS off.
fn client_address(request: &HttpRequest) -> IpAddr {
    let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |a| a.ip());
    let behind_tls = request.app_data::<web::Data<PortalAddress>>().is_some_and(|p| p.is_secure());
    if !(behind_tls && peer.to_canonical().is_loopback()) {
        return peer;
    }
    // The last entry is the one that the web server itself added.
    let forwarded = request.headers().get_all("x-forwarded-for").last().and_then(|v| v.to_str().ok());
    forwarded.and_then(|list| list.rsplit(',').next()?.trim().parse().ok()).unwrap_or(peer)
}

/// Signs in on behalf of a request.
///
/// # Errors
/// As the gate says.
pub async fn sign_in(
    request: &HttpRequest,
    gate: &Gate,
    username: &str,
    password: &str,
    kind: SessionKind,
) -> Result<SignedIn, ApiError> {
    let address = client_address(request);
    let agent = request.headers().get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let signed_in = gate.sign_in(username, password, address, kind, agent).await?;
    if let Some(warm) = request.app_data::<web::Data<WarmNodes>>() {
        warm.expect(&signed_in.user.name);
    }
    Ok(signed_in)
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

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    fn seen(portal: &str, peer: &str, forwarded: &[&'static str]) -> String {
        let mut request = TestRequest::post()
            .peer_addr(format!("{peer}:4000").parse().unwrap())
            .app_data(web::Data::new(PortalAddress::new(portal)));
        for value in forwarded {
            request = request.append_header(("x-forwarded-for", *value));
        }
        client_address(&request.to_http_request()).to_string()
    }

    #[test]
    fn only_a_web_server_of_this_machine_is_believed() {
        assert_eq!(seen("http://localhost:8000", "127.0.0.1", &["10.0.0.7"]), "127.0.0.1");
        assert_eq!(seen("https://docklet.example.org", "192.0.2.1", &["10.0.0.7"]), "192.0.2.1");
        assert_eq!(seen("https://docklet.example.org", "127.0.0.1", &["10.0.0.7"]), "10.0.0.7");
        assert_eq!(seen("https://docklet.example.org", "127.0.0.1", &["198.51.100.9, 10.0.0.7"]), "10.0.0.7");
        assert_eq!(seen("https://docklet.example.org", "127.0.0.1", &["198.51.100.9", "10.0.0.7"]), "10.0.0.7");
        assert_eq!(seen("https://docklet.example.org", "127.0.0.1", &["nonsense"]), "127.0.0.1");
        assert_eq!(seen("https://docklet.example.org", "127.0.0.1", &[]), "127.0.0.1");
    }
}
