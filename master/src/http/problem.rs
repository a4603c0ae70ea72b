//! Errors as they leave the server. Converted to HTTP here, once; the cause goes to the log and never to the client.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError};
use docklet_master_db::DbError;
use docklet_types::problem::{Code, Problem};
use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Seconds after which a client should try again when something of ours does not answer.
pub const RETRY_SECONDS: u64 = 2;

/// A problem, with what the log should know of it.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub problem: Box<Problem>,
    pub retry_after: Option<u64>,
    allow: Option<String>,
    cause: Option<Arc<dyn Error + Send + Sync>>,
}

/// Left in the response for the middleware: what to log, what to show on an error page.
#[derive(Debug, Clone)]
pub struct Told {
    pub problem: Problem,
    pub cause: Option<String>,
}

/// An error and everything under it, in one line.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl ApiError {
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        let retry_after = (code == Code::Unavailable).then_some(RETRY_SECONDS);
        Self { problem: Box::new(Problem::new(code, detail)), retry_after, allow: None, cause: None }
    }

    /// A value that is wrong, with the field that holds it.
    #[must_use]
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Code::Invalid, detail).at(field)
    }

    #[must_use]
    pub fn not_found(what: &str) -> Self {
        Self::new(Code::NotFound, format!("There is no {what} of that name."))
    }

    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.problem.field = Some(field.into());
        self
    }

    #[must_use]
    pub fn retry_in(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    #[must_use]
    pub fn allowing(mut self, methods: String) -> Self {
        self.allow = Some(methods);
        self
    }

    #[must_use]
    pub fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// Something of ours failed that no client can help.
    #[must_use]
    pub fn internal(cause: impl Error + Send + Sync + 'static) -> Self {
        Self::new(
            Code::Internal,
            "Something went wrong on our side. The log of the master says more under this request's id.",
        )
        .because(cause)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.detail)
    }
}

impl From<DbError> for ApiError {
    fn from(error: DbError) -> Self {
        Self::new(Code::Unavailable, "The database does not answer. Try again in a moment.").because(error)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code()).json(&*self.problem);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow.as_deref().and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.insert(ALLOW, allow);
        }
        if self.problem.code == Code::NotSignedIn {
            headers.insert(actix_web::http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let cause = self.cause.as_deref().map(|cause| chain(cause));
        response.extensions_mut().insert(Told { problem: (*self.problem).clone(), cause });
        response
    }
}

/// A sentence out of an error's message.
#[must_use]
pub fn sentence(error: &impl ToString) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str().trim_end_matches('.')),
        None => text,
    }
}
