//! Requests that two readers could read in two ways, byte for byte. None reaches the app as a second request.

use docklet_types::view::Role;

use super::Door;
use super::client::{self, send_raw};
use super::upstreams::{OK, canned};

/// After each comes `GET /smuggled`, which must not be answered as a request of its own.
#[actix_web::test]
async fn the_corpus_is_refused() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, origin) = (door.host(&app), door.origin(&app));
    let cookie = door.app_cookie(&alice, &app).await;
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n");
    let corpus = [
        ("both lengths", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("both lengths, other order", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("two lengths", "Content-Length: 0\r\nContent-Length: 44\r\n", ""),
        ("two equal lengths", "Content-Length: 0\r\nContent-Length: 0\r\n", ""),
        ("a list of lengths", "Content-Length: 0, 44\r\n", ""),
        ("a signed length", "Content-Length: +5\r\n", "hello"),
        ("a negative length", "Content-Length: -1\r\n", ""),
        ("a hexadecimal length", "Content-Length: 0x5\r\n", "hello"),
        ("a length beyond 64 bits", "Content-Length: 18446744073709551617\r\n", "h"),
        ("an empty length", "Content-Length: \r\n", ""),
        ("two encodings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("a list of encodings", "Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
        ("another encoding", "Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("an encoding with a vertical tab", "Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
        ("gzip and chunked", "Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("a space before the name", " Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("a folded line", "X-A: b\r\n c: d\r\n", ""),
        ("a line without a colon", "Content-Length 5\r\n", ""),
        ("a NUL in a value", "X-A: b\0c\r\n", ""),
        ("a bare CR in a value", "X-A: b\rContent-Length: 5\r\n", ""),
        ("a second host", "Host: other\r\n", ""),
        ("a chunk size with a sign", "Transfer-Encoding: chunked\r\n", "+0\r\n\r\n"),
        ("a chunk size in hexadecimal notation", "Transfer-Encoding: chunked\r\n", "0x0\r\n\r\n"),
        ("a chunk size beyond 64 bits", "Transfer-Encoding: chunked\r\n", "10000000000000000\r\nx"),
        ("a chunk size with a bare LF", "Transfer-Encoding: chunked\r\n", "1\nx\r\n0\r\n\r\n"),
        ("a chunk that is longer than said", "Transfer-Encoding: chunked\r\n", "1\r\nxyz\r\n0\r\n\r\n"),
        ("a WebSocket with a body", "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", "hello"),
    ];
    for (what, headers, body) in corpus {
        let first = format!(
            "POST /first HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nCookie: {cookie}\r\n{headers}\r\n{body}"
        );
        let raw = send_raw(door.at, format!("{first}{smuggled}").as_bytes()).await;
        let text = String::from_utf8_lossy(&raw);
        assert!(!text.contains("200 OK"), "{what}: answered with {text}");
        let heads = seen.heads.lock().clone();
        assert!(!heads.iter().any(|head| head.contains("/smuggled")), "{what}: went through as {heads:?}");
    }
    // After all that a plain request still works.
    let reply = door.get(&host, "/", &[("cookie", &cookie)]).await;
    assert_eq!(reply.status, 200);
}

/// A handshake has no body; where it has one of a clear end, what follows is a request of its own.
#[actix_web::test]
async fn a_handshake_with_chunks_is_refused() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let head = client::handshake(
        &door.host(&app),
        &[("origin", &door.origin(&app)), ("cookie", &cookie), ("transfer-encoding", "chunked")],
    );
    let raw = send_raw(door.at, format!("{head}0\r\n\r\n").as_bytes()).await;
    assert!(raw.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&raw));
    assert_eq!(seen.requests(), 0);
}

#[actix_web::test]
async fn request_lines_that_name_something_else() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let host = door.host(&app);
    let cookie = door.app_cookie(&alice, &app).await;
    for line in [
        format!("CONNECT {host} HTTP/1.1"),
        "CONNECT 127.0.0.1:2379 HTTP/1.1".to_owned(),
        "TRACE / HTTP/1.1".to_owned(),
        "GET http://169.254.169.254/latest HTTP/1.1".to_owned(),
        "GET http://localhost:2379/ HTTP/1.1".to_owned(),
        "OPTIONS * HTTP/1.1".to_owned(),
        "GET / HTTP/2.0".to_owned(),
        "GET  / HTTP/1.1".to_owned(),
        "GET /\0 HTTP/1.1".to_owned(),
    ] {
        let raw = send_raw(
            door.at,
            format!("{line}\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        let text = String::from_utf8_lossy(&raw);
        assert!(!text.contains("200 OK"), "{line}: {text}");
    }
    assert_eq!(seen.requests(), 0);
    // The host's own absolute form is the same as its path.
    let raw = send_raw(
        door.at,
        format!("GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n")
            .as_bytes(),
    )
    .await;
    assert!(String::from_utf8_lossy(&raw).contains("200 OK"));
    assert!(seen.last_head().starts_with("GET /x HTTP/1.1"), "{}", seen.last_head());
}

#[actix_web::test]
async fn a_pipeline_is_answered_in_order() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let one = |path: &str, last: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n{last}\r\n", door.host(&app))
    };
    let raw = send_raw(
        door.at,
        format!("{}{}{}", one("/1", ""), one("/2", ""), one("/3", "Connection: close\r\n")).as_bytes(),
    )
    .await;
    assert_eq!(String::from_utf8_lossy(&raw).matches("200 OK").count(), 3);
    let paths: Vec<String> = seen.heads.lock().iter().map(|head| head.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/1", "/2", "/3"]);
}
