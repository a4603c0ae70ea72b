//! Pages as the master would make them: hostile names stay text, fragments are what the page holds, assets are whole.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use docklet_types::problem::{Code, Problem};
use docklet_types::report::{Reason, Step};
use docklet_types::size::{Cpu, Size};
use docklet_types::status::Status;
use docklet_types::time::Micros;
use docklet_types::view::{
    AppStatus, AppView, FitView, HostFit, HostView, ImageView, MasterView, Me, NodeView, OperationView, PortView,
    QuotaView, Role, StepView, UsageView, UserView, VclusterView,
};
use docklet_web::{
    AccountPage, ErrorPage, Errors, Flash, HomePage, HomeState, HomeVcluster, HostNode, HostPage, HostsPage,
    ImagesPage, JupyterPage, MaintenanceForm, Nav, NewFit, NewForm, NewPage, NodeApp, NotFoundPage, PasswordForm,
    PortForm, QuickCreate, ScaleForm, SessionRow, Shell, SignInPage, Template, TerminalPage, Theme, UserDeletePage,
    UserForm, UsersPage, VclusterDeletePage, VclusterPage, VclusterState, Viewer, assets, live,
};

/// Breaks out of text, of an attribute in either quotes, and of an address.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\"'&</script>?a=b#c";
const NOW: Micros = Micros(1_790_000_000_000_000);
const SIZE: Size = Size { cpu: Cpu::from_millis(500), memory_mib: 1536, disk_mib: 8192 };
const USAGE: UsageView = UsageView { vclusters: 1, nodes: 2, cpu: 1.0, memory_mib: 3072, disk_mib: 16_384, ports: 0 };
const QUOTA: QuotaView = QuotaView { nodes: 4, cpu: 4.0, memory_mib: 8192, ports: 8 };

fn hostile() -> String {
    HOSTILE.to_owned()
}

fn shell() -> Shell {
    Shell::new(Viewer { username: hostile(), admin: true }, Theme::Dark, Nav::Home, NOW)
        .with_flash(Some(Flash::failed(HOSTILE)))
}

fn reason() -> Option<Reason> {
    Some(Reason::new(HOSTILE, HOSTILE).with_log(HOSTILE))
}

fn view(status: Status) -> VclusterView {
    VclusterView {
        id: hostile(),
        name: hostile(),
        owner: "bob".to_owned(),
        status,
        reason: reason(),
        image: hostile(),
        size: SIZE,
        nodes: 2,
        nodes_ready: 1,
        subnet: Some(hostile()),
        limits: docklet_types::rate::RateLimits::default(),
        host_labels: std::collections::BTreeMap::new(),
        created_at: hostile(),
        changed_at: hostile(),
        generation: 1,
        operation: None,
    }
}

fn node(status: Status) -> NodeView {
    NodeView {
        name: hostile(),
        status,
        reason: reason(),
        ip: Some(hostile()),
        host: Some(hostile()),
        image: hostile(),
        size: SIZE,
        ready_millis: Some(1),
        moving: Some(moving()),
        limits_hit: Vec::new(),
    }
}

fn moving() -> docklet_types::view::MoveView {
    docklet_types::view::MoveView {
        owner: hostile(),
        vcluster: hostile(),
        node: hostile(),
        from: hostile(),
        to: Some(hostile()),
        stage: docklet_types::moves::Stage::Failed,
        bytes: 1 << 30,
        reason: reason(),
    }
}

fn app(status: AppStatus) -> AppView {
    AppView { name: hostile(), port: 8888, url: hostile(), status, reason: reason() }
}

fn port() -> PortView {
    PortView {
        node: hostile(),
        protocol: docklet_types::port::Protocol::Udp,
        port: 53,
        public_port: 10_053,
        host: Some(hostile()),
        address: Some(hostile()),
        reason: reason(),
    }
}

fn operation(outcome: &str) -> OperationView {
    OperationView {
        id: hostile(),
        action: hostile(),
        actor: hostile(),
        outcome: outcome.to_owned(),
        started_at: hostile(),
        ended_at: None,
        millis: 5,
        steps: vec![StepView { step: Step::Boot, done: 1, total: 2, started_millis: 1, millis: 5, finished: false }],
        reason: reason(),
    }
}

fn state(status: Status) -> VclusterState {
    let apps = [AppStatus::Stopped, AppStatus::Starting, AppStatus::Running, AppStatus::Failed];
    VclusterState {
        view: view(status),
        nodes: vec![node(status)],
        apps: apps.into_iter().map(|status| NodeApp { node: hostile(), app: app(status) }).collect(),
        ports: vec![port()],
        operations: ["running", "done", "failed", "superseded", HOSTILE].into_iter().map(operation).collect(),
        viewer: hostile(),
        now: NOW,
    }
}

fn home(status: Option<Status>) -> HomeState {
    HomeState {
        vclusters: status
            .into_iter()
            .map(|s| HomeVcluster { view: view(s), jupyter: Some(app(AppStatus::Running)) })
            .collect(),
        usage: USAGE,
        quota: Some(QUOTA),
        quick: QuickCreate { name: hostile(), image: hostile(), size: SIZE },
        viewer: hostile(),
        now: NOW,
    }
}

fn user() -> UserView {
    UserView {
        username: hostile(),
        role: Role::User,
        disabled: false,
        created_at: hostile(),
        last_seen: Some(hostile()),
        usage: USAGE,
        first_id: 0,
    }
}

fn host() -> HostView {
    let capacity = docklet_types::host::Capacity { cpu_millis: 4000, memory_mib: 4096, disk_mib: 4096 };
    let outcome = docklet_types::host::CheckOutcome::Failed;
    HostView {
        name: hostile(),
        status: hostile(),
        cordoned: true,
        labels: [(hostile(), hostile())].into(),
        draining: true,
        moves: vec![moving()],
        version: hostile(),
        kernel: hostile(),
        cgroup: hostile(),
        storage: hostile(),
        capacity,
        allocated: capacity,
        nodes: 1,
        nodes_ready: 0,
        nodes_warm: 0,
        checks: vec![docklet_types::host::Check { name: hostile(), outcome, message: hostile() }],
        started_at: hostile(),
    }
}

fn image() -> ImageView {
    ImageView {
        name: hostile(),
        digest: hostile(),
        description: Some(hostile()),
        bytes: 1,
        created_at: Some(hostile()),
        is_default: true,
    }
}

fn form() -> NewForm {
    NewForm {
        name: hostile(),
        nodes: hostile(),
        image: hostile(),
        cpu: hostile(),
        memory_mib: hostile(),
        disk_mib: hostile(),
    }
}

fn fit() -> NewFit {
    let hosts = Some(vec![HostFit { host: hostile(), nodes: 1 }]);
    NewFit { fit: Some(FitView { fits: false, reason: reason(), hosts, more: 0 }) }
}

/// Every page that a status shows differently.
fn pages_of(status: Status, pages: &mut Vec<String>) -> askama::Result<()> {
    pages.push(HomePage { shell: shell(), state: home(Some(status)) }.render()?);
    let scale = ScaleForm { nodes: hostile(), error: Some(hostile()), max: Some(3) };
    let publish =
        PortForm { node: hostile(), port: hostile(), public_port: hostile(), udp: true, error: Some(hostile()) };
    pages.push(VclusterPage { shell: shell(), state: state(status), scale, publish }.render()?);
    pages.push(
        TerminalPage { shell: shell(), view: view(status), nodes: vec![node(status)], node: hostile() }.render()?,
    );
    for app_status in [AppStatus::Stopped, AppStatus::Starting, AppStatus::Running, AppStatus::Failed] {
        pages.push(JupyterPage { shell: shell(), view: view(status), node: hostile(), app: app(app_status) }.render()?);
    }
    pages.extend(state(status).fragments()?.into_iter().map(|fragment| fragment.html));
    pages.extend(home(Some(status)).fragments()?.into_iter().map(|fragment| fragment.html));
    Ok(())
}

fn all_pages() -> askama::Result<Vec<String>> {
    let mut pages = Vec::new();
    for status in Status::ALL {
        pages_of(status, &mut pages)?;
    }
    pages.push(HomePage { shell: shell(), state: home(None) }.render()?);
    let public = Shell::public(Theme::Auto, NOW);
    pages.push(
        SignInPage {
            shell: public.clone(),
            username: hostile(),
            next: hostile(),
            error: Some(hostile()),
            first_password_file: Some(hostile()),
        }
        .render()?,
    );
    let mut errors = Errors::one("name", HOSTILE);
    for field in ["nodes", "image", "cpu", "memory_mib", "disk_mib", "other"] {
        errors.0.extend(Errors::one(field, HOSTILE).0);
    }
    pages.push(
        NewPage {
            shell: shell(),
            form: form(),
            errors: errors.clone(),
            images: vec![image()],
            usage: USAGE,
            quota: Some(QUOTA),
            fit: fit(),
        }
        .render()?,
    );
    pages.push(
        VclusterDeletePage {
            shell: shell(),
            view: view(Status::Running),
            nodes: vec![node(Status::Running)],
            error: Some(hostile()),
        }
        .render()?,
    );
    let me = Me { username: hostile(), role: Role::User, usage: USAGE, quota: None };
    let session = SessionRow { created_at: hostile(), last_seen: hostile(), agent: hostile(), current: true };
    let password = PasswordForm { errors: Errors::one("password", HOSTILE) };
    pages.push(AccountPage { shell: shell(), me, password, sessions: vec![session] }.render()?);
    let form = UserForm { username: hostile(), role: hostile(), errors };
    pages.push(
        UsersPage {
            shell: shell(),
            users: vec![user()],
            q: String::new(),
            form: form.clone(),
            password_error: Some((hostile(), hostile())),
        }
        .render()?,
    );
    pages.push(UsersPage { shell: shell(), users: vec![], q: hostile(), form, password_error: None }.render()?);
    pages.push(
        UserDeletePage { shell: shell(), user: user(), vclusters: vec![view(Status::Running)], error: Some(hostile()) }
            .render()?,
    );
    let master = || MasterView {
        name: hostile(),
        address: hostile(),
        version: hostile(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        here: true,
    };
    let masters = vec![master(), master()];
    pages.push(
        HostsPage { shell: shell(), hosts: vec![host()], masters, maintenance: MaintenanceForm::default() }.render()?,
    );
    let tenant = HostNode { owner: hostile(), vcluster: hostile(), node: node(Status::Failed) };
    pages.push(HostPage { shell: shell(), host: host(), nodes: vec![tenant] }.render()?);
    pages.push(ImagesPage { shell: shell(), images: vec![image()] }.render()?);
    let problem = Problem::new(Code::Internal, HOSTILE);
    pages.push(ErrorPage { shell: shell(), problem: problem.clone(), back: Some(hostile()) }.render()?);
    pages.push(ErrorPage { shell: public.clone(), problem, back: None }.render()?);
    pages.push(NotFoundPage { shell: public }.render()?);
    Ok(pages)
}

#[test]
fn hostile_texts_stay_texts_on_every_page() {
    let pages = all_pages().unwrap();
    assert!(pages.len() > 100, "{} pages", pages.len());
    for page in pages {
        assert!(!page.contains("<img"), "markup came through:\n{page}");
        assert!(!page.contains("</script>?"), "a script was ended:\n{page}");
        // Wherever the text stands it has its quotes written as entities, so that no attribute ends early.
        assert!(
            !page.contains("alert(1)>") && !page.contains("alert(1)&#62;\"") && !page.contains("&gt;\"'"),
            "an attribute was ended:\n{page}"
        );
    }
}

#[test]
fn an_address_of_a_link_cannot_be_a_script() {
    // Addresses of apps come from the master; whatever else is in the data goes into a path, encoded.
    let page = VclusterPage {
        shell: shell(),
        state: state(Status::Running),
        scale: ScaleForm::default(),
        publish: PortForm::default(),
    }
    .render()
    .unwrap();
    let link = page.split("href=\"").find(|rest| rest.starts_with("/vclusters/")).unwrap();
    let address = link.split('"').next().unwrap();
    assert!(address.starts_with("/vclusters/%3Cimg%20src%3Dx"), "{address}");
    assert!(address.ends_with("owner=bob") || address.contains("?owner=bob&"), "{address}");
}

#[test]
fn no_page_has_a_script_or_a_handler_of_its_own() {
    for page in all_pages().unwrap() {
        for script in page.split("<script").skip(1) {
            let (tag, rest) = script.split_once('>').unwrap();
            assert!(tag.contains("src=\"/assets/") && rest.starts_with("</script>"), "{tag}");
        }
        assert!(!page.contains("javascript:"));
    }
}

#[test]
fn fragments_are_what_the_page_holds() {
    let mut state = state(Status::Running);
    state.apps.clear();
    let page = VclusterPage {
        shell: shell(),
        state: state.clone(),
        scale: ScaleForm::default(),
        publish: PortForm::default(),
    }
    .render()
    .unwrap();
    let fragments = state.fragments().unwrap();
    assert_eq!(fragments.len(), 6);
    for fragment in fragments {
        assert!(page.contains(fragment.html.trim()), "{}", fragment.id);
        assert!(fragment.html.contains(&format!("id=\"{}\"", fragment.id)));
    }
    let home = home(Some(Status::Running));
    let page = HomePage { shell: shell(), state: home.clone() }.render().unwrap();
    for fragment in home.fragments().unwrap() {
        assert!(page.contains(fragment.html.trim()), "{}", fragment.id);
    }
}

#[test]
fn an_event_keeps_its_lines_apart() {
    assert_eq!(live::event("home-cards", "<p>\na\rb</p>"), "event: home-cards\ndata: <p>\ndata: a\ndata: b</p>\n\n");
    assert_eq!(live::event("a\nid: 7", ""), "event: aid: 7\ndata: \n\n");
    assert_eq!(live::gone(), "event: gone\ndata: /\n\n");
}

#[test]
fn the_primary_action_follows_the_state() {
    let header = |status, apps: Vec<NodeApp>| {
        let state =
            VclusterState { apps, nodes: vec![NodeView { name: "node1".to_owned(), ..node(status) }], ..state(status) };
        state.fragments().unwrap().remove(0).html
    };
    let with = |status| {
        vec![NodeApp { node: "node1".to_owned(), app: AppView { url: "http://8888--node1".to_owned(), ..app(status) } }]
    };
    assert!(header(Status::Running, vec![]).contains("Start Jupyter"));
    assert!(header(Status::Running, with(AppStatus::Starting)).contains("Jupyter is starting"));
    assert!(header(Status::Running, with(AppStatus::Running)).contains("href=\"http://8888--node1\""));
    assert!(header(Status::Starting, vec![]).contains("disabled"), "nothing answers while it starts");
    assert!(header(Status::Stopped, vec![]).contains("/start?owner=bob"));
    assert!(header(Status::Failed, vec![]).contains("/retry?owner=bob"));
}

#[test]
fn what_does_not_fit_the_quota_is_not_offered() {
    let page = HomePage { shell: shell(), state: home(None) }.render().unwrap();
    assert!(page.contains("Start 1 node"));
    assert!(!page.contains("Start 3 nodes"), "2 of 4 nodes are in use");
    assert!(page.contains("administrator for 3 nodes"));
}

#[test]
fn an_error_stands_beside_its_field() {
    let problem = Problem::new(Code::Invalid, "cpu is a number of CPUs").at("size.cpu");
    let errors = Errors::from_problem(&problem);
    assert_eq!(errors.of("cpu"), Some("cpu is a number of CPUs"));
    let page = NewPage { shell: shell(), form: form(), errors, images: vec![], usage: USAGE, quota: None, fit: fit() }
        .render()
        .unwrap();
    assert!(page.contains("id=\"cpu-error\">cpu is a number of CPUs"));
    assert!(page.contains("aria-describedby=\"cpu-error\""));
}

/// The bundle is made by `build.mjs`; where it was, it must be whole.
#[test]
fn assets_are_whole() {
    if !assets::present() {
        // Without the bundle addresses fall back to plain names; that is what the build warns of.
        assert_eq!(assets::url("app.css"), "/assets/app.css");
        return;
    }
    let mut first_load = 0;
    for name in ["app.css", "app.js", "theme.js", "icons.svg", "favicon.svg", "terminal.js", "terminal.css"] {
        let hashed = assets::url(name).strip_prefix(assets::PREFIX).unwrap().to_owned();
        assert_ne!(hashed, name, "{name} has no hash");
        let asset = assets::get(&hashed).unwrap();
        assert_ne!(asset.content_type, "application/octet-stream");
        if !name.starts_with("terminal") {
            first_load += asset.gzip.map_or(asset.body.len(), |gzip| gzip.len());
        }
    }
    assert!(first_load < 200 * 1024, "{first_load} bytes on first load");
    assert!(assets::get("manifest.json").is_none());
    assert!(assets::get("../Cargo.toml").is_none());
}

/// Every icon that a template or the Rust side names is in the sprite.
#[test]
fn every_icon_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    let mut folders = vec![root.join("templates"), root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            for start in ["icon(\"", "mark(\""] {
                names.extend(text.split(start).skip(1).filter_map(|rest| rest.split('"').next().map(str::to_owned)));
            }
        }
    }
    assert!(names.len() > 30);
    for name in names {
        assert!(root.join("assets-src/icons").join(format!("{name}.svg")).exists(), "no icon {name}");
    }
}
