//! The loop: whatever changes, the rows of the services that it is about are made anew from the
//! caches, and the kernel is brought to the table.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Cache, Change, Key};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, DetectLocal, Mode, NodePortAddresses};
use crate::conntrack::{self, Serving};
use crate::health::Health;
use crate::kernel::Kernel;
use crate::nftables::{self, Local};
use crate::table::{self, Changed, Changes, Here, Table};

/// How soon a failed sync is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// In how many sync periods everything is written anew, whether or not something seems to be missing.
const RENEW: u32 = 120;
/// Headless services' slices have nothing to translate.
const NOT_HEADLESS: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
const SERVICE: &str = "kubernetes.io/service-name";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's taint on nodes that it is about to delete (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// What the caches have told of since the last sync.
#[derive(Default)]
struct Pending {
    services: BTreeSet<Key>,
    /// Slices by the service that they are of.
    slices: HashMap<Key, BTreeSet<Key>>,
}

impl Pending {
    fn slice(&mut self, change: &Change<'_, EndpointSlice>) {
        if let Some(service) = change.old.and_then(|slice| service_of(slice)) {
            if let Some(keys) = self.slices.get_mut(&service) {
                keys.remove(change.key);
                if keys.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.services.insert(service);
        }
        if let Some(service) = change.new.and_then(|slice| service_of(slice)) {
            self.slices.entry(service.clone()).or_default().insert(change.key.clone());
            self.services.insert(service);
        }
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE)?;
    Some(Key::new(slice.metadata.namespace.as_ref()?, service))
}

/// One address family.
struct Family {
    kernel: Kernel,
    table: Table,
    /// Changes of the table that the kernel does not have yet.
    behind: Changes,
    /// Flows may be stale.
    flows: bool,
}

impl Family {
    /// Has the kernel forget flows that lead where they should not any more. Rules are right without
    /// it: what fails is tried again with the next sync.
    fn forget_stale(&mut self) {
        if !self.flows {
            return;
        }
        let ipv6 = self.kernel.is_ipv6();
        match conntrack::forget_stale(ipv6, &Serving::of(&self.table)) {
            Ok(flows) => {
                self.flows = false;
                tracing::debug!(ipv6, flows, "stale flows forgotten");
            }
            Err(error) => {
                tracing::error!(ipv6, error = format!("{error:#}"), "stale flows not forgotten");
            }
        }
    }
}

struct Proxy {
    config: Config,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    node: Cache<Node>,
    pending: Arc<Mutex<Pending>>,
    /// What the tables were made for.
    here: Option<Here>,
    families: Vec<Family>,
    health: Health,
}

/// Runs until shutdown.
///
/// # Errors
/// The kernel's limits cannot be raised; whatever else fails is tried again.
pub async fn run(
    config: Config,
    client: kube::Client,
    health: Health,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (wake, mut woken) = watch::channel(());
    let mut proxy = Proxy::new(config, client, health, &wake, &shutdown);
    // Before both lists are here, services would seem to have no backends.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { tokio::join!(proxy.services.synced(), proxy.slices.synced(), proxy.node.synced()); } => {}
    }
    let period = proxy.config.sync_period.max(RETRY);
    let (mut check, mut renew) = (Instant::now() + period, Instant::now() + period * RENEW);
    let mut limited = false;
    loop {
        woken.mark_unchanged();
        let now = Instant::now();
        if now >= check {
            // Somebody else may have changed our rules.
            proxy.check(now >= renew);
            check = now + period;
            renew = if now >= renew { now + period * RENEW } else { renew };
        }
        let pause = match tokio::task::block_in_place(|| proxy.sync()) {
            Ok(()) => {
                // Now that rules track connections, the kernel has these settings.
                if !std::mem::replace(&mut limited, true) {
                    proxy.config.limits.raise()?;
                }
                check.saturating_duration_since(now)
            }
            Err(error) => {
                proxy.health.failed();
                tracing::error!(error = format!("{error:#}"), "rules not written");
                RETRY
            }
        };
        let rows = proxy.families.iter().flat_map(|family| family.table.values());
        proxy.health.check_ports(rows).await;
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            _ = woken.changed() => tokio::time::sleep(proxy.config.min_sync_period).await,
        }
    }
}

impl Proxy {
    fn new(
        config: Config,
        client: kube::Client,
        health: Health,
        wake: &watch::Sender<()>,
        shutdown: &CancellationToken,
    ) -> Self {
        let own = watcher::Config::default().fields(&format!("metadata.name={}", config.node));
        let slices = watcher::Config::default().labels(NOT_HEADLESS);
        let (all, stop) = (watcher::Config::default(), || shutdown.clone());
        let family = |ipv6| Family {
            kernel: Kernel::new(config.mode, ipv6),
            table: Table::new(),
            behind: Changes::new(),
            flows: false,
        };
        let proxy = Self {
            services: Cache::start(client.clone(), all, stop()),
            slices: Cache::start(client.clone(), slices, stop()),
            node: Cache::start(client, own, stop()),
            pending: Arc::default(),
            here: None,
            families: vec![family(false), family(true)],
            config,
            health,
        };
        let (pending, woken) = (Arc::clone(&proxy.pending), wake.clone());
        proxy.services.on_change(move |change| {
            pending.lock().services.insert(change.key.clone());
            woken.send_replace(());
        });
        let (pending, woken) = (Arc::clone(&proxy.pending), wake.clone());
        proxy.slices.on_change(move |change| {
            pending.lock().slice(change);
            woken.send_replace(());
        });
        let woken = wake.clone();
        proxy.node.on_change(move |_| {
            woken.send_replace(());
        });
        proxy
    }

    /// Looks after our rules in the kernel; all are written `anew` when that is due.
    fn check(&mut self, anew: bool) {
        for family in &mut self.families {
            if anew {
                family.kernel.distrust();
            } else if let Err(error) = family.kernel.check() {
                tracing::warn!(error = format!("{error:#}"), "rules not checked");
            }
        }
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let node = self.node.list().first().cloned();
        let here = here(&self.config.node, node.as_deref());
        self.update(&here);
        let addresses = addresses(&self.config, node.as_deref());
        let mut bytes = 0;
        for family in &mut self.families {
            let ipv6 = family.kernel.is_ipv6();
            let rules = nftables::Node {
                addresses: addresses.iter().filter(|a| a.is_ipv6() == ipv6).copied().collect(),
                any_address: any_address(&self.config),
                local: local(&self.config.detect_local, node.as_deref(), ipv6),
                masquerade_all: self.config.masquerade_all,
                mark: self.config.mark,
            };
            bytes += family.kernel.sync(&family.table, &family.behind, &rules)?;
            family.flows |= conntrack::may_be_stale(&std::mem::take(&mut family.behind));
            family.forget_stale();
        }
        let seconds = start.elapsed().as_secs_f64();
        tracing::debug!(seconds, bytes, "rules written");
        self.health.synced(seconds, here.leaving);
        Ok(())
    }

    /// Brings the tables to what the caches have.
    fn update(&mut self, here: &Here) {
        let changed = {
            let mut pending = self.pending.lock();
            let changed = std::mem::take(&mut pending.services);
            if self.here.as_ref() == Some(here) {
                changed
            } else {
                // Other backends may be near now.
                let all = self.services.list();
                changed.into_iter().chain(all.iter().map(|s| Key::of(s.as_ref()))).collect()
            }
        };
        self.here = Some(here.clone());
        for key in changed {
            let service = self.services.get(&key);
            let slices: Vec<Arc<EndpointSlice>> = {
                let pending = self.pending.lock();
                let keys = pending.slices.get(&key).into_iter().flatten();
                keys.filter_map(|slice| self.slices.get(slice)).collect()
            };
            let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
            for family in &mut self.families {
                let ipv6 = family.kernel.is_ipv6();
                let rows = service.as_deref().map(|s| table::rows(here, ipv6, s, &slices));
                let rows = rows.unwrap_or_default();
                let changes = table::update(&mut family.table, &key.namespace, &key.name, rows);
                merge(&mut family.behind, changes);
            }
        }
    }
}

/// Adds changes that were made after others.
fn merge(earlier: &mut Changes, later: Changes) {
    for (name, change) in later {
        match earlier.get_mut(&name) {
            Some(Changed { new, .. }) => *new = change.new,
            None => {
                earlier.insert(name, change);
            }
        }
    }
}

/// In iptables mode node ports answer on all of the machine's addresses, unless said otherwise.
fn any_address(config: &Config) -> bool {
    config.mode == Mode::Iptables && config.nodeport_addresses.is_none()
}

/// How pods' packets are told from others.
fn local(detect: &DetectLocal, node: Option<&Node>, ipv6: bool) -> Local {
    let of_family = |nets: &[ipnet::IpNet]| {
        let net = nets.iter().find(|net| net.addr().is_ipv6() == ipv6);
        net.map_or(Local::Unknown, |net| Local::Addresses(*net))
    };
    match detect {
        DetectLocal::Cluster(nets) => of_family(nets),
        DetectLocal::Node => {
            let spec = node.and_then(|n| n.spec.as_ref());
            let texts = spec.and_then(|s| s.pod_cidrs.as_ref()).into_iter().flatten();
            of_family(&texts.filter_map(|text| text.parse().ok()).collect::<Vec<_>>())
        }
        DetectLocal::Bridge(name) => Local::Bridge(name.clone()),
        DetectLocal::Prefix(prefix) => Local::Prefix(prefix.clone()),
    }
}

fn here(name: &str, node: Option<&Node>) -> Here {
    let labels = node.and_then(|n| n.metadata.labels.as_ref());
    let spec = node.and_then(|n| n.spec.as_ref());
    let mut taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    Here {
        node: name.to_owned(),
        zone: labels.and_then(|l| l.get(ZONE)).cloned(),
        leaving: node.is_some_and(|n| n.metadata.deletion_timestamp.is_some())
            || taints.any(|t| t.key == TO_BE_DELETED),
    }
}

/// Where node ports answer: the node's primary address of each family, or those of this machine in
/// the given ranges. Not on loopback addresses: the kernel does not translate these.
fn addresses(config: &Config, node: Option<&Node>) -> Vec<IpAddr> {
    match &config.nodeport_addresses {
        None | Some(NodePortAddresses::Primary) => primary(node),
        Some(NodePortAddresses::Ranges(ranges)) => {
            let own = nix::ifaddrs::getifaddrs().into_iter().flatten();
            let ips = own.filter_map(|i| {
                let address = i.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
            });
            let fits = |ip: &IpAddr| !ip.is_loopback() && ranges.iter().any(|r| r.contains(ip));
            ips.filter(fits).collect::<BTreeSet<_>>().into_iter().collect()
        }
    }
}

/// The first internal address of each family, or else the first external one.
fn primary(node: Option<&Node>) -> Vec<IpAddr> {
    let status = node.and_then(|n| n.status.as_ref());
    let all: Vec<_> = status.and_then(|s| s.addresses.as_ref()).into_iter().flatten().collect();
    let kinds = ["InternalIP", "ExternalIP"];
    let of = |kind| all.iter().filter(move |a| a.type_ == kind);
    let ips: Vec<IpAddr> =
        kinds.into_iter().flat_map(of).filter_map(|a| a.address.parse().ok()).collect();
    let first = |ipv6| ips.iter().find(|ip| ip.is_ipv6() == ipv6).copied();
    [false, true].into_iter().filter_map(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(object: serde_json::Value) -> Node {
        serde_json::from_value(object).expect("a node")
    }

    #[test]
    fn a_node_leaves_when_it_is_deleted_or_about_to_be() {
        for (object, leaving) in [
            (json!({}), false),
            (json!({"spec": {"taints": [{"key": "x", "effect": "NoSchedule"}]}}), false),
            (json!({"spec": {"taints": [{"key": TO_BE_DELETED, "effect": "NoSchedule"}]}}), true),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true),
        ] {
            assert_eq!(here("n1", Some(&node(object.clone()))).leaving, leaving, "{object}");
        }
    }

    #[test]
    fn node_ports_answer_on_one_address_of_each_family() {
        let address = |kind, address| json!({"type": kind, "address": address});
        let of = |addresses| primary(Some(&node(json!({"status": {"addresses": addresses}}))));
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(
            of(json!([
                address("ExternalIP", "198.51.100.1"),
                address("InternalIP", "192.0.2.1"),
                address("InternalIP", "192.0.2.2"),
                address("ExternalIP", "2001:db8::1"),
                address("Hostname", "n1"),
            ])),
            [ip("192.0.2.1"), ip("2001:db8::1")]
        );
        assert_eq!(primary(None), Vec::<IpAddr>::new());
    }

    #[test]
    fn pods_are_told_by_their_nodes_addresses() {
        let node = node(json!({"spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}}));
        let of = |ipv6| local(&DetectLocal::Node, Some(&node), ipv6);
        assert_eq!(of(false), Local::Addresses("10.244.1.0/24".parse().expect("a net")));
        assert_eq!(of(true), Local::Addresses("fd00:1::/64".parse().expect("a net")));
        assert_eq!(local(&DetectLocal::Node, None, false), Local::Unknown);
        let v4 = DetectLocal::Cluster(vec!["10.244.0.0/16".parse().expect("a net")]);
        assert_eq!(local(&v4, None, true), Local::Unknown);
    }
}
