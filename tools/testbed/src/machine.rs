//! One machine of the testbed: a network namespace on the switch, a mount namespace with its own `/sys`, and a control
//! group for what runs on it. An idle process holds them.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::system::{At, Error, Result, alive, end, ip, wait};

/// The namespace with the bridge that joins all machines. Nothing leads out of it.
const SWITCH: &str = "testbed-switch";
const CGROUPS: &str = "/sys/fs/cgroup";

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: String,
    /// The last number of its address.
    number: u8,
    /// Everything of it.
    pub directory: PathBuf,
}

impl Machine {
    pub fn new(prefix: &Path, name: &str, number: u8) -> Self {
        Self { name: name.to_owned(), number, directory: prefix.join(name) }
    }

    pub fn address(&self) -> String {
        format!("10.231.0.{}", self.number)
    }

    fn namespace(&self) -> String {
        format!("testbed-{}", self.name)
    }

    /// Its link at the switch.
    fn plug(&self) -> String {
        format!("tb-{}", self.name)
    }

    fn holder_file(&self) -> PathBuf {
        self.directory.join("holder.pid")
    }

    /// The process that holds its namespaces.
    fn holder(&self) -> Result<i32> {
        alive(&self.holder_file()).ok_or_else(|| Error::NoMachine(self.name.clone()))
    }

    pub fn is_up(&self) -> bool {
        self.holder().is_ok()
    }

    /// Connects it and starts what holds it.
    pub fn up(&self) -> Result<()> {
        fs::create_dir_all(&self.directory).at("make", &self.directory)?;
        let (name, plug) = (self.namespace(), self.plug());
        ip(&format!("netns add {name}"))?;
        ip(&format!("-n {SWITCH} link add {plug} type veth peer name eth0 netns {name}"))?;
        ip(&format!("-n {SWITCH} link set {plug} master switch up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {}/24 dev eth0", self.address()))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        // A host has a way out, even where it leads nowhere.
        ip(&format!("-n {name} route add default via 10.231.0.254"))?;
        self.hold()
    }

    fn hold(&self) -> Result<()> {
        let program = std::env::current_exe().at("find", "/proc/self/exe")?;
        let mut child = Command::new(&program)
            .args(["hold", &self.name])
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
            return Err(Error::Late("a machine's namespaces"));
        }
        let file = self.holder_file();
        fs::write(&file, child.id().to_string()).at("write", &file)
    }

    /// Ends what is left on it, and it.
    pub fn down(&self) -> Result<()> {
        for pid in processes(&self.name) {
            end(pid)?;
        }
        // A process that has ended leaves its groups a moment later, and one may have started another before it was its turn.
        wait(Duration::from_secs(20), "the end of a machine's control groups", || {
            let late = processes(&self.name);
            late.into_iter().all(|pid| end(pid).is_ok())
                && groups(&self.name).iter().all(|group| remove_groups(group).is_ok())
        })?;
        if Path::new("/run/netns").join(self.namespace()).exists() {
            ip(&format!("netns del {}", self.namespace()))?;
        }
        Ok(())
    }

    /// Whether the switch has its link; `up`: and it is not cut off.
    fn is_plugged(&self, up: bool) -> bool {
        let plug = self.plug();
        let mut words = vec!["-n", SWITCH, "-o", "link", "show", "dev", &plug];
        words.extend(up.then_some("up"));
        Command::new("ip").args(words).output().is_ok_and(|said| !said.stdout.is_empty())
    }

    /// Whether a file of it is attached to a loop device.
    fn has_loops(&self) -> bool {
        let blocks = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        blocks
            .filter_map(|block| fs::read_to_string(block.path().join("loop/backing_file")).ok())
            .any(|file| Path::new(file.trim()).starts_with(&self.directory))
    }

    /// Resets it: all that runs on it ends at once, and all that the kernel holds of it goes. What is on its disk stays.
    pub fn reboot(&self) -> Result<()> {
        let cut = !self.is_plugged(true);
        self.down()?;
        // File systems go with the last process that saw them, a moment later.
        wait(Duration::from_secs(30), "the end of a machine's loop devices", || !self.has_loops())?;
        // So does its network namespace with the link's other end.
        let _ = ip(&format!("-n {SWITCH} link del {}", self.plug()));
        wait(Duration::from_secs(5), "the end of a machine's link", || !self.is_plugged(false))?;
        self.up()?;
        if cut { self.partition(true) } else { Ok(()) }
    }

    /// Cuts it off from all others, or connects it again.
    pub fn partition(&self, cut: bool) -> Result<()> {
        let state = if cut { "down" } else { "up" };
        ip(&format!("-n {SWITCH} link set {} {state}", self.plug()))
    }

    /// A command that runs on it.
    pub fn command(&self, program: &str) -> Result<Command> {
        self.holder()?;
        let own = std::env::current_exe().at("find", "/proc/self/exe")?;
        let prefix = self.directory.parent().unwrap_or(Path::new("/"));
        let mut command = Command::new(own);
        command.arg("--prefix").arg(prefix).args(["enter", &self.name, "--", program]);
        Ok(command)
    }

    /// Runs a command to its end; what it says is only shown where it fails.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self
            .command(argv[0])?
            .args(&argv[1..])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Error::Run { program: argv[0].to_owned(), source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(Error::Failed { command: argv.join(" "), said: String::from_utf8_lossy(&said).trim().to_owned() })
    }

    /// Starts a program that goes on, with its output in a log and its process id in a file beside.
    pub fn start(&self, name: &str, argv: &[String]) -> Result<()> {
        let log = self.directory.join(format!("{name}.log"));
        let out = File::create(&log).at("write", &log)?;
        let err = out.try_clone().at("write", &log)?;
        let child = self
            .command(&argv[0])?
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::Run { program: argv[0].clone(), source })?;
        let file = self.directory.join(format!("{name}.pid"));
        fs::write(&file, child.id().to_string()).at("write", &file)
    }

    /// Becomes the program, on this machine. Returns only where that fails.
    pub fn enter(&self, argv: &[String]) -> Result<u8> {
        let holder = self.holder()?;
        let namespace = |source| Error::Namespace { machine: self.name.clone(), source };
        for group in groups(&self.name) {
            let file = group.join("cgroup.procs");
            fs::write(&file, std::process::id().to_string()).at("write", &file)?;
        }
        let join = |kind: &str, flag: CloneFlags| -> io::Result<()> {
            Ok(setns(File::open(format!("/proc/{holder}/ns/{kind}"))?, flag)?)
        };
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        join("cgroup", CloneFlags::CLONE_NEWCGROUP).map_err(namespace)?;
        join("net", CloneFlags::CLONE_NEWNET).map_err(namespace)?;
        join("mnt", CloneFlags::CLONE_NEWNS).map_err(namespace)?;
        let source = Command::new(&argv[0]).args(&argv[1..]).current_dir(directory).exec();
        Err(Error::Run { program: argv[0].clone(), source })
    }
}

/// Makes the switch.
pub fn switch_on() -> Result<()> {
    ip(&format!("netns add {SWITCH}"))?;
    ip(&format!("-n {SWITCH} link add switch type bridge"))?;
    ip(&format!("-n {SWITCH} addr add 10.231.0.254/24 dev switch"))?;
    ip(&format!("-n {SWITCH} link set switch up"))
}

pub fn switch_off() -> Result<()> {
    if Path::new("/run/netns").join(SWITCH).exists() { ip(&format!("netns del {SWITCH}")) } else { Ok(()) }
}

/// Sets the namespaces up and holds them until the process is killed.
pub fn hold(name: &str) -> Result<()> {
    prepare(name).map_err(|source| Error::Namespace { machine: name.to_owned(), source })?;
    // Whoever waits for this line knows that the namespaces are there.
    println!("held");
    loop {
        nix::unistd::pause();
    }
}

/// The hierarchies of control groups: type, options and directory of each, and the directories that only lead to others.
fn hierarchies() -> io::Result<Vec<(String, String, PathBuf)>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (_, place, kind, options) = (words.next()?, words.next()?, words.next()?, words.next()?);
            let place = PathBuf::from(place);
            let counts = matches!(kind, "cgroup" | "cgroup2") && place.starts_with(CGROUPS);
            // What the kernel is told to mount, without what every mount has.
            let usual = |o: &&str| !matches!(*o, "rw" | "ro" | "nosuid" | "nodev" | "noexec" | "relatime");
            let options: Vec<&str> = options.split(',').filter(usual).collect();
            counts.then(|| (kind.to_owned(), options.join(","), place))
        })
        .collect())
}

/// The control group of a machine in each hierarchy, as seen from outside of it.
fn groups(name: &str) -> Vec<PathBuf> {
    let all = hierarchies().unwrap_or_default();
    all.into_iter().map(|(_, _, place)| place.join(format!("docklet-testbed-{name}"))).filter(|p| p.exists()).collect()
}

/// Everything that runs on a machine, by its control groups.
fn processes(name: &str) -> Vec<i32> {
    fn collect(group: &Path, found: &mut Vec<i32>) {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        for entry in fs::read_dir(group).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                collect(&entry.path(), found);
            }
        }
    }
    let mut found = Vec::new();
    for group in groups(name) {
        collect(&group, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn prepare(name: &str) -> io::Result<()> {
    let none = None::<&str>;
    let network = File::open(Path::new("/run/netns").join(format!("testbed-{name}")))?;
    let all = hierarchies()?;
    for (_, _, place) in &all {
        let group = place.join(format!("docklet-testbed-{name}"));
        match fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // A fresh group of this hierarchy has no CPU, and takes no process before it has one.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let (Ok(above), true) = (fs::read_to_string(place.join(file)), group.join(file).exists()) {
                fs::write(group.join(file), above.trim())?;
            }
        }
        if group.join("cgroup.clone_children").exists() {
            fs::write(group.join("cgroup.clone_children"), "1")?;
        }
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    }
    setns(network, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // A sysfs shows the links of who mounts it; each hierarchy, mounted anew, begins at the group of who mounts it.
    let links = symbolic_links(Path::new(CGROUPS));
    umount2(CGROUPS, MntFlags::MNT_DETACH)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    let unified = all.iter().any(|(kind, _, place)| kind == "cgroup2" && place == Path::new(CGROUPS));
    if !unified {
        mount(Some("tmpfs"), CGROUPS, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        for (link, target) in links {
            std::os::unix::fs::symlink(target, link)?;
        }
    }
    for (kind, options, place) in &all {
        if !place.exists() {
            fs::create_dir(place)?;
        }
        let options = if kind == "cgroup2" { "" } else { options };
        mount(Some(kind.as_str()), place, Some(kind.as_str()), MsFlags::empty(), Some(options))?;
    }
    Ok(())
}

fn symbolic_links(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| Some((e.path(), fs::read_link(e.path()).ok()?))).collect()
}
