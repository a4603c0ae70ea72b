//! Every operation of the API's own description, asked by root, the owner, another user and nobody. An operation that
//! this table does not know fails the test: none can be forgotten.

use super::lifecycle::specs;
use super::support::{Answer, Site, User, site};
use docklet_master::http::openapi::document;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guard {
    /// Anybody, signed in or not.
    Open,
    /// Everybody who is signed in, each for their own.
    SignedIn,
    /// Owner and administrators; for others it does not exist.
    Owner,
    /// The user itself and administrators; for others it does not exist.
    Oneself,
    Admin,
}

#[derive(Debug)]
struct Case {
    method: Method,
    /// With names filled in.
    path: String,
    guard: Guard,
    body: Option<Value>,
    /// What who is allowed gets.
    good: &'static [u16],
}

fn case(method: &str, pattern: &str, owner: &str) -> Option<Case> {
    use Guard::{Admin, Oneself, Open, Owner, SignedIn};
    let vcluster = "/api/v1/vclusters/{name}";
    let node = "/api/v1/vclusters/{name}/nodes/{node}";
    let (guard, body, good): (Guard, Option<Value>, &[u16]) = match (method, pattern) {
        ("GET", "/healthz" | "/readyz" | "/metrics" | "/api/v1/openapi.json") => (Open, None, &[200]),
        ("POST", "/api/v1/sessions") => {
            (Open, Some(json!({"username": "ada", "password": super::support::PASSWORD})), &[201])
        }
        ("GET", "/api/v1/me" | "/api/v1/vclusters" | "/api/v1/images" | "/api/v1/events") => (SignedIn, None, &[200]),
        ("GET", "/api/v1/sites") => (SignedIn, None, &[200]),
        ("GET", "/api/v1/maintenance") => (SignedIn, None, &[200]),
        // In the past: it must not keep the others of the table from what they may do.
        ("POST", "/api/v1/maintenance") => (Admin, Some(json!({"until": "2020-01-01T00:00:00Z"})), &[422]),
        ("DELETE", "/api/v1/maintenance") => (Admin, None, &[204]),
        ("POST", "/api/v1/vclusters/what-if") => (SignedIn, Some(json!({"name": "fresh", "nodes": 1})), &[200]),
        ("POST", "/api/v1/vclusters") => (SignedIn, Some(json!({"name": "fresh", "nodes": 1})), &[202]),
        ("DELETE", "/api/v1/sessions/current") => (SignedIn, None, &[204]),
        ("GET" | "POST", "/api/v1/users") if method == "GET" => (Admin, None, &[200]),
        ("POST", "/api/v1/users") => (Admin, Some(json!({"username": "carol", "password": "long enough"})), &[201]),
        ("GET", "/api/v1/users/{name}") => (Oneself, None, &[200]),
        ("PATCH", "/api/v1/users/{name}") => (Oneself, Some(json!({})), &[200]),
        // Only administrators, and only of users without vclusters; of oneself it is not allowed rather than not there.
        ("DELETE", "/api/v1/users/{name}") => (Oneself, None, &[403, 409]),
        ("GET", "/api/v1/hosts" | "/api/v1/hosts/{name}" | "/api/v1/masters") => (Admin, None, &[200]),
        ("PATCH", "/api/v1/hosts/{name}") => (Admin, Some(json!({"cordoned": false})), &[200]),
        // The host is alive.
        ("DELETE", "/api/v1/hosts/{name}") => (Admin, None, &[409]),
        // It is there already.
        ("POST", p) if p == format!("{vcluster}/move") => (Admin, Some(json!({"host": "h1"})), &[202]),
        ("GET", p) if p == vcluster => (Owner, None, &[200]),
        ("PATCH", p) if p == vcluster => (Owner, Some(json!({"nodes": 2})), &[202]),
        ("DELETE", p) if p == vcluster => (Owner, None, &[202]),
        ("POST", p) if p == format!("{vcluster}/start") || p == format!("{vcluster}/stop") => (Owner, None, &[202]),
        ("POST", p) if p == format!("{vcluster}/retry") => (Owner, None, &[409]),
        ("GET", p) if p == format!("{vcluster}/operations") || p == format!("{vcluster}/nodes") => {
            (Owner, None, &[200])
        }
        ("GET", p) if p == format!("{vcluster}/ports") => (Owner, None, &[200]),
        ("POST", p) if p == format!("{vcluster}/ports") => {
            (Owner, Some(json!({"node": "node1", "port": 80, "public_port": 12_000})), &[201])
        }
        ("DELETE", p) if p == format!("{vcluster}/ports/{{protocol}}/{{public_port}}") => (Owner, None, &[204]),
        ("POST", p) if p == format!("{node}/exec") => (Owner, Some(json!({"argv": ["id"]})), &[200]),
        ("GET", p) if p == format!("{node}/logs") || p == format!("{node}/apps/{{app}}") => (Owner, None, &[200]),
        ("POST", p) if p == format!("{node}/apps/{{app}}") => (Owner, None, &[202]),
        ("GET", p) if p == format!("{node}/terminal") => (Owner, None, &[101]),
        _ => return None,
    };
    let name = match pattern {
        p if p.starts_with("/api/v1/hosts") => "h1",
        p if p.starts_with("/api/v1/users") => owner,
        _ => "demo",
    };
    let path = filled(pattern, name);
    Some(Case { method: method.parse().unwrap(), path, guard, body, good })
}

fn filled(pattern: &str, name: &str) -> String {
    let parts = [
        ("{name}", name),
        ("{node}", "node1"),
        ("{app}", "jupyter"),
        ("{protocol}", "tcp"),
        ("{public_port}", "12000"),
    ];
    parts.iter().fold(pattern.to_owned(), |path, (part, value)| path.replace(part, value))
}

fn operations() -> Vec<(String, String)> {
    let json = serde_json::to_value(document()).unwrap();
    let paths = json["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(move |m| (m.to_uppercase(), path.clone())))
        .collect()
}

async fn ask(user: &User, case: &Case, path: &str) -> Answer {
    let mut request = user.request(case.method.clone(), path);
    if let Some(body) = &case.body {
        request = request.json(body);
    }
    if path.contains("/terminal") {
        request = request
            .header("origin", user.url.as_str())
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    }
    let response = request.send().await.unwrap();
    let status = response.status();
    if status == 101
        || response.headers().get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"))
    {
        // Open for ever: its head is enough.
        return Answer { status, headers: response.headers().clone(), text: String::new() };
    }
    Answer::of(response).await
}

async fn prepared() -> Site {
    let site = site().await;
    site.sign_in("ada").await.running("demo", 1).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_is_forgotten() {
    let unknown: Vec<_> =
        operations().into_iter().filter(|(method, path)| case(method, path, "ada").is_none()).collect();
    assert!(unknown.is_empty(), "add these to the table: {unknown:?}");
    assert!(operations().len() >= 32, "{}", operations().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_and_strangers_get_nothing_and_change_nothing() {
    let site = prepared().await;
    let before = specs(&site).await;
    let (nobody, mut tried) = (site.nobody(), 0);
    for (method, pattern) in operations() {
        let case = case(&method, &pattern, "ada").unwrap();
        let answer = ask(&nobody, &case, &case.path).await;
        match case.guard {
            Guard::Open => assert!(case.good.contains(&answer.status.as_u16()), "{case:?}: {}", answer.text),
            _ => {
                answer.problem(401, "not_signed_in");
            }
        }
        // bob knows the owner's name and says it.
        let bob = site.sign_in("bob").await;
        let joint = if case.path.contains('?') { '&' } else { '?' };
        for path in [case.path.clone(), format!("{}{joint}owner=ada", case.path)] {
            let takes_owner = pattern.starts_with("/api/v1/vclusters");
            if path != case.path && !takes_owner {
                continue;
            }
            let answer = ask(&bob, &case, &path).await;
            match case.guard {
                Guard::Owner | Guard::Oneself => {
                    answer.problem(404, "not_found");
                }
                Guard::Admin => {
                    answer.problem(403, "not_allowed");
                }
                Guard::SignedIn if path != case.path => {
                    answer.problem(404, "not_found");
                }
                Guard::SignedIn => {
                    assert!(case.good.contains(&answer.status.as_u16()), "{case:?}: {}", answer.text);
                    assert!(!answer.text.contains("\"demo\""), "{case:?} tells of somebody else's: {}", answer.text);
                }
                Guard::Open => {}
            }
        }
        tried += 1;
    }
    assert_eq!(tried, operations().len());
    assert_eq!(site.access.execs.load(Ordering::SeqCst), 0);
    let after: Vec<_> = specs(&site).await.into_iter().filter(|s| s.owner.as_str() == "ada").collect();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn owner_and_root_may_and_every_operation_is_there() {
    let mut tried = BTreeSet::new();
    for who in ["ada", "root"] {
        let site = prepared().await;
        // The operations that end something come last, and among them parts before the whole.
        let mut all = operations();
        all.sort_by_key(|(method, path)| {
            let ends = method == "DELETE";
            (ends, path.contains("/stop"), if ends { format!("{path}~") } else { path.clone() })
        });
        for (method, pattern) in all {
            let case = case(&method, &pattern, "ada").unwrap();
            let user = site.sign_in(who).await;
            let mut path = case.path.clone();
            if who == "root" && case.path.starts_with("/api/v1/vclusters/") {
                path.push_str("?owner=ada");
            }
            let answer = ask(&user, &case, &path).await;
            let allowed = who == "root" || case.guard != Guard::Admin;
            if allowed {
                assert!(
                    case.good.contains(&answer.status.as_u16()),
                    "{who} {case:?}: {} {}",
                    answer.status,
                    answer.text
                );
                tried.insert((method, pattern));
            } else {
                answer.problem(403, "not_allowed");
            }
        }
    }
    assert_eq!(tried.len(), operations().len());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_methods_and_wrong_addresses_are_problems_too() {
    let site = site().await;
    let root = site.sign_in("root").await;
    for (_, pattern) in operations() {
        let path = filled(&pattern, "demo");
        let answer = root.send(Method::PUT, &path, None::<()>).await;
        if path.ends_with("/what-if") {
            // Other methods are about a vcluster of that name.
            continue;
        }
        if path.ends_with("/terminal") {
            // The proxy's own resource.
            assert!([404, 405].contains(&answer.status.as_u16()));
            continue;
        }
        answer.problem(405, "method_not_allowed");
        let allow = answer.header("allow");
        for (method, other) in operations() {
            assert_eq!(
                other == pattern && allow.split(", ").any(|m| m == method),
                other == pattern,
                "{pattern}: {allow}"
            );
        }
    }
    for path in [
        "/api/v1/nothing",
        "/api",
        "/api/v1/vclusters/UPPER",
        "/api/v1/vclusters/-rf",
        "/api/v1/vclusters/a%2Fb",
        "/api/v1/vclusters/%2e%2e",
    ] {
        root.get(path).await.problem(404, "not_found");
    }
    let json: Value = root.get("/api/v1/openapi.json").await.ok(200);
    assert!(json["openapi"].as_str().unwrap().starts_with("3."));
    assert_eq!(json["paths"].as_object().unwrap().len(), document().paths.paths.len());
}
