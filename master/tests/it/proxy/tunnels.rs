//! WebSockets: agreed to before a byte passes, raw afterwards, and gone when they should be.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use docklet_types::view::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{closes_within, handshake, read_head, send_raw};
use super::upstreams::{self, SWITCH, canned, echo};
use super::{Door, descriptors, eventually};

/// A tunnel that is open.
async fn open(door: &Door, app: &docklet_master::proxy::address::AppAddress, cookie: &str) -> TcpStream {
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
        .write_all(handshake(&door.host(app), &[("origin", &door.origin(app)), ("cookie", cookie)]).as_bytes())
        .await
        .unwrap();
    let reply = read_head(&mut stream).await;
    assert_eq!(reply.status, 101, "{}", reply.text());
    assert!(reply.body.is_empty());
    stream
}

#[actix_web::test]
async fn bytes_pass_both_ways_and_each_half_closes() {
    let door = Door::open().await;
    let (at, seen) = echo().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let mut stream = open(&door, &app, &cookie).await;
    let head = seen.last_head().to_ascii_lowercase();
    for line in [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-version: 13",
        "sec-websocket-key: x3jjhmbdl1ezlkh9gbhxdw==",
    ] {
        assert!(head.lines().any(|l| l == line), "{line} is missing in {head}");
    }
    assert!(!head.contains("docklet"), "{head}");
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let (_, got) = tokio::join!(
        async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        },
        async {
            let mut got = Vec::new();
            reader.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    assert_eq!(got.len(), sent.len() + 3, "what was on its way when one half closed still came");
    assert!(got.starts_with(&sent) && got.ends_with(b"bye"));
    eventually(Duration::from_secs(3), "nothing is open", || {
        door.proxy.counters.tunnels_open.load(Ordering::SeqCst) == 0 && seen.open.load(Ordering::SeqCst) == 0
    })
    .await;
}

#[actix_web::test]
async fn what_comes_with_the_agreement_is_not_lost() {
    let door = Door::open().await;
    let (at, _) = upstreams::app(|mut stream, _| async move {
        let mut rest = Vec::new();
        upstreams::read_request(&mut stream, &mut rest).await;
        stream.write_all(format!("{SWITCH}first").as_bytes()).await.unwrap();
        let mut piece = [0; 64];
        while let Ok(1..) = stream.read(&mut piece).await {}
    })
    .await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let mut stream = TcpStream::connect(door.at).await.unwrap();
    stream
        .write_all(handshake(&door.host(&app), &[("origin", &door.origin(&app)), ("cookie", &cookie)]).as_bytes())
        .await
        .unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"first") {
        let mut piece = [0; 1024];
        let n = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(n > 0);
        got.extend_from_slice(&piece[..n]);
    }
}

#[actix_web::test]
async fn only_the_apps_own_pages_open_one() {
    let door = Door::open().await;
    let (at, seen) = echo().await;
    let (alice, bob) = (door.person("alice", Role::User).await, door.person("bob", Role::User).await);
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let bobs_app = door.app("bob", at);
    let bobs = door.app_cookie(&bob, &bobs_app).await;
    let (own, portal) = (door.origin(&app), format!("http://{}", door.portal_host()));
    let (sibling, https, bare) =
        (own.replace("8888--", "3000--"), own.replace("http:", "https:"), own.rsplit_once(':').unwrap().0.to_owned());
    for (headers, status) in [
        (vec![("cookie", cookie.as_str())], 403),
        (vec![("cookie", &cookie), ("origin", &portal)], 403),
        (vec![("cookie", &cookie), ("origin", &sibling)], 403),
        (vec![("cookie", &cookie), ("origin", &https)], 403),
        (vec![("cookie", &cookie), ("origin", &bare)], 403),
        (vec![("cookie", &cookie), ("origin", "null")], 403),
        (vec![("origin", &own)], 401),
        (vec![("cookie", &bobs), ("origin", &own)], 401),
    ] {
        let raw = send_raw(door.at, handshake(&door.host(&app), &headers).as_bytes()).await;
        assert!(
            raw.starts_with(format!("HTTP/1.1 {status}").as_bytes()),
            "{headers:?}: {}",
            String::from_utf8_lossy(&raw)
        );
    }
    assert_eq!(seen.requests(), 0);
}

/// What follows a handshake that the app did not agree to is neither passed on nor read as a request.
#[actix_web::test]
async fn without_a_true_101_nothing_is_tunnelled() {
    let door = Door::open().await;
    let alice = door.person("alice", Role::User).await;
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", 200),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404),
        (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 0\r\n\r\n",
            426,
        ),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 502),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
    ] {
        let (at, seen) = canned(answer).await;
        let app = door.app("alice", at);
        let cookie = door.app_cookie(&alice, &app).await;
        let head = handshake(&door.host(&app), &[("origin", &door.origin(&app)), ("cookie", &cookie)]);
        let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", door.host(&app));
        let raw = send_raw(door.at, format!("{head}{smuggled}").as_bytes()).await;
        let text = String::from_utf8_lossy(&raw);
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{answer:?}: {text}");
        assert_eq!((text.matches("HTTP/1.1").count(), seen.requests()), (1, 1), "{answer:?}: {text}");
    }
}

#[actix_web::test]
async fn other_protocols_are_not_upgraded_to() {
    let door = Door::open().await;
    let (at, seen) = canned(upstreams::OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let reply = door
        .get(
            &door.host(&app),
            "/",
            &[("cookie", &cookie), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAoAAAAAIAAAAA")],
        )
        .await;
    assert_eq!(reply.status, 200);
    let head = seen.last_head().to_ascii_lowercase();
    assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
}

#[actix_web::test]
async fn signing_out_closes_it_though_nobody_reads() {
    let door = Door::open().await;
    let (at, seen) = echo().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let mut idle = open(&door, &app, &cookie).await;
    // The other one floods and never reads: bytes pile up until nothing moves any more.
    let mut stuck = open(&door, &app, &cookie).await;
    let piece = vec![b'x'; 64 * 1024];
    while let Ok(Ok(1..)) = tokio::time::timeout(Duration::from_millis(500), stuck.write(&piece)).await {}
    let at = Instant::now();
    door.sessions.end(&alice.session).await.unwrap();
    assert!(closes_within(&mut idle, Duration::from_secs(2)).await);
    eventually(Duration::from_secs(2), "the app's ends are closed", || seen.open.load(Ordering::SeqCst) == 0).await;
    eventually(Duration::from_secs(2), "the browser's ends are closed", || {
        stuck.try_write(&piece).is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock)
    })
    .await;
    assert!(at.elapsed() < Duration::from_secs(2), "took {:?}", at.elapsed());
}

#[actix_web::test]
async fn a_disabled_account_loses_its_tunnels() {
    let door = Door::open().await;
    let (at, _) = echo().await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let mut stream = open(&door, &app, &cookie).await;
    // As another master does it: this one is not told.
    door.db.set_role_and_state(alice.id, Role::User, true).await.unwrap();
    assert!(closes_within(&mut stream, Duration::from_secs(2)).await);
}

#[actix_web::test]
async fn nothing_is_left_open() {
    let door = Door::open().await;
    let (at, seen) = echo().await;
    let (refusing, _) = canned("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let alice = door.person("alice", Role::User).await;
    let refused = door.app("alice", refusing);
    let no = door.app_cookie(&alice, &refused).await;
    let head = handshake(&door.host(&refused), &[("origin", &door.origin(&refused)), ("cookie", &no)]);
    send_raw(door.at, head.as_bytes()).await;
    let before = descriptors();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(door.at).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut stream).await.status, 403);
    }
    let app = door.app("alice", at);
    let yes = door.app_cookie(&alice, &app).await;
    let head = handshake(&door.host(&app), &[("origin", &door.origin(&app)), ("cookie", &yes)]);
    for i in 0..300 {
        let mut stream = TcpStream::connect(door.at).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        match i % 3 {
            // Gone before the answer, gone after it, gone with bytes on their way.
            0 => {}
            1 => drop(read_head(&mut stream).await),
            _ => {
                read_head(&mut stream).await;
                stream.write_all(&[0; 100_000]).await.unwrap();
            }
        }
    }
    eventually(Duration::from_secs(20), "descriptors are back", || descriptors() <= before + 2).await;
    eventually(Duration::from_secs(2), "no tunnel is open", || {
        door.proxy.counters.tunnels_open.load(Ordering::SeqCst) == 0 && seen.open.load(Ordering::SeqCst) == 0
    })
    .await;
}
