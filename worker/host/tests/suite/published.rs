//! Published ports and tunnels with real packets: from outside, from the host, from nodes. Linux only.

use docklet_types::plan::{NodePlan, Peer, VclusterPlan};
use docklet_types::port::{Forward, Protocol};
use docklet_types::rate::RateLimits;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::isolation::{HOST_SIDE, MARK, OUTSIDE, Outside, PATIENCE, can_connect, ethernet, inside, udp, watch};
use crate::linux::world;
use crate::world::{World, cluster, eventually};

const TCP: u16 = 21_022;
const UDP: u16 = 21_053;

fn host_side() -> Ipv4Addr {
    HOST_SIDE.parse().unwrap()
}

fn forward(protocol: Protocol, public: u16, node: &NodePlan, port: u16) -> Forward {
    Forward { protocol, public, ip: node.ip, port }
}

/// Answers each byte on every connection to that port in the network namespace of a process.
fn echo(pid: i32, port: u16) {
    let listener = inside(pid, move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read(&mut byte).is_ok_and(|n| n == 1) && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

/// The same for datagrams.
fn echo_datagrams(pid: i32, port: u16) {
    let socket = inside(pid, move || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..n], from);
        }
    });
}

/// Whether a byte comes back.
fn answers(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut byte = [0];
    stream.write_all(b"x").is_ok() && stream.read(&mut byte).is_ok_and(|n| n == 1)
}

fn connect(from: i32, port: u16) -> Option<TcpStream> {
    inside(from, move || TcpStream::connect_timeout(&(host_side(), port).into(), PATIENCE).ok())
}

/// Whether a datagram from there comes back, from the address that it was sent to.
fn datagram_answers(from: i32) -> bool {
    inside(from, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((host_side(), UDP)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 8];
        socket.send(b"hello").is_ok() && socket.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"hello")
    })
}

async fn ensure(world: &World, vcluster: &VclusterPlan) -> Vec<Forward> {
    world.host.ensure_vcluster(vcluster).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_leads_to_its_node_from_everywhere_and_no_longer() {
    let (world, _linux) = world().await;
    let (mut a, nodes) = cluster(&world, 0, 2);
    let (b, others) = cluster(&world, 1, 1);
    let pid = world.bring_up(&a, &nodes[0]).await;
    let sibling = world.bring_up(&a, &nodes[1]).await;
    let stranger = world.bring_up(&b, &others[0]).await;
    let outside = Outside::new(&world.net.to_string());
    let far = outside.pid();
    tokio::task::spawn_blocking(move || {
        echo(pid, 7);
        echo_datagrams(pid, 7);
        assert!(!can_connect(far, (host_side(), TCP)), "open before it was published");
    })
    .await
    .unwrap();
    a.forwards = vec![forward(Protocol::Tcp, TCP, &nodes[0], 7), forward(Protocol::Udp, UDP, &nodes[0], 7)];
    assert!(ensure(&world, &a).await.is_empty());
    let host = i32::try_from(std::process::id()).unwrap();
    let mut open = tokio::task::spawn_blocking(move || {
        let from_all = [("outside", far), ("the host", host), ("a sibling", sibling), ("another vcluster", stranger)];
        for (who, from) in from_all {
            let mut stream = connect(from, TCP).unwrap_or_else(|| panic!("{who} was not let in"));
            assert!(answers(&mut stream), "{who} got no answer");
            assert!(datagram_answers(from), "{who} got no datagram back");
        }
        // Nothing else was opened: neither the node itself, nor the host.
        assert!(!can_connect(stranger, (host_side(), 22)));
        connect(far, TCP).unwrap()
    })
    .await
    .unwrap();

    // A new worker takes it over as it is.
    let new = (world.restarted)();
    new.prepare().await.unwrap();
    let told = new.inventory().await.unwrap();
    assert!(told.iter().any(|o| o.label == format!("forwards {TCP}/tcp {}:7", nodes[0].ip)), "{told:#?}");
    let seen = world.host.observe().await.unwrap();
    assert_eq!(seen.nodes[&nodes[0].id].init_pid, Some(pid), "the node was restarted");
    assert!(answers(&mut open), "an open connection was cut");

    // Given back: what is open ends, and nobody gets in any more.
    a.forwards.clear();
    assert!(ensure(&world, &a).await.is_empty());
    tokio::task::spawn_blocking(move || {
        assert!(!answers(&mut open), "an open connection outlived its port");
        for from in [far, host, sibling, stranger] {
            assert!(!can_connect(from, (host_side(), TCP)));
        }
    })
    .await
    .unwrap();
    world.take_down(&a, &nodes).await;
    world.take_down(&b, &others).await;
    world.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_of_the_host_stays_its_own_until_it_is_free() {
    const OWN: u16 = 21_023;
    let (world, _linux) = world().await;
    let (mut a, nodes) = cluster(&world, 0, 1);
    let pid = world.bring_up(&a, &nodes[0]).await;
    let outside = Outside::new(&world.net.to_string());
    let own = TcpListener::bind(("0.0.0.0", OWN)).unwrap();
    a.forwards = vec![forward(Protocol::Tcp, OWN, &nodes[0], 7)];
    assert_eq!(ensure(&world, &a).await, a.forwards);
    let far = outside.pid();
    tokio::task::spawn_blocking(move || {
        echo(pid, 7);
        let there = connect(far, OWN).expect("the host's own program is not reached");
        let (mut here, _) = own.accept().unwrap();
        // Closed over there first: who closes first keeps the port for a minute.
        drop(there);
        assert_eq!(here.read(&mut [0]).unwrap(), 0);
    })
    .await
    .unwrap();
    eventually("the port is free", async || ensure(&world, &a).await.is_empty()).await;
    tokio::task::spawn_blocking(move || {
        assert!(answers(&mut connect(far, OWN).unwrap()));
        assert!(TcpListener::bind(("0.0.0.0", OWN)).is_err(), "the host gave a published port to a program");
    })
    .await
    .unwrap();
    world.take_down(&a, &nodes).await;
    world.assert_clean().await;
}

/// Bytes per second that arrive over one connection, once the first second's worth is through.
fn speed(from: i32, to: i32, address: SocketAddr, mark: Duration, time: Duration) -> f64 {
    let listener = inside(to, move || TcpListener::bind(("0.0.0.0", address.port())).unwrap());
    let sender = std::thread::spawn(move || {
        let mut stream = inside(from, move || TcpStream::connect(address).unwrap());
        let block = vec![0; 16 << 10];
        // Ends when the other end is closed.
        while stream.write_all(&block).is_ok() {}
    });
    let (mut stream, _) = listener.accept().unwrap();
    let (begin, mut block, mut bytes) = (Instant::now(), vec![0; 64 << 10], 0);
    while begin.elapsed() < mark + time {
        let n = stream.read(&mut block).unwrap();
        bytes += if begin.elapsed() > mark { n } else { 0 };
    }
    drop(stream);
    sender.join().unwrap();
    bytes as f64 / time.as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crosses_the_boundary_is_limited_and_what_stays_inside_is_not() {
    const INGRESS: u32 = 8000;
    const EGRESS: u32 = 16_000;
    let (world, _linux) = world().await;
    let (mut a, nodes) = cluster(&world, 0, 2);
    a.limits = RateLimits { ingress_kbit: Some(INGRESS), egress_kbit: Some(EGRESS) };
    a.forwards = vec![forward(Protocol::Tcp, TCP, &nodes[0], TCP)];
    let pid = world.bring_up(&a, &nodes[0]).await;
    let sibling = world.bring_up(&a, &nodes[1]).await;
    let outside = Outside::new(&world.net.to_string());
    let (far, beside) = (outside.pid(), nodes[1].ip);
    tokio::task::spawn_blocking(move || {
        let (mark, time) = (Duration::from_secs(2), Duration::from_secs(4));
        let out = speed(pid, far, (OUTSIDE, 80).into(), mark, time);
        let into = speed(far, pid, (host_side(), TCP).into(), mark, time);
        let within = speed(pid, sibling, (beside, 81).into(), Duration::ZERO, Duration::from_millis(500));
        println!("out {:.0} kbit/s, in {:.0} kbit/s, within {:.0} kbit/s", out / 125.0, into / 125.0, within / 125.0);
        let near = |speed: f64, kbit: u32| (0.85..=1.15).contains(&(speed / (f64::from(kbit) * 125.0)));
        assert!(near(out, EGRESS), "{out} bytes/s went out");
        assert!(near(into, INGRESS), "{into} bytes/s came in");
        assert!(within > 10.0 * f64::from(EGRESS) * 125.0, "{within} bytes/s stayed inside");
    })
    .await
    .unwrap();
    world.take_down(&a, &nodes).await;
    world.assert_clean().await;
}

/// A frame in a VXLAN packet, as the UDP payload.
fn tunnelled(vni: u32, frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0][..], &(vni << 8).to_be_bytes(), frame].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_hosts_of_the_vcluster_may_speak_into_its_tunnel() {
    let (world, linux) = world().await;
    let local = docklet_worker_host::Machine::address(&linux.host).expect("a host with a way out");
    let (mut a, nodes) = cluster(&world, 0, 1);
    let elsewhere: docklet_types::name::HostName = "elsewhere".parse().unwrap();
    let far: Ipv4Addr = "198.51.100.2".parse().unwrap();
    let ip = a.network.subnet.node_addresses().nth(7).unwrap();
    let peer = Peer {
        name: "node8".parse().unwrap(),
        ip,
        mac: docklet_types::net::Mac::of_address(ip),
        host: elsewhere.clone(),
    };
    let from = peer.mac.0;
    a.peers.push(peer);
    a.hosts = [("here".parse().unwrap(), local), (elsewhere, far)].into();
    let pid = world.bring_up(&a, &nodes[0]).await;
    let outside = Outside::new(&world.net.to_string());
    let (speaker, to) = (outside.pid(), nodes[0].mac.0);
    let frame = ethernet(to, from, 0x0800, &udp(ip, nodes[0].ip, (1000, 1000)));
    let packet = tunnelled(a.network.vni, &frame);
    tokio::task::spawn_blocking(move || {
        let arrives = |from: Ipv4Addr| {
            let (stop, watching) = watch(pid, MARK);
            let packet = packet.clone();
            inside(speaker, move || {
                let socket = UdpSocket::bind((from, 0)).unwrap();
                socket.send_to(&packet, (host_side(), 4789)).unwrap();
            });
            std::thread::sleep(Duration::from_millis(200));
            stop.send(()).unwrap();
            watching.join().unwrap()
        };
        // The node may answer, and quote what it got.
        assert!(arrives(far) > 0, "a host of the vcluster was not heard");
        assert_eq!(arrives(OUTSIDE), 0, "a stranger spoke into the tunnel");
    })
    .await
    .unwrap();
    // The other host moves to another address: the old one is a stranger's.
    a.hosts.insert("elsewhere".parse().unwrap(), OUTSIDE);
    a.generation += 1;
    ensure(&world, &a).await;
    // A tunnel that was made while this host had another address is made anew, and one that fits is left alone.
    let name = docklet_types::kernel_names::tunnel(a.id);
    let index = || std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).unwrap();
    let (note, before) = (linux.paths.vcluster_state(a.id).join("tunnel.json"), index());
    ensure(&world, &a).await;
    assert_eq!(index(), before);
    let old = std::fs::read_to_string(&note).unwrap();
    let other = old.replace(&format!("\"local\":\"{local}\""), "\"local\":\"198.51.100.77\"");
    assert_ne!(old, other);
    std::fs::write(&note, other).unwrap();
    ensure(&world, &a).await;
    assert_ne!(index(), before);
    assert_eq!(std::fs::read_to_string(&note).unwrap(), old);
    // Nobody has told the planner yet that this host has another address: its own nodes are not behind the tunnel.
    a.hosts.insert("here".parse().unwrap(), "198.51.100.77".parse().unwrap());
    a.generation += 1;
    ensure(&world, &a).await;
    assert_eq!(std::fs::read_to_string(&note).unwrap(), old);
    world.take_down(&a, &nodes).await;
    world.assert_clean().await;
}
