//! `docklet-worker remove`: the operator's explicit word about what no plan names, as after plans were restored from an
//! older copy. Such nodes run on untouched until then.

use std::time::Duration;

use docklet_daemon::config::Loaded;
use docklet_daemon::exit;
use docklet_store::keys::Keys;
use docklet_store::patient::PatientEtcd;
use docklet_types::id::{NodeId, VclusterId};
use docklet_types::paths::Paths;
use docklet_worker::audit::{Known, known_to_store};
use docklet_worker::machine;
use docklet_worker_host::linux::LinuxHost;
use docklet_worker_host::{Containers, Disks, HostError, Machine, Networks, Observed};

use super::{Outcome, failed};

/// What an id stands for.
enum Target {
    Node(NodeId),
    Vcluster(VclusterId),
}

/// Only what is on this host and what no plan names. All ids are looked at before the first is acted on.
fn target(id: &str, seen: &Observed, known: &Known) -> Result<Target, String> {
    if let Ok(node) = id.parse::<NodeId>()
        && seen.nodes.contains_key(&node)
    {
        let planned = known.nodes.contains(&node);
        return if planned { Err(format!("{id} is a node that a plan names")) } else { Ok(Target::Node(node)) };
    }
    if let Ok(vcluster) = id.parse::<VclusterId>()
        && seen.vclusters.contains_key(&vcluster)
    {
        let planned = known.vclusters.contains(&vcluster);
        return if planned {
            Err(format!("{id} is a vcluster that a plan names"))
        } else {
            Ok(Target::Vcluster(vcluster))
        };
    }
    Err(format!("{id} is neither a node nor a vcluster on this host"))
}

pub(super) async fn remove(loaded: &Loaded, paths: Paths, ids: &[String]) -> Outcome {
    let name = machine::host_name(loaded.config.host_name.as_ref());
    let host = super::linux(loaded, paths.clone());
    // The host first: a node that is new since then is none of these.
    let seen = host.observe().await.map_err(failed)?;
    let store = PatientEtcd::new(loaded.config.etcd.clone(), paths.worker_identity());
    let (known, _) = known_to_store(&store, &Keys::new(&loaded.config.cluster_name), &name).await.map_err(failed)?;
    let mut targets = Vec::new();
    for id in ids {
        targets.push(target(id, &seen, &known).map_err(|message| (exit::FAILED, message))?);
    }
    // A network goes after its nodes.
    targets.sort_by_key(|target| matches!(target, Target::Vcluster(_)));
    let mut errors: Vec<HostError> = Vec::new();
    for target in &targets {
        match target {
            Target::Node(id) => errors.extend(remove_node(&host, *id).await),
            Target::Vcluster(id) => errors.extend(host.remove_vcluster(*id).await.err()),
        }
    }
    if errors.is_empty() {
        return Ok(format!("removed {} of {}", targets.len(), ids.len()));
    }
    Err((exit::FAILED, errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
}

/// Stops a node and takes away all of it; goes on past failures and returns them.
pub(super) async fn remove_node(host: &LinuxHost, id: NodeId) -> Vec<HostError> {
    let removed = [host.stop(id, Duration::ZERO).await, host.remove_port(id).await, host.remove_disk(id).await];
    removed.into_iter().filter_map(Result::err).collect()
}
