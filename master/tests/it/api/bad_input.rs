//! What people and scripts get wrong: always a problem with a code, and the field where there is one.

use super::lifecycle::specs;
use super::support::{Answer, Site, User, site};
use docklet_types::view::VclusterView;
use reqwest::Method;
use serde_json::json;

async fn refused(user: &User, body: serde_json::Value, status: u16, code: &str, field: &str) {
    let answer = user.post("/api/v1/vclusters", body.clone()).await;
    let problem = answer.problem(status, code);
    assert_eq!(problem.field.as_deref(), Some(field), "{body}: {problem:?}");
}

async fn raw(site: &Site, user: &User, path: &str, text: &str) -> Answer {
    let request = site.http.post(format!("{}{path}", site.url)).bearer_auth(user.token.as_ref().unwrap());
    Answer::of(request.header("content-type", "application/json").body(text.to_owned()).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_cannot_be() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("taken", 1).await;
    let long = "a".repeat(21);
    for name in
        ["", &long, "größe", "名", "../x", "-rf", "Two Words", "a--b", "a-", "1st", "a\0b", "a\nb", " a", "demo/node1"]
    {
        refused(&ada, json!({"name": name, "nodes": 1}), 422, "invalid", "name").await;
    }
    refused(&ada, json!({"name": "taken", "nodes": 1}), 409, "name_taken", "name").await;
    for nodes in [0, -1, i64::MIN, i64::MAX, 10_001] {
        refused(&ada, json!({"name": "x", "nodes": nodes}), 422, "invalid", "nodes").await;
    }
    refused(&ada, json!({"name": "x", "nodes": 1, "image": "windows"}), 422, "unknown_image", "image").await;
    for image in ["", "../../etc", "Base", "base:latest"] {
        refused(&ada, json!({"name": "x", "nodes": 1, "image": image}), 422, "invalid", "image").await;
    }
    // Over the host (8 CPUs, 16 GiB, 100 GiB), and out of all bounds.
    for cpu in [9.0, 2000.0, 0.0, -1.0, 1e300] {
        refused(&ada, json!({"name": "x", "nodes": 1, "size": {"cpu": cpu}}), 422, "invalid", "size.cpu").await;
    }
    for memory in [17_000, 0, -5, i64::MAX] {
        refused(
            &ada,
            json!({"name": "x", "nodes": 1, "size": {"memory_mib": memory}}),
            422,
            "invalid",
            "size.memory_mib",
        )
        .await;
    }
    for disk in [200_000, 0, -5, i64::MAX] {
        refused(&ada, json!({"name": "x", "nodes": 1, "size": {"disk_mib": disk}}), 422, "invalid", "size.disk_mib")
            .await;
    }
    assert_eq!(specs(&site).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let cases = [
        ("", None),
        ("{", None),
        ("not json", None),
        ("[]", None),
        ("null", None),
        ("{\"name\":\"x\",\"nodes\":1} trailing", None),
        (r#"{"name":"x"}"#, Some("nodes")),
        (r#"{"nodes":1}"#, Some("name")),
        (r#"{"name":7,"nodes":1}"#, Some("name")),
        (r#"{"name":"x","nodes":"three"}"#, Some("nodes")),
        (r#"{"name":"x","nodes":2.5}"#, Some("nodes")),
        (r#"{"name":"x","nodes":1e30}"#, Some("nodes")),
        (r#"{"name":"x","nodes":99999999999999999999}"#, Some("nodes")),
        (r#"{"name":"x","nodes":1,"colour":"red"}"#, Some("colour")),
        (r#"{"name":"x","nodes":1,"size":{"cpu":"many"}}"#, Some("size.cpu")),
        (r#"{"name":"x","nodes":1,"size":{"gpu":1}}"#, Some("gpu")),
        (r#"{"name":"x","nodes":1,"size":7}"#, Some("size")),
        (r#"["x",1]"#, None),
    ];
    for (text, field) in cases {
        let problem = raw(&site, &ada, "/api/v1/vclusters", text).await.problem(400, "malformed_body");
        if let Some(field) = field {
            assert!(problem.field.as_deref().is_some_and(|f| f.ends_with(field)), "{text}: {problem:?}");
        }
    }
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    raw(&site, &ada, "/api/v1/vclusters", &deep).await.problem(400, "malformed_body");
    let huge = format!("{{\"name\":\"{}\",\"nodes\":1}}", "a".repeat(100_000));
    raw(&site, &ada, "/api/v1/vclusters", &huge).await.problem(413, "too_large");
    let bytes = site.http.post(format!("{}/api/v1/vclusters", site.url)).bearer_auth(ada.token.as_ref().unwrap());
    Answer::of(bytes.body(vec![0xff, 0xfe, 0x00]).send().await.unwrap()).await.problem(400, "malformed_body");
    assert!(specs(&site).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_and_paths() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 1).await;
    let demo = "/api/v1/vclusters/demo";
    for query in [
        "wait=sunny",
        "wait=absent",
        "timeout=-1",
        "timeout=x",
        "timeout=3601",
        "colour=red",
        "wait=running&timeout=99999999999999999999",
    ] {
        ada.get(&format!("{demo}?{query}")).await.problem(400, "bad_query");
    }
    ada.delete(&format!("{demo}?wait=running")).await.problem(400, "bad_query");
    for lines in ["0", "-1", "10001", "x"] {
        ada.get(&format!("{demo}/nodes/node1/logs?lines={lines}")).await.problem(400, "bad_query");
    }
    for path in [
        "/api/v1/vclusters/none",
        "/api/v1/vclusters/%00",
        "/api/v1/vclusters/demo/nodes/none/logs",
        "/api/v1/vclusters/demo/nodes/..%2f/logs",
    ] {
        ada.get(path).await.problem(404, "not_found");
    }
    for owner in ["bob", "nobody", "../x", ""] {
        ada.get(&format!("{demo}?owner={owner}")).await.problem(404, "not_found");
    }
    ada.get(&format!("{demo}?owner=ada")).await.ok::<VclusterView>(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("demo", 1).await;
    let exec = "/api/v1/vclusters/demo/nodes/node1/exec";
    for (body, field) in [
        (json!({"argv": []}), "argv"),
        (json!({"argv": [""]}), "argv"),
        (json!({"argv": ["a\0b"]}), "argv"),
        (json!({"argv": vec!["x"; 1025]}), "argv"),
        (json!({"argv": ["true"], "timeout_s": 0}), "timeout_s"),
        (json!({"argv": ["true"], "timeout_s": 3601}), "timeout_s"),
        (json!({"argv": ["true"], "stdin": "x".repeat((1 << 20) + 1)}), "stdin"),
    ] {
        let problem = ada.post(exec, body).await.problem(422, "invalid");
        assert_eq!(problem.field.as_deref(), Some(field));
    }
    raw(&site, &ada, exec, r#"{"argv":"ls"}"#).await.problem(400, "malformed_body");
    raw(&site, &ada, exec, &format!(r#"{{"argv":["{}"]}}"#, "x".repeat(9 << 20))).await.problem(413, "too_large");
    ada.post("/api/v1/vclusters/demo/nodes/node2/exec", json!({"argv": ["true"]})).await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling() {
    let site = site().await;
    let root = site.sign_in("root").await;
    root.running("demo", 2).await;
    let scale = |body: serde_json::Value| root.send(Method::PATCH, "/api/v1/vclusters/demo", Some(body));
    for nodes in [0, -1, 10_001, i64::MAX] {
        assert_eq!(scale(json!({"nodes": nodes})).await.problem(422, "invalid").field.as_deref(), Some("nodes"));
    }
    // More than its network has addresses for: a /26 was cut.
    let problem = scale(json!({"nodes": 200})).await.problem(422, "invalid");
    assert!(problem.detail.contains("61"), "{problem:?}");
    scale(json!({"nodes": "2"})).await.problem(400, "malformed_body");
    scale(json!({})).await.problem(400, "malformed_body");
    scale(json!({"nodes": 2, "size": {}})).await.problem(400, "malformed_body");
    assert_eq!(scale(json!({"nodes": 2})).await.ok::<VclusterView>(202).generation, 1);
}
