//! What keys look like: the one place that knows. All lie under `/docklet/<cluster>/`.

use docklet_types::id::{NodeId, VclusterId};
use docklet_types::name::{ClusterName, HostName, UserName, VclusterName};
use docklet_types::port::Protocol;

/// A key, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// `specs/<id>`: what a user wants.
    Spec(VclusterId),
    /// `names/<owner>/<name>`: the id of the vcluster of that name.
    Name(UserName, VclusterName),
    /// `usage/<owner>`: the sum over the owner's vclusters.
    Usage(UserName),
    /// `ports/<protocol>/<public>`: the id of the vcluster that has published it.
    Port(Protocol, u16),
    /// `networks/<id>`: subnet and VNI of a vcluster.
    Network(VclusterId),
    /// `alloc/networks`: counts allocations of subnets, so that two planners cannot both take one.
    NetworkAlloc,
    /// `alloc/hosts/<host>`: counts placements, so that two planners cannot both take a host's last room.
    HostAlloc(HostName),
    /// `alloc/vclusters/<id>`: counts what was planned anew of a vcluster, so that two planners cannot both place a node of it,
    /// nor one forget a vcluster of which another has just placed something.
    VclusterAlloc(VclusterId),
    /// `plans/<host>/nodes/<id>`
    NodePlan(HostName, NodeId),
    /// `plans/<host>/vclusters/<id>`
    VclusterPlan(HostName, VclusterId),
    /// `reports/<host>/nodes/<id>`
    NodeReport(HostName, NodeId),
    /// `reports/<host>/vclusters/<id>`
    VclusterReport(HostName, VclusterId),
    /// `hosts/<host>`
    Host(HostName),
    /// `hostsettings/<host>`: what an administrator decided about it.
    HostSettings(HostName),
    /// `alive/<host>`, leased.
    Alive(HostName),
    /// `joined/<host>`: the host was let in, and under which identity.
    Joined(HostName),
    /// `tokens/<id>`: a join token that was handed out.
    Token(String),
    /// `masters/<name>`, leased.
    Master(HostName),
    /// `moves/<id>`: a node that is to be on another host.
    Move(NodeId),
    /// `plans/<host>/lost`: what the host held is gone for good.
    Lost(HostName),
    /// `reports/<host>/lost`: nothing of that is left there.
    Cleared(HostName),
    /// `settings/maintenance`: present while maintenance is on.
    Maintenance,
}

/// Makes and reads keys of one installation.
#[derive(Debug, Clone)]
pub struct Keys {
    root: String,
}

impl Keys {
    #[must_use]
    pub fn new(cluster: &ClusterName) -> Self {
        Self { root: format!("/docklet/{cluster}/") }
    }

    /// The prefix of everything.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The prefix of all plans of one host: what its worker may read.
    #[must_use]
    pub fn plans_of(&self, host: &HostName) -> String {
        format!("{}plans/{host}/", self.root)
    }

    /// The prefix of all hosts that joined.
    #[must_use]
    pub fn joined(&self) -> String {
        format!("{}joined/", self.root)
    }

    /// The prefix of all join tokens.
    #[must_use]
    pub fn tokens(&self) -> String {
        format!("{}tokens/", self.root)
    }

    /// The prefix of all reports of one host: what its worker may write.
    #[must_use]
    pub fn reports_of(&self, host: &HostName) -> String {
        format!("{}reports/{host}/", self.root)
    }

    #[must_use]
    pub fn write(&self, key: &Key) -> String {
        let root = &self.root;
        match key {
            Key::Spec(id) => format!("{root}specs/{id}"),
            Key::Name(owner, name) => format!("{root}names/{owner}/{name}"),
            Key::Usage(owner) => format!("{root}usage/{owner}"),
            Key::Port(protocol, public) => format!("{root}ports/{protocol}/{public}"),
            Key::Network(id) => format!("{root}networks/{id}"),
            Key::NetworkAlloc => format!("{root}alloc/networks"),
            Key::HostAlloc(host) => format!("{root}alloc/hosts/{host}"),
            Key::VclusterAlloc(id) => format!("{root}alloc/vclusters/{id}"),
            Key::NodePlan(host, id) => format!("{root}plans/{host}/nodes/{id}"),
            Key::VclusterPlan(host, id) => format!("{root}plans/{host}/vclusters/{id}"),
            Key::NodeReport(host, id) => format!("{root}reports/{host}/nodes/{id}"),
            Key::VclusterReport(host, id) => format!("{root}reports/{host}/vclusters/{id}"),
            Key::Host(host) => format!("{root}hosts/{host}"),
            Key::HostSettings(host) => format!("{root}hostsettings/{host}"),
            Key::Alive(host) => format!("{root}alive/{host}"),
            Key::Joined(host) => format!("{root}joined/{host}"),
            Key::Token(id) => format!("{root}tokens/{id}"),
            Key::Master(name) => format!("{root}masters/{name}"),
            Key::Move(id) => format!("{root}moves/{id}"),
            Key::Lost(host) => format!("{root}plans/{host}/lost"),
            Key::Cleared(host) => format!("{root}reports/{host}/lost"),
            Key::Maintenance => format!("{root}settings/maintenance"),
        }
    }

    /// `None` for a key of another version or another program: it is left alone.
    #[must_use]
    pub fn read(&self, key: &str) -> Option<Key> {
        let parts: Vec<&str> = key.strip_prefix(&self.root)?.split('/').collect();
        Some(match parts.as_slice() {
            ["specs", id] => Key::Spec(id.parse().ok()?),
            ["names", owner, name] => Key::Name(owner.parse().ok()?, name.parse().ok()?),
            ["usage", owner] => Key::Usage(owner.parse().ok()?),
            ["ports", protocol, public] => Key::Port(protocol.parse().ok()?, public.parse().ok()?),
            ["networks", id] => Key::Network(id.parse().ok()?),
            ["alloc", "networks"] => Key::NetworkAlloc,
            ["alloc", "hosts", host] => Key::HostAlloc(host.parse().ok()?),
            ["alloc", "vclusters", id] => Key::VclusterAlloc(id.parse().ok()?),
            ["plans", host, "nodes", id] => Key::NodePlan(host.parse().ok()?, id.parse().ok()?),
            ["plans", host, "vclusters", id] => Key::VclusterPlan(host.parse().ok()?, id.parse().ok()?),
            ["reports", host, "nodes", id] => Key::NodeReport(host.parse().ok()?, id.parse().ok()?),
            ["reports", host, "vclusters", id] => Key::VclusterReport(host.parse().ok()?, id.parse().ok()?),
            ["hosts", host] => Key::Host(host.parse().ok()?),
            ["hostsettings", host] => Key::HostSettings(host.parse().ok()?),
            ["alive", host] => Key::Alive(host.parse().ok()?),
            ["joined", host] => Key::Joined(host.parse().ok()?),
            ["tokens", id] => Key::Token((*id).to_owned()),
            ["masters", name] => Key::Master(name.parse().ok()?),
            ["moves", id] => Key::Move(id.parse().ok()?),
            ["plans", host, "lost"] => Key::Lost(host.parse().ok()?),
            ["reports", host, "lost"] => Key::Cleared(host.parse().ok()?),
            ["settings", "maintenance"] => Key::Maintenance,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let keys = Keys::new(&"test".parse().unwrap());
        let id = VclusterId::from_uuid(uuid::Uuid::from_u128(7));
        let node = NodeId::from_uuid(uuid::Uuid::from_u128(8));
        let host: HostName = "h1".parse().unwrap();
        let user: UserName = "alice".parse().unwrap();
        for key in [
            Key::Spec(id),
            Key::Name(user.clone(), "demo".parse().unwrap()),
            Key::Usage(user),
            Key::Port(Protocol::Udp, 10_000),
            Key::Network(id),
            Key::NetworkAlloc,
            Key::HostAlloc(host.clone()),
            Key::VclusterAlloc(id),
            Key::NodePlan(host.clone(), node),
            Key::VclusterPlan(host.clone(), id),
            Key::NodeReport(host.clone(), node),
            Key::VclusterReport(host.clone(), id),
            Key::Host(host.clone()),
            Key::HostSettings(host.clone()),
            Key::Alive(host.clone()),
            Key::Joined(host.clone()),
            Key::Token("0123456789ab".to_owned()),
            Key::Master(host.clone()),
            Key::Move(node),
            Key::Lost(host.clone()),
            Key::Cleared(host),
            Key::Maintenance,
        ] {
            assert_eq!(keys.read(&keys.write(&key)), Some(key));
        }
        assert_eq!(keys.read("/docklet/other/specs/x"), None);
    }
}
