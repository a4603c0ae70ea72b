//! `GET /api/v1/events`: changes of the caller's vclusters as they happen.

#![allow(unused_qualifications, reason = "in what utoipa's macro writes")]

use actix_web::{HttpResponse, web};
use docklet_types::name::UserName;
use docklet_types::view::{VclusterEvent, VclusterView};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use super::sse::{self, Sink};
use crate::app::vclusters::Vclusters;
use crate::auth::{Actor, Sessions};

/// Changes that come so close together are one event.
const PAUSE: Duration = Duration::from_millis(50);

/// Server-sent events of kind `vcluster`, each with a `VclusterEvent`: first how everything is, then every change. An
/// administrator hears of everybody's.
#[utoipa::path(get, path = "/api/v1/events", tag = "vclusters", responses(
    (status = 200, description = "A stream that stays open", body = VclusterEvent, content_type = "text/event-stream")))]
pub async fn events(actor: Actor, sessions: web::Data<Sessions>, vclusters: web::Data<Vclusters>) -> HttpResponse {
    let scope = (!actor.is_admin()).then(|| actor.name().clone());
    let vclusters = vclusters.into_inner();
    sse::stream(sessions.ended(actor.session()), move |sink| follow(vclusters, scope, sink))
}

/// Of everything but the clock's progress in a running change.
#[must_use]
pub fn fingerprint(view: &VclusterView) -> u64 {
    let mut view = view.clone();
    if let Some(operation) = &mut view.operation
        && operation.ended_at.is_none()
    {
        operation.millis = 0;
        operation.steps.iter_mut().for_each(|step| step.millis = 0);
    }
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(&view).unwrap_or_default().hash(&mut hasher);
    hasher.finish()
}

fn event(event: &VclusterEvent) -> String {
    format!("event: vcluster\ndata: {}\n\n", serde_json::to_string(event).unwrap_or_default())
}

async fn follow(vclusters: Arc<Vclusters>, scope: Option<UserName>, sink: Sink) {
    let mut changes = vclusters.changes();
    let mut told: HashMap<String, (String, String, u64)> = HashMap::new();
    loop {
        let mut gone = told.clone();
        for view in vclusters.list(scope.as_ref()) {
            gone.remove(&view.id);
            let mark = fingerprint(&view);
            if told.get(&view.id).is_some_and(|(_, _, before)| *before == mark) {
                continue;
            }
            told.insert(view.id.clone(), (view.owner.clone(), view.name.clone(), mark));
            let news = VclusterEvent { owner: view.owner.clone(), name: view.name.clone(), view: Some(view) };
            if !sink.send(event(&news)).await {
                return;
            }
        }
        for (id, (owner, name, _)) in gone {
            told.remove(&id);
            if !sink.send(event(&VclusterEvent { owner, name, view: None })).await {
                return;
            }
        }
        if !changes.settled(PAUSE).await {
            return;
        }
    }
}
