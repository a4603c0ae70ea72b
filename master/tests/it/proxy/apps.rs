//! Ordinary requests: what passes, what is kept back, who gets in, how much memory it takes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use docklet_master::proxy::Limits;
use docklet_types::view::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{self, Reply, exchange, read_head, send_raw};
use super::upstreams::{self, OK, canned};
use super::{Door, eventually, resident, settled};

#[actix_web::test]
async fn a_request_reaches_the_app_with_the_public_host_and_without_secrets() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = format!("theme=dark; {}; docklet_session=stolen", door.app_cookie(&alice, &app).await);
    let headers = [
        ("cookie", cookie.as_str()),
        ("authorization", "Bearer secret"),
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-host", "evil"),
        ("forwarded", "for=6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("accept-encoding", "br"),
    ];
    let reply = door.get(&door.host(&app), "/lab/tree?a=%2F&b=c", &headers).await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    let head = seen.last_head().to_ascii_lowercase();
    assert!(head.starts_with("get /lab/tree?a=%2f&b=c http/1.1\r\n"), "{head}");
    for line in [
        format!("host: {}", door.host(&app)),
        "cookie: theme=dark".into(),
        "x-forwarded-for: 127.0.0.1".into(),
        "x-forwarded-proto: http".into(),
        "accept-encoding: br".into(),
    ] {
        assert!(head.lines().any(|l| l == line), "{line:?} is missing in\n{head}");
    }
    for gone in ["docklet", "authorization", "6.6.6.6", "evil", "connection: close"] {
        assert!(!head.contains(gone), "{gone:?} passed in\n{head}");
    }
}

#[actix_web::test]
async fn an_answer_is_narrowed_to_its_origin() {
    let door = Door::open().await;
    let (at, _) = canned(
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Kept: 1\r\n\
         Set-Cookie: a=1; Path=/; Domain=localhost\r\nSet-Cookie: docklet_app=evil; Path=/\r\nSet-Cookie: __Host-docklet_session=evil\r\n\
         Clear-Site-Data: \"cookies\"\r\nContent-Security-Policy: default-src *\r\n\r\n",
    )
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let reply = door.get(&door.host(&app), "/", &[("cookie", &cookie)]).await;
    assert_eq!(reply.status, 302, "redirects are passed on, not followed");
    assert_eq!(reply.all("set-cookie"), ["a=1; Path=/"]);
    assert_eq!((reply.header("x-kept"), reply.header("content-security-policy")), (Some("1"), Some("default-src *")));
    assert_eq!((reply.header("x-hop"), reply.header("clear-site-data")), (None, None));
}

#[actix_web::test]
async fn others_find_nothing_and_administrators_everything() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let (alice, bob, root) = (
        door.person("alice", Role::User).await,
        door.person("bob", Role::User).await,
        door.person("root", Role::Admin).await,
    );
    let app = door.app("alice", at);
    let foreign = format!("/apps/open?host={}", door.host(&app));
    let unknown = foreign.replace("alice", "nobody");
    let page = |path: String, cookie: String| {
        let door = &door;
        async move { door.get(&door.portal_host(), &path, &[("cookie", &cookie), ("accept", "text/html")]).await }
    };
    let (foreign, unknown) = (page(foreign, bob.cookie()).await, page(unknown, bob.cookie()).await);
    assert_eq!((foreign.status, unknown.status), (404, 404));
    assert_eq!(foreign.body, unknown.body, "the two cannot be told apart");

    // A cookie of another app of ours, or of another person, opens nothing here.
    let other = door.app("bob", at);
    let bobs = door.app_cookie(&bob, &other).await;
    let reply = door.get(&door.host(&app), "/", &[("cookie", &bobs)]).await;
    assert_eq!((reply.status, seen.requests()), (401, 0));
    let portal = door.get(&door.host(&app), "/", &[("cookie", &alice.cookie())]).await;
    assert_eq!((portal.status, seen.requests()), (401, 0), "the portal's cookie is worth nothing on an app's origin");

    let cookie = door.app_cookie(&root, &app).await;
    assert_eq!(door.get(&door.host(&app), "/", &[("cookie", &cookie)]).await.status, 200);
}

#[actix_web::test]
async fn a_name_below_the_domain_never_shows_the_portal() {
    let door = Door::open().await;
    for host in [
        "x.localhost",
        "8888--node1--demo--alice.localhost.",
        "0--node1--demo--alice.localhost",
        "a.8888--node1--demo--alice.localhost",
    ] {
        let reply = door.get(host, "/", &[]).await;
        assert_eq!(reply.status, 404, "{host}");
    }
    assert_eq!(door.get(&door.portal_host(), "/", &[]).await.text(), "the portal");
}

#[actix_web::test]
async fn a_stopped_node_and_a_silent_port_are_told_kindly() {
    let door = Door::open().await;
    let alice = door.person("alice", Role::User).await;
    let (node, app) = door.node("alice", 8888);
    let cookie = door.app_cookie(&alice, &app).await;
    let page = door.get(&door.host(&app), "/", &[("cookie", &cookie), ("accept", "text/html")]).await;
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html; charset=utf-8")));
    assert!(
        page.text().contains("Nothing listens on port 8888 of node1") && page.text().contains("http-equiv=\"refresh\""),
        "{}",
        page.text()
    );
    door.nodes.set_running(node, false);
    let problem = door.get(&door.host(&app), "/api", &[("cookie", &cookie)]).await;
    assert_eq!((problem.status, problem.header("content-type")), (502, Some("application/problem+json")));
    assert!(
        problem.text().contains("\"code\":\"bad_gateway\"") && problem.text().contains("stopped or still starting"),
        "{}",
        problem.text()
    );
}

#[actix_web::test]
async fn a_new_node_of_an_old_name_is_another_one() {
    let door = Door::open().await;
    let (old, new) = (canned(OK).await, canned("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew").await);
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", old.0);
    let cookie = door.app_cookie(&alice, &app).await;
    let host = door.host(&app);
    let ask = async || door.get(&host, "/", &[("cookie", &cookie)]).await;
    assert_eq!(ask().await.text(), "ok");
    door.app("alice", new.0);
    for _ in 0..5 {
        assert_eq!(ask().await.text(), "new", "a kept connection leads to the old node");
    }
}

#[actix_web::test]
async fn connections_are_reused_by_one_sign_in_only() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let (alice, root) = (door.person("alice", Role::User).await, door.person("root", Role::Admin).await);
    let app = door.app("alice", at);
    let (hers, his) = (door.app_cookie(&alice, &app).await, door.app_cookie(&root, &app).await);
    for _ in 0..10 {
        assert_eq!(door.get(&door.host(&app), "/", &[("cookie", &hers)]).await.status, 200);
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 1);
    assert_eq!(door.get(&door.host(&app), "/", &[("cookie", &his)]).await.status, 200);
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2, "a connection was shared between two people");
    // A socket keeps a node's network namespace alive: none is kept for long, and none after the sign-in.
    door.sessions.end(&alice.session).await.unwrap();
    eventually(Duration::from_secs(3), "her connection is closed", || seen.open.load(Ordering::SeqCst) == 1).await;
}

#[actix_web::test]
async fn a_kept_connection_that_the_app_closed_costs_no_request() {
    let door = Door::open().await;
    let (at, seen) = upstreams::app(|mut stream, seen| async move {
        let mut rest = Vec::new();
        if let Some(head) = upstreams::read_request(&mut stream, &mut rest).await {
            seen.heads.lock().push(head);
            // Says nothing of closing, and closes.
            let _sent = stream.write_all(OK.as_bytes()).await;
        }
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    for _ in 0..20 {
        let reply = door.get(&door.host(&app), "/", &[("cookie", &cookie)]).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "ok"));
    }
    assert_eq!(seen.requests(), 20);
}

#[actix_web::test]
async fn methods_and_answers_without_a_body() {
    let door = Door::open().await;
    let alice = door.person("alice", Role::User).await;
    for (method, answer, status, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", 200, Some("1234")),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n", 304, None),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, Some("99")),
        ("DELETE", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, None),
        ("GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, Some("0")),
        ("PROPFIND", "HTTP/1.1 207 Multi-Status\r\nContent-Length: 0\r\n\r\n", 207, Some("0")),
    ] {
        let (at, seen) = canned(answer).await;
        let app = door.app("alice", at);
        let cookie = door.app_cookie(&alice, &app).await;
        let reply = exchange(door.at, method, &door.host(&app), "/", &[("cookie", &cookie)], b"").await;
        assert_eq!(
            (reply.status, reply.header("content-length"), reply.body.len()),
            (status, length, 0),
            "{method} {answer:?}"
        );
        assert!(seen.last_head().starts_with(method));
    }
}

#[actix_web::test]
async fn an_app_that_speaks_nonsense_is_a_bad_gateway() {
    let door = Door::open().await;
    let alice = door.person("alice", Role::User).await;
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ] {
        let (at, _) = upstreams::app(move |mut stream, _| async move {
            let mut rest = Vec::new();
            upstreams::read_request(&mut stream, &mut rest).await;
            let _sent = stream.write_all(answer.as_bytes()).await;
        })
        .await;
        let app = door.app("alice", at);
        let cookie = door.app_cookie(&alice, &app).await;
        let reply = door.get(&door.host(&app), "/", &[("cookie", &cookie)]).await;
        assert_eq!(reply.status, 502, "{answer:?}");
    }
}

#[actix_web::test]
async fn an_answer_that_breaks_off_breaks_off() {
    let door = Door::open().await;
    let (at, _) = upstreams::app(|mut stream, _| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let raw = send_raw(
        door.at,
        format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app)).as_bytes(),
    )
    .await;
    assert!(!raw.ends_with(b"0\r\n\r\n"), "the break must not look like an end");
}

/// How much may lie in the sockets' own buffers, of which there are two pairs.
const IN_SOCKETS: usize = 32 << 20;
/// What memory may grow by, whatever the size of a body.
const FLAT: usize = 24 << 20;

#[actix_web::test]
async fn a_large_answer_takes_no_memory_and_waits_for_its_reader() {
    const LENGTH: usize = 512 << 20;
    let door = Door::open().await;
    let (at, seen) = upstreams::fountain(LENGTH).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let before = resident();
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream
        .write_all(format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app)).as_bytes())
        .await
        .unwrap();
    let head = read_head(&mut stream).await;
    assert_eq!(head.header("content-length"), Some(LENGTH.to_string().as_str()));
    // Nobody reads: the app stops being read from.
    let last = settled("the app's sending stops", || seen.bytes.load(Ordering::SeqCst)).await;
    assert!(last < IN_SOCKETS, "{last} bytes were read ahead");
    assert!(resident().saturating_sub(before) < FLAT);
    let mut got = head.body.len();
    let mut piece = vec![0; 256 * 1024];
    let mut peak = 0;
    while got < LENGTH {
        let n = stream.read(&mut piece).await.unwrap();
        assert!(n > 0, "closed after {got} bytes");
        got += n;
        if got % (64 << 20) < n {
            peak = peak.max(resident());
        }
    }
    assert!(peak.saturating_sub(before) < FLAT, "memory grew by {} bytes", peak - before);
}

#[actix_web::test]
async fn a_large_upload_takes_no_memory() {
    const LENGTH: usize = 256 << 20;
    let door = Door::open().await;
    let (at, seen) = upstreams::drain().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let before = resident();
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\nCookie: {cookie}\r\nContent-Length: {LENGTH}\r\n\r\n",
        door.host(&app),
        door.origin(&app)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![b'x'; 256 * 1024];
    let mut peak = 0;
    for i in 0..LENGTH / piece.len() {
        stream.write_all(&piece).await.unwrap();
        if i % 128 == 0 {
            peak = peak.max(resident());
        }
    }
    let reply = read_head(&mut stream).await;
    assert_eq!((reply.status, reply.text()), (200, LENGTH.to_string()));
    assert!(seen.last_head().to_ascii_lowercase().contains(&format!("content-length: {LENGTH}")));
    assert!(peak.saturating_sub(before) < FLAT, "memory grew by {} bytes", peak.saturating_sub(before));
}

#[actix_web::test]
async fn an_upload_of_unknown_length_stays_chunked() {
    let door = Door::open().await;
    let (at, seen) = upstreams::app(|mut stream, seen| async move {
        let mut rest = Vec::new();
        let head = upstreams::read_request(&mut stream, &mut rest).await.unwrap();
        seen.heads.lock().push(head);
        while !rest.ends_with(b"0\r\n\r\n") {
            let mut piece = [0; 1024];
            let n = stream.read(&mut piece).await.unwrap();
            rest.extend_from_slice(&piece[..n]);
        }
        let answer = Reply::parse(&[b"HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n", rest.as_slice()].concat())
            .unwrap()
            .text();
        let _sent = stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()).as_bytes())
            .await;
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request = format!(
        "PUT / HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\nCookie: {cookie}\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n",
        door.host(&app),
        door.origin(&app)
    );
    let raw = send_raw(door.at, request.as_bytes()).await;
    let rest = raw.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n".as_slice()).unwrap_or(&raw);
    assert_eq!(Reply::parse(rest).unwrap().text(), "abcdefg");
    let head = seen.last_head().to_ascii_lowercase();
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("expect"), "{head}");
}

#[actix_web::test]
async fn silence_has_an_end_and_signing_out_ends_a_stream() {
    let limits = Limits { idle: Duration::from_secs(1), ..Limits::default() };
    let door = Door::open_with(limits).await;
    let (at, seen) = upstreams::app(|mut stream, _| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n").await;
        let mut piece = [0; 16];
        while let Ok(1..) = stream.read(&mut piece).await {}
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 200);
    assert!(client::closes_within(&mut stream, Duration::from_secs(5)).await);
    eventually(Duration::from_secs(2), "the app's connection is closed", || seen.open.load(Ordering::SeqCst) == 0)
        .await;
}

#[actix_web::test]
async fn a_stream_ends_with_its_reader_and_with_the_sign_in() {
    let door = Door::open().await;
    let (at, seen) = upstreams::app(|mut stream, _| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        let _sent = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n").await;
        let mut piece = [0; 16];
        while let Ok(1..) = stream.read(&mut piece).await {}
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    // One reader leaves, though the app never sends again.
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 200);
    drop(stream);
    eventually(Duration::from_secs(12), "the app's connection is closed", || seen.open.load(Ordering::SeqCst) == 0)
        .await;
    // Another is signed out.
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await.status, 200);
    door.sessions.end(&alice.session).await.unwrap();
    assert!(client::closes_within(&mut stream, Duration::from_secs(2)).await);
    eventually(Duration::from_secs(2), "the app's connection is closed", || seen.open.load(Ordering::SeqCst) == 0)
        .await;
    assert_eq!(door.get(&door.host(&app), "/", &[("cookie", &cookie)]).await.status, 401);
}

#[actix_web::test]
async fn a_node_has_a_bounded_number_of_requests() {
    let door = Door::open_with(Limits { per_node: 2, ..Limits::default() }).await;
    let (at, seen) = upstreams::app(|mut stream, seen| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        seen.bytes.fetch_add(1, Ordering::SeqCst);
        let mut piece = [0; 16];
        while let Ok(1..) = stream.read(&mut piece).await {}
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(door.at).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    eventually(Duration::from_secs(5), "both wait for the app", || seen.bytes.load(Ordering::SeqCst) == 2).await;
    let headers = [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    assert_eq!(door.get(&door.host(&app), "/x", &headers).await.status, 503);
    drop(waiting);
}

#[actix_web::test]
async fn a_slow_upload_has_all_the_time_and_a_stuck_one_has_not() {
    let door = Door::open_with(Limits { idle: Duration::from_millis(800), ..Limits::default() }).await;
    let (at, seen) = upstreams::drain().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let head = format!(
        "POST /up HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\nCookie: {cookie}\r\nContent-Length: 5\r\n\r\n",
        door.host(&app),
        door.origin(&app)
    );
    let mut slow = TcpStream::connect(door.at).await.unwrap();
    slow.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        slow.write_all(b"x").await.unwrap();
    }
    assert_eq!(read_head(&mut slow).await.status, 200, "an upload of 2 s was cut off by 0.8 s of idleness");
    let mut stuck = TcpStream::connect(door.at).await.unwrap();
    stuck.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stuck).await.status, 502);
    assert!(client::closes_within(&mut stuck, Duration::from_secs(8)).await);
    drop(slow);
    eventually(Duration::from_secs(2), "the app's connections are closed", || seen.open.load(Ordering::SeqCst) <= 1)
        .await;
}
