//! What query strings and paths of several resources have in common.

use actix_web::HttpRequest;
use actix_web::error::{PathError, QueryPayloadError};
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::problem::Code;
use serde::Deserialize;
use std::time::Duration;
use utoipa::IntoParams;

use super::problem::ApiError;
use crate::auth::Actor;

/// The longest wait that one request may ask for.
const MAX_WAIT_S: u64 = 3600;
/// How long a wait lasts where the request does not say.
const DEFAULT_WAIT_S: u64 = 30;

/// `?owner=` for administrators.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OwnerQuery {
    /// Whose vcluster is meant; for administrators. One's own where absent.
    pub owner: Option<String>,
}

/// `?owner=&wait=&timeout=`
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Whose vcluster is meant; for administrators. One's own where absent.
    pub owner: Option<String>,
    /// Answer when the vcluster has this status (DELETE: `absent`), or ended another way.
    pub wait: Option<String>,
    /// Seconds to wait at most; 30 where absent, 3600 at most.
    #[param(maximum = 3600)]
    pub timeout: Option<u64>,
}

/// Path of a vcluster.
#[derive(Debug, Deserialize)]
pub struct VclusterPath {
    pub name: VclusterName,
}

/// Path of a node.
#[derive(Debug, Deserialize)]
pub struct NodePath {
    pub name: VclusterName,
    pub node: NodeName,
}

/// Who owns what the request is about. Somebody else's looks like what does not exist.
///
/// # Errors
/// `not_found`
pub fn owner(actor: &Actor, asked: Option<&str>) -> Result<UserName, ApiError> {
    let Some(asked) = asked else { return Ok(actor.name().clone()) };
    let owner = asked.parse::<UserName>().map_err(|_| ApiError::not_found("user"))?;
    if actor.may_act_for(&owner) { Ok(owner) } else { Err(ApiError::not_found("vcluster")) }
}

impl WaitQuery {
    /// # Errors
    /// `bad_query`
    pub fn limit(&self) -> Result<Duration, ApiError> {
        let seconds = self.timeout.unwrap_or(DEFAULT_WAIT_S);
        if seconds > MAX_WAIT_S {
            return Err(
                ApiError::new(Code::BadQuery, format!("timeout is at most {MAX_WAIT_S} seconds.")).at("timeout")
            );
        }
        Ok(Duration::from_secs(seconds))
    }
}

/// A query string that cannot be read.
pub fn bad_query(error: QueryPayloadError, _: &HttpRequest) -> actix_web::Error {
    ApiError::new(Code::BadQuery, format!("The query string cannot be read: {error}.")).into()
}

/// A path with a name in it that nothing can have.
pub fn bad_path(_: PathError, _: &HttpRequest) -> actix_web::Error {
    ApiError::new(Code::NotFound, "There is no such thing.").into()
}
