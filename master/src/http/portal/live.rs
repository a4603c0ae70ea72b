//! The pieces of a page that change while it is open, over server-sent events.
//!
//! Woken by the view of the cluster, a stream makes its page's state anew, and sends the fragments that are not as they
//! were. While a change runs it does so once a second, too, so that its clock is seen to move.

use actix_web::{HttpResponse, web};
use docklet_types::id::VclusterId;
use docklet_types::name::{UserName, VclusterName};
use docklet_types::problem::Code;
use docklet_types::view::VclusterView;
use docklet_web::{Fragment, live as web_live};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

use super::home;
use super::vcluster::Sources;
use crate::app::apps::Apps;
use crate::app::history::History;
use crate::app::vclusters::{Changes, Vclusters};
use crate::auth::{Actor, Sessions};
use crate::http::problem::{ApiError, chain};
use crate::http::query::{OwnerQuery, VclusterPath, owner};
use crate::http::sse::{self, Sink};

/// Changes that come so close together are one.
const PAUSE: Duration = Duration::from_millis(60);
/// How often a running change is shown anew.
const TICK: Duration = Duration::from_secs(1);

/// What a stream waits for.
struct News {
    cluster: Changes,
    apps: watch::Receiver<u64>,
}

impl News {
    /// `false` when there will be none any more.
    async fn next(&mut self, running: bool) -> bool {
        tokio::select! {
            more = self.cluster.settled(PAUSE) => more,
            more = self.apps.changed() => more.is_ok(),
            () = tokio::time::sleep(TICK), if running => true,
        }
    }
}

/// Sends what differs from what was sent last.
struct Sent {
    sink: Sink,
    last: HashMap<String, String>,
}

impl Sent {
    async fn send(&mut self, fragments: Vec<Fragment>) -> bool {
        for fragment in fragments {
            if self.last.get(&fragment.id) == Some(&fragment.html) {
                continue;
            }
            let text = fragment.to_sse();
            self.last.insert(fragment.id, fragment.html);
            if !self.sink.send(text).await {
                return false;
            }
        }
        true
    }
}

fn runs(view: &VclusterView) -> bool {
    view.operation.as_ref().is_some_and(|operation| operation.ended_at.is_none())
}

/// `GET /live/home`
pub async fn home(
    actor: Actor,
    sessions: web::Data<Sessions>,
    vclusters: web::Data<Vclusters>,
    apps: web::Data<Apps>,
) -> HttpResponse {
    let ended = sessions.ended(actor.session());
    let (vclusters, apps) = (vclusters.into_inner(), apps.into_inner());
    sse::stream(ended, move |sink| follow_home(actor, vclusters, apps, sink))
}

async fn follow_home(actor: Actor, vclusters: Arc<Vclusters>, apps: Arc<Apps>, sink: Sink) {
    let mut news = News { cluster: vclusters.changes(), apps: apps.subscribe() };
    let mut sent = Sent { sink, last: HashMap::new() };
    loop {
        let state = home::state(&actor, &vclusters, &apps);
        let running = state.vclusters.iter().any(|v| runs(&v.view));
        match state.fragments() {
            Ok(fragments) => {
                if !sent.send(fragments).await {
                    return;
                }
            }
            Err(error) => return tracing::error!(error = chain(&error), "a piece of the home page cannot be written"),
        }
        if !news.next(running).await {
            return;
        }
    }
}

/// `GET /live/vclusters/{name}`
///
/// # Errors
/// `not_found`
pub async fn vcluster(
    actor: Actor,
    sessions: web::Data<Sessions>,
    vclusters: web::Data<Vclusters>,
    history: web::Data<History>,
    apps: web::Data<Apps>,
    path: web::Path<VclusterPath>,
    query: web::Query<OwnerQuery>,
) -> Result<HttpResponse, ApiError> {
    let owner = owner(&actor, query.owner.as_deref())?;
    let sources = Sources { vclusters: vclusters.into_inner(), history: history.into_inner(), apps: apps.into_inner() };
    let id = sources.vclusters.id_of(&owner, &path.name)?;
    let followed = Followed { viewer: actor.name().clone(), owner, name: path.into_inner().name, id };
    Ok(sse::stream(sessions.ended(actor.session()), move |sink| follow_vcluster(followed, sources, sink)))
}

struct Followed {
    viewer: UserName,
    owner: UserName,
    name: VclusterName,
    /// A new vcluster of the same name is not the one that the page shows.
    id: VclusterId,
}

async fn follow_vcluster(followed: Followed, sources: Sources, sink: Sink) {
    let mut news = News { cluster: sources.vclusters.changes(), apps: sources.apps.subscribe() };
    let mut sent = Sent { sink, last: HashMap::new() };
    loop {
        let mut running = false;
        match sources.state(&followed.viewer, &followed.owner, &followed.name).await {
            Ok(state) if state.view.id == followed.id.to_string() => {
                running = runs(&state.view);
                match state.fragments() {
                    Ok(fragments) => {
                        if !sent.send(fragments).await {
                            return;
                        }
                    }
                    Err(error) => {
                        return tracing::error!(
                            error = chain(&error),
                            "a piece of a vcluster's page cannot be written"
                        );
                    }
                }
            }
            Ok(_) => {
                sent.sink.send(web_live::gone()).await;
                return;
            }
            Err(error) if error.problem.code == Code::NotFound => {
                sent.sink.send(web_live::gone()).await;
                return;
            }
            // The database does not answer: what is shown stays, and the next news tries again.
            Err(error) => tracing::warn!(%error, "cannot follow a vcluster for its page"),
        }
        if !news.next(running).await {
            return;
        }
    }
}
