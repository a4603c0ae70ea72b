//! Which ports may be published, and which is given to whoever names none.

use docklet_types::port::{PortRange, Protocol};
use std::collections::BTreeSet;

use crate::admit::Refusal;
use crate::cluster::Cluster;

/// Linux's default range for the local end of connections (`net.ipv4.ip_local_port_range`). A host picks ports of it for
/// itself at any time, so they are given out only where somebody names one: the worker says if the host has it.
const EPHEMERAL: PortRange = PortRange { first: 32_768, last: 60_999 };

/// What the operator decided about published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPolicy {
    pub range: PortRange,
    /// Docklet's own, on whichever host.
    pub own: BTreeSet<u16>,
}

impl PortPolicy {
    /// Whether somebody may ask for this one.
    ///
    /// # Errors
    /// It is out of the range, or Docklet's own.
    pub fn admit(&self, asked: i64) -> Result<u16, Refusal> {
        let inside = u16::try_from(asked).ok().filter(|port| self.range.contains(*port));
        let port = inside.ok_or(Refusal::PortOutside { port: asked, range: self.range })?;
        if self.own.contains(&port) { Err(Refusal::PortOfOurs { port }) } else { Ok(port) }
    }

    /// A free port. The search begins at a place that `seed` decides, so that ports are not given out again soon and
    /// two requests seldom want the same.
    ///
    /// # Errors
    /// None is left.
    pub fn choose(&self, cluster: &Cluster, protocol: Protocol, seed: u64) -> Result<u16, Refusal> {
        let ports: Vec<u16> = (self.range.first..=self.range.last)
            .filter(|port| !EPHEMERAL.contains(*port) && !self.own.contains(port))
            .collect();
        let start = usize::try_from(seed % (ports.len().max(1) as u64)).unwrap_or(0);
        let mut order = ports.iter().cycle().skip(start).take(ports.len());
        let free = order.find(|port| cluster.port_owner(protocol, **port).is_none());
        free.copied().ok_or(Refusal::NoPort { range: self.range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(range: &str, own: &[u16]) -> PortPolicy {
        PortPolicy { range: range.parse().unwrap(), own: own.iter().copied().collect() }
    }

    #[test]
    fn what_is_outside_or_ours_is_refused() {
        let policy = policy("8000-20000", &[8000, 9000]);
        assert_eq!(policy.admit(10_000), Ok(10_000));
        assert_eq!(policy.admit(9000), Err(Refusal::PortOfOurs { port: 9000 }));
        for outside in [-1, 0, 80, 20_001, 70_000] {
            assert!(matches!(policy.admit(outside), Err(Refusal::PortOutside { .. })), "{outside}");
        }
    }

    #[test]
    fn a_chosen_port_is_neither_ours_nor_one_that_the_host_picks_for_itself() {
        let cluster = Cluster::default();
        let policy = policy("32760-61010", &[32_760]);
        for seed in 0..100 {
            let port = policy.choose(&cluster, Protocol::Tcp, seed).unwrap();
            assert!((32_761..32_768).contains(&port) || (61_000..=61_010).contains(&port), "{port}");
        }
        let full = PortPolicy { range: "40000-50000".parse().unwrap(), own: BTreeSet::new() };
        assert!(matches!(full.choose(&cluster, Protocol::Tcp, 3), Err(Refusal::NoPort { .. })));
    }
}
