//! The few answers on an app's origin that are ours: pages for people, problem details for programs.
//!
//! Texts in them are validated names or fixed; nothing of a request is repeated.

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use docklet_types::problem::{Code, Problem};
use http::StatusCode;

use super::address::AppAddress;
use super::agent::AccessError;

/// Whether the other side is a person's browser opening a page, by the values of its `Accept`.
pub fn wants_page<'a>(accept: impl Iterator<Item = &'a [u8]>) -> bool {
    accept.filter_map(|value| std::str::from_utf8(value).ok()).any(|value| value.contains("text/html"))
}

/// The same of a request to the portal.
pub fn is_page_wanted(headers: &HeaderMap) -> bool {
    wants_page(headers.get_all(header::ACCEPT).map(HeaderValue::as_bytes))
}

/// An answer of our own, before it is known who writes it: this proxy on an app's origin, or the portal's server.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    /// Names in lower case; values hold no end of a line.
    pub fields: Vec<(&'static str, String)>,
    pub body: String,
    /// The connection cannot be used for another request.
    pub close: bool,
}

impl Reply {
    /// With the headers of every answer of our own on an app's origin.
    pub fn new(status: StatusCode) -> Self {
        let fields = vec![
            ("cache-control", "no-store".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("content-security-policy", POLICY.to_owned()),
        ];
        Self { status, fields, body: String::new(), close: false }
    }

    pub fn see_other(location: &str) -> Self {
        Self::new(StatusCode::SEE_OTHER).with("location", location.to_owned())
    }

    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.fields.push((name, value));
        self
    }
}

impl From<Reply> for HttpResponse {
    fn from(reply: Reply) -> Self {
        let status = actix_web::http::StatusCode::from_u16(reply.status.as_u16())
            .unwrap_or(actix_web::http::StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Self::build(status);
        for (name, value) in reply.fields {
            response.append_header((name, value));
        }
        if reply.close {
            response.force_close();
        }
        response.body(reply.body)
    }
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

    /// As a page or as problem details.
    pub fn reply(&self, page: bool) -> Reply {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut reply = Reply::new(status);
        if let Some(seconds) = self.retry_after {
            reply = reply.with("retry-after", seconds.to_string());
        }
        reply.close = self.close;
        if page {
            reply.body = self.page();
            reply.with("content-type", "text/html; charset=utf-8".to_owned())
        } else {
            let problem = Problem::new(self.code, self.detail.clone());
            reply.body = serde_json::to_string(&problem).unwrap_or_default();
            reply.with("content-type", "application/problem+json".to_owned())
        }
    }

    /// The same from the portal's server.
    pub fn answer(&self, headers: &HeaderMap) -> HttpResponse {
        self.reply(is_page_wanted(headers)).into()
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

/// What pages of our own on an app's origin may do: nothing but be looked at.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'";

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
