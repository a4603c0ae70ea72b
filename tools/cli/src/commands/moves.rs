//! Nodes that go to other hosts: one by one from a host that is emptied, or where somebody wants them.

use docklet_client::Client;
use docklet_types::moves::Stage;
use docklet_types::view::{ChangeHost, HostView, MoveNodes, MoveView};
use std::time::{Duration, Instant};

use crate::args::{Format, Place};
use crate::commands::Context;
use crate::commands::cluster::members;
use crate::failure::{Failure, Result};
use crate::output::{bytes, oneline, show};
use crate::prompt;

/// How often the server is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

pub async fn move_nodes(cx: &Context, place: Place, to: String) -> Result<()> {
    let (client, began) = (cx.client()?, Instant::now());
    let request = MoveNodes { node: place.node.clone(), host: to.clone() };
    let mut nodes = client.move_nodes(&place.vcluster, &request).await?;
    let names: Vec<String> = nodes.iter().map(|n| n.name.clone()).collect();
    let mut said = String::new();
    while cx.waits() && nodes.iter().any(|n| n.moving.is_some()) {
        if let Some(failed) = nodes.iter().filter_map(|n| n.moving.as_ref()).find(|m| m.stage == Stage::Failed) {
            return Err(gave_up(failed, &place.vcluster));
        }
        let left = nodes.iter().filter(|n| n.moving.is_some()).count();
        if let Some(moving) = nodes.iter().filter_map(|n| n.moving.as_ref()).max_by_key(|m| m.stage.is_under_way()) {
            tell(cx, &mut said, left, moving);
        }
        if began.elapsed() > cx.timeout() {
            return Err(late(cx, format!("{} did not move to {to}", place.vcluster)));
        }
        tokio::time::sleep(LOOK).await;
        nodes = client.nodes(&place.vcluster).await?;
        nodes.retain(|n| names.contains(&n.name));
    }
    show(cx.global.output, &nodes, || members(&nodes, cx.style()));
    Ok(())
}

pub async fn drain(cx: &Context, client: &Client, name: &str) -> Result<()> {
    let began = Instant::now();
    let change = ChangeHost { draining: Some(true), ..ChangeHost::default() };
    let mut host = client.change_host(name, &change).await?;
    let mut said = String::new();
    while cx.waits() && host.nodes > 0 {
        if !host.draining {
            return Err(Failure::usage(format!("{name} is not drained any more"), "somebody else took it back"));
        }
        match host.moves.first() {
            Some(moving) => tell(cx, &mut said, host.nodes as usize, moving),
            None => say(cx, &mut said, format!("{} left", host.nodes)),
        }
        if began.elapsed() > cx.timeout() {
            return Err(late(cx, not_empty(&host)));
        }
        tokio::time::sleep(LOOK).await;
        host = client.host(name).await?;
    }
    show(cx.global.output, &host, || match host.nodes {
        0 => format!("{name} is empty\n"),
        nodes => format!("{name} is being emptied; {nodes} to go\n"),
    });
    Ok(())
}

pub async fn undrain(cx: &Context, client: &Client, name: &str) -> Result<()> {
    let change = ChangeHost { draining: Some(false), ..ChangeHost::default() };
    let host = client.change_host(name, &change).await?;
    show(cx.global.output, &host, || format!("no more nodes are moved away from {name}; {} are there\n", host.nodes));
    Ok(())
}

pub async fn give_up(cx: &Context, client: &Client, name: &str, yes: bool) -> Result<()> {
    if !yes {
        let nodes = client.host(name).await?.nodes;
        let what = format!("Give {name} up for lost? What is on the disks of its {nodes} nodes is gone for good.");
        prompt::confirm(&what, yes)?;
    }
    client.give_up_host(name).await?;
    let removed = serde_json::json!({ "name": name, "removed": true, "nodes_lost": true });
    show(cx.global.output, &removed, || format!("removed {name}; its nodes are made anew on other hosts\n"));
    Ok(())
}

fn not_empty(host: &HostView) -> String {
    match host.moves.iter().find_map(|m| m.reason.as_ref().map(|r| (m, r))) {
        Some((moving, reason)) => format!(
            "{} still holds {} nodes ({}/{}: {}), which did not move",
            host.name,
            host.nodes,
            moving.vcluster,
            moving.node,
            oneline(&reason.message)
        ),
        None => format!("{} still holds {} nodes, which did not move", host.name, host.nodes),
    }
}

fn late(cx: &Context, what: String) -> Failure {
    let hint = "it goes on; look again, or wait longer with --timeout".to_owned();
    Failure::TimedOut { what, seconds: cx.timeout().as_secs(), hint }
}

fn gave_up(moving: &MoveView, vcluster: &str) -> Failure {
    let why = moving.reason.as_ref().map_or_else(String::new, |r| format!(": {}", oneline(&r.message)));
    Failure::NotMoved { what: format!("{vcluster}/{} stays on {}{why}", moving.node, moving.from) }
}

/// `to h2, is copied while it runs, 120 MiB`
pub fn line(moving: &MoveView) -> String {
    let stage = match moving.stage {
        Stage::Waiting => "waits for its turn",
        Stage::Copying => "is copied while it runs",
        Stage::Copied => "has stopped, the rest is copied",
        Stage::Arrived => "starts there",
        Stage::Failed => "did not move",
    };
    let to = moving.to.as_ref().map_or_else(String::new, |to| format!("to {to}: "));
    let size = if moving.bytes > 0 { format!(", {}", bytes(moving.bytes)) } else { String::new() };
    let why = moving.reason.as_ref().map_or_else(String::new, |r| format!(": {}", oneline(&r.message)));
    format!("{to}{stage}{size}{why}")
}

/// Once per change, for people.
fn tell(cx: &Context, said: &mut String, left: usize, moving: &MoveView) {
    say(cx, said, format!("{left} left; {}/{} {}", moving.vcluster, moving.node, line(moving)));
}

fn say(cx: &Context, said: &mut String, line: String) {
    if cx.global.output == Format::Table && *said != line {
        eprintln!("{}", cx.style_err().dim(&line));
        *said = line;
    }
}
