//! A vcluster's life: create, wait, stop, start, scale, fail, retry, delete.

use super::support::{Answer, Site, User, site};
use docklet_store::Store;
use docklet_store::keys::Key;
use docklet_types::report::Step;
use docklet_types::spec::{Usage, VclusterSpec};
use docklet_types::status::Status;
use docklet_types::view::{Me, NodeView, OperationView, VclusterView};
use reqwest::Method;

pub async fn usage(site: &Site, owner: &str) -> Usage {
    let key = site.keys.write(&Key::Usage(owner.parse().unwrap()));
    site.store.get(&key).await.unwrap().map_or_else(Usage::default, |e| serde_json::from_slice(&e.value).unwrap())
}

pub async fn specs(site: &Site) -> Vec<VclusterSpec> {
    let prefix = format!("{}specs/", site.keys.root());
    site.store.list(&prefix).await.unwrap().entries.iter().map(|e| serde_json::from_slice(&e.value).unwrap()).collect()
}

/// Every key of the store that belongs to no host.
async fn leftovers(site: &Site) -> Vec<String> {
    let listing = site.store.list(site.keys.root()).await.unwrap();
    let keys = listing.entries.into_iter().map(|e| e.key);
    keys.filter(|key| {
        !matches!(
            site.keys.read(key),
            Some(
                Key::Host(_)
                    | Key::HostSettings(_)
                    | Key::Alive(_)
                    | Key::Master(_)
                    | Key::HostAlloc(_)
                    | Key::NetworkAlloc
                    | Key::Usage(_)
            )
        )
    })
    .collect()
}

async fn scale(user: &User, name: &str, nodes: i64) -> Answer {
    user.send(Method::PATCH, &format!("/api/v1/vclusters/{name}"), Some(serde_json::json!({"nodes": nodes}))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_create_to_nothing_left() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let made = ada.create("demo", 3).await;
    assert_eq!(made.header("location"), "/api/v1/vclusters/demo");
    let made: VclusterView = made.ok(202);
    assert_eq!((made.owner.as_str(), made.nodes, made.generation), ("ada", 3, 1));
    assert!(matches!(made.status, Status::Pending | Status::Starting | Status::Running), "{}", made.status);
    let view = ada.wait("demo", "running").await;
    assert_eq!((view.nodes_ready, view.id), (3, made.id));
    assert!(view.subnet.is_some());
    let nodes: Vec<NodeView> = ada.get("/api/v1/vclusters/demo/nodes").await.ok(200);
    assert_eq!(nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["node1", "node2", "node3"]);
    assert!(nodes.iter().all(|n| n.status == Status::Running && n.ip.is_some() && n.host.as_deref() == Some("h1")));
    let me: Me = ada.get("/api/v1/me").await.ok(200);
    assert_eq!((me.usage.vclusters, me.usage.nodes, me.quota.unwrap().nodes), (1, 3, 6));

    ada.act("/api/v1/vclusters/demo/stop").await.ok::<VclusterView>(202);
    assert_eq!(ada.wait("demo", "stopped").await.nodes_ready, 0);
    // Again: it is as asked for already.
    assert_eq!(ada.act("/api/v1/vclusters/demo/stop").await.ok::<VclusterView>(202).generation, 2);
    ada.act("/api/v1/vclusters/demo/start").await.ok::<VclusterView>(202);
    ada.wait("demo", "running").await;

    scale(&ada, "demo", 5).await.ok::<VclusterView>(202);
    assert_eq!(ada.wait("demo", "running").await.nodes_ready, 5);
    assert_eq!(usage(&site, "ada").await.nodes, 5);
    // The history is written after the status is known; a change that comes in between supersedes one that is done.
    super::support::eventually("the change has ended", || async {
        let history: Vec<OperationView> = ada.get("/api/v1/vclusters/demo/operations").await.ok(200);
        history[0].outcome == "done"
    })
    .await;
    scale(&ada, "demo", 2).await.ok::<VclusterView>(202);
    super::support::eventually("the nodes that came last are gone", || async {
        let nodes: Vec<NodeView> = ada.get("/api/v1/vclusters/demo/nodes").await.ok(200);
        nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>() == ["node1", "node2"]
    })
    .await;
    assert_eq!(usage(&site, "ada").await.nodes, 2);

    let history: Vec<OperationView> = ada.get("/api/v1/vclusters/demo/operations").await.ok(200);
    assert_eq!(
        history.iter().map(|o| o.action.as_str()).collect::<Vec<_>>(),
        ["scale", "scale", "start", "stop", "create"]
    );
    assert!(history.iter().skip(1).all(|o| o.outcome == "done" && o.actor == "ada"), "{history:?}");
    let create = history.last().unwrap();
    assert!(create.steps.iter().any(|s| s.step == Step::Ready && s.done == 3), "{create:?}");

    let gone = ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await;
    assert_eq!(gone.status, 204, "{}", gone.text);
    ada.get("/api/v1/vclusters/demo").await.problem(404, "not_found");
    ada.delete("/api/v1/vclusters/demo").await.problem(404, "not_found");
    assert_eq!(usage(&site, "ada").await, Usage::default());
    assert_eq!(leftovers(&site).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_differ_and_never_leave_the_store() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("one", 1).await;
    ada.running("two", 1).await;
    let specs = specs(&site).await;
    assert_ne!(specs[0].keys.user.public, specs[1].keys.user.public);
    assert!(specs[0].keys.user.private.contains("OPENSSH PRIVATE KEY"));
    for path in [
        "/api/v1/vclusters",
        "/api/v1/vclusters/one",
        "/api/v1/vclusters/one/nodes",
        "/api/v1/vclusters/one/operations",
    ] {
        let answer = ada.get(path).await;
        assert!(!answer.text.contains("PRIVATE") && !answer.text.contains("AAAA"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_tells_why_and_another_try_heals() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    site.host.fail_at(Some(Step::Network));
    ada.create("demo", 2).await.ok::<VclusterView>(202);
    // The wait ends when the change has ended otherwise.
    let view: VclusterView = ada.get("/api/v1/vclusters/demo?wait=running&timeout=20").await.ok(200);
    assert_eq!(view.status, Status::Failed);
    let reason = view.reason.unwrap();
    assert_eq!((reason.code.as_str(), reason.log.as_deref()), ("test_failure", Some("line 1\nline 2")));
    assert_eq!(view.operation.unwrap().outcome, "failed");
    site.host.fail_at(None);
    ada.act("/api/v1/vclusters/demo/retry").await.ok::<VclusterView>(202);
    ada.wait("demo", "running").await;
    ada.act("/api/v1/vclusters/demo/retry").await.problem(409, "wrong_state");
    super::support::eventually("the retry is done", || async {
        let history: Vec<OperationView> = ada.get("/api/v1/vclusters/demo/operations").await.ok(200);
        history.iter().map(|o| (o.action.as_str(), o.outcome.as_str())).collect::<Vec<_>>()
            == [("retry", "done"), ("create", "failed")]
    })
    .await;
    // Start of what is wanted running but failed is another try, too.
    ada.act("/api/v1/vclusters/demo/stop").await.ok::<VclusterView>(202);
    ada.wait("demo", "stopped").await;
    site.host.fail_at(Some(Step::Boot));
    ada.act("/api/v1/vclusters/demo/start").await.ok::<VclusterView>(202);
    let view: VclusterView = ada.get("/api/v1/vclusters/demo?wait=running&timeout=20").await.ok(200);
    assert_eq!(view.status, Status::Failed);
    site.host.fail_at(None);
    ada.act("/api/v1/vclusters/demo/start").await.ok::<VclusterView>(202);
    ada.wait("demo", "running").await;
    // What failed can be deleted.
    site.host.fail_at(Some(Step::Image));
    ada.create("broken", 1).await.ok::<VclusterView>(202);
    assert_eq!(ada.delete("/api/v1/vclusters/broken?wait=absent&timeout=20").await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_while_creating_and_twice() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    site.host.sleep(true).await;
    ada.create("demo", 3).await.ok::<VclusterView>(202);
    let view: VclusterView = ada.delete("/api/v1/vclusters/demo").await.ok(202);
    assert_eq!(view.status, Status::Deleting);
    // Nobody reports: it stays on its way out, and says so.
    assert_eq!(
        ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=1").await.ok::<VclusterView>(202).status,
        Status::Deleting
    );
    ada.act("/api/v1/vclusters/demo/start").await.problem(409, "wrong_state");
    scale(&ada, "demo", 1).await.problem(409, "wrong_state");
    let taken = ada.create("demo", 1).await.problem(409, "name_taken");
    assert!(taken.detail.contains("deleted"), "{}", taken.detail);
    site.host.sleep(false).await;
    assert!([204, 404].contains(&ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await.status.as_u16()));
    ada.delete("/api/v1/vclusters/demo").await.problem(404, "not_found");
    assert_eq!(usage(&site, "ada").await, Usage::default());
    assert_eq!(leftovers(&site).await, Vec::<String>::new());
    ada.running("demo", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_time() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    site.host.sleep(true).await;
    ada.create("demo", 1).await.ok::<VclusterView>(202);
    let started = std::time::Instant::now();
    let problem = ada.get("/api/v1/vclusters/demo?wait=running&timeout=1").await.problem(408, "timeout");
    assert!(problem.detail.contains("demo") && (900..5000).contains(&started.elapsed().as_millis()), "{problem:?}");
    let waiting = ada.get("/api/v1/vclusters/demo?wait=running&timeout=20");
    let (seen, ()) = tokio::join!(waiting, async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        site.host.sleep(false).await;
    });
    assert_eq!(seen.ok::<VclusterView>(200).status, Status::Running);
    // Gone meanwhile: there is nothing to wait for.
    site.host.sleep(true).await;
    ada.create("brief", 1).await.ok::<VclusterView>(202);
    let waiting = ada.get("/api/v1/vclusters/brief?wait=running&timeout=20");
    let (seen, deleted) = tokio::join!(waiting, async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let deleted = ada.delete("/api/v1/vclusters/brief").await;
        site.host.sleep(false).await;
        deleted
    });
    assert_eq!(deleted.status, 202);
    seen.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_acts_for_others_by_name() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    let wanted = serde_json::json!({"name": "theirs", "nodes": 1});
    let made = root.post("/api/v1/vclusters?owner=ada", wanted.clone()).await;
    assert_eq!(made.header("location"), "/api/v1/vclusters/theirs?owner=ada");
    assert_eq!(made.ok::<VclusterView>(202).owner, "ada");
    ada.wait("theirs", "running").await;
    root.get("/api/v1/vclusters/theirs").await.problem(404, "not_found");
    root.get("/api/v1/vclusters/theirs?owner=ada").await.ok::<VclusterView>(200);
    root.running("mine", 1).await;
    let all: Vec<VclusterView> = root.get("/api/v1/vclusters").await.ok(200);
    assert_eq!(
        all.iter().map(|v| (v.owner.as_str(), v.name.as_str())).collect::<Vec<_>>(),
        [("ada", "theirs"), ("root", "mine")]
    );
    assert_eq!(root.get("/api/v1/vclusters?owner=ada").await.ok::<Vec<VclusterView>>(200).len(), 1);
    assert_eq!(ada.get("/api/v1/vclusters").await.ok::<Vec<VclusterView>>(200).len(), 1);
    root.post("/api/v1/vclusters?owner=nobody", wanted).await.problem(404, "not_found");
    let history: Vec<OperationView> = ada.get("/api/v1/vclusters/theirs/operations").await.ok(200);
    assert_eq!(history[0].actor, "root");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_logs_and_apps() {
    use std::sync::atomic::Ordering;
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 1).await;
    let node = "/api/v1/vclusters/demo/nodes/node1";
    let result: docklet_types::view::ExecResult = ada
        .post(&format!("{node}/exec"), serde_json::json!({"argv": ["echo", "$HOME; ls"], "stdin": "x"}))
        .await
        .ok(200);
    assert_eq!((result.exit_code, result.stdout.as_str()), (0, "echo $HOME; lsx\n"));
    assert_eq!(
        ada.get(&format!("{node}/logs?lines=7")).await.ok::<docklet_types::view::Logs>(200).text,
        "the last 7 lines\n"
    );
    ada.get("/api/v1/vclusters/demo/nodes/node9/logs").await.problem(404, "not_found");

    use docklet_types::view::{AppStatus, AppView};
    let app = |status: AppStatus| move |view: AppView| assert_eq!(view.status, status, "{view:?}");
    app(AppStatus::Stopped)(ada.get(&format!("{node}/apps/jupyter")).await.ok(200));
    let started: AppView = ada.act(&format!("{node}/apps/jupyter")).await.ok(202);
    assert_eq!(started.status, AppStatus::Starting);
    let port = site.config.proxy_port;
    assert_eq!(started.url, format!("http://8888--node1--demo--ada.localhost:{port}/lab"));
    app(AppStatus::Starting)(ada.get(&format!("{node}/apps/jupyter")).await.ok(200));
    site.access.listening.store(true, Ordering::SeqCst);
    app(AppStatus::Running)(ada.get(&format!("{node}/apps/jupyter")).await.ok(200));
    app(AppStatus::Running)(ada.act(&format!("{node}/apps/jupyter")).await.ok(200));
    assert_eq!(
        site.access.execs.load(Ordering::SeqCst),
        3,
        "one command, one start, and whether another had started it"
    );
    ada.act(&format!("{node}/apps/telnet")).await.problem(404, "not_found");

    site.access.listening.store(false, Ordering::SeqCst);
    *site.access.exit_code.lock().unwrap() = 127;
    let failed: AppView = ada.act(&format!("{node}/apps/jupyter")).await.ok(202);
    assert_eq!((failed.status, failed.reason.unwrap().code.as_str()), (AppStatus::Failed, "no_jupyter"));
    site.access.down.store(true, Ordering::SeqCst);
    let answer = ada.post(&format!("{node}/exec"), serde_json::json!({"argv": ["true"]})).await;
    answer.problem(503, "unavailable");
    assert!(!answer.header("retry-after").is_empty());
}
