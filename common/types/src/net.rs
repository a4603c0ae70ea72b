//! IPv4 networks and MAC addresses as plans carry them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// IANA's port of VXLAN.
pub const VXLAN_PORT: u16 = 4789;

/// An IPv4 network; the host part of `base` is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    base: u32,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 network such as 172.16.0.0/16")]
pub struct SubnetError(pub String);

impl Subnet {
    /// The network of `prefix` bits that `address` lies in; `None` where `prefix` is over 30.
    #[must_use]
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 30).then(|| Self { base: u32::from(address) & Self::mask_of(prefix), prefix })
    }

    const fn mask_of(prefix: u8) -> u32 {
        if prefix == 0 { 0 } else { u32::MAX << (32 - prefix) }
    }

    #[must_use]
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & Self::mask_of(self.prefix) == self.base
    }

    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        let prefix = self.prefix.min(other.prefix);
        self.base & Self::mask_of(prefix) == other.base & Self::mask_of(prefix)
    }

    /// The first address: the gateway, which the host holds.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    #[must_use]
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !Self::mask_of(self.prefix))
    }

    /// How many nodes have room: all addresses but network, gateway and broadcast.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        (1 << (32 - self.prefix)) - 3
    }

    /// Addresses for nodes, in order.
    pub fn node_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let first = self.base + 2;
        (first..first + self.capacity()).map(Ipv4Addr::from)
    }

    /// All networks of `prefix` bits inside this one, in order; none where `prefix` is shorter than this one's.
    pub fn split(&self, prefix: u8) -> impl Iterator<Item = Self> + use<> {
        let base = self.base;
        let count: u64 = if prefix < self.prefix || prefix > 30 { 0 } else { 1 << (prefix - self.prefix) };
        (0..count).map(move |i| Self { base: base + (i << (32 - prefix)) as u32, prefix })
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let bad = || SubnetError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        Self::containing(address, prefix).ok_or_else(bad)
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(net: Subnet) -> String {
        net.to_string()
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base(), self.prefix)
    }
}

/// A locally administered unicast MAC address. Derived from the node's address: another one would leave neighbours
/// with a stale entry for up to a minute when the node restarts, or when a new node gets the address of one that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    #[must_use]
    pub const fn of_address(ip: Ipv4Addr) -> Self {
        let [a, b, c, d] = ip.octets();
        Self([0x02, 0xdc, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut out = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut out {
            *byte = parts
                .next()
                .and_then(|p| u8::from_str_radix(p, 16).ok())
                .ok_or_else(|| format!("{text:?} is not a MAC address"))?;
        }
        if parts.next().is_some() { Err(format!("{text:?} is not a MAC address")) } else { Ok(Self(out)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_network() {
        let net: Subnet = "172.16.0.1/30".parse().unwrap();
        assert_eq!(net.to_string(), "172.16.0.0/30");
        assert_eq!(net.node_addresses().collect::<Vec<_>>(), ["172.16.0.2".parse::<Ipv4Addr>().unwrap()]);
        assert_eq!(net.gateway().to_string(), "172.16.0.1");
    }

    proptest! {
        #[test]
        fn parts_of_a_network_do_not_overlap(base: u32, extra in 0u8..6) {
            let net = Subnet::containing(Ipv4Addr::from(base), 20).unwrap();
            let parts: Vec<_> = net.split(20 + extra).collect();
            prop_assert_eq!(parts.len(), 1usize << extra);
            for (i, a) in parts.iter().enumerate() {
                prop_assert!(net.overlaps(a));
                for b in &parts[i + 1..] {
                    prop_assert!(!a.overlaps(b));
                }
            }
        }

        #[test]
        fn text_round_trips(base: u32, prefix in 0u8..=30) {
            let net = Subnet::containing(Ipv4Addr::from(base), prefix).unwrap();
            prop_assert_eq!(net.to_string().parse::<Subnet>().unwrap(), net);
        }
    }
}
