//! What the installation offers, images, hosts and masters, and whether it is under maintenance.

use docklet_types::host::CheckOutcome;
use docklet_types::time::Micros;
use docklet_types::view::{BeginMaintenance, ChangeHost, HostView, ImageView, MaintenanceView, MasterView};

use crate::args::{HostCommand, ImageCommand, MaintenanceCommand, MasterCommand};
use crate::commands::{Context, moves};
use crate::failure::Result;
use crate::output::{self, Style, Value, bytes, column, facts, mib, oneline, show, table};

pub async fn image(cx: &Context, command: ImageCommand) -> Result<()> {
    let ImageCommand::List = command;
    let images = cx.client()?.images().await?;
    show(cx.global.output, &images, || image_table(&images, cx.style()));
    Ok(())
}

fn image_table(images: &[ImageView], style: Style) -> String {
    let columns = [
        column("IMAGE"),
        column("SIZE").right(),
        column("AGE").spare(2),
        column("DIGEST").spare(3),
        column("DESCRIPTION").spare(1),
    ];
    let now = jiff::Timestamp::now();
    let rows: Vec<Vec<Value>> = images
        .iter()
        .map(|i| {
            vec![
                if i.is_default { format!("{} (default)", i.name) } else { i.name.clone() }.into(),
                bytes(i.bytes).into(),
                i.created_at.as_deref().map_or_else(|| "-".to_owned(), |at| output::age(at, now)).into(),
                i.digest.chars().take(19).collect::<String>().into(),
                i.description.clone().unwrap_or_default().into(),
            ]
        })
        .collect();
    table(&columns, &rows, style)
}

pub async fn host(cx: &Context, command: HostCommand) -> Result<()> {
    let client = cx.client()?;
    match command {
        HostCommand::List => {
            let hosts = client.hosts().await?;
            show(cx.global.output, &hosts, || host_table(&hosts, cx.style()));
        }
        HostCommand::Show { name } => {
            let host = client.host(&name).await?;
            show(cx.global.output, &host, || host_facts(&host, cx.style()));
        }
        HostCommand::Cordon { name } => {
            let host = client.change_host(&name, &ChangeHost { cordoned: Some(true), ..ChangeHost::default() }).await?;
            show(cx.global.output, &host, || format!("{name} takes no new nodes; {} stay there\n", host.nodes));
        }
        HostCommand::Uncordon { name } => {
            let host =
                client.change_host(&name, &ChangeHost { cordoned: Some(false), ..ChangeHost::default() }).await?;
            show(cx.global.output, &host, || format!("{name} takes nodes again\n"));
        }
        HostCommand::Label { name, labels } => {
            let change = ChangeHost { labels: labels.into_iter().collect(), ..ChangeHost::default() };
            let host = client.change_host(&name, &change).await?;
            show(cx.global.output, &host, || match host.labels.is_empty() {
                true => format!("{name} has no labels\n"),
                false => format!("{name} is labelled {}\n", output::labels(&host.labels)),
            });
        }
        HostCommand::Drain { name } => moves::drain(cx, &client, &name).await?,
        HostCommand::Undrain { name } => moves::undrain(cx, &client, &name).await?,
        HostCommand::Remove { name, nodes_lost: true, yes } => moves::give_up(cx, &client, &name, yes).await?,
        HostCommand::Remove { name, .. } => {
            client.remove_host(&name).await?;
            let removed = serde_json::json!({ "name": name, "removed": true });
            show(cx.global.output, &removed, || format!("removed {name}\n"));
        }
    }
    Ok(())
}

pub async fn master(cx: &Context, command: MasterCommand) -> Result<()> {
    let MasterCommand::List = command;
    let masters = cx.client()?.masters().await?;
    show(cx.global.output, &masters, || master_table(&masters, cx.style()));
    Ok(())
}

pub async fn maintenance(cx: &Context, command: MaintenanceCommand) -> Result<()> {
    let client = cx.client()?;
    let view = match command {
        MaintenanceCommand::Show => client.maintenance().await?,
        MaintenanceCommand::On { message, lasts } => {
            let seconds = lasts.map(|lasts| i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX));
            let until = seconds.map(|seconds| Micros::now().plus_seconds(seconds).to_string());
            client.begin_maintenance(&BeginMaintenance { message, until }).await?
        }
        MaintenanceCommand::Off => {
            client.end_maintenance().await?;
            client.maintenance().await?
        }
    };
    show(cx.global.output, &view, || maintenance_line(&view, jiff::Timestamp::now()));
    Ok(())
}

fn maintenance_line(view: &MaintenanceView, now: jiff::Timestamp) -> String {
    if !view.on {
        return "maintenance is off\n".to_owned();
    }
    let mut line = "maintenance is on".to_owned();
    if let Some(since) = &view.since {
        line.push_str(&format!(" since {} ago", output::age(since, now)));
    }
    if let Some(by) = &view.by {
        line.push_str(&format!(" by {by}"));
    }
    if let Some(until) = &view.until {
        line.push_str(&format!(", expected to be over at {until}"));
    }
    if let Some(message) = &view.message {
        line.push_str(&format!(": {}", oneline(message)));
    }
    line.push('\n');
    line
}

fn master_table(masters: &[MasterView], style: Style) -> String {
    let columns = [column("MASTER"), column("ADDRESS"), column("UP").spare(1), column("VERSION").spare(2)];
    let now = jiff::Timestamp::now();
    let rows: Vec<Vec<Value>> = masters
        .iter()
        .map(|m| {
            vec![
                if m.here { format!("{} (answers)", m.name) } else { m.name.clone() }.into(),
                m.address.clone().into(),
                output::age(&m.started_at, now).into(),
                m.version.clone().into(),
            ]
        })
        .collect();
    table(&columns, &rows, style)
}

fn host_table(hosts: &[HostView], style: Style) -> String {
    let columns = [
        column("HOST"),
        column("STATUS"),
        column("NODES").right(),
        column("CPU").right().spare(3),
        column("MEMORY").right().spare(2),
        column("DISK").right().spare(4),
        column("LABELS").spare(1),
        column("STORAGE").spare(5),
        column("KERNEL").spare(6),
        column("VERSION").spare(7),
    ];
    let rows: Vec<Vec<Value>> = hosts
        .iter()
        .map(|h| {
            vec![
                h.name.clone().into(),
                h.status.clone().into(),
                nodes(h).into(),
                cpu(h).into(),
                memory(h).into(),
                disk(h).into(),
                output::labels(&h.labels).into(),
                h.storage.clone().into(),
                h.kernel.clone().into(),
                h.version.clone().into(),
            ]
        })
        .collect();
    table(&columns, &rows, style)
}

/// `3/4`, and how many more are kept warm.
fn nodes(h: &HostView) -> String {
    let warm = if h.nodes_warm > 0 { format!("+{}", h.nodes_warm) } else { String::new() };
    format!("{}/{}{warm}", h.nodes_ready, h.nodes)
}

fn cpu(h: &HostView) -> String {
    format!("{}/{}", thousandths(h.allocated.cpu_millis), thousandths(h.capacity.cpu_millis))
}

fn memory(h: &HostView) -> String {
    format!("{}/{}", mib(h.allocated.memory_mib), mib(h.capacity.memory_mib))
}

fn disk(h: &HostView) -> String {
    format!("{}/{}", mib(h.allocated.disk_mib), mib(h.capacity.disk_mib))
}

fn thousandths(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{}.{}", millis / 1000, millis % 1000 / 100)
    }
}

fn host_facts(host: &HostView, style: Style) -> String {
    let mut text = facts(
        &[
            ("host", style.bold(&host.name)),
            ("status", host.status.clone()),
            ("nodes", format!("{} of {} ready", host.nodes_ready, host.nodes)),
            ("warm", format!("{} booted ahead for users who are here", host.nodes_warm)),
            ("cpu", format!("{} handed out", cpu(host))),
            ("memory", format!("{} handed out", memory(host))),
            ("disk", format!("{} handed out", disk(host))),
            ("labels", output::labels(&host.labels)),
            ("storage", host.storage.clone()),
            ("cgroup", host.cgroup.clone()),
            ("kernel", host.kernel.clone()),
            ("version", host.version.clone()),
            ("up", output::age(&host.started_at, jiff::Timestamp::now())),
        ],
        style,
    );
    if !host.moves.is_empty() {
        let rows: Vec<Vec<Value>> = host
            .moves
            .iter()
            .map(|m| vec![format!("{}/{}", m.vcluster, m.node).into(), m.owner.clone().into(), moves::line(m).into()])
            .collect();
        text.push('\n');
        text.push_str(&table(&[column("LEAVING"), column("OWNER"), column("HOW FAR")], &rows, style));
    }
    if !host.checks.is_empty() {
        let rows: Vec<Vec<Value>> = host
            .checks
            .iter()
            .map(|c| {
                let outcome = match c.outcome {
                    CheckOutcome::Ok => "ok",
                    CheckOutcome::Warning => "warning",
                    CheckOutcome::Failed => "failed",
                };
                vec![c.name.clone().into(), outcome.into(), oneline(&c.message).into()]
            })
            .collect();
        text.push('\n');
        text.push_str(&table(&[column("CHECK"), column("OUTCOME"), column("FOUND")], &rows, style));
    }
    text
}
