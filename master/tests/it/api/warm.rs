//! Nodes that are booted before anybody asks: a create takes them over, and everything is as if they had been cold.

use super::lifecycle::{specs, usage};
use super::support::{Answer, Site, User, eventually, site_with};
use docklet_types::spec::{Usage, VclusterSpec, Wanted};
use docklet_types::view::{HostView, NodeView, OperationView, VclusterView};
use reqwest::Method;
use serde_json::json;

/// The host as an administrator sees it.
async fn host(root: &User) -> HostView {
    root.get("/api/v1/hosts/h1").await.ok(200)
}

/// Waits until so many nodes are kept warm on the host.
async fn warm(root: &User, count: u32) {
    eventually(&format!("{count} nodes are warm"), || async { host(root).await.nodes_warm == count }).await;
}

async fn nodes(user: &User, name: &str) -> Vec<NodeView> {
    user.get(&format!("/api/v1/vclusters/{name}/nodes")).await.ok(200)
}

/// A site where ada has signed in and three nodes are kept for her.
async fn ready(extra: &str) -> (Site, User, User) {
    let site = site_with(&format!("PREBOOT_NODES=3\n{extra}")).await;
    let ada = site.sign_in("ada").await;
    let root = site.sign_in("root").await;
    warm(&root, 6).await;
    (site, ada, root)
}

async fn kept_for(site: &Site, owner: &str) -> Vec<VclusterSpec> {
    specs(site).await.into_iter().filter(|s| s.warm.is_some() && s.owner.as_str() == owner).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_what_nobody_asked_for() {
    let (site, ada, root) = ready("").await;
    for user in [&ada, &root] {
        let all: Vec<VclusterView> = user.get("/api/v1/vclusters").await.ok(200);
        assert!(all.is_empty(), "{all:?}");
    }
    ada.get("/api/v1/vclusters/warm").await.problem(404, "not_found");
    assert_eq!(usage(&site, "ada").await, Usage::default());
    let seen = host(&root).await;
    assert_eq!((seen.nodes, seen.nodes_ready, seen.nodes_warm), (0, 0, 6));
    let metrics = root.get("/metrics").await.text;
    assert!(metrics.contains("docklet_nodes_warm_count 6") && metrics.contains("docklet_nodes_count 0"), "{metrics}");
    // Its name is free, also for what is taken over.
    assert_eq!(ada.running("warm", 1).await.nodes, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_takes_it_over() {
    let (site, ada, root) = ready("").await;
    let kept = kept_for(&site, "ada").await.remove(0);
    let view = ada.running("demo", 2).await;
    assert_eq!(view.id, kept.id.to_string());
    assert_eq!((view.nodes, view.nodes_ready), (2, 2));
    assert_eq!(usage(&site, "ada").await.nodes, 2);
    eventually("the third is gone", || async { nodes(&ada, "demo").await.len() == 2 && host(&root).await.nodes == 2 })
        .await;
    assert_eq!(nodes(&ada, "demo").await.iter().map(|n| n.name.clone()).collect::<Vec<_>>(), ["node1", "node2"]);
    eventually("the change has ended", || async {
        let history: Vec<OperationView> = ada.get("/api/v1/vclusters/demo/operations").await.ok(200);
        history.len() == 1 && history[0].action == "create" && history[0].outcome == "done"
    })
    .await;
    // The rest of its life is anybody's.
    ada.act("/api/v1/vclusters/demo/stop").await.ok::<VclusterView>(202);
    ada.wait("demo", "stopped").await;
    ada.act("/api/v1/vclusters/demo/start").await.ok::<VclusterView>(202);
    ada.wait("demo", "running").await;
    ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await;
    eventually("all of it is gone", || async { specs(&site).await.iter().all(|s| s.owner.as_str() != "ada") }).await;
    assert_eq!(usage(&site, "ada").await, Usage::default());
    warm(&root, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_nodes_and_other_sizes_are_served_too() {
    let (site, ada, _) = ready("").await;
    let kept = kept_for(&site, "ada").await.remove(0);
    let size = json!({"cpu": 0.5, "memory_mib": 2048, "disk_mib": 1024});
    let made: VclusterView =
        ada.post("/api/v1/vclusters", json!({"name": "demo", "nodes": 5, "size": size})).await.ok(202);
    assert_eq!(made.id, kept.id.to_string());
    assert_eq!(ada.wait("demo", "running").await.nodes_ready, 5);
    let nodes = nodes(&ada, "demo").await;
    assert_eq!(
        nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(),
        ["node1", "node2", "node3", "node4", "node5"]
    );
    assert!(nodes.iter().all(|n| n.size.memory_mib == 2048), "{nodes:?}");
    assert_eq!(usage(&site, "ada").await.memory_mib, 5 * 2048);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_serve_is_left_alone() {
    let (site, ada, root) = ready("").await;
    let kept = kept_for(&site, "ada").await.remove(0).id.to_string();
    let other: VclusterView =
        ada.post("/api/v1/vclusters", json!({"name": "other", "nodes": 1, "image": "small"})).await.ok(202);
    let labelled = json!({"name": "labelled", "nodes": 1, "host_labels": {"gpu": "yes"}});
    let labelled: VclusterView = ada.post("/api/v1/vclusters", labelled).await.ok(202);
    // More than the cap is refused, and costs nothing.
    ada.post("/api/v1/vclusters", json!({"name": "large", "nodes": 60})).await.problem(403, "over_quota");
    let bob = site.sign_in("bob").await;
    let bobs = bob.running("demo", 1).await;
    let roots: VclusterView = root.create("demo", 1).await.ok(202);
    for view in [&other, &labelled, &bobs, &roots] {
        assert_ne!(view.id, kept, "{view:?}");
    }
    assert_eq!(kept_for(&site, "ada").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_is_kept_however_often_somebody_signs_in() {
    let (site, ada, root) = ready("").await;
    let first = kept_for(&site, "ada").await.remove(0);
    let again: Vec<_> = (0..5).map(|_| site.sign_in("ada")).collect();
    futures::future::join_all(again).await;
    ada.running("demo", 1).await;
    assert!(kept_for(&site, "ada").await.is_empty(), "taken over, and not made anew before somebody comes");
    site.sign_in("ada").await;
    warm(&root, 6).await;
    let second = kept_for(&site, "ada").await;
    assert_eq!(second.len(), 1);
    assert_ne!(second[0].id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_finds_what_it_took_over() {
    let (site, ada, _) = ready("").await;
    let create = async |user: &User| {
        let request = user.request(Method::POST, "/api/v1/vclusters").header("Idempotency-Key", "k");
        Answer::of(request.json(&json!({"name": "demo", "nodes": 2})).send().await.unwrap()).await
    };
    let first: VclusterView = create(&ada).await.ok(202);
    // As if the master had died between the store's yes and its own note of the answer.
    site.db.later(2 * 86_400).purge().await.unwrap();
    let ada = site.sign_in("ada").await;
    let again: VclusterView = create(&ada).await.ok(202);
    assert_eq!(again.id, first.id);
    assert_eq!(usage(&site, "ada").await.vclusters, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_where_others_need_the_room() {
    // Eight CPUs in all: six are kept warm.
    let (site, ada, root) = ready("CPU_OVERCOMMIT=1\nPREBOOT_BELOW=100").await;
    let fit = json!({"name": "fit", "nodes": 8, "image": "small"});
    let answer: serde_json::Value = root.post("/api/v1/vclusters/what-if", fit).await.ok(200);
    assert!(answer["reason"].is_null(), "{answer}");
    let bob = site.sign_in("bob").await;
    bob.post("/api/v1/vclusters", json!({"name": "demo", "nodes": 6, "image": "small"})).await.ok::<VclusterView>(202);
    assert_eq!(bob.wait("demo", "running").await.nodes_ready, 6);
    let left = specs(&site).await.into_iter().filter(|s| s.warm.is_some() && s.wanted != Wanted::Absent).count();
    assert_eq!(left, 0);
    // And comes back only where there is room.
    ada.running("mine", 2).await;
    warm(&root, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_with_its_user_and_with_its_host() {
    let (site, _, root) = ready("").await;
    root.send(Method::PATCH, "/api/v1/users/ada", Some(json!({"disabled": true}))).await.ok::<serde_json::Value>(200);
    warm(&root, 3).await;
    assert!(kept_for(&site, "ada").await.iter().all(|s| s.wanted == Wanted::Absent));
    root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({"cordoned": true}))).await.ok::<HostView>(200);
    warm(&root, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_where_nobody_wants_it() {
    let site = site_with("").await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    assert_eq!(host(&root).await.nodes_warm, 0);
    assert!(specs(&site).await.iter().all(|s| s.warm.is_none()));
}
