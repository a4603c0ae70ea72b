//! What a node goes through when nothing goes wrong, and who may say what.

use std::time::Duration;

use docklet_store::Store;
use docklet_store::keys::Key;
use docklet_types::plan::NodePlan;
use docklet_types::report::{LimitKind, NodeState, Step};
use docklet_types::size::Size;
use docklet_types::spec::Wanted;
use docklet_worker::audit::audit;
use docklet_worker_host::Hits;
use docklet_worker_host::fake::Op;

use crate::site::{Site, eventually, node, node_id, vcluster};

#[tokio::test]
async fn created_stopped_started_deleted() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(3, Wanted::Running, 1).await;
    let report = site.reaches(1, NodeState::Ready, 1).await;
    site.all_reach(3, NodeState::Ready, 1).await;
    let steps: Vec<Step> = report.steps.iter().map(|s| s.step).collect();
    assert_eq!(steps, [Step::Image, Step::Disk, Step::Network, Step::Boot, Step::Ready]);
    assert!(report.steps.iter().all(|s| s.ended_at.is_some_and(|e| e >= s.started_at)));
    assert_eq!(report.init_pid, site.host.pid(node_id(1)));
    eventually("the share is reported", || async {
        site.vcluster_report().await.is_some_and(|r| r.present && r.generation == 1)
    })
    .await;

    site.plan(3, Wanted::Stopped, 2).await;
    site.all_reach(3, NodeState::Stopped, 2).await;
    assert!(site.host.running().is_empty() && site.host.fake.state().nodes.values().all(|n| n.disk));
    site.plan(3, Wanted::Running, 3).await;
    site.all_reach(3, NodeState::Ready, 3).await;

    site.plan(3, Wanted::Absent, 4).await;
    site.all_reach(3, NodeState::Absent, 4).await;
    eventually("the share is gone", || async {
        site.vcluster_report().await.is_some_and(|r| !r.present && r.generation == 4)
    })
    .await;
    assert!(site.host.is_empty());
    site.forget(3).await;
    eventually("no report is left", || async {
        site.store.list(&site.keys.reports_of(&site.name)).await.unwrap().entries.is_empty()
    })
    .await;
    worker.stop().await;
    assert!(site.store.list(&site.keys.reports_of(&site.name)).await.unwrap().entries.is_empty());
    site.host.assert_sound();
}

#[tokio::test]
async fn the_host_is_described_and_alive() {
    let site = Site::new();
    let worker = site.worker();
    assert!(worker.wait_started().await);
    for key in [Key::Host(site.name.clone()), Key::Alive(site.name.clone())] {
        let key = site.keys.write(&key);
        eventually("the key is there", || async { site.store.get(&key).await.unwrap().is_some() }).await;
    }
}

#[tokio::test]
async fn an_older_generation_is_refused() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(1, Wanted::Running, 5).await;
    site.reaches(1, NodeState::Ready, 5).await;
    site.plan_node(&node(1, Wanted::Absent, 4)).await;
    // Something newer of another node shows that the older one was read.
    site.plan_node(&node(2, Wanted::Running, 1)).await;
    site.reaches(2, NodeState::Ready, 1).await;
    assert!(site.host.pid(node_id(1)).is_some());
    assert_eq!(site.host.calls(Op::Stop), 0);
    // Also by the next run of the worker, which knows it from its own disk.
    worker.stop().await;
    let worker = site.worker();
    assert!(worker.wait_started().await);
    site.plan_node(&node(2, Wanted::Stopped, 2)).await;
    site.reaches(2, NodeState::Stopped, 2).await;
    assert!(site.host.pid(node_id(1)).is_some());
}

#[tokio::test]
async fn what_no_plan_names_is_left_alone() {
    let site = Site::new();
    let foreign = site.host.put_running(&node(9, Wanted::Running, 1), &vcluster(Wanted::Running, 1)).await;
    let _worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    site.reaches(1, NodeState::Ready, 1).await;
    // A plan that vanishes is no plan that says absent.
    site.forget(1).await;
    eventually("the report is gone", || async { site.report(1).await.is_none() }).await;
    let looks = site.host.calls(Op::Observe);
    eventually("it was looked at again", || async { site.host.calls(Op::Observe) > looks + 2 }).await;
    assert_eq!(site.host.pid(node_id(9)), Some(foreign));
    assert!(site.host.pid(node_id(1)).is_some());
    assert_eq!(site.host.calls(Op::Stop) + site.host.calls(Op::RemoveDisk), 0);

    let found = audit(&site.host, &site.store, &site.keys, &site.name, &site.paths().worker_state()).await.unwrap();
    assert_eq!(found.plans_from, "store");
    let owners: Vec<_> = found.findings.iter().filter_map(|f| f.owner.clone()).collect();
    assert!(owners.contains(&node_id(9).to_string()) && owners.contains(&node_id(1).to_string()), "{owners:?}");
}

#[tokio::test]
async fn the_audit_is_clean_while_all_has_a_plan_and_works_without_the_store() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(2, Wanted::Running, 1).await;
    site.all_reach(2, NodeState::Ready, 1).await;
    worker.stop().await;
    let look = || async {
        audit(&site.host, &site.store, &site.keys, &site.name, &site.paths().worker_state()).await.unwrap()
    };
    assert_eq!(look().await.findings, []);
    site.store.set_down(true);
    let found = look().await;
    assert_eq!((found.plans_from, found.findings.len()), ("local copy", 0));
}

#[tokio::test]
async fn a_higher_attempt_restarts_once() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    let first = site.reaches(1, NodeState::Ready, 1).await.init_pid;
    let mut again = node(1, Wanted::Running, 1);
    again.attempt = 1;
    site.plan_node(&again).await;
    eventually("it is another init", || async {
        site.report(1).await.is_some_and(|r| r.state == NodeState::Ready && r.attempt == 1 && r.init_pid != first)
    })
    .await;
    worker.stop().await;
    let worker = site.worker();
    assert!(worker.wait_started().await);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(site.host.calls(Op::Start), 2);
}

#[tokio::test]
async fn a_node_waits_for_its_vcluster() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan_node(&node(1, Wanted::Running, 1)).await;
    site.reaches(1, NodeState::Starting, 1).await;
    site.plan_vcluster(&vcluster(Wanted::Running, 1)).await;
    site.reaches(1, NodeState::Ready, 1).await;
}

/// Booted ahead and frozen, then asked for with another size; and asked for while it still boots.
#[tokio::test]
async fn a_node_that_was_booted_ahead_is_taken_over() {
    let site = Site::new();
    let _worker = site.worker();
    site.plan_vcluster(&vcluster(Wanted::Running, 1)).await;
    let warm = NodePlan { frozen: true, ..node(1, Wanted::Running, 1) };
    site.plan_node(&warm).await;
    site.reaches(1, NodeState::Frozen, 1).await;
    let pid = site.report(1).await.unwrap().init_pid;
    let size = Size::new(0.5, 128, 64).unwrap();
    site.plan_node(&NodePlan { generation: 2, frozen: false, size, ..warm }).await;
    site.reaches(1, NodeState::Ready, 2).await;
    let report = site.report(1).await.unwrap();
    assert_eq!(report.init_pid, pid);
    assert_eq!(report.steps.iter().map(|s| s.step).collect::<Vec<_>>(), [Step::Thaw]);
    assert_eq!(site.host.fake.state().nodes[&node_id(1)].size, Some(size));

    site.host.hang(Op::WaitReady);
    let early = NodePlan { frozen: true, ..node(2, Wanted::Running, 1) };
    site.plan_node(&early).await;
    eventually("it boots", || async { site.host.stuck() > 0 }).await;
    site.plan_node(&NodePlan { generation: 2, frozen: false, ..early }).await;
    eventually("it still boots, under its new plan", || async { site.host.stuck() > 1 }).await;
    site.host.mend();
    site.reaches(2, NodeState::Ready, 2).await;
    assert_eq!((site.host.calls(Op::Start), site.host.calls(Op::Freeze)), (2, 1), "it was never frozen");
}

#[tokio::test]
async fn a_restart_adopts_what_runs() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(5, Wanted::Running, 1).await;
    site.all_reach(5, NodeState::Ready, 1).await;
    let before = site.host.running();
    let steps = site.report(1).await.unwrap().steps;
    // As kill -9 does.
    drop(worker);
    let worker = site.worker();
    assert!(worker.wait_started().await);
    site.plan(5, Wanted::Running, 2).await;
    site.all_reach(5, NodeState::Ready, 2).await;
    assert_eq!(site.host.calls(Op::Start), 5);
    assert_eq!(before, site.host.running());
    assert_eq!(site.report(1).await.unwrap().steps, steps, "what was measured is not lost");
}

#[tokio::test]
async fn limits_that_a_node_runs_into_are_told_and_not_told_as_new_again() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(2, Wanted::Running, 1).await;
    site.all_reach(2, NodeState::Ready, 1).await;
    let hit = |memory, disk_full| {
        let mut state = site.host.fake.state();
        state.nodes.get_mut(&node_id(1)).unwrap().hits = Hits { memory, processes: 0, disk_full };
    };
    let told = || async { site.report(1).await.unwrap().limits_hit };
    hit(2, true);
    eventually("both are told", || async { told().await.len() == 2 }).await;
    let first = told().await;
    assert_eq!((first[0].limit, first[0].times), (LimitKind::Memory, 2));
    assert!(site.report(2).await.unwrap().limits_hit.is_empty(), "only of that node");
    // Another worker has not seen it happen, and does not say that it just did.
    worker.stop().await;
    let worker = site.worker();
    assert!(worker.wait_started().await);
    hit(2, false);
    eventually("there is room again", || async { told().await.len() == 1 }).await;
    assert_eq!(told().await, first[..1]);
    // Another start begins anew.
    site.plan(2, Wanted::Stopped, 2).await;
    site.all_reach(2, NodeState::Stopped, 2).await;
    site.plan(2, Wanted::Running, 3).await;
    site.all_reach(2, NodeState::Ready, 3).await;
    assert!(told().await.is_empty());
    worker.stop().await;
}
