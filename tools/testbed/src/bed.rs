//! Bringing the testbed up and down, and what is done to its machines in between.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::machine::{Machine, switch_off, switch_on};
use crate::system::{At, Error, Result, alive, end, run, wait};
use crate::{etcd, gluster};

/// Addresses: the master's, etcd's members from here on, the file server's, the hosts' from here on.
const MASTER: u8 = 1;
const ETCD: u8 = 2;
const FILES: u8 = 9;
const HOSTS: u8 = 11;
/// Members of an etcd that is not the master's own.
const MEMBERS: u8 = 3;
const PORTAL: &str = "http://10.231.0.1:8000";

/// What `up` makes.
pub struct Plan<'a> {
    pub hosts: u8,
    /// etcd on three machines of its own, rather than the master's.
    pub three_members: bool,
    /// FS_PREFIX/global on GlusterFS, rather than one directory.
    pub glusterfs: bool,
    /// The store of images to take images from.
    pub images: &'a Path,
    /// More lines for every docklet.conf.
    pub settings: &'a [String],
}

/// See the module.
pub struct Bed {
    prefix: PathBuf,
}

impl Bed {
    pub fn new(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    fn machine(&self, name: &str, number: u8) -> Machine {
        Machine::new(&self.prefix, name, number)
    }

    fn master(&self) -> Machine {
        self.machine("master", MASTER)
    }

    fn members(&self) -> Vec<Machine> {
        (1..=MEMBERS).map(|n| self.machine(&format!("etcd{n}"), ETCD + n - 1)).collect()
    }

    fn file_server(&self) -> Machine {
        self.machine("files", FILES)
    }

    fn host(&self, number: u8) -> Machine {
        self.machine(&format!("h{number}"), HOSTS + number - 1)
    }

    /// The hosts that there are.
    fn hosts(&self) -> Vec<Machine> {
        (1..=u8::MAX - HOSTS).map(|n| self.host(n)).filter(|m| m.directory.exists()).collect()
    }

    /// Any machine that there is.
    pub fn find(&self, name: &str) -> Result<Machine> {
        let others = [self.master(), self.file_server()];
        let mut all = others.into_iter().chain(self.members()).chain(self.hosts());
        all.find(|m| m.name == name && m.directory.exists()).ok_or_else(|| Error::NoMachine(name.to_owned()))
    }

    pub fn up(&self, plan: &Plan<'_>) -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Error::NotRoot);
        }
        if self.prefix.exists() {
            return Err(Error::Exists);
        }
        fs::create_dir_all(&self.prefix).at("make", &self.prefix)?;
        switch_on()?;
        let master = self.master();
        master.up()?;
        if plan.glusterfs {
            let server = self.file_server();
            server.up()?;
            gluster::up(&server)?;
            println!("{}: GlusterFS serves", server.name);
        }
        self.share(&master, plan)?;
        self.fill_images(&master, plan.images)?;
        let etcd = if plan.three_members {
            let members = self.members();
            for member in &members {
                member.up()?;
            }
            etcd::up(&members, &master)?;
            println!("etcd1, etcd2, etcd3: etcd runs");
            let addresses: Vec<String> = members.iter().map(|m| format!("{}:2379", m.address())).collect();
            addresses.join(",")
        } else {
            "localhost:2379".to_owned()
        };
        configure(&master, plan, &format!("ETCD={etcd}\nMASTER_IP={}\n", master.address()))?;
        program(&master, "docklet-master", &["init"])?;
        println!("master: the portal is at {PORTAL}");
        for number in 1..=plan.hosts {
            self.add_host(&self.host(number), plan)?;
        }
        println!(
            "docklet-testbed exec master -- env DOCKLET_URL={PORTAL} docklet login root < {}",
            master.directory.join("local/generated_password.txt").display()
        );
        Ok(())
    }

    /// Starts a host as an operator would: with a token of the master.
    fn add_host(&self, host: &Machine, plan: &Plan<'_>) -> Result<()> {
        host.up()?;
        self.share(host, plan)?;
        configure(host, plan, &format!("HOST_NAME={}\nNETWORK_DEVICE=eth0\n", host.name))?;
        let told = program(&self.master(), "docklet-master", &["token"])?;
        let words: Vec<&str> = told.split_whitespace().skip(1).collect();
        program(host, "docklet-worker", &words)?;
        program(host, "docklet-worker", &["start"])?;
        println!("{}: joined", host.name);
        Ok(())
    }

    /// FS_PREFIX/global of a machine.
    fn share(&self, machine: &Machine, plan: &Plan<'_>) -> Result<()> {
        let place = machine.directory.join("global");
        if plan.glusterfs {
            return gluster::mount(machine, &self.file_server(), &place);
        }
        let shared = self.prefix.join("global");
        fs::create_dir_all(&shared).at("make", &shared)?;
        std::os::unix::fs::symlink(&shared, &place).at("make", &place)
    }

    fn fill_images(&self, master: &Machine, images: &Path) -> Result<()> {
        let target = master.directory.join("global/images").display().to_string();
        master.run(&["mkdir", "-p", &target])?;
        for entry in fs::read_dir(images).at("read", images)?.flatten() {
            // Hard links where that can be: an image layout is never written in place.
            let from = entry.path().display().to_string();
            if master.run(&["cp", "-al", &from, &target]).is_err() {
                master.run(&["cp", "-a", &from, &target])?;
            }
        }
        Ok(())
    }

    /// Its exit code is the command's.
    pub fn exec(&self, name: &str, argv: &[String]) -> Result<u8> {
        let status = self
            .find(name)?
            .command(&argv[0])?
            .args(&argv[1..])
            .status()
            .map_err(|source| Error::Run { program: argv[0].clone(), source })?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    pub fn partition(&self, name: &str, cut: bool) -> Result<()> {
        self.find(name)?.partition(cut)
    }

    /// Ends the program of a machine as kill -9 does: a host's worker, the master, or a member of etcd.
    pub fn kill(&self, name: &str) -> Result<()> {
        let machine = self.find(name)?;
        if self.members().iter().any(|m| m.name == name) {
            return etcd::kill(&machine);
        }
        match alive(&pid_file(&machine)) {
            Some(pid) => end(pid),
            None => Ok(()),
        }
    }

    /// Starts the program of a machine again.
    pub fn start(&self, name: &str) -> Result<()> {
        let machine = self.find(name)?;
        if self.members().iter().any(|m| m.name == name) {
            return etcd::start(&machine, &self.members());
        }
        program(&machine, program_of(&machine), &["start"]).map(|_| ())
    }

    /// Resets a host: no process of it and nothing of it in the kernel is left. Its worker is started by `start`.
    pub fn reboot(&self, name: &str) -> Result<()> {
        let machine = self.find(name)?;
        if !self.hosts().iter().any(|host| host.name == name) {
            return Err(Error::NoHost(name.to_owned()));
        }
        machine.reboot()?;
        let files = self.file_server();
        if files.is_up() {
            gluster::mount(&machine, &files, &machine.directory.join("global"))?;
        }
        Ok(())
    }

    /// Goes on past what fails; the first failure is told.
    pub fn down(&self) -> Result<()> {
        let mut outcome = Ok(());
        let mut tried = |result: Result<()>| {
            if outcome.is_ok() {
                outcome = result;
            }
        };
        for host in self.hosts().iter().filter(|host| host.is_up()) {
            tried(program(host, "docklet-worker", &["stop"]).map(|_| ()));
            tried(program(host, "docklet-worker", &["uninstall", "--yes"]).map(|_| ()));
        }
        let others = [self.master(), self.file_server()];
        for machine in self.hosts().iter().chain(&others).chain(&self.members()) {
            tried(machine.down());
        }
        tried(switch_off());
        if self.prefix.exists() {
            // What was mounted on a machine went with it; processes may take a moment to let go.
            let removed = wait(Duration::from_secs(5), "the end of all mounts", || {
                fs::remove_dir_all(&self.prefix).is_ok() || !self.prefix.exists()
            });
            tried(removed.or_else(|_| run("rm", ["-rf".as_ref(), self.prefix.as_os_str()])));
        }
        outcome
    }
}

fn conf(machine: &Machine) -> PathBuf {
    machine.directory.join("docklet.conf")
}

fn program_of(machine: &Machine) -> &'static str {
    if machine.name == "master" { "docklet-master" } else { "docklet-worker" }
}

fn pid_file(machine: &Machine) -> PathBuf {
    machine.directory.join(format!("local/run/{}.pid", program_of(machine)))
}

fn configure(machine: &Machine, plan: &Plan<'_>, more: &str) -> Result<()> {
    let mut text = format!(
        "FS_PREFIX={}\nSTORAGE=file\nDISKPOOL_SIZE=8192\nCLUSTER_NET=172.28.0.1/16\nDEFAULT_IMAGE=small\n{more}",
        machine.directory.display()
    );
    if machine.name == "master" {
        text.push_str("CLUSTER_NAME=testbed\n");
    }
    for line in plan.settings {
        // Instead of the testbed's own.
        let key = line.split_inclusive('=').next().unwrap_or(line);
        text = text.lines().filter(|own| !own.starts_with(key)).flat_map(|own| [own, "\n"]).collect();
        text.push_str(line);
        text.push('\n');
    }
    let conf = conf(machine);
    fs::write(&conf, text).at("write", &conf)
}

/// Runs one of Docklet's programs on a machine; returns what it said.
fn program(machine: &Machine, program: &str, arguments: &[&str]) -> Result<String> {
    let conf = conf(machine).display().to_string();
    let all: Vec<&str> = [program, "--config", &conf].iter().chain(arguments).copied().collect();
    machine.run(&all)
}
