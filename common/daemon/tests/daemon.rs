//! Starting, finding and stopping a real process.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn tiny(prefix: &Path, words: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().unwrap().parent().unwrap().join("examples/tiny");
    Command::new(binary).arg(prefix).args(words).env_remove("NOTIFY_SOCKET").output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn start_status_second_start_stop() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = dir.path();
    assert_eq!(out(&tiny(prefix, &["status"])), "not running");
    assert_eq!(out(&tiny(prefix, &["stop"])), "WasNotRunning");
    let started = tiny(prefix, &["start"]);
    assert!(out(&started).starts_with("Now { pid: "), "{started:?}");
    assert!(out(&tiny(prefix, &["status"])).starts_with("running "));
    assert!(out(&tiny(prefix, &["start"])).starts_with("Already { pid: "));
    let second = tiny(prefix, &["run"]);
    assert!(!second.status.success());
    assert!(err(&second).contains("tiny is already running (process "), "{}", err(&second));
    assert_eq!(out(&tiny(prefix, &["stop"])), "Now");
    assert_eq!(out(&tiny(prefix, &["status"])), "not running");
}

#[test]
fn a_start_that_fails_shows_what_the_program_said() {
    let dir = tempfile::tempdir().unwrap();
    let failed = tiny(dir.path(), &["start", "fail"]);
    assert!(!failed.status.success());
    let told = err(&failed);
    assert!(told.contains("the disk is made of cheese") && told.contains("it did not work out"), "{told}");
    assert!(!told.contains('\u{1b}'), "no colour codes in files");
    assert_eq!(out(&tiny(dir.path(), &["status"])), "not running");
}

#[test]
fn a_program_that_does_not_listen_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    assert!(out(&tiny(dir.path(), &["start", "deaf"])).starts_with("Now"));
    assert_eq!(out(&tiny(dir.path(), &["stop"])), "Killed");
    assert_eq!(out(&tiny(dir.path(), &["status"])), "not running");
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let binary = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("examples/tiny");
    let mut child = Command::new(binary).arg(dir.path()).arg("run").env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut buffer = [0; 64];
    let read = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..read], b"READY=1");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_was_killed_can_be_started_at_once() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..20 {
        let started = out(&tiny(dir.path(), &["start"]));
        assert!(started.starts_with("Now { pid: "), "{started}");
        let pid = std::fs::read_to_string(dir.path().join("local/run/tiny.pid")).unwrap();
        Command::new("kill").args(["-9", pid.trim()]).status().unwrap();
    }
}
