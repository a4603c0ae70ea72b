//! The few answers on an app's origin that are ours: pages for people, problem details for programs.
//!
//! Texts in them are validated names or fixed; nothing of a request is repeated.

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap};
use actix_web::{HttpResponse, HttpResponseBuilder};
use docklet_types::problem::{Code, Problem};

use super::address::AppAddress;
use super::agent::AccessError;

/// Whether the other side is a person's browser opening a page.
pub fn wants_page(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"))
}

/// An error as it leaves the proxy: one text for both kinds of reader.
pub struct Trouble {
    pub code: Code,
    pub title: &'static str,
    pub detail: String,
    /// The page loads itself again after so many seconds.
    pub retry_after: Option<u32>,
    /// Label and address of the one thing to do.
    pub action: Option<(&'static str, String)>,
    /// The connection cannot be used for another request.
    pub close: bool,
}

impl Trouble {
    pub fn new(code: Code, title: &'static str, detail: impl Into<String>) -> Self {
        Self { code, title, detail: detail.into(), retry_after: None, action: None, close: false }
    }

    /// What is said of an app that does not exist and of one that is somebody else's: the same.
    pub fn no_such_app(portal: &str) -> Self {
        Self::new(
            Code::NotFound,
            "There is no such app here",
            "The address names no node of yours. It may have been deleted, or the address has a typing error.",
        )
        .leading_to("Your clusters", format!("{portal}/"))
    }

    pub fn unavailable() -> Self {
        let mut trouble = Self::new(
            Code::Unavailable,
            "Signing in cannot be checked now",
            "The accounts cannot be read at the moment. This page tries again by itself.",
        );
        trouble.retry_after = Some(3);
        trouble
    }

    /// Why the app cannot be reached.
    pub fn unreachable(error: &AccessError, app: &AppAddress, portal: &str) -> Self {
        let (node, port) = (&app.node, app.port);
        let (title, detail) = match error {
            AccessError::NotRunning => (
                "The node is not running",
                format!(
                    "{node} is stopped or still starting. Start it in the portal; this page opens by itself once it runs."
                ),
            ),
            AccessError::Refused => (
                "The app is not running",
                format!(
                    "Nothing listens on port {port} of {node}. Start the app there; this page opens by itself once it answers."
                ),
            ),
            AccessError::TimedOut => (
                "The app does not answer",
                format!("Port {port} of {node} did not answer in time. This page tries again by itself."),
            ),
            AccessError::WorkerDown(_) | AccessError::Protocol => (
                "The host of the node cannot be reached",
                format!(
                    "{node} may well be running, but its host does not answer at the moment. This page tries again by itself."
                ),
            ),
            AccessError::Failed(reason) => ("The app cannot be reached", reason.message.clone()),
        };
        let mut trouble = Self::new(Code::BadGateway, title, detail)
            .leading_to("Open the portal", format!("{portal}/vclusters/{}", app.vcluster));
        trouble.retry_after = Some(3);
        trouble
    }

    pub fn leading_to(mut self, label: &'static str, href: String) -> Self {
        self.action = Some((label, href));
        self
    }

    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub fn answer(&self, headers: &HeaderMap) -> HttpResponse {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        plain_headers(&mut response);
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        if self.close {
            response.force_close();
        }
        if wants_page(headers) {
            response.content_type("text/html; charset=utf-8").body(self.page())
        } else {
            let problem = Problem::new(self.code, self.detail.clone());
            let body = serde_json::to_string(&problem).unwrap_or_default();
            response.content_type("application/problem+json").body(body)
        }
    }

    fn page(&self) -> String {
        let refresh =
            self.retry_after.map(|s| format!("<meta http-equiv=\"refresh\" content=\"{s}\">")).unwrap_or_default();
        let action = self
            .action
            .as_ref()
            .map(|(label, href)| format!("<p><a href=\"{}\">{}</a></p>", escape(href), escape(label)))
            .unwrap_or_default();
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             {refresh}<title>{title} · Docklet</title><style>{STYLE}</style></head>\
             <body><main><h1>{title}</h1><p>{detail}</p>{action}</main></body></html>\n",
            title = escape(self.title),
            detail = escape(&self.detail),
        )
    }
}

const STYLE: &str = ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0;display:grid;min-height:100vh;place-items:center;\
    background:Canvas;color:CanvasText}main{max-width:32rem;padding:2rem}h1{font-size:1.5rem;margin:0 0 .5rem}a{color:LinkText}";

/// Headers of every answer of our own on an app's origin.
pub fn plain_headers(response: &mut HttpResponseBuilder) {
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"));
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
