//! Maintenance: who may begin what, and what everybody reads. The portal's form is tested with the portal.

use docklet_types::view::{MaintenanceView, VclusterView};
use reqwest::Method;
use serde_json::json;

use super::support::{User, site};

const PATH: &str = "/api/v1/maintenance";

async fn begin(root: &User, body: serde_json::Value) -> MaintenanceView {
    root.send(Method::POST, PATH, Some(body)).await.ok(200)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_begins_and_what_runs_goes_on() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("runs", 2).await;
    ada.running("stopped", 1).await;
    ada.send(Method::POST, "/api/v1/vclusters/stopped/stop", None::<()>).await.ok::<VclusterView>(202);

    let until = "2999-01-01T00:00:00Z";
    let said = begin(&root, json!({"message": "A new switch.", "until": until})).await;
    assert!(said.on);
    assert_eq!(
        (said.message.as_deref(), said.until.as_deref(), said.by.as_deref()),
        (Some("A new switch."), Some(until), Some("root"))
    );
    let seen: MaintenanceView = ada.get(PATH).await.ok(200);
    assert_eq!((seen.on, seen.message, seen.by), (true, Some("A new switch.".to_owned()), None));

    for (method, path, body) in [
        (Method::POST, "/api/v1/vclusters", Some(json!({"name": "new", "nodes": 1}))),
        (Method::PATCH, "/api/v1/vclusters/runs", Some(json!({"nodes": 3}))),
        (Method::POST, "/api/v1/vclusters/stopped/start", None),
    ] {
        let answer = ada.send(method, path, body).await;
        let problem = answer.problem(503, "maintenance");
        assert!(problem.detail.contains("A new switch.") && problem.detail.contains(until), "{}", problem.detail);
        assert!(answer.header("retry-after").parse::<u64>().unwrap() > 60, "{path}");
    }
    // What is asked for already is no change, and less is not more.
    ada.send(Method::POST, "/api/v1/vclusters/runs/start", None::<()>).await.ok::<VclusterView>(202);
    ada.send(Method::PATCH, "/api/v1/vclusters/runs", Some(json!({"nodes": 1}))).await.ok::<VclusterView>(202);
    ada.send(Method::POST, "/api/v1/vclusters/runs/nodes/node1/exec", Some(json!({"argv": ["id"]})))
        .await
        .ok::<serde_json::Value>(200);
    ada.send(Method::POST, "/api/v1/vclusters/runs/stop", None::<()>).await.ok::<VclusterView>(202);
    ada.send(Method::DELETE, "/api/v1/vclusters/runs", None::<()>).await.ok::<VclusterView>(202);

    // Administrators try out what they repaired, also for others.
    root.send(Method::POST, "/api/v1/vclusters", Some(json!({"name": "try", "nodes": 1})))
        .await
        .ok::<VclusterView>(202);
    root.send(Method::POST, "/api/v1/vclusters/stopped/start?owner=ada", None::<()>).await.ok::<VclusterView>(202);

    assert_eq!(root.send(Method::DELETE, PATH, None::<()>).await.status, 204);
    assert!(!ada.get(PATH).await.ok::<MaintenanceView>(200).on);
    ada.send(Method::POST, "/api/v1/vclusters", Some(json!({"name": "new", "nodes": 1}))).await.ok::<VclusterView>(202);
    // Once more is no error.
    assert_eq!(root.send(Method::DELETE, PATH, None::<()>).await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_said_anew_and_wrong_words_change_nothing() {
    let site = site().await;
    let root = site.sign_in("root").await;
    let first = begin(&root, json!({})).await;
    assert_eq!((first.message, first.until), (None, None));
    let ada = site.sign_in("ada").await;
    let refused = ada.send(Method::POST, "/api/v1/vclusters", Some(json!({"name": "new", "nodes": 1}))).await;
    refused.problem(503, "maintenance");
    assert_eq!(refused.header("retry-after"), "60");

    let second = begin(&root, json!({"message": "  Longer than thought. "})).await;
    assert_eq!((second.message.as_deref(), second.since), (Some("Longer than thought."), first.since));
    for (body, field) in [
        (json!({"message": "x".repeat(501)}), "message"),
        (json!({"message": "two\nlines"}), "message"),
        (json!({"until": "tomorrow"}), "until"),
        (json!({"until": "2020-01-01T00:00:00Z"}), "until"),
    ] {
        let problem = root.send(Method::POST, PATH, Some(body)).await.problem(422, "invalid");
        assert_eq!(problem.field.as_deref(), Some(field));
    }
    let now: MaintenanceView = ada.get(PATH).await.ok(200);
    assert_eq!(now.message.as_deref(), Some("Longer than thought."));
}

#[tokio::test(flavor = "multi_thread")]
async fn even_the_page_for_signing_in_says_so() {
    let site = site().await;
    let root = site.sign_in("root").await;
    begin(&root, json!({"message": "<b>Back</b> soon."})).await;
    let page = site.nobody().get("/sign-in").await.text;
    assert!(page.contains("Under maintenance.") && page.contains("&#60;b&#62;Back&#60;/b&#62; soon."), "{page}");
    assert!(!page.contains("<b>Back"));
    let metrics = site.nobody().get("/metrics").await.text;
    assert!(metrics.contains("docklet_maintenance_bool 1"), "{metrics}");
}
