//! What only the real host has.

use docklet_types::config::Config;
use docklet_types::image::ImageRef;
use docklet_types::net::Subnet;
use docklet_types::paths::Paths;
use docklet_types::spec::SshKeyPair;
use docklet_worker_host::linux::LinuxHost;
use docklet_worker_host::{Access, Containers, Disks, Machine, Networks, Owner};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::image;
use crate::world::{READY, World, cluster};

/// One of sixteen networks, held for as long as the file is open: tests run at the same time.
fn claim_network() -> (Subnet, File, u32) {
    for index in 0..16u32 {
        let file = File::create(format!("/tmp/docklet-test-net-{index}.lock")).unwrap();
        if file.try_lock().is_ok() {
            return (format!("172.30.{}.0/20", index * 16).parse().unwrap(), file, index);
        }
    }
    panic!("sixteen tests hold a network each");
}

pub struct Linux {
    pub host: LinuxHost,
    pub paths: Paths,
    /// The installation's name.
    pub cluster: docklet_types::name::ClusterName,
}

/// A prepared installation in a directory of its own. `image` fills the images in and names the one to use.
pub async fn world_with(image: impl FnOnce(&Paths) -> ImageRef, storage: &str) -> (World, Linux) {
    assert!(nix::unistd::geteuid().is_root(), "these tests start containers and need root");
    let (net, lock, index) = claim_network();
    let prefix = PathBuf::from(format!("/tmp/dkt-{}-{index}", std::process::id()));
    fs::create_dir_all(&prefix).unwrap();
    let text = format!(
        "CLUSTER_NAME=t{}x{index}\nFS_PREFIX={}\nCLUSTER_NET={net}\nSTORAGE={storage}\nDISKPOOL_SIZE=2048\n",
        std::process::id(),
        prefix.display()
    );
    let config = Config::parse(&text, []).unwrap();
    let paths = Paths::new(&prefix);
    let image = image(&paths);
    crate::share::mark(&paths, config.cluster_name.as_str());
    let make = {
        let (config, paths) = (config.clone(), paths.clone());
        move || {
            let mut host = LinuxHost::new(&config, "here".parse().unwrap(), paths.clone());
            host.program = image::helper();
            host
        }
    };
    let host = make();
    let checks = host.prepare().await.unwrap();
    let failed: Vec<_> = checks.iter().filter(|c| c.outcome == docklet_types::host::CheckOutcome::Failed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let end = {
        let host = host.clone();
        let prefix = prefix.clone();
        async move {
            undo(&host).await;
            host.release().await.unwrap();
            fs::remove_dir_all(&prefix).unwrap();
            drop(lock);
        }
    };
    let restarted = Box::new(move || Arc::new(make()) as Arc<dyn crate::world::Everything>);
    let world = World { host: Arc::new(host.clone()), image, net, restarted, end: Some(Box::pin(end)) };
    (world, Linux { host, paths, cluster: config.cluster_name })
}

/// Removes whatever a test has left.
async fn undo(host: &LinuxHost) {
    for owned in host.inventory().await.unwrap() {
        match owned.owner {
            Owner::Node(id) => {
                host.stop(id, Duration::ZERO).await.unwrap();
                host.remove_port(id).await.unwrap();
                host.remove_disk(id).await.unwrap();
            }
            Owner::Vcluster(id) => host.remove_vcluster(id).await.unwrap(),
            Owner::Host | Owner::Unknown => {}
        }
    }
}

pub async fn world() -> (World, Linux) {
    world_with(image::tiny, "file").await
}

/// An image with systemd, from where this machine keeps its own.
fn systemd(paths: &Paths) -> ImageRef {
    let name = std::env::var("DOCKLET_TEST_IMAGE").unwrap_or_else(|_| "small".to_owned());
    let from = PathBuf::from("/opt/docklet/global/images").join(&name);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(from.join("index.json")).expect("build the image first: basefs/")).unwrap();
    let newest = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["annotations"]["org.opencontainers.image.ref.name"].is_string())
        .unwrap();
    fs::create_dir_all(paths.images()).unwrap();
    std::os::unix::fs::symlink(&from, paths.images().join(&name)).unwrap();
    ImageRef { name: name.parse().unwrap(), digest: newest["digest"].as_str().unwrap().parse().unwrap() }
}

/// A key pair that sshd takes.
fn ssh_key(paths: &Paths) -> SshKeyPair {
    let file = paths.prefix().join("key");
    let _ = fs::remove_file(&file);
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    SshKeyPair {
        private: fs::read_to_string(&file).unwrap(),
        public: fs::read_to_string(file.with_extension("pub")).unwrap(),
    }
}

/// Not a pass or fail of speed: prints how long each step took, for ten nodes with systemd (or DOCKLET_TEST_NODES).
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement; needs an image with systemd in /opt/docklet/global/images"]
async fn measure() {
    let count = std::env::var("DOCKLET_TEST_NODES").map_or(10, |n| n.parse().unwrap());
    let (world, linux) = world_with(systemd, "file").await;
    let host = &linux.host;
    let at = Instant::now();
    world.host.ensure_image(&world.image).await.unwrap();
    println!("image    {:>8.1?}", at.elapsed());
    for round in 0..3 {
        let (mut vcluster, nodes) = cluster(&world, 0, count);
        vcluster.keys.host = ssh_key(&linux.paths);
        let vcluster = Arc::new(vcluster);
        let begin = Instant::now();
        host.ensure_vcluster(&vcluster).await.unwrap();
        println!("round {round}\nvcluster {:>8.1?}", begin.elapsed());
        let tasks: Vec<_> = nodes
            .iter()
            .cloned()
            .map(|node| {
                let (host, vcluster) = (host.clone(), Arc::clone(&vcluster));
                tokio::spawn(async move {
                    let mut times = vec![begin.elapsed()];
                    host.ensure_disk(&node, &vcluster).await.unwrap();
                    times.push(begin.elapsed());
                    host.ensure_port(&node).await.unwrap();
                    times.push(begin.elapsed());
                    host.start(&node, &vcluster).await.unwrap();
                    times.push(begin.elapsed());
                    host.wait_ready(node.id, READY).await.unwrap();
                    times.push(begin.elapsed());
                    times
                })
            })
            .collect();
        for task in tasks {
            println!("  disk port boot ready {:.0?}", task.await.unwrap());
        }
        println!("ready    {:>8.1?}", begin.elapsed());
        let id = nodes[0].id;
        let at = Instant::now();
        let out = host.exec(id, &["hostname".to_owned()], "", READY).await.unwrap();
        println!("exec     {:>8.1?} {out:?}", at.elapsed());
        let at = Instant::now();
        let socket = host.dial(id, 22).await.unwrap();
        println!("dial     {:>8.1?} {}", at.elapsed(), socket.is_some());
        let at = Instant::now();
        drop(host.terminal(id, "one", 80, 24).await.unwrap());
        println!("terminal {:>8.1?}", at.elapsed());
        let at = Instant::now();
        let observed = host.observe().await.unwrap();
        println!("observe  {:>8.1?} {} nodes", at.elapsed(), observed.nodes.len());
        let begin = Instant::now();
        let tasks: Vec<_> = nodes
            .iter()
            .map(|n| n.id)
            .map(|id| {
                let host = host.clone();
                tokio::spawn(async move {
                    host.stop(id, Duration::ZERO).await.unwrap();
                    let stopped = begin.elapsed();
                    host.remove_port(id).await.unwrap();
                    let port = begin.elapsed();
                    host.remove_disk(id).await.unwrap();
                    [stopped, port, begin.elapsed()]
                })
            })
            .collect();
        for task in tasks {
            println!("  stopped port disk {:.0?}", task.await.unwrap());
        }
        host.remove_vcluster(vcluster.id).await.unwrap();
        println!("gone     {:>8.1?}", begin.elapsed());
        world.assert_clean().await;
    }
}
