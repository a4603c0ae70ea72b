//! The database's promises: each on SQLite and on PostgreSQL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

use docklet_master_db::Db;
use docklet_master_db::app_tokens::AppTokenKind;
use docklet_master_db::idempotency::{ABANDONED_SECONDS, Claim, KEPT_SECONDS};
use docklet_master_db::operations::{NewOperation, Operation, Outcome};
use docklet_master_db::sessions::{NewSession, SessionKind};
use docklet_master_db::users::{CreateUserError, Theme, User};
use docklet_types::id::{OperationId, VclusterId};
use docklet_types::name::{UserName, VclusterName};
use docklet_types::report::{Reason, Step};
use docklet_types::time::Micros;
use docklet_types::view::{Role, StepView};
use std::collections::HashSet;
use support::postgres::Postgres;
use uuid::Uuid;

/// Makes of each function a test over a SQLite file, and of all together one over databases of a PostgreSQL server. They
/// get the database twice: as two masters have it.
macro_rules! promises {
    ($($name:ident,)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("master/docklet.db");
                super::$name(super::Db::open_file(&file).await.unwrap(), super::Db::open_file(&file).await.unwrap()).await;
            })*
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn on_postgresql() {
            let server = Postgres::start().await;
            $({
                println!("{}", stringify!($name));
                let url = server.database(stringify!($name));
                let (one, two) = (Db::open_url(&url).await.unwrap(), Db::open_url(&url).await.unwrap());
                $name(one.clone(), two.clone()).await;
                one.close().await;
                two.close().await;
            })*
        }
    };
}

promises! {
    blocks_of_ids_are_never_shared_and_never_used_again,
    a_name_is_taken_once,
    the_last_administrator_stays_one,
    two_administrators_cannot_end_each_other,
    sessions_end_by_time_by_word_and_with_their_account,
    an_app_ticket_is_good_once_for_one_host,
    its_clock_is_right_and_goes_on,
    an_idempotency_key_is_claimed_once,
    sites_share_accounts_and_nothing_else,
    a_claim_that_is_kept_is_not_abandoned,
    history_keeps_the_first_outcome_and_goes_with_its_owner,
    failures_are_counted_forgotten_and_purged,
    two_masters_do_not_stand_in_each_others_way,
}

fn name(base: &str) -> UserName {
    let tail = Uuid::new_v4().simple().to_string();
    format!("{base}{}", &tail[..8]).parse().unwrap()
}

fn now() -> Micros {
    Micros::now()
}

async fn user(db: &Db, base: &str, role: Role) -> User {
    db.create_user(&name(base), "hash", role, now()).await.unwrap()
}

async fn session(db: &Db, user: &User, lasts: i64) -> String {
    let hash = Uuid::new_v4().simple().to_string();
    let new = NewSession {
        hash: &hash,
        user: user.id,
        kind: SessionKind::Portal,
        created_at: now(),
        expires_at: now().plus_seconds(lasts),
        user_agent: "test",
        address: "127.0.0.1",
    };
    db.add_session(&new).await.unwrap();
    hash
}

async fn blocks_of_ids_are_never_shared_and_never_used_again(db: Db, other: Db) {
    let mut tasks = Vec::new();
    for n in 0..20 {
        let db = if n % 2 == 0 { db.clone() } else { other.clone() };
        tasks.push(tokio::spawn(async move { user(&db, "u", Role::User).await }));
    }
    let mut seen = HashSet::new();
    for task in tasks {
        let user = task.await.unwrap();
        assert!(seen.insert(user.range), "{:?} was given twice", user.range);
    }
    let gone = user(&db, "gone", Role::User).await;
    assert!(db.remove_user(gone.id, &gone.name).await.unwrap());
    let again = db.create_user(&gone.name, "hash", Role::User, now()).await.unwrap();
    assert!(!seen.contains(&again.range) && again.range != gone.range);
    assert_ne!(again.id, gone.id);
}

async fn a_name_is_taken_once(db: Db, other: Db) {
    let wanted = name("ada");
    let (one, two) = tokio::join!(
        db.create_user(&wanted, "h", Role::User, now()),
        other.create_user(&wanted, "h", Role::User, now())
    );
    let taken = [&one, &two].iter().filter(|r| matches!(r, Err(CreateUserError::Taken))).count();
    assert_eq!(taken, 1, "{one:?} {two:?}");
    assert_eq!(db.user_by_name(&wanted).await.unwrap().unwrap().theme, Theme::Auto);
}

async fn the_last_administrator_stays_one(db: Db, _: Db) {
    // Without any administrator there is none to lose.
    let ada = user(&db, "ada", Role::User).await;
    assert!(db.set_role_and_state(ada.id, Role::User, true).await.unwrap());
    let root = user(&db, "root", Role::Admin).await;
    assert!(!db.set_role_and_state(root.id, Role::User, false).await.unwrap());
    assert!(!db.set_role_and_state(root.id, Role::Admin, true).await.unwrap());
    let second = user(&db, "second", Role::Admin).await;
    assert!(db.set_role_and_state(root.id, Role::User, false).await.unwrap());
    assert!(!db.set_role_and_state(second.id, Role::User, false).await.unwrap());
    assert_eq!(db.user_by_name(&root.name).await.unwrap().unwrap().role, Role::User);
}

async fn two_administrators_cannot_end_each_other(db: Db, other: Db) {
    let (one, two) = (user(&db, "one", Role::Admin).await, user(&db, "two", Role::Admin).await);
    for round in 0..50 {
        let disable = |db: &Db, id| {
            let db = db.clone();
            tokio::spawn(async move { db.set_role_and_state(id, Role::Admin, true).await.unwrap() })
        };
        let (first, second) = (disable(&db, one.id), disable(&other, two.id));
        let done = [first.await.unwrap(), second.await.unwrap()];
        assert_eq!(done.iter().filter(|d| **d).count(), 1, "round {round}: {done:?}");
        for id in [one.id, two.id] {
            assert!(db.set_role_and_state(id, Role::Admin, false).await.unwrap());
        }
    }
}

async fn sessions_end_by_time_by_word_and_with_their_account(db: Db, _: Db) {
    let ada = user(&db, "ada", Role::User).await;
    let (good, old, other) = (session(&db, &ada, 60).await, session(&db, &ada, -1).await, session(&db, &ada, 60).await);
    assert_eq!(db.user_of_session(&good, now()).await.unwrap().unwrap().0.id, ada.id);
    assert!(db.user_of_session(&old, now()).await.unwrap().is_none());
    let live = db.live_sessions(&[good.clone(), old.clone(), other.clone(), "none".to_owned()], now()).await.unwrap();
    assert_eq!(live.into_iter().collect::<HashSet<_>>(), HashSet::from([good.clone(), other.clone()]));
    assert_eq!(db.sessions_of(ada.id, now()).await.unwrap().len(), 2);
    let gone: HashSet<String> = db.remove_sessions_of(ada.id, Some(&good)).await.unwrap().into_iter().collect();
    assert_eq!(gone, HashSet::from([old, other]));
    let admin = user(&db, "boss", Role::Admin).await;
    assert!(db.set_role_and_state(ada.id, Role::User, true).await.unwrap());
    assert!(db.user_of_session(&good, now()).await.unwrap().is_none(), "disabled");
    assert!(db.live_sessions(std::slice::from_ref(&good), now()).await.unwrap().is_empty());
    assert!(db.remove_session(&session(&db, &admin, 60).await).await.unwrap());
    assert!(!db.remove_session("none").await.unwrap());
}

async fn an_app_ticket_is_good_once_for_one_host(db: Db, other: Db) {
    let ada = user(&db, "ada", Role::User).await;
    let portal = session(&db, &ada, 60).await;
    let ticket = Uuid::new_v4().to_string();
    db.add_app_token(AppTokenKind::Ticket, &ticket, &portal, "host-a", now().plus_seconds(30)).await.unwrap();
    assert!(db.take_app_ticket(&ticket, "host-b", now()).await.unwrap().is_none());
    let (one, two) =
        tokio::join!(db.take_app_ticket(&ticket, "host-a", now()), other.take_app_ticket(&ticket, "host-a", now()));
    assert_eq!([one.unwrap(), two.unwrap()].into_iter().flatten().collect::<Vec<_>>(), std::slice::from_ref(&portal));
    let cookie = Uuid::new_v4().to_string();
    db.add_app_token(AppTokenKind::Cookie, &cookie, &portal, "host-a", now().plus_seconds(30)).await.unwrap();
    assert!(db.user_of_app_cookie(&cookie, "host-b", now()).await.unwrap().is_none());
    assert!(db.user_of_app_cookie(&cookie, "host-a", now().plus_seconds(31)).await.unwrap().is_none());
    assert_eq!(db.user_of_app_cookie(&cookie, "host-a", now()).await.unwrap().unwrap().1, portal);
    assert!(db.remove_session(&portal).await.unwrap());
    assert!(db.user_of_app_cookie(&cookie, "host-a", now()).await.unwrap().is_none(), "it goes with its session");
}

async fn its_clock_is_right_and_goes_on(db: Db, other: Db) {
    // Over a socket on this machine both have this machine's clock.
    let (before, told, then) = (now(), db.now().await.unwrap(), other.now().await.unwrap());
    let within = |at: Micros| at.millis_since(before) < 60_000 && before.millis_since(at) < 60_000;
    assert!(within(told) && then >= told, "{told:?} {then:?} at {before:?}");
    let hour = db.later(3600).now().await.unwrap();
    assert!((3_600_000..3_660_000).contains(&hour.millis_since(told)));
}

async fn an_idempotency_key_is_claimed_once(db: Db, other: Db) {
    let ada = user(&db, "ada", Role::User).await;
    let mut claims = Vec::new();
    for n in 0..10 {
        let (db, id) = (if n % 2 == 0 { db.clone() } else { other.clone() }, ada.id);
        claims.push(tokio::spawn(async move { db.claim_idempotent(id, "k", "f").await.unwrap() }));
    }
    let mut fresh = 0;
    for claim in claims {
        fresh += usize::from(claim.await.unwrap() == Claim::Fresh);
    }
    assert_eq!(fresh, 1);
    assert_eq!(db.claim_idempotent(ada.id, "k", "other").await.unwrap(), Claim::Mismatch);
    db.finish_idempotent(ada.id, "k", 202, "{}").await.unwrap();
    assert_eq!(
        db.claim_idempotent(ada.id, "k", "f").await.unwrap(),
        Claim::Done { status: 202, body: "{}".to_owned() }
    );
    assert_eq!(db.later(KEPT_SECONDS + 1).claim_idempotent(ada.id, "k", "f").await.unwrap(), Claim::Fresh);
    assert_eq!(db.claim_idempotent(ada.id, "failed", "f").await.unwrap(), Claim::Fresh);
    db.forget_idempotent(ada.id, "failed").await.unwrap();
    assert_eq!(db.claim_idempotent(ada.id, "failed", "g").await.unwrap(), Claim::Fresh);
    assert_eq!(other.later(5).claim_idempotent(ada.id, "failed", "g").await.unwrap(), Claim::Busy);
    let later = other.later(ABANDONED_SECONDS + 1);
    assert_eq!(later.claim_idempotent(ada.id, "failed", "g").await.unwrap(), Claim::Fresh, "its master died");
    let before = other.later(-3600);
    assert_eq!(before.claim_idempotent(ada.id, "failed", "g").await.unwrap(), Claim::Fresh, "the clock was put back");
}

async fn a_claim_that_is_kept_is_not_abandoned(db: Db, other: Db) {
    let ada = user(&db, "ada", Role::User).await;
    assert_eq!(db.claim_idempotent(ada.id, "k", "f").await.unwrap(), Claim::Fresh);
    for round in 1..5 {
        let then = round * ABANDONED_SECONDS;
        db.later(then).keep_claim(ada.id, "k").await.unwrap();
        // Some seconds before it would be free.
        let while_working = other.later(then + ABANDONED_SECONDS - 5);
        assert_eq!(while_working.claim_idempotent(ada.id, "k", "f").await.unwrap(), Claim::Busy);
    }
    db.finish_idempotent(ada.id, "k", 200, "{}").await.unwrap();
    // Too late: what is finished is not worked on.
    db.later(2 * KEPT_SECONDS).keep_claim(ada.id, "k").await.unwrap();
    assert_eq!(other.later(KEPT_SECONDS * 2).claim_idempotent(ada.id, "k", "f").await.unwrap(), Claim::Fresh);
}

async fn history_keeps_the_first_outcome_and_goes_with_its_owner(db: Db, other: Db) {
    let ada = user(&db, "ada", Role::User).await;
    let (id, vcluster) = (OperationId::from_uuid(Uuid::now_v7()), VclusterId::from_uuid(Uuid::now_v7()));
    let demo = "demo".parse().unwrap();
    let new = NewOperation {
        id,
        vcluster,
        owner: &ada.name,
        name: &demo,
        action: "create",
        actor: &ada.name,
        started_at: now(),
    };
    db.add_operation(&new).await.unwrap();
    assert!(db.running_operations().await.unwrap().iter().any(|o| o.id == id));
    let steps = [StepView { step: Step::Boot, done: 3, total: 3, started_millis: 12, millis: 400, finished: true }];
    let reason = Reason::new("no_room", "No room.");
    assert!(db.end_operation(id, Outcome::Failed, Some(&reason), &steps, now()).await.unwrap());
    assert!(!other.end_operation(id, Outcome::Done, None, &[], now()).await.unwrap());
    let row = db.operation(id).await.unwrap().unwrap();
    assert_eq!(
        (row.outcome.as_str(), row.reason.as_ref(), row.steps.as_slice()),
        ("failed", Some(&reason), steps.as_slice())
    );
    let view = row.view(now());
    assert!(view.ended_at.is_some() && view.action == "create");
    assert_eq!(db.operations_of_vcluster(vcluster, 10).await.unwrap().len(), 1);
    assert_eq!(db.recent_operations(Some(&ada.name), 10).await.unwrap().len(), 1);
    assert!(db.remove_user(ada.id, &ada.name).await.unwrap());
    assert!(db.operation(id).await.unwrap().is_none());
}

async fn failures_are_counted_forgotten_and_purged(db: Db, other: Db) {
    let key = Uuid::new_v4().to_string();
    let at = now();
    let day_ago = at.plus_seconds(-86_400);
    let mut counts = HashSet::new();
    for _ in 0..5 {
        let (one, two) = tokio::join!(db.count_failure(&key, at, day_ago), other.count_failure(&key, at, day_ago));
        counts.extend([one.unwrap(), two.unwrap()]);
    }
    assert_eq!(counts, (1..=10).collect(), "each failure counts once");
    db.lock_until(&key, at.plus_seconds(300)).await.unwrap();
    assert_eq!(db.lockout(&key).await.unwrap().locked_until, at.plus_seconds(300));
    let later = at.plus_seconds(90_000);
    assert_eq!(
        db.count_failure(&key, later, later.plus_seconds(-86_400)).await.unwrap(),
        1,
        "a day without one forgets"
    );
    db.clear_failures(&key).await.unwrap();
    assert_eq!(db.lockout(&key).await.unwrap().fails, 0);
    let ada = user(&db, "ada", Role::User).await;
    session(&db, &ada, -5).await;
    assert!(db.purge().await.unwrap() >= 1);
}

/// Signing in and out, applications' cookies, purges and removals of accounts, from two masters at once: none of it fails
/// for the other, by a deadlock, say.
async fn two_masters_do_not_stand_in_each_others_way(db: Db, other: Db) {
    let ada = user(&db, "ada", Role::User).await;
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let (db, ada) = (if n % 2 == 0 { db.clone() } else { other.clone() }, ada.clone());
            tokio::spawn(async move {
                for round in 0..15 {
                    let sessions = [session(&db, &ada, 60).await, session(&db, &ada, -1).await];
                    for hash in &sessions {
                        let token = Uuid::new_v4().to_string();
                        // Another has just ended all of the user's sessions: then there is nothing to hang it on.
                        let _ = db.add_app_token(AppTokenKind::Cookie, &token, hash, "h", now().plus_seconds(-1)).await;
                    }
                    match (n + round) % 4 {
                        0 => drop(db.remove_sessions_of(ada.id, None).await.unwrap()),
                        1 => drop(db.purge().await.unwrap()),
                        2 => drop(db.remove_session(&sessions[0]).await.unwrap()),
                        _ => {
                            let gone = user(&db, "gone", Role::User).await;
                            session(&db, &gone, 60).await;
                            assert!(db.remove_user(gone.id, &gone.name).await.unwrap());
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn masters_that_start_at_once_make_the_tables_once() {
    let server = Postgres::start().await;
    for round in 0..3 {
        let url = server.database(&format!("round{round}"));
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move { Db::open_url(&url).await.unwrap() })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        let ada = user(&all[0], "ada", Role::User).await;
        for db in all {
            assert_eq!(db.users().await.unwrap(), std::slice::from_ref(&ada));
            db.close().await;
        }
    }
}

#[tokio::test]
async fn a_database_is_opened_again_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("master/docklet.db");
    let db = Db::open_file(&file).await.unwrap();
    let ada = user(&db, "ada", Role::User).await;
    db.close().await;
    let db = Db::open_file(&file).await.unwrap();
    assert_eq!(db.users().await.unwrap(), [ada]);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path().join("master")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o700);
}

async fn sites_share_accounts_and_nothing_else(one: Db, two: Db) {
    let ada = user(&one, "ada", Role::User).await;
    let name: VclusterName = "demo".parse().unwrap();
    let operation = |id: u128| NewOperation {
        id: OperationId::from_uuid(Uuid::from_u128(id)),
        vcluster: VclusterId::from_uuid(Uuid::from_u128(7)),
        owner: &ada.name,
        name: &name,
        action: "create",
        actor: &ada.name,
        started_at: Micros::now(),
    };
    // From before there were sites.
    one.add_operation(&operation(1)).await.unwrap();
    let here = one.at_site(&"here".parse().unwrap()).await.unwrap();
    let there = two.at_site(&"there".parse().unwrap()).await.unwrap();
    assert_eq!(here.sites().await.unwrap(), ["here", "there"]);
    there.add_operation(&operation(2)).await.unwrap();
    there.note_presence(&ada.name).await.unwrap();
    // Again, as after a restart: nothing changes hands.
    let here = here.at_site(&"here".parse().unwrap()).await.unwrap();
    let ids = |operations: Vec<Operation>| operations.iter().map(|o| o.id.to_string()).collect::<Vec<_>>();
    for (site, its) in [(&here, 1), (&there, 2)] {
        let its = [OperationId::from_uuid(Uuid::from_u128(its)).to_string()];
        assert_eq!(ids(site.running_operations().await.unwrap()), its);
        assert_eq!(ids(site.operations_of_vcluster(operation(1).vcluster, 9).await.unwrap()), its);
        assert_eq!(ids(site.recent_operations(None, 9).await.unwrap()), its);
        assert_eq!(ids(site.recent_operations(Some(&ada.name), 9).await.unwrap()), its);
        assert_eq!(site.claim_idempotent(ada.id, "key", "print").await.unwrap(), Claim::Fresh);
        assert_eq!(site.claim_idempotent(ada.id, "key", "print").await.unwrap(), Claim::Busy);
    }
    here.finish_idempotent(ada.id, "key", 201, "here").await.unwrap();
    assert_eq!(there.claim_idempotent(ada.id, "key", "print").await.unwrap(), Claim::Busy);
    assert_eq!(here.leave_site(ada.id).await.unwrap(), ["there"]);
    here.note_presence(&ada.name).await.unwrap();
    assert_eq!(there.leave_site(ada.id).await.unwrap(), ["here"]);
    assert!(here.leave_site(ada.id).await.unwrap().is_empty());
    here.note_presence(&ada.name).await.unwrap();
    there.note_presence(&ada.name).await.unwrap();
    here.forget_site().await.unwrap();
    assert!(here.recent_operations(None, 9).await.unwrap().is_empty());
    assert_eq!(here.claim_idempotent(ada.id, "key", "print").await.unwrap(), Claim::Fresh);
    assert_eq!(there.recent_operations(None, 9).await.unwrap().len(), 1);
    assert_eq!(there.claim_idempotent(ada.id, "key", "print").await.unwrap(), Claim::Busy);
    assert_eq!(here.leave_site(ada.id).await.unwrap(), ["there"]);
}
