//! Published ports: one owner each in the whole installation, within quota, and given back with what they lead to.

use super::lifecycle::{specs, usage};
use super::support::{Site, User, eventually, site, site_with};
use docklet_store::Store as _;
use docklet_types::plan::VclusterPlan;
use docklet_types::view::{PortView, VclusterView};
use reqwest::Method;
use serde_json::{Value, json};

async fn publish(user: &User, vcluster: &str, body: Value) -> super::support::Answer {
    user.post(&format!("/api/v1/vclusters/{vcluster}/ports"), body).await
}

/// The keys of ports that somebody has.
async fn taken(site: &Site) -> Vec<String> {
    let prefix = format!("{}ports/", site.keys.root());
    let keys = site.store.list(&prefix).await.unwrap().entries.into_iter().map(|e| e.key);
    keys.map(|k| k.strip_prefix(&prefix).unwrap().to_owned()).collect()
}

/// The public ports that the host is told to forward.
async fn forwarded(site: &Site) -> Vec<u16> {
    let plans = site.store.list(&format!("{}plans/", site.keys.root())).await.unwrap().entries;
    let shares = plans.iter().filter(|e| e.key.contains("/vclusters/"));
    let plans = shares.map(|e| serde_json::from_slice::<VclusterPlan>(&e.value).unwrap());
    plans
        .filter(|p| p.wanted != docklet_types::spec::Wanted::Absent)
        .flat_map(|p| p.forwards)
        .map(|f| f.public)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_published_once_and_goes_to_the_host_without_touching_the_node() {
    let site = site().await;
    let (ada, bob) = (site.sign_in("ada").await, site.sign_in("bob").await);
    let before = ada.running("demo", 2).await;
    bob.running("mine", 1).await;
    let chosen: PortView = publish(&ada, "demo", json!({"node": "node2", "port": 80})).await.ok(201);
    assert!((10_000..32_768).contains(&chosen.public_port) || chosen.public_port > 60_999, "{chosen:?}");
    assert_eq!((chosen.node.as_str(), chosen.port, chosen.host.as_deref()), ("node2", 80, Some("h1")));
    let asked: PortView =
        publish(&ada, "demo", json!({"node": "node1", "port": 53, "protocol": "udp", "public_port": 10_053}))
            .await
            .ok(201);
    // Asking again for the same changes nothing; for another node it is a conflict, as it is for another user.
    let again = json!({"node": "node1", "port": 53, "protocol": "udp", "public_port": 10_053});
    assert_eq!(publish(&ada, "demo", again.clone()).await.ok::<PortView>(201), asked);
    let other = json!({"node": "node2", "port": 53, "protocol": "udp", "public_port": 10_053});
    let problem = publish(&ada, "demo", other).await.problem(409, "port_taken");
    assert_eq!(problem.field.as_deref(), Some("public_port"));
    publish(&bob, "mine", again.clone()).await.problem(409, "port_taken");
    // The other protocol's is another port.
    publish(&bob, "mine", json!({"node": "node1", "port": 53, "public_port": 10_053})).await.ok::<PortView>(201);

    let listed: Vec<PortView> = ada.get("/api/v1/vclusters/demo/ports").await.ok(200);
    assert_eq!(listed, [chosen.clone(), asked]);
    assert_eq!(usage(&site, "ada").await.ports, 2);
    eventually("the host is told", || async { forwarded(&site).await.len() == 3 }).await;
    let after: VclusterView = ada.get("/api/v1/vclusters/demo").await.ok(200);
    assert_eq!(after.operation.as_ref().map(|o| &o.id), before.operation.as_ref().map(|o| &o.id));
    assert!(after.generation > before.generation);
    assert_eq!(after.status.as_str(), "running");

    let address = format!("/api/v1/vclusters/demo/ports/tcp/{}", chosen.public_port);
    assert_eq!(ada.delete(&address).await.status, 204);
    ada.delete(&address).await.problem(404, "not_found");
    // Somebody else's is not there, though the number is taken.
    ada.delete("/api/v1/vclusters/demo/ports/tcp/10053").await.problem(404, "not_found");
    assert_eq!(usage(&site, "ada").await.ports, 1);
    eventually("the host is told", || async { forwarded(&site).await.len() == 2 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_given_back_with_their_nodes() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 2).await;
    for (node, public) in [("node1", 12_001), ("node2", 12_002), ("node2", 12_003)] {
        publish(&ada, "demo", json!({"node": node, "port": 80, "public_port": public})).await.ok::<PortView>(201);
    }
    // Scaled in: the ports of the node that goes are free at once, those of the others stay through a stop.
    ada.send(Method::PATCH, "/api/v1/vclusters/demo", Some(json!({"nodes": 1}))).await.ok::<VclusterView>(202);
    assert_eq!(taken(&site).await, ["tcp/12001"]);
    assert_eq!(usage(&site, "ada").await.ports, 1);
    ada.act("/api/v1/vclusters/demo/stop").await.ok::<VclusterView>(202);
    ada.wait("demo", "stopped").await;
    assert_eq!(taken(&site).await, ["tcp/12001"]);
    publish(&ada, "demo", json!({"node": "node1", "port": 81, "public_port": 12_002})).await.ok::<PortView>(201);
    ada.delete("/api/v1/vclusters/demo").await.ok::<VclusterView>(202);
    assert!(taken(&site).await.is_empty());
    eventually("everything is gone", || async { specs(&site).await.is_empty() }).await;
    assert_eq!(usage(&site, "ada").await, docklet_types::spec::Usage::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_published() {
    let site = site_with("USER_MAX_PORTS=2\nPUBLIC_PORTS=8000-20000\nMASTER_PORT=9000\n").await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 1).await;
    let ask = async |port: i64, public: i64| {
        publish(&ada, "demo", json!({"node": "node1", "port": port, "public_port": public})).await
    };
    for (port, public, field) in [
        (0, 12_000, "port"),
        (65_536, 12_000, "port"),
        (80, 80, "public_port"),
        (80, 20_001, "public_port"),
        (80, -1, "public_port"),
        (80, 9000, "public_port"),
    ] {
        assert_eq!(ask(port, public).await.problem(422, "invalid").field.as_deref(), Some(field), "{port} {public}");
    }
    publish(&ada, "demo", json!({"node": "node7", "port": 80})).await.problem(404, "not_found");
    publish(&ada, "demo", json!({"node": "NODE", "port": 80})).await.problem(422, "invalid");
    publish(&ada, "demo", json!({"node": "node1", "port": 80, "protocol": "sctp"}))
        .await
        .problem(400, "malformed_body");
    for public in [12_000, 12_001] {
        ask(80, public).await.ok::<PortView>(201);
    }
    ask(80, 12_002).await.problem(403, "over_quota");
    ada.delete("/api/v1/vclusters/demo/ports/sctp/12000").await.problem(404, "not_found");
    // An administrator has no cap.
    let root = site.sign_in("root").await;
    root.running("big", 1).await;
    for _ in 0..3 {
        publish(&root, "big", json!({"node": "node1", "port": 80})).await.ok::<PortView>(201);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_ask_for_one_port_one_gets_it() {
    let site = site().await;
    let (ada, bob) = (site.sign_in("ada").await, site.sign_in("bob").await);
    ada.running("demo", 1).await;
    bob.running("demo", 1).await;
    let tasks: Vec<_> = (0..10)
        .map(|i| {
            let user = if i % 2 == 0 { ada.clone() } else { bob.clone() };
            let body = json!({"node": "node1", "port": 1000 + i, "public_port": 13_000});
            tokio::spawn(async move { publish(&user, "demo", body).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 201 {
            won += 1;
        } else {
            answer.problem(409, "port_taken");
        }
    }
    assert_eq!((won, taken(&site).await.len()), (1, 1));
    assert_eq!(usage(&site, "ada").await.ports + usage(&site, "bob").await.ports, 1);
}
