//! Signing in and out, guessing, and sockets that end with their session.

use super::support::{Answer, PASSWORD, Site, User, eventually, site, site_with};
use docklet_types::view::{Me, Session};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};

async fn try_in(site: &Site, name: &str, password: &str) -> Answer {
    site.nobody().post("/api/v1/sessions", json!({"username": name, "password": password})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_and_out() {
    let site = site().await;
    let session: Session = try_in(&site, "ada", PASSWORD).await.ok(201);
    assert!(session.expires_at.ends_with('Z') && session.token.len() >= 43);
    let ada = site.sign_in("ada").await;
    assert_eq!(ada.get("/api/v1/me").await.ok::<Me>(200).username, "ada");
    assert_eq!(ada.delete("/api/v1/sessions/current").await.status, 204);
    ada.get("/api/v1/me").await.problem(401, "not_signed_in");
    ada.delete("/api/v1/sessions/current").await.problem(401, "not_signed_in");
    for token in ["", "x", "Bearer", &"x".repeat(5000)] {
        let user = User { token: Some(token.to_owned()), ..ada.clone() };
        user.get("/api/v1/me").await.problem(401, "not_signed_in");
    }
    for body in [
        json!({}),
        json!({"username": "ada"}),
        json!({"username": 1, "password": "x"}),
        json!({"username": "ada", "password": "x", "y": 1}),
    ] {
        site.nobody().post("/api/v1/sessions", body).await.problem(400, "malformed_body");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_knows_no_secret() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.get("/api/v1/me").await;
    let token = ada.token.unwrap();
    let directory = site.dir.path().join("local/master");
    for file in std::fs::read_dir(directory).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for secret in [token.as_bytes(), PASSWORD.as_bytes()] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_ends_after_five() {
    let site = site().await;
    for _ in 0..5 {
        let problem = try_in(&site, "ada", "wrong password").await.problem(401, "wrong_password");
        assert!(!problem.detail.contains("ada"));
    }
    let locked = try_in(&site, "ada", PASSWORD).await;
    locked.problem(429, "too_many_requests");
    let wait: u64 = locked.header("retry-after").parse().unwrap();
    assert!((200..=300).contains(&wait), "{wait}");
    // Others, from the same address, are not in the way.
    site.sign_in("bob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_guesses_at_once_learn_no_more_than_five() {
    let site = site().await;
    let tasks: Vec<_> = (0..40)
        .map(|n| {
            let user = site.nobody();
            tokio::spawn(async move {
                user.post("/api/v1/sessions", json!({"username": "ada", "password": format!("guess {n}")}))
                    .await
                    .status
                    .as_u16()
            })
        })
        .collect();
    let mut wrong = 0;
    for task in tasks {
        match task.await.unwrap() {
            401 => wrong += 1,
            429 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(wrong, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn known_and_unknown_names_look_alike() {
    let site = site().await;
    let mut times = [Duration::ZERO; 2];
    for round in 0..4 {
        for (slot, name) in [(0, "bob".to_owned()), (1, format!("ghost{round}"))] {
            let started = Instant::now();
            let answer = try_in(&site, &name, "wrong password").await;
            times[slot] += started.elapsed();
            let problem = answer.problem(401, "wrong_password");
            assert_eq!(problem.detail, "User name or password is wrong.");
        }
    }
    // Both hash: without that the second would take a hundredth.
    let ratio = times[1].as_secs_f64() / times[0].as_secs_f64();
    assert!((0.4..2.5).contains(&ratio), "{times:?}");
    try_in(&site, "../../etc", "wrong password").await.problem(401, "wrong_password");
    try_in(&site, &"x".repeat(10_000), "wrong password").await.problem(401, "wrong_password");
    try_in(&site, "ada", &"x".repeat(50_000)).await.problem(401, "wrong_password");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_slowed_down() {
    let site = site().await;
    let mut slowed = false;
    for n in 0..140 {
        // Unknown names do not lock each other, but hashing is not free.
        let body = json!({"username": format!("g{n}"), "password": "short"});
        let user = site.nobody();
        if user.post("/api/v1/sessions", body).await.status == 429 {
            slowed = true;
            break;
        }
    }
    assert!(slowed);
}

/// The stream's next bytes, or `None` at its end.
pub async fn open_stream(user: &User) -> reqwest::Response {
    let response = user.request(Method::GET, "/api/v1/events").send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

pub async fn ends(mut stream: reqwest::Response) -> Duration {
    let started = Instant::now();
    tokio::time::timeout(Duration::from_secs(5), async { while let Ok(Some(_)) = stream.chunk().await {} })
        .await
        .expect("the stream stays open");
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn live_sockets_end_with_their_session() {
    let site = site().await;
    let root = site.sign_in("root").await;
    // Signing out.
    let ada = site.sign_in("ada").await;
    let stream = open_stream(&ada).await;
    assert_eq!(ada.delete("/api/v1/sessions/current").await.status, 204);
    assert!(ends(stream).await < Duration::from_secs(2));
    // A new password, from another session.
    let (first, second) = (site.sign_in("ada").await, site.sign_in("ada").await);
    let (mine, other) = (open_stream(&second).await, open_stream(&first).await);
    let change = json!({"password": "new password", "current_password": PASSWORD});
    assert_eq!(second.send(Method::PATCH, "/api/v1/users/ada", Some(change)).await.status, 200);
    assert!(ends(other).await < Duration::from_secs(2));
    first.get("/api/v1/me").await.problem(401, "not_signed_in");
    second.get("/api/v1/me").await.ok::<Me>(200);
    // Disabling.
    assert_eq!(root.send(Method::PATCH, "/api/v1/users/ada", Some(json!({"disabled": true}))).await.status, 200);
    assert!(ends(mine).await < Duration::from_secs(2));
    second.get("/api/v1/me").await.problem(401, "not_signed_in");
    try_in(&site, "ada", "new password").await.problem(403, "account_disabled");
    try_in(&site, "ada", "wrong password").await.problem(401, "wrong_password");
    // By another master: only the database tells.
    let bob = site.sign_in("bob").await;
    let stream = open_stream(&bob).await;
    let id = site.db.user_by_name(&"bob".parse().unwrap()).await.unwrap().unwrap().id;
    site.db.remove_sessions_of(id, None).await.unwrap();
    assert!(ends(stream).await < Duration::from_millis(2500));
    eventually("the cache forgets", || async { bob.get("/api/v1/me").await.status == 401 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_last_as_configured() {
    let site = site_with("SESSION_HOURS=1").await;
    let session: Session = try_in(&site, "ada", PASSWORD).await.ok(201);
    let ends: docklet_types::time::Micros = docklet_types::time::Micros::now().plus_seconds(3600);
    // To the minute.
    assert_eq!(session.expires_at[..15], ends.to_string()[..15]);
}
