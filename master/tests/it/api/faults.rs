//! When something that the master needs does not answer.

use super::support::{Site, eventually, site};
use docklet_master::assembly::Assembly;
use docklet_types::status::Status;
use docklet_types::view::{HostView, OperationView, VclusterView};
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_reads_work_and_changes_say_when_to_come_again() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    assert_eq!(site.nobody().get("/readyz").await.status, 200);
    site.store.set_down(true);
    let changes = [
        ada.create("new", 1).await,
        ada.act("/api/v1/vclusters/demo/stop").await,
        ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(json!({"nodes": 2}))).await,
        ada.delete("/api/v1/vclusters/demo").await,
    ];
    for answer in changes {
        answer.problem(503, "unavailable");
        assert!(answer.header("retry-after").parse::<u64>().is_ok());
    }
    assert_eq!(ada.get("/api/v1/vclusters/demo").await.ok::<VclusterView>(200).status, Status::Running);
    assert_eq!(ada.post("/api/v1/vclusters/demo/nodes/node1/exec", json!({"argv": ["true"]})).await.status, 200);
    let history: Vec<OperationView> = ada.get("/api/v1/vclusters/demo/operations").await.ok(200);
    assert_eq!(history.len(), 1, "what was refused left no trace: {history:?}");
    eventually("readiness tells", || async { site.nobody().get("/readyz").await.status == 503 }).await;
    assert_eq!(site.nobody().get("/healthz").await.status, 200);
    site.store.set_down(false);
    eventually("changes are taken again", || async { ada.act("/api/v1/vclusters/demo/stop").await.status == 202 })
        .await;
    ada.wait("demo", "stopped").await;
    ada.running("new", 1).await;
    let history: Vec<OperationView> = ada.get("/api/v1/vclusters/new/operations").await.ok(200);
    assert_eq!(history.len(), 1, "the create that was refused left no trace: {history:?}");
    assert_eq!(root.get("/api/v1/vclusters").await.ok::<Vec<VclusterView>>(200).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_answer_the_store_lost_is_in_the_history() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    site.store.go_down_after_commit();
    ada.create("demo", 1).await.problem(503, "unavailable");
    site.store.set_down(false);
    eventually("it was written all the same, and has a beginning and an end", || async {
        let answer = ada.get("/api/v1/vclusters/demo/operations").await;
        answer.status == 200 && {
            let history: Vec<OperationView> = answer.ok(200);
            history.len() == 1 && history[0].action == "create" && history[0].outcome == "done"
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_cut_off_is_said_to_be() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    let hosts: Vec<HostView> = root.get("/api/v1/hosts").await.ok(200);
    assert_eq!((hosts[0].name.as_str(), hosts[0].status.as_str(), hosts[0].nodes_ready), ("h1", "ready", 1));
    site.host.die().await;
    eventually("the host is unreachable", || async {
        root.get("/api/v1/hosts/h1").await.ok::<HostView>(200).status == "unreachable"
    })
    .await;
    let view: VclusterView = ada.get("/api/v1/vclusters/demo").await.ok(200);
    assert_eq!((view.status, view.reason.unwrap().code.as_str()), (Status::Degraded, "host_unreachable"));
    // What is created now waits, and says for what.
    ada.create("later", 1).await.ok::<VclusterView>(202);
    eventually("it says why it waits", || async {
        ada.get("/api/v1/vclusters/later").await.ok::<VclusterView>(200).reason.is_some_and(|r| r.code == "no_host")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordoned_host_keeps_its_nodes_and_takes_no_new_ones() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    let cordon = |on: bool| json!({ "cordoned": on });
    let host: HostView = root.send(Method::PATCH, "/api/v1/hosts/h1", Some(cordon(true))).await.ok(200);
    assert_eq!((host.status.as_str(), host.cordoned, host.nodes_ready), ("cordoned", true, 1));
    // Saying it again changes nothing.
    root.send(Method::PATCH, "/api/v1/hosts/h1", Some(cordon(true))).await.ok::<HostView>(200);
    ada.create("later", 1).await.ok::<VclusterView>(202);
    eventually("it says why it waits", || async {
        let view: VclusterView = ada.get("/api/v1/vclusters/later").await.ok(200);
        view.reason.is_some_and(|r| r.code == "no_fit_host" && r.message.contains("cordoned"))
    })
    .await;
    assert_eq!(ada.get("/api/v1/vclusters/demo").await.ok::<VclusterView>(200).status, Status::Running);
    let open: HostView = root.send(Method::PATCH, "/api/v1/hosts/h1", Some(cordon(false))).await.ok(200);
    assert_eq!((open.status.as_str(), open.cordoned), ("ready", false));
    ada.get("/api/v1/vclusters/later?wait=running&timeout=10").await.ok::<VclusterView>(200);
    root.send(Method::PATCH, "/api/v1/hosts/none", Some(cordon(true))).await.problem(404, "not_found");
    root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({ "drained": true }))).await.problem(400, "malformed_body");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_host_that_is_gone_and_empty_is_forgotten() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    root.delete("/api/v1/hosts/h1").await.problem(409, "wrong_state");
    site.host.die().await;
    eventually("its nodes are in the way, not its life", || async {
        root.delete("/api/v1/hosts/h1").await.text.contains("still holds 1 ")
    })
    .await;
    root.delete("/api/v1/hosts/none").await.problem(404, "not_found");
    let site = super::support::site().await;
    let root = site.sign_in("root").await;
    root.send(Method::PATCH, "/api/v1/hosts/h1", Some(json!({ "cordoned": true }))).await.ok::<HostView>(200);
    site.host.die().await;
    eventually("the host is removed", || async { root.delete("/api/v1/hosts/h1").await.status == 204 }).await;
    root.get("/api/v1/hosts/h1").await.problem(404, "not_found");
    assert!(root.get("/api/v1/hosts").await.ok::<Vec<HostView>>(200).is_empty());
}

/// Another master over the same store and database.
async fn second(site: &Site) -> Assembly {
    Assembly::start(&site.config, site.db.clone(), Arc::new(site.store.clone()), site.access.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_comes_back_knows_everything() {
    let mut site = site().await;
    let ada = site.sign_in("ada").await;
    site.host.sleep(true).await;
    ada.create("demo", 2).await.ok::<VclusterView>(202);
    // The first one dies while the create runs.
    site.master.assembly.take().unwrap().stop().await;
    let master = second(&site).await;
    site.host.sleep(false).await;
    let (owner, name) = ("ada".parse().unwrap(), "demo".parse().unwrap());
    eventually("the new master finishes it", || async {
        let view = master.parts.vclusters.get(&owner, &name).unwrap();
        view.status == Status::Running && view.operation.is_some_and(|o| o.outcome == "done" && o.action == "create")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_masters_share_the_work() {
    let site = site().await;
    let other = second(&site).await;
    let ada = site.sign_in("ada").await;
    let tasks: Vec<_> = (0..3)
        .map(|n| {
            let ada = ada.clone();
            tokio::spawn(async move { ada.running(&format!("c{n}"), 2).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    eventually("the other sees the same", || async {
        let views = other.parts.vclusters.list(None);
        views.len() == 3 && views.iter().all(|v| v.status == Status::Running)
    })
    .await;
    for n in 0..3 {
        assert_eq!(ada.delete(&format!("/api/v1/vclusters/c{n}?wait=absent&timeout=20")).await.status, 204);
    }
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_and_name_nobody() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("secretname", 2).await;
    ada.get("/api/v1/vclusters/secretname").await;
    let text = site.nobody().get("/metrics").await.text;
    for line in [
        "docklet_vclusters_count{status=\"running\"} 1",
        "docklet_nodes_ready_count 2",
        "docklet_hosts_count{status=\"ready\"} 1",
        "docklet_store_up_bool 1",
        "docklet_http_requests_total{method=\"POST\",route=\"/api/v1/vclusters\",status=\"202\"} 1",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("secretname") && !text.contains("ada"));
}
