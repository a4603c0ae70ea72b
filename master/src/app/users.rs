//! Accounts: made, changed, disabled, removed.

use std::path::PathBuf;
use std::sync::Arc;

use docklet_master_db::users::{CreateUserError, Theme, User};
use docklet_master_db::{Db, DbError};
use docklet_master_plan::view;
use docklet_store::keys::{Key, Keys};
use docklet_store::{Compare, Outcome, Store, StoreError, Txn};
use docklet_types::name::UserName;
use docklet_types::paths::Paths;
use docklet_types::spec::Usage;
use docklet_types::time::Micros;
use docklet_types::view::{ChangeUser, CreateUser, Role, UserView};

use super::create::{FieldError, TRIES};
use super::share::{Hangs, Share};
use super::warm::WarmNodes;
use crate::auth::gate::{Gate, SignInError};
use crate::auth::passwords::{HashError, Password, Passwords};
use crate::auth::{Actor, Sessions};
use crate::http::problem::chain;
use crate::reconcile::ClusterView;

/// Why an account was not made, changed or removed.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error(transparent)]
    Field(FieldError),
    #[error("there is already a user of that name")]
    Taken,
    #[error("there is no user of that name")]
    NotFound,
    #[error("only an administrator may do this")]
    NotAllowed,
    #[error("the present password is missing or wrong")]
    WrongPassword,
    #[error("the present password cannot be checked")]
    Check(#[source] SignInError),
    #[error("this would leave no administrator who can sign in")]
    LastAdmin,
    #[error("an account cannot remove itself")]
    Yourself,
    /// With the names of what is in the way.
    #[error("the user still has vclusters")]
    HasVclusters(Vec<String>),
    /// With the names of the sites. Here everything is done.
    #[error("the user still has something at other sites")]
    Elsewhere(Vec<String>),
    #[error("all blocks of user ids are given out")]
    NoIdsLeft,
    #[error("too many sign-ins at once")]
    Busy,
    #[error("the password cannot be hashed")]
    Hash,
    #[error("too many changes at the same time")]
    Contended,
    #[error("the user's data in {path} cannot be set aside")]
    Data { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Hangs(Hangs),
    #[error("the store cannot take it")]
    Store(#[source] StoreError),
    #[error("the database does not answer")]
    Db(#[source] DbError),
}

impl From<HashError> for UserError {
    fn from(error: HashError) -> Self {
        match error {
            HashError::Busy => Self::Busy,
            HashError::Failed => Self::Hash,
        }
    }
}

/// See the module.
pub struct Users {
    db: Db,
    store: Arc<dyn Store>,
    keys: Keys,
    view: Arc<ClusterView>,
    passwords: Arc<Passwords>,
    gate: Arc<Gate>,
    sessions: Sessions,
    paths: Paths,
    share: Share,
    warm: WarmNodes,
}

impl Users {
    #[must_use]
    #[allow(clippy::too_many_arguments, reason = "each is one narrow thing it needs")]
    pub fn new(
        db: Db,
        store: Arc<dyn Store>,
        keys: Keys,
        view: Arc<ClusterView>,
        passwords: Arc<Passwords>,
        gate: Arc<Gate>,
        sessions: Sessions,
        paths: Paths,
        share: Share,
        warm: WarmNodes,
    ) -> Self {
        Self { db, store, keys, view, passwords, gate, sessions, paths, share, warm }
    }

    fn show(&self, user: &User) -> UserView {
        let usage = self.view.read(|cluster| cluster.usage(&user.name).map_or_else(Usage::default, |u| *u.value));
        UserView {
            username: user.name.to_string(),
            role: user.role,
            disabled: user.disabled,
            created_at: user.created_at.to_string(),
            last_seen: user.last_seen.map(|at| at.to_string()),
            usage: view::usage(&usage),
            first_id: user.range.first_id(),
        }
    }

    /// All accounts by name.
    ///
    /// # Errors
    /// [`UserError::Db`]
    pub async fn list(&self) -> Result<Vec<UserView>, UserError> {
        Ok(self.db.users().await.map_err(UserError::Db)?.iter().map(|user| self.show(user)).collect())
    }

    /// One account; users see their own only.
    ///
    /// # Errors
    /// [`UserError::NotFound`], [`UserError::Db`]
    pub async fn get(&self, actor: &Actor, name: &UserName) -> Result<UserView, UserError> {
        Ok(self.show(&self.find(actor, name).await?))
    }

    /// Whether nobody but the first account is there and it never signed in: then the first password is still to be found.
    ///
    /// # Errors
    /// [`UserError::Db`]
    pub async fn nobody_ever_signed_in(&self) -> Result<bool, UserError> {
        Ok(self.db.users().await.map_err(UserError::Db)?.iter().all(|user| user.last_seen.is_none()))
    }

    async fn find(&self, actor: &Actor, name: &UserName) -> Result<User, UserError> {
        if !actor.may_act_for(name) {
            return Err(UserError::NotFound);
        }
        self.db.user_by_name(name).await.map_err(UserError::Db)?.ok_or(UserError::NotFound)
    }

    fn password(text: &str) -> Result<Password, UserError> {
        Password::parse(text).map_err(|e| UserError::Field(FieldError::new("password", e)))
    }

    /// # Errors
    /// See [`UserError`].
    pub async fn create(&self, actor: &Actor, request: &CreateUser) -> Result<UserView, UserError> {
        if !actor.is_admin() {
            return Err(UserError::NotAllowed);
        }
        let name: UserName = request.username.parse().map_err(|e| UserError::Field(FieldError::new("username", e)))?;
        let hash = self.passwords.hash(Self::password(&request.password)?).await?;
        let role = request.role.unwrap_or(Role::User);
        let user = self.db.create_user(&name, &hash, role, Micros::now()).await.map_err(|e| match e {
            CreateUserError::Taken => UserError::Taken,
            CreateUserError::NoIdsLeft => UserError::NoIdsLeft,
            CreateUserError::Db(e) => UserError::Db(e),
        })?;
        tracing::info!(user = %name, actor = %actor.name(), "user added");
        Ok(self.show(&user))
    }

    /// Users change their own password; everything else is for administrators.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn change(&self, actor: &Actor, name: &UserName, request: &ChangeUser) -> Result<UserView, UserError> {
        let user = self.find(actor, name).await?;
        if !actor.is_admin() && (request.role.is_some() || request.disabled.is_some()) {
            return Err(UserError::NotAllowed);
        }
        let new = request.password.as_deref().map(Self::password).transpose()?;
        if new.is_some() && actor.id() == user.id {
            self.check_current(&user, request.current_password.as_deref()).await?;
        }
        let (role, disabled) = (request.role.unwrap_or(user.role), request.disabled.unwrap_or(user.disabled));
        if (role, disabled) != (user.role, user.disabled)
            && !self.db.set_role_and_state(user.id, role, disabled).await.map_err(UserError::Db)?
        {
            return Err(UserError::LastAdmin);
        }
        if let Some(new) = new {
            let hash = self.passwords.hash(new).await?;
            self.db.set_password(user.id, &hash).await.map_err(UserError::Db)?;
            // Whoever knew the old password is out; the one who changes stays.
            let keep = (actor.id() == user.id).then(|| actor.session());
            self.sessions.end_all_of(user.id, keep).await.map_err(UserError::Db)?;
            tracing::info!(user = %name, actor = %actor.name(), "password changed");
        }
        if disabled {
            self.sessions.end_all_of(user.id, None).await.map_err(UserError::Db)?;
            self.let_go_of_warm(name).await;
        }
        if (role, disabled) != (user.role, user.disabled) {
            self.sessions.reread(user.id);
            tracing::info!(user = %name, actor = %actor.name(), ?role, disabled, "user changed");
        }
        self.find(actor, name).await.map(|user| self.show(&user))
    }

    async fn check_current(&self, user: &User, given: Option<&str>) -> Result<(), UserError> {
        let given = given
            .ok_or_else(|| UserError::Field(FieldError::new("current_password", "give your present password, too")))?;
        self.gate.check_present(&user.name, given).await.map_err(|error| match error {
            SignInError::Wrong => UserError::WrongPassword,
            other => UserError::Check(other),
        })
    }

    /// # Errors
    /// [`UserError::Db`]
    pub async fn set_theme(&self, actor: &Actor, theme: Theme) -> Result<(), UserError> {
        self.db.set_theme(actor.id(), theme).await.map_err(UserError::Db)?;
        self.sessions.reread(actor.id());
        Ok(())
    }

    /// Removes an account that has no vclusters. Its data is set aside and not deleted; its ids are never used again. Where
    /// several sites share the accounts it is disabled, and the last site that it leaves removes it.
    ///
    /// # Errors
    /// See [`UserError`].
    pub async fn remove(&self, actor: &Actor, name: &UserName) -> Result<(), UserError> {
        if !actor.is_admin() {
            // As for every account but one's own: it looks like none.
            return Err(if actor.name() == name { UserError::NotAllowed } else { UserError::NotFound });
        }
        let user = self.find(actor, name).await?;
        if user.id == actor.id() {
            return Err(UserError::Yourself);
        }
        self.refuse_with_vclusters(name)?;
        // Disabled first: from here on no request of the user begins.
        if !self.db.set_role_and_state(user.id, user.role, true).await.map_err(UserError::Db)? {
            return Err(UserError::LastAdmin);
        }
        self.sessions.end_all_of(user.id, None).await.map_err(UserError::Db)?;
        if let Err(error) = self.close_guard(name).await {
            self.db.set_role_and_state(user.id, user.role, user.disabled).await.map_err(UserError::Db)?;
            return Err(error);
        }
        self.let_go_of_warm(name).await;
        self.set_data_aside(&user).await?;
        let elsewhere = self.db.leave_site(user.id).await.map_err(UserError::Db)?;
        if !elsewhere.is_empty() {
            tracing::info!(user = %name, actor = %actor.name(), sites = elsewhere.join(", "), "user disabled; other sites still hold something");
            return Err(UserError::Elsewhere(elsewhere));
        }
        self.db.remove_user(user.id, name).await.map_err(UserError::Db)?;
        tracing::info!(user = %name, actor = %actor.name(), "user removed");
        Ok(())
    }

    /// What is kept ready for somebody who cannot ask for it goes now rather than later.
    async fn let_go_of_warm(&self, name: &UserName) {
        if let Err(error) = self.warm.forget(name).await {
            tracing::warn!(user = %name, error = chain(&error), "nodes that were booted ahead stay until their time is over");
        }
    }

    fn refuse_with_vclusters(&self, name: &UserName) -> Result<(), UserError> {
        let names: Vec<String> =
            self.view.read(|cluster| cluster.specs_of(name).map(|spec| spec.value.name.to_string()).collect());
        if names.is_empty() { Ok(()) } else { Err(UserError::HasVclusters(names)) }
    }

    /// Writes the owner's guard, so that a create that read it before the account was disabled cannot commit; and makes
    /// sure that none did.
    async fn close_guard(&self, name: &UserName) -> Result<(), UserError> {
        let key = self.keys.write(&Key::Usage(name.clone()));
        for _ in 0..TRIES {
            let entry = self.store.get(&key).await.map_err(UserError::Store)?;
            let usage: Usage = entry.as_ref().and_then(|e| serde_json::from_slice(&e.value).ok()).unwrap_or_default();
            if usage.vclusters > 0 {
                if let Some(entry) = &entry {
                    self.view.reached(entry.revision).await;
                }
                self.refuse_with_vclusters(name)?;
                return Err(UserError::HasVclusters(Vec::new()));
            }
            let txn = Txn::new().when(Compare::as_read(key.clone(), entry.map(|e| e.revision)));
            let txn = txn.put(key.clone(), &Usage::default()).map_err(UserError::Store)?;
            if let Outcome::Committed { .. } = self.store.txn(txn).await.map_err(UserError::Store)? {
                return Ok(());
            }
        }
        Err(UserError::Contended)
    }

    /// A later user of the same name must not find the files of this one.
    async fn set_data_aside(&self, user: &User) -> Result<(), UserError> {
        let data = self.paths.user_data(&user.name);
        let Some(home) = data.parent().map(PathBuf::from) else { return Ok(()) };
        // No user's name begins with a dot.
        // The account may stay, for other sites, and come back here.
        let aside = home.with_file_name(format!(".removed-{}-{}-{}", user.name, user.id, Micros::now().0));
        let (from, to) = (home.clone(), aside.clone());
        match self.share.run(move || std::fs::rename(from, to)).await.map_err(UserError::Hangs)? {
            Ok(()) => {
                tracing::info!(user = %user.name, to = %aside.display(), "the data of a removed user is set aside");
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(UserError::Data { path: home, source }),
        }
    }
}
