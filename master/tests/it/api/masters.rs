//! Two masters over one store and one PostgreSQL: what is done at one holds at the other.

use super::lifecycle::specs;
use super::sessions::{ends, open_stream};
use super::support::{Answer, Master, PASSWORD, Site, User, directory, eventually, master, site_over};
use crate::postgres::Postgres;
use async_trait::async_trait;
use docklet_master_db::Db;
use docklet_master_db::idempotency::{ABANDONED_SECONDS, Claim};
use docklet_store::memory::MemoryStore;
use docklet_store::{Entry, Event, Keeper, LeaseId, Listing, Outcome, Revisions, Store, StoreError, Txn, Watch};
use docklet_types::report::Step;
use docklet_types::spec::Wanted;
use docklet_types::view::{AppStatus, AppView, MasterView, Me, OperationView, VclusterView};
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// A site whose master is `front1`, and `front2` beside it. The server of the database comes last: it ends last.
struct Pair {
    second: Master,
    site: Site,
    _postgres: Postgres,
}

async fn pair() -> Pair {
    pair_with(|store| Arc::new(store)).await
}

/// `second`: the store as the second master has it.
async fn pair_with(second: impl FnOnce(MemoryStore) -> Arc<dyn Store>) -> Pair {
    let postgres = Postgres::start().await;
    let url = postgres.database("docklet");
    let (one, two) = tokio::join!(Db::open_url(&url), Db::open_url(&url));
    let site = site_over(directory(), one.unwrap(), "HOST_NAME=front1").await;
    let store = second(site.store.clone());
    let (second, _) = master(site.dir.path(), "HOST_NAME=front2", two.unwrap(), store, site.access.clone()).await;
    Pair { second, site, _postgres: postgres }
}

/// Sends a request with a key to be done once.
async fn keyed(user: &User, key: &str, path: &str, body: serde_json::Value) -> Answer {
    Answer::of(user.request(Method::POST, path).header("Idempotency-Key", key).json(&body).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_is_good_at_the_other_and_ends_at_both() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    assert_eq!(there.get("/api/v1/me").await.ok::<Me>(200).username, "ada");
    // Signed out at one, its sockets at the other close.
    let stream = open_stream(&ada).await;
    assert_eq!(there.delete("/api/v1/sessions/current").await.status, 204);
    assert!(ends(stream).await < Duration::from_secs(2));
    ada.get("/api/v1/me").await.problem(401, "not_signed_in");
    // A new password.
    let (old, new) = (site.sign_in("ada").await, site.sign_in("ada").await.at(&second));
    let stream = open_stream(&old).await;
    let change = json!({"password": "new password", "current_password": PASSWORD});
    assert_eq!(new.send(Method::PATCH, "/api/v1/users/ada", Some(change)).await.status, 200);
    assert!(ends(stream).await < Duration::from_secs(2));
    old.get("/api/v1/me").await.problem(401, "not_signed_in");
    // A disabled account: sockets and requests.
    let (bob, root) = (site.sign_in("bob").await, site.sign_in("root").await.at(&second));
    let stream = open_stream(&bob).await;
    assert_eq!(root.send(Method::PATCH, "/api/v1/users/bob", Some(json!({"disabled": true}))).await.status, 200);
    let disabled = Instant::now();
    assert!(ends(stream).await < Duration::from_secs(2));
    eventually("bob is out", || async { bob.get("/api/v1/me").await.status == 401 }).await;
    assert!(disabled.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_into_an_application_may_lead_over_both() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let first = &site.master.assembly.as_ref().unwrap().parts.sessions;
    let other = &second.assembly.as_ref().unwrap().parts.sessions;
    let session = docklet_master::auth::token::TokenHash::of(ada.token.as_ref().unwrap());
    let ticket = first.issue_app_ticket(&session, "app.localhost").await.unwrap();
    let cookie = other.redeem_app_ticket(ticket.reveal(), "app.localhost").await.unwrap().expect("a good ticket");
    assert!(first.redeem_app_ticket(ticket.reveal(), "app.localhost").await.unwrap().is_none(), "good once");
    let visitor = first.authenticate_app(cookie.reveal(), "app.localhost").await.unwrap().expect("signed in");
    assert_eq!(visitor.name().as_str(), "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_sign_ins_count_together() {
    let Pair { second, site, _postgres } = pair().await;
    let (here, there) = (site.nobody(), site.nobody().at(&second));
    for n in 0..5 {
        let user = if n % 2 == 0 { &here } else { &there };
        let guess = json!({"username": "ada", "password": format!("guess {n}")});
        user.post("/api/v1/sessions", guess).await.problem(401, "wrong_password");
    }
    for user in [here, there] {
        let right = json!({"username": "ada", "password": PASSWORD});
        user.post("/api/v1/sessions", right).await.problem(429, "too_many_requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_one_effect_over_both() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let body = json!({"name": "demo", "nodes": 2});
    let tasks: Vec<_> = (0..10)
        .map(|n| {
            let (user, body) = (if n % 2 == 0 { ada.clone() } else { ada.at(&second) }, body.clone());
            tokio::spawn(async move { keyed(&user, "k", "/api/v1/vclusters", body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.text), (202, &answers[0].text));
    }
    assert_eq!(specs(&site).await.len(), 1);
    ada.wait("demo", "running").await;
    let command = json!({"argv": ["date"]});
    let path = "/api/v1/vclusters/demo/nodes/node1/exec";
    let there = ada.at(&second);
    let (one, two) = tokio::join!(keyed(&ada, "e", path, command.clone()), keyed(&there, "e", path, command));
    assert_eq!(one.text, two.text);
    assert_eq!(site.access.execs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_master_that_died_is_free_soon() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let body = json!({"name": "demo", "nodes": 1});
    let first: VclusterView = keyed(&ada, "k", "/api/v1/vclusters", body.clone()).await.ok(202);
    // As if the first master had died with the work done and the answer not kept: some seconds ago.
    let user = site.db.user_by_name(&"ada".parse().unwrap()).await.unwrap().unwrap().id;
    let fingerprint = "of that request";
    site.db.later(2 * 86_400).purge().await.unwrap();
    let died = site.db.later(2 - ABANDONED_SECONDS);
    assert_eq!(died.claim_idempotent(user, "other", fingerprint).await.unwrap(), Claim::Fresh);
    let again = site.sign_in("ada").await.at(&second);
    let second: VclusterView = keyed(&again, "k", "/api/v1/vclusters", body).await.ok(202);
    assert_eq!(first.id, second.id);
    // While it is claimed, who asks waits; then it is free.
    eventually("the claim is free", || async {
        let claim = site.db.claim_idempotent(user, "other", fingerprint).await.unwrap();
        claim == Claim::Fresh
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_the_history_of_both_at_once_and_noted_once() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    site.host.sleep(true).await;
    ada.create("demo", 2).await.ok::<VclusterView>(202);
    eventually("the other tells of it", || async {
        let view = there.get("/api/v1/vclusters/demo").await;
        view.status == 200 && view.ok::<VclusterView>(200).operation.is_some_and(|o| o.outcome == "running")
    })
    .await;
    site.host.sleep(false).await;
    for user in [&ada, &there] {
        user.wait("demo", "running").await;
        eventually("it ended", || async {
            let view: VclusterView = user.get("/api/v1/vclusters/demo").await.ok(200);
            view.operation.is_some_and(|o| o.outcome == "done")
        })
        .await;
        let rows: Vec<OperationView> = user.get("/api/v1/vclusters/demo/operations").await.ok(200);
        assert_eq!(rows.iter().map(|row| row.outcome.as_str()).collect::<Vec<_>>(), ["done"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_at_one_for_what_the_other_was_asked_does_not_end_early() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    site.host.fail_at(Some(Step::Boot));
    ada.create("demo", 1).await.ok::<VclusterView>(202);
    there.wait("demo", "failed").await;
    for _ in 0..5 {
        site.host.fail_at(None);
        assert_eq!(ada.act("/api/v1/vclusters/demo/retry").await.status, 202);
        // The reports still tell of the failure; the other hears of the new try in its own time.
        eventually("the other has the new spec", || async {
            let view: VclusterView = there.get("/api/v1/vclusters/demo").await.ok(200);
            view.operation.is_some_and(|o| o.action == "retry")
        })
        .await;
        there.wait("demo", "running").await;
        site.host.fail_at(Some(Step::Boot));
        assert_eq!(ada.act("/api/v1/vclusters/demo/stop").await.status, 202);
        there.wait("demo", "stopped").await;
        assert_eq!(ada.act("/api/v1/vclusters/demo/start").await.status, 202);
        there.wait("demo", "failed").await;
    }
}

/// A store that tells of changes a while after they were made.
struct Late(MemoryStore);

const LATE: Duration = Duration::from_millis(400);

struct LateWatch(mpsc::UnboundedReceiver<(tokio::time::Instant, Result<Vec<Event>, StoreError>)>);

#[async_trait]
impl Watch for LateWatch {
    async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        let (at, events) = self.0.recv().await.ok_or(StoreError::WatchEnded)?;
        tokio::time::sleep_until(at + LATE).await;
        events
    }
}

#[async_trait]
impl Store for Late {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.0.list(prefix).await
    }
    async fn revisions(&self, prefix: &str) -> Result<Revisions, StoreError> {
        self.0.revisions(prefix).await
    }
    async fn txn(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.0.txn(txn).await
    }
    async fn watch(&self, prefix: &str, revision: i64) -> Result<Box<dyn Watch>, StoreError> {
        let mut inner = self.0.watch(prefix, revision).await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let events = inner.next().await;
                let ended = events.is_err();
                if sender.send((tokio::time::Instant::now(), events)).is_err() || ended {
                    return;
                }
            }
        });
        Ok(Box::new(LateWatch(receiver)))
    }
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.grant(ttl).await
    }
    async fn keep(&self, lease: LeaseId) -> Result<Box<dyn Keeper>, StoreError> {
        self.0.keep(lease).await
    }
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
}

/// Whoever saw something at one master may act upon it at the other at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_behind_does_not_refuse_what_the_other_shows() {
    let Pair { second, site, _postgres } = pair_with(|store| Arc::new(Late(store))).await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    site.host.fail_at(Some(Step::Boot));
    ada.create("demo", 1).await.ok::<VclusterView>(202);
    ada.wait("demo", "failed").await;
    site.host.fail_at(None);
    assert_eq!(there.act("/api/v1/vclusters/demo/retry").await.status, 202);
    ada.wait("demo", "running").await;
    assert_eq!(ada.act("/api/v1/vclusters/demo/stop").await.status, 202);
    there.wait("demo", "stopped").await;
    // It still looks stopped there.
    assert_eq!(ada.act("/api/v1/vclusters/demo/start").await.status, 202);
    there.act("/api/v1/vclusters/demo/stop").await;
    assert_eq!(specs(&site).await[0].wanted, Wanted::Stopped);
    there.wait("demo", "stopped").await;
    // Its name still looks taken there.
    assert!(ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=30").await.status.is_success());
    there.create("demo", 1).await.ok::<VclusterView>(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_master_was_asked_right_before_its_death_comes_about() {
    let Pair { second, mut site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    ada.create("demo", 3).await.ok::<VclusterView>(202);
    // As kill -9 does it: nothing is finished, nothing is released.
    drop(site.master.assembly.take());
    there.wait("demo", "running").await;
    eventually("its end is noted", || async {
        let rows: Vec<OperationView> = there.get("/api/v1/vclusters/demo/operations").await.ok(200);
        rows.iter().map(|row| row.outcome.as_str()).eq(["done"])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jupyter_is_started_once_and_both_know() {
    let Pair { second, site, _postgres } = pair().await;
    let ada = site.sign_in("ada").await;
    let there = ada.at(&second);
    ada.running("demo", 1).await;
    let path = "/api/v1/vclusters/demo/nodes/node1/apps/jupyter";
    assert_eq!(ada.act(path).await.ok::<AppView>(202).status, AppStatus::Starting);
    // What systemd in the node says of its unit.
    "ActiveState=active\n".clone_into(&mut site.access.prints.lock().unwrap());
    assert_eq!(there.get(path).await.ok::<AppView>(200).status, AppStatus::Starting);
    site.access.listening.store(true, Ordering::SeqCst);
    assert_eq!(there.get(path).await.ok::<AppView>(200).status, AppStatus::Running);
    assert_eq!(ada.get(path).await.ok::<AppView>(200).status, AppStatus::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_are_at_work_are_listed() {
    let Pair { mut second, site, _postgres } = pair().await;
    let root = site.sign_in("root").await;
    let names = |user: User| async move {
        let masters: Vec<MasterView> = user.get("/api/v1/masters").await.ok(200);
        masters.into_iter().map(|m| (m.name, m.here)).collect::<Vec<_>>()
    };
    let both = |here: &str| ["front1", "front2"].map(|name| (name.to_owned(), name == here)).to_vec();
    eventually("both are there", || async { names(root.clone()).await == both("front1") }).await;
    assert_eq!(names(root.at(&second)).await, both("front2"));
    let page = root.request(Method::GET, "/hosts").send().await.unwrap().text().await.unwrap();
    assert!(page.contains("front2"), "{page}");
    assert!(site.nobody().get("/metrics").await.text.contains("docklet_masters_count 2"));
    second.assembly.take().unwrap().stop().await;
    eventually("it has signed off", || async { names(root.clone()).await == both("front1")[..1] }).await;
}
