//! `/api/v1/users` and `/api/v1/me`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::UserName;
use docklet_types::problem::Problem;
use docklet_types::view::{ChangeUser, CreateUser, Me, UserView};
use serde::Deserialize;

use super::body::Json;
use super::idempotency::{Idempotency, Reply};
use super::problem::ApiError;
use crate::app::users::Users;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;

/// Path of a user.
#[derive(Debug, Deserialize)]
pub struct UserPath {
    pub name: UserName,
}

/// Who you are, what you hold and what you may hold.
#[utoipa::path(get, path = "/api/v1/me", tag = "users", responses((status = 200, description = "You", body = Me)))]
pub async fn me(actor: Actor, vclusters: web::Data<Vclusters>) -> HttpResponse {
    HttpResponse::Ok().json(about(&actor, &vclusters))
}

/// The same for the portal.
#[must_use]
pub fn about(actor: &Actor, vclusters: &Vclusters) -> Me {
    Me {
        username: actor.name().to_string(),
        role: actor.role(),
        usage: vclusters.usage(actor.name()),
        quota: (!actor.is_admin()).then(|| vclusters.settings().quota()),
    }
}

/// All users, for administrators.
#[utoipa::path(get, path = "/api/v1/users", tag = "users", responses(
    (status = 200, description = "By name", body = Vec<UserView>),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json")))]
pub async fn list(actor: Actor, users: web::Data<Users>) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    Ok(HttpResponse::Ok().json(users.list().await?))
}

/// Adds a user, for administrators.
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = CreateUser,
    params(("Idempotency-Key" = Option<String>, Header, description = "Requests with the same key take effect once, for 24 h")), responses(
        (status = 201, description = "Added", body = UserView),
        (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`name_taken`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid`", body = Problem, content_type = "application/problem+json")))]
pub async fn create(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    once: web::Data<Idempotency>,
    body: Json<CreateUser>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let (users, by) = (users.into_inner(), actor.clone());
    once.once(&request, &actor, body.digest, move |_| async move {
        let user = users.create(&by, &body.value).await?;
        let location = format!("/api/v1/users/{}", user.username);
        Ok(Reply::json(StatusCode::CREATED, &user)?.at(location))
    })
    .await
}

/// One user; users see themselves only.
#[utoipa::path(get, path = "/api/v1/users/{name}", tag = "users", params(("name" = String, Path)), responses(
    (status = 200, description = "The user", body = UserView),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn get(actor: Actor, users: web::Data<Users>, path: web::Path<UserPath>) -> Result<HttpResponse, ApiError> {
    Ok(HttpResponse::Ok().json(users.get(&actor, &path.name).await?))
}

/// Changes a password, role or state. Users change their own password, giving the present one; the rest is for
/// administrators. A changed password and a disabled account end sessions and their open sockets.
#[utoipa::path(patch, path = "/api/v1/users/{name}", tag = "users", request_body = ChangeUser, params(("name" = String, Path)), responses(
    (status = 200, description = "Changed", body = UserView),
    (status = 401, description = "`wrong_password`", body = Problem, content_type = "application/problem+json"),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`invalid`", body = Problem, content_type = "application/problem+json")))]
pub async fn change(
    actor: Actor,
    users: web::Data<Users>,
    path: web::Path<UserPath>,
    body: Json<ChangeUser>,
) -> Result<HttpResponse, ApiError> {
    let users = users.into_inner();
    let view = Idempotency::run(async move { Ok(users.change(&actor, &path.name, &body.value).await?) }).await?;
    Ok(HttpResponse::Ok().json(view))
}

/// Removes a user without vclusters. The user's data is set aside, not deleted.
#[utoipa::path(delete, path = "/api/v1/users/{name}", tag = "users", params(("name" = String, Path)), responses(
    (status = 204, description = "Removed"),
    (status = 403, description = "`not_allowed`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`: there are vclusters", body = Problem, content_type = "application/problem+json")))]
pub async fn remove(
    actor: Actor,
    users: web::Data<Users>,
    path: web::Path<UserPath>,
) -> Result<HttpResponse, ApiError> {
    let users = users.into_inner();
    Idempotency::run(async move { Ok(users.remove(&actor, &path.name).await?) }).await?;
    Ok(HttpResponse::NoContent().finish())
}
