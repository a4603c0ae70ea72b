//! What only the fake has: failures on order, and a machine that reboots.

use docklet_types::image::ImageRef;
use docklet_worker_host::fake::{FakeHost, Op};
use docklet_worker_host::{Containers, Disks, HostError, Machine};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::world::{World, cluster};

fn image() -> ImageRef {
    ImageRef { name: "tiny".parse().unwrap(), digest: format!("sha256:{}", "1".repeat(64)).parse().unwrap() }
}

pub fn world() -> World {
    world_of(&FakeHost::new())
}

pub fn world_of(host: &FakeHost) -> World {
    let image = image();
    host.state().available = Some(BTreeSet::from([image.digest.clone()]));
    let again = host.clone();
    World {
        host: Arc::new(host.clone()),
        image,
        net: "172.30.0.0/20".parse().unwrap(),
        restarted: Box::new(move || Arc::new(again.clone())),
        end: None,
    }
}

#[tokio::test]
async fn failures_come_when_ordered_and_as_often() {
    let host = FakeHost::new();
    let world = world_of(&host);
    let (vcluster, nodes) = cluster(&world, 0, 2);
    host.fail_node(Op::EnsureDisk, nodes[1].id, 1, HostError::new("out_of_space", "full"));
    host.ensure_disk(&nodes[0], &vcluster).await.unwrap();
    assert_eq!(host.ensure_disk(&nodes[1], &vcluster).await.unwrap_err().code(), "out_of_space");
    host.ensure_disk(&nodes[1], &vcluster).await.unwrap();
    assert_eq!(host.calls(Op::EnsureDisk), 3);
    host.fail(Op::Observe, u64::MAX, HostError::new("host_failed", "no"));
    assert!(host.observe().await.is_err());
    assert!(host.observe().await.is_err());
    host.heal();
    assert_eq!(host.observe().await.unwrap().nodes.len(), 2);
}

#[tokio::test]
async fn a_slow_boot_is_one_that_failed() {
    let host = FakeHost::new();
    let world = world_of(&host);
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.make(&vcluster, &nodes[0]).await;
    host.delay(Op::WaitReady, Duration::from_secs(120));
    host.start(&nodes[0], &vcluster).await.unwrap();
    let error = host.wait_ready(nodes[0].id, Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.code(), "not_ready");
    assert!(error.0.log.unwrap().contains("boots"));
}

#[tokio::test]
async fn a_start_that_was_cut_off_goes() {
    let host = FakeHost::new();
    let world = world_of(&host);
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.make(&vcluster, &nodes[0]).await;
    host.cut_start(nodes[0].id);
    assert_eq!(host.start(&nodes[0], &vcluster).await.unwrap_err().code(), "helper_failed");
    crate::cases::what_was_cut_off_goes(&world, &host, &vcluster, &nodes[0]).await;
    // A start makes an end of it as well.
    world.make(&vcluster, &nodes[0]).await;
    host.cut_start(nodes[0].id);
    host.start(&nodes[0], &vcluster).await.unwrap_err();
    world.bring_up(&vcluster, &nodes[0]).await;
    assert!(!host.observe().await.unwrap().nodes[&nodes[0].id].unsettled);
}

#[tokio::test]
async fn a_reboot_leaves_the_disks() {
    let host = FakeHost::new();
    let world = world_of(&host);
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.bring_up(&vcluster, &nodes[0]).await;
    host.reboot();
    let seen = host.observe().await.unwrap();
    let node = &seen.nodes[&nodes[0].id];
    assert!(node.disk && !node.port && node.init_pid.is_none());
    assert!(!seen.vclusters[&vcluster.id].bridge);
}
