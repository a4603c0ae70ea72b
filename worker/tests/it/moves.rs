//! Both sides of a move, and a host that comes back after it was given up for lost.

use docklet_store::keys::Key;
use docklet_store::{Store, Txn};
use docklet_types::moves::Lost;
use docklet_types::plan::{Moving, NodePlan, Side};
use docklet_types::report::NodeState;
use docklet_types::spec::Wanted;
use docklet_types::time::Micros;
use docklet_worker_host::fake::Op;

use crate::site::{Site, eventually, node, node_id};

fn moving(side: Side) -> Option<Moving> {
    Some(Moving { number: 5, side })
}

#[tokio::test]
async fn a_source_makes_ready_without_a_pause_and_goes_on_if_it_came_to_nothing() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(1, Wanted::Running, 1).await;
    let before = site.reaches(1, NodeState::Ready, 1).await;
    site.plan_node(&NodePlan { moving: moving(Side::Source), ..node(1, Wanted::Running, 2) }).await;
    let id = node_id(1);
    let number = || site.host.fake.state().nodes.get(&id).and_then(|n| n.moving.as_ref().map(|m| m.number));
    eventually("copies can be taken", async || number() == Some(5)).await;
    assert_eq!(site.reaches(1, NodeState::Ready, 2).await.init_pid, before.init_pid);
    // Stopped for the last copy, it keeps its disk.
    site.plan_node(&NodePlan { moving: moving(Side::Source), ..node(1, Wanted::Stopped, 3) }).await;
    site.reaches(1, NodeState::Stopped, 3).await;
    assert!(site.host.fake.state().nodes[&id].disk);
    assert_eq!(site.host.fake.calls(Op::Exec), 1, "the hook was asked for once");
    site.plan_node(&node(1, Wanted::Running, 4)).await;
    site.reaches(1, NodeState::Ready, 4).await;
    eventually("the copies are gone", async || number().is_none()).await;
    assert_eq!(site.host.fake.calls(Op::Exec), 2, "and the other one when it was up again");
    worker.stop().await;
    site.host.assert_sound();
}

#[tokio::test]
async fn a_target_starts_nothing_before_it_is_the_nodes_place() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(0, Wanted::Running, 1).await;
    site.plan_node(&NodePlan { moving: moving(Side::Target), ..node(1, Wanted::Stopped, 2) }).await;
    site.reaches(1, NodeState::Stopped, 2).await;
    let id = node_id(1);
    eventually("it takes the disk", async || site.host.fake.state().nodes.get(&id).is_some_and(|n| n.moving.is_some()))
        .await;
    assert_eq!(site.host.fake.calls(Op::Start), 0);
    // It came to nothing.
    site.plan_node(&NodePlan { moving: moving(Side::Target), ..node(1, Wanted::Absent, 3) }).await;
    site.reaches(1, NodeState::Absent, 3).await;
    assert!(site.host.fake.state().nodes.is_empty());
    worker.stop().await;
    site.host.assert_sound();
}

#[tokio::test]
async fn a_lost_host_removes_everything_whatever_it_was_planned_to_do() {
    let site = Site::new();
    let worker = site.worker();
    site.plan(3, Wanted::Running, 1).await;
    site.all_reach(3, NodeState::Ready, 1).await;
    worker.stop().await;
    // One plan was taken away meanwhile, one says that its node goes, one is as it was.
    let mut txn = Txn::new().delete(site.keys.write(&Key::NodePlan(site.name.clone(), node_id(1))));
    let lost = Lost { number: 7, actor: "root".parse().unwrap(), at: Micros::now() };
    txn = txn.put(site.keys.write(&Key::Lost(site.name.clone())), &lost).unwrap();
    site.store.txn(txn).await.unwrap();
    site.plan_node(&node(2, Wanted::Absent, 2)).await;
    let starts = site.host.fake.calls(Op::Start);
    let worker = site.worker();
    let cleared = site.keys.write(&Key::Cleared(site.name.clone()));
    eventually("it says that it is empty", async || {
        site.store.get(&cleared).await.unwrap().is_some_and(|e| e.value == b"7")
    })
    .await;
    assert!(site.host.fake.state().nodes.is_empty() && site.host.fake.state().vclusters.is_empty());
    assert_eq!(site.host.fake.calls(Op::Start), starts, "nothing was started");
    // The word is taken back: it is a host like any other.
    site.store.txn(Txn::new().delete(site.keys.write(&Key::Lost(site.name.clone())))).await.unwrap();
    site.reaches(3, NodeState::Ready, 1).await;
    eventually("the answer goes with the word", async || site.store.get(&cleared).await.unwrap().is_none()).await;
    worker.stop().await;
    site.host.assert_sound();
}
