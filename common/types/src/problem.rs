//! Errors as they leave the API: RFC 9457 problem details with a stable code.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `application/problem+json`. Scripts look at `code`; people read `detail`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the code says the kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable, snake_case.
    #[schema(value_type = String, example = "over_quota")]
    pub code: Code,
    /// What happened here and what to do.
    pub detail: String,
    /// The request's field that is wrong, as a path: `size.cpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:literal, $title:literal;)*) => {
        /// What kind of error. The JSON form is snake_case.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    /// The body is not JSON or not of the expected shape.
    MalformedBody = 400, "The request body cannot be read";
    BadQuery = 400, "The query string cannot be read";
    /// A value is out of its range or unknown; `field` names it.
    Invalid = 422, "A value is not valid";
    UnknownImage = 422, "There is no such image";
    NotSignedIn = 401, "Sign in first";
    WrongPassword = 401, "User name or password is wrong";
    AccountDisabled = 403, "This account is disabled";
    NotAllowed = 403, "This is not allowed";
    OverQuota = 403, "This is over your quota";
    /// Also for what belongs to somebody else.
    NotFound = 404, "There is no such thing";
    MethodNotAllowed = 405, "This method is not supported here";
    Timeout = 408, "It did not happen in time";
    NameTaken = 409, "The name is taken";
    /// Another vcluster has that public port.
    PortTaken = 409, "The port is taken";
    Conflict = 409, "Something else changed it at the same time";
    /// The object is in a state that does not allow this.
    WrongState = 409, "This is not possible in its present state";
    /// Disks are copied between hosts that keep them on btrfs only.
    MoveNeedsBtrfs = 409, "A host cannot send or take disks";
    IdempotencyMismatch = 409, "The Idempotency-Key was used for another request";
    TooLarge = 413, "The request is too large";
    TooManyRequests = 429, "Too many attempts";
    Internal = 500, "Something went wrong on our side";
    BadGateway = 502, "The node did not answer";
    /// An administrator has said so; `Retry-After` says when it is expected to be over.
    Maintenance = 503, "Under maintenance";
    /// etcd or a host cannot be reached; `Retry-After` says when to try again.
    Unavailable = 503, "The cluster cannot take changes now";
}

impl Problem {
    #[must_use]
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            field: None,
        }
    }

    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}
