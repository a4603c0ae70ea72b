//! Writes every page in several states to HTML files, so that they can be looked at and checked without a system
//! behind them: `cargo run -p docklet-web --example preview -- OUTDIR`.
//!
//! The files ask for `/assets/…`; serve OUTDIR with any static server. The assets are written there too.

use docklet_types::host::{Capacity, Check, CheckOutcome};
use docklet_types::problem::{Code, Problem};
use docklet_types::report::{LimitKind, Reason, Step};
use docklet_types::size::{Cpu, Size};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{
    AppStatus, AppView, FitView, HostView, ImageView, LimitHitView, MasterView, Me, NodeView, OperationView, PortView,
    QuotaView, Role, SiteView, StepView, UsageView, UserView, VclusterView,
};
use docklet_web::{
    AccountPage, ErrorPage, Errors, Flash, HomePage, HomeState, HomeVcluster, HostNode, HostPage, HostsPage,
    ImagesPage, JupyterPage, MaintenanceForm, Nav, NewFit, NewForm, NewPage, NodeApp, NotFoundPage, Notice,
    PasswordForm, PortForm, QuickCreate, ScaleForm, SessionRow, Shell, SignInPage, Template, TerminalPage, Theme,
    UserDeletePage, UserForm, UsersPage, VclusterDeletePage, VclusterPage, VclusterState, Viewer, assets,
};
use std::error::Error;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out: PathBuf = std::env::args().nth(1).ok_or("usage: preview OUTDIR")?.into();
    std::fs::create_dir_all(out.join("assets"))?;
    for (_, hashed) in assets::all() {
        let asset = assets::get(hashed).ok_or("an asset of the manifest is missing")?;
        std::fs::write(out.join("assets").join(hashed), &asset.body)?;
    }
    pages(&Pages { out: &out, now: Micros::now() })
}

struct Pages<'a> {
    out: &'a Path,
    now: Micros,
}

impl Pages<'_> {
    fn write(&self, name: &str, page: &impl Template) -> Result<(), Box<dyn Error>> {
        std::fs::write(self.out.join(format!("{name}.html")), page.render()?)?;
        Ok(())
    }

    fn shell(&self, nav: Nav) -> Shell {
        Shell::new(Viewer { username: "alice".to_owned(), admin: false }, Theme::Auto, nav, self.now)
    }

    fn root(&self, nav: Nav) -> Shell {
        Shell::new(Viewer { username: "root".to_owned(), admin: true }, Theme::Auto, nav, self.now)
    }

    fn ago(&self, seconds: i64) -> String {
        self.now.plus_seconds(-seconds).to_string()
    }
}

const SIZE: Size = Size { cpu: Cpu::from_millis(1000), memory_mib: 1024, disk_mib: 8192 };
const QUOTA: QuotaView = QuotaView { nodes: 24, cpu: 24.0, memory_mib: 24 * 1024, ports: 8 };
const USAGE: UsageView =
    UsageView { vclusters: 3, nodes: 14, cpu: 14.0, memory_mib: 14 * 1024, disk_mib: 112 * 1024, ports: 0 };

fn vcluster(p: &Pages<'_>, name: &str, status: Status, nodes: u32, ready: u32) -> VclusterView {
    VclusterView {
        id: format!("0192-{name}"),
        name: name.to_owned(),
        owner: "alice".to_owned(),
        status,
        reason: None,
        image: "base".to_owned(),
        size: SIZE,
        nodes,
        nodes_ready: ready,
        subnet: Some("172.16.0.64/26".to_owned()),
        limits: docklet_types::rate::RateLimits::default(),
        host_labels: std::collections::BTreeMap::new(),
        created_at: p.ago(7400),
        changed_at: p.ago(190),
        generation: 3,
        operation: None,
    }
}

fn node(number: u32, status: Status) -> NodeView {
    let up = status == Status::Running;
    NodeView {
        name: format!("node{number}"),
        status,
        reason: (status == Status::Failed).then(|| {
            Reason::new(
                "boot_timeout",
                "Its init did not report within 30 s. Retry; if it fails again, look at the log.",
            )
        }),
        ip: Some(format!("172.16.0.{}", 65 + number)),
        host: Some(if number.is_multiple_of(2) { "rack-b-02" } else { "rack-a-01" }.to_owned()),
        image: "base".to_owned(),
        size: SIZE,
        ready_millis: up.then(|| 780 + u64::from(number) * 37),
        moving: None,
        limits_hit: if number == 2 {
            vec![LimitHitView { limit: LimitKind::Memory, times: 3, at: Micros::now().plus_seconds(-90).to_string() }]
        } else {
            Vec::new()
        },
    }
}

fn nodes(count: u32, status: Status) -> Vec<NodeView> {
    (1..=count).map(|n| node(n, status)).collect()
}

fn step(step: Step, done: u32, total: u32, millis: u64) -> StepView {
    StepView { step, done, total, started_millis: 0, millis, finished: done == total }
}

fn operation(p: &Pages<'_>, action: &str, outcome: &str, seconds: i64, steps: Vec<StepView>) -> OperationView {
    OperationView {
        id: format!("{action}-{seconds}"),
        action: action.to_owned(),
        actor: "alice".to_owned(),
        outcome: outcome.to_owned(),
        started_at: p.ago(seconds),
        ended_at: (outcome != "running").then(|| p.ago(seconds - 1)),
        millis: steps.iter().map(|s| s.millis).sum(),
        steps: one_after_the_other(steps),
        reason: (outcome == "failed").then(failure),
    }
}

fn one_after_the_other(mut steps: Vec<StepView>) -> Vec<StepView> {
    let mut began = 0;
    for step in &mut steps {
        step.started_millis = began;
        began += step.millis;
    }
    steps
}

fn failure() -> Reason {
    Reason::new("out_of_space", "rack-a-01 has 120 MiB of disk left and node2 needs 8 GiB. Delete what is not needed there, or choose a smaller disk, then retry.")
        .with_log("worker: make disk: btrfs subvolume create /pool/nodes/0192f3/upper\nworker: qgroup limit 8589934592\nERROR: No space left on device\nworker: step failed after 41 ms: out_of_space")
}

fn up_steps(n: u32) -> Vec<StepView> {
    vec![
        step(Step::Admit, 1, 1, 2),
        step(Step::Place, n, n, 4),
        step(Step::HandOver, n, n, 3),
        step(Step::Image, n, n, 18),
        step(Step::Disk, n, n, 46),
        step(Step::Network, n, n, 31),
        step(Step::Boot, n, n, 812),
        step(Step::Ready, n, n, 64),
    ]
}

fn jupyter(status: AppStatus) -> AppView {
    AppView {
        name: "jupyter".to_owned(),
        port: 8888,
        url: "http://8888--node1--spark--alice.localhost:8000/lab".to_owned(),
        status,
        reason: (status == AppStatus::Failed).then(|| {
            Reason::new(
                "app_ended",
                "Jupyter ended with exit code 1: its port 8888 is taken by another program in the node.",
            )
            .with_log("OSError: [Errno 98] Address already in use")
        }),
    }
}

fn state(p: &Pages<'_>, view: VclusterView, nodes: Vec<NodeView>, operations: Vec<OperationView>) -> VclusterState {
    VclusterState { view, nodes, apps: vec![], ports: vec![], operations, viewer: "alice".to_owned(), now: p.now }
}

fn home_state(p: &Pages<'_>) -> HomeState {
    HomeState {
        vclusters: vec![],
        usage: UsageView { vclusters: 0, nodes: 0, cpu: 0.0, memory_mib: 0, disk_mib: 0, ports: 0 },
        quota: Some(QuotaView { nodes: 4, cpu: 4.0, memory_mib: 8192, ports: 8 }),
        quick: QuickCreate { name: "demo".to_owned(), image: "base".to_owned(), size: SIZE },
        viewer: "alice".to_owned(),
        now: p.now,
    }
}

fn home(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    p.write("home-empty", &HomePage { shell: p.shell(Nav::Home), state: home_state(p) })?;
    let mut failed = vcluster(p, "genome-run", Status::Failed, 4, 0);
    failed.reason = Some(failure());
    let mut other = vcluster(p, "mpi-course", Status::Degraded, 10, 9);
    other.reason = Some(Reason::new(
        "host_unreachable",
        "rack-b-02 has not been heard of for 50 s; its node keeps running if the host does.",
    ));
    let item = |view, jupyter| HomeVcluster { view, jupyter };
    let list = vec![
        item(vcluster(p, "spark", Status::Running, 3, 3), Some(jupyter(AppStatus::Running))),
        item(vcluster(p, "thesis", Status::Running, 1, 1), None),
        item(vcluster(p, "demo", Status::Starting, 10, 6), None),
        item(other, None),
        item(failed, None),
        item(vcluster(p, "archive", Status::Stopped, 2, 0), None),
    ];
    let full = HomeState { vclusters: list, usage: USAGE, quota: Some(QUOTA), ..home_state(p) };
    p.write("home", &HomePage { shell: p.shell(Nav::Home), state: full.clone() })?;
    let shell = p.root(Nav::Home).with_flash(Some(Flash::done("genome-run is being deleted.")));
    p.write("home-admin", &HomePage { shell, state: HomeState { quota: None, viewer: "root".to_owned(), ..full } })
}

fn new(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let form = NewForm {
        name: "demo".to_owned(),
        nodes: "3".to_owned(),
        image: String::new(),
        cpu: "1".to_owned(),
        memory_mib: "1024".to_owned(),
        disk_mib: "8192".to_owned(),
    };
    let page = NewPage {
        shell: p.shell(Nav::Home),
        form: form.clone(),
        errors: Errors::none(),
        images: images(p),
        usage: USAGE,
        quota: Some(QUOTA),
        fit: NewFit { fit: Some(FitView { fits: true, reason: None, hosts: None, more: 17 }) },
    };
    p.write("new", &page)?;
    let mut errors = Errors::one("name", "A name starts with a letter: \"9lives\" does not.");
    errors.0.extend(Errors::one("nodes", "14 nodes are in use and your quota is 24: at most 10 more.").0);
    let form = NewForm { name: "9lives".to_owned(), nodes: "40".to_owned(), ..form };
    p.write("new-errors", &NewPage { form, errors, ..page })
}

fn vclusters(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let page = |state: VclusterState| VclusterPage {
        shell: p.shell(Nav::Home),
        scale: ScaleForm { nodes: state.view.nodes.to_string(), error: None, max: Some(13) },
        publish: PortForm::default(),
        state,
    };
    let created = || operation(p, "create", "done", 7400, up_steps(3));
    let mut running = state(
        p,
        vcluster(p, "spark", Status::Running, 3, 3),
        nodes(3, Status::Running),
        vec![
            operation(p, "start", "done", 190, up_steps(3)),
            operation(p, "stop", "done", 4000, vec![step(Step::Stop, 3, 3, 240)]),
            created(),
        ],
    );
    p.write("vcluster-no-app", &page(running.clone()))?;
    running.apps = vec![
        NodeApp { node: "node1".to_owned(), app: jupyter(AppStatus::Running) },
        NodeApp { node: "node2".to_owned(), app: jupyter(AppStatus::Starting) },
    ];
    running.ports = vec![PortView {
        node: "node1".to_owned(),
        protocol: docklet_types::port::Protocol::Tcp,
        port: 80,
        public_port: 10_080,
        host: Some("rack-1".to_owned()),
        address: Some("192.0.2.7".to_owned()),
        reason: None,
    }];
    p.write("vcluster", &page(running.clone()))?;
    let mut refused = page(running.clone());
    refused.scale = ScaleForm {
        nodes: "99".to_owned(),
        error: Some("14 nodes are in use and your quota is 24.".to_owned()),
        max: Some(13),
    };
    p.write("vcluster-scale-refused", &refused)?;
    let mut starting = nodes(10, Status::Running);
    for node in &mut starting[6..] {
        *node = NodeView { status: Status::Starting, ready_millis: None, ..node.clone() };
    }
    let steps = vec![
        step(Step::Place, 10, 10, 6),
        step(Step::Image, 10, 10, 22),
        step(Step::Disk, 10, 10, 90),
        step(Step::Network, 10, 10, 71),
        step(Step::Boot, 7, 10, 640),
        step(Step::Ready, 6, 10, 80),
    ];
    p.write(
        "vcluster-starting",
        &page(state(
            p,
            vcluster(p, "demo", Status::Starting, 10, 6),
            starting,
            vec![operation(p, "create", "running", 1, steps)],
        )),
    )?;
    let mut view = vcluster(p, "genome-run", Status::Failed, 3, 0);
    view.reason = Some(failure());
    let steps = vec![step(Step::Place, 3, 3, 4), step(Step::Image, 3, 3, 20), step(Step::Disk, 2, 3, 41)];
    p.write(
        "vcluster-failed",
        &page(state(p, view, nodes(3, Status::Failed), vec![operation(p, "create", "failed", 60, steps)])),
    )?;
    let mut degraded = nodes(3, Status::Running);
    degraded[1] = node(2, Status::Failed);
    p.write(
        "vcluster-degraded",
        &page(state(p, vcluster(p, "mpi", Status::Degraded, 3, 2), degraded, vec![created()])),
    )?;
    p.write(
        "vcluster-stopped",
        &page(state(
            p,
            vcluster(p, "archive", Status::Stopped, 2, 0),
            nodes(2, Status::Stopped),
            vec![operation(p, "stop", "done", 400, vec![step(Step::Stop, 2, 2, 240)]), created()],
        )),
    )?;
    p.write(
        "vcluster-delete",
        &VclusterDeletePage { shell: p.shell(Nav::Home), view: running.view, nodes: running.nodes, error: None },
    )
}

fn apps(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let view = vcluster(p, "spark", Status::Running, 3, 3);
    for (name, status) in [
        ("jupyter", AppStatus::Starting),
        ("jupyter-failed", AppStatus::Failed),
        ("jupyter-stopped", AppStatus::Stopped),
    ] {
        p.write(
            name,
            &JupyterPage {
                shell: p.shell(Nav::Home),
                view: view.clone(),
                node: "node1".to_owned(),
                app: jupyter(status),
            },
        )?;
    }
    let page =
        TerminalPage { shell: p.shell(Nav::Home), view, nodes: nodes(3, Status::Running), node: "node1".to_owned() };
    p.write("terminal", &page)?;
    let stopped = vcluster(p, "spark", Status::Stopped, 3, 0);
    p.write("terminal-stopped", &TerminalPage { view: stopped, nodes: nodes(3, Status::Stopped), ..page })
}

fn account(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36";
    let sessions = vec![
        SessionRow { created_at: p.ago(3600), last_seen: p.ago(2), agent: agent.to_owned(), current: true },
        SessionRow {
            created_at: p.ago(400_000),
            last_seen: p.ago(90_000),
            agent: "docklet/0.1.0".to_owned(),
            current: false,
        },
    ];
    let me = Me { username: "alice".to_owned(), role: Role::User, usage: USAGE, quota: Some(QUOTA) };
    let page = AccountPage { shell: p.shell(Nav::Account), me, password: PasswordForm::default(), sessions };
    p.write("account", &page)?;
    p.write(
        "account-refused",
        &AccountPage {
            password: PasswordForm { errors: Errors::one("current_password", "This is not your current password.") },
            ..page
        },
    )
}

fn users(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let user = |name: &str, role, disabled, seen: Option<i64>| UserView {
        username: name.to_owned(),
        role,
        disabled,
        created_at: p.ago(9_000_000),
        last_seen: seen.map(|s| p.ago(s)),
        usage: USAGE,
        first_id: 1_065_536,
    };
    let list = vec![
        user("root", Role::Admin, false, Some(3)),
        user("alice", Role::User, false, Some(1200)),
        user("bob", Role::User, true, None),
    ];
    let page = UsersPage {
        shell: p.root(Nav::Users),
        users: list,
        q: String::new(),
        form: UserForm::default(),
        password_error: None,
    };
    p.write("users", &page)?;
    let form = UserForm {
        username: "alice".to_owned(),
        role: "admin".to_owned(),
        errors: Errors::one("username", "There is already a user alice."),
    };
    p.write(
        "users-errors",
        &UsersPage {
            form,
            password_error: Some(("bob".to_owned(), "A password has at least 8 characters.".to_owned())),
            ..page.clone()
        },
    )?;
    p.write(
        "user-delete",
        &UserDeletePage {
            shell: p.root(Nav::Users),
            user: page.users[1].clone(),
            vclusters: vec![vcluster(p, "spark", Status::Running, 3, 3)],
            error: None,
        },
    )
}

fn hosts(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let check =
        |name: &str, outcome, message: &str| Check { name: name.to_owned(), outcome, message: message.to_owned() };
    let host = HostView {
        name: "rack-a-01".to_owned(),
        status: "ready".to_owned(),
        cordoned: false,
        labels: [("gpu".to_owned(), "yes".to_owned())].into(),
        draining: false,
        moves: vec![],
        version: "0.1.0".to_owned(),
        kernel: "6.1.0-28-amd64".to_owned(),
        cgroup: "v2".to_owned(),
        storage: "btrfs".to_owned(),
        capacity: Capacity { cpu_millis: 64_000, memory_mib: 262_144, disk_mib: 2_097_152 },
        allocated: Capacity { cpu_millis: 57_000, memory_mib: 98_304, disk_mib: 409_600 },
        nodes: 42,
        nodes_ready: 41,
        nodes_warm: 4,
        checks: vec![
            check("idmapped_mounts", CheckOutcome::Ok, "overlayfs over idmapped layers works"),
            check(
                "inotify_instances",
                CheckOutcome::Warning,
                "fs.inotify.max_user_instances is 128; set it to 1048576 for more than 100 nodes",
            ),
            check("lxcfs", CheckOutcome::Ok, "mounted at /var/lib/lxcfs"),
        ],
        started_at: p.ago(400_000),
    };
    let lost = HostView {
        name: "rack-b-02".to_owned(),
        status: "unreachable".to_owned(),
        storage: "directory".to_owned(),
        nodes: 7,
        nodes_ready: 0,
        ..host.clone()
    };
    p.write(
        "hosts-empty",
        &HostsPage {
            shell: p.root(Nav::Hosts),
            hosts: vec![],
            masters: vec![],
            maintenance: MaintenanceForm::default(),
        },
    )?;
    let master = |name: &str, here| MasterView {
        name: name.to_owned(),
        address: "10.0.0.11:8000".to_owned(),
        version: "0.1.0".to_owned(),
        started_at: p.ago(400_000),
        here,
    };
    p.write(
        "hosts",
        &HostsPage {
            shell: p.root(Nav::Hosts),
            hosts: vec![host.clone(), lost.clone()],
            masters: vec![master("front-1", true), master("front-2", false)],
            maintenance: MaintenanceForm {
                message: "A new switch is put in.".to_owned(),
                minutes: "0".to_owned(),
                errors: Errors::one("minutes", "Give a number of minutes from 1 to 43200."),
            },
        },
    )?;
    let site = |name: &str, here| SiteView {
        name: name.to_owned(),
        url: format!("https://{}.example.org", name.to_lowercase()),
        here,
    };
    let sites = || vec![site("Basel", true), site("Genf", false), site("Lugano", false)];
    p.write("sites", &NotFoundPage { shell: p.root(Nav::None).with_sites(sites()) })?;
    p.write(
        "sites-sign-in",
        &SignInPage {
            shell: Shell::public(Theme::Auto, p.now).with_sites(sites()),
            username: String::new(),
            next: "/".to_owned(),
            error: None,
            first_password_file: None,
        },
    )?;
    let notice =
        Notice { message: "A new switch is put in; nodes go on.".to_owned(), until: Some(p.now.plus_seconds(7500)) };
    p.write(
        "hosts-maintenance",
        &HostsPage {
            shell: p.root(Nav::Hosts).with_notice(Some(notice)),
            hosts: vec![host.clone()],
            masters: vec![],
            maintenance: MaintenanceForm::default(),
        },
    )?;
    let list = vec![
        HostNode { owner: "alice".to_owned(), vcluster: "spark".to_owned(), node: node(1, Status::Running) },
        HostNode { owner: "bob".to_owned(), vcluster: "mpi".to_owned(), node: node(3, Status::Failed) },
    ];
    p.write("host", &HostPage { shell: p.root(Nav::Hosts), host, nodes: list })?;
    p.write("host-unreachable", &HostPage { shell: p.root(Nav::Hosts), host: lost, nodes: vec![] })
}

fn images(p: &Pages<'_>) -> Vec<ImageView> {
    let image = |name: &str, text: &str, bytes, is_default| ImageView {
        name: name.to_owned(),
        digest: "sha256:4f1c22d09b1ae77b6c7f0e6a1b8f5d3e2c9a0b7d6e5f4c3b2a1908f7e6d5c4b3".to_owned(),
        description: Some(text.to_owned()),
        bytes,
        created_at: Some(p.ago(700_000)),
        is_default,
    };
    vec![
        image("base", "Debian 12 with Python, Jupyter, compilers and MPI", 412_000_000, true),
        image("small", "Debian 12 with sshd and Python, nothing else", 61_000_000, false),
    ]
}

fn pages(p: &Pages<'_>) -> Result<(), Box<dyn Error>> {
    let sign_in = SignInPage {
        shell: Shell::public(Theme::Auto, p.now),
        username: String::new(),
        next: "/".to_owned(),
        error: None,
        first_password_file: Some("/opt/docklet/local/generated_password.txt".to_owned()),
    };
    p.write("sign-in", &sign_in)?;
    p.write(
        "sign-in-refused",
        &SignInPage {
            username: "alice".to_owned(),
            error: Some("User name or password is wrong.".to_owned()),
            first_password_file: None,
            ..sign_in
        },
    )?;
    home(p)?;
    new(p)?;
    vclusters(p)?;
    apps(p)?;
    account(p)?;
    users(p)?;
    hosts(p)?;
    p.write("images", &ImagesPage { shell: p.shell(Nav::Images), images: images(p) })?;
    p.write("images-empty", &ImagesPage { shell: p.root(Nav::Images), images: vec![] })?;
    let problem = Problem::new(Code::Unavailable, "The store has no quorum, so changes cannot be taken now.");
    p.write(
        "error",
        &ErrorPage { shell: p.shell(Nav::None), problem: problem.clone(), back: Some("/vclusters/new".to_owned()) },
    )?;
    p.write("error-public", &ErrorPage { shell: Shell::public(Theme::Auto, p.now), problem, back: None })?;
    p.write("not-found", &NotFoundPage { shell: p.shell(Nav::None) })
}
