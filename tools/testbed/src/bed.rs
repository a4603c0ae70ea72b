//! Bringing the testbed up and down, and what is done to its hosts in between.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::system::{At, Error, Result, ip, run};

/// Where the master, and etcd beside it, are reached.
const MASTER: &str = "10.231.0.1";
const HOLDER: &str = "holder.pid";
const ETCD: &str = "etcd.pid";

/// The name of a host's network namespace; that of the master is `testbed-master`.
pub fn namespace(host: &str) -> String {
    format!("testbed-{host}")
}

/// See the module.
pub struct Bed {
    prefix: PathBuf,
}

impl Bed {
    pub fn new(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    fn directory(&self, host: &str) -> PathBuf {
        self.prefix.join(host)
    }

    fn conf(&self, host: &str) -> PathBuf {
        self.directory(host).join("docklet.conf")
    }

    /// The hosts that there are, by their directories.
    fn hosts(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.prefix).into_iter().flatten().flatten();
        let mut hosts: Vec<String> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| name.strip_prefix('h').is_some_and(|n| n.parse::<u8>().is_ok()))
            .collect();
        hosts.sort_by_key(|name| name[1..].parse::<u8>().unwrap_or(0));
        hosts
    }

    pub fn up(&self, hosts: u8, images: &Path) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        if self.prefix.exists() {
            return Err(Error::Exists);
        }
        let global = self.prefix.join("global");
        fs::create_dir_all(global.join("images")).at("make", &global)?;
        for entry in fs::read_dir(images).at("read", images)?.flatten() {
            // Hard links: an image layout is never written in place.
            run("cp", ["-al".as_ref(), entry.path().as_os_str(), global.join("images").as_os_str()])?;
        }
        self.underlay()?;
        self.prepare("master", "")?;
        self.etcd()?;
        self.program("master", "docklet-master", &["init"])?;
        println!("master: portal at http://{MASTER}:8000 in the network namespace {}", namespace("master"));
        for number in 1..=hosts {
            let host = format!("h{number}");
            self.host(&host, number)?;
            println!("{host}: runs");
        }
        println!(
            "docklet-testbed exec master -- env DOCKLET_URL=http://{MASTER}:8000 docklet login root < {}",
            self.password().display()
        );
        Ok(())
    }

    fn password(&self) -> PathBuf {
        self.directory("master").join("local/generated_password.txt")
    }

    /// The master's namespace, with the bridge that joins all.
    fn underlay(&self) -> Result<()> {
        let name = namespace("master");
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} link add tb0 type bridge"))?;
        ip(&format!("-n {name} addr add {MASTER}/24 dev tb0"))?;
        ip(&format!("-n {name} link set tb0 up"))
    }

    fn host(&self, host: &str, number: u8) -> Result<()> {
        let (name, master) = (namespace(host), namespace("master"));
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {master} link add tb-{host} type veth peer name eth0 netns {name}"))?;
        ip(&format!("-n {master} link set tb-{host} master tb0 up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add 10.231.0.{}/24 dev eth0", 10 + u16::from(number)))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add default via {MASTER}"))?;
        self.prepare(host, &format!("HOST_NAME={host}\nNETWORK_DEVICE=eth0\n"))?;
        self.hold(host)?;
        self.program(host, "docklet-worker", &["start"])
    }

    /// The directory and configuration of a host or of the master.
    fn prepare(&self, host: &str, more: &str) -> Result<()> {
        let directory = self.directory(host);
        fs::create_dir_all(&directory).at("make", &directory)?;
        let shared = directory.join("global");
        std::os::unix::fs::symlink(self.prefix.join("global"), &shared).at("make", &shared)?;
        let text = format!(
            "CLUSTER_NAME=testbed\nFS_PREFIX={}\nSTORAGE=file\nDISKPOOL_SIZE=8192\nCLUSTER_NET=172.28.0.1/16\n\
             ETCD={MASTER}:2379\nDEFAULT_IMAGE=small\n{more}",
            directory.display()
        );
        let conf = self.conf(host);
        fs::write(&conf, text).at("write", &conf)
    }

    fn etcd(&self) -> Result<()> {
        let directory = self.directory("master");
        let client = format!("http://{MASTER}:2379");
        let peer = format!("http://{MASTER}:2380");
        let log = directory.join("etcd.log");
        let out = fs::File::create(&log).at("write", &log)?;
        let err = out.try_clone().at("write", &log)?;
        let child = Command::new("ip")
            .args(["netns", "exec", &namespace("master"), "etcd", "--name", "testbed", "--data-dir"])
            .arg(directory.join("etcd"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("testbed={peer}"), "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Run { program: "etcd".to_owned(), source })?;
        self.note(&directory.join(ETCD), child.id())?;
        let probe = || self.exec_quietly("master", &["etcdctl", "--endpoints", &client, "endpoint", "health"]);
        wait(Duration::from_secs(20), "etcd", || probe().is_ok())
    }

    fn note(&self, path: &Path, pid: u32) -> Result<()> {
        fs::write(path, pid.to_string()).at("write", path)
    }

    fn hold(&self, host: &str) -> Result<()> {
        let program = std::env::current_exe().at("find", "/proc/self/exe")?;
        let mut child = Command::new(&program)
            .args(["hold", host])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // Whoever reads what the testbed says must not wait for the holder's end.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Run { program: program.display().to_string(), source })?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).at("read", "the holder's answer")?;
        }
        if line.trim() != "held" {
            return Err(Error::Late("a host's namespaces"));
        }
        self.note(&self.directory(host).join(HOLDER), child.id())
    }

    /// A command that runs in the namespaces of a host, or in the master's.
    fn inside(&self, host: &str, program: &str) -> Result<Command> {
        if host == "master" {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &namespace(host), program]);
            return Ok(command);
        }
        let holder = self.pid(&self.directory(host).join(HOLDER)).ok_or_else(|| Error::NoHost(host.to_owned()))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &holder.to_string(), "--net", "--mount", "--", program]);
        Ok(command)
    }

    fn program(&self, host: &str, program: &str, arguments: &[&str]) -> Result<()> {
        let conf = self.conf(host).display().to_string();
        let all: Vec<&str> = [program, "--config", &conf].iter().chain(arguments).copied().collect();
        self.exec_quietly(host, &all)
    }

    fn exec_quietly(&self, host: &str, argv: &[&str]) -> Result<()> {
        let output = self
            .inside(host, argv[0])?
            .args(&argv[1..])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Run { program: argv[0].to_owned(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(Error::Failed { command: argv.join(" "), said: String::from_utf8_lossy(&said).trim().to_owned() })
    }

    /// Its exit code is the command's.
    pub fn exec(&self, host: &str, argv: &[String]) -> Result<u8> {
        let status = self
            .inside(host, &argv[0])?
            .args(&argv[1..])
            .status()
            .map_err(|source| Error::Run { program: argv[0].clone(), source })?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    fn known(&self, host: &str) -> Result<()> {
        if self.hosts().iter().any(|h| h == host) { Ok(()) } else { Err(Error::NoHost(host.to_owned())) }
    }

    pub fn partition(&self, host: &str, cut: bool) -> Result<()> {
        self.known(host)?;
        let state = if cut { "down" } else { "up" };
        ip(&format!("-n {} link set tb-{host} {state}", namespace("master")))
    }

    pub fn kill(&self, host: &str) -> Result<()> {
        self.known(host)?;
        let file = self.directory(host).join("local/run/docklet-worker.pid");
        match self.pid(&file) {
            Some(pid) => kill(pid),
            None => Ok(()),
        }
    }

    /// The process of a pid file, if it lives.
    fn pid(&self, file: &Path) -> Option<i32> {
        let pid: i32 = fs::read_to_string(file).ok()?.trim().parse().ok()?;
        Path::new("/proc").join(pid.to_string()).exists().then_some(pid)
    }

    /// Goes on past what fails; the first failure is told.
    pub fn down(&self) -> Result<()> {
        let mut outcome = Ok(());
        let mut tried = |result: Result<()>| {
            if outcome.is_ok() {
                outcome = result;
            }
        };
        for host in self.hosts() {
            if self.inside(&host, "true").is_ok() {
                tried(self.program(&host, "docklet-worker", &["stop"]));
                tried(self.program(&host, "docklet-worker", &["uninstall", "--yes"]));
            }
            if let Some(holder) = self.pid(&self.directory(&host).join(HOLDER)) {
                tried(kill(holder));
            }
            tried(delete_namespace(&namespace(&host)));
        }
        if self.conf("master").exists() {
            // Where it was never started there is nothing to stop.
            let _ = self.program("master", "docklet-master", &["stop"]);
            if let Some(etcd) = self.pid(&self.directory("master").join(ETCD)) {
                tried(kill(etcd));
            }
        }
        tried(delete_namespace(&namespace("master")));
        if self.prefix.exists() {
            tried(fs::remove_dir_all(&self.prefix).at("remove", &self.prefix));
        }
        outcome
    }
}

fn delete_namespace(name: &str) -> Result<()> {
    if Path::new("/run/netns").join(name).exists() { ip(&format!("netns del {name}")) } else { Ok(()) }
}

fn kill(pid: i32) -> Result<()> {
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {
            wait(Duration::from_secs(5), "the end of a process", || !Path::new("/proc").join(pid.to_string()).exists())
        }
        Err(errno) => Err(Error::Run { program: format!("kill {pid}"), source: errno.into() }),
    }
}

fn wait(limit: Duration, what: &'static str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            return Err(Error::Late(what));
        }
        // Nothing tells of these; poll(2) is the pause.
        let _ = nix::poll::poll(&mut [], 50u16);
    }
    Ok(())
}
