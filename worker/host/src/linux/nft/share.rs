//! What one vcluster adds to the packet filter besides its bridge: elements of maps and sets, and no rule.
//!
//! Each element carries the name of the vcluster's bridge as its comment, so that a worker that comes later, and the
//! audit, can tell whose it is.

use docklet_types::port::{Forward, Protocol};
use docklet_types::rate::RateLimits;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// One vcluster's share of the maps and sets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Public ports that lead to its nodes.
    pub forwards: BTreeSet<Forward>,
    /// Its tunnel's number, and the hosts that may speak through it.
    pub tunnel: Option<(u32, BTreeSet<Ipv4Addr>)>,
    pub limits: RateLimits,
}

/// Shares by the name of the bridge.
pub type Shares = BTreeMap<String, Share>;

/// Maps and sets that hold shares, in the order in which they are emptied.
pub const SETS: [(&str, &str); 6] = [
    ("map", "forwards"),
    ("set", "published"),
    ("set", "tunnels"),
    ("set", "tunnel_ids"),
    ("map", "ingress"),
    ("map", "egress"),
];

/// What a limit lets through at once besides one second's worth, in bytes: more than the largest packet that the
/// kernel hands over undivided (64 KiB), which a slow limit would otherwise never let through.
const BURST: u32 = 131_072;

/// Makes the maps and sets where they are missing, and empties them: the elements follow in the same transaction.
pub fn declare(t: &str) -> String {
    let mut script = format!(
        "add map inet {t} forwards {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}\n\
         add set inet {t} published {{ type inet_proto . ipv4_addr . inet_service; }}\n\
         add set inet {t} tunnels {{ typeof ip saddr . @th,96,24; }}\n\
         add set inet {t} tunnel_ids {{ typeof @th,96,24; }}\n\
         add map inet {t} ingress {{ type ifname : limit; }}\n\
         add map inet {t} egress {{ type ifname : limit; }}\n"
    );
    for (kind, name) in SETS {
        script += &format!("flush {kind} inet {t} {name}\n");
    }
    script
}

/// What is written, in the order in which it may be added: a limit before the element that names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Element {
    /// A limit cannot be changed: another rate is another limit, and so has another name.
    Limit { name: String, kbit: u32 },
    /// In its set a key, and in a map its value.
    Of { set: &'static str, key: String, value: String },
}

impl Element {
    fn of(set: &'static str, key: String) -> Self {
        Self::Of { set, key, value: String::new() }
    }

    fn write(&self, verb: &str, t: &str, bridge: &str) -> String {
        match self {
            Self::Limit { name, kbit } => {
                let rate = u64::from(*kbit) * 125;
                let what = format!(" {{ rate over {rate} bytes/second burst {BURST} bytes; }}");
                format!("{verb} limit inet {t} {name}{}\n", if verb == "delete" { "" } else { &what })
            }
            Self::Of { set, key, value } => {
                format!("{verb} element inet {t} {set} {{ {key} comment \"{bridge}\"{value} }}\n")
            }
        }
    }
}

/// `dkb0123456789_ingress_10000`
fn limit_name(bridge: &str, direction: &str, kbit: u32) -> String {
    format!("{bridge}_{direction}_{kbit}")
}

impl Share {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn elements(&self, bridge: &str) -> BTreeSet<Element> {
        let mut found = BTreeSet::new();
        for Forward { protocol, public, ip, port } in &self.forwards {
            let (key, value) = (format!("{protocol} . {public}"), format!(" : {ip} . {port}"));
            found.insert(Element::Of { set: "forwards", key, value });
            found.insert(Element::of("published", format!("{protocol} . {ip} . {port}")));
        }
        if let Some((id, hosts)) = &self.tunnel {
            found.insert(Element::of("tunnel_ids", id.to_string()));
            for host in hosts {
                found.insert(Element::of("tunnels", format!("{host} . {id}")));
            }
        }
        for (set, kbit) in [("ingress", self.limits.ingress_kbit), ("egress", self.limits.egress_kbit)] {
            if let Some(kbit) = kbit {
                let name = limit_name(bridge, set, kbit);
                found.insert(Element::Of { set, key: bridge.to_owned(), value: format!(" : \"{name}\"") });
                found.insert(Element::Limit { name, kbit });
            }
        }
        found
    }

    /// Everything of it, into empty sets.
    pub fn script(&self, t: &str, bridge: &str) -> String {
        self.elements(bridge).iter().map(|e| e.write("add", t, bridge)).collect()
    }
}

/// Gives the vcluster of `bridge` that share. A public port that another one still has is taken from it: the store has
/// given it to this one, and the other's next plan says so.
pub fn replace(shares: &mut Shares, t: &str, bridge: &str, new: Share) -> String {
    let mut script = String::new();
    let taken: BTreeSet<(Protocol, u16)> = new.forwards.iter().map(|f| (f.protocol, f.public)).collect();
    let others: Vec<(String, Share)> = shares
        .iter()
        .filter(|(name, share)| {
            *name != bridge && share.forwards.iter().any(|f| taken.contains(&(f.protocol, f.public)))
        })
        .map(|(name, share)| (name.clone(), share.clone()))
        .collect();
    for (name, old) in others {
        let mut left = old.clone();
        left.forwards.retain(|f| !taken.contains(&(f.protocol, f.public)));
        script += &difference(t, &name, &old, &left);
        shares.insert(name, left);
    }
    let old = shares.get(bridge).cloned().unwrap_or_default();
    script += &difference(t, bridge, &old, &new);
    if new.is_empty() {
        shares.remove(bridge);
    } else {
        shares.insert(bridge.to_owned(), new);
    }
    script
}

/// What goes first, so that a key can change its value. Adding before makes the removal of what is not there a success.
fn difference(t: &str, bridge: &str, old: &Share, new: &Share) -> String {
    let (old, new) = (old.elements(bridge), new.elements(bridge));
    let gone: Vec<&Element> = old.difference(&new).collect();
    let there = gone.iter().map(|e| e.write("add", t, bridge));
    let delete = gone.iter().rev().map(|e| e.write("delete", t, bridge));
    let come = new.difference(&old).map(|e| e.write("add", t, bridge));
    there.chain(delete).chain(come).collect()
}

/// The shares that these answers to `list` tell of. An element without a comment is nobody's and is left out: the next
/// `prepare` removes it.
pub fn read(answers: &[(&'static str, Vec<Value>)]) -> Shares {
    let mut shares = Shares::new();
    for (set, elements) in answers {
        for element in elements {
            // Of a map: the key's part and the value.
            let (key, value) = match element.as_array().map(Vec::as_slice) {
                Some([key, value]) => (key, Some(value)),
                _ => (element, None),
            };
            let Some(key) = key.get("elem") else { continue };
            let (Some(bridge), Some(key)) = (key.get("comment").and_then(Value::as_str), key.get("val")) else {
                continue;
            };
            take_in(shares.entry(bridge.to_owned()).or_default(), set, key, value);
        }
    }
    shares
}

fn take_in(share: &mut Share, set: &str, key: &Value, value: Option<&Value>) -> Option<()> {
    let number = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    let parts = |v: &'_ Value| v.get("concat").and_then(Value::as_array).cloned();
    match set {
        "forwards" => {
            let (key, value) = (parts(key)?, parts(value?)?);
            share.forwards.insert(Forward {
                protocol: key.first()?.as_str()?.parse().ok()?,
                public: u16::try_from(number(key.get(1)?)?).ok()?,
                ip: value.first()?.as_str()?.parse().ok()?,
                port: u16::try_from(number(value.get(1)?)?).ok()?,
            });
        }
        "tunnel_ids" => share.tunnel.get_or_insert_default().0 = number(key)?,
        "tunnels" => {
            let key = parts(key)?;
            share.tunnel.get_or_insert_default().1.insert(key.first()?.as_str()?.parse().ok()?);
        }
        "ingress" => share.limits.ingress_kbit = kbit_of(value?),
        "egress" => share.limits.egress_kbit = kbit_of(value?),
        // Follows from the forwards.
        _ => {}
    }
    Some(())
}

/// The rate in a limit's name.
fn kbit_of(name: &Value) -> Option<u32> {
    name.as_str()?.rsplit_once('_')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn forward(public: u16, last: u8, port: u16) -> Forward {
        Forward { protocol: Protocol::Tcp, public, ip: [172, 16, 0, last].into(), port }
    }

    fn share(forwards: &[Forward]) -> Share {
        Share { forwards: forwards.iter().copied().collect(), ..Share::default() }
    }

    #[test]
    fn a_change_writes_only_what_differs() {
        let mut shares = Shares::new();
        let first = replace(&mut shares, "t", "dkb1", share(&[forward(10_000, 2, 80)]));
        assert_eq!(
            first,
            "add element inet t forwards { tcp . 10000 comment \"dkb1\" : 172.16.0.2 . 80 }\n\
             add element inet t published { tcp . 172.16.0.2 . 80 comment \"dkb1\" }\n"
        );
        // The second way to the same port of the node needs one element; the first way's end takes one.
        let both = share(&[forward(10_000, 2, 80), forward(10_001, 2, 80)]);
        assert_eq!(replace(&mut shares, "t", "dkb1", both).lines().count(), 1);
        let end = replace(&mut shares, "t", "dkb1", share(&[forward(10_001, 2, 80)]));
        assert_eq!(end.matches("delete").count(), 1);
        assert!(!end.contains("published"), "{end}");
        replace(&mut shares, "t", "dkb1", Share::default());
        assert!(shares.is_empty());
    }

    #[test]
    fn a_limit_is_there_before_it_is_named_and_goes_after() {
        let limited = |kbit| Share { limits: RateLimits { ingress_kbit: kbit, egress_kbit: None }, ..Share::default() };
        let mut shares = Shares::new();
        replace(&mut shares, "t", "dkb1", limited(Some(1000)));
        let script = replace(&mut shares, "t", "dkb1", limited(Some(2000)));
        let place = |what: &str| script.find(what).unwrap_or_else(|| panic!("{what} is not in {script}"));
        assert!(place("delete element inet t ingress") < place("delete limit inet t dkb1_ingress_1000"));
        assert!(
            place("add limit inet t dkb1_ingress_2000 { rate over 250000 bytes/second")
                < place(": \"dkb1_ingress_2000\"")
        );
    }

    #[test]
    fn a_port_that_changed_hands_is_taken_from_the_one_who_still_has_it() {
        let mut shares = Shares::new();
        replace(&mut shares, "t", "dkb1", share(&[forward(10_000, 2, 80)]));
        let script = replace(&mut shares, "t", "dkb2", share(&[forward(10_000, 70, 80)]));
        let (gone, come) = (script.find("delete element inet t forwards"), script.rfind("172.16.0.70 . 80"));
        assert!(gone.unwrap() < come.unwrap(), "{script}");
        assert!(shares["dkb1"].forwards.is_empty());
        // What the first says afterwards does not touch the second's.
        assert_eq!(replace(&mut shares, "t", "dkb1", Share::default()), "");
    }

    #[test]
    fn what_nft_tells_is_understood() {
        let elem = |val: Value| json!({"elem": {"val": val, "comment": "dkb1"}});
        let answers = [
            ("forwards", vec![json!([elem(json!({"concat": ["udp", 10000]})), {"concat": ["172.16.0.2", 53]}])]),
            ("tunnels", vec![elem(json!({"concat": ["10.0.0.1", 5]}))]),
            ("tunnel_ids", vec![elem(json!(5)), json!(7)]),
            ("egress", vec![json!([elem(json!("dkb1")), limit_name("dkb1", "egress", 800)])]),
        ];
        let shares = read(&answers);
        let forward = Forward { protocol: Protocol::Udp, ..forward(10_000, 2, 53) };
        let limits = RateLimits { ingress_kbit: None, egress_kbit: Some(800) };
        let tunnel = Some((5, BTreeSet::from(["10.0.0.1".parse().unwrap()])));
        assert_eq!(shares, Shares::from([("dkb1".to_owned(), Share { forwards: [forward].into(), tunnel, limits })]));
    }
}
