//! Caps hold, also when many ask at once; one of two creates of a name wins.

use super::lifecycle::{specs, usage};
use super::support::site;
use docklet_types::spec::Usage;
use docklet_types::view::VclusterView;
use reqwest::Method;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creates_of_one_name_one_wins() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let ada = ada.clone();
            tokio::spawn(async move { ada.create("twin", 1).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 202 {
            won += 1;
        } else {
            answer.problem(409, "name_taken");
        }
    }
    assert_eq!(won, 1);
    assert_eq!(specs(&site).await.len(), 1);
    assert_eq!(usage(&site, "ada").await.nodes, 1);
    assert_eq!(
        site.db.running_operations().await.unwrap().len()
            + site.db.recent_operations(None, 50).await.unwrap().iter().filter(|o| o.outcome != "running").count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_slots_are_given_out_once() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    // The cap is six nodes.
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let ada = ada.clone();
            tokio::spawn(async move { ada.create(&format!("c{n}"), 1).await })
        })
        .collect();
    let mut won = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 202 {
            won += 1;
        } else {
            let problem = answer.problem(403, "over_quota");
            assert!(problem.detail.contains('6') && problem.detail.contains('7'), "{}", problem.detail);
        }
    }
    assert_eq!(won, 6);
    assert_eq!(
        usage(&site, "ada").await,
        Usage {
            vclusters: 6,
            ..Usage::of_nodes(&specs(&site).await.iter().flat_map(|s| s.nodes.clone()).collect::<Vec<_>>())
        }
    );
    // Somebody else's slots are their own; administrators have no cap.
    site.sign_in("bob").await.running("mine", 6).await;
    site.sign_in("root").await.running("big", 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_counts_and_gives_back() {
    let site = site().await;
    let ada = site.sign_in("ada").await;
    ada.running("one", 4).await;
    ada.create("two", 3).await.problem(403, "over_quota");
    let scale = |nodes: i64| ada.send(Method::PATCH, "/api/v1/vclusters/one", Some(json!({"nodes": nodes})));
    scale(7).await.problem(403, "over_quota");
    scale(6).await.ok::<VclusterView>(202);
    ada.create("two", 1).await.problem(403, "over_quota");
    scale(1).await.ok::<VclusterView>(202);
    ada.running("two", 5).await;
    // Two scales at once: what fits for one does not for both.
    ada.delete("/api/v1/vclusters/two?wait=absent&timeout=20").await;
    ada.running("three", 1).await;
    let (a, b) = tokio::join!(
        ada.send(Method::PATCH, "/api/v1/vclusters/one", Some(json!({"nodes": 4}))),
        ada.send(Method::PATCH, "/api/v1/vclusters/three", Some(json!({"nodes": 4})))
    );
    let mut statuses = [a.status.as_u16(), b.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 403], "{} {}", a.text, b.text);
    assert_eq!(usage(&site, "ada").await.nodes, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_changes_of_one_vcluster_are_all_answered() {
    let site = site().await;
    let root = site.sign_in("root").await;
    root.running("demo", 1).await;
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let root = root.clone();
            tokio::spawn(async move {
                match n % 4 {
                    0 => root.act("/api/v1/vclusters/demo/stop").await,
                    1 => root.act("/api/v1/vclusters/demo/start").await,
                    _ => root.send(Method::PATCH, "/api/v1/vclusters/demo", Some(json!({"nodes": n}))).await,
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().ok::<VclusterView>(202);
    }
    let spec = &specs(&site).await[0];
    assert_eq!(usage(&site, "root").await.nodes as usize, spec.nodes.len());
    let names: std::collections::HashSet<_> = spec.nodes.iter().map(|n| n.name.clone()).collect();
    assert_eq!(names.len(), spec.nodes.len());
}
