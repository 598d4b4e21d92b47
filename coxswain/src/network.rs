//! The pod network of a node: a CNI configuration for its pods, routes to the other nodes' pods,
//! and a table of rules that keeps cluster addresses inside the cluster.
//!
//! Pods are joined by point-to-point links rather than by a bridge: then all their packets are
//! routed, and service translation needs no bridge filtering.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use client::Cache;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::files;
use crate::netns::{ip, run};

/// Marks our routes (`ip route ... proto`), so that stale ones are known.
const PROTOCOL: &str = "77";
/// How soon a failed change is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Routes are compared this often, if somebody else removed one.
const RESYNC: Duration = Duration::from_secs(60);

/// What the network of a node is made from.
#[derive(Clone, Debug)]
pub struct Network {
    pub node: String,
    /// All pods of the cluster.
    pub pods: IpNet,
    /// All services of the cluster.
    pub services: IpNet,
    /// Addresses that pods reach with their own, beside each other.
    pub nodes: Option<IpNet>,
    /// Where containerd looks for its CNI configuration.
    pub cni_config: PathBuf,
}

/// A node as its network sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub address: Option<IpAddr>,
    pub pods: Option<IpNet>,
}

/// What a node's network should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// This node's pods, once it has a range.
    pub own: Option<IpNet>,
    /// Range of each other node, and the way there.
    pub routes: BTreeMap<IpNet, IpAddr>,
}

/// Decides from the cluster's nodes.
pub fn plan(own: &str, peers: &BTreeMap<String, Peer>) -> Wanted {
    let mut wanted = Wanted::default();
    for (name, peer) in peers {
        match (name == own, peer.pods, peer.address) {
            (true, pods, _) => wanted.own = pods,
            (false, Some(pods), Some(address)) => {
                wanted.routes.insert(pods, address);
            }
            (false, _, _) => {}
        }
    }
    wanted
}

fn peer(node: &Node) -> Peer {
    let addresses = node.status.as_ref().and_then(|s| s.addresses.as_ref());
    Peer {
        address: addresses
            .into_iter()
            .flatten()
            .find(|a| a.type_ == "InternalIP")
            .and_then(|a| a.address.parse().ok()),
        pods: node
            .spec
            .as_ref()
            .and_then(|s| s.pod_cidr.as_ref())
            .and_then(|cidr| cidr.parse().ok()),
    }
}

impl Network {
    /// What does not depend on the nodes: routes and rules that keep packets in.
    ///
    /// # Errors
    /// What `ip` or `nft` printed.
    pub fn prepare(&self) -> anyhow::Result<()> {
        crate::netns::forward()?;
        files::make_dir(&self.cni_config)?;
        // A pod address that no node has: refused here, not sent out by the default route.
        let pods = self.pods.to_string();
        ip(&["route", "replace", "unreachable", &pods, "metric", "4096", "proto", PROTOCOL])?;
        nft(&self.rules())
    }

    fn rules(&self) -> String {
        let Self { pods, services, nodes, .. } = self;
        let family = |net: &IpNet| if net.addr().is_ipv4() { "ip" } else { "ip6" };
        let (p, s) = (family(pods), family(services));
        let stay = nodes.iter().chain([pods]).map(ToString::to_string).collect::<Vec<_>>();
        let stay = stay.join(", ");
        // Filters run after translation: what still has a service's address has no backend.
        format!(
            "table inet coxswain\n\
             delete table inet coxswain\n\
             table inet coxswain {{\n\
             \tchain forward {{\n\
             \t\ttype filter hook forward priority 0; policy accept;\n\
             \t\t{s} daddr {services} reject\n\
             \t}}\n\
             \tchain output {{\n\
             \t\ttype filter hook output priority 0; policy accept;\n\
             \t\t{s} daddr {services} reject\n\
             \t}}\n\
             \tchain postrouting {{\n\
             \t\ttype nat hook postrouting priority 100; policy accept;\n\
             \t\t{p} saddr {pods} {p} daddr != {{ {stay} }} masquerade\n\
             \t}}\n\
             }}\n"
        )
    }

    fn cni(&self, own: &IpNet) -> anyhow::Result<String> {
        let default = if own.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        let config = json!({
            "cniVersion": "0.4.0",
            "name": "coxswain",
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": own}]],
                        "routes": [{"dst": default}],
                        // Under the node's own folder: nodes of one machine do not share ranges'
                        // records.
                        "dataDir": self.cni_config.join("ipam"),
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        });
        Ok(serde_json::to_string_pretty(&config)? + "\n")
    }

    fn act(&self, wanted: &Wanted) -> anyhow::Result<()> {
        if let Some(own) = &wanted.own {
            let file = self.cni_config.join("10-coxswain.conflist");
            if files::update_public(&file, &self.cni(own)?)? {
                tracing::info!(range = %own, "pod network configured");
            }
        }
        let have = routes()?;
        for (pods, via) in &wanted.routes {
            if have.get(pods) != Some(via) {
                tracing::info!(%pods, %via, "route to a node's pods");
                let (pods, via) = (pods.to_string(), via.to_string());
                ip(&["route", "replace", &pods, "via", &via, "proto", PROTOCOL])?;
            }
        }
        for pods in have.keys().filter(|pods| !wanted.routes.contains_key(*pods)) {
            tracing::info!(%pods, "route of a node that is gone");
            ip(&["route", "delete", &pods.to_string(), "proto", PROTOCOL])?;
        }
        Ok(())
    }

    /// Keeps the network as the cluster's nodes have it, until shutdown.
    pub async fn keep(self, client: kube::Client, shutdown: CancellationToken) {
        let nodes = Cache::<Node>::start(client, watcher::Config::default(), shutdown.clone());
        let (changed, mut changes) = watch::channel(());
        nodes.on_change(move |_| {
            changed.send_replace(());
        });
        nodes.synced().await;
        loop {
            changes.mark_unchanged();
            let peers = nodes
                .list()
                .iter()
                .map(|n| (n.metadata.name.clone().unwrap_or_default(), peer(n)))
                .collect();
            let wanted = plan(&self.node, &peers);
            let network = self.clone();
            let pause = match tokio::task::block_in_place(move || network.act(&wanted)) {
                Ok(()) => RESYNC,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "pod network");
                    RETRY
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                _ = changes.changed() => {}
            }
        }
    }
}

/// Our routes to other nodes.
fn routes() -> anyhow::Result<BTreeMap<IpNet, IpAddr>> {
    let output = Command::new("ip")
        .args(["-json", "route", "show", "proto", PROTOCOL])
        .output()
        .context("ip route show")?;
    if !output.status.success() {
        bail!("ip route show: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let routes: Vec<serde_json::Value> = match text.trim() {
        "" => Vec::new(),
        text => serde_json::from_str(text).context("ip route show")?,
    };
    let field = |route: &serde_json::Value, name: &str| {
        route.get(name).and_then(|v| v.as_str()).map(str::to_owned)
    };
    Ok(routes
        .iter()
        .filter_map(|route| {
            let (to, via) = (field(route, "dst")?, field(route, "gateway")?);
            Some((to.parse().ok()?, via.parse().ok()?))
        })
        .collect())
}

/// Applies a script in one transaction.
///
/// # Errors
/// What `nft` printed.
pub fn nft(script: &str) -> anyhow::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("nft cannot be started (package nftables)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).context("nft")?;
    }
    let output = child.wait_with_output().context("nft")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Removes what [`Network::prepare`] and [`Network::keep`] made in the present namespace.
///
/// # Errors
/// What `ip` or `nft` printed.
pub fn remove() -> anyhow::Result<()> {
    run("ip", &["route", "flush", "proto", PROTOCOL])?;
    nft("table inet coxswain\ndelete table inet coxswain\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, pods: &str) -> Peer {
        Peer { address: address.parse().ok(), pods: pods.parse().ok() }
    }

    #[test]
    fn routes_lead_to_every_other_node_that_has_a_range_and_an_address() {
        let peers = BTreeMap::from([
            ("a".to_owned(), peer("192.0.2.1", "10.244.0.0/24")),
            ("b".to_owned(), peer("192.0.2.2", "10.244.1.0/24")),
            ("c".to_owned(), peer("192.0.2.3", "")),
            ("d".to_owned(), peer("", "10.244.3.0/24")),
        ]);
        let wanted = plan("a", &peers);
        assert_eq!(wanted.own.map(|o| o.to_string()).as_deref(), Some("10.244.0.0/24"));
        let routes: Vec<String> =
            wanted.routes.iter().map(|(to, via)| format!("{to} via {via}")).collect();
        assert_eq!(routes, ["10.244.1.0/24 via 192.0.2.2"]);
        assert_eq!(plan("x", &BTreeMap::new()), Wanted::default());
    }
}
