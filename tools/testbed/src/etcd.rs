//! An etcd of three members on machines of their own, whose authority is the cluster's.

use std::fs;
use std::path::Path;
use std::time::Duration;

use docklet_identity::authority::{Authority, Holder};
use docklet_types::paths::{IdentityFiles, Paths};
use docklet_types::time::Micros;

use crate::machine::Machine;
use crate::system::{At, Error, Result, alive, end, wait};

const LIFETIME_S: i64 = 30 * 24 * 3600;

/// Starts the members. The authority that all of them trust is put where the master finds it.
pub fn up(members: &[Machine], master: &Machine) -> Result<()> {
    let now = Micros::now();
    let paths = Paths::new(&master.directory);
    let (certificate, key) = (paths.identity().join("ca.crt"), paths.authority_key());
    let authority = Authority::make("Docklet testbed", &certificate, &key, now).map_err(Error::Authority)?;
    for member in members {
        let reached_at = ["localhost".to_owned(), "127.0.0.1".to_owned(), member.address()];
        let holder = Holder::Etcd { reached_at: &reached_at };
        authority.equip(&holder, &files(member), now, LIFETIME_S).map_err(Error::Authority)?;
        start(member, members)?;
    }
    let probe = authority.equip(&Holder::Master, &paths.master_identity(), now, LIFETIME_S);
    probe.map_err(Error::Authority)?;
    let health = health_command(members, &paths.master_identity());
    let health: Vec<&str> = health.iter().map(String::as_str).collect();
    wait(Duration::from_secs(30), "etcd", || master.run(&health).is_ok())
}

fn health_command(members: &[Machine], identity: &IdentityFiles) -> Vec<String> {
    let endpoints: Vec<String> = members.iter().map(|m| format!("https://{}:2379", m.address())).collect();
    vec![
        "etcdctl".to_owned(),
        format!("--endpoints={}", endpoints.join(",")),
        format!("--cacert={}", identity.authority.display()),
        format!("--cert={}", identity.certificate.display()),
        format!("--key={}", identity.key.display()),
        "endpoint".to_owned(),
        "health".to_owned(),
    ]
}

fn files(member: &Machine) -> IdentityFiles {
    Paths::new(&member.directory).etcd_identity()
}

/// Starts one member, with the data it has.
pub fn start(member: &Machine, members: &[Machine]) -> Result<()> {
    let client = format!("https://{}:2379", member.address());
    let peer = format!("https://{}:2380", member.address());
    let cluster: Vec<String> = members.iter().map(|m| format!("{}=https://{}:2380", m.name, m.address())).collect();
    let IdentityFiles { authority, certificate, key } = files(member);
    let path = |path: &Path| path.display().to_string();
    let data = member.directory.join("data");
    let arguments = [
        ["--name", &member.name],
        ["--data-dir", &path(&data)],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", &peer],
        ["--initial-advertise-peer-urls", &peer],
        ["--initial-cluster", &cluster.join(",")],
        ["--trusted-ca-file", &path(&authority)],
        ["--cert-file", &path(&certificate)],
        ["--key-file", &path(&key)],
        ["--peer-trusted-ca-file", &path(&authority)],
        ["--peer-cert-file", &path(&certificate)],
        ["--peer-key-file", &path(&key)],
        ["--peer-cert-allowed-cn", "docklet-etcd"],
        ["--max-txn-ops", "4096"],
        ["--logger", "zap"],
    ];
    let mut argv = vec!["etcd".to_owned(), "--client-cert-auth".to_owned(), "--peer-client-cert-auth".to_owned()];
    argv.extend(arguments.iter().flatten().map(|word| (*word).to_owned()));
    member.start("etcd", &argv)
}

/// Ends one member at once; its data stays.
pub fn kill(member: &Machine) -> Result<()> {
    let file = member.directory.join("etcd.pid");
    if let Some(pid) = alive(&file) {
        end(pid)?;
    }
    match fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", &file),
        _ => Ok(()),
    }
}
