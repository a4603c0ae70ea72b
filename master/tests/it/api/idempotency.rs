//! A repeated request has one effect.

use super::lifecycle::specs;
use super::support::{Answer, User, site};
use docklet_types::view::{UserView, VclusterView};
use reqwest::Method;
use serde_json::json;
use std::sync::atomic::Ordering;

async fn keyed(user: &User, key: &str, path: &str, body: serde_json::Value) -> Answer {
    Answer::of(user.request(Method::POST, path).header("Idempotency-Key", key).json(&body).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_at_once_and_ten_times_after() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let body = json!({"name": "demo", "nodes": 2});
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (ada, body) = (ada.clone(), body.clone());
            tokio::spawn(async move { keyed(&ada, "k1", "/api/v1/vclusters", body).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    for _ in 0..10 {
        answers.push(keyed(&ada, "k1", "/api/v1/vclusters", body.clone()).await);
    }
    for answer in &answers {
        assert_eq!((answer.status.as_u16(), &answer.text), (202, &answers[0].text));
        assert_eq!(answer.header("location"), "/api/v1/vclusters/demo");
    }
    assert_eq!(specs(&site).await.len(), 1);
    // Another body, another user, another address.
    keyed(&ada, "k1", "/api/v1/vclusters", json!({"name": "other", "nodes": 2}))
        .await
        .problem(409, "idempotency_mismatch");
    keyed(&ada, "k1", "/api/v1/vclusters/demo/stop", json!(null)).await.problem(409, "idempotency_mismatch");
    let bob = site.sign_in("bob").await;
    keyed(&bob, "k1", "/api/v1/vclusters", body).await.ok::<VclusterView>(202);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_and_comes_again() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    for round in 0..5 {
        let name = format!("demo{round}");
        let body = json!({"name": name, "nodes": 1});
        let request = ada.request(Method::POST, "/api/v1/vclusters").header("Idempotency-Key", &name).json(&body);
        // Dropped somewhere between sent and answered.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(300 * (round + 1)), request.send()).await;
        let view: VclusterView = keyed(&ada, &name, "/api/v1/vclusters", body).await.ok(202);
        assert_eq!(view.name, name);
    }
    assert_eq!(specs(&site).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_took_but_nobody_heard_of_is_found_again() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let body = json!({"name": "demo", "nodes": 1});
    let first: VclusterView = keyed(&ada, "k", "/api/v1/vclusters", body.clone()).await.ok(202);
    // As if the master had died between the store's yes and its own note of the answer.
    site.db.later(2 * 86_400).purge().await.unwrap();
    let ada = site.sign_in("ada").await;
    let again: VclusterView = keyed(&ada, "k", "/api/v1/vclusters", body).await.ok(202);
    assert_eq!(again.id, first.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_give_their_key_back() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    keyed(&ada, "k", "/api/v1/vclusters", json!({"name": "demo", "nodes": 7})).await.problem(403, "over_quota");
    keyed(&ada, "k", "/api/v1/vclusters", json!({"name": "demo", "nodes": 1})).await.ok::<VclusterView>(202);
    for bad in ["", &"x".repeat(256)] {
        keyed(&ada, bad, "/api/v1/vclusters", json!({"name": "y", "nodes": 1})).await.problem(422, "invalid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_users_too() {
    let site = site().await;
    let (ada, root) = (site.sign_in("ada").await, site.sign_in("root").await);
    ada.running("demo", 1).await;
    for _ in 0..3 {
        keyed(&ada, "e", "/api/v1/vclusters/demo/nodes/node1/exec", json!({"argv": ["date"]}))
            .await
            .ok::<serde_json::Value>(200);
        keyed(&root, "u", "/api/v1/users", json!({"username": "carol", "password": "long enough"}))
            .await
            .ok::<UserView>(201);
    }
    assert_eq!(site.access.execs.load(Ordering::SeqCst), 1);
}
