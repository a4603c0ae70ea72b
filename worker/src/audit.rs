//! What on this host belongs to nothing: every object of ours, held against the plans.

use std::collections::BTreeSet;
use std::path::Path;

use docklet_store::keys::{Key, Keys};
use docklet_store::{Store, StoreError};
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::name::HostName;
use docklet_worker_host::{HostError, Machine, Owned, Owner};
use serde::Serialize;

use crate::ledger::{Ledger, LedgerError};

/// The objects that plans account for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Known {
    pub nodes: BTreeSet<NodeId>,
    pub vclusters: BTreeSet<VclusterId>,
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Audit {
    pub host: HostName,
    /// `store`, or `local copy` where the store does not answer.
    pub plans_from: &'static str,
    /// Objects that were looked at.
    pub objects: usize,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// `link`, `nft_element`, `mount`, `cgroup`, `process`, `loop`, `directory`, `netns`, `report`.
    pub kind: String,
    pub label: String,
    /// The id that the object carries and no plan names, if it carries one.
    pub owner: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot list what is on this host: {0}")]
    Inventory(#[source] HostError),
    #[error("the store does not answer and there is no local copy of the plans")]
    NoPlans(#[source] StoreError),
    #[error("the store does not answer, and the local copy of the plans is of no use")]
    BadCopy(#[source] LedgerError),
}

/// What belongs to nothing, in order.
#[must_use]
pub fn findings(objects: &[Owned], known: &Known) -> Vec<Finding> {
    let mut found: Vec<Finding> = objects
        .iter()
        .filter_map(|object| {
            let owner = match object.owner {
                Owner::Host => return None,
                Owner::Node(id) if known.nodes.contains(&id) => return None,
                Owner::Vcluster(id) if known.vclusters.contains(&id) => return None,
                Owner::Node(id) => Some(id.to_string()),
                Owner::Vcluster(id) => Some(id.to_string()),
                Owner::Unknown => None,
            };
            Some(Finding { kind: object.kind.to_owned(), label: object.label.clone(), owner })
        })
        .collect();
    found.sort();
    found
}

/// Looks at the host and asks the store, or the local copy under `copy`, what should be there.
///
/// # Errors
/// The host cannot be looked at, or nobody knows the plans.
pub async fn audit(
    host: &dyn Machine,
    store: &dyn Store,
    keys: &Keys,
    name: &HostName,
    copy: &Path,
) -> Result<Audit, AuditError> {
    let mut seen = look(host, store, keys, name, copy).await?;
    if !seen.findings.is_empty() {
        // What was just being removed was there when the host was looked at, and in no plan a moment later. What belongs
        // to nothing still does so at a second look.
        let again = look(host, store, keys, name, copy).await?;
        seen.findings.retain(|finding| again.findings.contains(finding));
    }
    Ok(seen)
}

async fn look(
    host: &dyn Machine,
    store: &dyn Store,
    keys: &Keys,
    name: &HostName,
    copy: &Path,
) -> Result<Audit, AuditError> {
    // The host first: the other way round there would be a new node's things without its plan.
    let objects = host.inventory().await.map_err(AuditError::Inventory)?;
    let (known, reports, plans_from) = match known_to_store(store, keys, name).await {
        Ok((known, reports)) => (known, reports, "store"),
        Err(error) => match Ledger::load(copy, name) {
            Ok(Some(ledger)) => {
                let nodes = ledger.nodes.iter().map(|r| r.plan.id).collect();
                (Known { nodes, vclusters: ledger.vclusters.iter().map(|p| p.id).collect() }, Vec::new(), "local copy")
            }
            Ok(None) => return Err(AuditError::NoPlans(error)),
            Err(error) => return Err(AuditError::BadCopy(error)),
        },
    };
    let mut found = findings(&objects, &known);
    found.extend(reports);
    Ok(Audit { host: name.clone(), plans_from, objects: objects.len(), findings: found })
}

/// What the plans in the store name, and reports that belong to none.
///
/// # Errors
/// The store does not answer.
pub async fn known_to_store(
    store: &dyn Store,
    keys: &Keys,
    host: &HostName,
) -> Result<(Known, Vec<Finding>), StoreError> {
    let reports = store.list(&keys.reports_of(host)).await?;
    let mut known = Known::default();
    for entry in store.list(&keys.plans_of(host)).await?.entries {
        match keys.read(&entry.key) {
            Some(Key::NodePlan(_, id)) => {
                known.nodes.insert(id);
            }
            Some(Key::VclusterPlan(_, id)) => {
                known.vclusters.insert(id);
            }
            _ => {}
        }
    }
    let orphans = reports.entries.into_iter().filter_map(|entry| {
        let owner = match keys.read(&entry.key) {
            Some(Key::NodeReport(_, id)) if !known.nodes.contains(&id) => Some(id.to_string()),
            Some(Key::VclusterReport(_, id)) if !known.vclusters.contains(&id) => Some(id.to_string()),
            Some(_) => return None,
            None => None,
        };
        Some(Finding { kind: "report".to_owned(), label: entry.key, owner })
    });
    let orphans = orphans.collect();
    Ok((known, orphans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_plan_names_is_found() {
        let node = |n: u8| format!("00000000-0000-7000-8000-0000000000{n:02x}").parse::<NodeId>().unwrap();
        let objects = [
            Owned { kind: "link", label: "dkv1".to_owned(), owner: Owner::Node(node(1)) },
            Owned { kind: "link", label: "dkv2".to_owned(), owner: Owner::Node(node(2)) },
            Owned { kind: "mount", label: "/pool".to_owned(), owner: Owner::Host },
            Owned { kind: "cgroup", label: "dk-x".to_owned(), owner: Owner::Unknown },
        ];
        let known = Known { nodes: [node(1)].into(), vclusters: BTreeSet::new() };
        let labels: Vec<String> = findings(&objects, &known).into_iter().map(|f| f.label).collect();
        assert_eq!(labels, ["dk-x", "dkv2"]);
    }
}
