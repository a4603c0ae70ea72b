//! A backlog: specs that are in the store all at once, as if a class had been made with one click.
//!
//! They are written as the master writes them, copied from one that it wrote, so that nothing but the planner is measured.

use docklet_store::keys::{Key, Keys};
use docklet_store::{Store, StoreError, Txn};
use docklet_types::id::{NodeId, OperationId, VclusterId};
use docklet_types::name::{NameError, NodeName};
use docklet_types::spec::{NodeSpec, Usage, VclusterSpec};
use docklet_types::time::Micros;
use std::collections::HashMap;
use uuid::Uuid;

/// Specs in one transaction: with their names they stay below etcd's 128 operations and 1.5 MiB.
const BATCH: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum BacklogError {
    #[error("the store cannot be read or written")]
    Store(#[source] StoreError),
    #[error("{key} cannot be read")]
    Read { key: String, source: serde_json::Error },
    #[error("there is no spec to copy")]
    NoSpec,
    #[error("a vcluster cannot be named")]
    Name(#[source] NameError),
}

/// The first spec of each owner.
async fn originals(store: &dyn Store, keys: &Keys) -> Result<Vec<VclusterSpec>, BacklogError> {
    let mut first = HashMap::new();
    let listing = store.list(&format!("{}specs/", keys.root())).await.map_err(BacklogError::Store)?;
    for entry in listing.entries {
        let spec: VclusterSpec = serde_json::from_slice(&entry.value)
            .map_err(|source| BacklogError::Read { key: entry.key.clone(), source })?;
        first.entry(spec.owner.clone()).or_insert(spec);
    }
    let mut specs: Vec<VclusterSpec> = first.into_values().collect();
    specs.sort_by(|a, b| a.owner.cmp(&b.owner));
    Ok(specs)
}

fn copy(original: &VclusterSpec, number: usize, nodes: u32) -> Result<VclusterSpec, BacklogError> {
    let now = Micros::now();
    let node = |n| NodeSpec {
        id: NodeId::from_uuid(Uuid::new_v4()),
        name: NodeName::numbered(n),
        image: original.image.clone(),
        size: original.size,
        attempt: 1,
    };
    Ok(VclusterSpec {
        id: VclusterId::from_uuid(Uuid::now_v7()),
        name: format!("later{number}").parse().map_err(BacklogError::Name)?,
        nodes: (1..=nodes).map(node).collect(),
        operation: OperationId::from_uuid(Uuid::now_v7()),
        created_at: now,
        changed_at: now,
        ..original.clone()
    })
}

/// Writes `count` vclusters of `nodes` nodes, over all owners that have one already.
pub async fn write(store: &dyn Store, keys: &Keys, count: usize, nodes: u32) -> Result<(), BacklogError> {
    let originals = originals(store, keys).await?;
    let each = count.div_ceil(originals.len().max(1));
    let mut left = count;
    for original in &originals {
        let numbers: Vec<usize> = (1..=each.min(left)).collect();
        left -= numbers.len();
        for batch in numbers.chunks(BATCH) {
            write_batch(store, keys, original, batch, nodes).await?;
        }
    }
    if left == 0 { Ok(()) } else { Err(BacklogError::NoSpec) }
}

async fn write_batch(
    store: &dyn Store,
    keys: &Keys,
    original: &VclusterSpec,
    numbers: &[usize],
    nodes: u32,
) -> Result<(), BacklogError> {
    let usage_key = keys.write(&Key::Usage(original.owner.clone()));
    let mut usage = match store.get(&usage_key).await.map_err(BacklogError::Store)? {
        Some(entry) => serde_json::from_slice(&entry.value)
            .map_err(|source| BacklogError::Read { key: usage_key.clone(), source })?,
        None => Usage::default(),
    };
    let mut txn = Txn::new();
    for number in numbers {
        let spec = copy(original, *number, nodes)?;
        usage = usage.plus(Usage::of(&spec));
        let name = keys.write(&Key::Name(spec.owner.clone(), spec.name.clone()));
        txn = txn
            .put(name, &spec.id)
            .and_then(|txn| txn.put(keys.write(&Key::Spec(spec.id)), &spec))
            .map_err(BacklogError::Store)?;
    }
    let txn = txn.put(usage_key, &usage).map_err(BacklogError::Store)?;
    store.txn(txn).await.map(drop).map_err(BacklogError::Store)
}
