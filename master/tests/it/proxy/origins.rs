//! The sign-in of an app's origin, and whose pages may use it.

use docklet_types::time::Micros;
use docklet_types::view::Role;

use super::Door;
use super::client::exchange;
use super::upstreams::{OK, canned};

const PAGE: (&str, &str) = ("accept", "text/html");

#[actix_web::test]
async fn a_page_without_a_cookie_comes_back_with_one() {
    let door = Door::open().await;
    let (at, _) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, portal) = (door.host(&app), door.portal_host());
    let first = door.get(&host, "/lab?x=1&y=%20", &[PAGE]).await;
    let encoded = host.replace('-', "%2D").replace('.', "%2E").replace(':', "%3A");
    let open = format!("/apps/open?host={encoded}&next=%2Flab%3Fx%3D1%26y%3D%2520");
    assert_eq!((first.status, first.header("location")), (303, Some(format!("http://{portal}{open}").as_str())));
    assert_eq!(first.header("cache-control"), Some("no-store"));

    // Signed out of the portal too: sign in first, and then go on.
    let signed_out = door.get(&portal, &open, &[PAGE]).await;
    let to = signed_out.header("location").unwrap();
    assert!(
        signed_out.status == 303 && to.starts_with(&format!("http://{portal}/sign-in?next=%2Fapps%2Fopen%3Fhost%3D")),
        "{to}"
    );

    let opened = door.get(&portal, &open, &[PAGE, ("cookie", &alice.cookie())]).await;
    let to = opened.header("location").unwrap().to_owned();
    let path = to.strip_prefix(&format!("http://{host}")).unwrap();
    assert!(path.starts_with("/.docklet/open?ticket="), "{path}");
    assert_eq!(opened.header("referrer-policy"), Some("no-referrer"));
    let redeemed = door.get(&host, path, &[PAGE]).await;
    assert_eq!((redeemed.status, redeemed.header("location")), (303, Some("/lab?x=1&y=%20")));
    let cookie = redeemed.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("docklet_app=")
            && cookie.contains("HttpOnly")
            && cookie.contains("SameSite=Lax")
            && cookie.contains("Path=/"),
        "{cookie}"
    );
    assert!(!cookie.contains("Domain"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    assert_eq!(door.get(&host, "/lab", &[PAGE, ("cookie", pair)]).await.status, 200);
    // Behind another cookie of the same name that a sibling's page has set.
    assert_eq!(door.get(&host, "/lab", &[PAGE, ("cookie", &format!("docklet_app=tossed; {pair}"))]).await.status, 200);
}

#[actix_web::test]
async fn a_ticket_is_good_once_for_one_host_for_a_moment() {
    let door = Door::open().await;
    let (at, _) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let host = door.host(&app);
    let ticket = |token: String| format!("/.docklet/open?ticket={token}&next=%2F");
    let issue = || async {
        ticket(door.sessions.issue_app_ticket(&alice.session, &app.label()).await.unwrap().reveal().to_owned())
    };

    let path = issue().await;
    assert_eq!(door.get(&host, &path, &[]).await.status, 303);
    assert_eq!(door.get(&host, &path, &[]).await.status, 403, "used twice");
    let other = host.replace("8888--", "8889--");
    assert_eq!(door.get(&other, &issue().await, &[]).await.status, 403, "used for another host");
    assert_eq!(door.get(&host, &ticket("guessed".into()), &[]).await.status, 403);
    assert_eq!(door.get(&host, "/.docklet/open", &[]).await.status, 403);

    let (old, hash) = ("expired", docklet_master::auth::token::TokenHash::of("expired"));
    let kind = docklet_master_db::app_tokens::AppTokenKind::Ticket;
    door.db
        .add_app_token(kind, hash.as_str(), alice.session.as_str(), &app.label(), Micros::now().plus_seconds(-1))
        .await
        .unwrap();
    assert_eq!(door.get(&host, &ticket(old.into()), &[]).await.status, 403, "used too late");

    // Of two at once, one gets in.
    let path = issue().await;
    let both = futures::future::join_all((0..8).map(|_| door.get(&host, &path, &[]))).await;
    assert_eq!(both.iter().filter(|reply| reply.status == 303).count(), 1);

    let path = issue().await;
    door.sessions.end(&alice.session).await.unwrap();
    assert_ne!(door.get(&host, &path, &[]).await.status, 303, "used after signing out");
}

#[actix_web::test]
async fn nothing_leads_to_another_site() {
    let door = Door::open().await;
    let (at, _) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    for next in [
        "%2F%2Fevil.example",
        "http%3A%2F%2Fevil.example",
        "%2F%5Cevil.example",
        "%2F%0Aevil",
        "evil",
        "%2F.docklet%2Fopen%3Fticket%3Dx",
    ] {
        let open = format!("/apps/open?host={}&next={next}", door.host(&app));
        assert_eq!(door.get(&door.portal_host(), &open, &[("cookie", &alice.cookie())]).await.status, 422, "{next}");
        let token = door.sessions.issue_app_ticket(&alice.session, &app.label()).await.unwrap();
        let redeemed =
            door.get(&door.host(&app), &format!("/.docklet/open?ticket={}&next={next}", token.reveal()), &[]).await;
        assert_eq!((redeemed.status, redeemed.header("location")), (303, Some("/")), "{next}");
    }
    for host in [
        "evil.example",
        "8888--node1--demo--alice.evil.example",
        "8888--node1--demo--alice.localhost.evil.example",
        "8888--node1--demo--alice.localhost%40evil.example",
        "",
    ] {
        let reply = door
            .get(&door.portal_host(), &format!("/apps/open?host={host}&next=%2F"), &[("cookie", &alice.cookie())])
            .await;
        assert_eq!(reply.status, 404, "{host}");
    }
    // A port that is not ours is not kept.
    let reply = door
        .get(
            &door.portal_host(),
            "/apps/open?host=8888--node1--demo--alice.localhost:1&next=%2F",
            &[("cookie", &alice.cookie())],
        )
        .await;
    assert!(reply.header("location").unwrap().starts_with(&format!("{}/", door.origin(&app))));
}

#[actix_web::test]
async fn only_opening_a_page_is_led_to_the_sign_in() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let app = door.app("alice", at);
    let host = door.host(&app);
    assert_eq!(door.get(&host, "/api", &[]).await.status, 401);
    assert_eq!(door.get(&host, "/x.js", &[("accept", "text/html"), ("sec-fetch-mode", "no-cors")]).await.status, 401);
    assert_eq!(door.get(&host, "/", &[("sec-fetch-mode", "navigate")]).await.status, 303);
    let post = exchange(door.at, "POST", &host, "/form", &[PAGE], b"a=b").await;
    assert_eq!((post.status, post.header("location")), (401, None));
    assert_eq!(seen.requests(), 0);
}

#[actix_web::test]
async fn other_peoples_pages_cannot_use_a_visitors_cookie() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let (host, own) = (door.host(&app), door.origin(&app));
    let cookie = door.app_cookie(&alice, &app).await;
    let sibling = own.replace("8888--", "3000--");
    let stranger = own.replace("--alice", "--bob");
    let portal = format!("http://{}", door.portal_host());
    for (method, headers, allowed) in [
        ("POST", vec![("origin", own.as_str())], true),
        ("POST", vec![("origin", sibling.as_str())], true),
        ("POST", vec![("origin", stranger.as_str())], false),
        ("POST", vec![("origin", portal.as_str())], false),
        ("POST", vec![("origin", "null")], false),
        ("POST", vec![], true),
        ("POST", vec![("sec-fetch-site", "same-site"), ("sec-fetch-mode", "navigate")], false),
        ("GET", vec![("origin", stranger.as_str())], false),
        ("GET", vec![("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")], false),
        (
            "GET",
            vec![("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")],
            false,
        ),
        (
            "GET",
            vec![("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")],
            true,
        ),
        ("GET", vec![("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "cors")], true),
        ("GET", vec![("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], true),
        ("GET", vec![], true),
    ] {
        let before = seen.requests();
        let all = [headers.as_slice(), &[("cookie", cookie.as_str())]].concat();
        let reply = exchange(door.at, method, &host, "/", &all, b"").await;
        let expected = if allowed { (200, before + 1) } else { (403, before) };
        assert_eq!((reply.status, seen.requests()), expected, "{method} {headers:?}");
    }
}

#[actix_web::test]
async fn our_own_paths_are_never_the_apps() {
    let door = Door::open().await;
    let (at, seen) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    for path in ["/.docklet/", "/.docklet/other", "/.docklet/open/x"] {
        assert_eq!(door.get(&door.host(&app), path, &[("cookie", &cookie)]).await.status, 404, "{path}");
    }
    assert_eq!(seen.requests(), 0);
}

#[actix_web::test]
async fn no_secret_is_stored() {
    let door = Door::open().await;
    let (at, _) = canned(OK).await;
    let alice = door.person("alice", Role::User).await;
    let app = door.app("alice", at);
    let cookie = door.app_cookie(&alice, &app).await;
    let secret = cookie.split_once('=').unwrap().1;
    door.db.close().await;
    for file in std::fs::read_dir(door._directory.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for secret in [secret, &alice.token] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()));
        }
    }
}
