//! Sites that share the accounts.

use docklet_client::Client;
use docklet_types::view::SiteView;

use crate::args::SiteCommand;
use crate::commands::Context;
use crate::failure::{Failure, Result};
use crate::output::{Style, Value, column, show, table};

pub async fn site(cx: &Context, command: SiteCommand) -> Result<()> {
    let sites = cx.client()?.sites().await?;
    match command {
        SiteCommand::List => show(cx.global.output, &sites, || listed(&sites, cx.style())),
        SiteCommand::Use { name } => choose(cx, &sites, &name).await?,
    }
    Ok(())
}

fn listed(sites: &[SiteView], style: Style) -> String {
    if sites.is_empty() {
        return "this is the only site\n".to_owned();
    }
    let row = |site: &SiteView| -> Vec<Value> {
        let name = if site.here { format!("{} (answers)", site.name) } else { site.name.clone() };
        vec![name.into(), site.url.clone().into()]
    };
    let rows: Vec<Vec<Value>> = sites.iter().map(row).collect();
    table(&[column("SITE"), column("ADDRESS")], &rows, style)
}

async fn choose(cx: &Context, sites: &[SiteView], name: &str) -> Result<()> {
    let chosen = sites.iter().find(|site| site.name.to_lowercase() == name.to_lowercase());
    let Some(chosen) = chosen else {
        let known: Vec<&str> = sites.iter().map(|site| site.name.as_str()).collect();
        let hint = if known.is_empty() { String::new() } else { format!("there are: {}", known.join(", ")) };
        return Err(Failure::NotFound { what: format!("there is no site {name}"), hint });
    };
    let sessions = cx.sessions()?;
    let unwritten = |e| {
        Failure::local(
            format!("cannot write beside {}", sessions.path().display()),
            "make the directory writable, or set XDG_CONFIG_HOME",
            e,
        )
    };
    sessions.use_site(&chosen.url).map_err(unwritten)?;
    // The one from there may have ended; the same account's from here is good there, too.
    let mut signed_in = false;
    for session in [sessions.get(&chosen.url), sessions.get(cx.url())].into_iter().flatten().flatten() {
        let there = Client::new(&chosen.url)?.with_token(&session.token)?;
        if there.me().await.is_ok() {
            sessions.put(&chosen.url, session).map_err(unwritten)?;
            signed_in = true;
            break;
        }
    }
    show(cx.global.output, chosen, || format!("{} at {} is used from now on\n", chosen.name, chosen.url));
    if !signed_in {
        eprintln!("sign in there with: docklet login USER");
    }
    Ok(())
}
