//! The endpoints, one method each, in the order of the reference: sessions, vclusters, nodes, users, images, hosts.

use docklet_types::port::Protocol;
use docklet_types::rate::RateLimits;
use docklet_types::status::Status;
use docklet_types::view::{
    AppView, BeginMaintenance, ChangeHost, ChangeUser, ChangeVcluster, CreateUser, CreateVcluster, Exec, ExecResult,
    FitView, HostView, ImageView, Logs, MaintenanceView, MasterView, Me, MoveNodes, NodeView, OperationView, PortView,
    PublishPort, Session, SignIn, SiteView, UserView, VclusterView,
};
use reqwest::{Method, StatusCode};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::http::{Call, Client, Repeat};

/// How far a deletion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Every host reported that nothing of it is left.
    Gone,
    /// Accepted; hosts are still removing it.
    Underway,
}

/// Where a terminal's WebSocket is, and the header that opens it.
#[derive(Clone)]
pub struct TerminalAddress {
    /// `ws://…` or `wss://…`.
    pub url: String,
    /// The value of `Authorization`, if the client has a token.
    pub authorization: Option<String>,
}

impl Client {
    /// Signs in. The token is for [`Client::with_token`].
    ///
    /// # Errors
    /// `wrong_password`, `account_disabled`, `too_many_requests`; or the server cannot be reached.
    pub async fn sign_in(&self, username: &str, password: &str) -> Result<Session> {
        let body = SignIn { username: username.to_owned(), password: password.to_owned() };
        self.ask(Call::with_body(Method::POST, &["sessions"], &body)).await
    }

    /// Ends the session of this client's token.
    ///
    /// # Errors
    /// The server cannot be reached or does not know the token.
    pub async fn sign_out(&self) -> Result<()> {
        self.tell(Call::new(Method::DELETE, &["sessions", "current"])).await.map(drop)
    }

    /// # Errors
    /// `not_signed_in`; or the server cannot be reached.
    pub async fn me(&self) -> Result<Me> {
        self.ask(Call::new(Method::GET, &["me"])).await
    }

    /// The caller's vclusters; for an administrator everybody's, or those of the owner set on this client.
    ///
    /// # Errors
    /// The server refuses or cannot be reached.
    pub async fn vclusters(&self) -> Result<Vec<VclusterView>> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters"]))).await
    }

    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn vcluster(&self, name: &str) -> Result<VclusterView> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters", name]))).await
    }

    /// Answers once the status is reached. The server answers earlier or refuses with `timeout` when it is not.
    ///
    /// # Errors
    /// `not_found`, `timeout`; or the server cannot be reached.
    pub async fn vcluster_when(&self, name: &str, status: Status, timeout: Duration) -> Result<VclusterView> {
        let path = ["vclusters", name];
        let mut call = self.of_owner(Call::new(Method::GET, &path));
        call.query.extend([("wait", status.to_string()), ("timeout", seconds(timeout))]);
        call.patience = Some(timeout);
        self.ask(call).await
    }

    /// # Errors
    /// `invalid` and `unknown_image` name the field; `name_taken`, `over_quota`; or the server cannot be reached.
    pub async fn create(&self, request: &CreateVcluster) -> Result<VclusterView> {
        self.ask(self.of_owner(Call::with_body(Method::POST, &["vclusters"], request))).await
    }

    /// # Errors
    /// `not_found`, `wrong_state`; or the server cannot be reached.
    pub async fn start(&self, name: &str) -> Result<VclusterView> {
        self.ask(self.of_owner(Call::new(Method::POST, &["vclusters", name, "start"]))).await
    }

    /// # Errors
    /// `not_found`, `wrong_state`; or the server cannot be reached.
    pub async fn stop(&self, name: &str) -> Result<VclusterView> {
        self.ask(self.of_owner(Call::new(Method::POST, &["vclusters", name, "stop"]))).await
    }

    /// Tries again what failed.
    ///
    /// # Errors
    /// `not_found`, `wrong_state`; or the server cannot be reached.
    pub async fn retry(&self, name: &str) -> Result<VclusterView> {
        self.ask(self.of_owner(Call::new(Method::POST, &["vclusters", name, "retry"]))).await
    }

    /// Changes the number of nodes.
    ///
    /// # Errors
    /// `not_found`, `invalid`, `over_quota`, `wrong_state`; or the server cannot be reached.
    pub async fn scale(&self, name: &str, nodes: i64) -> Result<VclusterView> {
        let body = ChangeVcluster { nodes: Some(nodes), limits: None };
        self.ask(self.of_owner(Call::with_body(Method::PATCH, &["vclusters", name], &body))).await
    }

    /// Sets how much the vcluster may carry over its boundary, in place of the limits before.
    ///
    /// # Errors
    /// `not_found`, `invalid`, `wrong_state`; or the server cannot be reached.
    pub async fn limit(&self, name: &str, limits: RateLimits) -> Result<VclusterView> {
        let body = ChangeVcluster { nodes: None, limits: Some(limits.into()) };
        self.ask(self.of_owner(Call::with_body(Method::PATCH, &["vclusters", name], &body))).await
    }

    /// Whether such a vcluster would find room now.
    ///
    /// # Errors
    /// `invalid` names the field; or the server cannot be reached.
    pub async fn what_if(&self, request: &CreateVcluster) -> Result<FitView> {
        self.ask(self.of_owner(Call::with_body(Method::POST, &["vclusters", "what-if"], request))).await
    }

    /// Deletes a vcluster with its nodes and their disks. With `wait` the answer comes when it is gone.
    ///
    /// # Errors
    /// `not_found`; `timeout` where it was not gone in time (it is still being deleted); or the server cannot be reached.
    pub async fn delete(&self, name: &str, wait: Option<Duration>) -> Result<Deletion> {
        let path = ["vclusters", name];
        let mut call = self.of_owner(Call::new(Method::DELETE, &path));
        if let Some(timeout) = wait {
            call.query.extend([("wait", "absent".to_owned()), ("timeout", seconds(timeout))]);
            call.patience = Some(timeout);
        }
        let status = self.tell(call).await?;
        Ok(if wait.is_some() && status != StatusCode::ACCEPTED { Deletion::Gone } else { Deletion::Underway })
    }

    /// The newest changes first.
    ///
    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn operations(&self, name: &str) -> Result<Vec<OperationView>> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters", name, "operations"]))).await
    }

    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn nodes(&self, name: &str) -> Result<Vec<NodeView>> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters", name, "nodes"]))).await
    }

    /// The published ports of a vcluster.
    ///
    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn ports(&self, name: &str) -> Result<Vec<PortView>> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters", name, "ports"]))).await
    }

    /// Publishes a port of a node.
    ///
    /// # Errors
    /// `not_found`, `invalid`, `over_quota`, `port_taken`; or the server cannot be reached.
    pub async fn publish(&self, name: &str, request: &PublishPort) -> Result<PortView> {
        self.ask(self.of_owner(Call::with_body(Method::POST, &["vclusters", name, "ports"], request))).await
    }

    /// Gives a published port back.
    ///
    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn unpublish(&self, name: &str, protocol: Protocol, public_port: u16) -> Result<()> {
        let public_port = public_port.to_string();
        let path = ["vclusters", name, "ports", protocol.as_str(), &public_port];
        self.tell(self.of_owner(Call::new(Method::DELETE, &path))).await.map(drop)
    }

    /// Runs a command in a node to its end. It is never sent twice.
    ///
    /// # Errors
    /// `not_found`, `wrong_state`, `timeout`, `too_large`; or the server cannot be reached.
    pub async fn exec(&self, name: &str, node: &str, request: &Exec) -> Result<ExecResult> {
        let path = ["vclusters", name, "nodes", node, "exec"];
        let mut call = self.of_owner(Call::with_body(Method::POST, &path, request));
        call.patience = Some(Duration::from_secs(request.timeout_s.unwrap_or(60).into()));
        call.repeat = Repeat::Never;
        self.ask(call).await
    }

    /// The end of a node's console.
    ///
    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn logs(&self, name: &str, node: &str, lines: u32) -> Result<Logs> {
        let path = ["vclusters", name, "nodes", node, "logs"];
        let mut call = self.of_owner(Call::new(Method::GET, &path));
        call.query.push(("lines", lines.to_string()));
        self.ask(call).await
    }

    /// Whether an app runs and where.
    ///
    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn app(&self, name: &str, node: &str, app: &str) -> Result<AppView> {
        self.ask(self.of_owner(Call::new(Method::GET, &["vclusters", name, "nodes", node, "apps", app]))).await
    }

    /// Starts an app where it does not run.
    ///
    /// # Errors
    /// `not_found`, `wrong_state`; or the server cannot be reached.
    pub async fn start_app(&self, name: &str, node: &str, app: &str) -> Result<AppView> {
        let path = ["vclusters", name, "nodes", node, "apps", app];
        let mut call = self.of_owner(Call::new(Method::POST, &path));
        call.patience = Some(Duration::from_secs(60));
        self.ask(call).await
    }

    /// Where the terminal of a node is. `session` names the shell to come back to: `[a-z0-9-]{1,40}`. The server expects
    /// `{"ack":<bytes>}` for the output taken in, and pauses the shell where it lags far behind.
    ///
    /// # Errors
    /// The client's address cannot carry it.
    pub fn terminal(&self, name: &str, node: &str, session: &str, cols: u16, rows: u16) -> Result<TerminalAddress> {
        let path = ["vclusters", name, "nodes", node, "terminal"];
        let mut call = self.of_owner(Call::new(Method::GET, &path));
        call.query.extend([
            ("session", session.to_owned()),
            ("flow", "ack".to_owned()),
            ("cols", cols.to_string()),
            ("rows", rows.to_string()),
        ]);
        let mut url = self.address(&call)?;
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme).map_err(|()| Error::Address { url: self.url().to_owned() })?;
        let authorization = self.authorization().and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok(TerminalAddress { url: url.into(), authorization })
    }

    /// # Errors
    /// `not_allowed`; or the server cannot be reached.
    pub async fn users(&self) -> Result<Vec<UserView>> {
        self.ask(Call::new(Method::GET, &["users"])).await
    }

    /// # Errors
    /// `not_found`; or the server cannot be reached.
    pub async fn user(&self, name: &str) -> Result<UserView> {
        self.ask(Call::new(Method::GET, &["users", name])).await
    }

    /// # Errors
    /// `invalid`, `name_taken`, `not_allowed`; or the server cannot be reached.
    pub async fn create_user(&self, request: &CreateUser) -> Result<UserView> {
        self.ask(Call::with_body(Method::POST, &["users"], request)).await
    }

    /// # Errors
    /// `invalid`, `not_found`, `not_allowed`, `wrong_password`; or the server cannot be reached.
    pub async fn change_user(&self, name: &str, change: &ChangeUser) -> Result<UserView> {
        self.ask(Call::with_body(Method::PATCH, &["users", name], change)).await
    }

    /// # Errors
    /// `not_found`, `not_allowed`, `wrong_state` where the user still has vclusters; or the server cannot be reached.
    pub async fn delete_user(&self, name: &str) -> Result<()> {
        self.tell(Call::new(Method::DELETE, &["users", name])).await.map(drop)
    }

    /// # Errors
    /// The server refuses or cannot be reached.
    pub async fn images(&self) -> Result<Vec<ImageView>> {
        self.ask(Call::new(Method::GET, &["images"])).await
    }

    /// # Errors
    /// `not_allowed`; or the server cannot be reached.
    pub async fn hosts(&self) -> Result<Vec<HostView>> {
        self.ask(Call::new(Method::GET, &["hosts"])).await
    }

    /// # Errors
    /// `not_allowed`; or the server cannot be reached.
    pub async fn masters(&self) -> Result<Vec<MasterView>> {
        self.ask(Call::new(Method::GET, &["masters"])).await
    }

    /// Empty where there is only the one that answers.
    ///
    /// # Errors
    /// The server refuses or cannot be reached.
    pub async fn sites(&self) -> Result<Vec<SiteView>> {
        self.ask(Call::new(Method::GET, &["sites"])).await
    }

    /// # Errors
    /// The server refuses or cannot be reached.
    pub async fn maintenance(&self) -> Result<MaintenanceView> {
        self.ask(Call::new(Method::GET, &["maintenance"])).await
    }

    /// # Errors
    /// `not_allowed`, `invalid`; or the server cannot be reached.
    pub async fn begin_maintenance(&self, what: &BeginMaintenance) -> Result<MaintenanceView> {
        self.ask(Call::with_body(Method::POST, &["maintenance"], what)).await
    }

    /// # Errors
    /// `not_allowed`; or the server cannot be reached.
    pub async fn end_maintenance(&self) -> Result<()> {
        self.tell(Call::new(Method::DELETE, &["maintenance"])).await.map(drop)
    }

    /// # Errors
    /// `not_found`, `not_allowed`; or the server cannot be reached.
    pub async fn host(&self, name: &str) -> Result<HostView> {
        self.ask(Call::new(Method::GET, &["hosts", name])).await
    }

    /// # Errors
    /// `not_found`, `not_allowed`; or the server cannot be reached.
    pub async fn change_host(&self, name: &str, change: &ChangeHost) -> Result<HostView> {
        self.ask(Call::with_body(Method::PATCH, &["hosts", name], change)).await
    }

    /// # Errors
    /// `not_found`, `not_allowed`, `wrong_state` where it is alive or holds nodes; or the server cannot be reached.
    pub async fn remove_host(&self, name: &str) -> Result<()> {
        self.tell(Call::new(Method::DELETE, &["hosts", name])).await.map(drop)
    }

    /// Gives a host up for lost with everything on it: its nodes are made anew elsewhere, their disks are gone.
    ///
    /// # Errors
    /// `not_found`, `not_allowed`, `wrong_state` where it is alive; or the server cannot be reached.
    pub async fn give_up_host(&self, name: &str) -> Result<()> {
        let path = ["hosts", name];
        let mut call = Call::new(Method::DELETE, &path);
        call.query.push(("lost", "true".to_owned()));
        self.tell(call).await.map(drop)
    }

    /// Asks for nodes to be on another host.
    ///
    /// # Errors
    /// `not_found`, `not_allowed`, `invalid`, `wrong_state`, `move_needs_btrfs`; or the server cannot be reached.
    pub async fn move_nodes(&self, name: &str, what: &MoveNodes) -> Result<Vec<NodeView>> {
        self.ask(self.of_owner(Call::with_body(Method::POST, &["vclusters", name, "move"], what))).await
    }

    fn of_owner<'a, B: serde::Serialize>(&self, mut call: Call<'a, B>) -> Call<'a, B> {
        if let Some(owner) = self.owner() {
            call.query.push(("owner", owner.to_owned()));
        }
        call
    }
}

/// Rounded up, and at least one: a server takes 0 for "do not wait".
fn seconds(timeout: Duration) -> String {
    timeout.as_millis().div_ceil(1000).max(1).to_string()
}
