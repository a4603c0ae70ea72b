//! Accounts over the API.

use super::support::{PASSWORD, site};
use docklet_store::Store;
use docklet_types::view::{Role, UserView, VclusterView};
use reqwest::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn added_changed_and_removed() {
    let site = site().await;
    let root = site.sign_in("root").await;
    let made = root.post("/api/v1/users", json!({"username": "carol", "password": "long enough"})).await;
    assert_eq!(made.header("location"), "/api/v1/users/carol");
    let carol: UserView = made.ok(201);
    assert_eq!((carol.role, carol.disabled, carol.last_seen.as_ref()), (Role::User, false, None));
    assert_eq!((carol.first_id - 1_000_000) % 65_536, 0);
    root.post("/api/v1/users", json!({"username": "carol", "password": "long enough"}))
        .await
        .problem(409, "name_taken");
    for (body, field) in [
        (json!({"username": "Carol", "password": "long enough"}), "username"),
        (json!({"username": "", "password": "long enough"}), "username"),
        (json!({"username": "dave", "password": "short"}), "password"),
        (json!({"username": "dave", "password": "x".repeat(257)}), "password"),
    ] {
        assert_eq!(root.post("/api/v1/users", body).await.problem(422, "invalid").field.as_deref(), Some(field));
    }
    root.post("/api/v1/users", json!({"username": "dave", "password": "long enough", "role": "king"}))
        .await
        .problem(400, "malformed_body");
    let names: Vec<String> =
        root.get("/api/v1/users").await.ok::<Vec<UserView>>(200).into_iter().map(|u| u.username).collect();
    assert_eq!(names, ["ada", "bob", "carol", "root"]);
    assert!(!root.get("/api/v1/users").await.text.contains("argon2"));
    assert_eq!(root.delete("/api/v1/users/carol").await.status, 204);
    root.get("/api/v1/users/carol").await.problem(404, "not_found");
    root.delete("/api/v1/users/carol").await.problem(404, "not_found");
    // A new one of the same name owns other ids.
    let again: UserView =
        root.post("/api/v1/users", json!({"username": "carol", "password": "long enough"})).await.ok(201);
    assert_ne!(again.first_id, carol.first_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_changes_the_own_password_and_nothing_else() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let change = |name: &str, body: serde_json::Value| {
        let (ada, path) = (ada.clone(), format!("/api/v1/users/{name}"));
        async move { ada.send(Method::PATCH, &path, Some(body)).await }
    };
    assert_eq!(
        change("ada", json!({"password": "new password"})).await.problem(422, "invalid").field.as_deref(),
        Some("current_password")
    );
    change("ada", json!({"password": "new password", "current_password": "wrong"}))
        .await
        .problem(401, "wrong_password");
    change("ada", json!({"password": "short", "current_password": PASSWORD})).await.problem(422, "invalid");
    change("ada", json!({"role": "admin"})).await.problem(403, "not_allowed");
    change("ada", json!({"disabled": false})).await.problem(403, "not_allowed");
    change("bob", json!({"password": "new password"})).await.problem(404, "not_found");
    change("nobody", json!({"password": "new password"})).await.problem(404, "not_found");
    change("ada", json!({"password": "new password", "current_password": PASSWORD})).await.ok::<UserView>(200);
    site.nobody()
        .post("/api/v1/sessions", json!({"username": "ada", "password": PASSWORD}))
        .await
        .problem(401, "wrong_password");
    site.nobody()
        .post("/api/v1/sessions", json!({"username": "ada", "password": "new password"}))
        .await
        .ok::<serde_json::Value>(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_session_cannot_guess_the_password() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let guess = |current: &str| {
        let (ada, body) = (ada.clone(), json!({"password": "new password", "current_password": current}));
        async move { ada.send(Method::PATCH, "/api/v1/users/ada", Some(body)).await }
    };
    for _ in 0..5 {
        guess("wrong").await.problem(401, "wrong_password");
    }
    guess(PASSWORD).await.problem(429, "too_many_requests");
    // Signing in is not in the way.
    site.sign_in("ada").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_vclusters_stays() {
    let site = site().await;
    let (root, ada) = (site.sign_in("root").await, site.sign_in("ada").await);
    ada.running("demo", 1).await;
    let data = site.dir.path().join("global/users/ada/data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("thesis"), "words").unwrap();
    let problem = root.delete("/api/v1/users/ada").await.problem(409, "wrong_state");
    assert!(problem.detail.contains("demo"), "{}", problem.detail);
    // Refused means untouched: ada works on.
    ada.get("/api/v1/vclusters/demo").await.ok::<VclusterView>(200);
    assert_eq!(ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await.status, 204);
    assert_eq!(root.delete("/api/v1/users/ada").await.status, 204);
    ada.get("/api/v1/me").await.problem(401, "not_signed_in");
    // Set aside, not deleted, and not for the next of that name.
    assert!(!data.exists());
    let aside: Vec<_> =
        std::fs::read_dir(site.dir.path().join("global/users")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(aside.len(), 1);
    assert_eq!(std::fs::read_to_string(aside[0].join("data/thesis")).unwrap(), "words");
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_and_creating_at_once_leaves_no_orphan() {
    let site = site().await;
    let root = site.sign_in("root").await;
    for round in 0..8 {
        let name = format!("u{round}");
        root.post("/api/v1/users", json!({"username": name, "password": PASSWORD})).await.ok::<UserView>(201);
        let user = site.sign_in(&name).await;
        let user_path = format!("/api/v1/users/{name}");
        let (made, removed) = tokio::join!(user.create("demo", 1), root.delete(&user_path));
        match (made.status.as_u16(), removed.status.as_u16()) {
            (202, 409) => assert_eq!(root.get(&format!("/api/v1/vclusters/demo?owner={name}")).await.status, 200),
            (401 | 403 | 404, 204) => {
                let key =
                    site.keys.write(&docklet_store::keys::Key::Name(name.parse().unwrap(), "demo".parse().unwrap()));
                assert!(site.store.get(&key).await.unwrap().is_none(), "an orphan of {name}");
            }
            other => panic!("{other:?}: {} {}", made.text, removed.text),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_always_an_administrator() {
    let site = site().await;
    let root = site.sign_in("root").await;
    root.delete("/api/v1/users/root").await.problem(409, "wrong_state");
    root.send(Method::PATCH, "/api/v1/users/root", Some(json!({"role": "user"}))).await.problem(409, "wrong_state");
    root.send(Method::PATCH, "/api/v1/users/root", Some(json!({"disabled": true}))).await.problem(409, "wrong_state");
    root.send(Method::PATCH, "/api/v1/users/ada", Some(json!({"role": "admin"}))).await.ok::<UserView>(200);
    // The new role counts at once, also for a session from before.
    let ada = site.sign_in("ada").await;
    ada.get("/api/v1/users").await.ok::<Vec<UserView>>(200);
    ada.send(Method::PATCH, "/api/v1/users/root", Some(json!({"role": "user"}))).await.ok::<UserView>(200);
    root.get("/api/v1/users").await.problem(403, "not_allowed");
}
