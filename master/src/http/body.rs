//! Request bodies: JSON whose every mistake is told with the field it is in.

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, web};
use docklet_types::problem::Code;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use sha2::{Digest as _, Sha256};
use std::future::Future;
use std::pin::Pin;

use super::problem::ApiError;

/// The largest body in bytes where a resource does not say otherwise.
pub const LIMIT: usize = 64 << 10;
/// For what carries a command's standard input.
pub const LARGE_LIMIT: usize = 8 << 20;

/// A JSON body of type `T`.
#[derive(Debug)]
pub struct Json<T> {
    pub value: T,
    /// SHA-256 of the bytes, to tell repetitions of a request from others.
    pub digest: [u8; 32],
}

/// # Errors
/// `malformed_body` where it is no JSON, and where it is JSON of another shape: then with the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde would also take a list of a struct's values in their order.
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
        return Err(ApiError::new(Code::MalformedBody, "The body is not a JSON object."));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let malformed = |e: &serde_json::Error| ApiError::new(Code::MalformedBody, format!("The body is not JSON: {e}."));
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        if inner.classify() != Category::Data {
            return malformed(inner);
        }
        // serde_json ends its message with where in the text it was; the field says that better.
        let text = inner.to_string();
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before).to_owned();
        let field = unknown_or_missing(&text).unwrap_or_else(|| if path == "." { String::new() } else { path });
        let problem = ApiError::new(Code::MalformedBody, format!("The body is not of the expected shape: {text}."));
        if field.is_empty() { problem } else { problem.at(field) }
    })?;
    json.end().map_err(|e| malformed(&e))?;
    Ok(value)
}

/// The field in ``unknown field `x` `` and ``missing field `x` ``, which the path does not name.
fn unknown_or_missing(text: &str) -> Option<String> {
    let rest = text.strip_prefix("unknown field `").or_else(|| text.strip_prefix("missing field `"))?;
    rest.split_once('`').map(|(field, _)| field.to_owned())
}

impl<T: DeserializeOwned + 'static> FromRequest for Json<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let bytes = web::Bytes::from_request(request, payload);
        Box::pin(async move {
            let bytes = bytes.await.map_err(unreadable)?;
            Ok(Self { value: parse(&bytes)?, digest: Sha256::digest(&bytes).into() })
        })
    }
}

/// A body that did not arrive whole, or is too large.
pub fn unreadable(error: actix_web::Error) -> ApiError {
    if error.as_response_error().status_code() == actix_web::http::StatusCode::PAYLOAD_TOO_LARGE {
        ApiError::new(Code::TooLarge, "The body is larger than this request may have.")
    } else {
        ApiError::new(Code::MalformedBody, format!("The body did not arrive whole: {error}."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use docklet_types::view::CreateVcluster;

    fn problem(text: &str) -> (Code, Option<String>, String) {
        let error = parse::<CreateVcluster>(text.as_bytes()).unwrap_err().problem;
        (error.code, error.field, error.detail)
    }

    #[test]
    fn mistakes_name_their_field() {
        assert_eq!(problem("{").0, Code::MalformedBody);
        assert_eq!(problem("").0, Code::MalformedBody);
        assert_eq!(problem(r#"{"name":"a","nodes":1} x"#).0, Code::MalformedBody);
        assert_eq!(problem("[]").0, Code::MalformedBody);
        assert_eq!(problem(r#"["a", 1]"#).0, Code::MalformedBody);
        let cases = [
            (r#"{"name":"a","nodes":"three"}"#, "nodes"),
            (r#"{"name":"a","nodes":1.5}"#, "nodes"),
            (r#"{"name":"a","nodes":99999999999999999999}"#, "nodes"),
            (r#"{"name":7,"nodes":1}"#, "name"),
            (r#"{"nodes":1}"#, "name"),
            (r#"{"name":"a","nodes":1,"colour":"red"}"#, "colour"),
            (r#"{"name":"a","nodes":1,"size":{"cpu":"x"}}"#, "size.cpu"),
        ];
        for (text, field) in cases {
            let (code, at, detail) = problem(text);
            assert_eq!((code, at.as_deref()), (Code::MalformedBody, Some(field)), "{text}: {detail}");
            assert!(!detail.contains("at line"), "{detail}");
        }
    }
}
