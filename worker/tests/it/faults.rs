//! What a worker makes of hosts that fail and hang, of a store that is away, and of its own death.

use std::time::{Duration, Instant};

use docklet_store::Store;
use docklet_store::keys::Key;
use docklet_types::host::{CheckOutcome, HostReport};
use docklet_types::report::NodeState;
use docklet_types::spec::Wanted;
use docklet_worker_host::fake::Op;

use crate::site::{Site, eventually, node, node_id, vcluster};

const STEPS: [Op; 6] = [Op::EnsureImage, Op::EnsureDisk, Op::EnsureVcluster, Op::EnsurePort, Op::Start, Op::WaitReady];

#[tokio::test]
async fn a_step_that_fails_once_is_only_a_delay() {
    let runs = STEPS.map(|step| async move {
        let site = Site::new();
        site.host.fail(step, 1, "passing");
        let _worker = site.worker();
        site.plan(2, Wanted::Running, 1).await;
        if step == Op::WaitReady {
            // Init runs but is not ready: said at once, and mended when it is seen ready.
            site.host.mend();
        }
        site.all_reach(2, NodeState::Ready, 1).await;
        site.host.assert_sound();
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn a_step_that_keeps_failing_ends_failed_with_the_reason_and_can_be_retried() {
    let runs = STEPS.map(|step| async move {
        let site = Site::new();
        site.host.fail(step, u64::MAX, "broken_for_good");
        let _worker = site.worker();
        site.plan(2, Wanted::Running, 1).await;
        let report = site.reaches(1, NodeState::Failed, 1).await;
        assert_eq!(report.reason.unwrap().code, "broken_for_good", "{step:?}");
        site.host.mend();
        for n in 1..=2 {
            let mut again = node(n, Wanted::Running, 2);
            again.attempt = 1;
            site.plan_node(&again).await;
        }
        site.all_reach(2, NodeState::Ready, 2).await;
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn whatever_failed_a_deletion_leaves_nothing() {
    let runs = STEPS.map(|step| async move {
        let site = Site::new();
        site.host.fail(step, u64::MAX, "out_of_space");
        let _worker = site.worker();
        site.plan(2, Wanted::Running, 1).await;
        site.reaches(1, NodeState::Failed, 1).await;
        site.plan(2, Wanted::Absent, 2).await;
        site.all_reach(2, NodeState::Absent, 2).await;
        eventually("nothing is left", || async { site.host.is_empty() }).await;
        site.host.assert_sound();
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn a_deletion_interrupts_whatever_hangs() {
    // Only waiting can be given up; the others end when they end.
    let runs = STEPS.map(|step| async move {
        let site = Site::new();
        site.host.hang(step);
        let _worker = site.worker();
        site.plan(2, Wanted::Running, 1).await;
        eventually("it hangs", || async { site.host.stuck() > 0 }).await;
        let began = Instant::now();
        site.plan(2, Wanted::Absent, 2).await;
        if !matches!(step, Op::WaitReady | Op::EnsureImage) {
            tokio::time::sleep(Duration::from_millis(30)).await;
            site.host.mend();
        }
        site.all_reach(2, NodeState::Absent, 2).await;
        // Well before anything would have timed out by itself.
        assert!(began.elapsed() < Duration::from_secs(10), "{step:?}: {:?}", began.elapsed());
        eventually("nothing is left", || async { site.host.is_empty() }).await;
        site.host.assert_sound();
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn removing_is_tried_until_it_works() {
    let runs = [Op::Stop, Op::RemovePort, Op::RemoveDisk, Op::RemoveVcluster].map(|step| async move {
        let site = Site::new();
        let _worker = site.worker();
        site.plan(1, Wanted::Running, 1).await;
        site.reaches(1, NodeState::Ready, 1).await;
        site.host.fail(step, 2, "busy");
        site.plan(1, Wanted::Absent, 2).await;
        if step != Op::RemoveVcluster {
            let report = site.reaches(1, NodeState::Failed, 2).await;
            assert_eq!(report.reason.unwrap().code, "busy");
        }
        site.reaches(1, NodeState::Absent, 2).await;
        eventually("nothing is left", || async { site.host.is_empty() }).await;
    });
    futures::future::join_all(runs).await;
}

#[tokio::test]
async fn one_node_that_fails_does_not_stop_the_others() {
    let site = Site::new();
    site.host.fail(Op::EnsureDisk, 1, "out_of_space");
    let _worker = site.worker();
    site.plan(8, Wanted::Running, 1).await;
    eventually("seven are up and one is not", || async {
        let mut states = Vec::new();
        for n in 1..=8 {
            states.push(site.report(n).await.map(|r| r.state));
        }
        let count = |s| states.iter().filter(|x| **x == Some(s)).count();
        count(NodeState::Ready) == 7 && count(NodeState::Failed) == 1
    })
    .await;
}

#[tokio::test]
async fn a_node_that_hangs_does_not_hold_up_the_others() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    site.reaches(1, NodeState::Ready, 1).await;
    site.host.hang(Op::WaitReady);
    for n in 2..=60 {
        site.plan_node(&node(n, Wanted::Running, 1)).await;
    }
    eventually("more than may boot at once were started", || async { site.host.calls(Op::Start) == 60 }).await;
    site.plan_node(&node(1, Wanted::Stopped, 2)).await;
    site.reaches(1, NodeState::Stopped, 2).await;
}

#[tokio::test]
async fn an_init_that_ends_is_started_again_and_a_crash_loop_is_failed() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    let first = site.reaches(1, NodeState::Ready, 1).await.init_pid;
    site.host.fake.kill(node_id(1));
    let report = site.reaches(1, NodeState::Starting, 1).await;
    assert_eq!(report.reason.unwrap().code, "init_ended");
    let second = site.reaches(1, NodeState::Ready, 1).await.init_pid;
    assert_ne!(first, second);
    for _ in 0..2 {
        site.reaches(1, NodeState::Ready, 1).await;
        site.host.fake.kill(node_id(1));
        eventually("it was noticed", || async { site.report(1).await.is_some_and(|r| r.state != NodeState::Ready) })
            .await;
    }
    let report = site.reaches(1, NodeState::Failed, 1).await;
    assert_eq!(report.reason.unwrap().code, "init_ended");
}

#[tokio::test]
async fn a_host_that_fails_its_check_says_so_and_heals() {
    let site = Site::new();
    site.host.set_unfit(true);
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    let report = site.reaches(1, NodeState::Failed, 1).await;
    let reason = report.reason.unwrap();
    assert_eq!(reason.code, "host_check_failed");
    assert!(reason.message.contains("the kernel is what it is"), "{}", reason.message);
    assert_eq!(site.host.calls(Op::Start), 0);
    site.host.set_unfit(false);
    site.reaches(1, NodeState::Ready, 1).await;
}

#[tokio::test]
async fn a_shared_directory_that_hangs_is_reported_and_what_waited_for_it_goes_on() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    site.reaches(1, NodeState::Ready, 1).await;
    let pid = site.host.pid(node_id(1));
    site.host.fake.state().share_hangs = true;
    let failed = || async {
        let entry = site.store.get(&site.keys.write(&Key::Host(site.name.clone()))).await.unwrap().unwrap();
        let report: HostReport = serde_json::from_slice(&entry.value).unwrap();
        report.checks.iter().any(|c| c.name == "shared_directory" && c.outcome == CheckOutcome::Failed)
    };
    eventually("it is reported", &failed).await;
    site.plan(2, Wanted::Running, 2).await;
    let report = site.reaches(2, NodeState::Failed, 2).await;
    assert!(report.reason.unwrap().message.contains("shared_directory"));
    // What runs goes on, and can be stopped.
    assert_eq!(site.host.pid(node_id(1)), pid);
    site.plan_node(&node(1, Wanted::Stopped, 3)).await;
    site.reaches(1, NodeState::Stopped, 3).await;
    site.host.fake.state().share_hangs = false;
    site.reaches(2, NodeState::Ready, 2).await;
    assert!(!failed().await);
}

#[tokio::test]
async fn a_host_that_boots_without_the_store_follows_its_own_copy() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(3, Wanted::Running, 1).await;
    site.all_reach(3, NodeState::Ready, 1).await;
    site.plan_node(&node(3, Wanted::Stopped, 2)).await;
    site.reaches(3, NodeState::Stopped, 2).await;
    worker.stop().await;
    site.host.fake.reboot();
    site.store.set_down(true);
    let _worker = site.worker();
    eventually("what should run runs", || async {
        site.host.fake.state().nodes.values().filter(|n| n.ready).count() == 2
    })
    .await;
    assert!(site.host.pid(node_id(3)).is_none());
    site.store.set_down(false);
    eventually("it is told what runs now", || async {
        site.report(1).await.is_some_and(|r| r.init_pid == site.host.pid(node_id(1)))
    })
    .await;
}

#[tokio::test]
async fn without_the_store_nothing_stops_and_later_all_is_told() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan(2, Wanted::Running, 1).await;
    site.all_reach(2, NodeState::Ready, 1).await;
    site.store.set_down(true);
    site.host.fake.kill(node_id(1));
    let first = site.host.pid(node_id(2));
    eventually("it was started again", || async { site.host.is_ready(node_id(1)) }).await;
    assert_eq!(site.host.pid(node_id(2)), first);
    site.store.set_down(false);
    eventually("it was told", || async {
        site.report(1).await.is_some_and(|r| r.state == NodeState::Ready && r.init_pid == site.host.pid(node_id(1)))
    })
    .await;
    site.plan(2, Wanted::Absent, 2).await;
    site.all_reach(2, NodeState::Absent, 2).await;
}

#[tokio::test]
async fn a_store_that_lost_reports_gets_them_again() {
    use docklet_store::keys::Key;
    use docklet_store::{Store, Txn};
    let site = Site::new();
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    site.reaches(1, NodeState::Ready, 1).await;
    let key = site.keys.write(&Key::NodeReport(site.name.clone(), node_id(1)));
    let stray = site.keys.write(&Key::NodeReport(site.name.clone(), node_id(99)));
    site.store.txn(Txn::new().delete(key).put(stray, &"left by somebody").unwrap()).await.unwrap();
    site.reaches(1, NodeState::Ready, 1).await;
    eventually("the stray is gone", || async {
        site.store.list(&site.keys.reports_of(&site.name)).await.unwrap().entries.len() == 2
    })
    .await;
}

/// A start is cut off with its worker, or without it, and something of it goes on: whatever is asked for next, nothing but
/// that runs in the end.
#[tokio::test]
async fn a_start_that_was_cut_off_ends_as_planned() {
    let wishes = [
        (Wanted::Absent, NodeState::Absent),
        (Wanted::Stopped, NodeState::Stopped),
        (Wanted::Running, NodeState::Ready),
    ];
    let runs =
        wishes.into_iter().flat_map(|wish| [(wish, true), (wish, false)]).map(|((wanted, state), killed)| async move {
            let site = Site::new();
            let mut worker = site.worker();
            site.host.fake.cut_start(node_id(1));
            if killed {
                site.host.hang(Op::Start);
            }
            site.plan(1, Wanted::Running, 1).await;
            let cut = || async { site.host.fake.state().nodes.get(&node_id(1)).is_some_and(|n| n.unsettled) };
            eventually("it was cut off", &cut).await;
            if killed {
                drop(worker);
                site.host.mend();
                site.plan(1, wanted, 2).await;
                worker = site.worker();
            } else {
                site.plan(1, wanted, 2).await;
            }
            site.reaches(1, state, 2).await;
            assert!(!cut().await, "{wanted:?}, {killed}");
            assert_eq!(site.host.running().len(), usize::from(wanted == Wanted::Running));
            if wanted == Wanted::Absent {
                eventually("nothing is left", || async { site.host.is_empty() }).await;
            }
            site.host.assert_sound();
            worker.stop().await;
        });
    futures::future::join_all(runs).await;
}

/// What runs of a node of which nothing else is there goes without a plan, but not before the store has said that there is
/// none.
#[tokio::test]
async fn remains_of_a_removal_go_by_themselves() {
    let site = Site::new();
    let whole = site.host.put_running(&node(8, Wanted::Running, 1), &vcluster(Wanted::Running, 1)).await;
    site.host.fake.leave_remains(node_id(9));
    site.store.set_down(true);
    let _worker = site.worker();
    eventually("it was looked at a few times", || async { site.host.calls(Op::Observe) > 4 }).await;
    assert_eq!(site.host.calls(Op::Stop), 0);
    site.store.set_down(false);
    eventually("it is gone", || async { !site.host.fake.state().nodes.contains_key(&node_id(9)) }).await;
    assert_eq!((site.host.calls(Op::Stop), site.host.pid(node_id(8))), (1, Some(whole)));
    // As soon as it has come back, and again.
    site.host.fake.leave_remains(node_id(10));
    eventually("it is gone as well", || async { !site.host.fake.state().nodes.contains_key(&node_id(10)) }).await;
    site.host.assert_sound();
}

/// Kills the worker at a great many moments of changing plans; at the end the host is as planned and nobody was
/// started twice.
#[tokio::test]
async fn killed_at_any_moment_it_converges() {
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let site = Site::new();
    let mut generation = 0;
    for _ in 0..120 {
        let worker = site.worker();
        if next(3) > 0 {
            generation += 1;
            let wanted = [Wanted::Running, Wanted::Running, Wanted::Stopped, Wanted::Absent][next(4) as usize];
            site.plan(4, wanted, generation).await;
        }
        tokio::time::sleep(Duration::from_millis(next(25))).await;
        drop(worker);
    }
    let _worker = site.worker();
    generation += 1;
    site.plan(4, Wanted::Running, generation).await;
    site.all_reach(4, NodeState::Ready, generation).await;
    assert!(site.host.running().len() == 4 && (1..=4).all(|n| site.host.is_ready(node_id(n))));
    site.plan(4, Wanted::Absent, generation + 1).await;
    site.all_reach(4, NodeState::Absent, generation + 1).await;
    eventually("nothing is left", || async { site.host.is_empty() }).await;
    site.host.assert_sound();
}
