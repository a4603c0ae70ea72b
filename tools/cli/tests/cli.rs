//! The `docklet` program itself against a scripted server: what it asks, prints, and exits with.

#![allow(clippy::unwrap_used)]

use docklet_client::fake::{Answer, Request, Server};
use docklet_types::problem::{Code, Problem};
use docklet_types::size::Size;
use docklet_types::status::Status;
use docklet_types::view::{ExecResult, NodeView, Session, VclusterView};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

struct Done {
    code: i32,
    out: String,
    err: String,
}

/// Runs `docklet` with a home of its own, no terminal, and this standard input.
async fn docklet_with(home: &Path, url: &str, args: &str, stdin: &str) -> Done {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_docklet"));
    command.args(args.split(' ')).env_clear().env("HOME", home).env("DOCKLET_URL", url);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // A program that reads nothing may be gone already.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    let output = child.wait_with_output().await.unwrap();
    Done {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

async fn docklet(url: &str, args: &str) -> Done {
    let home = tempfile::tempdir().unwrap();
    docklet_with(home.path(), url, &format!("--token t {args}"), "").await
}

fn view(status: Status) -> VclusterView {
    VclusterView {
        id: "1".to_owned(),
        name: "demo".to_owned(),
        owner: "alice".to_owned(),
        status,
        reason: None,
        image: "base".to_owned(),
        size: Size::new(1.0, 1024, 8192).unwrap(),
        nodes: 3,
        nodes_ready: 3,
        subnet: None,
        limits: docklet_types::rate::RateLimits::default(),
        host_labels: std::collections::BTreeMap::new(),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
        changed_at: "2026-01-01T00:00:00Z".to_owned(),
        generation: 1,
        operation: None,
    }
}

fn node(name: &str) -> NodeView {
    NodeView {
        name: name.to_owned(),
        status: Status::Running,
        reason: None,
        ip: Some("172.16.0.2".to_owned()),
        host: Some("h1".to_owned()),
        image: "base".to_owned(),
        size: Size::new(1.0, 1024, 8192).unwrap(),
        ready_millis: Some(930),
        moving: None,
        limits_hit: Vec::new(),
    }
}

fn not_found() -> Answer {
    Answer::problem(&Problem::new(Code::NotFound, "There is no vcluster named \"demo\"."))
}

/// A server with one vcluster that starts at once, can be deleted, and runs `exec` as told.
async fn one_cluster(exec: ExecResult) -> Server {
    let deleted = Arc::new(AtomicUsize::new(0));
    Server::start(move |request: &Request| match (request.method.as_str(), request.path.as_str()) {
        ("POST", "/api/v1/sessions") if request.body.contains("right") => {
            Answer::json(201, &Session { token: "fresh".to_owned(), expires_at: "2027-01-01T00:00:00Z".to_owned() })
        }
        ("POST", "/api/v1/sessions") => {
            Answer::problem(&Problem::new(Code::WrongPassword, "User name or password is wrong."))
        }
        ("DELETE", "/api/v1/sessions/current") => Answer::empty(204),
        ("GET", "/api/v1/vclusters") => Answer::json(200, &[view(Status::Running)]),
        ("POST", "/api/v1/vclusters") => Answer::json(202, &view(Status::Pending)),
        ("GET", "/api/v1/vclusters/demo") if deleted.load(Ordering::SeqCst) > 0 => not_found(),
        ("GET", "/api/v1/vclusters/demo") => Answer::json(200, &view(Status::Running)),
        ("DELETE", "/api/v1/vclusters/demo") => {
            deleted.fetch_add(1, Ordering::SeqCst);
            Answer::empty(204)
        }
        ("GET", "/api/v1/vclusters/demo/nodes") => Answer::json(200, &[node("node1"), node("node2")]),
        ("POST", "/api/v1/vclusters/demo/nodes/node1/exec") => Answer::json(200, &exec),
        _ => not_found(),
    })
    .await
    .unwrap()
}

fn quiet() -> ExecResult {
    ExecResult { exit_code: 0, stdout: String::new(), stderr: String::new(), truncated: false }
}

#[tokio::test]
async fn login_keeps_the_session_and_logout_ends_it() {
    let server = one_cluster(quiet()).await;
    let home: TempDir = tempfile::tempdir().unwrap();
    let login = docklet_with(home.path(), server.url(), "login alice", "right\n").await;
    assert_eq!((login.code, login.out.as_str()), (0, ""), "{}", login.err);
    let list = docklet_with(home.path(), server.url(), "list", "").await;
    assert_eq!(list.code, 0, "{}", list.err);
    assert!(list.out.contains("demo"));
    assert_eq!(server.requests().last().unwrap().header("authorization"), Some("Bearer fresh"));
    assert_eq!(docklet_with(home.path(), server.url(), "logout", "").await.code, 0);
    let after = docklet_with(home.path(), server.url(), "list", "").await;
    assert_eq!(after.code, 4);
    assert!(after.err.contains("docklet login"), "{}", after.err);
}

#[tokio::test]
async fn a_wrong_password_exits_with_4_and_keeps_nothing() {
    let server = one_cluster(quiet()).await;
    let home = tempfile::tempdir().unwrap();
    let login = docklet_with(home.path(), server.url(), "login alice", "guess\n").await;
    assert_eq!(login.code, 4);
    assert!(login.err.contains("password is wrong"), "{}", login.err);
    assert!(!home.path().join(".config").exists());
}

#[tokio::test]
async fn create_waits_until_it_runs() {
    let server = one_cluster(quiet()).await;
    let made = docklet(server.url(), "create demo -n 3 --memory 2g").await;
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(made.out.starts_with("demo is running: 3 nodes in "), "{}", made.out);
    let requests = server.requests();
    assert_eq!(requests[0].body, r#"{"name":"demo","nodes":3,"size":{"memory_mib":2048}}"#);
    assert!(requests[1].query.starts_with("wait=running"));
}

#[tokio::test]
async fn no_wait_returns_at_once_and_json_is_the_apis() {
    let server = one_cluster(quiet()).await;
    let made = docklet(server.url(), "create demo --no-wait -o json").await;
    let json: VclusterView = serde_json::from_str(&made.out).unwrap();
    assert_eq!((made.code, json.status), (0, Status::Pending));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn status_shows_the_nodes() {
    let server = one_cluster(quiet()).await;
    let status = docklet(server.url(), "status demo").await;
    assert_eq!(status.code, 0, "{}", status.err);
    assert!(status.out.contains("node2  running  172.16.0.2  h1      930 ms"), "{}", status.out);
    let json = docklet(server.url(), "status demo -o json").await;
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json["status"].as_str(), json["node_list"][1]["name"].as_str()), (Some("running"), Some("node2")));
}

#[tokio::test]
async fn delete_without_a_terminal_needs_yes() {
    let server = one_cluster(quiet()).await;
    let asked = docklet(server.url(), "delete demo").await;
    assert_eq!(asked.code, 2);
    assert!(asked.err.contains("--yes") && asked.err.contains("3 nodes"), "{}", asked.err);
    assert!(server.requests().iter().all(|r| r.method == "GET"));
    let done = docklet(server.url(), "delete demo --yes").await;
    assert_eq!((done.code, done.out.as_str()), (0, "deleted demo\n"), "{}", done.err);
    assert_eq!(docklet(server.url(), "delete demo --yes").await.code, 3);
}

#[tokio::test]
async fn a_slip_in_one_name_deletes_nothing() {
    let server = one_cluster(quiet()).await;
    assert_eq!(docklet(server.url(), "delete demo dmeo --yes").await.code, 3);
    assert!(server.requests().iter().all(|r| r.method == "GET"));
}

#[tokio::test]
async fn exec_passes_input_and_ends_as_the_command_does() {
    let result = ExecResult { exit_code: 42, stdout: "out\n".to_owned(), stderr: "err\n".to_owned(), truncated: false };
    let server = one_cluster(result).await;
    let home = tempfile::tempdir().unwrap();
    let done = docklet_with(home.path(), server.url(), "--token t exec demo/node1 -- cat -n", "hello").await;
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (42, "out\n", "err\n"));
    assert_eq!(server.requests()[0].body, r#"{"argv":["cat","-n"],"stdin":"hello","timeout_s":3600}"#);
    assert_eq!(docklet(server.url(), "exec demo -- true").await.code, 2);
}

#[tokio::test]
async fn what_does_not_exist_exits_with_3() {
    let server = one_cluster(quiet()).await;
    let none = docklet(server.url(), "status nope").await;
    assert_eq!((none.code, none.out.as_str()), (3, ""));
    assert!(none.err.contains("There is no vcluster"), "{}", none.err);
}

#[tokio::test]
async fn problems_name_the_field_and_map_to_exit_codes() {
    for (problem, code) in [
        (Problem::new(Code::OverQuota, "You may hold 32 nodes."), 4),
        (Problem::new(Code::Invalid, "from 1 to 1000").at("nodes"), 2),
        (Problem::new(Code::NameTaken, "There is one of that name."), 1),
    ] {
        let field = problem.field.clone();
        let server = Server::start(move |_| Answer::problem(&problem)).await.unwrap();
        let done = docklet(server.url(), "create demo -n 0").await;
        assert_eq!(done.code, code, "{}", done.err);
        assert!(field.is_none_or(|f| done.err.contains(&format!("{f}: from 1"))), "{}", done.err);
    }
}

#[tokio::test]
async fn a_timeout_exits_with_5() {
    let server = Server::start(|_| Answer::json(200, &view(Status::Starting))).await.unwrap();
    let done = docklet(server.url(), "start demo --timeout 1").await;
    assert_eq!(done.code, 5);
    assert!(done.err.contains("did not become running within 1 s"), "{}", done.err);
}

#[tokio::test]
async fn wrong_usage_exits_with_2_and_no_server_with_1() {
    assert_eq!(docklet("http://127.0.0.1:9", "nonsense").await.code, 2);
    assert_eq!(docklet("nonsense", "list").await.code, 2);
    let none = docklet("http://127.0.0.1:9", "list").await;
    assert_eq!(none.code, 1);
    assert!(
        none.err.contains("cannot connect to http://127.0.0.1:9") && none.err.contains("DOCKLET_URL"),
        "{}",
        none.err
    );
}

#[tokio::test]
async fn completion_scripts_ask_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        let done = docklet("http://127.0.0.1:9", &format!("completion {shell}")).await;
        assert_eq!(done.code, 0);
        assert!(done.out.contains("COMPLETE"), "{shell}: {}", done.out);
    }
}

#[tokio::test]
async fn connect_needs_a_terminal() {
    let server = one_cluster(quiet()).await;
    let done = docklet(server.url(), "connect demo").await;
    assert_eq!(done.code, 2);
    assert!(done.err.contains("docklet exec demo/node1"), "{}", done.err);
}
