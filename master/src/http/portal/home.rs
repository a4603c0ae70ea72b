//! `GET /`: the vclusters as cards.

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use docklet_types::name::{NodeName, UserName, VclusterName};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::VclusterView;
use docklet_web::{HomePage, HomeState, HomeVcluster, Nav, QuickCreate};
use std::collections::HashSet;
use std::sync::Arc;

use super::{flash, page, shell};
use crate::app::apps::Apps;
use crate::app::vclusters::Vclusters;
use crate::auth::Actor;
use crate::http::problem::ApiError;

/// Cards whose apps are looked at; more would be a question to a worker for each.
const APPS_SHOWN: usize = 20;

/// A name that the viewer has not taken: `cluster1`, `cluster2`, …
fn free_name(views: &[VclusterView], viewer: &UserName) -> String {
    let taken: HashSet<&str> = views.iter().filter(|v| v.owner == viewer.as_str()).map(|v| v.name.as_str()).collect();
    (1..).map(|n| format!("cluster{n}")).find(|name| !taken.contains(name.as_str())).unwrap_or_default()
}

/// Whether nodes of it may run apps.
pub(super) fn is_up(view: &VclusterView) -> bool {
    matches!(view.status, Status::Running | Status::Degraded)
}

/// What the home page shows of the cluster now.
#[must_use]
pub fn state(actor: &Actor, vclusters: &Vclusters, apps: &Arc<Apps>) -> HomeState {
    let mut views = vclusters.list((!actor.is_admin()).then(|| actor.name()));
    let settings = vclusters.settings();
    let quick = QuickCreate {
        name: free_name(&views, actor.name()),
        image: settings.default_image.to_string(),
        size: settings.default_size,
    };
    views.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.name.cmp(&b.name)));
    let vclusters_shown = views
        .into_iter()
        .enumerate()
        .map(|(index, view)| {
            let names = (view.owner.parse::<UserName>(), view.name.parse::<VclusterName>());
            let jupyter = match names {
                (Ok(owner), Ok(name)) if index < APPS_SHOWN && is_up(&view) => {
                    apps.glance(&owner, &name, &NodeName::numbered(1))
                }
                _ => None,
            };
            HomeVcluster { view, jupyter }
        })
        .collect();
    HomeState {
        vclusters: vclusters_shown,
        usage: vclusters.usage(actor.name()),
        quota: (!actor.is_admin()).then(|| settings.quota()),
        quick,
        viewer: actor.name().to_string(),
        now: Micros::now(),
    }
}

/// `GET /`
///
/// # Errors
/// The page cannot be written.
pub async fn show(
    request: HttpRequest,
    actor: Actor,
    vclusters: web::Data<Vclusters>,
    apps: web::Data<Apps>,
) -> Result<HttpResponse, ApiError> {
    let state = state(&actor, &vclusters, &apps.into_inner());
    let mut response = page(StatusCode::OK, &HomePage { shell: shell(&request, &actor, Nav::Home), state })?;
    flash::forget(&request, &mut response);
    Ok(response)
}
