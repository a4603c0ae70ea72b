//! Published ports.

use docklet_types::view::{PortView, PublishPort};

use crate::args::{Format, PortCommand};
use crate::commands::Context;
use crate::failure::{Failure, Result};
use crate::output::{Style, Value, column, show, table};

pub async fn port(cx: &Context, command: PortCommand) -> Result<()> {
    let client = cx.client()?;
    match command {
        PortCommand::Add { place, port, protocol, public } => {
            let node = place.node.ok_or_else(|| {
                Failure::usage("which node is meant is not said", "write it as NAME/NODE, e.g. demo/node1")
            })?;
            let request = PublishPort { node, port, protocol, public_port: public };
            let made = client.publish(&place.vcluster, &request).await?;
            show(cx.global.output, &made, || format!("{}\n", sentence(&made)));
        }
        PortCommand::List { name } => {
            let ports = client.ports(&name).await?;
            show(cx.global.output, &ports, || port_table(&ports, cx.style()));
            if ports.is_empty() && cx.global.output == Format::Table {
                eprintln!("no published ports; publish one with: docklet port add {name}/node1 80");
            }
        }
        PortCommand::Remove { name, public, protocol } => {
            client.unpublish(&name, protocol, public).await?;
            let removed = serde_json::json!({ "protocol": protocol, "public_port": public, "removed": true });
            show(cx.global.output, &removed, || format!("{public}/{protocol} is free\n"));
        }
    }
    Ok(())
}

/// `10.0.0.5:10080`, or the port alone while the address is not known.
fn reached(port: &PortView) -> String {
    let at = port.address.as_deref().or(port.host.as_deref());
    at.map_or_else(|| port.public_port.to_string(), |at| format!("{at}:{}", port.public_port))
}

pub fn sentence(port: &PortView) -> String {
    let kind = match port.protocol {
        docklet_types::port::Protocol::Tcp => "",
        docklet_types::port::Protocol::Udp => " (udp)",
    };
    let place = if port.host.is_none() { ", once the node has a host" } else { "" };
    format!("{}{kind} leads to port {} of {}{place}", reached(port), port.port, port.node)
}

pub fn port_table(ports: &[PortView], style: Style) -> String {
    let columns = [
        column("REACHED AT"),
        column("PROTOCOL"),
        column("NODE"),
        column("PORT").right(),
        column("HOST").spare(2),
        column("REASON").spare(1),
    ];
    let rows: Vec<Vec<Value>> = ports
        .iter()
        .map(|p| {
            vec![
                reached(p).into(),
                p.protocol.as_str().into(),
                p.node.clone().into(),
                p.port.to_string().into(),
                p.host.clone().unwrap_or_else(|| "-".to_owned()).into(),
                p.reason.as_ref().map_or("", |r| r.message.as_str()).into(),
            ]
        })
        .collect();
    table(&columns, &rows, style)
}
