//! What root in a node may not do to the kernel and to its neighbours. Linux only.

use docklet_types::agent::ExecOutput;
use docklet_types::host::CheckOutcome;
use docklet_types::id::NodeId;
use docklet_types::size::Size;
use docklet_worker_host::linux::LinuxHost;
use docklet_worker_host::{Access, Containers, Disks, Hits, Machine};
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::linux::world;
use crate::world::{READY, cluster, eventually};

async fn sh(host: &LinuxHost, id: NodeId, script: &str) -> ExecOutput {
    host.exec(id, &["sh".to_owned(), "-c".to_owned(), script.to_owned()], "", READY)
        .await
        .unwrap()
        .expect("it ended in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn root_in_a_node_is_nobody_on_the_host() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let pid = world.bring_up(&vcluster, &nodes[0]).await;
    let (id, host) = (nodes[0].id, &linux.host);
    let first = vcluster.range.first_id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains(&format!("Uid:\t{first}\t{first}")), "{status}");
    assert!(status.contains("Seccomp:\t2"));
    assert!(status.contains("NoNewPrivs:\t0"), "sudo must work");
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &first.to_string(), "65536"]);

    // The same restrictions hold for a command as for what init starts.
    assert_eq!(
        sh(host, id, "cat /proc/self/status").await.stdout.lines().find(|l| l.starts_with("Seccomp:")).unwrap(),
        "Seccomp:\t2"
    );
    for (what, script) in [
        ("a nested user namespace", "unshare -U true"),
        ("a device", "mknod /tmp/sda b 8 0"),
        ("the host's settings", "echo 1 > /proc/sys/kernel/panic"),
        ("sysrq", "echo h > /proc/sysrq-trigger"),
        ("the kernel's log", "head -c1 /dev/kmsg"),
        ("the host's memory", "head -c1 /dev/mem"),
        ("the layers of its image", "echo x > /dev/.docklet/x"),
        ("the hosts file", "echo x >> /etc/hosts"),
        ("others' control groups", "ls -d /sys/fs/cgroup/*/lxc.* /sys/fs/cgroup/lxc.*"),
        ("its limits", "echo -1 > /sys/fs/cgroup/memory/memory.limit_in_bytes || echo max > /sys/fs/cgroup/memory.max"),
    ] {
        let out = sh(host, id, script).await;
        assert_ne!(out.exit_code, 0, "{what}: {out:?}");
    }
    // What a node must be able to do.
    for (what, script) in [
        ("mounts of its own", "mkdir -p /tmp/m && mount -t tmpfs none /tmp/m"),
        ("its host name", "hostname other"),
        ("cgroups of its own", "mkdir /sys/fs/cgroup/pids/mine || mkdir /sys/fs/cgroup/mine"),
        ("its home's shared directory", "echo hello > /root/nfs/file"),
        ("names of its neighbours", "cat /etc/hosts"),
        ("a tty", "test -c /dev/null && test -c /dev/pts/ptmx"),
    ] {
        let out = sh(host, id, script).await;
        assert_eq!(out.exit_code, 0, "{what}: {out:?}");
    }
    let probed = sh(host, id, "/sbin/init probe").await;
    assert_eq!(probed.stdout, "probed\n", "{probed:?}");
    // With lxcfs a node sees its own memory; without, the preflight has said so.
    let checks = host.prepare().await.unwrap();
    let lxcfs = checks.iter().find(|c| c.name == "lxcfs").unwrap();
    let meminfo = sh(host, id, "head -n1 /proc/meminfo").await.stdout;
    let kib: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(kib <= 256 << 10, lxcfs.outcome == CheckOutcome::Ok, "{meminfo}{lxcfs:?}");
    let data = linux.paths.user_data(&vcluster.owner);
    assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "hello\n");
    assert!(sh(host, id, "cat /etc/hosts").await.stdout.contains(&format!("{} node1", nodes[0].ip)));
    // The keys are where ssh looks, and closed.
    let keys = sh(host, id, "stat -c '%a %u' /root/.ssh/id_ed25519 /etc/ssh/ssh_host_ed25519_key /root/.ssh").await;
    assert_eq!(keys.stdout, "600 0\n600 0\n700 0\n", "{keys:?}");
    assert_eq!(sh(host, id, "cat /etc/hostname /proc/sys/kernel/hostname").await.stdout, "node1\nnode1\n");
    // What it holds of a controller is what its limits are.
    let held = sh(host, id, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max").await;
    assert_eq!(held.stdout, format!("{}\n", u64::from(nodes[0].size.memory_mib) << 20), "{held:?}");
    // No mount of a node is seen by the host.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/run/docklet/"), "{mounts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let (world, linux) = world().await;
    let (vcluster, mut nodes) = cluster(&world, 0, 2);
    nodes[0].size = Size::new(0.5, 128, 64).unwrap();
    for node in &nodes {
        world.bring_up(&vcluster, node).await;
    }
    let (host, small, other) = (&linux.host, nodes[0].id, nodes[1].id);
    let full = sh(host, small, "dd if=/dev/zero of=/big bs=1M count=200").await;
    assert_ne!(full.exit_code, 0, "200 MiB fit into 64: {full:?}");
    assert!(full.stderr.contains("quota") || full.stderr.contains("space"), "{full:?}");
    let hits = || async { host.limits_hit(vec![small, other]).await };
    eventually("the full disk is noticed", || async { hits().await[&small].disk_full }).await;
    assert_eq!(hits().await[&other], Hits::default());
    assert_eq!(
        sh(host, other, "dd if=/dev/zero of=/big bs=1M count=100").await.exit_code,
        0,
        "a neighbour's full disk was felt"
    );
    // A full node can be tidied up from within.
    assert_eq!(sh(host, small, "rm /big && echo x > /small").await.exit_code, 0);
    eventually("there is room again", || async { !hits().await[&small].disk_full }).await;

    let hungry = sh(host, small, "x=$(yes | head -c 300000000); echo got ${#x}").await;
    assert!(!hungry.stdout.contains("got 29"), "300 MB fit into 128 MiB: {hungry:?}");
    let after = hits().await[&small];
    assert!(after.memory > 0, "nothing was ended: {after:?} {hungry:?}");
    let bomb =
        sh(host, small, "i=0; while [ $i -lt 1200 ]; do sleep 5 & i=$((i+1)); done 2>&1 | head -n 3; true").await;
    assert!(
        bomb.stdout.contains("fork")
            || bomb.stdout.contains("Resource")
            || bomb.stdout.contains("memory")
            || bomb.exit_code != 0,
        "{bomb:?}"
    );
    let last = hits().await[&small];
    assert!(last.processes > 0 || last.memory > after.memory, "{last:?}");
    assert_eq!(hits().await[&other], Hits::default(), "only that node");
    assert_eq!(sh(host, other, "echo fine").await.stdout, "fine\n");
    // Whatever it does, it can be stopped.
    tokio::time::timeout(Duration::from_secs(10), host.stop(small, Duration::ZERO)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_a_node_ran_on_is_never_written_again() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.bring_up(&vcluster, &nodes[0]).await;
    let (host, id) = (&linux.host, nodes[0].id);
    // A trap: on the host the link leads to a file of the host's.
    let canary = linux.paths.prefix().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let trap = format!(
        "rm /etc/hostname; ln() {{ :; }}; rm -rf /root/.ssh; echo mine > /etc/resolv.conf; echo {} > /etc/hostname",
        canary.display()
    );
    assert_eq!(sh(host, id, &trap).await.exit_code, 0);
    host.stop(id, Duration::ZERO).await.unwrap();
    let upper = linux.paths.node_disk(id).join("upper/etc/hostname");
    fs::remove_file(&upper).unwrap();
    std::os::unix::fs::symlink(&canary, &upper).unwrap();
    host.ensure_disk(&nodes[0], &vcluster).await.unwrap();
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    // And the links are no hindrance to a start: they mean the node's own files.
    for file in ["etc/hosts", "root/nfs"] {
        let path = linux.paths.node_disk(id).join("upper").join(file);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
        std::os::unix::fs::symlink("/proc/self", &path).unwrap();
    }
    host.start(&nodes[0], &vcluster).await.unwrap();
    host.wait_ready(id, READY).await.unwrap();
    assert!(Path::new(&canary).exists());
}
