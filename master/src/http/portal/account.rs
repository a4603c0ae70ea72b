//! The account of whoever is signed in.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_master_db::users::Theme;
use docklet_types::view::ChangeUser;
use docklet_web::{AccountPage, Errors, Nav, PasswordForm, SessionRow};
use serde::Deserialize;

use super::flash::Done;
use super::{REFUSED, flash, go, is_for_form, page, shell, sign_in};
use crate::app::users::Users;
use crate::app::vclusters::Vclusters;
use crate::auth::{Actor, Sessions};
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;
use crate::http::users::about;

async fn render(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    vclusters: &Vclusters,
    sessions: &Sessions,
    errors: Errors,
) -> Result<HttpResponse, ApiError> {
    let rows = sessions.list(actor.id()).await?;
    let sessions = rows
        .into_iter()
        .map(|row| SessionRow {
            created_at: row.created_at.to_string(),
            last_seen: row.last_used.to_string(),
            agent: row.user_agent,
            current: row.hash == actor.session().as_str(),
        })
        .collect();
    let shown = AccountPage {
        shell: shell(request, actor, Nav::Account),
        me: about(actor, vclusters),
        password: PasswordForm { errors },
        sessions,
    };
    let mut response = page(status, &shown)?;
    flash::forget(request, &mut response);
    Ok(response)
}

/// `GET /account`
///
/// # Errors
/// The database does not answer.
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    sessions: web::Data<Sessions>,
) -> Result<HttpResponse, ApiError> {
    render(StatusCode::OK, &request, &actor, &vclusters, &sessions, Errors::none()).await
}

/// The password form.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Password {
    current_password: String,
    password: String,
}

/// `POST /account/password`
///
/// # Errors
/// What is not a matter of the form.
pub async fn password(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    sessions: web::Data<Sessions>,
    users: web::Data<Users>,
    form: web::Form<Password>,
) -> Result<HttpResponse, ApiError> {
    let form = form.into_inner();
    let change = ChangeUser {
        password: Some(form.password),
        current_password: Some(form.current_password),
        ..ChangeUser::default()
    };
    let (users, asker) = (users.into_inner(), actor.clone());
    let done = Idempotency::run(async move { Ok(users.change(&asker, asker.name(), &change).await?) }).await;
    match done {
        Ok(_) => Ok(flash::with(go("/account"), Done::PasswordChanged, actor.name().as_str())),
        Err(error) if is_for_form(&error.problem) => {
            render(REFUSED, &request, &actor, &vclusters, &sessions, Errors::from_problem(&error.problem)).await
        }
        Err(error) => Err(error),
    }
}

/// The theme form.
#[derive(Debug, Deserialize)]
pub struct Colours {
    theme: String,
}

/// `POST /account/theme`
///
/// # Errors
/// The database does not answer.
pub async fn theme(actor: Actor, users: web::Data<Users>, form: web::Form<Colours>) -> Result<HttpResponse, ApiError> {
    let theme = Theme::parse(&form.theme).unwrap_or_default();
    users.set_theme(&actor, theme).await?;
    let mut response = go("/account");
    response.add_cookie(&sign_in::theme_cookie(theme.as_str())).map_err(ApiError::internal)?;
    Ok(response)
}

/// `POST /account/sign-out-everywhere`: all sessions but this one.
///
/// # Errors
/// The database does not answer.
pub async fn sign_out_everywhere(actor: Actor, sessions: web::Data<Sessions>) -> Result<HttpResponse, ApiError> {
    sessions.end_all_of(actor.id(), Some(actor.session())).await?;
    Ok(flash::with(go("/account"), Done::SignedOutElsewhere, actor.name().as_str()))
}
