//! `GET /api/v1/events`: each hears of their own.

use super::support::{User, site};
use docklet_types::view::VclusterEvent;
use reqwest::Method;
use std::time::Duration;

struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(user: &User) -> Self {
        let response = user.request(Method::GET, "/api/v1/events").send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Self { response, text: String::new() }
    }

    /// The next event, within five seconds.
    async fn next(&mut self) -> VclusterEvent {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let data: String = event.lines().filter_map(|l| l.strip_prefix("data: ")).collect();
                self.text = rest.to_owned();
                if !data.is_empty() {
                    return serde_json::from_str(&data).unwrap();
                }
                continue;
            }
            let chunk = tokio::time::timeout(Duration::from_secs(5), self.response.chunk())
                .await
                .expect("no event")
                .unwrap()
                .unwrap();
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    async fn until(&mut self, wanted: impl Fn(&VclusterEvent) -> bool) -> VclusterEvent {
        loop {
            let event = self.next().await;
            if wanted(&event) {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_hears_of_their_own_and_root_of_all() {
    let site = site().await;
    let (root, ada, bob) = (site.sign_in("root").await, site.sign_in("ada").await, site.sign_in("bob").await);
    bob.running("before", 1).await;
    let (mut roots, mut adas, mut bobs) =
        (Stream::open(&root).await, Stream::open(&ada).await, Stream::open(&bob).await);
    assert_eq!(bobs.next().await.name, "before", "first how everything is");
    ada.create("demo", 2).await;
    let is_running =
        |e: &VclusterEvent| e.name == "demo" && e.view.as_ref().is_some_and(|v| v.status.as_str() == "running");
    adas.until(is_running).await;
    roots.until(is_running).await;
    ada.delete("/api/v1/vclusters/demo?wait=absent&timeout=20").await;
    let is_gone = |e: &VclusterEvent| e.name == "demo" && e.view.is_none();
    adas.until(is_gone).await;
    roots.until(is_gone).await;
    // bob's next news is bob's own: nothing of ada's came before it.
    bob.act("/api/v1/vclusters/before/stop").await;
    assert_eq!(bobs.next().await.owner, "bob");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_nothing() {
    let site = site().await;
    site.nobody().get("/api/v1/events").await.problem(401, "not_signed_in");
}
