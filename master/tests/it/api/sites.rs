//! Two sites that share their accounts, and nothing else.

use std::sync::Arc;

use docklet_master_db::Db;
use docklet_store::Store;
use docklet_store::keys::Keys;
use docklet_store::memory::MemoryStore;
use docklet_types::view::{Me, OperationView, SiteView, VclusterView};
use reqwest::Method;
use serde_json::json;
use tempfile::TempDir;

use super::support::access::FakeAccess;
use super::support::host::FakeHost;
use super::support::{Answer, Master, Site, User, directory, eventually, master, site_over, site_with};

/// `here`, and a site `there` with a store, hosts and files of its own.
struct Sites {
    here: Site,
    there: Master,
    _host: FakeHost,
    _files: TempDir,
}

async fn sites() -> Sites {
    let (own, files) = (directory(), directory());
    let file = own.path().join("local/master/docklet.db");
    let (one, two) = (Db::open_file(&file).await.unwrap(), Db::open_file(&file).await.unwrap());
    let here = site_over(own, one, "CLUSTER_NAME=here").await;
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let access = Arc::new(FakeAccess::default());
    let (there, config) = master(files.path(), "CLUSTER_NAME=there", two, store.clone(), access).await;
    let host = FakeHost::start(store, Keys::new(&config.cluster_name), "h1").await;
    Sites { here, there, _host: host, _files: files }
}

async fn keyed(user: &User, name: &str) -> Answer {
    let request = user.request(Method::POST, "/api/v1/vclusters").header("Idempotency-Key", "the same");
    Answer::of(request.json(&json!({"name": name, "nodes": 1})).send().await.unwrap()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_account_is_good_at_both_and_each_has_its_own() {
    let Sites { here, there, _host, _files } = sites().await;
    let ada = here.sign_in("ada").await;
    let ada_there = ada.at(&there);
    assert_eq!(ada_there.get("/api/v1/me").await.ok::<Me>(200).username, "ada");
    // One key, two sites, two vclusters.
    let (first, second) = (keyed(&ada, "demo").await, keyed(&ada_there, "demo").await);
    first.ok::<VclusterView>(202);
    second.ok::<VclusterView>(202);
    for user in [&ada, &ada_there] {
        user.wait("demo", "running").await;
        let done: Vec<OperationView> = user.get("/api/v1/vclusters/demo/operations").await.ok(200);
        assert_eq!(done.len(), 1, "{done:?}");
        assert_eq!(user.get("/api/v1/me").await.ok::<Me>(200).usage.nodes, 1);
    }
    assert_eq!(ada.delete("/api/v1/vclusters/demo?wait=absent").await.status, 204);
    assert_eq!(ada_there.wait("demo", "running").await.nodes, 1);
    // Signed out at one is signed out.
    assert_eq!(ada_there.delete("/api/v1/sessions/current").await.status, 204);
    eventually("the session has ended", || async { ada.get("/api/v1/me").await.status == 401 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_goes_from_every_site_before_it_is_gone() {
    let Sites { here, there, _host, _files } = sites().await;
    let (ada, root) = (here.sign_in("ada").await, here.sign_in("root").await);
    let (ada_there, root_there) = (ada.at(&there), root.at(&there));
    ada_there.running("demo", 1).await;

    let problem = root.delete("/api/v1/users/ada").await.problem(409, "wrong_state");
    assert!(problem.detail.contains("there"), "{}", problem.detail);
    // Enabled again, used again, removed again: what was set aside before is not in the way.
    let users = here.dir.path().join("global/users/ada/data");
    for _ in 0..2 {
        std::fs::create_dir_all(&users).unwrap();
        std::fs::write(users.join("file"), "").unwrap();
        root.delete("/api/v1/users/ada").await.problem(409, "wrong_state");
        assert!(!users.exists());
    }
    // Disabled everywhere, and nothing is lost where it still has something.
    eventually("the session has ended", || async { ada_there.get("/api/v1/me").await.status == 401 }).await;
    root_there.delete("/api/v1/users/ada").await.problem(409, "wrong_state");
    assert_eq!(root_there.delete("/api/v1/vclusters/demo?owner=ada&wait=absent").await.status, 204);
    assert_eq!(root_there.delete("/api/v1/users/ada").await.status, 204);
    root.get("/api/v1/users/ada").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sites_are_listed_on_every_page_and_nobody_chooses_an_address() {
    let listed = "SITES=Here=http://localhost:{port},There=https://there.example.org";
    let site = site_with(listed).await;
    let ada = site.sign_in("ada").await;
    let sites: Vec<SiteView> = ada.get("/api/v1/sites").await.ok(200);
    let names: Vec<(&str, bool)> = sites.iter().map(|s| (s.name.as_str(), s.here)).collect();
    assert_eq!(names, [("Here", true), ("There", false)]);
    let page = site.nobody().get("/sign-in").await.text;
    assert!(page.contains("href=\"https://there.example.org\""), "{page}");
    let alone = super::support::site().await;
    assert!(alone.sign_in("ada").await.get("/api/v1/sites").await.ok::<Vec<SiteView>>(200).is_empty());
    assert!(!alone.nobody().get("/sign-in").await.text.contains("class=\"sites\""));
}
