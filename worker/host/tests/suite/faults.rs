//! What goes wrong on a real host: boots that fail, helpers that are killed, nodes that reboot themselves, a packet
//! filter that somebody flushed, readers that do not read. Linux only.

use docklet_types::agent::MAX_EXEC_OUTPUT;
use docklet_types::agent::frame::Control;
use docklet_types::id::NodeId;
use docklet_types::kernel_names;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_worker_host::linux::LinuxHost;
use docklet_worker_host::{Access, Containers, Disks, Machine, Networks, Owner};
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::cases::Terminal;
use crate::linux::world;
use crate::world::{READY, cluster, eventually};

async fn sh(host: &LinuxHost, id: NodeId, script: &str) -> docklet_types::agent::ExecOutput {
    host.exec(id, &["sh".to_owned(), "-c".to_owned(), script.to_owned()], "", READY)
        .await
        .unwrap()
        .expect("it ended in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_that_fails_says_what_the_console_said() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let host = &linux.host;
    world.make(&vcluster, &nodes[0]).await;
    fs::write(linux.paths.node_disk(nodes[0].id).join("upper/etc/fail-to-boot"), "").unwrap();
    // Either the start itself notices, or the wait does.
    let begin = Instant::now();
    let error = match host.start(&nodes[0], &vcluster).await {
        Err(e) => e,
        Ok(_) => host.wait_ready(nodes[0].id, READY).await.unwrap_err(),
    };
    assert!(begin.elapsed() < Duration::from_secs(5), "nobody waits for a node that is gone");
    assert!(error.0.log.as_deref().unwrap_or_default().contains("told to fail"), "{error:?}");
    fs::remove_file(linux.paths.node_disk(nodes[0].id).join("upper/etc/fail-to-boot")).unwrap();
    host.stop(nodes[0].id, Duration::ZERO).await.unwrap();
    world.bring_up(&vcluster, &nodes[0]).await;
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_will_not_stop_is_killed() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    world.bring_up(&vcluster, &nodes[0]).await;
    let begin = Instant::now();
    host.stop(id, Duration::from_secs(20)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10), "a node that obeys does not use up the grace");
    world.bring_up(&vcluster, &nodes[0]).await;
    assert_eq!(sh(host, id, "echo > /etc/deaf").await.exit_code, 0);
    let begin = Instant::now();
    host.stop(id, Duration::from_millis(300)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(300));
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert!(host.observe().await.unwrap().nodes[&id].init_pid.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_reboots_itself_is_found_again() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    let before = world.bring_up(&vcluster, &nodes[0]).await;
    assert_eq!(sh(host, id, "kill -USR1 1").await.exit_code, 0);
    tokio::time::timeout(READY, host.wait_end(id)).await.expect("init ended");
    // Whoever starts it now gets the new init, not a second node.
    let after = host.start(&nodes[0], &vcluster).await.unwrap();
    assert_ne!(before, after);
    host.wait_ready(id, READY).await.unwrap();
    assert_eq!(host.observe().await.unwrap().nodes[&id].init_pid, Some(after));
    assert_eq!(sh(host, id, "hostname").await.stdout, "node1\n");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// The worker is killed at any instant of a start: its helper dies with it or goes on alone; the next start copes.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_may_be_cut_off_anywhere() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, node) = (&linux.host, &nodes[0]);
    world.make(&vcluster, node).await;
    for millis in [0, 5, 10, 20, 30, 45, 60, 80, 110, 150] {
        let cut = tokio::time::timeout(Duration::from_millis(millis), host.start(node, &vcluster)).await;
        let new = (world.restarted)();
        new.start(node, &vcluster).await.unwrap_or_else(|e| panic!("after {millis} ms: {e:?}"));
        new.wait_ready(node.id, READY).await.unwrap_or_else(|e| panic!("after {millis} ms ({}): {e:?}", cut.is_ok()));
        let inits = host.inventory().await.unwrap().iter().filter(|o| o.kind == "process").count();
        assert_eq!(inits, 1, "after {millis} ms: one monitor, not {inits}");
        host.stop(node.id, Duration::ZERO).await.unwrap();
    }
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// Programs of a node, by what `ps` calls them.
async fn programs(host: &LinuxHost, id: NodeId, title: &str) -> usize {
    let found = host.inventory().await.unwrap();
    found.iter().filter(|o| o.kind == "process" && o.owner == Owner::Node(id) && o.label.contains(title)).count()
}

const HELPER: &str = " helper start";
const MONITOR: &str = "[lxc monitor]";

/// Holds every start of this host inside liblxc, in the process that becomes the node's monitor: what it reads there
/// does not come before `release`.
struct Gate(std::path::PathBuf);

impl Gate {
    fn shut(linux: &crate::linux::Linux) -> Self {
        let path = linux.paths.lxc().join("node.seccomp");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        Self(path)
    }

    /// Lets go on whoever still waits, and returns whether there was anybody.
    fn release(&self) -> bool {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let waiting = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.0);
        let profile = include_str!("../../../../conf/seccomp/node.seccomp");
        waiting.is_ok_and(|mut gate| gate.write_all(profile.as_bytes()).is_ok())
    }
}

/// Starts the node as a worker does that is killed as soon as the start has come to the gate.
async fn start_and_die(host: &LinuxHost, vcluster: &VclusterPlan, node: &NodePlan) {
    let (host, vcluster, node) = (host.clone(), vcluster.clone(), node.clone());
    let worker = std::thread::spawn(move || {
        // Nothing of it is dropped, which would kill the helper by itself: the end of the thread is all that is told.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let runtime = Box::leak(Box::new(runtime));
        let looked = host.clone();
        let start = Box::leak(Box::new(Box::pin(async move { host.start(&node, &vcluster).await.map(|_| node.id) })));
        runtime.block_on(async {
            let id = tokio::select! {
                started = start => panic!("the gate is open: {started:?}"),
                id = held(&looked) => id,
            };
            assert!(programs(&looked, id, HELPER).await > 0, "it waits for what it has forked");
        });
    });
    tokio::task::spawn_blocking(move || worker.join().unwrap()).await.unwrap();
}

/// Returns once a start has come to the gate.
async fn held(host: &LinuxHost) -> NodeId {
    loop {
        let found = host.inventory().await.unwrap();
        let monitor = found.iter().find(|o| o.kind == "process" && o.label.contains(MONITOR));
        if let Some(Owner::Node(id)) = monitor.map(|o| o.owner) {
            return id;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The worker is killed in the middle of a start, and the next one is told that the node is to go: the helper ends with its
/// worker, and what it had forked never becomes a node.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_cut_off_does_not_outlive_the_removal_of_its_node() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, node) = (&linux.host, &nodes[0]);
    world.make(&vcluster, node).await;
    let gate = Gate::shut(&linux);
    start_and_die(host, &vcluster, node).await;
    eventually("the helper ends with its worker", async || programs(host, node.id, HELPER).await == 0).await;
    assert_eq!(programs(host, node.id, MONITOR).await, 1, "what it forked goes on");
    let next = (world.restarted)();
    crate::cases::what_was_cut_off_goes(&world, next.as_ref(), &vcluster, node).await;
    assert!(!gate.release(), "nobody is left to go on");
    assert_eq!(programs(host, node.id, "").await, 0);
    world.assert_clean().await;
}

/// As above, but nobody asks for the node to go: its next start makes an end of the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_cut_off_is_not_in_the_way_of_the_next() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, node) = (&linux.host, &nodes[0]);
    world.make(&vcluster, node).await;
    let gate = Gate::shut(&linux);
    start_and_die(host, &vcluster, node).await;
    let next = (world.restarted)();
    // Puts the profile back that the gate stands for.
    fs::remove_file(&gate.0).unwrap();
    host.prepare().await.unwrap();
    next.start(node, &vcluster).await.unwrap();
    next.wait_ready(node.id, READY).await.unwrap();
    assert_eq!(programs(host, node.id, MONITOR).await, 1, "the one before is gone");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// Processes of a node of which no file is left, however that came about.
#[tokio::test(flavor = "multi_thread")]
async fn what_runs_without_a_file_is_seen_and_can_be_ended() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    world.bring_up(&vcluster, &nodes[0]).await;
    let state = linux.paths.node_state(id);
    let away = linux.paths.prefix().join("away");
    fs::rename(&state, &away).unwrap();
    host.remove_disk(id).await.unwrap();
    let next = (world.restarted)();
    let it = next.observe().await.unwrap().nodes[&id].clone();
    assert!(it.unsettled && !it.disk && it.init_pid.is_none(), "{it:?}");
    // Another installation on the same machine sees nothing of it.
    let (other, other_linux) = crate::linux::world().await;
    assert!(other.host.observe().await.unwrap().nodes.is_empty());
    drop((other, other_linux));
    next.stop(id, Duration::ZERO).await.unwrap();
    assert!(!next.observe().await.unwrap().nodes.contains_key(&id));
    fs::remove_dir_all(&away).unwrap();
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// An init that has ended is not taken for one that came back, for as long as its monitor has not noticed: each death would
/// count twice, and the third in a row is a node that is given up.
#[tokio::test(flavor = "multi_thread")]
async fn an_init_that_nobody_has_buried_does_not_run() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    let init = world.bring_up(&vcluster, &nodes[0]).await;
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let monitor = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let signal = |name: &str, pid: &str| assert!(Command::new("kill").args([name, pid]).status().unwrap().success());
    signal("-STOP", &monitor);
    signal("-KILL", &init.to_string());
    tokio::time::timeout(READY, host.wait_end(id)).await.expect("init ended");
    let it = host.observe().await.unwrap().nodes[&id].clone();
    assert!(it.init_pid.is_none() && !it.ready && it.unsettled, "{it:?}");
    signal("-CONT", &monitor);
    eventually("its monitor has cleaned up", async || !host.observe().await.unwrap().nodes[&id].unsettled).await;
    world.bring_up(&vcluster, &nodes[0]).await;
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_cleans_up_after_a_dead_monitor() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    let init = world.bring_up(&vcluster, &nodes[0]).await;
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let monitor = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap().trim().to_owned();
    assert!(Command::new("kill").args(["-KILL", &monitor]).status().unwrap().success());
    tokio::time::timeout(Duration::from_secs(5), host.wait_end(id)).await.expect("the node ends with its monitor");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
    // And a new start is not in the way of what it left.
    world.bring_up(&vcluster, &nodes[0]).await;
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_packet_filter_is_put_back() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 2);
    let host = &linux.host;
    for node in &nodes {
        world.make(&vcluster, node).await;
    }
    let table = format!("docklet_{}", linux.cluster);
    for family in ["bridge", "inet"] {
        assert!(Command::new("nft").args(["delete", "table", family, &table]).status().unwrap().success());
    }
    host.ensure_port(&nodes[0]).await.unwrap();
    let elements: Vec<String> =
        host.inventory().await.unwrap().into_iter().filter(|o| o.kind == "nft_element").map(|o| o.label).collect();
    assert_eq!(elements.len(), 3, "two ports and a bridge: {elements:?}");
    let rules = Command::new("nft").args(["list", "table", "inet", &table]).output().unwrap();
    assert!(String::from_utf8_lossy(&rules.stdout).contains("masquerade"));
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_takes_no_more_nodes_and_lets_them_go() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 2);
    let host = &linux.host;
    world.bring_up(&vcluster, &nodes[0]).await;
    let filler = linux.paths.pool().join("filler");
    let free = host.capacity().await.unwrap().disk_mib - 300;
    let filled = Command::new("fallocate").args(["-l", &format!("{free}M")]).arg(&filler).status().unwrap();
    assert!(filled.success());
    // What is left goes to the last byte.
    let rest = "yes > $0; yes > $0.2; sync $0 || true";
    assert!(
        Command::new("sh")
            .args(["-c", rest])
            .arg(linux.paths.pool().join("rest"))
            .stderr(std::process::Stdio::null())
            .status()
            .is_ok()
    );
    assert_eq!(host.ensure_disk(&nodes[1], &vcluster).await.unwrap_err().code(), "out_of_space");
    // What is there already may be asked for again, runs on, and can go.
    host.ensure_disk(&nodes[0], &vcluster).await.unwrap();
    assert_eq!(sh(host, nodes[0].id, "hostname").await.stdout, "node1\n");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
    for file in ["filler", "rest", "rest.2"] {
        let _ = fs::remove_file(linux.paths.pool().join(file));
    }
    host.ensure_vcluster(&vcluster).await.unwrap();
    eventually("the space is free again", async || {
        let made = host.ensure_disk(&nodes[1], &vcluster).await;
        assert!(made.as_ref().err().is_none_or(|e| e.code() == "out_of_space"), "{made:?}");
        made.is_ok()
    })
    .await;
    world.bring_up(&vcluster, &nodes[1]).await;
    world.take_down(&vcluster, &nodes).await;
}

/// btrfs frees what was removed behind everybody's back; whoever comes next must not be told that there is no room.
#[tokio::test(flavor = "multi_thread")]
async fn the_room_of_a_node_that_is_gone_is_there_for_the_next() {
    let (world, linux) = world().await;
    let (vcluster, mut nodes) = cluster(&world, 0, 2);
    let host = &linux.host;
    // Large enough to fill the pool.
    let all = host.capacity().await.unwrap().disk_mib;
    nodes[0].size.disk_mib = u32::try_from(all).unwrap();
    world.make(&vcluster, &nodes[0]).await;
    let filler = linux.paths.node_disk(nodes[0].id).join("filler");
    let mut dd = Command::new("dd");
    dd.arg("if=/dev/zero").arg(format!("of={}", filler.display())).args(["bs=1M", "status=none"]);
    // It ends where the pool does.
    assert!(!dd.stderr(std::process::Stdio::null()).status().unwrap().success());
    fs::File::open(&filler).unwrap().sync_all().unwrap();
    assert_eq!(host.ensure_disk(&nodes[1], &vcluster).await.unwrap_err().code(), "out_of_space");
    host.remove_disk(nodes[0].id).await.unwrap();
    host.ensure_disk(&nodes[1], &vcluster).await.unwrap();
    host.remove_disk(nodes[1].id).await.unwrap();
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_is_listed_and_what_is_others_is_not() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    world.bring_up(&vcluster, &nodes[0]).await;
    // Another installation on the same machine sees nothing of this one.
    let (other, other_linux) = crate::linux::world().await;
    other.assert_clean().await;
    drop((other, other_linux));

    let stray = "dkv00000000ff";
    let bridge = kernel_names::bridge(vcluster.id);
    let add = format!("ip link add {stray} type veth peer name dtstray && ip link set {stray} master {bridge}");
    assert!(Command::new("sh").args(["-c", &add]).status().unwrap().success());
    let lost = linux.paths.node_states().join("0190a5f0-0000-7000-8000-000000000001");
    fs::create_dir(&lost).unwrap();
    let found = linux.host.inventory().await.unwrap();
    assert!(found.iter().any(|o| o.kind == "link" && o.label == stray && o.owner == Owner::Unknown), "{found:#?}");
    assert!(found.iter().any(|o| o.kind == "directory" && o.label == lost.display().to_string()), "{found:#?}");
    assert!(Command::new("ip").args(["link", "del", stray]).status().unwrap().success());
    fs::remove_dir(&lost).unwrap();
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_bounded_and_background_processes_are_not_waited_for() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    world.bring_up(&vcluster, &nodes[0]).await;
    let much = sh(host, id, "yes | head -c 3000000; echo told >&2").await;
    assert_eq!((much.stdout.len(), much.truncated, much.stderr.as_str()), (MAX_EXEC_OUTPUT, true, "told\n"));
    let begin = Instant::now();
    let left = sh(host, id, "sleep 60 & echo started").await;
    assert_eq!(left.stdout, "started\n");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let signal = sh(host, id, "kill -TERM $$").await;
    assert_eq!(signal.exit_code, 128 + libc::SIGTERM);
    let big = "x".repeat(2_000_000);
    let echoed = host
        .exec(id, &["sh".to_owned(), "-c".to_owned(), "cat | head -c 10".to_owned()], &big, READY)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(echoed.stdout, "xxxxxxxxxx");
    // A caller who goes away takes the command along.
    let _ = tokio::time::timeout(
        Duration::from_millis(400),
        host.exec(id, &["sleep".to_owned(), "77".to_owned()], "", READY),
    )
    .await;
    eventually("the abandoned command ends", async || {
        !sh(host, id, "cat /proc/[0-9]*/cmdline | head -c 9999999").await.stdout.contains("sleep\u{0}77")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_a_real_one_and_waits_for_its_reader() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let (host, id) = (&linux.host, nodes[0].id);
    world.bring_up(&vcluster, &nodes[0]).await;
    let mut terminal = Terminal::new(host.terminal(id, "t", 91, 33).await.unwrap());
    let mut terminal = tokio::task::spawn_blocking(move || {
        assert_eq!(terminal.next_control(), Control::Attached { resumed: false });
        terminal.send("tty; stty size; id -u; echo $HOME-$TERM-$LANG; pwd\n");
        terminal.until("/dev/pts/");
        terminal.until("33 91");
        terminal.until("/root-xterm-256color-C.UTF-8");
        terminal.control(&Control::Resize { cols: 120, rows: 40 });
        terminal.send("stty size\n");
        terminal.until("40 120");
        // The terminal is the shell's controlling one: ^C reaches what runs in it.
        terminal.send("sleep 100; echo interrupted=$?\n");
        std::thread::sleep(Duration::from_millis(300));
        terminal.send("\u{3}");
        terminal.send("echo after=$?\n");
        terminal.until("after=130");
        terminal.send("yes\n");
        terminal
    })
    .await
    .unwrap();
    let holder = host
        .inventory()
        .await
        .unwrap()
        .into_iter()
        .find(|o| o.kind == "process" && o.label.contains("helper terminal"))
        .expect("a holder");
    let pid: i32 = holder.label.split(' ').next().unwrap().parse().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (cpu, memory) = (ticks(pid), resident_kib(pid));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(ticks(pid) - cpu <= 5, "the holder works although nobody reads");
    assert!(memory < 16 << 10, "{memory} KiB");
    println!("holder: {memory} KiB resident");
    tokio::task::spawn_blocking(move || {
        terminal.send("\u{3}exit 4\n");
        let mut control = terminal.next_control();
        while !matches!(control, Control::Exit { .. }) {
            control = terminal.next_control();
        }
        assert!(matches!(control, Control::Exit { .. }));
    })
    .await
    .unwrap();
}

/// Processor time of a process, in ticks of 10 ms.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn preparing_twice_changes_nothing() {
    let (world, linux) = world().await;
    let (vcluster, nodes) = cluster(&world, 0, 1);
    let pid = world.bring_up(&vcluster, &nodes[0]).await;
    let before = linux.host.inventory().await.unwrap();
    let checks = linux.host.prepare().await.unwrap();
    assert_eq!(linux.host.inventory().await.unwrap(), before);
    assert_eq!(linux.host.observe().await.unwrap().nodes[&nodes[0].id].init_pid, Some(pid));
    let names: std::collections::BTreeSet<&str> = checks.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names.len(), checks.len(), "names of checks are unique");
    linux.host.remove_port(nodes[0].id).await.unwrap();
    assert!(linux.host.remove_disk(nodes[0].id).await.is_err());
}

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_the_host_inside_that_of_nodes_is_said_by_its_name() {
    use docklet_types::host::CheckOutcome;
    let (world, linux) = world().await;
    // Nothing is sent through it: it is down.
    let device = format!("lan{}", std::process::id());
    let address = world.net.split(26).last().unwrap().node_addresses().next().unwrap();
    ip(&format!("link add {device} type bridge"));
    ip(&format!("address add {address}/26 dev {device}"));
    let checks = linux.host.prepare().await;
    ip(&format!("link delete {device}"));
    let failed: Vec<_> = checks.unwrap().into_iter().filter(|c| c.outcome == CheckOutcome::Failed).collect();
    assert_eq!(failed.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["cluster_net"], "{failed:#?}");
    assert!(failed[0].message.contains(&device), "{failed:#?}");
    let again = linux.host.prepare().await.unwrap();
    assert!(again.iter().all(|c| c.outcome != CheckOutcome::Failed), "{again:#?}");
    world.assert_clean().await;
}
