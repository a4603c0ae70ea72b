//! One connection that brings requests for the portal and for apps, as a reverse proxy in front of Docklet sends them; and
//! what is no request at all.

use std::time::Duration;

use docklet_types::view::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Door;
use super::client::{Reply, closes_within, handshake, send_raw};
use super::upstreams::{self, OK, canned, echo};

/// Reads one answer with a told length.
async fn answer(stream: &mut TcpStream, have: &mut Vec<u8>) -> Reply {
    loop {
        if let Some(end) = have.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = Reply::parse(have).unwrap();
            let length: usize = head.header("content-length").unwrap_or("0").parse().unwrap();
            if have.len() >= end + 4 + length {
                let rest = have.split_off(end + 4 + length);
                let whole = std::mem::replace(have, rest);
                return Reply::parse(&whole).unwrap();
            }
        }
        let mut piece = [0; 4096];
        let n = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(have));
        have.extend_from_slice(&piece[..n]);
    }
}

#[actix_web::test]
async fn requests_for_the_portal_and_for_apps_share_a_connection() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let for_app = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    let post = |body: &str| format!("POST /x HTTP/1.1\r\nHost: {}\r\n{body}", door.portal_host());
    let (length, chunks) =
        (post("Content-Length: 5\r\n\r\nhello"), post("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"));
    let get = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", door.portal_host());
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    let mut have = Vec::new();
    for (round, portal) in [&get, &length, &chunks, &get].into_iter().enumerate() {
        for _ in 0..2 {
            stream.write_all(portal.as_bytes()).await.unwrap();
            let reply = answer(&mut stream, &mut have).await;
            assert_eq!((reply.status, reply.text().as_str()), (200, "the portal"), "round {round}");
        }
        stream.write_all(for_app(&format!("/{round}")).as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream, &mut have).await.text(), "ok", "round {round}");
    }
    // All at once, cut into pieces anywhere.
    let all = [&for_app("/a"), &length, &chunks, &for_app("/b"), &get, &for_app("/c")].map(String::as_str).concat();
    for piece in all.as_bytes().chunks(37) {
        stream.write_all(piece).await.unwrap();
    }
    for expected in ["ok", "the portal", "the portal", "ok", "the portal", "ok"] {
        assert_eq!(answer(&mut stream, &mut have).await.text(), expected);
    }
    assert_eq!(seen.requests(), 7);
}

/// A connection without a request holds up no stop.
#[actix_web::test]
async fn an_idle_connection_ends_when_the_server_stops() {
    let door = Door::open().await;
    let (at, _) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    let (mut stream, mut have) = (TcpStream::connect(door.at).await.unwrap(), Vec::new());
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream, &mut have).await.text(), "ok");
    let stopped = tokio::time::timeout(Duration::from_millis(900), door.stop()).await;
    assert!(stopped.is_ok(), "the stop waited for a connection without a request");
    assert!(closes_within(&mut stream, Duration::from_millis(100)).await);
}

#[actix_web::test]
async fn what_hides_in_a_portal_request_reaches_no_app() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let hidden = format!("GET /hidden HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    let portal = door.portal_host();
    for first in [
        format!("POST / HTTP/1.1\r\nHost: {portal}\r\nContent-Length: {}\r\n\r\n", hidden.len()),
        format!("POST / HTTP/1.1\r\nHost: {portal}\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("POST / HTTP/1.1\r\nHost: {portal}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        handshake(&portal, &[]),
    ] {
        let mut stream = TcpStream::connect(door.at).await.unwrap();
        stream.write_all(format!("{first}{hidden}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(closes_within(&mut stream, Duration::from_secs(5)).await, "{first:?}");
        assert_eq!(seen.requests(), 0, "{first:?}");
    }
}

#[actix_web::test]
async fn what_is_no_request_is_told_so_and_ends_the_connection() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, cookie) = (door.host(&app), door.app_cookie(&alice, &app).await);
    for (what, bytes) in [
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("bare LF", format!("GET / HTTP/1.1\nHost: {host}\nCookie: {cookie}\n\n").into_bytes()),
        ("one bare LF", format!("GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\nX: y\r\n\r\n").into_bytes()),
        ("a long head", format!("GET / HTTP/1.1\r\nHost: {host}\r\nX: {}\r\n\r\n", "x".repeat(70_000)).into_bytes()),
        ("many lines", format!("GET / HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X: y\r\n".repeat(101)).into_bytes()),
    ] {
        let raw = send_raw(door.at, &bytes).await;
        let text = String::from_utf8_lossy(&raw);
        assert!(text.starts_with("HTTP/1.1 400"), "{what}: {text}");
        assert!(text.contains("application/problem+json") && text.contains("connection: close"), "{what}: {text}");
    }
    assert_eq!(seen.requests(), 0);
}

#[actix_web::test]
async fn an_old_client_gets_no_chunks() {
    let door = Door::open().await;
    let (at, _) = canned("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, cookie) = (door.host(&app), door.app_cookie(&alice, &app).await);
    let raw = send_raw(door.at, format!("GET / HTTP/1.0\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n").as_bytes()).await;
    let text = String::from_utf8_lossy(&raw);
    assert!(text.ends_with("\r\n\r\nhello") && !text.contains("chunked"), "{text}");
    // One that asks for it keeps its connection, where the answer's length is told.
    let (at, _) = canned(OK).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request =
        format!("GET / HTTP/1.0\r\nHost: {}\r\nCookie: {cookie}\r\nConnection: keep-alive\r\n\r\n", door.host(&app));
    let (mut stream, mut have) = (TcpStream::connect(door.at).await.unwrap(), Vec::new());
    for _ in 0..2 {
        stream.write_all(request.as_bytes()).await.unwrap();
        let reply = answer(&mut stream, &mut have).await;
        assert_eq!((reply.text().as_str(), reply.header("connection")), ("ok", Some("keep-alive")));
    }
}

#[actix_web::test]
async fn a_change_is_never_sent_twice() {
    let door = Door::open().await;
    let (at, seen) = upstreams::app(|mut stream, seen| async move {
        let mut rest = Vec::new();
        while let Some(head) = upstreams::read_request(&mut stream, &mut rest).await {
            let change = head.starts_with("POST");
            seen.heads.lock().push(head);
            // A change is taken, and then the app dies.
            if change || stream.write_all(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, origin, cookie) = (door.host(&app), door.origin(&app), door.app_cookie(&alice, &app).await);
    // A kept connection is there to be used.
    assert_eq!(door.get(&host, "/", &[("cookie", &cookie)]).await.status, 200);
    let headers = [("cookie", cookie.as_str()), ("origin", origin.as_str())];
    let reply = super::client::exchange(door.at, "POST", &host, "/change", &headers, b"").await;
    assert_eq!(reply.status, 502);
    assert_eq!(seen.heads.lock().iter().filter(|head| head.starts_with("POST")).count(), 1);
}

/// An app may refuse an upload before it has read it.
#[actix_web::test]
async fn an_early_answer_reaches_a_browser_that_is_still_sending() {
    let door = Door::open().await;
    let (at, _) = upstreams::app(|mut stream, _| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        let _sent = stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\nCookie: {cookie}\r\nContent-Length: 100000000\r\n\r\n",
        door.host(&app),
        door.origin(&app)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 64 * 1024];
    // As a client does that looks for an answer while it sends.
    let (mut reader, mut writer) = stream.split();
    let sending = async { while writer.write_all(&piece).await.is_ok() {} };
    let reading = async {
        let mut raw = Vec::new();
        let mut piece = [0; 1024];
        while !raw.ends_with(b"big") {
            match reader.read(&mut piece).await {
                Ok(n @ 1..) => raw.extend_from_slice(&piece[..n]),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&raw)),
            }
        }
        raw
    };
    let raw = tokio::select! { raw = reading => raw, () = sending => panic!("closed before the answer was read") };
    let reply = Reply::parse(&raw).unwrap();
    assert_eq!((reply.status, reply.header("connection")), (413, Some("close")));
}

/// Half of a WebSocket's messages come with the handshake.
#[actix_web::test]
async fn what_a_browser_sends_with_its_handshake_is_not_lost() {
    let door = Door::open().await;
    let (at, _) = echo().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let head = handshake(&door.host(&app), &[("origin", &door.origin(&app)), ("cookie", &cookie)]);
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream.write_all(format!("{head}early").as_bytes()).await.unwrap();
    let mut raw = Vec::new();
    while !raw.ends_with(b"early") {
        let mut piece = [0; 1024];
        let n = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&raw));
        raw.extend_from_slice(&piece[..n]);
    }
}
