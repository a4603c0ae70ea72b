//! Shells in the browser.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use docklet_master::proxy::terminal::WINDOW;
use docklet_types::agent::frame::Control;
use docklet_types::id::NodeId;
use docklet_types::view::Role;
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{Door, Person, eventually, settled};

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn connect(door: &Door, query: &str, headers: &[(&'static str, String)]) -> Result<Client, u16> {
    let url = format!("ws://127.0.0.1:{}/api/v1/vclusters/demo/nodes/node1/terminal{query}", door.at.port());
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((client, _)) => Ok(client),
        Err(Error::Http(response)) => Err(response.status().as_u16()),
        Err(error) => panic!("{error}"),
    }
}

fn bearer(person: &Person) -> Vec<(&'static str, String)> {
    vec![("authorization", format!("Bearer {}", person.token))]
}

async fn shell(door: &Door, person: &Person, query: &str) -> Client {
    connect(door, query, &bearer(person)).await.unwrap_or_else(|status| panic!("{query}: {status}"))
}

async fn next(client: &mut Client) -> Message {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(5), client.next())
            .await
            .expect("nothing came")
            .expect("closed")
            .unwrap();
        if !message.is_ping() {
            return message;
        }
    }
}

async fn text(client: &mut Client) -> String {
    match next(client).await {
        Message::Text(text) => text.to_string(),
        other => panic!("{other:?}"),
    }
}

async fn data(client: &mut Client, length: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < length {
        match next(client).await {
            Message::Binary(bytes) => got.extend_from_slice(&bytes),
            other => panic!("{other:?} after {} bytes", got.len()),
        }
    }
    got
}

async fn is_closed(client: &mut Client, within: Duration) -> bool {
    tokio::time::timeout(within, async { while let Some(Ok(_)) = client.next().await {} }).await.is_ok()
}

async fn with_node() -> (Door, Person, NodeId) {
    let door = Door::open().await;
    let alice = door.person("alice", Role::User).await;
    let (node, _) = door.node("alice", 8888);
    (door, alice, node)
}

#[actix_web::test]
async fn what_is_typed_comes_back_and_a_later_client_sees_it_again() {
    let (door, alice, node) = with_node().await;
    let mut first = shell(&door, &alice, "?session=one&cols=120&rows=40").await;
    assert_eq!(text(&mut first).await, r#"{"attached":{"resumed":false}}"#);
    first.send(Message::Binary(b"hello".as_slice().into())).await.unwrap();
    assert_eq!(data(&mut first, 5).await, b"hello");
    first.send(Message::Text(r#"{"resize":{"cols":100,"rows":30}}"#.into())).await.unwrap();
    let seen = door.nodes.shells.of(node, "one");
    eventually(Duration::from_secs(2), "the size arrives", || {
        *seen.controls.lock() == [Control::Resize { cols: 100, rows: 30 }]
    })
    .await;
    drop(first);

    let mut second = shell(&door, &alice, "?session=one&flow=ack").await;
    assert_eq!(text(&mut second).await, r#"{"attached":{"resumed":true}}"#);
    assert_eq!(data(&mut second, 5).await, b"hello");

    // A third takes over; the second is told and closed.
    let mut third = shell(&door, &alice, "?session=one").await;
    assert_eq!(text(&mut second).await, r#"{"taken_over":{}}"#);
    assert!(is_closed(&mut second, Duration::from_secs(2)).await);
    assert_eq!(text(&mut third).await, r#"{"attached":{"resumed":true}}"#);
    assert_eq!(data(&mut third, 5).await, b"hello");
    third.send(Message::Binary(b"exit\n".as_slice().into())).await.unwrap();
    assert_eq!(text(&mut third).await, r#"{"exit":{"code":0}}"#);
    assert!(is_closed(&mut third, Duration::from_secs(2)).await);
}

#[actix_web::test]
async fn a_client_that_does_not_acknowledge_stops_the_program() {
    let (door, alice, node) = with_node().await;
    let mut client = shell(&door, &alice, "?session=y&flow=ack").await;
    text(&mut client).await;
    client.send(Message::Binary(b"yes\n".as_slice().into())).await.unwrap();
    // Everything is read and nothing acknowledged: exactly the window arrives.
    let got = data(&mut client, WINDOW).await;
    assert_eq!(got.len(), WINDOW);
    let silent = tokio::time::timeout(Duration::from_millis(500), client.next()).await;
    assert!(silent.is_err(), "more than the window arrived: {silent:?}");
    let printed = door.nodes.shells.of(node, "y").printed.load(Ordering::SeqCst);
    assert!(printed <= WINDOW + (512 << 10), "{printed} bytes were printed: the socket's buffer and no more");
    // Acknowledging a part lets as much through, not more.
    client.send(Message::Text(r#"{"ack":10000}"#.into())).await.unwrap();
    assert_eq!(data(&mut client, 10_000).await.len(), 10_000);
    assert!(tokio::time::timeout(Duration::from_millis(300), client.next()).await.is_err());
}

#[actix_web::test]
async fn a_client_that_reads_nothing_stops_the_program() {
    let (door, alice, node) = with_node().await;
    let mut client = shell(&door, &alice, "?session=y").await;
    text(&mut client).await;
    client.send(Message::Binary(b"yes\n".as_slice().into())).await.unwrap();
    let seen = door.nodes.shells.of(node, "y");
    let last = settled("the printing stops", || seen.printed.load(Ordering::SeqCst)).await;
    assert!(last < 16 << 20, "{last} bytes were printed to nobody");
    // Signing out closes even this one.
    let at = Instant::now();
    door.sessions.end(&alice.session).await.unwrap();
    assert!(is_closed(&mut client, Duration::from_secs(2)).await);
    eventually(Duration::from_secs(2), "nothing is open", || {
        door.proxy.counters.terminals_open.load(Ordering::SeqCst) == 0
    })
    .await;
    assert!(at.elapsed() < Duration::from_secs(2));
}

#[actix_web::test]
async fn signing_out_closes_an_idle_one() {
    let (door, alice, _) = with_node().await;
    let mut client = shell(&door, &alice, "").await;
    text(&mut client).await;
    door.sessions.end(&alice.session).await.unwrap();
    assert!(is_closed(&mut client, Duration::from_secs(2)).await);
}

#[actix_web::test]
async fn who_gets_in() {
    let (door, alice, _) = with_node().await;
    let (bob, root) = (door.person("bob", Role::User).await, door.person("root", Role::Admin).await);
    let portal = format!("http://{}", door.portal_host());
    let same_host = format!("http://127.0.0.1:{}", door.at.port());
    let cookie = |person: &Person, origin: Option<&str>| {
        let mut headers = vec![("cookie", person.cookie())];
        headers.extend(origin.map(|origin| ("origin", origin.to_owned())));
        headers
    };
    let app = format!("http://8888--node1--demo--alice.localhost:{}", door.at.port());
    for (query, headers, status) in [
        ("", cookie(&alice, Some(&portal)), None),
        ("", cookie(&alice, Some(&same_host)), None),
        ("", cookie(&alice, Some(&app)), Some(403)),
        ("", cookie(&alice, Some("null")), Some(403)),
        ("", cookie(&alice, None), Some(403)),
        ("", vec![], Some(403)),
        ("", vec![("origin", portal.clone())], Some(401)),
        ("", vec![("authorization", "Bearer wrong".to_owned())], Some(401)),
        ("", bearer(&bob), Some(404)),
        ("?owner=alice", bearer(&bob), Some(404)),
        ("?owner=nobody", bearer(&root), Some(404)),
        ("", bearer(&root), Some(404)),
        ("?session=UPPER", bearer(&alice), Some(422)),
        ("?session=..%2Fx", bearer(&alice), Some(422)),
        ("?session=", bearer(&alice), Some(422)),
        ("?flow=none", bearer(&alice), Some(422)),
        ("?cols=0", bearer(&alice), Some(422)),
        ("?cols=x", bearer(&alice), Some(400)),
    ] {
        let got = connect(&door, query, &headers).await.err();
        assert_eq!(got, status, "{query} {headers:?}");
    }
    // An administrator's shell is apart from the owner's.
    drop(shell(&door, &root, "?owner=alice").await);
    let names = door.nodes.shells.names();
    assert!(names.contains(&"main".to_owned()) && names.iter().any(|name| name.starts_with("visitor-")), "{names:?}");
}

#[actix_web::test]
async fn nonsense_is_told_and_closed() {
    let (door, alice, _) = with_node().await;
    for nonsense in [
        Message::Text("ls".into()),
        Message::Text(r#"{"resize":{"cols":0,"rows":1}}"#.into()),
        Message::Binary(vec![0; 70_000].into()),
    ] {
        let mut client = shell(&door, &alice, "").await;
        text(&mut client).await;
        client.send(nonsense).await.unwrap();
        let end = next(&mut client).await;
        assert!(matches!(&end, Message::Close(Some(frame)) if u16::from(frame.code) == 1008), "{end:?}");
    }
}

#[actix_web::test]
async fn a_stopped_node_has_no_shell() {
    let (door, alice, node) = with_node().await;
    door.nodes.set_running(node, false);
    assert_eq!(connect(&door, "", &bearer(&alice)).await.err(), Some(409));
}
