//! Moving nodes, emptying hosts, giving hosts up: over hosts that do what their plans say, and streams that arrive or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use docklet_types::agent::Part;
use docklet_types::moves::Stage;
use docklet_types::status::Status;
use docklet_types::view::{HostView, NodeView, OperationView};
use reqwest::Method;
use serde_json::json;

use super::support::host::FakeHost;
use super::support::{Site, User, site};

const NODES: &str = "/api/v1/vclusters/demo/nodes?owner=ada";
const MOVE: &str = "/api/v1/vclusters/demo/move?owner=ada";

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn second_host(site: &Site) -> FakeHost {
    FakeHost::start(Arc::new(site.store.clone()), site.keys.clone(), "h2").await
}

/// A vcluster whose nodes are all on h1, and a second host.
async fn prepared(nodes: u32) -> (Site, FakeHost, User) {
    let site = site().await;
    site.sign_in("ada").await.running("demo", i64::from(nodes)).await;
    let other = second_host(&site).await;
    let root = site.sign_in("root").await;
    eventually("the second host is known", async || {
        (root.get("/api/v1/hosts").await.ok::<Vec<HostView>>(200).len() == 2).then_some(())
    })
    .await;
    (site, other, root)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_moves_where_it_is_asked_to() {
    let (site, _other, root) = prepared(2).await;
    let before: Vec<NodeView> = root.get(NODES).await.ok(200);
    let asked: Vec<NodeView> =
        root.send(Method::POST, MOVE, Some(json!({"node": "node1", "host": "h2"}))).await.ok(202);
    assert_eq!(asked.len(), 1);
    let after: Vec<NodeView> = eventually("it is there and runs", async || {
        let nodes: Vec<NodeView> = root.get(NODES).await.ok(200);
        let there = nodes[0].host.as_deref() == Some("h2") && nodes[0].moving.is_none();
        (there && nodes[0].status == Status::Running).then_some(nodes)
    })
    .await;
    assert_eq!(after[0].ip, before[0].ip);
    assert_eq!(after[1].host.as_deref(), Some("h1"));
    assert_eq!(*site.access.disks.lock().unwrap(), [Part::First, Part::Last]);
    eventually("nothing is left on the old host", async || {
        let host: HostView = root.get("/api/v1/hosts/h1").await.ok(200);
        (host.nodes == 1).then_some(())
    })
    .await;
    // There already: nothing happens.
    root.send(Method::POST, MOVE, Some(json!({"node": "node1", "host": "h2"}))).await.ok::<Vec<NodeView>>(202);
    assert!(root.get(NODES).await.ok::<Vec<NodeView>>(200)[0].moving.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_arrive_stays_and_says_why() {
    let (site, _other, root) = prepared(1).await;
    site.access.broken_disks.store(true, Ordering::SeqCst);
    root.send(Method::POST, MOVE, Some(json!({"host": "h2"}))).await.ok::<Vec<NodeView>>(202);
    let node = eventually("it failed", async || {
        let node = root.get(NODES).await.ok::<Vec<NodeView>>(200).remove(0);
        (node.moving.as_ref().is_some_and(|m| m.stage == Stage::Failed) && node.status == Status::Running)
            .then_some(node)
    })
    .await;
    assert_eq!(node.host.as_deref(), Some("h1"));
    assert_eq!(node.moving.unwrap().reason.unwrap().code, "out_of_space");
    eventually("the target let go", async || {
        (root.get("/api/v1/hosts/h2").await.ok::<HostView>(200).nodes == 0).then_some(())
    })
    .await;
    // Asked for the place that it has, the wish is taken back.
    root.send(Method::POST, MOVE, Some(json!({"host": "h1"}))).await.ok::<Vec<NodeView>>(202);
    assert!(root.get(NODES).await.ok::<Vec<NodeView>>(200)[0].moving.is_none());
    // And asked again, with the line mended, it goes.
    site.access.broken_disks.store(false, Ordering::SeqCst);
    root.send(Method::POST, MOVE, Some(json!({"host": "h2"}))).await.ok::<Vec<NodeView>>(202);
    eventually("it is there", async || {
        (root.get(NODES).await.ok::<Vec<NodeView>>(200)[0].host.as_deref() == Some("h2")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wishes_that_make_no_sense_are_refused() {
    let (site, _other, root) = prepared(1).await;
    let ask = async |body| root.send(Method::POST, MOVE, Some(body)).await;
    assert_eq!(ask(json!({"host": "h9"})).await.problem(422, "invalid").field.as_deref(), Some("host"));
    assert_eq!(ask(json!({"host": "No!"})).await.problem(422, "invalid").field.as_deref(), Some("host"));
    ask(json!({"host": "h2", "node": "node9"})).await.problem(404, "not_found");
    root.send(Method::POST, "/api/v1/vclusters/nothing/move", Some(json!({"host": "h2"})))
        .await
        .problem(404, "not_found");
    site.sign_in("ada")
        .await
        .send(Method::POST, "/api/v1/vclusters/demo/move", Some(json!({"host": "h2"})))
        .await
        .problem(403, "not_allowed");
    site.host.store_disks_in("directory").await;
    let refused = eventually("it is refused", async || {
        let answer = ask(json!({"host": "h2"})).await;
        (answer.status == 409).then_some(answer)
    })
    .await;
    refused.problem(409, "move_needs_btrfs");
    assert!(site.access.disks.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_drained_and_filled_again() {
    let (_site, _other, root) = prepared(3).await;
    let host: HostView = root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({"draining": true}))).await.ok(200);
    assert!(host.draining && host.cordoned);
    eventually("it is empty", async || {
        (root.get("/api/v1/hosts/h1").await.ok::<HostView>(200).status == "drained").then_some(())
    })
    .await;
    let nodes: Vec<NodeView> = root.get(NODES).await.ok(200);
    assert!(nodes.iter().all(|n| n.host.as_deref() == Some("h2")), "{nodes:?}");
    let host: HostView = root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({"draining": false}))).await.ok(200);
    assert_eq!(host.status, "ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_another_host_a_drain_says_so_and_goes_on_when_there_is_one() {
    let site = site().await;
    site.sign_in("ada").await.running("demo", 2).await;
    let root = site.sign_in("root").await;
    root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({"draining": true}))).await.ok::<HostView>(200);
    let host = eventually("it says why", async || {
        let host: HostView = root.get("/api/v1/hosts/h1").await.ok(200);
        (host.moves.len() == 2).then_some(host)
    })
    .await;
    assert!(host.moves.iter().all(|m| m.reason.as_ref().is_some_and(|r| r.code == "no_other_host")), "{host:?}");
    assert_eq!(host.nodes_ready, 2);
    let _other = second_host(&site).await;
    eventually("it goes on", async || {
        (root.get("/api/v1/hosts/h1").await.ok::<HostView>(200).status == "drained").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_host_loses_its_nodes_only_by_an_operators_word() {
    let (site, _other, root) = prepared(2).await;
    let before: Vec<NodeView> = root.get(NODES).await.ok(200);
    root.delete("/api/v1/hosts/h1?lost=true").await.problem(409, "wrong_state");
    site.host.die().await;
    eventually("it is unreachable", async || {
        (root.get("/api/v1/hosts/h1").await.ok::<HostView>(200).status == "unreachable").then_some(())
    })
    .await;
    root.delete("/api/v1/hosts/h1").await.problem(409, "wrong_state");
    let nodes: Vec<NodeView> = root.get(NODES).await.ok(200);
    assert!(nodes.iter().all(|n| n.host.as_deref() == Some("h1")));
    assert_eq!(root.delete("/api/v1/hosts/h1?lost=true").await.status, 204);
    root.get("/api/v1/hosts/h1").await.problem(404, "not_found");
    let nodes: Vec<NodeView> = eventually("they run elsewhere", async || {
        let nodes: Vec<NodeView> = root.get(NODES).await.ok(200);
        nodes.iter().all(|n| n.host.as_deref() == Some("h2") && n.status == Status::Running).then_some(nodes)
    })
    .await;
    assert_eq!(nodes.iter().map(|n| &n.ip).collect::<Vec<_>>(), before.iter().map(|n| &n.ip).collect::<Vec<_>>());
    let change = eventually("the history says so", async || {
        let changes: Vec<OperationView> = root.get("/api/v1/vclusters/demo/operations?owner=ada").await.ok(200);
        changes.into_iter().find(|c| c.action == "make_anew" && c.outcome == "done")
    })
    .await;
    assert_eq!((change.actor.as_str(), change.reason.unwrap().code.as_str()), ("root", "node_lost"));
    // Deleting does not wait for a host that never comes back.
    site.sign_in("ada").await.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await;
    root.get("/api/v1/vclusters/demo?owner=ada").await.problem(404, "not_found");
}
