//! `/api/v1/vclusters`

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::{UserName, VclusterName};
use docklet_types::problem::{Code, Problem};
use docklet_types::rate::RateLimits;
use docklet_types::status::Status;
use docklet_types::view::{ChangeVcluster, CreateVcluster, FitView, HostFit, OperationView, VclusterView};

use super::body::Json;
use super::idempotency::{Idempotency, Reply};
use super::problem::{ApiError, sentence};
use super::query::{OwnerQuery, VclusterPath, WaitQuery, owner};
use crate::app::change::Action;
use crate::app::create::NewVcluster;
use crate::app::history::History;
use crate::app::vclusters::{Vclusters, Waited};
use crate::auth::Actor;
use docklet_master_plan::admit;

/// Your vclusters; an administrator's are everybody's, or one owner's.
#[utoipa::path(get, path = "/api/v1/vclusters", tag = "vclusters", params(OwnerQuery), responses(
    (status = 200, description = "By owner and name", body = Vec<VclusterView>),
    (status = 404, description = "Somebody else's", body = Problem, content_type = "application/problem+json")))]
pub async fn list(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let whose = match (&query.owner, actor.is_admin()) {
        (None, true) => None,
        (asked, _) => Some(owner(&actor, asked.as_deref())?),
    };
    Ok(HttpResponse::Ok().json(vclusters.list(whose.as_ref())))
}

/// Makes a vcluster and starts it. The answer comes at once; `?wait=` of GET tells when it runs.
#[utoipa::path(post, path = "/api/v1/vclusters", tag = "vclusters", request_body = CreateVcluster,
    params(OwnerQuery, ("Idempotency-Key" = Option<String>, Header, description = "Requests with the same key take effect once, for 24 h")),
    responses(
        (status = 202, description = "Accepted", body = VclusterView),
        (status = 403, description = "`over_quota`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`name_taken`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid` or `unknown_image`, with the field", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "`unavailable` or `maintenance`", body = Problem, content_type = "application/problem+json")))]
pub async fn create(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    query: web::Query<OwnerQuery>,
    body: Json<CreateVcluster>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let new = NewVcluster::parse(&body.value, vclusters.settings())?;
    let vclusters = vclusters.into_inner();
    let (asker, suffix) = (actor.name().clone(), owner_suffix(&actor, &owner));
    once.once(&request, &actor, body.digest, move |id| async move {
        let view = vclusters.create(&asker, &owner, new, id).await?;
        let location = format!("/api/v1/vclusters/{}{suffix}", view.name);
        Ok(Reply::json(StatusCode::ACCEPTED, &view)?.at(location))
    })
    .await
}

/// Whether such a vcluster would find room now, and for how many more nodes there is room. Nothing is reserved.
#[utoipa::path(post, path = "/api/v1/vclusters/what-if", tag = "vclusters", request_body = CreateVcluster, params(OwnerQuery), responses(
    (status = 200, description = "Whether it fits, and if not, why", body = FitView),
    (status = 404, description = "Somebody else's", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "`invalid`, with the field", body = Problem, content_type = "application/problem+json")))]
pub async fn what_if(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    query: web::Query<OwnerQuery>,
    body: Json<CreateVcluster>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let new = NewVcluster::parse(&body.value, vclusters.settings())?;
    Ok(HttpResponse::Ok().json(fit(&actor, &vclusters, &owner, &new).await?))
}

/// The answer, with hosts by name for administrators only.
pub(crate) async fn fit(
    actor: &Actor,
    vclusters: &Vclusters,
    owner: &UserName,
    new: &NewVcluster,
) -> Result<FitView, ApiError> {
    let fit = vclusters.what_if(owner, new).await?;
    let hosts = || fit.hosts.iter().map(|(host, nodes)| HostFit { host: host.to_string(), nodes: *nodes }).collect();
    let hosts = actor.is_admin().then(hosts);
    Ok(FitView { fits: fit.reason.is_none(), reason: fit.reason, hosts, more: fit.more })
}

fn owner_suffix(actor: &Actor, owner: &UserName) -> String {
    if actor.name() == owner { String::new() } else { format!("?owner={owner}") }
}

/// One vcluster; with `?wait=` when it has that status.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}", tag = "vclusters", params(("name" = String, Path), WaitQuery), responses(
    (status = 200, description = "How it is now", body = VclusterView),
    (status = 400, description = "`bad_query`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 408, description = "`timeout`: it did not get that status in time", body = Problem, content_type = "application/problem+json")))]
pub async fn get(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<WaitQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let limit = query.limit()?;
    let Some(wanted) = query.wait.as_deref() else {
        return Ok(HttpResponse::Ok().json(vclusters.get(&owner, &path.name)?));
    };
    let status: Status = wanted.parse().map_err(|e| ApiError::new(Code::BadQuery, format!("{e}.")).at("wait"))?;
    match vclusters.wait(&owner, &path.name, status, limit).await? {
        Waited::Settled(view) => Ok(HttpResponse::Ok().json(view)),
        Waited::TimedOut(view) => Err(ApiError::new(
            Code::Timeout,
            format!(
                "{} is {} and was not {status} within {} s. It goes on; ask again.",
                view.name,
                view.status,
                limit.as_secs()
            ),
        )),
    }
}

/// Scales to that many nodes, or sets how much it may carry over its boundary. Scaling in removes the nodes that came
/// last, with their disks.
#[utoipa::path(patch, path = "/api/v1/vclusters/{name}", tag = "vclusters", request_body = ChangeVcluster,
    params(("name" = String, Path), OwnerQuery), responses(
        (status = 202, description = "Accepted", body = VclusterView),
        (status = 400, description = "`malformed_body`: it says nothing", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "`over_quota`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "`wrong_state`", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "`invalid`", body = Problem, content_type = "application/problem+json")))]
pub async fn change(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
    body: Json<ChangeVcluster>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    // First whether there is one: what is wrong with the number is nobody else's business.
    vclusters.id_of(&owner, &path.name)?;
    if body.value.nodes.is_none() && body.value.limits.is_none() {
        return Err(ApiError::new(Code::MalformedBody, "The body says neither nodes nor limits."));
    }
    let refused = |e| ApiError::from(crate::app::change::ChangeError::Refused(e));
    let nodes = body.value.nodes.map(admit::node_count).transpose().map_err(refused)?;
    let limits = body.value.limits.map(|asked| RateLimits::from(asked).checked()).transpose();
    let limits = limits.map_err(|e| ApiError::invalid(e.field, sentence(&e)))?;
    let name = path.into_inner().name;
    let mut view = vclusters.get(&owner, &name)?;
    if let Some(limits) = limits {
        let (vclusters, actor, owner, name) =
            (vclusters.clone().into_inner(), actor.name().clone(), owner.clone(), name.clone());
        view = Idempotency::run(async move { Ok(vclusters.limit(&actor, &owner, &name, limits).await?) }).await?;
    }
    if let Some(nodes) = nodes {
        view = changed(vclusters, &actor, owner, name, Action::Scale(nodes)).await?;
    }
    Ok(HttpResponse::Accepted().json(view))
}

async fn changed(
    vclusters: web::Data<Vclusters>,
    actor: &Actor,
    owner: UserName,
    name: VclusterName,
    action: Action,
) -> Result<VclusterView, ApiError> {
    let (vclusters, actor) = (vclusters.into_inner(), actor.name().clone());
    Idempotency::run(async move { Ok(vclusters.change(&actor, &owner, &name, action).await?) }).await
}

/// Deletes the vcluster with its nodes and their disks; with `?wait=absent` the answer comes when nothing is left.
#[utoipa::path(delete, path = "/api/v1/vclusters/{name}", tag = "vclusters", params(("name" = String, Path), WaitQuery), responses(
    (status = 202, description = "It is being deleted", body = VclusterView),
    (status = 204, description = "Nothing of it is left (`?wait=absent`)"),
    (status = 400, description = "`bad_query`", body = Problem, content_type = "application/problem+json"),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "`unavailable`", body = Problem, content_type = "application/problem+json")))]
pub async fn delete(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    path: web::Path<VclusterPath>,
    query: web::Query<WaitQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let limit = query.limit()?;
    let wait = match query.wait.as_deref() {
        None => false,
        Some("absent") => true,
        Some(other) => {
            return Err(
                ApiError::new(Code::BadQuery, format!("DELETE waits for absent, not for {other:?}.")).at("wait")
            );
        }
    };
    let id = vclusters.id_of(&owner, &path.name)?;
    let view = changed(vclusters.clone(), &actor, owner, path.into_inner().name, Action::Delete).await?;
    if wait && vclusters.wait_absent(id, limit).await {
        return Ok(HttpResponse::NoContent().finish());
    }
    Ok(HttpResponse::Accepted().json(vclusters.by_id(id).unwrap_or(view)))
}

async fn act(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    name: VclusterName,
    query: web::Query<OwnerQuery>,
    action: Action,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let (vclusters, asker) = (vclusters.into_inner(), actor.name().clone());
    once.once(&request, &actor, [0; 32], move |_| async move {
        Reply::json(StatusCode::ACCEPTED, &vclusters.change(&asker, &owner, &name, action).await?)
    })
    .await
}

/// Starts all nodes.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/start", tag = "vclusters", params(("name" = String, Path), OwnerQuery), responses(
    (status = 202, description = "Accepted", body = VclusterView),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`", body = Problem, content_type = "application/problem+json")))]
pub async fn start(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(request, actor, vclusters, once, path.into_inner().name, query, Action::Start).await
}

/// Stops all nodes; their disks stay.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/stop", tag = "vclusters", params(("name" = String, Path), OwnerQuery), responses(
    (status = 202, description = "Accepted", body = VclusterView),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`", body = Problem, content_type = "application/problem+json")))]
pub async fn stop(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(request, actor, vclusters, once, path.into_inner().name, query, Action::Stop).await
}

/// Tries again what failed.
#[utoipa::path(post, path = "/api/v1/vclusters/{name}/retry", tag = "vclusters", params(("name" = String, Path), OwnerQuery), responses(
    (status = 202, description = "Accepted", body = VclusterView),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json"),
    (status = 409, description = "`wrong_state`: nothing has failed", body = Problem, content_type = "application/problem+json")))]
pub async fn retry(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    once: web::Data<Idempotency>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    act(request, actor, vclusters, once, path.into_inner().name, query, Action::Retry).await
}

/// The newest changes first, 50 at most.
#[utoipa::path(get, path = "/api/v1/vclusters/{name}/operations", tag = "vclusters", params(("name" = String, Path), OwnerQuery), responses(
    (status = 200, description = "Changes with their steps", body = Vec<OperationView>),
    (status = 404, description = "`not_found`", body = Problem, content_type = "application/problem+json")))]
pub async fn operations(
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    history: web::Data<History>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let id = vclusters.id_of(&owner, &path.name)?;
    Ok(HttpResponse::Ok().json(history.of_vcluster(id).await?))
}
