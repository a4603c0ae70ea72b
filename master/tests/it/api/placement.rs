//! Labels of hosts, what fits before it is made, and rate limits as part of what is wanted.

use super::support::host::FakeHost;
use super::support::{eventually, site};
use docklet_store::Store as _;
use docklet_types::plan::VclusterPlan;
use docklet_types::view::{FitView, HostView, NodeView, VclusterView};
use reqwest::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_go_to_hosts_with_the_labels_that_are_asked_for() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    let body = json!({"name": "demo", "nodes": 2, "host_labels": {"gpu": "yes"}});
    let fit: FitView = ada.post("/api/v1/vclusters/what-if", body.clone()).await.ok(200);
    assert!(!fit.fits && fit.more == 0, "{fit:?}");
    let reason = fit.reason.unwrap();
    assert_eq!(reason.code, "no_fit_host");
    assert!(reason.message.contains("1 host is not labelled gpu=yes"), "{}", reason.message);
    // It may be made all the same, and waits.
    let made: VclusterView = ada.post("/api/v1/vclusters", body).await.ok(202);
    assert_eq!(made.host_labels.get("gpu").map(String::as_str), Some("yes"));
    eventually("it says why it waits", || async {
        let view: VclusterView = ada.get("/api/v1/vclusters/demo").await.ok(200);
        view.reason.is_some_and(|r| r.message.contains("gpu=yes"))
    })
    .await;
    let _second = FakeHost::start(std::sync::Arc::new(site.store.clone()), site.keys.clone(), "h2").await;
    eventually("the second host is there", || async { root.get("/api/v1/hosts/h2").await.status == 200 }).await;
    let change = json!({"labels": {"gpu": "yes", "rack": "3"}});
    let host: HostView = root.send(Method::PATCH, "/api/v1/hosts/h2", Some(change)).await.ok(200);
    assert_eq!(host.labels.len(), 2);
    ada.wait("demo", "running").await;
    let nodes: Vec<NodeView> = ada.get("/api/v1/vclusters/demo/nodes").await.ok(200);
    assert!(nodes.iter().all(|n| n.host.as_deref() == Some("h2")), "{nodes:?}");
    // Taken away, and cordoning keeps what is left.
    root.send(Method::PATCH, "/api/v1/hosts/h2", Some(json!({"labels": {"gpu": null}}))).await.ok::<HostView>(200);
    let host: HostView = root.send(Method::PATCH, "/api/v1/hosts/h2", Some(json!({"cordoned": true}))).await.ok(200);
    assert_eq!(host.labels.keys().collect::<Vec<_>>(), ["rack"]);
    for bad in [json!({"labels": {"a b": "1"}}), json!({"labels": {"a": ""}})] {
        let problem = root.send(Method::PATCH, "/api/v1/hosts/h2", Some(bad)).await.problem(422, "invalid");
        assert_eq!(problem.field.as_deref(), Some("labels"));
    }
    let bad = json!({"name": "bad", "nodes": 1, "host_labels": {"a": "ü"}});
    assert_eq!(ada.post("/api/v1/vclusters", bad).await.problem(422, "invalid").field.as_deref(), Some("host_labels"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fits_is_told_before_it_is_made() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    let ask = |nodes: i64, memory_mib: i64| json!({"name": "demo", "nodes": nodes, "size": {"memory_mib": memory_mib}});
    let theirs: FitView = ada.post("/api/v1/vclusters/what-if", ask(3, 1024)).await.ok(200);
    assert!(theirs.fits && theirs.hosts.is_none() && theirs.more > 0, "{theirs:?}");
    let admins: FitView = root.post("/api/v1/vclusters/what-if", ask(3, 1024)).await.ok(200);
    let hosts = admins.hosts.unwrap();
    assert_eq!((hosts.len(), hosts[0].host.as_str(), hosts[0].nodes), (1, "h1", 3));
    // As many as it says do fit, and one more does not.
    let most = 3 + i64::from(admins.more);
    assert!(root.post("/api/v1/vclusters/what-if", ask(most, 1024)).await.ok::<FitView>(200).fits);
    let over: FitView = root.post("/api/v1/vclusters/what-if", ask(most + 1, 1024)).await.ok(200);
    assert_eq!(over.reason.unwrap().code, "no_room");
    let quota: FitView = ada.post("/api/v1/vclusters/what-if", ask(7, 1024)).await.ok(200);
    assert_eq!(quota.reason.unwrap().code, "over_quota");
    ada.post("/api/v1/vclusters/what-if", ask(0, 1024)).await.problem(422, "invalid");
    // Nothing came of it.
    assert!(ada.get("/api/v1/vclusters").await.ok::<Vec<VclusterView>>(200).is_empty());
    // A vcluster may be called so.
    ada.running("what-if", 1).await;
    assert_eq!(ada.delete("/api/v1/vclusters/what-if?wait=absent&timeout=20").await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_reach_the_host_and_stay() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 1).await;
    let limits = json!({"limits": {"ingress_kbit": 10_000, "egress_kbit": 5000}});
    let view: VclusterView = ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(limits)).await.ok(202);
    assert_eq!((view.limits.ingress_kbit, view.limits.egress_kbit), (Some(10_000), Some(5000)));
    assert_eq!(view.status.as_str(), "running");
    eventually("the host is told", || async {
        let plans = site.store.list(&format!("{}plans/", site.keys.root())).await.unwrap().entries;
        let mut shares = plans.iter().filter(|e| e.key.contains("/vclusters/"));
        shares.any(|e| serde_json::from_slice::<VclusterPlan>(&e.value).unwrap().limits == view.limits)
    })
    .await;
    // Scaling says nothing about them; a direction that is left out has none.
    let both = json!({"nodes": 2, "limits": {"egress_kbit": 5000}});
    let view: VclusterView = ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(both)).await.ok(202);
    assert_eq!((view.nodes, view.limits.ingress_kbit, view.limits.egress_kbit), (2, None, Some(5000)));
    let view: VclusterView = ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(json!({"nodes": 1}))).await.ok(202);
    assert_eq!(view.limits.egress_kbit, Some(5000));
    for (bad, field) in
        [(json!({"ingress_kbit": 1}), "limits.ingress_kbit"), (json!({"egress_kbit": 0}), "limits.egress_kbit")]
    {
        let answer = ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(json!({"limits": bad}))).await;
        assert_eq!(answer.problem(422, "invalid").field.as_deref(), Some(field));
    }
}
