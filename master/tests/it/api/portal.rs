//! The portal's pages and forms, without a browser.

use super::support::{Answer, PASSWORD, Site, User, eventually, site};
use docklet_types::view::VclusterView;
use reqwest::Method;
use std::sync::atomic::Ordering;

/// A browser's cookies.
struct Browser<'a> {
    site: &'a Site,
    cookies: std::collections::BTreeMap<String, String>,
}

impl<'a> Browser<'a> {
    fn new(site: &'a Site) -> Self {
        Self { site, cookies: std::collections::BTreeMap::new() }
    }

    async fn signed_in(site: &'a Site, name: &str) -> Self {
        let mut browser = Self::new(site);
        let answer = browser.post("/sign-in", &[("username", name), ("password", PASSWORD), ("next", "")]).await;
        assert_eq!((answer.status.as_u16(), answer.header("location")), (303, "/"), "{}", answer.text);
        browser
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Answer {
        let cookies: Vec<String> = self.cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let request = request.header("accept", "text/html,*/*").header("cookie", cookies.join("; "));
        let answer = Answer::of(request.send().await.unwrap()).await;
        for cookie in answer.headers.get_all("set-cookie") {
            let (name, rest) = cookie.to_str().unwrap().split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            if rest.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    async fn get(&mut self, path: &str) -> Answer {
        let request = self.site.http.get(format!("{}{path}", self.site.url));
        self.send(request).await
    }

    async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Answer {
        let body: Vec<String> = form.iter().map(|(k, v)| format!("{k}={}", docklet_web::link::encode(v))).collect();
        let request = self.site.http.post(format!("{}{path}", self.site.url));
        let request = request
            .header("origin", &self.site.url)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.join("&"));
        self.send(request).await
    }

    fn user(&self) -> User {
        User { token: self.cookies.get("docklet_session").cloned(), ..self.site.nobody() }
    }
}

#[track_caller]
fn page(answer: &Answer, status: u16) -> &str {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text);
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    for header in ["content-security-policy", "x-content-type-options", "referrer-policy", "x-request-id"] {
        assert!(!answer.header(header).is_empty(), "{header} is missing");
    }
    assert!(answer.header("content-security-policy").contains("frame-ancestors 'none'"));
    &answer.text
}

#[tokio::test(flavor = "multi_thread")]
async fn from_sign_in_to_a_cluster_in_two_clicks() {
    let site = site().await;
    let mut browser = Browser::new(&site);
    let away = browser.get("/vclusters/demo?owner=bob").await;
    assert_eq!(
        (away.status.as_u16(), away.header("location")),
        (303, "/sign-in?next=%2Fvclusters%2Fdemo%3Fowner%3Dbob")
    );
    let form = browser.get("/sign-in?next=%2F").await;
    // It may be at another master.
    assert!(!page(&form, 200).contains("generated_password.txt"));
    std::fs::write(site.dir.path().join("local/generated_password.txt"), "secret").unwrap();
    let form = browser.get("/sign-in?next=%2F").await;
    // Nobody ever signed in: the page says where the first password is.
    assert!(page(&form, 200).contains("generated_password.txt"));
    assert!(
        form.header("content-security-policy").contains("form-action 'self' http://*.localhost:"),
        "{:?}",
        form.headers
    );
    let wrong = browser.post("/sign-in", &[("username", "ada"), ("password", "wrong password")]).await;
    assert!(page(&wrong, 401).contains("wrong") && wrong.text.contains("value=\"ada\""));
    let mut browser = Browser::signed_in(&site, "ada").await;
    assert!(!page(&Browser::new(&site).get("/sign-in").await, 200).contains("generated_password.txt"));
    let home = browser.get("/").await;
    assert!(page(&home, 200).contains("cluster1"), "{}", home.text);
    let made = browser
        .post(
            "/vclusters",
            &[
                ("name", "cluster1"),
                ("nodes", "3"),
                ("image", "base"),
                ("cpu", "1"),
                ("memory_mib", "512"),
                ("disk_mib", "1024"),
            ],
        )
        .await;
    assert_eq!((made.status.as_u16(), made.header("location")), (303, "/vclusters/cluster1"), "{}", made.text);
    browser.user().wait("cluster1", "running").await;
    let shown = browser.get("/vclusters/cluster1").await;
    assert!(page(&shown, 200).contains("node3") && shown.text.contains("Running"));
    for path in [
        "/",
        "/account",
        "/images",
        "/vclusters/new",
        "/vclusters/cluster1/terminal",
        "/vclusters/cluster1/terminal?node=node2",
        "/vclusters/cluster1/delete",
    ] {
        page(&browser.get(path).await, 200);
    }
    page(&browser.get("/vclusters/cluster1/terminal?node=nodex").await, 404);
    page(&browser.get("/vclusters/none").await, 404);
    page(&browser.get("/nothing/here").await, 404);
    page(&browser.get("/users").await, 403);
    page(&browser.get("/hosts").await, 403);
    for action in ["cordon", "uncordon", "remove"] {
        page(&browser.post(&format!("/hosts/h1/{action}"), &[]).await, 403);
    }
    let out = browser.post("/sign-out", &[]).await;
    assert_eq!((out.status.as_u16(), out.header("location")), (303, "/sign-in"));
    assert!(!browser.cookies.contains_key("docklet_session"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_is_for_http_and_this_site_alone() {
    let site = site().await;
    let request = site.http.post(format!("{}/sign-in", site.url)).header("origin", &site.url);
    let answer = Answer::of(
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("username=ada&password={}", docklet_web::link::encode(PASSWORD)))
            .send()
            .await
            .unwrap(),
    )
    .await;
    let cookie = answer
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|c| c.to_str().unwrap())
        .find(|c| c.starts_with("docklet_session="))
        .unwrap();
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Domain"), "{cookie}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_forms_come_back_with_what_was_typed() {
    let site = site().await;
    let mut browser = Browser::signed_in(&site, "ada").await;
    for (form, said) in [
        ([("name", "Not Good"), ("nodes", "3")], "lower-case"),
        ([("name", "demo"), ("nodes", "many")], "whole number"),
        ([("name", "demo"), ("nodes", "0")], "1 to"),
        ([("name", "demo"), ("nodes", "7")], "quota"),
    ] {
        let answer = browser.post("/vclusters", &form).await;
        let text = page(&answer, 422);
        assert!(text.contains(said), "{said}: {text}");
        assert!(text.contains(&format!("value=\"{}\"", form[0].1)), "the name is lost: {text}");
    }
    let answer = browser.post("/vclusters", &[("name", "<script>alert(1)</script>"), ("nodes", "1")]).await;
    assert!(!page(&answer, 422).contains("<script>alert"));
    browser.user().running("demo", 1).await;
    assert!(page(&browser.post("/vclusters/demo/scale", &[("nodes", "x")]).await, 422).contains("whole number"));
    assert!(page(&browser.post("/vclusters/demo/scale", &[("nodes", "99")]).await, 422).contains("quota"));
    assert_eq!(browser.post("/vclusters/demo/scale", &[("nodes", "2")]).await.header("location"), "/vclusters/demo");
    let answer =
        browser.post("/account/password", &[("current_password", "wrong"), ("password", "new password")]).await;
    assert!(page(&answer, 422).contains("present password is wrong"));
    let answer = browser.post("/account/password", &[("current_password", PASSWORD), ("password", "short")]).await;
    assert!(page(&answer, 422).contains("8 to 256"));
    let done = browser.post("/account/password", &[("current_password", PASSWORD), ("password", "new password")]).await;
    assert_eq!(done.header("location"), "/account");
    let account = browser.get("/account").await;
    assert!(page(&account, 200).contains("password is changed"));
    assert!(!page(&browser.get("/account").await, 200).contains("password is changed"), "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_published_and_given_back_and_what_fits_is_told() {
    let site = site().await;
    let mut browser = Browser::signed_in(&site, "ada").await;
    browser.user().running("demo", 1).await;
    let form = |port: &'static str, public: &'static str| {
        [("node", "node1"), ("port", port), ("protocol", "udp"), ("public_port", public)]
    };
    assert_eq!(browser.post("/vclusters/demo/ports", &form("53", "10053")).await.header("location"), "/vclusters/demo");
    assert!(page(&browser.get("/vclusters/demo").await, 200).contains("node1:53"));
    let refused = browser.post("/vclusters/demo/ports", &form("54", "10053")).await;
    assert!(page(&refused, 422).contains("published already") && refused.text.contains("value=\"54\""));
    assert!(page(&browser.post("/vclusters/demo/ports", &form("x", "")).await, 422).contains("whole number"));
    for _ in 0..2 {
        let removed = browser.post("/vclusters/demo/ports/udp/10053/remove", &[]).await;
        assert_eq!(removed.header("location"), "/vclusters/demo");
    }
    assert!(!page(&browser.get("/vclusters/demo").await, 200).contains("node1:53"));

    let size = [("cpu", "1"), ("memory_mib", "1024"), ("disk_mib", "1024")];
    let fit = browser.post("/vclusters/new", &[&[("name", ""), ("nodes", "2")][..], &size].concat()).await;
    assert!(fit.text.contains("Fits now"), "{}", fit.text);
    assert!(!fit.text.contains("h1"), "a host is named: {}", fit.text);
    let over = browser.post("/vclusters/new", &[&[("name", "x"), ("nodes", "60")][..], &size].concat()).await;
    assert!(over.text.contains("quota"), "{}", over.text);
    assert_eq!(browser.post("/vclusters/new", &[("nodes", "many")]).await.text.trim(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn buttons_do_what_they_say() {
    let site = site().await;
    let mut browser = Browser::signed_in(&site, "ada").await;
    let user = browser.user();
    user.running("demo", 1).await;
    for (action, status) in [("stop", "stopped"), ("start", "running")] {
        assert_eq!(browser.post(&format!("/vclusters/demo/{action}"), &[]).await.header("location"), "/vclusters/demo");
        user.wait("demo", status).await;
    }
    let retry = browser.post("/vclusters/demo/retry", &[]).await;
    assert_eq!(retry.status, 303);
    assert!(browser.get("/vclusters/demo").await.text.contains("Nothing has failed"));
    site.access.listening.store(true, Ordering::SeqCst);
    assert_eq!(
        browser.post("/vclusters/demo/nodes/node1/jupyter", &[]).await.header("location"),
        "/vclusters/demo/nodes/node1/jupyter"
    );
    let jupyter = browser.get("/vclusters/demo/nodes/node1/jupyter").await;
    assert!(page(&jupyter, 200).contains("8888--node1--demo--ada.localhost"));
    assert_eq!(browser.post("/account/theme", &[("theme", "dark")]).await.status, 303);
    assert!(browser.get("/").await.text.contains("data-bs-theme=\"dark\""));
    assert_eq!(browser.cookies["docklet_theme"], "dark");
    let deleted = browser.post("/vclusters/demo/delete", &[]).await;
    assert_eq!(deleted.header("location"), "/");
    eventually("it is gone", || async { user.get("/api/v1/vclusters/demo").await.status == 404 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_see_users_and_hosts() {
    let site = site().await;
    site.sign_in("ada").await.running("demo", 1).await;
    let mut browser = Browser::signed_in(&site, "root").await;
    assert!(page(&browser.get("/hosts").await, 200).contains("h1"));
    let host = browser.get("/hosts/h1").await;
    assert!(page(&host, 200).contains("demo") && host.text.contains("node1"));
    page(&browser.get("/hosts/none").await, 404);
    let cordoned = browser.post("/hosts/h1/cordon", &[]).await;
    assert_eq!((cordoned.status.as_u16(), cordoned.header("location")), (303, "/hosts/h1"));
    let shown = browser.get("/hosts/h1").await;
    assert!(page(&shown, 200).contains("No new node is placed here") && shown.text.contains("takes no new nodes"));
    assert_eq!(browser.post("/hosts/h1/uncordon", &[]).await.status, 303);
    assert!(!page(&browser.get("/hosts/h1").await, 200).contains("No new node is placed here"));
    page(&browser.post("/hosts/h1/remove", &[]).await, 409);
    assert!(page(&browser.get("/vclusters/demo?owner=ada").await, 200).contains("node1"));
    assert!(page(&browser.get("/").await, 200).contains("demo"));
    let answer = browser.post("/users", &[("username", "carol"), ("password", "short"), ("role", "user")]).await;
    assert!(page(&answer, 422).contains("8 to 256") && answer.text.contains("value=\"carol\""));
    let added = browser.post("/users", &[("username", "carol"), ("password", "long enough"), ("role", "user")]).await;
    assert_eq!(added.header("location"), "/users");
    assert!(page(&browser.get("/users?q=car").await, 200).contains("carol"));
    for action in ["disable", "enable"] {
        assert_eq!(browser.post(&format!("/users/carol/{action}"), &[]).await.status, 303);
    }
    assert!(page(&browser.post("/users/carol/password", &[("password", "short")]).await, 422).contains("8 to 256"));
    assert_eq!(browser.post("/users/carol/password", &[("password", "another one")]).await.status, 303);
    page(&browser.get("/users/carol/delete").await, 200);
    assert_eq!(browser.post("/users/carol/delete", &[]).await.header("location"), "/users");
    let refused = browser.post("/users/ada/delete", &[]).await;
    assert!(page(&refused, 409).contains("demo"));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_change_nothing() {
    let site = site().await;
    let browser = Browser::signed_in(&site, "ada").await;
    let user = browser.user();
    user.running("demo", 1).await;
    let token = user.token.clone().unwrap();
    let port = site.config.proxy_port;
    let foreign = [
        vec![("origin", "http://evil.example".to_owned())],
        vec![("origin", "null".to_owned())],
        vec![("origin", format!("http://8888--node1--demo--bob.localhost:{port}"))],
        vec![("sec-fetch-site", "cross-site".to_owned())],
        vec![("sec-fetch-site", "same-site".to_owned())],
        vec![("referer", "http://evil.example/http://localhost".to_owned())],
        vec![],
    ];
    for headers in foreign {
        for (method, path) in [
            (Method::POST, "/vclusters/demo/delete"),
            (Method::POST, "/sign-out"),
            (Method::DELETE, "/api/v1/vclusters/demo"),
            (Method::POST, "/api/v1/vclusters/demo/stop"),
        ] {
            let mut request = site
                .http
                .request(method, format!("{}{path}", site.url))
                .header("cookie", format!("docklet_session={token}"));
            for (name, value) in &headers {
                request = request.header(*name, value);
            }
            Answer::of(request.send().await.unwrap()).await.problem(403, "not_allowed");
        }
    }
    assert_eq!(user.get("/api/v1/vclusters/demo").await.ok::<VclusterView>(200).generation, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_live() {
    let site = site().await;
    let browser = Browser::signed_in(&site, "ada").await;
    let user = browser.user();
    user.running("demo", 1).await;
    let open = |path: &str| {
        let request = site
            .http
            .get(format!("{}{path}", site.url))
            .header("cookie", format!("docklet_session={}", user.token.clone().unwrap()));
        async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            response
        }
    };
    let (mut home, mut vcluster) = (open("/live/home").await, open("/live/vclusters/demo").await);
    async fn until(response: &mut reqwest::Response, wanted: &[&str]) {
        let mut text = String::new();
        let read = async {
            while !wanted.iter().all(|w| text.contains(w)) {
                text.push_str(&String::from_utf8_lossy(&response.chunk().await.unwrap().expect("the stream ended")));
            }
        };
        let done = tokio::time::timeout(std::time::Duration::from_secs(5), read).await;
        assert!(done.is_ok(), "{wanted:?} never came: {text}");
    }
    until(&mut home, &["event: home-cards", "event: home-quota", "demo"]).await;
    until(&mut vcluster, &["event: vcluster-header", "event: vcluster-nodes", "event: vcluster-timeline"]).await;
    user.act("/api/v1/vclusters/demo/stop").await;
    until(&mut home, &["event: home-cards", "Stopped"]).await;
    until(&mut vcluster, &["event: vcluster-header", "Stopped"]).await;
    user.delete("/api/v1/vclusters/demo").await;
    until(&mut vcluster, &["event: gone"]).await;
    until(&mut home, &["event: home-cards"]).await;
    assert_eq!(site.http.get(format!("{}/live/home", site.url)).send().await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn assets_are_kept_and_nothing_else_is_served() {
    let site = site().await;
    let mut browser = Browser::new(&site);
    for (_, hashed) in docklet_web::assets::all() {
        let answer = Answer::of(site.http.get(format!("{}/assets/{hashed}", site.url)).send().await.unwrap()).await;
        assert_eq!(answer.status, 200);
        assert!(answer.header("cache-control").contains("immutable"));
    }
    for path in ["/assets/manifest.json", "/assets/../Cargo.toml", "/assets/..%2fCargo.toml", "/assets/none.css"] {
        assert_eq!(browser.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_begun_and_ended_by_form_and_by_administrators_alone() {
    let site = site().await;
    let mut ada = Browser::signed_in(&site, "ada").await;
    page(&ada.post("/maintenance", &[("message", "mine")]).await, 403);
    page(&ada.post("/maintenance/end", &[]).await, 403);
    let mut root = Browser::signed_in(&site, "root").await;
    // What is wrong stands beside it, and what was typed stays.
    for minutes in ["0", "soon", "99999999999"] {
        let refused = root.post("/maintenance", &[("message", "A new <switch>."), ("minutes", minutes)]).await;
        let text = page(&refused, 422);
        assert!(text.contains("minutes-error") && text.contains("value=\"A new &#60;switch&#62;.\""), "{text}");
    }
    assert!(!page(&ada.get("/").await, 200).contains("Under maintenance."));
    let begun = root.post("/maintenance", &[("message", "A new <switch>."), ("minutes", "90")]).await;
    assert_eq!((begun.status.as_u16(), begun.header("location")), (303, "/hosts"));
    assert!(page(&root.get("/hosts").await, 200).contains("End maintenance"));
    let seen = ada.get("/").await;
    assert!(page(&seen, 200).contains("A new &#60;switch&#62;. What runs goes on"), "{}", seen.text);
    // The form of a new cluster keeps what was typed, too.
    let refused = ada.post("/vclusters", &[("name", "mine"), ("nodes", "1")]).await;
    let text = page(&refused, 422);
    assert!(text.contains("under maintenance") && text.contains("value=\"mine\""), "{text}");
    assert_eq!(root.post("/maintenance/end", &[]).await.status, 303);
    assert!(!page(&ada.get("/").await, 200).contains("Under maintenance."));
    assert_eq!(ada.post("/vclusters", &[("name", "mine"), ("nodes", "1")]).await.status, 303);
}
