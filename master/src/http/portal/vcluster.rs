//! The page of one vcluster, and what its buttons do.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_master_plan::admit;
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::problem::Code;
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{PublishPort, VclusterView};
use docklet_web::{Nav, NodeApp, PortForm, ScaleForm, VclusterDeletePage, VclusterPage, VclusterState, link};
use serde::Deserialize;
use std::sync::Arc;

use super::flash::Done;
use super::{REFUSED, flash, go, home, is_for_form, page, shell};
use crate::app::apps::Apps;
use crate::app::change::{Action, ChangeError};
use crate::app::history::History;
use crate::app::ports::NewPort;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::idempotency::Idempotency;
use crate::http::ports::PortPath;
use crate::http::problem::ApiError;
use crate::http::query::{OwnerQuery, VclusterPath, owner};

/// Nodes whose apps are looked at; more would be a question to the worker for each.
const APPS_SHOWN: usize = 16;

/// What the page needs of the rest of the master.
#[derive(Clone)]
pub struct Sources {
    pub vclusters: Arc<Vclusters>,
    pub history: Arc<History>,
    pub apps: Arc<Apps>,
}

impl Sources {
    /// What the page of a vcluster shows now.
    ///
    /// # Errors
    /// `not_found`; the database does not answer.
    pub async fn state(
        &self,
        viewer: &UserName,
        owner: &UserName,
        name: &VclusterName,
    ) -> Result<VclusterState, ApiError> {
        let view = self.vclusters.get(owner, name)?;
        let nodes = self.vclusters.nodes(owner, name)?;
        let operations = match view.id.parse() {
            Ok(id) => self.history.of_vcluster(id).await?,
            Err(_) => Vec::new(),
        };
        let mut apps = Vec::new();
        if home::is_up(&view) {
            for node in nodes.iter().filter(|n| n.status == Status::Running).take(APPS_SHOWN) {
                if let Ok(name_of_node) = node.name.parse::<NodeName>()
                    && let Some(app) = self.apps.glance(owner, name, &name_of_node)
                {
                    apps.push(NodeApp { node: node.name.clone(), app });
                }
            }
        }
        let ports = self.vclusters.ports(owner, name)?;
        Ok(VclusterState { view, nodes, apps, ports, operations, viewer: viewer.to_string(), now: Micros::now() })
    }
}

fn sources(vclusters: web::Data<Vclusters>, history: web::Data<History>, apps: web::Data<Apps>) -> Sources {
    Sources { vclusters: vclusters.into_inner(), history: history.into_inner(), apps: apps.into_inner() }
}

/// The most nodes that the quota leaves this vcluster.
fn most(actor: &Actor, vclusters: &Vclusters, view: &VclusterView) -> Option<u32> {
    if actor.is_admin() {
        return None;
    }
    let used = vclusters.usage(actor.name()).nodes;
    Some(vclusters.settings().user_cap.nodes.saturating_sub(used) + view.nodes)
}

/// A form that was refused, as it was typed, with what is wrong.
enum Typed {
    Nothing,
    Scale { nodes: String, error: String },
    Port(PortForm),
}

async fn render(
    status: StatusCode,
    request: &HttpRequest,
    actor: &Actor,
    sources: &Sources,
    owner: &UserName,
    name: &VclusterName,
    typed: Typed,
) -> Result<HttpResponse, ApiError> {
    let state = sources.state(actor.name(), owner, name).await?;
    let mut scale = ScaleForm {
        nodes: state.view.nodes.to_string(),
        error: None,
        max: most(actor, &sources.vclusters, &state.view),
    };
    let mut publish = PortForm::default();
    match typed {
        Typed::Nothing => {}
        Typed::Scale { nodes, error } => (scale.nodes, scale.error) = (nodes, Some(error)),
        Typed::Port(form) => publish = form,
    }
    let mut response = page(status, &VclusterPage { shell: shell(request, actor, Nav::Home), state, scale, publish })?;
    flash::forget(request, &mut response);
    Ok(response)
}

/// `GET /vclusters/{name}`
///
/// # Errors
/// `not_found`
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    history: web::Data<History>,
    apps: web::Data<Apps>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    render(StatusCode::OK, &request, &actor, &sources(vclusters, history, apps), &owner, &path.name, Typed::Nothing)
        .await
}

fn address(actor: &Actor, owner: &UserName, name: &VclusterName) -> String {
    link::vcluster(name.as_str(), owner.as_str(), actor.name().as_str(), "")
}

async fn change(
    actor: &Actor,
    vclusters: web::Data<Vclusters>,
    owner: &UserName,
    name: &VclusterName,
    action: Action,
) -> Result<VclusterView, ApiError> {
    let (vclusters, asker, owner, name) = (vclusters.into_inner(), actor.name().clone(), owner.clone(), name.clone());
    Idempotency::run(async move { Ok(vclusters.change(&asker, &owner, &name, action).await?) }).await
}

async fn act(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    action: Action,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let back = go(&address(&actor, &owner, &path.name));
    match change(&actor, vclusters, &owner, &path.name, action).await {
        Ok(_) => Ok(back),
        // The page was a moment old: what was to be tried again has come right meanwhile.
        Err(error) if action == Action::Retry && error.problem.code == Code::WrongState => {
            Ok(flash::with(back, Done::NothingFailed, path.name.as_str()))
        }
        Err(error) => Err(error),
    }
}

/// `POST /vclusters/{name}/start`
///
/// # Errors
/// `not_found`, `wrong_state`, `unavailable`
pub async fn start(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(actor, vclusters, path, query, Action::Start).await
}

/// `POST /vclusters/{name}/stop`
///
/// # Errors
/// `not_found`, `wrong_state`, `unavailable`
pub async fn stop(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(actor, vclusters, path, query, Action::Stop).await
}

/// `POST /vclusters/{name}/retry`
///
/// # Errors
/// `not_found`, `wrong_state`, `unavailable`
pub async fn retry(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(actor, vclusters, path, query, Action::Retry).await
}

/// The scale form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Scale {
    nodes: String,
}

/// `POST /vclusters/{name}/scale`
///
/// # Errors
/// What is not a matter of the form.
#[allow(clippy::too_many_arguments, reason = "each is one thing that the framework extracts")]
pub async fn scale(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    history: web::Data<History>,
    apps: web::Data<Apps>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    form: web::Form<Scale>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let name = &path.name;
    let asked = form
        .nodes
        .trim()
        .parse::<i64>()
        .map_err(|_| ApiError::invalid("nodes", format!("{:?} is not a whole number.", form.nodes.trim())));
    let asked = asked.and_then(|n| admit::node_count(n).map_err(|e| ChangeError::Refused(e).into()));
    let done = match asked {
        Ok(nodes) => change(&actor, vclusters.clone(), &owner, name, Action::Scale(nodes)).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(_) => Ok(go(&address(&actor, &owner, name))),
        Err(error) if is_for_form(&error.problem) => {
            let typed = Typed::Scale { nodes: form.nodes.clone(), error: error.problem.detail.clone() };
            render(REFUSED, &request, &actor, &sources(vclusters, history, apps), &owner, name, typed).await
        }
        Err(error) => Err(error),
    }
}

/// The form that publishes a port.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Publish {
    node: String,
    port: String,
    protocol: String,
    public_port: String,
}

impl Publish {
    fn request(&self) -> Result<PublishPort, ApiError> {
        let whole = |field: &str, text: &str| {
            let wrong = |_| ApiError::invalid(field, format!("{:?} is not a whole number.", text.trim()));
            text.trim().parse::<i64>().map_err(wrong)
        };
        Ok(PublishPort {
            node: self.node.trim().to_owned(),
            port: whole("port", &self.port)?,
            protocol: self.protocol.parse().map_err(|e| ApiError::invalid("protocol", format!("{e}.")))?,
            public_port: match self.public_port.trim() {
                "" => None,
                text => Some(whole("public_port", text)?),
            },
        })
    }
}

/// `POST /vclusters/{name}/ports`
///
/// # Errors
/// What is not a matter of the form.
#[allow(clippy::too_many_arguments, reason = "each is one thing that the framework extracts")]
pub async fn publish(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    history: web::Data<History>,
    apps: web::Data<Apps>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    form: web::Form<Publish>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let name = &path.name;
    let asked = form.request().and_then(|asked| Ok(NewPort::parse(&asked)?));
    let done = match asked {
        Ok(new) => {
            let (shared, asker) = (vclusters.clone().into_inner(), actor.name().clone());
            let (owner, name) = (owner.clone(), name.clone());
            Idempotency::run(async move { Ok(shared.publish(&asker, &owner, &name, &new).await?) }).await
        }
        Err(error) => Err(error),
    };
    match done {
        Ok(_) => Ok(go(&address(&actor, &owner, name))),
        Err(error) if is_for_form(&error.problem) => {
            let form = form.into_inner();
            let typed = PortForm {
                udp: form.protocol == "udp",
                node: form.node,
                port: form.port,
                public_port: form.public_port,
                error: Some(error.problem.detail),
            };
            let sources = sources(vclusters, history, apps);
            render(REFUSED, &request, &actor, &sources, &owner, name, Typed::Port(typed)).await
        }
        Err(error) => Err(error),
    }
}

/// `POST /vclusters/{name}/ports/{protocol}/{public_port}/remove`
///
/// # Errors
/// `not_found`, `unavailable`
pub async fn unpublish(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<PortPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let back = go(&address(&actor, &owner, &path.name));
    let (vclusters, asker, path) = (vclusters.into_inner(), actor.name().clone(), path.into_inner());
    let removed = Idempotency::run(async move {
        Ok(vclusters.unpublish(&asker, &owner, &path.name, path.protocol, path.public_port).await?)
    });
    match removed.await {
        // The page was a moment old: it is gone already.
        Ok(()) => Ok(back),
        Err(error) if error.problem.code == Code::NotFound => Ok(back),
        Err(error) => Err(error),
    }
}

/// `GET /vclusters/{name}/delete`
///
/// # Errors
/// `not_found`
pub async fn ask_delete(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let (view, nodes) = (vclusters.get(&owner, &path.name)?, vclusters.nodes(&owner, &path.name)?);
    page(StatusCode::OK, &VclusterDeletePage { shell: shell(&request, &actor, Nav::Home), view, nodes, error: None })
}

/// `POST /vclusters/{name}/delete`
///
/// # Errors
/// `not_found`, `unavailable`
pub async fn delete(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    change(&actor, vclusters, &owner, &path.name, Action::Delete).await?;
    Ok(flash::with(go("/"), Done::Deleting, path.name.as_str()))
}
