//! Vclusters as a whole: make, look, start, stop, scale, delete.

use docklet_client::{Client, Target};
use docklet_types::rate::RateLimits;
use docklet_types::status::Status;
use docklet_types::view::{CreateVcluster, FitView, LimitHitView, NodeView, OperationView, SizeRequest, VclusterView};
use serde::Serialize;
use std::time::{Duration, Instant};

use crate::args::{Create, Format, Rate, Scale, Wanted};
use crate::commands::{Context, moves};
use crate::failure::{Failure, Result};
use crate::output::{self, Style, Value, column, facts, millis, nodes, oneline, show, table};
use crate::{progress, prompt};

pub async fn list(cx: &Context) -> Result<()> {
    let client = cx.client()?;
    let vclusters = client.vclusters().await?;
    show(cx.global.output, &vclusters, || clusters(&vclusters, cx.style(), jiff::Timestamp::now()));
    if vclusters.is_empty() && cx.global.output == Format::Table {
        eprintln!("no vclusters; make one with: docklet create NAME -n 3");
    }
    Ok(())
}

pub fn clusters(vclusters: &[VclusterView], style: Style, now: jiff::Timestamp) -> String {
    if vclusters.is_empty() {
        return String::new();
    }
    // The owner says nothing where all are one's own.
    let owners = vclusters.iter().any(|v| v.owner != vclusters[0].owner);
    let mut columns = vec![
        column("NAME"),
        column("STATUS"),
        column("NODES").right(),
        column("IMAGE").spare(3),
        column("SUBNET").spare(4),
        column("AGE").spare(2),
        column("REASON").spare(1),
    ];
    if owners {
        columns.insert(1, column("OWNER"));
    }
    let rows: Vec<Vec<Value>> = vclusters
        .iter()
        .map(|v| {
            let mut row: Vec<Value> = vec![
                v.name.clone().into(),
                v.status.into(),
                format!("{}/{}", v.nodes_ready, v.nodes).into(),
                v.image.clone().into(),
                v.subnet.clone().unwrap_or_else(|| "-".to_owned()).into(),
                output::age(&v.created_at, now).into(),
                v.reason.as_ref().map_or("", |r| r.message.as_str()).into(),
            ];
            if owners {
                row.insert(1, v.owner.clone().into());
            }
            row
        })
        .collect();
    table(&columns, &rows, style)
}

fn request(name: String, wanted: Wanted) -> CreateVcluster {
    let size = SizeRequest { cpu: wanted.cpu, memory_mib: wanted.memory, disk_mib: wanted.disk };
    CreateVcluster {
        name,
        nodes: wanted.nodes,
        image: wanted.image,
        size: (size != SizeRequest::default()).then_some(size),
        host_labels: wanted.host_labels.into_iter().collect(),
    }
}

/// Ends with 1 where it would not fit.
pub async fn fit(cx: &Context, wanted: Wanted) -> Result<u8> {
    let count = wanted.nodes;
    // The name does not matter: nothing is made.
    let fit = cx.client()?.what_if(&request("fit".to_owned(), wanted)).await?;
    show(cx.global.output, &fit, || verdict(&fit, count));
    Ok(u8::from(!fit.fits))
}

/// `3 nodes fit, and 17 more of that size`
pub fn verdict(fit: &FitView, count: i64) -> String {
    let asked = nodes(u32::try_from(count).unwrap_or(u32::MAX));
    let mut text = match &fit.reason {
        Some(reason) => format!("{asked} would not fit: {}\n", oneline(&reason.message)),
        None if count == 1 => format!("{asked} fits, and {} more of that size\n", fit.more),
        None => format!("{asked} fit, and {} more of that size\n", fit.more),
    };
    for host in fit.hosts.iter().flatten() {
        text.push_str(&format!("  {} on {}\n", nodes(host.nodes), host.host));
    }
    text
}

/// A direction that is not named keeps its limit.
pub async fn limit(cx: &Context, name: &str, ingress: Option<Rate>, egress: Option<Rate>) -> Result<()> {
    let client = cx.client()?;
    let mut limits = client.vcluster(name).await?.limits;
    if let Some(Rate(kbit)) = ingress {
        limits.ingress_kbit = kbit;
    }
    if let Some(Rate(kbit)) = egress {
        limits.egress_kbit = kbit;
    }
    let view = client.limit(name, limits).await?;
    show(cx.global.output, &view, || format!("{} carries {}\n", view.name, rates(&view.limits)));
    Ok(())
}

/// `10 Mbit/s in, any rate out`
fn rates(limits: &RateLimits) -> String {
    let rate = |kbit: Option<u32>| match kbit {
        None => "any rate".to_owned(),
        Some(kbit) if kbit.is_multiple_of(1000) => format!("{} Mbit/s", kbit / 1000),
        Some(kbit) => format!("{kbit} kbit/s"),
    };
    format!("{} in, {} out", rate(limits.ingress_kbit), rate(limits.egress_kbit))
}

pub async fn create(cx: &Context, args: Create) -> Result<()> {
    let client = cx.client()?;
    let began = Instant::now();
    let request = request(args.name, args.wanted);
    let view = client.create(&request).await?;
    let view = carry(cx, &client, view, Status::Running).await?;
    show(cx.global.output, &view, || sentence(&view, took(cx, began)));
    if cx.waits() && cx.global.output == Format::Table && cx.style().width.is_some() {
        eprintln!("{}", cx.style_err().dim(&format!("a terminal in it: docklet connect {}", view.name)));
    }
    Ok(())
}

pub async fn start(cx: &Context, name: &str) -> Result<()> {
    let (client, began) = (cx.client()?, Instant::now());
    let view = client.start(name).await?;
    finish(cx, &client, view, Status::Running, began).await
}

pub async fn stop(cx: &Context, name: &str) -> Result<()> {
    let (client, began) = (cx.client()?, Instant::now());
    let view = client.stop(name).await?;
    finish(cx, &client, view, Status::Stopped, began).await
}

pub async fn retry(cx: &Context, name: &str) -> Result<()> {
    let (client, began) = (cx.client()?, Instant::now());
    let view = client.retry(name).await?;
    let target = settled(&view);
    finish(cx, &client, view, target, began).await
}

pub async fn scale(cx: &Context, args: Scale) -> Result<()> {
    let (client, began) = (cx.client()?, Instant::now());
    let nodes = args.nodes.or(args.count).unwrap_or(1);
    let view = client.scale(&args.name, nodes).await?;
    let target = settled(&view);
    finish(cx, &client, view, target, began).await
}

/// A stopped vcluster stays stopped when it is scaled or retried; every other one runs afterwards.
const fn settled(view: &VclusterView) -> Status {
    match view.status {
        Status::Stopped | Status::Stopping => Status::Stopped,
        _ => Status::Running,
    }
}

async fn finish(cx: &Context, client: &Client, view: VclusterView, status: Status, began: Instant) -> Result<()> {
    let view = carry(cx, client, view, status).await?;
    show(cx.global.output, &view, || sentence(&view, took(cx, began)));
    Ok(())
}

/// Waits for what was asked, unless told not to.
async fn carry(cx: &Context, client: &Client, view: VclusterView, status: Status) -> Result<VclusterView> {
    if !cx.waits() {
        return Ok(view);
    }
    // The owner may be another one than the caller where an administrator left it out.
    progress::wait(client, &view.name, Target::of(&view, status), cx.timeout()).await
}

/// What the person waited, if anything was waited for.
fn took(cx: &Context, began: Instant) -> Option<Duration> {
    cx.waits().then(|| began.elapsed())
}

/// `demo is running: 3 nodes in 930 ms`
pub fn sentence(view: &VclusterView, took: Option<Duration>) -> String {
    let took =
        took.map_or_else(String::new, |t| format!(" in {}", millis(u64::try_from(t.as_millis()).unwrap_or(u64::MAX))));
    format!("{} is {}: {}{took}\n", view.name, view.status, nodes(view.nodes))
}

pub async fn delete(cx: &Context, names: &[String], yes: bool) -> Result<()> {
    let client = cx.client()?;
    // All are looked up before the first is touched: a slip in one name deletes nothing.
    let mut doomed = Vec::new();
    for name in names {
        doomed.push(client.vcluster(name).await?);
    }
    let lost: Vec<String> = doomed.iter().map(|v| format!("{} ({})", v.name, nodes(v.nodes))).collect();
    prompt::confirm(
        &format!(
            "Delete {}? Everything on the disks of these nodes is lost; the shared directory ~/nfs stays.",
            lost.join(", ")
        ),
        yes,
    )?;
    let mut failure = None;
    for view in &doomed {
        let outcome = match cx.waits() {
            true => progress::delete(&client, &view.name, cx.timeout()).await,
            false => client.delete(&view.name, None).await.map(drop).map_err(Failure::from),
        };
        match outcome {
            Ok(()) => {
                let state = if cx.waits() { "absent" } else { "deleting" };
                show(
                    cx.global.output,
                    &serde_json::json!({ "name": view.name, "owner": view.owner, "status": state }),
                    || {
                        if cx.waits() {
                            format!("deleted {}\n", view.name)
                        } else {
                            format!("{} is being deleted\n", view.name)
                        }
                    },
                );
            }
            // The others are still deleted; the first failure is told at the end, the rest here.
            Err(e) if failure.is_none() => failure = Some(e),
            Err(e) => e.print(cx.style_err()),
        }
    }
    failure.map_or(Ok(()), Err)
}

/// `status -o json`: the vcluster as the API shows it, with its nodes and, if asked for, its changes.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    vcluster: &'a VclusterView,
    node_list: &'a [NodeView],
    #[serde(skip_serializing_if = "Option::is_none")]
    operations: Option<&'a [OperationView]>,
}

pub async fn status(cx: &Context, name: &str, timing: bool) -> Result<()> {
    let client = cx.client()?;
    let (view, nodes) = futures::try_join!(client.vcluster(name), client.nodes(name))?;
    let operations = if timing { Some(client.operations(name).await?) } else { None };
    let full = Full { vcluster: &view, node_list: &nodes, operations: operations.as_deref() };
    show(cx.global.output, &full, || {
        let style = cx.style();
        let mut text = head(&view, style, jiff::Timestamp::now());
        text.push('\n');
        text.push_str(&members(&nodes, style));
        for operation in operations.iter().flatten().take(5) {
            text.push('\n');
            text.push_str(&change(operation, style));
        }
        text
    });
    Ok(())
}

fn head(view: &VclusterView, style: Style, now: jiff::Timestamp) -> String {
    let mut lines = vec![
        ("name", style.bold(&view.name)),
        ("owner", view.owner.clone()),
        ("status", style.status(view.status)),
        ("nodes", format!("{} of {} ready", view.nodes_ready, view.nodes)),
        ("image", view.image.clone()),
        ("size", format!("{} per node", view.size)),
        ("subnet", view.subnet.clone().unwrap_or_else(|| "-".to_owned())),
        ("age", output::age(&view.created_at, now)),
    ];
    if view.limits != RateLimits::default() {
        lines.push(("limits", rates(&view.limits)));
    }
    if !view.host_labels.is_empty() {
        lines.push(("host labels", output::labels(&view.host_labels)));
    }
    if let Some(reason) = &view.reason {
        lines.push(("reason", oneline(&reason.message)));
    }
    if let Some(operation) = &view.operation {
        lines.push(("last change", outcome(operation)));
    }
    let mut text = facts(&lines, style);
    if let Some(log) = view.reason.as_ref().and_then(|r| r.log.as_deref()) {
        text.push_str(&output::harmless(log).lines().map(|l| format!("  | {l}\n")).collect::<String>());
    }
    text
}

/// `create done in 0.93 s`
fn outcome(operation: &OperationView) -> String {
    let word = if operation.outcome == "running" { "for" } else { "in" };
    format!("{} {} {word} {}", operation.action, operation.outcome, millis(operation.millis))
}

pub fn members(nodes: &[NodeView], style: Style) -> String {
    let columns = [
        column("NODE"),
        column("STATUS"),
        column("IP"),
        column("HOST").spare(3),
        column("READY IN").right().spare(4),
        column("REASON").spare(1),
    ];
    let rows: Vec<Vec<Value>> = nodes
        .iter()
        .map(|n| {
            vec![
                n.name.clone().into(),
                n.status.into(),
                n.ip.clone().unwrap_or_else(|| "-".to_owned()).into(),
                n.host.clone().unwrap_or_else(|| "-".to_owned()).into(),
                n.ready_millis.map_or_else(|| "-".to_owned(), millis).into(),
                match (&n.reason, &n.moving) {
                    (Some(reason), _) => reason.message.clone(),
                    (None, Some(moving)) => format!("moves {}", moves::line(moving)),
                    (None, None) => n.limits_hit.iter().map(LimitHitView::sentence).collect::<Vec<_>>().join("; "),
                }
                .into(),
            ]
        })
        .collect();
    table(&columns, &rows, style)
}

fn change(operation: &OperationView, style: Style) -> String {
    let mut text = format!(
        "{} by {}, {}: {}\n",
        style.bold(&operation.action),
        operation.actor,
        operation.started_at,
        outcome(operation)
    );
    if let Some(reason) = &operation.reason {
        text.push_str(&format!("  {}\n", oneline(&reason.message)));
    }
    for step in &operation.steps {
        text.push_str(&format!("  {:>9}  {}\n", format!("+{}", millis(step.started_millis)), progress::line(step)));
    }
    text
}
