//! Disks between two hosts, on both kinds of host; what only one of them can show stands at the end.

use docklet_types::agent::Part;
use docklet_types::agent::disk::Control;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::size::Size;
use docklet_worker_host::fake::FakeHost;
use std::fs;
use std::time::Duration;

use crate::world::{World, carry, cluster, eventually};

/// The node as its new host plans it: what belongs to the network is the other's here, since both are one machine.
fn there(world: &World, node: &NodePlan) -> (VclusterPlan, NodePlan) {
    let (vcluster, mut nodes) = cluster(world, 0, 1);
    let moved = NodePlan { id: node.id, ..nodes.remove(0) };
    (vcluster, moved)
}

async fn part(from: &World, to: &World, node: &NodePlan, number: u64, part: Part, based: bool) -> Option<Control> {
    let target = to.host.take_disk(node.id, number, part).await.unwrap()?;
    let source = from.host.send_disk(node.id, number, part, based).await.unwrap();
    carry(source, target, None).await
}

/// Waits until nothing streams: the ends of a stream are let go of a moment after its last word.
async fn idle(from: &World, to: &World, node: &NodePlan, number: u64) {
    eventually("the streams are over", async || {
        let busy = |code: Option<String>| code.as_deref() == Some("move_busy");
        let taking = to.host.take_disk(node.id, number, Part::First).await.err().map(|e| e.code().to_owned());
        // Of another number: refused before anything is done, but not before it is seen whether somebody streams.
        let sending = from.host.send_disk(node.id, number + 1, Part::First, false).await.err();
        !busy(taking) && !busy(sending.map(|e| e.code().to_owned()))
    })
    .await;
}

/// A node is copied while it runs, stopped, copied once more, and starts elsewhere; nothing of it is left.
pub async fn a_node_moves(from: &World, to: &World) {
    let (vcluster, nodes) = cluster(from, 0, 1);
    let node = &nodes[0];
    from.bring_up(&vcluster, node).await;
    let (there, moved) = there(to, node);
    from.host.begin_move(node, 3).await.unwrap();
    to.host.begin_move(&moved, 3).await.unwrap();
    assert_eq!(from.host.observe().await.unwrap().nodes[&node.id].moving, Some(3));
    assert_eq!(part(from, to, node, 3, Part::First, false).await, Some(Control::Taken));
    idle(from, to, node, 3).await;
    // Taken once, it is not asked for again.
    assert!(to.host.take_disk(node.id, 3, Part::First).await.unwrap().is_none());
    let early = from.host.send_disk(node.id, 3, Part::Last, true).await;
    assert_eq!(early.err().unwrap().code(), "still_running");
    from.host.stop(node.id, Duration::from_secs(10)).await.unwrap();
    assert!(!to.host.observe().await.unwrap().nodes[&node.id].disk, "half a disk is none");
    assert_eq!(part(from, to, node, 3, Part::Last, true).await, Some(Control::Taken));
    let seen = to.host.observe().await.unwrap().nodes[&node.id].clone();
    assert!(seen.disk && seen.init_pid.is_none() && seen.moving == Some(3), "{seen:?}");
    // First down, then up: both hosts are one kernel here, where the node's cable and cgroup have one name.
    from.take_down(&vcluster, &nodes).await;
    from.assert_clean().await;
    to.bring_up(&there, &moved).await;
    to.host.end_move(node.id).await.unwrap();
    let seen = to.host.observe().await.unwrap().nodes[&node.id].clone();
    assert!(seen.ready && seen.moving.is_none(), "{seen:?}");
    to.take_down(&there, &[moved]).await;
    to.assert_clean().await;
}

/// A line that breaks leaves nothing that counts; the same move can be tried again, and one that is given up leaves nothing.
pub async fn a_broken_stream_is_no_disk(from: &World, to: &World) {
    let (vcluster, nodes) = cluster(from, 0, 1);
    let node = &nodes[0];
    from.make(&vcluster, node).await;
    assert_eq!(to.host.take_disk(node.id, 1, Part::Last).await.err().unwrap().code(), "move_not_begun");
    for world in [from, to] {
        world.host.begin_move(node, 1).await.unwrap();
    }
    let target = to.host.take_disk(node.id, 1, Part::Last).await.unwrap().unwrap();
    // Two masters at once: the second has to wait.
    assert_eq!(to.host.take_disk(node.id, 1, Part::Last).await.err().unwrap().code(), "move_busy");
    let source = from.host.send_disk(node.id, 1, Part::Last, false).await.unwrap();
    carry(source, target, Some(7)).await;
    eventually("the target lets go", async || {
        to.host.take_disk(node.id, 2, Part::Last).await.err().unwrap().code() == "move_not_begun"
    })
    .await;
    assert!(!to.host.observe().await.unwrap().nodes[&node.id].disk);
    eventually("it arrives after all", async || {
        let Ok(target) = to.host.take_disk(node.id, 1, Part::Last).await else { return false };
        let Ok(source) = from.host.send_disk(node.id, 1, Part::Last, false).await else { return false };
        carry(source, target.unwrap(), None).await == Some(Control::Taken)
    })
    .await;
    assert!(to.host.observe().await.unwrap().nodes[&node.id].disk);
    // Given up even so: the target's part goes, the source is as it was.
    to.host.remove_disk(node.id).await.unwrap();
    to.assert_clean().await;
    from.host.end_move(node.id).await.unwrap();
    from.bring_up(&vcluster, node).await;
    from.take_down(&vcluster, &nodes).await;
    from.assert_clean().await;
}

/// A stream that nobody carries ends with its node.
pub async fn removing_ends_what_is_under_way(from: &World, to: &World) {
    let (vcluster, nodes) = cluster(from, 0, 1);
    let node = &nodes[0];
    from.make(&vcluster, node).await;
    for world in [from, to] {
        world.host.begin_move(node, 1).await.unwrap();
    }
    let source = from.host.send_disk(node.id, 1, Part::First, false).await.unwrap();
    let target = to.host.take_disk(node.id, 1, Part::First).await.unwrap();
    let removed = tokio::time::timeout(Duration::from_secs(10), async {
        from.host.remove_disk(node.id).await.unwrap();
        to.host.remove_disk(node.id).await.unwrap();
    });
    removed.await.expect("it hangs");
    drop((source, target));
    from.take_down(&vcluster, &nodes).await;
    from.assert_clean().await;
    to.assert_clean().await;
}

macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_the_fake {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::fake::world(), &crate::fake::world()).await;
            })*
        }
        mod on_linux {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (from, _source) = crate::linux::world().await;
                let (to, _target) = crate::linux::world().await;
                super::$case(&from, &to).await;
            })*
        }
    };
}

on_both! {
    a_node_moves,
    a_broken_stream_is_no_disk,
    removing_ends_what_is_under_way,
}

#[tokio::test]
async fn what_the_fake_holds_arrives() {
    let (a, b) = (FakeHost::new(), FakeHost::new());
    let (from, to) = (crate::fake::world_of(&a), crate::fake::world_of(&b));
    let (vcluster, nodes) = cluster(&from, 0, 1);
    let node = &nodes[0];
    from.make(&vcluster, node).await;
    a.state().nodes.get_mut(&node.id).unwrap().content = vec![7; 200_000];
    for world in [&from, &to] {
        world.host.begin_move(node, 1).await.unwrap();
    }
    assert_eq!(part(&from, &to, node, 1, Part::Last, false).await, Some(Control::Taken));
    assert_eq!(b.state().nodes[&node.id].content, vec![7; 200_000]);
}

/// Files and owners are as they were, what changed between the copies too, and the limit holds: what was overwritten or
/// deleted can be used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_on_btrfs_arrives_whole_and_limited() {
    use std::os::unix::fs::{MetadataExt, chown};
    let (from, source) = crate::linux::world().await;
    let (to, target) = crate::linux::world().await;
    let (vcluster, nodes) = cluster(&from, 0, 1);
    let node = &nodes[0];
    from.make(&vcluster, node).await;
    let upper = source.paths.node_disk(node.id).join("upper");
    let owner = node.range.first_id() + 5;
    fs::write(upper.join("early"), vec![1; 60 << 20]).unwrap();
    chown(upper.join("early"), Some(owner), Some(owner)).unwrap();
    for world in [&from, &to] {
        world.host.begin_move(node, 9).await.unwrap();
    }
    assert_eq!(part(&from, &to, node, 9, Part::First, false).await, Some(Control::Taken));
    fs::write(upper.join("late"), "late").unwrap();
    fs::remove_file(upper.join("etc/hostname")).unwrap();
    idle(&from, &to, node, 9).await;
    assert_eq!(part(&from, &to, node, 9, Part::Last, true).await, Some(Control::Taken));
    let upper = target.paths.node_disk(node.id).join("upper");
    assert_eq!(fs::read(upper.join("early")).unwrap(), vec![1; 60 << 20]);
    assert_eq!(fs::metadata(upper.join("early")).unwrap().uid(), owner);
    assert_eq!(fs::read_to_string(upper.join("late")).unwrap(), "late");
    assert!(!upper.join("etc/hostname").exists());
    to.host.end_move(node.id).await.unwrap();
    // 256 MiB are the node's, of which 60 came with it.
    fs::write(upper.join("more"), vec![2; 100 << 20]).unwrap();
    let too_much = fs::write(upper.join("too much"), vec![3; 150 << 20])
        .and_then(|()| fs::File::open(upper.join("too much"))?.sync_all());
    assert!(too_much.is_err(), "the limit does not hold");
    for file in ["too much", "more", "early"] {
        fs::remove_file(upper.join(file)).unwrap();
    }
    eventually("what was deleted can be used again", async || {
        // btrfs gives room back when it next writes a transaction, which it does every half a minute by itself.
        std::process::Command::new("btrfs").args(["filesystem", "sync"]).arg(&upper).output().unwrap();
        let wrote = fs::write(upper.join("again"), vec![4; 200 << 20])
            .and_then(|()| fs::File::open(upper.join("again"))?.sync_all());
        fs::remove_file(upper.join("again")).unwrap();
        wrote.is_ok()
    })
    .await;
    to.host.remove_disk(node.id).await.unwrap();
    to.assert_clean().await;
    from.take_down(&vcluster, &nodes).await;
    from.assert_clean().await;
}

/// A disk that does not fit is refused, and leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_limit_does_not_come_in() {
    let (from, source) = crate::linux::world().await;
    let (to, _target) = crate::linux::world().await;
    let (vcluster, nodes) = cluster(&from, 0, 1);
    let node = &nodes[0];
    from.make(&vcluster, node).await;
    fs::write(source.paths.node_disk(node.id).join("upper/much"), vec![1; 240 << 20]).unwrap();
    from.host.begin_move(node, 1).await.unwrap();
    let small = NodePlan { size: Size::new(1.0, 256, 64).unwrap(), ..node.clone() };
    to.host.begin_move(&small, 1).await.unwrap();
    match part(&from, &to, node, 1, Part::Last, false).await {
        Some(Control::Failed(reason)) => assert_eq!(reason.code, "out_of_space", "{reason:?}"),
        other => panic!("{other:?}"),
    }
    assert!(!to.host.observe().await.unwrap().nodes[&node.id].disk);
    to.host.remove_disk(node.id).await.unwrap();
    to.assert_clean().await;
    from.take_down(&vcluster, &nodes).await;
    from.assert_clean().await;
}

/// Disks in a plain directory do not move.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_says_what_it_needs() {
    let (world, _linux) = crate::linux::world_with(crate::image::tiny, "directory").await;
    let (_, nodes) = cluster(&world, 0, 1);
    assert_eq!(world.host.begin_move(&nodes[0], 1).await.unwrap_err().code(), "move_needs_btrfs");
    world.assert_clean().await;
}
