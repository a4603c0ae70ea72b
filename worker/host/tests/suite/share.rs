//! A shared directory that hangs, or is not the one that it should be. A pipe in the place of the marker hangs whoever
//! reads it, as a mount without its server does.

use docklet_types::host::{Check, CheckOutcome};
use docklet_types::paths::Paths;
use docklet_types::shared::Marker;
use docklet_worker_host::Machine;
use std::fs;
use std::time::{Duration, Instant};

use crate::linux::world;
use crate::world::{cluster, eventually};

async fn seen(host: &impl Machine) -> Check {
    host.watch().await.into_iter().find(|c| c.name == "shared_directory").unwrap()
}

/// Helpers of this test that ask for the directory.
fn asking() -> usize {
    let ours = format!(" {} ", std::process::id());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|p| {
            let read = |file: &str| fs::read_to_string(p.path().join(file)).unwrap_or_default();
            read("cmdline").starts_with("docklet-share") && read("stat").contains(&ours)
        })
        .count()
}

pub fn mark(paths: &Paths, cluster: &str) {
    fs::create_dir_all(paths.global()).unwrap();
    let marker = serde_json::to_vec(&Marker { cluster: cluster.parse().unwrap() }).unwrap();
    fs::write(paths.shared_marker(), marker).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_hangs_is_reported_and_holds_nothing_else_up() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 2);
    world.bring_up(&vcluster, &nodes[0]).await;
    world.make(&vcluster, &nodes[1]).await;
    let host = &world.host;
    let marker = linux.paths.shared_marker();
    fs::remove_file(&marker).unwrap();
    nix::unistd::mkfifo(&marker, nix::sys::stat::Mode::S_IRWXU).unwrap();

    let began = Instant::now();
    let check = seen(&linux.host).await;
    assert_eq!(check.outcome, CheckOutcome::Failed);
    assert!(check.message.contains("does not answer"), "{}", check.message);
    assert!(began.elapsed() < Duration::from_secs(10));
    // From here on everybody is told at once, and nobody else is sent to wait.
    let began = Instant::now();
    for _ in 0..3 {
        let error = host.start(&nodes[1], &vcluster).await.unwrap_err();
        assert_eq!(error.code(), "shared_directory");
        assert_eq!(seen(&linux.host).await.outcome, CheckOutcome::Failed);
    }
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(asking(), 1);

    // What runs can be used, looked at, stopped and removed.
    let out = host.exec(nodes[0].id, &["/sbin/init".to_owned(), "probe".to_owned()], "", Duration::from_secs(10)).await;
    assert_eq!(out.unwrap().unwrap().exit_code, 0);
    assert!(host.observe().await.unwrap().nodes[&nodes[0].id].ready);
    assert!(!host.inventory().await.unwrap().is_empty());
    host.stop(nodes[0].id, Duration::ZERO).await.unwrap();
    host.remove_port(nodes[0].id).await.unwrap();
    host.remove_disk(nodes[0].id).await.unwrap();

    // It answers again.
    let pipe = fs::OpenOptions::new().write(true).open(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    mark(&linux.paths, linux.cluster.as_str());
    drop(pipe);
    eventually("it is well", || async { seen(&linux.host).await.outcome == CheckOutcome::Ok }).await;
    assert_eq!(asking(), 0);
    host.start(&nodes[1], &vcluster).await.unwrap();
    world.take_down(&vcluster, &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_not_the_shared_one_takes_no_files() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.make(&vcluster, &nodes[0]).await;
    fs::remove_file(linux.paths.shared_marker()).unwrap();
    let check = seen(&linux.host).await;
    assert_eq!(check.outcome, CheckOutcome::Failed);
    assert!(check.message.contains("is not the directory that this cluster shares"), "{}", check.message);
    assert_eq!(world.host.start(&nodes[0], &vcluster).await.unwrap_err().code(), "shared_directory");
    assert!(!linux.paths.user_data(&vcluster.owner).exists());
    mark(&linux.paths, "another");
    let check = seen(&linux.host).await;
    assert!(check.message.contains("of the cluster another"), "{}", check.message);
    mark(&linux.paths, linux.cluster.as_str());
    world.host.start(&nodes[0], &vcluster).await.unwrap();
    world.take_down(&vcluster, &nodes).await;
}
