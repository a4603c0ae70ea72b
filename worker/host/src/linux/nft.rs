//! The packet filter: one table of ours in the families `inet` and `bridge`, with sets; a node is a set element.
//!
//! Rules are written in nft's own language and applied through `nft -f -`, each call one atomic transaction. A call
//! costs some 5 ms whatever its length, so changes that arrive while one runs are gathered into the next. Only packets
//! that come from or go to links in our sets are ever judged, and no other table is touched.
//!
//! What the kernel should hold is kept here as well: when someone flushes the whole rule set, the next change (or
//! `prepare`) puts everything back.

pub mod share;

use docklet_types::net::{Mac, Subnet, VXLAN_PORT};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

use self::share::{Share, Shares};

#[derive(Debug, Clone, thiserror::Error)]
pub enum NftError {
    #[error("nft could not be run")]
    Run(#[source] Arc<io::Error>),
    #[error("the packet filter refused: {0}")]
    Refused(String),
    #[error("nft's answer is not understood")]
    Answer(#[source] Arc<serde_json::Error>),
    #[error("the change was given up")]
    Gone,
}

/// What one cable may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    pub mac: Mac,
    pub ip: Ipv4Addr,
}

/// Our elements in the kernel.
#[derive(Debug, Default)]
pub struct Elements {
    /// By the name of the host's end of the cable.
    pub ports: BTreeMap<String, Binding>,
    pub bridges: BTreeSet<String>,
    /// Published ports and tunnels.
    pub shares: Shares,
}

/// Networks no node may speak to, whatever the host can reach (RFC 6890 and multicast).
const PRIVATE: [&str; 14] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
];

/// What the rules are made of besides the sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    pub table: String,
    pub cluster_net: Subnet,
    /// The host's name servers.
    pub resolvers: Vec<String>,
    /// The networks that the host's own links are in.
    pub connected: Vec<Subnet>,
}

impl Base {
    /// A transaction that makes tables, sets and chains where they are missing and writes the rules anew. Elements stay.
    fn script(&self) -> String {
        let Self { table: t, cluster_net: net, .. } = self;
        let mut private: BTreeSet<String> = PRIVATE.iter().map(ToString::to_string).collect();
        private.extend(self.connected.iter().map(ToString::to_string));
        private.insert(net.to_string());
        let private = private.into_iter().collect::<Vec<_>>().join(", ");
        let dns = |chain: &str| {
            if self.resolvers.is_empty() {
                return String::new();
            }
            let to = self.resolvers.join(", ");
            format!("add rule inet {t} {chain} ip daddr {{ {to} }} meta l4proto {{ tcp, udp }} th dport 53 accept\n")
        };
        let shares = share::declare(t);
        let (dns_out, dns_here) = (dns("from_nodes"), dns("to_host"));
        format!(
            r#"add table inet {t}
add set inet {t} bridges {{ type ifname; }}
add set inet {t} bridged {{ type ifname . ifname; }}
add set inet {t} private {{ type ipv4_addr; flags interval; auto-merge; }}
{shares}add chain inet {t} prerouting {{ type nat hook prerouting priority -100; policy accept; }}
add chain inet {t} output {{ type nat hook output priority -100; policy accept; }}
add chain inet {t} redirects {{ type filter hook output priority -5; policy accept; }}
add chain inet {t} forward {{ type filter hook forward priority -5; policy accept; }}
add chain inet {t} input {{ type filter hook input priority -5; policy accept; }}
add chain inet {t} postrouting {{ type nat hook postrouting priority 100; policy accept; }}
add chain inet {t} from_nodes
add chain inet {t} to_nodes
add chain inet {t} to_host
add chain inet {t} through
add chain inet {t} limits {{ type filter hook forward priority -10; policy accept; }}
flush set inet {t} private
flush chain inet {t} prerouting
flush chain inet {t} output
flush chain inet {t} redirects
flush chain inet {t} forward
flush chain inet {t} input
flush chain inet {t} postrouting
flush chain inet {t} from_nodes
flush chain inet {t} to_nodes
flush chain inet {t} to_host
flush chain inet {t} through
flush chain inet {t} limits
add element inet {t} private {{ {private} }}
add rule inet {t} prerouting fib daddr type local meta l4proto {{ tcp, udp }} dnat ip to meta l4proto . th dport map @forwards
add rule inet {t} output ip daddr != 127.0.0.0/8 fib daddr type local meta l4proto {{ tcp, udp }} dnat ip to meta l4proto . th dport map @forwards
add rule inet {t} redirects oifname @bridges icmp type redirect drop
add rule inet {t} limits iifname . oifname @bridged accept
add rule inet {t} limits limit name iifname map @egress drop
add rule inet {t} limits limit name oifname map @ingress drop
add rule inet {t} forward ct status dnat ct reply ip saddr {net} jump through
add rule inet {t} through ct state related accept
add rule inet {t} through ct direction original meta l4proto . ip daddr . th dport @published accept
add rule inet {t} through ct direction reply meta l4proto . ip saddr . th sport @published accept
add rule inet {t} through drop
add rule inet {t} forward iifname . oifname @bridged accept
add rule inet {t} forward iifname @bridges jump from_nodes
add rule inet {t} forward oifname @bridges jump to_nodes
add rule inet {t} from_nodes ct state established,related accept
add rule inet {t} from_nodes ct state invalid drop
add rule inet {t} from_nodes meta nfproto != ipv4 drop
add rule inet {t} from_nodes oifname @bridges drop
{dns_out}add rule inet {t} from_nodes ip daddr @private drop
add rule inet {t} from_nodes accept
add rule inet {t} to_nodes ct state established,related accept
add rule inet {t} to_nodes drop
add rule inet {t} input udp dport {VXLAN_PORT} @th,96,24 @tunnel_ids ip saddr . @th,96,24 != @tunnels drop
add rule inet {t} input iifname @bridges jump to_host
add rule inet {t} to_host ct state established,related accept
add rule inet {t} to_host meta nfproto ipv4 fib daddr . iif type local icmp type echo-request limit rate 200/second accept
{dns_here}add rule inet {t} to_host drop
add rule inet {t} postrouting ct status dnat iifname . oifname @bridged masquerade
add rule inet {t} postrouting ip saddr {net} oifname != @bridges ip daddr != {net} masquerade
add table bridge {t}
add set bridge {t} ports {{ type ifname; }}
add set bridge {t} bound {{ type ifname . ether_addr . ipv4_addr; }}
add chain bridge {t} prerouting {{ type filter hook prerouting priority -300; policy accept; }}
add chain bridge {t} postrouting {{ type filter hook postrouting priority 300; policy accept; }}
add chain bridge {t} from_port
flush chain bridge {t} prerouting
flush chain bridge {t} postrouting
flush chain bridge {t} from_port
add rule bridge {t} prerouting iifname @ports jump from_port
add rule bridge {t} from_port ether type arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 iifname . ether saddr . arp saddr ip @bound iifname . arp saddr ether . arp saddr ip @bound accept
add rule bridge {t} from_port ether type ip udp sport 67 drop
add rule bridge {t} from_port ether type ip iifname . ether saddr . ip saddr @bound accept
add rule bridge {t} from_port drop
add rule bridge {t} postrouting oifname @ports ether type != {{ ip, arp }} drop
"#
        )
    }
}

/// Where bridged packets pass the IP filter too (br_netfilter), the ones that stay on a bridge are let through there: the
/// bridge table has judged them.
fn add_bridge(table: &str, link: &str) -> String {
    format!("add element inet {table} bridges {{ {link} }}\nadd element inet {table} bridged {{ {link} . {link} }}\n")
}

struct Pending {
    script: String,
    done: oneshot::Sender<Result<(), NftError>>,
}

struct Shared {
    base: Mutex<Base>,
    wanted: Mutex<Elements>,
    pending: Mutex<Vec<Pending>>,
    running: tokio::sync::Mutex<()>,
    adopted: tokio::sync::OnceCell<()>,
}

/// The packet filter of one installation on this host.
#[derive(Clone)]
pub struct Firewall {
    shared: Arc<Shared>,
}

impl Firewall {
    pub fn new(base: Base) -> Self {
        let shared = Shared {
            base: Mutex::new(base),
            wanted: Mutex::default(),
            pending: Mutex::default(),
            running: tokio::sync::Mutex::default(),
            adopted: tokio::sync::OnceCell::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    fn table(&self) -> String {
        self.shared.base.lock().table.clone()
    }

    /// Writes tables, chains and rules (with these facts about the host), and every element that is known.
    pub async fn prepare(&self, resolvers: Vec<String>, connected: Vec<Subnet>) -> Result<(), NftError> {
        {
            let mut base = self.shared.base.lock();
            base.resolvers = resolvers;
            base.connected = connected;
        }
        self.adopt().await?;
        let script = self.shared.full_script();
        self.submit(script).await
    }

    /// Learns, once, what an earlier worker has put into the kernel: it is ours to keep and to remove.
    async fn adopt(&self) -> Result<(), NftError> {
        let read = async {
            let found = self.read().await?;
            let mut wanted = self.shared.wanted.lock();
            for (link, binding) in found.ports {
                wanted.ports.entry(link).or_insert(binding);
            }
            wanted.bridges.extend(found.bridges);
            wanted.shares.extend(found.shares);
            Ok(())
        };
        self.shared.adopted.get_or_try_init(|| read).await.copied()
    }

    pub async fn add_bridge(&self, link: &str) -> Result<(), NftError> {
        self.shared.wanted.lock().bridges.insert(link.to_owned());
        self.submit(add_bridge(&self.table(), link)).await
    }

    /// Gives the vcluster of that bridge its share of the maps and sets, in place of what it had.
    pub async fn set_share(&self, bridge: &str, share: Share) -> Result<(), NftError> {
        self.adopt().await?;
        let t = self.table();
        let script = share::replace(&mut self.shared.wanted.lock().shares, &t, bridge, share);
        if script.is_empty() { Ok(()) } else { self.submit(script).await }
    }

    pub async fn remove_bridge(&self, link: &str) -> Result<(), NftError> {
        self.adopt().await?;
        let t = self.table();
        let share = {
            let mut wanted = self.shared.wanted.lock();
            wanted.bridges.remove(link);
            share::replace(&mut wanted.shares, &t, link, Share::default())
        };
        // Adding first makes the removal of what is not there a success.
        self.submit(format!(
            "{share}{}delete element inet {t} bridges {{ {link} }}\ndelete element inet {t} bridged {{ {link} . {link} }}\n",
            add_bridge(&t, link)
        ))
        .await
    }

    pub async fn add_port(&self, link: &str, binding: Binding) -> Result<(), NftError> {
        self.adopt().await?;
        let old = self.shared.wanted.lock().ports.insert(link.to_owned(), binding);
        let t = self.table();
        let mut script = String::new();
        if let Some(old) = old.filter(|old| *old != binding) {
            script += &forget_binding(&t, link, old);
        }
        script += &add_port_script(&t, link, binding);
        self.submit(script).await
    }

    pub async fn remove_port(&self, link: &str) -> Result<(), NftError> {
        self.adopt().await?;
        let old = self.shared.wanted.lock().ports.remove(link);
        let t = self.table();
        let mut script =
            format!("add element bridge {t} ports {{ {link} }}\ndelete element bridge {t} ports {{ {link} }}\n");
        if let Some(old) = old {
            script += &forget_binding(&t, link, old);
        }
        self.submit(script).await
    }

    /// What is in the kernel. A missing table is an empty one.
    pub async fn read(&self) -> Result<Elements, NftError> {
        let t = self.table();
        let mut elements = Elements::default();
        if let Some(json) = self.shared.list("bridge", &t, "bound").await? {
            elements.ports = values(&json).iter().filter_map(port_of).collect();
        }
        if let Some(json) = self.shared.list("inet", &t, "bridges").await? {
            elements.bridges = values(&json).iter().filter_map(|v| v.as_str().map(ToOwned::to_owned)).collect();
        }
        let mut answers = Vec::new();
        for (kind, name) in share::SETS {
            if let Some(json) = self.shared.list_of(kind, "inet", &t, name).await? {
                answers.push((name, values(&json)));
            }
        }
        elements.shares = share::read(&answers);
        Ok(elements)
    }

    /// Removes both tables. For the end of an installation, and of a test.
    pub async fn destroy(&self) -> Result<(), NftError> {
        let t = self.table();
        *self.shared.wanted.lock() = Elements::default();
        self.shared
            .run(format!("add table inet {t}\ndelete table inet {t}\nadd table bridge {t}\ndelete table bridge {t}\n"))
            .await
    }

    /// Applies a change together with all others that wait.
    async fn submit(&self, script: String) -> Result<(), NftError> {
        let (done, result) = oneshot::channel();
        self.shared.pending.lock().push(Pending { script, done });
        let shared = Arc::clone(&self.shared);
        // A task of its own: the change of another must not be lost because this one's caller went away.
        tokio::spawn(async move { shared.run_pending().await });
        result.await.unwrap_or(Err(NftError::Gone))
    }
}

fn add_port_script(t: &str, link: &str, b: Binding) -> String {
    format!(
        "add element bridge {t} ports {{ {link} }}\nadd element bridge {t} bound {{ {link} . {} . {} }}\n",
        b.mac, b.ip
    )
}

fn forget_binding(t: &str, link: &str, b: Binding) -> String {
    let element = format!("{link} . {} . {}", b.mac, b.ip);
    format!("add element bridge {t} bound {{ {element} }}\ndelete element bridge {t} bound {{ {element} }}\n")
}

/// The elements in the answer to `list set`.
fn values(json: &serde_json::Value) -> Vec<serde_json::Value> {
    let sets = json.get("nftables").and_then(|n| n.as_array()).into_iter().flatten();
    let of = |item: &serde_json::Value| item.get("set").or_else(|| item.get("map"))?.get("elem")?.as_array().cloned();
    sets.filter_map(of).flatten().collect()
}

fn port_of(value: &serde_json::Value) -> Option<(String, Binding)> {
    let parts = value.get("concat")?.as_array()?;
    let [link, mac, ip] = parts.as_slice() else { return None };
    let binding = Binding { mac: mac.as_str()?.to_owned().try_into().ok()?, ip: ip.as_str()?.parse().ok()? };
    Some((link.as_str()?.to_owned(), binding))
}

impl Shared {
    fn full_script(&self) -> String {
        let base = self.base.lock().clone();
        let wanted = self.wanted.lock();
        let mut script = base.script();
        for bridge in &wanted.bridges {
            script += &add_bridge(&base.table, bridge);
        }
        for (bridge, share) in &wanted.shares {
            script += &share.script(&base.table, bridge);
        }
        for (link, binding) in &wanted.ports {
            script += &add_port_script(&base.table, link, *binding);
        }
        script
    }

    async fn run_pending(&self) {
        let _alone = self.running.lock().await;
        let batch = std::mem::take(&mut *self.pending.lock());
        if batch.is_empty() {
            return;
        }
        let all: String = batch.iter().map(|p| p.script.as_str()).collect();
        if self.run(all).await.is_ok() {
            for pending in batch {
                let _ = pending.done.send(Ok(()));
            }
            return;
        }
        // One of them failed, or somebody has flushed our tables: put the base back, then each by itself.
        let restored = self.run(self.full_script()).await;
        for pending in batch {
            let result = match &restored {
                Ok(()) => self.run(pending.script).await,
                Err(e) => Err(e.clone()),
            };
            let _ = pending.done.send(result);
        }
    }

    async fn run(&self, script: String) -> Result<(), NftError> {
        self.nft(&["-f", "-"], script).await.map(drop)
    }

    async fn list(&self, family: &str, table: &str, set: &str) -> Result<Option<serde_json::Value>, NftError> {
        self.list_of("set", family, table, set).await
    }

    async fn list_of(
        &self,
        kind: &str,
        family: &str,
        table: &str,
        set: &str,
    ) -> Result<Option<serde_json::Value>, NftError> {
        match self.nft(&["-j", "list", kind, family, table, set], String::new()).await {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| NftError::Answer(Arc::new(e))),
            Err(NftError::Refused(said)) if said.contains("No such file") => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn nft(&self, arguments: &[&str], script: String) -> Result<Vec<u8>, NftError> {
        let run = |e: io::Error| NftError::Run(Arc::new(e));
        let mut command = tokio::process::Command::new("nft");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(run)?;
        let stdin = child.stdin.take();
        let write = async move {
            if let Some(mut stdin) = stdin {
                // An nft that ended early says why.
                let _ = stdin.write_all(script.as_bytes()).await;
            }
        };
        let (output, ()) = tokio::join!(child.wait_with_output(), write);
        let output = output.map_err(run)?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(NftError::Refused(said.lines().take(6).collect::<Vec<_>>().join(" ")))
        }
    }
}
