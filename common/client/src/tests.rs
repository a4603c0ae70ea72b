//! The client against a scripted server.

#![allow(clippy::unwrap_used)]

use docklet_types::problem::{Code, Problem};
use docklet_types::size::Size;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, Exec, OperationView, VclusterView};
use futures::StreamExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

use crate::events::Parser;
use crate::fake::{Answer, Server};
use crate::{Client, Deletion, Error, Target, WaitError};

const LONG: Duration = Duration::from_secs(10);

fn view(status: Status) -> VclusterView {
    VclusterView {
        id: "0190".to_owned(),
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

fn operation(outcome: &str) -> OperationView {
    OperationView {
        id: "1".to_owned(),
        action: "create".to_owned(),
        actor: "alice".to_owned(),
        outcome: outcome.to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        ended_at: None,
        millis: 5,
        steps: Vec::new(),
        reason: None,
    }
}

/// A client of a server that gives these answers in turn, the last one for ever.
async fn scripted(answers: Vec<Answer>) -> (Server, Client) {
    let turn = AtomicUsize::new(0);
    let server = Server::start(move |_| answers[turn.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)].clone())
        .await
        .unwrap();
    let client = Client::new(server.url()).unwrap().with_token("secret").unwrap();
    (server, client)
}

#[tokio::test]
async fn a_request_carries_token_owner_and_body() {
    let (server, client) = scripted(vec![Answer::json(202, &view(Status::Pending))]).await;
    let client = client.with_owner(Some("bob"));
    let request = CreateVcluster { name: "demo".to_owned(), nodes: 3, ..CreateVcluster::default() };
    let made = client.create(&request).await.unwrap();
    assert_eq!(made.status, Status::Pending);
    let seen = &server.requests()[0];
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str(), seen.query.as_str()),
        ("POST", "/api/v1/vclusters", "owner=bob")
    );
    assert_eq!(seen.header("authorization"), Some("Bearer secret"));
    assert!(seen.header("idempotency-key").is_some());
    assert_eq!(seen.body, r#"{"name":"demo","nodes":3}"#);
}

#[tokio::test]
async fn names_are_encoded_and_cannot_leave_their_place_in_the_path() {
    let (server, client) = scripted(vec![Answer::problem(&Problem::new(Code::NotFound, "none"))]).await;
    let answer = client.vcluster("a/b?c").await;
    assert!(answer.unwrap_err().is_not_found());
    assert_eq!(server.requests()[0].path, "/api/v1/vclusters/a%2Fb%3Fc");
}

#[tokio::test]
async fn a_post_is_repeated_with_the_same_key_when_the_connection_breaks() {
    let (server, client) = scripted(vec![Answer::Hangup, Answer::json(202, &view(Status::Starting))]).await;
    client.start("demo").await.unwrap();
    let keys: Vec<_> = server.requests().iter().map(|r| r.header("idempotency-key").map(str::to_owned)).collect();
    assert_eq!(keys.len(), 2);
    assert_eq!(keys[0], keys[1]);
}

#[tokio::test]
async fn a_command_is_never_sent_twice() {
    let (server, client) = scripted(vec![Answer::Hangup]).await;
    let request = Exec { argv: vec!["true".to_owned()], stdin: String::new(), timeout_s: None };
    let failure = client.exec("demo", "node1", &request).await.unwrap_err();
    assert!(matches!(failure, Error::Interrupted { .. }), "{failure:?}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_problem_keeps_its_code_field_and_retry_after() {
    let problem = Problem::new(Code::Unavailable, "etcd has no quorum").at("name");
    let answer = Answer::With(503, ("retry-after", "7".to_owned()), serde_json::to_string(&problem).unwrap());
    let (_server, client) = scripted(vec![answer]).await;
    let failure = client.vclusters().await.unwrap_err();
    assert_eq!(failure.code(), Some(Code::Unavailable));
    assert_eq!(failure.retry_after(), Some(Duration::from_secs(7)));
    assert!(failure.is_transient());
    assert_eq!(failure.to_string(), "etcd has no quorum");
}

#[tokio::test]
async fn what_is_not_docklet_is_said_so() {
    let page = Answer::Body(200, "text/html", "<html>\n  <b>It works!</b>".to_owned());
    let (_server, client) = scripted(vec![page]).await;
    let Err(Error::Unexpected { status, body, .. }) = client.me().await else { panic!("accepted a page") };
    assert_eq!((status, body.as_str()), (200, "<html> <b>It works!</b>"));
}

#[tokio::test]
async fn nobody_listening_is_told_with_the_address() {
    // Bound and never accepted from, then closed: the port is free but was ours a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failure = Client::new(&url).unwrap().me().await.unwrap_err();
    assert_eq!(failure.to_string(), format!("cannot connect to {url}"));
}

#[test]
fn addresses_that_are_none() {
    for bad in ["", "localhost:8000", "ftp://x", "http://", "http://x/?a=b"] {
        assert!(matches!(Client::new(bad), Err(Error::Address { .. })), "{bad:?} was accepted");
    }
}

#[test]
fn terminals_have_a_websocket_address() {
    let client = Client::new("https://docklet.example/").unwrap().with_token("t").unwrap().with_owner(Some("bob"));
    let terminal = client.terminal("demo", "node1", "s1", 80, 24).unwrap();
    assert_eq!(
        terminal.url,
        "wss://docklet.example/api/v1/vclusters/demo/nodes/node1/terminal?owner=bob&session=s1&flow=ack&cols=80&rows=24"
    );
    assert_eq!(terminal.authorization.as_deref(), Some("Bearer t"));
}

#[tokio::test]
async fn waiting_goes_over_a_timeout_and_a_restart() {
    let script = vec![
        Answer::problem(&Problem::new(Code::Timeout, "not yet")),
        Answer::json(200, &view(Status::Starting)),
        Answer::problem(&Problem::new(Code::Unavailable, "restarting")),
        Answer::json(200, &view(Status::Running)),
    ];
    let (server, client) = scripted(script).await;
    let target = Target { status: Status::Running, generation: 1 };
    assert_eq!(client.wait("demo", target, LONG).await.unwrap().status, Status::Running);
    assert_eq!(server.requests()[0].query, "wait=running&timeout=10");
}

#[tokio::test]
async fn waiting_ends_with_a_failure_that_stands() {
    let failed = VclusterView { operation: Some(operation("failed")), ..view(Status::Failed) };
    let (_server, client) = scripted(vec![Answer::json(200, &failed)]).await;
    let target = Target { status: Status::Running, generation: 1 };
    let ended = client.wait("demo", target, LONG).await.unwrap_err();
    assert!(matches!(ended, WaitError::Ended(v) if v.status == Status::Failed));
}

#[tokio::test]
async fn a_view_of_an_older_generation_does_not_count() {
    let new = VclusterView { generation: 2, ..view(Status::Running) };
    let (server, client) = scripted(vec![Answer::json(200, &view(Status::Running)), Answer::json(200, &new)]).await;
    let target = Target { status: Status::Running, generation: 2 };
    assert_eq!(client.wait("demo", target, LONG).await.unwrap().generation, 2);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn waiting_ends_in_time() {
    let (_server, client) = scripted(vec![Answer::json(200, &view(Status::Starting))]).await;
    let target = Target { status: Status::Running, generation: 1 };
    let ended = client.wait("demo", target, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(ended, WaitError::TimedOut(Some(v)) if v.status == Status::Starting));
}

#[tokio::test]
async fn deleting_tells_gone_from_underway() {
    let (_server, client) = scripted(vec![Answer::json(202, &view(Status::Deleting)), Answer::empty(204)]).await;
    assert_eq!(client.delete("demo", None).await.unwrap(), Deletion::Underway);
    assert_eq!(client.delete("demo", Some(LONG)).await.unwrap(), Deletion::Gone);
}

#[tokio::test]
async fn a_new_vcluster_of_the_same_name_is_not_waited_for() {
    let other = VclusterView { id: "0191".to_owned(), ..view(Status::Running) };
    let script = vec![Answer::json(200, &view(Status::Running)), Answer::empty(202), Answer::json(200, &other)];
    let (server, client) = scripted(script).await;
    client.delete_and_wait("demo", LONG).await.unwrap();
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn events_come_one_by_one() {
    let event = r#"{"owner":"alice","name":"demo","view":null}"#;
    let body = format!(": hello\n\nevent: vcluster\ndata: {event}\n\ndata: {event}\n\n");
    let (_server, client) = scripted(vec![Answer::Body(200, "text/event-stream", body)]).await;
    let events: Vec<_> = client.events().await.unwrap().collect().await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].as_ref().unwrap().name, "demo");
}

#[test]
fn events_are_cut_alike_whatever_the_chunks() {
    let text = "data: {\"owner\":\"a\",\r\ndata: \"name\":\"d\u{e9}\",\"view\":null}\r\n\r\ndata: nonsense\n\n";
    for size in 1..text.len() {
        let mut parser = Parser::default();
        let events: Vec<_> = text.as_bytes().chunks(size).flat_map(|c| parser.feed(c)).collect();
        assert_eq!(events.len(), 1, "chunks of {size}");
        assert_eq!(events[0].name, "d\u{e9}");
    }
}
