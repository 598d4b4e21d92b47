//! The loop of each address family: whatever changes, the rows of the services that it is about are
//! made anew from the caches, and the kernel is brought to the table. Families have nothing in common
//! but the caches: what fails for one does not hold up the other.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Cache, Change, Key};
use component::shutdown::Scope;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, DetectLocal, Mode, NodePortAddresses};
use crate::conntrack::{self, Serving};
use crate::families::Families;
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

/// What the caches have told a family of since its last sync.
#[derive(Default)]
struct Pending {
    services: BTreeSet<Key>,
    /// Its slices, by the service that they are of.
    slices: HashMap<Key, BTreeSet<Key>>,
}

impl Pending {
    /// Notes a change of a slice. Returns whether it is of interest to the family.
    fn slice(&mut self, family: &str, change: &Change<'_, EndpointSlice>) -> bool {
        let of = |slice: Option<&Arc<EndpointSlice>>| {
            slice.filter(|s| s.address_type == family).and_then(|slice| service_of(slice))
        };
        let (old, new) = (of(change.old), of(change.new));
        let known = old.is_some() || new.is_some();
        if let Some(service) = old {
            if let Some(keys) = self.slices.get_mut(&service) {
                keys.remove(change.key);
                if keys.is_empty() {
                    self.slices.remove(&service);
                }
            }
            self.services.insert(service);
        }
        if let Some(service) = new {
            self.slices.entry(service.clone()).or_default().insert(change.key.clone());
            self.services.insert(service);
        }
        known
    }
}

fn service_of(slice: &EndpointSlice) -> Option<Key> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE)?;
    Some(Key::new(slice.metadata.namespace.as_ref()?, service))
}

/// What is known of the cluster: of all services and slices, and of this node.
#[derive(Clone)]
struct Caches {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    node: Cache<Node>,
}

impl Caches {
    fn start(config: &Config, client: kube::Client, shutdown: &CancellationToken) -> Self {
        let own = watcher::Config::default().fields(&format!("metadata.name={}", config.node));
        let slices = watcher::Config::default().labels(NOT_HEADLESS);
        let (all, stop) = (watcher::Config::default(), || shutdown.clone());
        Self {
            services: Cache::start(client.clone(), all, stop()),
            slices: Cache::start(client.clone(), slices, stop()),
            node: Cache::start(client, own, stop()),
        }
    }

    /// Waits for all of them: before, services would seem to have no backends.
    async fn synced(&self) {
        tokio::join!(self.services.synced(), self.slices.synced(), self.node.synced());
    }
}

/// Keeps the rules of these families until the scope ends. The future that is returned is there to be
/// polled beside: it ends when the kernel tracks as many connections as it should.
///
/// # Errors
/// Of the future: the kernel's limits cannot be raised. Whatever else fails is tried again.
pub fn start(
    config: Config,
    families: Families,
    client: kube::Client,
    health: &Health,
    scope: &mut Scope,
) -> impl Future<Output = anyhow::Result<()>> + use<> {
    let caches = Caches::start(&config, client, scope.token());
    let (config, (synced, mut rules)) = (Arc::new(config), watch::channel(false));
    let limits = config.limits;
    for ipv6 in families.each() {
        let kernel = Kernel::new(config.mode, ipv6);
        let family = Family::new(kernel, Arc::clone(&config), caches.clone(), health.clone());
        let (synced, stop) = (synced.clone(), scope.token().clone());
        let name = if ipv6 { "rules of IPv6" } else { "rules of IPv4" };
        scope.spawn(name, family.run(synced, stop));
    }
    async move {
        // Once rules track connections, the kernel has these settings.
        if rules.wait_for(|synced| *synced).await.is_ok() {
            limits.raise()?;
        }
        Ok(())
    }
}

/// One address family.
struct Family {
    config: Arc<Config>,
    caches: Caches,
    health: Health,
    woken: watch::Receiver<()>,
    pending: Arc<Mutex<Pending>>,
    kernel: Kernel,
    /// What the table was made for.
    here: Option<Here>,
    table: Table,
    /// Changes of the table that the kernel does not have yet.
    behind: Changes,
    /// Flows may be stale.
    flows: bool,
}

impl Family {
    fn new(kernel: Kernel, config: Arc<Config>, caches: Caches, health: Health) -> Self {
        let (wake, woken) = watch::channel(());
        let pending: Arc<Mutex<Pending>> = Arc::default();
        let (noted, wakes) = (Arc::clone(&pending), wake.clone());
        caches.services.on_change(move |change| {
            noted.lock().services.insert(change.key.clone());
            wakes.send_replace(());
        });
        let (noted, wakes) = (Arc::clone(&pending), wake.clone());
        let family = table::family(kernel.is_ipv6());
        caches.slices.on_change(move |change| {
            if noted.lock().slice(family, change) {
                wakes.send_replace(());
            }
        });
        caches.node.on_change(move |_| {
            wake.send_replace(());
        });
        Self {
            config,
            caches,
            health,
            woken,
            pending,
            kernel,
            here: None,
            table: Table::new(),
            behind: Changes::new(),
            flows: false,
        }
    }

    async fn run(mut self, synced: watch::Sender<bool>, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.caches.synced() => {}
        }
        let (ipv6, period) = (self.kernel.is_ipv6(), self.config.sync_period.max(RETRY));
        let (mut check, mut renew) = (Instant::now() + period, Instant::now() + period * RENEW);
        loop {
            self.woken.mark_unchanged();
            let now = Instant::now();
            if now >= check {
                // Somebody else may have changed our rules.
                tokio::task::block_in_place(|| self.check(now >= renew));
                check = now + period;
                renew = if now >= renew { now + period * RENEW } else { renew };
            }
            self.health.begins(ipv6, Timestamp::now());
            let pause = match tokio::task::block_in_place(|| self.sync()) {
                Ok(()) => {
                    self.health.synced(ipv6, Timestamp::now(), now.elapsed());
                    synced.send_replace(true);
                    check.saturating_duration_since(Instant::now())
                }
                Err(error) => {
                    self.health.failed(ipv6);
                    tracing::error!(ipv6, error = format!("{error:#}"), "rules not written");
                    RETRY
                }
            };
            self.health.check_ports(ipv6, self.table.values()).await;
            let changed = async {
                // The sender lives as long as the caches.
                let _ = self.woken.changed().await;
                tokio::time::sleep(self.config.min_sync_period).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }

    /// Looks after our rules in the kernel; all are written `anew` when that is due.
    fn check(&mut self, anew: bool) {
        if anew {
            self.kernel.distrust();
        } else if let Err(error) = self.kernel.check() {
            tracing::warn!(error = format!("{error:#}"), "rules not checked");
        }
    }

    fn sync(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let node = self.caches.node.list().first().cloned();
        let here = here(&self.config.node, node.as_deref());
        self.health.leaves(here.leaving);
        self.update(&here);
        let ipv6 = self.kernel.is_ipv6();
        let addresses = addresses(&self.config, node.as_deref());
        let rules = nftables::Node {
            addresses: addresses.into_iter().filter(|a| a.is_ipv6() == ipv6).collect(),
            any_address: any_address(&self.config),
            local: local(&self.config.detect_local, node.as_deref(), ipv6),
            masquerade_all: self.config.masquerade_all,
            mark: self.config.mark,
        };
        let bytes = self.kernel.sync(&self.table, &self.behind, &rules)?;
        self.flows |= conntrack::may_be_stale(&std::mem::take(&mut self.behind));
        self.forget_stale();
        let seconds = start.elapsed().as_secs_f64();
        tracing::debug!(ipv6, seconds, bytes, "rules written");
        Ok(())
    }

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
                self.health.forgot(ipv6, flows);
                tracing::debug!(ipv6, flows, "stale flows forgotten");
            }
            Err(error) => {
                tracing::error!(ipv6, error = format!("{error:#}"), "stale flows not forgotten");
            }
        }
    }

    /// Brings the table to what the caches have.
    fn update(&mut self, here: &Here) {
        let changed = {
            let mut pending = self.pending.lock();
            let changed = std::mem::take(&mut pending.services);
            if self.here.as_ref() == Some(here) {
                changed
            } else {
                // Other backends may be near now.
                let all = self.caches.services.list();
                changed.into_iter().chain(all.iter().map(|s| Key::of(s.as_ref()))).collect()
            }
        };
        self.here = Some(here.clone());
        let ipv6 = self.kernel.is_ipv6();
        for key in changed {
            let service = self.caches.services.get(&key);
            let slices: Vec<Arc<EndpointSlice>> = {
                let pending = self.pending.lock();
                let keys = pending.slices.get(&key).into_iter().flatten();
                keys.filter_map(|slice| self.caches.slices.get(slice)).collect()
            };
            let slices: Vec<&EndpointSlice> = slices.iter().map(AsRef::as_ref).collect();
            let rows = service.as_deref().map(|s| table::rows(here, ipv6, s, &slices));
            let rows = rows.unwrap_or_default();
            let changes = table::update(&mut self.table, &key.namespace, &key.name, rows);
            merge(&mut self.behind, changes);
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
    use crate::netlink::tests::alone;
    use crate::nftables::{socket, wire};
    use crate::table::tests::{service, slice};
    use serde_json::json;

    fn node(object: serde_json::Value) -> Node {
        serde_json::from_value(object).expect("a node")
    }

    #[test]
    fn a_family_is_told_of_its_own_slices() {
        let (mut four, mut six) = (Pending::default(), Pending::default());
        let of = |family: &str| {
            let mut slice = slice(&[]);
            slice.address_type = family.into();
            Some(Arc::new(slice))
        };
        let (key, web) = (Key::new("ns", "web-x"), Key::new("ns", "web"));
        for (old, new, told, known) in [
            (None, of("IPv4"), [true, false], [1, 0]),
            (of("IPv4"), of("IPv4"), [true, false], [1, 0]),
            // Deleted and made again.
            (of("IPv4"), of("IPv6"), [true, true], [0, 1]),
            (of("IPv6"), None, [false, true], [0, 0]),
        ] {
            let change = Change { key: &key, old: old.as_ref(), new: new.as_ref() };
            let found = [four.slice("IPv4", &change), six.slice("IPv6", &change)];
            let count = |pending: &Pending| pending.slices.get(&web).map_or(0, BTreeSet::len);
            assert_eq!((found, [count(&four), count(&six)]), (told, known));
            for (pending, told) in [(&mut four, told[0]), (&mut six, told[1])] {
                assert_eq!(std::mem::take(&mut pending.services).contains(&web), told);
            }
        }
    }

    /// Against the kernel, in a namespace of its own.
    #[test]
    fn a_family_that_fails_does_not_hold_up_the_other() {
        let options = crate::Options { kubeconfig: Some("/k".into()), ..Default::default() };
        let config = Arc::new(options.settle().expect("settled"));
        let caches = Caches {
            services: Cache::detached(),
            slices: Cache::detached(),
            node: Cache::detached(),
        };
        let spec = json!({"clusterIP": "fd00:96::7", "ports": [{"port": 80}]});
        let objects = [(Key::new("ns", "web"), Arc::new(service(spec)))];
        caches.services.replace(objects.into());
        caches.slices.replace(Default::default());
        caches.node.replace(Default::default());
        let stop = CancellationToken::new();
        let health = Health::new(&stop, config.sync_period, Families::BOTH);
        alone(move || {
            // Somebody else has the table of IPv4, as long as the socket is open.
            let owner = wire::tests::own_table(false);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let mut synced = [false, true].map(|ipv6| {
                    let kernel = Kernel::new(Mode::Nftables, ipv6);
                    let (config, health) = (Arc::clone(&config), health.clone());
                    let family = Family::new(kernel, config, caches.clone(), health);
                    let (synced, told) = watch::channel(false);
                    tokio::spawn(family.run(synced, stop.clone()));
                    told
                });
                let [four, six] = &mut synced;
                six.wait_for(|synced| *synced).await.expect("rules of IPv6");
                assert!(socket::identity(true).expect("an answer").is_some());
                assert!(!*four.borrow(), "the table is somebody else's");
                drop(owner);
                four.wait_for(|synced| *synced).await.expect("tried again");
                stop.cancel();
            });
        });
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
