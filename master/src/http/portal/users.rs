//! Users, for administrators.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::UserName;
use docklet_types::problem::Code;
use docklet_types::view::{ChangeUser, CreateUser, Role};
use docklet_web::{Errors, Nav, UserDeletePage, UserForm, UsersPage};
use serde::Deserialize;

use super::flash::Done;
use super::{REFUSED, flash, go, is_for_form, page, shell};
use crate::app::users::Users;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::idempotency::Idempotency;
use crate::http::problem::ApiError;
use crate::http::users::UserPath;

/// `?q=`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Search {
    q: String,
}

async fn render(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    users: &Users,
    q: String,
    form: UserForm,
    password_error: Option<(String, String)>,
) -> Result<HttpResponse, ApiError> {
    let shown =
        UsersPage { shell: shell(request, actor, Nav::Users), users: users.list().await?, q, form, password_error };
    let mut response = page(status, &shown)?;
    flash::forget(request, &mut response);
    Ok(response)
}

/// `GET /users?q=`
///
/// # Errors
/// `not_allowed`
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    query: web::Query<Search>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    render(StatusCode::OK, &request, &actor, &users, query.into_inner().q, UserForm::default(), None).await
}

/// The form for a new user.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct NewUser {
    username: String,
    password: String,
    role: String,
}

/// `POST /users`
///
/// # Errors
/// What is not a matter of the form.
pub async fn create(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    form: web::Form<NewUser>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let form = form.into_inner();
    let role = match form.role.as_str() {
        "" | "user" => Role::User,
        "admin" => Role::Admin,
        other => {
            let errors = Errors::one("role", format!("{other:?} is not user or admin."));
            let form = UserForm { username: form.username, role: form.role, errors };
            return render(REFUSED, &request, &actor, &users, String::new(), form, None).await;
        }
    };
    let wanted = CreateUser { username: form.username.trim().to_owned(), password: form.password, role: Some(role) };
    let (shared, asker) = (users.clone().into_inner(), actor.clone());
    match Idempotency::run(async move { Ok(shared.create(&asker, &wanted).await?) }).await {
        Ok(user) => Ok(flash::with(go("/users"), Done::UserAdded, &user.username)),
        Err(error) if is_for_form(&error.problem) => {
            let form =
                UserForm { username: form.username, role: form.role, errors: Errors::from_problem(&error.problem) };
            render(REFUSED, &request, &actor, &users, String::new(), form, None).await
        }
        Err(error) => Err(error),
    }
}

async fn change(actor: &Actor, users: web::Data<Users>, name: UserName, change: ChangeUser) -> Result<(), ApiError> {
    actor.must_be_admin()?;
    let (users, asker) = (users.into_inner(), actor.clone());
    Idempotency::run(async move {
        users.change(&asker, &name, &change).await?;
        Ok(())
    })
    .await
}

/// `POST /users/{name}/disable`
///
/// # Errors
/// `not_allowed`, `not_found`, `wrong_state`
pub async fn disable(
    actor: Actor,
    users: web::Data<Users>,
    path: web::Path<UserPath>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(&actor, users, name.clone(), ChangeUser { disabled: Some(true), ..ChangeUser::default() }).await?;
    Ok(flash::with(go("/users"), Done::UserDisabled, name.as_str()))
}

/// `POST /users/{name}/enable`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn enable(
    actor: Actor,
    users: web::Data<Users>,
    path: web::Path<UserPath>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    change(&actor, users, name.clone(), ChangeUser { disabled: Some(false), ..ChangeUser::default() }).await?;
    Ok(flash::with(go("/users"), Done::UserEnabled, name.as_str()))
}

/// The form for another user's password.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct NewPassword {
    password: String,
}

/// `POST /users/{name}/password`
///
/// # Errors
/// What is not a matter of the form.
pub async fn password(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    path: web::Path<UserPath>,
    form: web::Form<NewPassword>,
) -> Result<HttpResponse, ApiError> {
    let name = path.into_inner().name;
    let wanted = ChangeUser { password: Some(form.into_inner().password), ..ChangeUser::default() };
    match change(&actor, users.clone(), name.clone(), wanted).await {
        Ok(()) => Ok(flash::with(go("/users"), Done::UserPasswordSet, name.as_str())),
        Err(error) if is_for_form(&error.problem) => {
            let told = Some((name.to_string(), error.problem.detail.clone()));
            render(REFUSED, &request, &actor, &users, String::new(), UserForm::default(), told).await
        }
        Err(error) => Err(error),
    }
}

async fn render_delete(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    users: &Users,
    vclusters: &Vclusters,
    name: &UserName,
    error: Option<String>,
) -> Result<HttpResponse, ApiError> {
    let user = users.get(actor, name).await?;
    let vclusters = vclusters.list(Some(name));
    page(status, &UserDeletePage { shell: shell(request, actor, Nav::Users), user, vclusters, error })
}

/// `GET /users/{name}/delete`
///
/// # Errors
/// `not_allowed`, `not_found`
pub async fn ask_delete(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    vclusters: web::Data<Vclusters>,
    path: web::Path<UserPath>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    render_delete(StatusCode::OK, &request, &actor, &users, &vclusters, &path.name, None).await
}

/// `POST /users/{name}/delete`
///
/// # Errors
/// What the page itself cannot tell.
pub async fn delete(
    request: HttpRequest,
    actor: Actor,
    users: web::Data<Users>,
    vclusters: web::Data<Vclusters>,
    path: web::Path<UserPath>,
) -> Result<HttpResponse, ApiError> {
    actor.must_be_admin()?;
    let name = path.into_inner().name;
    let (shared, asker, whom) = (users.clone().into_inner(), actor.clone(), name.clone());
    match Idempotency::run(async move { Ok(shared.remove(&asker, &whom).await?) }).await {
        Ok(()) => Ok(flash::with(go("/users"), Done::UserRemoved, name.as_str())),
        Err(error) if error.problem.code == Code::WrongState => {
            render_delete(
                StatusCode::CONFLICT,
                &request,
                &actor,
                &users,
                &vclusters,
                &name,
                Some(error.problem.detail.clone()),
            )
            .await
        }
        Err(error) => Err(error),
    }
}
