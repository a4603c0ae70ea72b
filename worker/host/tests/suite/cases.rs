//! What every host does alike.

use docklet_types::agent::frame::{self, Control};
use docklet_types::id::VclusterId;
use docklet_types::image::ImageRef;
use docklet_types::plan::{NodePlan, VclusterPlan};
use docklet_types::port::{Forward, Protocol};
use docklet_types::rate::RateLimits;
use docklet_types::size::Size;
use docklet_worker_host::Owner;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::world::{Everything, READY, World, cluster, eventually};

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// The life of a node, step by step, with what is observed at each.
pub async fn a_node_lives_and_dies(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    let host = &world.host;
    world.make(&vcluster, node).await;
    let seen = host.observe().await.unwrap();
    let it = &seen.nodes[&node.id];
    assert!(it.disk && it.port && it.init_pid.is_none() && !it.ready, "{it:?}");
    assert!(seen.vclusters[&vcluster.id].bridge);
    assert_eq!(seen.vclusters[&vcluster.id].generation, Some(1));

    let pid = host.start(node, &vcluster).await.unwrap();
    assert_eq!(host.observe().await.unwrap().nodes[&node.id].init_pid, Some(pid));
    host.wait_ready(node.id, READY).await.unwrap();
    let it = host.observe().await.unwrap().nodes[&node.id].clone();
    assert!(it.ready && it.init_pid == Some(pid), "{it:?}");
    let kinds: Vec<&str> =
        host.inventory().await.unwrap().iter().filter(|o| o.owner == Owner::Node(node.id)).map(|o| o.kind).collect();
    for kind in ["link", "nft_element", "cgroup", "process", "directory"] {
        assert!(kinds.contains(&kind), "the inventory lacks the node's {kind}: {kinds:?}");
    }

    host.stop(node.id, Duration::ZERO).await.unwrap();
    let it = host.observe().await.unwrap().nodes[&node.id].clone();
    assert!(it.disk && it.init_pid.is_none() && !it.ready, "{it:?}");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// A vcluster that no plan names any more keeps its network until it is taken away.
pub async fn a_network_that_is_in_use_is_not_given_twice(world: &World) {
    let (left, _) = cluster(world, 0, 1);
    let (mut next, _) = cluster(world, 1, 1);
    next.network = left.network;
    let host = &world.host;
    host.ensure_vcluster(&left).await.unwrap();
    assert_eq!(host.ensure_vcluster(&next).await.unwrap_err().code(), "network_in_use");
    host.remove_vcluster(left.id).await.unwrap();
    host.ensure_vcluster(&next).await.unwrap();
    host.remove_vcluster(next.id).await.unwrap();
    world.assert_clean().await;
}

/// "Already so" is success, both ways.
pub async fn everything_may_be_asked_twice(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    let host = &world.host;
    for _ in 0..2 {
        world.make(&vcluster, node).await;
    }
    let pid = host.start(node, &vcluster).await.unwrap();
    host.wait_ready(node.id, READY).await.unwrap();
    assert_eq!(host.start(node, &vcluster).await.unwrap(), pid);
    host.wait_ready(node.id, READY).await.unwrap();
    world.make(&vcluster, node).await;
    assert_eq!(host.observe().await.unwrap().nodes[&node.id].init_pid, Some(pid));
    for _ in 0..2 {
        world.take_down(&vcluster, &nodes).await;
    }
    world.assert_clean().await;
}

/// A frozen node stands still until it is thawed, with the size that it has then; and it can be taken down as it is.
pub async fn a_node_is_frozen_and_thawed(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    let host = &world.host;
    let pid = world.bring_up(&vcluster, node).await;
    for _ in 0..2 {
        host.freeze(node.id).await.unwrap();
    }
    let it = (world.restarted)().observe().await.unwrap().nodes[&node.id].clone();
    assert!(it.frozen && it.ready && it.init_pid == Some(pid), "{it:?}");
    let larger = NodePlan { size: Size::new(0.5, 320, 512).unwrap(), ..node.clone() };
    for _ in 0..2 {
        host.thaw(&larger).await.unwrap();
    }
    let it = host.observe().await.unwrap().nodes[&node.id].clone();
    assert!(!it.frozen && it.ready && it.init_pid == Some(pid), "{it:?}");
    let said = host.exec(node.id, &argv(&["sh", "-c", "echo here"]), "", READY).await.unwrap();
    assert_eq!(said.map(|o| o.exit_code), Some(0));
    host.freeze(node.id).await.unwrap();
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// A node is started again on the disk it had.
pub async fn a_stopped_node_starts_again(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    let first = world.bring_up(&vcluster, node).await;
    world.host.stop(node.id, Duration::from_secs(10)).await.unwrap();
    let second = world.bring_up(&vcluster, node).await;
    assert_ne!(first, second);
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// Who waits for a node's end is told, and at once where it does not run.
pub async fn the_end_of_a_node_is_noticed(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    world.host.wait_end(node.id).await;
    world.bring_up(&vcluster, node).await;
    let host = world.host.clone();
    let id = node.id;
    let waiting = tokio::spawn(async move { host.wait_end(id).await });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    world.host.stop(node.id, Duration::ZERO).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), waiting).await.expect("nobody was told").unwrap();
    world.host.wait_end(node.id).await;
    world.take_down(&vcluster, &nodes).await;
}

/// A new worker finds what the old one left.
pub async fn a_new_worker_adopts(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 2);
    let pid = world.bring_up(&vcluster, &nodes[0]).await;
    // The second is started, and its worker dies before it hears that it is up.
    world.make(&vcluster, &nodes[1]).await;
    world.host.start(&nodes[1], &vcluster).await.unwrap();
    let new = (world.restarted)();
    let seen = new.observe().await.unwrap();
    assert!(seen.nodes[&nodes[0].id].ready);
    assert!(seen.nodes[&nodes[0].id].port);
    assert_eq!(seen.nodes[&nodes[0].id].init_pid, Some(pid));
    new.wait_ready(nodes[0].id, READY).await.unwrap();
    new.wait_ready(nodes[1].id, READY).await.unwrap();
    assert!(new.observe().await.unwrap().nodes[&nodes[1].id].ready);
    assert_eq!(new.start(&nodes[0], &vcluster).await.unwrap(), pid);
    for node in &nodes {
        new.stop(node.id, Duration::ZERO).await.unwrap();
        new.remove_port(node.id).await.unwrap();
        new.remove_disk(node.id).await.unwrap();
    }
    new.remove_vcluster(vcluster.id).await.unwrap();
    world.assert_clean().await;
}

/// What is missing is said with a code of its own.
pub async fn failures_have_codes(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let node = &nodes[0];
    let host = &world.host;
    let nowhere =
        ImageRef { name: "nowhere".parse().unwrap(), digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap() };
    assert_eq!(host.ensure_image(&nowhere).await.unwrap_err().code(), "image_missing");
    assert_eq!(host.exec(node.id, &argv(&["true"]), "", READY).await.unwrap_err().code(), "not_running");
    assert_eq!(host.dial(node.id, 22).await.unwrap_err().code(), "not_running");
    assert_eq!(host.terminal(node.id, "one", 80, 24).await.unwrap_err().code(), "not_running");
    assert_eq!(host.start(node, &vcluster).await.unwrap_err().code(), "image_missing");
    host.ensure_image(&node.image).await.unwrap();
    host.ensure_vcluster(&vcluster).await.unwrap();
    assert_eq!(host.start(node, &vcluster).await.unwrap_err().code(), "boot_failed");
    assert_eq!(host.wait_ready(node.id, READY).await.unwrap_err().code(), "not_ready");
    world.bring_up(&vcluster, node).await;
    assert_eq!(host.remove_disk(node.id).await.unwrap_err().code(), "still_running");
    assert_eq!(host.terminal(node.id, "../x", 80, 24).await.unwrap_err().code(), "terminal_failed");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// Ports that answer, and ports that do not.
pub async fn ports_are_dialled_inside_the_node(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let id = nodes[0].id;
    world.bring_up(&vcluster, &nodes[0]).await;
    let stream = world.host.dial(id, 22).await.unwrap().expect("sshd listens");
    let mut stream = std::net::TcpStream::from(stream);
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut greeting = [0; 8];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-2.0-");
    assert!(world.host.dial(id, 4242).await.unwrap().is_none());
    assert!(world.host.wait_port(id, 22, Duration::from_secs(1)).await.unwrap());
    let begin = Instant::now();
    assert!(!world.host.wait_port(id, 4242, Duration::from_millis(200)).await.unwrap());
    assert!(begin.elapsed() < Duration::from_secs(3));
    world.take_down(&vcluster, &nodes).await;
}

/// Commands: their output, their code, their end by the clock.
pub async fn commands_run_to_their_end(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let id = nodes[0].id;
    world.bring_up(&vcluster, &nodes[0]).await;
    let run = |words: &'static [&'static str], stdin: &'static str| async move {
        world.host.exec(id, &argv(words), stdin, READY).await.unwrap().expect("it ended in time")
    };
    assert_eq!(run(&["hostname"], "").await.stdout, "node1\n");
    assert_eq!(run(&["true"], "").await.exit_code, 0);
    assert_eq!(run(&["false"], "").await.exit_code, 1);
    assert_eq!(run(&["cat"], "from outside: ä\n").await.stdout, "from outside: ä\n");
    assert_eq!(run(&["echo", "no", "$shell; here"], "").await.stdout, "no $shell; here\n");
    assert_eq!(run(&["sh", "-c", "exit 7"], "").await.exit_code, 7);
    let missing = run(&["no-such-command"], "").await;
    assert_eq!(missing.exit_code, 127);
    assert!(missing.stderr.contains("not found"), "{missing:?}");
    let begin = Instant::now();
    let slow = world.host.exec(id, &argv(&["sleep", "30"]), "", Duration::from_millis(300)).await.unwrap();
    assert!(slow.is_none());
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(world.host.exec(id, &[], "", READY).await.unwrap_err().code(), "exec_failed");
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// A client of a terminal, with a time limit on everything.
pub struct Terminal {
    stream: UnixStream,
    pub shown: Vec<u8>,
}

impl Terminal {
    pub fn new(fd: OwnedFd) -> Self {
        let stream = UnixStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self { stream, shown: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(&frame::header(frame::DATA, text.len() as u32)).unwrap();
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub fn control(&mut self, control: &Control) {
        let json = serde_json::to_vec(control).unwrap();
        self.stream.write_all(&frame::header(frame::CONTROL, json.len() as u32)).unwrap();
        self.stream.write_all(&json).unwrap();
    }

    /// The next control frame; data on the way to it is kept.
    pub fn next_control(&mut self) -> Control {
        loop {
            let (kind, payload) = self.frame();
            if kind == frame::CONTROL {
                return serde_json::from_slice(&payload).unwrap();
            }
            self.shown.extend(payload);
        }
    }

    /// Reads until this was shown.
    pub fn until(&mut self, text: &str) {
        while !self.shown.windows(text.len()).any(|w| w == text.as_bytes()) {
            let (kind, payload) = self.frame();
            assert_eq!(kind, frame::DATA, "instead of {text:?}: {:?}", String::from_utf8_lossy(&payload));
            self.shown.extend(payload);
        }
    }

    fn frame(&mut self) -> (u8, Vec<u8>) {
        let mut header = [0; frame::HEADER];
        self.stream
            .read_exact(&mut header)
            .unwrap_or_else(|e| panic!("{e}, after {:?}", String::from_utf8_lossy(&self.shown)));
        let [kind, a, b, c, d] = header;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        (kind, payload)
    }
}

/// A terminal is kept for who comes back, and has one client at a time.
pub async fn a_terminal_outlives_its_client(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    let id = nodes[0].id;
    world.bring_up(&vcluster, &nodes[0]).await;
    let open =
        |session: &'static str| async move { Terminal::new(world.host.terminal(id, session, 80, 24).await.unwrap()) };
    let mut one = open("s-1").await;
    let mut one = tokio::task::spawn_blocking(move || {
        assert_eq!(one.next_control(), Control::Attached { resumed: false });
        one.send("echo marker-é-1\n");
        one.until("marker-é-1");
        one
    })
    .await
    .unwrap();
    // A second client takes over, and sees what was shown.
    let mut two = open("s-1").await;
    tokio::task::spawn_blocking(move || {
        assert_eq!(two.next_control(), Control::Attached { resumed: true });
        two.until("marker-é-1");
        assert_eq!(one.next_control(), Control::TakenOver);
        two.control(&Control::Resize { cols: 100, rows: 30 });
        drop(two);
    })
    .await
    .unwrap();
    // Another session is another shell. Nobody is attached to the first, which goes on.
    let mut other = open("s-2").await;
    tokio::task::spawn_blocking(move || {
        assert_eq!(other.next_control(), Control::Attached { resumed: false });
        other.control(&Control::Close);
        assert!(matches!(other.next_control(), Control::Exit { .. }));
    })
    .await
    .unwrap();
    let mut three = Terminal::new((world.restarted)().terminal(id, "s-1", 80, 24).await.unwrap());
    tokio::task::spawn_blocking(move || {
        assert_eq!(three.next_control(), Control::Attached { resumed: true });
        three.until("marker-é-1");
        three.send("exit 3\n");
        assert_eq!(three.next_control(), Control::Exit { code: 3 });
    })
    .await
    .unwrap();
    // After its end the session's name is free again.
    let mut again = open("s-1").await;
    let mut again = tokio::task::spawn_blocking(move || {
        assert_eq!(again.next_control(), Control::Attached { resumed: false });
        again
    })
    .await
    .unwrap();
    // And the node's end is every terminal's.
    world.host.stop(id, Duration::ZERO).await.unwrap();
    tokio::task::spawn_blocking(move || assert!(matches!(again.next_control(), Control::Exit { .. }))).await.unwrap();
    eventually("the terminals' processes end", async || {
        !world.host.inventory().await.unwrap().iter().any(|o| o.kind == "process")
    })
    .await;
    world.take_down(&vcluster, &nodes).await;
    world.assert_clean().await;
}

/// The console's last lines, and no more than were asked for.
pub async fn logs_are_the_end_of_the_console(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 1);
    world.bring_up(&vcluster, &nodes[0]).await;
    eventually("the console has a line", async || !world.host.logs(nodes[0].id, 100).await.unwrap().is_empty()).await;
    assert!(world.host.logs(nodes[0].id, 1).await.unwrap().lines().count() <= 1);
    assert_eq!(world.host.logs(nodes[0].id, 0).await.unwrap(), "");
    world.take_down(&vcluster, &nodes).await;
}

/// A newer plan of a vcluster is recorded.
pub async fn a_vcluster_remembers_its_generation(world: &World) {
    let (mut vcluster, _) = cluster(world, 0, 2);
    world.host.ensure_vcluster(&vcluster).await.unwrap();
    vcluster.generation = 5;
    vcluster.peers.pop();
    world.host.ensure_vcluster(&vcluster).await.unwrap();
    assert_eq!(world.host.observe().await.unwrap().vclusters[&vcluster.id].generation, Some(5));
    world.host.remove_vcluster(vcluster.id).await.unwrap();
    world.assert_clean().await;
}

/// Published ports come and go with the plans, are the vcluster's in the inventory, and change hands.
pub async fn published_ports_follow_the_plan(world: &World) {
    let (mut first, nodes) = cluster(world, 0, 2);
    let (mut second, others) = cluster(world, 1, 1);
    let forward = |public: u16, node: &NodePlan| Forward { protocol: Protocol::Tcp, public, ip: node.ip, port: 22 };
    let published = async |id: VclusterId| -> Vec<String> {
        let all = world.host.inventory().await.unwrap();
        let of_it = all.into_iter().filter(|o| o.kind == "nft_element" && o.owner == Owner::Vcluster(id));
        of_it.filter_map(|o| Some(o.label.strip_prefix("forwards ")?.to_owned())).collect()
    };
    first.forwards = vec![forward(21_001, &nodes[0]), forward(21_002, &nodes[1])];
    assert!(world.host.ensure_vcluster(&first).await.unwrap().is_empty());
    let expected = [format!("21001/tcp {}:22", nodes[0].ip), format!("21002/tcp {}:22", nodes[1].ip)];
    assert_eq!(published(first.id).await, expected);
    first.forwards.remove(0);
    world.host.ensure_vcluster(&first).await.unwrap();
    assert_eq!(published(first.id).await, expected[1..]);
    // The store gave the port to another vcluster before this host was told to take it from the first.
    second.forwards = vec![forward(21_002, &others[0])];
    assert!(world.host.ensure_vcluster(&second).await.unwrap().is_empty());
    assert_eq!(published(second.id).await, [format!("21002/tcp {}:22", others[0].ip)]);
    assert!(published(first.id).await.is_empty());
    world.host.remove_vcluster(first.id).await.unwrap();
    assert_eq!(published(second.id).await.len(), 1);
    world.host.remove_vcluster(second.id).await.unwrap();
    world.assert_clean().await;
}

/// Rate limits come, change and go with the plans.
pub async fn rate_limits_follow_the_plan(world: &World) {
    let (mut vcluster, _) = cluster(world, 0, 1);
    let (mut other, _) = cluster(world, 1, 1);
    let limits = async |id: VclusterId| -> Vec<String> {
        let all = world.host.inventory().await.unwrap();
        let of_it = all.into_iter().filter(|o| o.kind == "nft_element" && o.owner == Owner::Vcluster(id));
        of_it.filter(|o| o.label.ends_with("kbit/s")).map(|o| o.label).collect()
    };
    other.limits = RateLimits { ingress_kbit: Some(64), egress_kbit: None };
    world.host.ensure_vcluster(&other).await.unwrap();
    let bridge = docklet_types::kernel_names::bridge(vcluster.id);
    for (ingress, egress) in [(None, Some(1000)), (Some(5000), Some(2000)), (Some(5000), None), (None, None)] {
        vcluster.limits = RateLimits { ingress_kbit: ingress, egress_kbit: egress };
        world.host.ensure_vcluster(&vcluster).await.unwrap();
        let told = |direction: &str, kbit: Option<u32>| kbit.map(|k| format!("{direction} {bridge} {k} kbit/s"));
        let expected: Vec<String> = [told("egress", egress), told("ingress", ingress)].into_iter().flatten().collect();
        assert_eq!(limits(vcluster.id).await, expected);
    }
    assert_eq!(limits(other.id).await.len(), 1);
    vcluster.limits.egress_kbit = Some(1000);
    world.host.ensure_vcluster(&vcluster).await.unwrap();
    for id in [vcluster.id, other.id] {
        world.host.remove_vcluster(id).await.unwrap();
    }
    world.assert_clean().await;
}

/// Many at once, in any order.
pub async fn nodes_come_and_go_at_once(world: &World) {
    let (vcluster, nodes) = cluster(world, 0, 6);
    let (a, b) = nodes.split_at(3);
    tokio::join!(world.bring_up(&vcluster, &a[0]), world.bring_up(&vcluster, &a[1]), world.bring_up(&vcluster, &a[2]));
    // The first are removed while the next come up.
    let down = async {
        for node in a {
            world.host.stop(node.id, Duration::ZERO).await.unwrap();
            world.host.remove_port(node.id).await.unwrap();
            world.host.remove_disk(node.id).await.unwrap();
        }
    };
    tokio::join!(
        world.bring_up(&vcluster, &b[0]),
        world.bring_up(&vcluster, &b[1]),
        world.bring_up(&vcluster, &b[2]),
        down
    );
    let seen = world.host.observe().await.unwrap();
    assert_eq!(seen.nodes.keys().copied().collect::<Vec<_>>(), b.iter().map(|n| n.id).collect::<Vec<_>>());
    assert!(seen.nodes.values().all(|n| n.ready && n.port));
    world.take_down(&vcluster, b).await;
    world.assert_clean().await;
}

/// What is left of a start that was cut off is seen by whoever comes next, keeps its disk until it was stopped, and goes.
pub async fn what_was_cut_off_goes(world: &World, next: &dyn Everything, vcluster: &VclusterPlan, node: &NodePlan) {
    let it = next.observe().await.unwrap().nodes[&node.id].clone();
    assert!(it.disk && it.init_pid.is_none() && it.unsettled, "{it:?}");
    assert_eq!(next.remove_disk(node.id).await.unwrap_err().code(), "still_running");
    next.stop(node.id, Duration::ZERO).await.unwrap();
    let it = next.observe().await.unwrap().nodes[&node.id].clone();
    assert!(it.disk && it.init_pid.is_none() && !it.unsettled, "{it:?}");
    world.take_down(vcluster, std::slice::from_ref(node)).await;
    world.assert_clean().await;
}

/// Makes the case a test of both hosts.
macro_rules! on_both {
    ($($case:ident),* $(,)?) => {
        mod on_the_fake {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                super::$case(&crate::fake::world()).await;
            })*
        }
        mod on_linux {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $case() {
                let (world, _linux) = crate::linux::world().await;
                super::$case(&world).await;
            })*
        }
    };
}

on_both! {
    a_node_lives_and_dies,
    a_network_that_is_in_use_is_not_given_twice,
    everything_may_be_asked_twice,
    a_node_is_frozen_and_thawed,
    a_stopped_node_starts_again,
    the_end_of_a_node_is_noticed,
    a_new_worker_adopts,
    failures_have_codes,
    ports_are_dialled_inside_the_node,
    commands_run_to_their_end,
    a_terminal_outlives_its_client,
    logs_are_the_end_of_the_console,
    a_vcluster_remembers_its_generation,
    published_ports_follow_the_plan,
    rate_limits_follow_the_plan,
    nodes_come_and_go_at_once,
}
