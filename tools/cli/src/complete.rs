//! Completion of names by asking the server. It is quick or silent: a person waits for it at every Tab.

use clap_complete::CompletionCandidate;
use docklet_client::Client;
use std::env;
use std::ffi::OsStr;
use std::future::Future;
use std::time::Duration;

use crate::session::{self, Sessions};

const PATIENCE: Duration = Duration::from_millis(800);

pub fn vclusters(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, ask(|c| async move { Some(c.vclusters().await.ok()?.into_iter().map(|v| v.name).collect()) }))
}

/// `NAME` up to the slash, then `NAME/NODE`.
pub fn places(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(text) = current.to_str() else { return Vec::new() };
    match text.split_once('/') {
        None => vclusters(current),
        Some((name, _)) => {
            let owned = name.to_owned();
            offer(
                current,
                ask(|c| async move {
                    Some(c.nodes(&owned).await.ok()?.into_iter().map(|n| format!("{owned}/{}", n.name)).collect())
                }),
            )
        }
    }
}

pub fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, ask(|c| async move { Some(c.images().await.ok()?.into_iter().map(|i| i.name).collect()) }))
}

pub fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, ask(|c| async move { Some(c.hosts().await.ok()?.into_iter().map(|h| h.name).collect()) }))
}

pub fn users(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, ask(|c| async move { Some(c.users().await.ok()?.into_iter().map(|u| u.username).collect()) }))
}

pub fn sites(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, ask(|c| async move { Some(c.sites().await.ok()?.into_iter().map(|s| s.name).collect()) }))
}

fn offer(current: &OsStr, names: Option<Vec<String>>) -> Vec<CompletionCandidate> {
    let prefix = current.to_string_lossy();
    names.unwrap_or_default().into_iter().filter(|n| n.starts_with(&*prefix)).map(CompletionCandidate::new).collect()
}

/// The options of the line are not known here; address and token come from the environment and the stored session.
fn ask<F: Future<Output = Option<Vec<String>>>>(question: impl FnOnce(Client) -> F) -> Option<Vec<String>> {
    let sessions = Sessions::locate();
    let url = session::server(env::var("DOCKLET_URL").ok(), sessions.as_ref());
    let token = env::var("DOCKLET_TOKEN").ok().or_else(|| Some(sessions?.get(&url).ok()??.token))?;
    let client = Client::new(&url).ok()?.with_token(&token).ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, question(client)).await.ok()? })
}
