//! Documents that programs of two versions share, during an upgrade or after a step back: what a newer one wrote is read
//! by an older one, fields that it does not know included.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use docklet_types::agent::AgentReply;
use docklet_types::host::{HostReport, HostSettings};
use docklet_types::join::{IssuedToken, JoinedHost, MasterReply};
use docklet_types::master::MasterReport;
use docklet_types::moves::{Lost, Move};
use docklet_types::plan::{Network, NodePlan, VclusterPlan};
use docklet_types::report::{NodeReport, VclusterReport};
use docklet_types::shared::Marker;
use docklet_types::spec::{Usage, VclusterSpec};
use docklet_types::view::ChangeVcluster;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NODE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const VCLUSTER: &str = "01890a5d-ac96-774b-bcce-b302099a8058";
/// Objects whose keys are data.
const MAPS: [&str; 3] = ["hosts", "labels", "host_labels"];

/// Puts a field that nobody knows into every object.
fn as_written_later(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields.iter_mut() {
                if !MAPS.contains(&name.as_str()) {
                    as_written_later(inner);
                }
            }
            fields.insert("of_a_later_version".to_owned(), json!({"any": ["thing"]}));
        }
        Value::Array(items) => items.iter_mut().for_each(as_written_later),
        _ => {}
    }
}

/// The document is read, is read the same with unknown fields everywhere, and says the same when it is written.
fn is_read_past<T: DeserializeOwned + Serialize>(document: Value) {
    let name = std::any::type_name::<T>();
    let today: T = serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut later = document;
    as_written_later(&mut later);
    let read: T = serde_json::from_value(later).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(serde_json::to_value(read).unwrap(), serde_json::to_value(today).unwrap(), "{name}");
}

fn image() -> Value {
    json!({"name": "small", "digest": format!("sha256:{}", "0".repeat(64))})
}

fn size() -> Value {
    json!({"cpu": 0.5, "memory_mib": 256, "disk_mib": 512})
}

fn keys() -> Value {
    json!({"user": {"private": "p", "public": "q"}, "host": {"private": "p", "public": "q"}})
}

fn limits() -> Value {
    json!({"ingress_kbit": 1000, "egress_kbit": 1000})
}

fn reason() -> Value {
    json!({"code": "no_room", "message": "There is no room.", "log": "line"})
}

#[test]
fn what_is_wanted() {
    is_read_past::<VclusterSpec>(json!({
        "id": VCLUSTER, "owner": "alice", "range": 1, "name": "demo", "image": image(), "size": size(),
        "nodes": [{"id": NODE, "name": "node1", "image": image(), "size": size(), "attempt": 0}],
        "ports": [{"protocol": "tcp", "public": 10000, "node": NODE, "port": 80}], "limits": limits(),
        "host_labels": {"gpu": "yes"}, "wanted": "running", "generation": 1, "created_at": 1, "changed_at": 1,
        "operation": NODE, "keys": keys(), "warm": {"until": 1},
    }));
    is_read_past::<Usage>(
        json!({"vclusters": 1, "nodes": 1, "cpu_millis": 1, "memory_mib": 1, "disk_mib": 1, "ports": 1}),
    );
    is_read_past::<HostSettings>(json!({"cordoned": true, "labels": {"gpu": "yes"}, "draining": true}));
    is_read_past::<Move>(json!({
        "node": NODE, "vcluster": VCLUSTER, "wanted": "h2", "actor": "alice", "stage": "copying",
        "trip": {"number": 1, "from": "h1", "to": "h2", "bytes": 1, "based": true}, "reason": reason(),
    }));
}

#[test]
fn what_is_planned() {
    is_read_past::<NodePlan>(json!({
        "id": NODE, "vcluster": VCLUSTER, "owner": "alice", "name": "node1", "generation": 1, "wanted": "running",
        "attempt": 0, "image": image(), "size": size(), "range": 1, "ip": "172.16.0.2", "mac": "02:00:ac:10:00:02",
        "moving": {"number": 1, "side": "source"}, "frozen": true, "planned_at": 1,
    }));
    is_read_past::<VclusterPlan>(json!({
        "id": VCLUSTER, "owner": "alice", "name": "demo", "generation": 1, "wanted": "running", "range": 1,
        "network": {"subnet": "172.16.0.0/26", "vni": 1},
        "peers": [{"name": "node1", "ip": "172.16.0.2", "mac": "02:00:ac:10:00:02", "host": "h1"}],
        "hosts": {"h1": "10.0.0.1"}, "forwards": [{"protocol": "tcp", "public": 10000, "ip": "172.16.0.2", "port": 80}],
        "limits": limits(), "keys": keys(),
    }));
    is_read_past::<Network>(json!({"subnet": "172.16.0.0/26", "vni": 1}));
    is_read_past::<Lost>(json!({"number": 1, "actor": "alice", "at": 1}));
}

#[test]
fn what_is_reported() {
    is_read_past::<NodeReport>(json!({
        "id": NODE, "vcluster": VCLUSTER, "generation": 1, "attempt": 0, "state": "ready", "reason": reason(),
        "init_pid": 1, "steps": [{"step": "boot", "started_at": 1, "ended_at": 2}], "at": 1,
    }));
    is_read_past::<VclusterReport>(json!({
        "id": VCLUSTER, "generation": 1, "present": true, "reason": reason(),
        "refused": [{"protocol": "tcp", "public": 10000, "ip": "172.16.0.2", "port": 80}], "at": 1,
    }));
    is_read_past::<HostReport>(json!({
        "name": "h1", "address": "10.0.0.1", "agent_port": 9001, "version": "1", "kernel": "6.1", "cgroup": "v2",
        "storage": "btrfs", "capacity": {"cpu_millis": 1, "memory_mib": 1, "disk_mib": 1},
        "checks": [{"name": "kernel", "outcome": "ok", "message": "fine"}], "started_at": 1,
    }));
    is_read_past::<MasterReport>(json!({"name": "m1", "address": "10.0.0.1:8000", "version": "1", "started_at": 1}));
}

#[test]
fn who_belongs_to_the_cluster_and_what_is_answered() {
    is_read_past::<IssuedToken>(json!({"secret_sha256": "0", "expires_at": 1, "host": "h1", "used_by": "h1"}));
    is_read_past::<JoinedHost>(json!({"identity": "worker-h1", "joined_at": 1}));
    is_read_past::<Marker>(json!({"cluster": "demo"}));
    // Outside is the kind of answer, one of those that both know.
    for (kind, inner) in [
        (
            "joined",
            json!({
                "certificate": "c", "authority": "a", "cluster_name": "demo", "cluster_net": "172.16.0.0/12",
                "etcd": ["10.0.0.1:2379"], "master_ip": "10.0.0.1", "master_port": 9000,
            }),
        ),
        ("renewed", json!({"certificate": "c"})),
        ("refused", reason()),
    ] {
        let mut later = inner;
        as_written_later(&mut later);
        serde_json::from_value::<MasterReply>(json!({kind: later})).unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
    for (kind, inner) in [
        ("exec", json!({"exit_code": 0, "stdout": "", "stderr": "", "truncated": false})),
        ("logs", json!({"text": ""})),
        ("failed", reason()),
    ] {
        let mut later = inner;
        as_written_later(&mut later);
        serde_json::from_value::<AgentReply>(json!({kind: later})).unwrap_or_else(|e| panic!("{kind}: {e}"));
    }
}

/// A request with a field that means nothing to us asks for something that we would not do.
#[test]
fn a_request_with_an_unknown_field_is_refused() {
    assert!(serde_json::from_value::<ChangeVcluster>(json!({"limits": {"ingress_kbit": 1000}})).is_ok());
    assert!(serde_json::from_value::<ChangeVcluster>(json!({"limits": {"ingress_kbits": 1000}})).is_err());
}
