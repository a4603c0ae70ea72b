//! Users, for administrators.

use crate::form::Errors;
use crate::shell::Shell;
use crate::{assets, html, link};
use askama::Template;
use docklet_types::view::{Role, UserView, VclusterView};

/// The form for a new user as it was typed.
#[derive(Debug, Clone, Default)]
pub struct UserForm {
    pub username: String,
    /// `user` or `admin`.
    pub role: String,
    /// Fields: `username password role`; others are shown above the form.
    pub errors: Errors,
}

/// `GET /users?q=`, and with errors the answer (422) to a refused `POST /users` or `POST /users/{name}/password`.
#[derive(Debug, Clone, Template)]
#[template(path = "users.html")]
pub struct UsersPage {
    pub shell: Shell,
    pub users: Vec<UserView>,
    /// Only names that contain this are shown.
    pub q: String,
    pub form: UserForm,
    /// A user whose new password was refused, and why.
    pub password_error: Option<(String, String)>,
}

impl UsersPage {
    fn shown(&self) -> Vec<&UserView> {
        let q = self.q.trim().to_lowercase();
        self.users.iter().filter(|u| u.username.to_lowercase().contains(&q)).collect()
    }

    fn is_self(&self, user: &UserView) -> bool {
        user.username == self.shell.username()
    }

    fn is_admin(&self, user: &UserView) -> bool {
        user.role == Role::Admin
    }

    fn error_of(&self, user: &UserView) -> Option<&str> {
        self.password_error.as_ref().filter(|(name, _)| *name == user.username).map(|(_, message)| message.as_str())
    }

    fn general_errors(&self) -> Vec<&str> {
        self.form.errors.general(&["username", "password", "role"])
    }
}

/// `GET /users/{name}/delete`: says what is lost and asks once.
#[derive(Debug, Clone, Template)]
#[template(path = "user_delete.html")]
pub struct UserDeletePage {
    pub shell: Shell,
    pub user: UserView,
    /// What is deleted with the account.
    pub vclusters: Vec<VclusterView>,
    /// Why the last attempt was refused.
    pub error: Option<String>,
}
