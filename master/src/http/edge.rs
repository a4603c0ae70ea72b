//! What happens to every request of the portal and the API: an id, a span, the check of its origin, security headers, a
//! log line when it fails, metrics; and problems become pages where a browser asks.

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{ACCEPT, HeaderName, HeaderValue, LOCATION};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::problem::Code;
use std::time::Instant;
use tracing::Instrument as _;
use uuid::Uuid;

use super::metrics::Metrics;
use super::portal;
use super::problem::{ApiError, Told};
use crate::auth::{PortalAddress, csrf, headers};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

fn is_api(path: &str) -> bool {
    path.starts_with("/api/") || path == "/api"
}

/// Whether the answer goes to a person's browser window.
fn wants_page(request: &HttpRequest) -> bool {
    let accepts = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|a| a.contains("text/html"));
    accepts && !is_api(request.path())
}

/// See the module.
///
/// # Errors
/// What no handler turned into an answer; actix does.
pub async fn edge<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let started = Instant::now();
    let id = Uuid::now_v7();
    let portal = request.app_data::<web::Data<PortalAddress>>().cloned();
    let metrics = request.app_data::<web::Data<Metrics>>().cloned();
    let method = request.method().clone();
    let path = request.path().to_owned();
    let span = tracing::info_span!("request", %id, %method, path);
    let origin = portal.as_ref().map_or(Ok(()), |portal| csrf::check(request.request(), portal));
    let mut response = match origin {
        Err(refused) => request.error_response(refused).map_into_boxed_body(),
        // Routing needs the request to itself: no clone of it may be held here.
        Ok(()) => next.call(request).instrument(span.clone()).await?.map_into_boxed_body(),
    };
    let told = response.response().extensions().get::<Told>().cloned();
    if let Some(told) = told {
        span.in_scope(|| log(&told));
        if wants_page(response.request()) {
            response = page(response, &told).await;
        }
    }
    let status = response.status();
    if let Some(metrics) = metrics {
        let route = response.request().match_pattern().unwrap_or_else(|| "unmatched".to_owned());
        metrics.observe(&method, &route, status.as_u16(), started.elapsed());
    }
    span.in_scope(|| tracing::debug!(status = status.as_u16(), ms = started.elapsed().as_millis(), "answered"));
    let out = response.headers_mut();
    headers::add(out, portal.is_some_and(|p| p.is_secure()));
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        out.insert(REQUEST_ID, value);
    }
    Ok(response)
}

fn log(told: &Told) {
    let (status, code) = (told.problem.status, told.problem.code);
    match &told.cause {
        Some(cause) if status >= 500 && told.problem.code != Code::Unavailable => {
            tracing::error!(status, ?code, cause, "request failed")
        }
        Some(cause) => tracing::warn!(status, ?code, cause, "request refused"),
        None if status >= 500 => tracing::warn!(status, ?code, detail = told.problem.detail, "request failed"),
        None => tracing::debug!(status, ?code, detail = told.problem.detail, "request refused"),
    }
}

/// The problem as a page; who is not signed in is sent to sign in and comes back.
async fn page(response: ServiceResponse<BoxBody>, told: &Told) -> ServiceResponse<BoxBody> {
    let request = response.request().clone();
    let moved = |to: String| {
        let mut moved = HttpResponse::new(StatusCode::SEE_OTHER);
        if let Ok(to) = HeaderValue::from_str(&to) {
            moved.headers_mut().insert(LOCATION, to);
        }
        moved
    };
    if told.problem.code == Code::NotSignedIn {
        let back = if request.method() == Method::GET {
            request.uri().path_and_query().map_or("/", |p| p.as_str())
        } else {
            "/"
        };
        return response.into_response(moved(portal::sign_in::address(back)));
    }
    match portal::errors::page(&request, &told.problem).await {
        Ok(mut page) => {
            // Retry-After and Allow stay.
            for (name, value) in response.headers() {
                if name != actix_web::http::header::CONTENT_TYPE && name != actix_web::http::header::CONTENT_LENGTH {
                    page.headers_mut().insert(name.clone(), value.clone());
                }
            }
            response.into_response(page)
        }
        Err(error) => {
            let plain: ApiError = error;
            let plain = actix_web::ResponseError::error_response(&plain);
            response.into_response(plain)
        }
    }
}
