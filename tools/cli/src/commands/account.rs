//! Signing in and out, and accounts.

use docklet_types::problem::Code;
use docklet_types::view::{ChangeUser, CreateUser, Me, Role, UserView};
use std::io::{self, BufRead, IsTerminal, Write};

use crate::args::UserCommand;
use crate::commands::Context;
use crate::failure::{Failure, Result};
use crate::output::{self, column, facts, mib, show, table};
use crate::prompt;
use crate::session::Stored;

pub async fn login(cx: &Context, user: Option<String>) -> Result<()> {
    let client = cx.anonymous()?;
    let sessions = cx.sessions()?;
    let username = match user {
        Some(user) => user,
        None => ask_user(cx.url())?,
    };
    if in_the_clear(cx.url()) {
        eprintln!("note: {} is not encrypted; whoever can listen on the way learns the password", cx.url());
    }
    let password = prompt::password(&format!("Password of {username} at {}: ", cx.url()))?;
    let session = client.sign_in(&username, &password).await?;
    let stored = Stored { username: username.clone(), token: session.token, expires_at: session.expires_at };
    // An earlier session is ended at the server too, or its token would stay valid unseen.
    if let Ok(Some(before)) = sessions.get(cx.url())
        && let Ok(old) = cx.anonymous()?.with_token(&before.token)
    {
        let _ = old.sign_out().await;
    }
    sessions.put(cx.url(), stored).map_err(|e| {
        Failure::local(
            format!("cannot write {}", sessions.path().display()),
            "make the directory writable, or set XDG_CONFIG_HOME",
            e,
        )
    })?;
    eprintln!("signed in as {username} at {}", cx.url());
    if cx.global.token.is_some() {
        eprintln!("note: --token (or DOCKLET_TOKEN) is set and is used in place of this session");
    }
    Ok(())
}

/// Whether what is sent there can be read on the way: plain HTTP to another machine.
fn in_the_clear(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = if authority.starts_with('[') { authority } else { authority.split(':').next().unwrap_or_default() };
    !(host == "localhost" || host.ends_with(".localhost") || host.starts_with("127.") || host.starts_with("[::1]"))
}

/// The name typed, or this machine's.
fn ask_user(url: &str) -> Result<String> {
    let own = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|u| u.name);
    if !io::stdin().is_terminal() {
        return own.ok_or_else(|| Failure::usage("no user name", "give it: docklet login USER"));
    }
    match &own {
        Some(own) => eprint!("User at {url} [{own}]: "),
        None => eprint!("User at {url}: "),
    }
    let mut line = String::new();
    io::stderr()
        .flush()
        .and_then(|()| io::stdin().lock().read_line(&mut line))
        .map_err(|e| Failure::local("cannot read the user name", "give it: docklet login USER", e))?;
    let typed = line.trim();
    if typed.is_empty() {
        own.ok_or_else(|| Failure::usage("no user name", "give it: docklet login USER"))
    } else {
        Ok(typed.to_owned())
    }
}

pub async fn logout(cx: &Context) -> Result<()> {
    let client = match cx.client() {
        Err(Failure::NotSignedIn { url, .. }) => {
            eprintln!("nobody was signed in at {url}");
            return Ok(());
        }
        other => other?,
    };
    let ended = client.sign_out().await;
    // With --token the stored session is another one and stays.
    if cx.global.token.is_none() {
        let sessions = cx.sessions()?;
        sessions.forget(cx.url()).map_err(|e| {
            Failure::local(format!("cannot write {}", sessions.path().display()), "remove the file by hand", e)
        })?;
    }
    match ended {
        Ok(()) => {}
        Err(e) if e.code() == Some(Code::NotSignedIn) => {}
        // The token is forgotten here, but the server still takes it until it expires.
        Err(e) => return Err(e.into()),
    }
    eprintln!("signed out at {}", cx.url());
    Ok(())
}

pub async fn whoami(cx: &Context) -> Result<()> {
    let me = cx.client()?.me().await?;
    show(cx.global.output, &me, || who(&me, cx));
    Ok(())
}

fn who(me: &Me, cx: &Context) -> String {
    let of = |used: String, cap: Option<String>| cap.map_or_else(|| used.clone(), |cap| format!("{used} of {cap}"));
    let quota = me.quota.as_ref();
    facts(
        &[
            ("user", me.username.clone()),
            ("role", role(me.role).to_owned()),
            ("server", cx.url().to_owned()),
            ("vclusters", me.usage.vclusters.to_string()),
            ("nodes", of(me.usage.nodes.to_string(), quota.map(|q| q.nodes.to_string()))),
            ("cpu", of(me.usage.cpu.to_string(), quota.map(|q| q.cpu.to_string()))),
            ("memory", of(mib(me.usage.memory_mib), quota.map(|q| mib(q.memory_mib)))),
            ("ports", of(me.usage.ports.to_string(), quota.map(|q| q.ports.to_string()))),
            ("disk", mib(me.usage.disk_mib)),
        ],
        cx.style(),
    )
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::User => "user",
    }
}

pub async fn user(cx: &Context, command: UserCommand) -> Result<()> {
    let client = cx.client()?;
    match command {
        UserCommand::Add { name, admin } => {
            let password = prompt::new_password(&name)?;
            let request = CreateUser { username: name, password, role: admin.then_some(Role::Admin) };
            let user = client.create_user(&request).await?;
            show(cx.global.output, &user, || format!("added {} ({})\n", user.username, role(user.role)));
        }
        UserCommand::List => {
            let users = client.users().await?;
            show(cx.global.output, &users, || list(&users, cx));
        }
        UserCommand::Disable { name } => {
            let user = client.change_user(&name, &ChangeUser { disabled: Some(true), ..ChangeUser::default() }).await?;
            show(cx.global.output, &user, || {
                format!("{} can no longer sign in; running vclusters run on\n", user.username)
            });
        }
        UserCommand::Enable { name } => {
            let user =
                client.change_user(&name, &ChangeUser { disabled: Some(false), ..ChangeUser::default() }).await?;
            show(cx.global.output, &user, || format!("{} can sign in again\n", user.username));
        }
        UserCommand::Passwd { name } => {
            let me = client.me().await?;
            let name = name.unwrap_or_else(|| me.username.clone());
            let own = name == me.username;
            // The first line of standard input is the current one, the second the new one.
            let current_password =
                if own { Some(prompt::password(&format!("Current password of {name}: "))?) } else { None };
            let password = Some(prompt::new_password(&name)?);
            let user =
                client.change_user(&name, &ChangeUser { password, current_password, ..ChangeUser::default() }).await?;
            show(cx.global.output, &user, || format!("{} has a new password\n", user.username));
        }
        UserCommand::Remove { name, yes } => {
            let user = client.user(&name).await?;
            let lost = match user.usage.vclusters {
                0 => format!("Remove the account {name}?"),
                n => format!("Remove the account {name}, which still has {n} vclusters?"),
            };
            prompt::confirm(&lost, yes)?;
            client.delete_user(&name).await?;
            show(cx.global.output, &serde_json::json!({ "username": name, "removed": true }), || {
                format!("removed {name}\n")
            });
        }
    }
    Ok(())
}

fn list(users: &[UserView], cx: &Context) -> String {
    let columns = [
        column("USER"),
        column("ROLE").spare(1),
        column("STATE"),
        column("VCLUSTERS").right().spare(2),
        column("NODES").right(),
        column("MEMORY").right().spare(3),
        column("LAST SEEN").spare(4),
        column("ID RANGE").right().spare(5),
    ];
    let now = jiff::Timestamp::now();
    let rows: Vec<_> = users
        .iter()
        .map(|u| {
            vec![
                u.username.clone().into(),
                role(u.role).into(),
                if u.disabled { "disabled" } else { "active" }.into(),
                u.usage.vclusters.to_string().into(),
                u.usage.nodes.to_string().into(),
                mib(u.usage.memory_mib).into(),
                u.last_seen
                    .as_deref()
                    .map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::age(at, now)))
                    .into(),
                u.first_id.to_string().into(),
            ]
        })
        .collect();
    table(&columns, &rows, cx.style())
}

#[cfg(test)]
mod tests {
    use super::in_the_clear;

    #[test]
    fn passwords_are_in_the_clear_only_over_http_to_elsewhere() {
        for safe in [
            "https://docklet.example",
            "http://localhost:8000",
            "http://127.0.0.1",
            "http://[::1]:8000/",
            "http://x.localhost",
        ] {
            assert!(!in_the_clear(safe), "{safe}");
        }
        for open in ["http://docklet.example:8000", "http://192.168.1.2", "http://localhost.example"] {
            assert!(in_the_clear(open), "{open}");
        }
    }
}
