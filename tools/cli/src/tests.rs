//! What can be decided without a server: arguments, tables, exit codes, the escape of `connect`.

#![allow(clippy::unwrap_used)]

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use docklet_client::Error;
use docklet_types::problem::{Code, Problem};
use docklet_types::report::{Reason, Step};
use docklet_types::size::Size;
use docklet_types::status::Status;
use docklet_types::view::{StepView, VclusterView};
use std::time::Duration;

use crate::args::{Cli, Command, Format, Place, parse_duration, parse_mib};
use crate::commands::clusters;
use crate::failure::{Failure, code_of};
use crate::output::{Style, Value, age, column, harmless, millis, oneline, table};
use crate::progress;
use crate::session::{Sessions, Stored};
use crate::terminal::Escape;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["docklet"].into_iter().chain(line.split(' ')))
}

fn view(name: &str, status: Status) -> VclusterView {
    VclusterView {
        id: name.to_owned(),
        name: name.to_owned(),
        owner: "alice".to_owned(),
        status,
        reason: None,
        image: "base".to_owned(),
        size: Size::new(1.0, 1024, 8192).unwrap(),
        nodes: 3,
        nodes_ready: 2,
        subnet: Some("172.16.0.0/26".to_owned()),
        limits: docklet_types::rate::RateLimits::default(),
        host_labels: std::collections::BTreeMap::new(),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
        changed_at: "2026-01-01T00:00:00Z".to_owned(),
        generation: 1,
        operation: None,
    }
}

#[test]
fn the_definitions_are_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_command_line_for_create() {
    let Command::Create(create) = parse("create demo -n 3 --memory 2g --cpu 0.5 --disk 8192").unwrap().command else {
        panic!()
    };
    assert_eq!(
        (create.name.as_str(), create.wanted.nodes, create.wanted.memory, create.wanted.cpu, create.wanted.disk),
        ("demo", 3, Some(2048), Some(0.5), Some(8192))
    );
}

#[test]
fn the_server_judges_numbers_so_that_negative_ones_reach_it() {
    let Command::Create(create) = parse("create demo -n -1").unwrap().command else { panic!() };
    assert_eq!(create.wanted.nodes, -1);
    let Command::Scale(scale) = parse("scale demo -3").unwrap().command else { panic!() };
    assert_eq!(scale.count, Some(-3));
}

#[test]
fn scale_takes_its_number_either_way_but_needs_one() {
    for line in ["scale demo 5", "scale demo -n 5"] {
        let Command::Scale(scale) = parse(line).unwrap().command else { panic!() };
        assert_eq!(scale.nodes.or(scale.count), Some(5), "{line}");
    }
    assert_eq!(parse("scale demo").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
    assert!(parse("scale demo 5 -n 6").is_err());
}

#[test]
fn options_of_a_command_in_a_node_are_the_commands_own() {
    for line in ["exec demo/node1 -- ls -o json --timeout", "exec demo/node1 ls -o json --timeout"] {
        let cli = parse(line).unwrap();
        assert_eq!(cli.global.output, Format::Table);
        let Command::Exec(exec) = cli.command else { panic!() };
        assert_eq!(exec.argv, ["ls", "-o", "json", "--timeout"], "{line}");
    }
    let cli = parse("exec -o json --timeout 5 demo/node1 -- true").unwrap();
    assert_eq!((cli.global.output, cli.global.timeout), (Format::Json, Some(Duration::from_secs(5))));
    assert_eq!(parse("exec demo/node1").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
}

#[test]
fn global_options_go_before_and_after_the_command() {
    assert_eq!(parse("-o json list").unwrap().global.output, Format::Json);
    assert!(parse("start demo --no-wait").unwrap().global.no_wait);
    assert!(!parse("start demo --no-wait --wait").unwrap().global.no_wait);
    assert_eq!(parse("list --url http://a:1").unwrap().global.url.as_deref(), Some("http://a:1"));
}

#[test]
fn places() {
    assert_eq!("demo/node1".parse(), Ok(Place { vcluster: "demo".to_owned(), node: Some("node1".to_owned()) }));
    assert_eq!("demo".parse(), Ok(Place { vcluster: "demo".to_owned(), node: None }));
    for bad in ["", "/node1", "demo/", "a/b/c"] {
        assert!(bad.parse::<Place>().is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn sizes() {
    for (text, mib) in
        [("512", 512), ("512m", 512), ("2g", 2048), ("1.5G", 1536), ("2GiB", 2048), ("1t", 1_048_576), ("-5", -5)]
    {
        assert_eq!(parse_mib(text), Ok(mib), "{text}");
    }
    for bad in ["", "g", "2x", "1.5", "0.3m", "2 2g", "nan", "inf", "1e300g", "512k"] {
        assert!(parse_mib(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn durations() {
    for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)] {
        assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    for bad in ["", "0", "s", "5ms", "5mm", "-1", "1.5", "2d", "25h", "99999999999999999999h", "é"] {
        assert!(parse_duration(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn every_problem_has_its_exit_code() {
    for (code, exit) in [
        (Code::Invalid, 2),
        (Code::UnknownImage, 2),
        (Code::NotFound, 3),
        (Code::NotSignedIn, 4),
        (Code::WrongPassword, 4),
        (Code::NotAllowed, 4),
        (Code::OverQuota, 4),
        (Code::Timeout, 5),
        (Code::NameTaken, 1),
        (Code::WrongState, 1),
        (Code::Unavailable, 1),
    ] {
        assert_eq!(code_of(code), exit, "{code:?}");
        let problem = Failure::Client(Error::Problem { problem: Box::new(Problem::new(code, "x")), retry_after: None });
        assert_eq!(problem.code(), exit);
    }
    assert_eq!(Failure::Ended(Box::new(view("demo", Status::Failed))).code(), 1);
    assert_eq!(Failure::TimedOut { what: String::new(), seconds: 1, hint: String::new() }.code(), 5);
    assert_eq!(Failure::usage("", "").code(), 2);
    assert_eq!(Failure::Declined.code(), 1);
}

#[test]
fn a_failed_vcluster_says_why_and_what_to_do() {
    let failed = VclusterView {
        reason: Some(Reason::new("no_host", "No host has 1 TiB of memory.")),
        ..view("demo", Status::Failed)
    };
    let failure = Failure::Ended(Box::new(failed));
    assert_eq!(failure.to_string(), "demo is failed: No host has 1 TiB of memory.");
    assert!(failure.hint().contains("docklet status demo"));
}

#[test]
fn a_table_for_scripts_has_one_line_per_row_and_no_colours() {
    let now = "2026-01-01T00:05:00Z".parse().unwrap();
    let text = clusters(&[view("demo", Status::Running), view("other", Status::Failed)], Style::PLAIN, now);
    let expected = "\
NAME   STATUS   NODES  IMAGE  SUBNET         AGE    REASON
demo   running    2/3  base   172.16.0.0/26  5 min
other  failed     2/3  base   172.16.0.0/26  5 min
";
    assert_eq!(text, expected);
}

#[test]
fn the_owner_is_shown_only_where_there_are_several() {
    let other = VclusterView { owner: "bob".to_owned(), ..view("demo", Status::Running) };
    let text = clusters(&[view("demo", Status::Running), other], Style::PLAIN, jiff::Timestamp::UNIX_EPOCH);
    assert!(text.starts_with("NAME  OWNER  STATUS"), "{text}");
}

#[test]
fn a_table_fits_a_narrow_terminal() {
    let mut failed = view("a-name-of-20-letters", Status::Degraded);
    failed.reason = Some(Reason::new("x", "A rather long reason that says what failed and what to do about it."));
    for width in [30, 40, 60, 80, 120] {
        let style = Style { colour: false, symbols: true, width: Some(width) };
        let text = clusters(&[failed.clone()], style, jiff::Timestamp::UNIX_EPOCH);
        for line in text.lines() {
            assert!(line.chars().count() <= usize::from(width), "{width}: {line:?}\n{text}");
        }
        assert!(text.contains("degraded"), "{width}\n{text}");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let style = Style { colour: true, symbols: true, width: Some(100) };
    assert!(table(&[column("S")], &[vec![Status::Running.into()]], style).contains("\u{1b}["));
    let plain = table(&[column("S")], &[vec![Status::Running.into()]], Style { colour: false, ..style });
    assert_eq!(plain, "S\n● running\n");
    assert_eq!(Style::PLAIN.status(Status::Failed), "failed");
}

#[test]
fn what_a_tenant_wrote_cannot_drive_the_terminal() {
    assert_eq!(oneline("a\u{1b}[2J\n  b"), "a\u{fffd}[2J b");
    assert_eq!(harmless("a\u{1b}[2J\r\n\tb"), "a[2J\n\tb");
    let text = table(&[column("T")], &[vec![Value::Text("x\u{7}\u{9b}y".to_owned())]], Style::PLAIN);
    assert!(!text.contains(['\u{7}', '\u{9b}']), "{text:?}");
}

#[test]
fn times_as_people_say_them() {
    assert_eq!([millis(83), millis(1249), millis(125_000)], ["83 ms", "1.24 s", "2 min 5 s"]);
    let now = "2026-01-03T00:00:00Z".parse().unwrap();
    assert_eq!(
        ["2026-01-02T23:59:55Z", "2026-01-02T20:00:00Z", "2025-12-25T00:00:00Z", "2027-01-01T00:00:00Z", "?"]
            .map(|t| age(t, now)),
        ["5 s", "4 h", "9 d", "0 s", "-"]
    );
}

#[test]
fn a_step_is_one_line() {
    let step = StepView { step: Step::Boot, done: 7, total: 10, started_millis: 31, millis: 620, finished: false };
    assert_eq!(progress::line(&step), "  boot      ━━━━━━━───    7/10   620 ms");
    let none = StepView { step: Step::Stop, done: 0, total: 0, started_millis: 0, millis: 0, finished: true };
    assert_eq!(progress::line(&none), "✓ stop      ━━━━━━━━━━    0/0    0 ms");
}

#[test]
fn the_escape_leaves_only_at_the_start_of_a_line() {
    let run = |keys: &[&str]| {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        for key in keys {
            out.extend(escape.pass(key.as_bytes())?);
        }
        Some(String::from_utf8(out).unwrap())
    };
    assert_eq!(run(&["~."]), None);
    assert_eq!(run(&["ls\r", "~", "."]), None);
    assert_eq!(run(&["cd ~.\r"]), Some("cd ~.\r".to_owned()));
    assert_eq!(run(&["~~.\r"]), Some("~.\r".to_owned()));
    assert_eq!(run(&["~", "x"]), Some("~x".to_owned()));
    assert_eq!(run(&["a~\r~b"]), Some("a~\r~b".to_owned()));
}

#[test]
fn sessions_are_kept_per_server_and_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let sessions = Sessions::at(dir.path().join("docklet").join("session.json"));
    assert_eq!(sessions.get("http://a").unwrap(), None);
    let stored =
        |token: &str| Stored { username: "alice".to_owned(), token: token.to_owned(), expires_at: String::new() };
    sessions.put("http://a/", stored("1")).unwrap();
    sessions.put("http://b", stored("2")).unwrap();
    assert_eq!(sessions.get("http://a").unwrap().unwrap().token, "1");
    let mode = std::fs::metadata(sessions.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(sessions.forget("http://a").unwrap());
    assert!(!sessions.forget("http://a").unwrap());
    assert_eq!(sessions.get("http://b").unwrap().unwrap().token, "2");
    assert_eq!(std::fs::read_dir(dir.path().join("docklet")).unwrap().count(), 1);
}

#[test]
fn rates_are_numbers_of_megabits_or_have_a_unit() {
    use crate::args::{Rate, parse_label_change, parse_rate};
    for (text, kbit) in [("10", 10_000), ("512k", 512), ("1.5m", 1500), ("1G", 1_000_000), (" 2mbit", 2000)] {
        assert_eq!(parse_rate(text), Ok(Rate(Some(kbit))), "{text}");
    }
    assert_eq!(parse_rate("none"), Ok(Rate(None)));
    for bad in ["", "fast", "-1", "0.0001", "1e99"] {
        assert!(parse_rate(bad).is_err(), "{bad:?} was accepted");
    }
    assert_eq!(parse_label_change("gpu=yes"), Ok(("gpu".to_owned(), Some("yes".to_owned()))));
    assert_eq!(parse_label_change("gpu-"), Ok(("gpu".to_owned(), None)));
    assert!(parse_label_change("gpu").is_err());
}

#[test]
fn where_a_port_is_reached_and_whether_it_fits() {
    use crate::commands::{sentence_of_port, verdict};
    use docklet_types::port::Protocol;
    use docklet_types::view::{FitView, HostFit, PortView};
    let mut port = PortView {
        node: "node1".to_owned(),
        protocol: Protocol::Udp,
        port: 53,
        public_port: 10_053,
        host: Some("h1".to_owned()),
        address: Some("10.0.0.5".to_owned()),
        reason: None,
    };
    assert_eq!(sentence_of_port(&port), "10.0.0.5:10053 (udp) leads to port 53 of node1");
    (port.host, port.address) = (None, None);
    assert_eq!(sentence_of_port(&port), "10053 (udp) leads to port 53 of node1, once the node has a host");
    let hosts = Some(vec![HostFit { host: "h1".to_owned(), nodes: 3 }]);
    let fit = FitView { fits: true, reason: None, hosts, more: 17 };
    assert_eq!(verdict(&fit, 3), "3 nodes fit, and 17 more of that size\n  3 nodes on h1\n");
}
