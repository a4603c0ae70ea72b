//! Who can reach whom, and what a hostile root in a node can put on the wire. Linux only: packets are sent from inside
//! the nodes' own network namespaces, and none leaves the machine.

use docklet_types::plan::NodePlan;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::linux::world;
use crate::world::cluster;

/// Long enough for a packet on this machine, short enough to wait for one that must not come.
pub const PATIENCE: Duration = Duration::from_millis(400);

/// Runs in the network namespace of a process.
pub fn inside<T: Send + 'static>(pid: i32, run: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(move || {
        setns(File::open(format!("/proc/{pid}/ns/net")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        run()
    })
    .join()
    .unwrap()
}

pub fn can_connect(from: i32, to: impl Into<SocketAddr>) -> bool {
    let to = to.into();
    inside(from, move || TcpStream::connect_timeout(&to, PATIENCE).is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_reach_their_own_vcluster_and_nothing_else_of_the_host() {
    let (world, _linux) = world().await;
    let (a, a_nodes) = cluster(&world, 0, 2);
    let (b, b_nodes) = cluster(&world, 1, 1);
    let mut pids = Vec::new();
    for node in &a_nodes {
        pids.push(world.bring_up(&a, node).await);
    }
    let b_pid = world.bring_up(&b, &b_nodes[0]).await;

    // Everything the host listens on, at any of its addresses.
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let host_addresses: Vec<Ipv4Addr> = nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter_map(|i| i.address?.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip))
        .filter(|ip| !ip.is_loopback())
        .collect();
    assert!(host_addresses.contains(&a.network.subnet.gateway()));
    tokio::task::spawn_blocking(move || {
        assert!(can_connect(pids[0], (a_nodes[1].ip, 22)), "neighbours must reach each other");
        assert!(can_connect(pids[0], (a_nodes[0].ip, 22)));
        assert!(!can_connect(pids[0], (b_nodes[0].ip, 22)), "another vcluster was reached");
        assert!(!can_connect(b_pid, (a_nodes[0].ip, 22)), "another vcluster was reached");
        for address in host_addresses {
            assert!(!can_connect(pids[0], (address, port)), "the host was reached at {address}");
        }
        // The host itself may speak to its nodes.
        assert!(TcpStream::connect_timeout(&(a_nodes[0].ip, 22).into(), PATIENCE).is_ok());
    })
    .await
    .unwrap();
    drop(listener);
}

/// A network namespace that plays the Internet: one address, reached by a cable of the host.
pub struct Outside {
    pid: std::process::Child,
}

pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(44, 128, 0, 1);
pub const HOST_SIDE: &str = "198.51.100.1";

fn run(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

impl Outside {
    pub fn new(net: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sleep");
        command.arg("300");
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(|| unshare(CloneFlags::CLONE_NEWNET).map_err(Into::into)) };
        let child = command.spawn().unwrap();
        let pid = child.id();
        let it = Self { pid: child };
        run(&format!(
            "ip link del dtoutside 2>/dev/null || true; ip link add dtoutside type veth peer name eth0 netns {pid}
             ip addr add {HOST_SIDE}/24 dev dtoutside; ip link set dtoutside up; ip route add {OUTSIDE}/32 dev dtoutside
             nsenter -t {pid} -n sh -ec 'ip link set lo up; ip addr add {OUTSIDE}/32 dev lo; ip addr add 198.51.100.2/24 dev eth0
             ip link set eth0 up; ip route add {net} via {HOST_SIDE}'"
        ));
        it
    }

    pub fn pid(&self) -> i32 {
        self.pid.id() as i32
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", "dtoutside"]).status();
        let _ = self.pid.kill();
        let _ = self.pid.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_way_out_is_translated_and_there_is_no_way_in() {
    let (world, _linux) = world().await;
    let (a, nodes) = cluster(&world, 0, 1);
    let pid = world.bring_up(&a, &nodes[0]).await;
    let ip = nodes[0].ip;
    let net = world.net.to_string();
    tokio::task::spawn_blocking(move || {
        let outside = Outside::new(&net);
        let listener = inside(outside.pid(), || TcpListener::bind((OUTSIDE, 80)).unwrap());
        let asking = std::thread::spawn(move || can_connect(pid, (OUTSIDE, 80)));
        let (_, peer) = listener.accept().unwrap();
        assert!(asking.join().unwrap());
        assert_eq!(peer.ip().to_string(), HOST_SIDE, "the node's own address was seen outside");
        // The world knows the way to the node, and still does not get there.
        assert!(!can_connect(outside.pid(), (ip, 22)), "the node was reached from outside");
        // A network of the host's own neighbourhood is not for nodes.
        let near = inside(outside.pid(), || TcpListener::bind("198.51.100.2:80").unwrap());
        assert!(!can_connect(pid, near.local_addr().unwrap()), "a neighbour of the host was reached");
    })
    .await
    .unwrap();
}

/// A raw socket on the node's eth0.
fn raw() -> OwnedFd {
    // SAFETY: takes numbers; the descriptor that comes back is ours.
    let fd = unsafe {
        libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_NONBLOCK, i32::from((libc::ETH_P_ALL as u16).to_be()))
    };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: as above.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let index = nix::net::if_::if_nametoindex("eth0").unwrap();
    // SAFETY: plain data.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: a socket address with its true length.
    let bound =
        unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    fd
}

fn send(frame: Vec<u8>) {
    let fd = raw();
    // SAFETY: a buffer with its length.
    let sent = unsafe { libc::send(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}

/// Watches the wire for frames that hold the text, until it is told to stop.
pub fn watch(pid: i32, text: &'static [u8]) -> (mpsc::Sender<()>, std::thread::JoinHandle<usize>) {
    let (stop, stopped) = mpsc::channel();
    let (ready, is_ready) = mpsc::channel();
    let watching = std::thread::spawn(move || {
        inside(pid, move || {
            let fd = raw();
            ready.send(()).unwrap();
            let mut seen = 0;
            let mut buffer = [0u8; 2048];
            loop {
                // SAFETY: a buffer with its length.
                let n = unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
                if n > 0 {
                    seen += usize::from(buffer[..n as usize].windows(text.len()).any(|w| w == text));
                } else if stopped.try_recv().is_ok() {
                    return seen;
                } else {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        })
    });
    is_ready.recv().unwrap();
    (stop, watching)
}

pub const MARK: &[u8] = b"docklet-spoof-mark";
const BROADCAST: [u8; 6] = [0xff; 6];

pub fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes(), payload].concat()
}

pub fn udp(from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let length = (20 + 8 + MARK.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    ip.extend(from.octets());
    ip.extend(to.octets());
    let sum = ip.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [ports.0.to_be_bytes(), ports.1.to_be_bytes(), (8 + MARK.len() as u16).to_be_bytes(), [0, 0]].concat();
    [ip, udp, MARK.to_vec()].concat()
}

fn arp(operation: u16, mac: [u8; 6], ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4];
    let body = [&operation.to_be_bytes()[..], &mac, &ip.octets(), &BROADCAST, &target.octets(), MARK].concat();
    [&head[..], &body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_forged_leaves_a_node() {
    let (world, _linux) = world().await;
    let (a, nodes) = cluster(&world, 0, 2);
    let mut pids = Vec::new();
    for node in &nodes {
        pids.push(world.bring_up(&a, node).await);
    }
    let gateway = a.network.subnet.gateway();
    let [bad, victim]: [NodePlan; 2] = nodes.try_into().unwrap();
    tokio::task::spawn_blocking(move || {
        let (me, it) = (bad.mac.0, victim.mac.0);
        let all = Ipv4Addr::BROADCAST;
        let count = |frame: Vec<u8>| {
            let (stop, watching) = watch(pids[1], MARK);
            let from = pids[0];
            inside(from, move || send(frame));
            let begin = Instant::now();
            while begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
            stop.send(()).unwrap();
            watching.join().unwrap()
        };
        // The same frames, honest, arrive: the watcher sees what there is to see.
        assert_eq!(count(ethernet(BROADCAST, me, 0x0800, &udp(bad.ip, all, (1000, 1000)))), 1);
        assert_eq!(count(ethernet(BROADCAST, me, 0x0806, &arp(1, me, bad.ip, victim.ip))), 1);
        let forged: Vec<(&str, Vec<u8>)> = vec![
            ("an IP address of another node", ethernet(it, me, 0x0800, &udp(victim.ip, victim.ip, (1000, 1000)))),
            ("an IP address of the gateway", ethernet(BROADCAST, me, 0x0800, &udp(gateway, all, (1000, 1000)))),
            ("a MAC of another node", ethernet(BROADCAST, it, 0x0800, &udp(bad.ip, all, (1000, 1000)))),
            ("an ARP answer for the gateway", ethernet(BROADCAST, me, 0x0806, &arp(2, me, gateway, victim.ip))),
            ("an ARP answer with another MAC in it", ethernet(BROADCAST, me, 0x0806, &arp(2, it, bad.ip, victim.ip))),
            ("an ARP answer from another MAC", ethernet(BROADCAST, it, 0x0806, &arp(2, me, bad.ip, victim.ip))),
            ("a DHCP server's answer", ethernet(BROADCAST, me, 0x0800, &udp(bad.ip, all, (67, 68)))),
            ("IPv6", ethernet([0x33, 0x33, 0, 0, 0, 1], me, 0x86dd, MARK)),
            ("a VLAN", ethernet(BROADCAST, me, 0x8100, &[&[0, 5, 8, 0][..], &udp(bad.ip, all, (1000, 1000))].concat())),
            ("spanning tree", ethernet([0x01, 0x80, 0xc2, 0, 0, 0], me, 0x0026, MARK)),
            ("another protocol", ethernet(BROADCAST, me, 0x88b5, MARK)),
        ];
        for (what, frame) in forged {
            assert_eq!(count(frame), 0, "{what} arrived");
        }
    })
    .await
    .unwrap();
}
