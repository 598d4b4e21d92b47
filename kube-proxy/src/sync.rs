//! The loop: whatever changes, the table is built from the caches and the kernel brought to it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use client::{Cache, Change};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::conntrack;
use crate::health::Health;
use crate::kernel::Kernel;
use crate::nftables;
use crate::table::{self, Here, Table};

/// How soon a failed sync is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Headless services' slices have nothing to translate.
const NOT_HEADLESS: &str =
    "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name";
const ZONE: &str = "topology.kubernetes.io/zone";

struct Proxy {
    config: Config,
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
    node: Cache<Node>,
    kernels: Vec<(Kernel, Table)>,
    health: Health,
}

/// Runs until shutdown.
///
/// # Errors
/// None at present: what fails is tried again.
pub async fn run(
    config: Config,
    client: kube::Client,
    health: Health,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let (wake, mut woken) = watch::channel(());
    let own = watcher::Config::default().fields(&format!("metadata.name={}", config.node));
    let slices = watcher::Config::default().labels(NOT_HEADLESS);
    let all = watcher::Config::default();
    let stop = || shutdown.clone();
    let mut proxy = Proxy {
        services: Cache::start(client.clone(), all, stop()),
        slices: Cache::start(client.clone(), slices, stop()),
        node: Cache::start(client, own, stop()),
        kernels: [false, true]
            .map(|ipv6| (Kernel::new(config.mode, ipv6), Table::new()))
            .into_iter()
            .collect(),
        config,
        health,
    };
    let on = |wake: &watch::Sender<()>| {
        let wake = wake.clone();
        move || {
            wake.send_replace(());
        }
    };
    let (a, b, c) = (on(&wake), on(&wake), on(&wake));
    proxy.services.on_change(move |_: &Change<'_, Service>| a());
    proxy.slices.on_change(move |_: &Change<'_, EndpointSlice>| b());
    proxy.node.on_change(move |_: &Change<'_, Node>| c());
    // Before both lists are here, services would seem to have no backends.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = async { tokio::join!(proxy.services.synced(), proxy.slices.synced(), proxy.node.synced()); } => {}
    }
    let mut renew = Instant::now() + proxy.config.sync_period.max(RETRY) * 120;
    loop {
        woken.mark_unchanged();
        let now = Instant::now();
        if now >= renew {
            // Somebody else may have changed our rules.
            proxy.kernels.iter_mut().for_each(|(kernel, _)| kernel.distrust());
            renew = now + proxy.config.sync_period.max(RETRY) * 120;
        }
        let pause = match tokio::task::block_in_place(|| proxy.sync()) {
            Ok(()) => renew.saturating_duration_since(now),
            Err(error) => {
                proxy.health.failed();
                tracing::error!(error = format!("{error:#}"), "rules not written");
                RETRY
            }
        };
        let tables: Vec<Table> = proxy.kernels.iter().map(|(_, table)| table.clone()).collect();
        for table in &tables {
            proxy.health.check_ports(table).await;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
            _ = woken.changed() => tokio::time::sleep(proxy.config.min_sync_period).await,
        }
    }
}

impl Proxy {
    fn sync(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        let (services, slices) = (self.services.list(), self.slices.list());
        let node = self.node.list().first().cloned();
        let here = here(&self.config.node, node.as_deref());
        let addresses = addresses(&self.config, node.as_deref());
        let mut bytes = 0;
        for (kernel, have) in &mut self.kernels {
            let ipv6 = kernel.is_ipv6();
            let table = table::build(
                &here,
                ipv6,
                services.iter().map(AsRef::as_ref),
                slices.iter().map(AsRef::as_ref),
            );
            let rules = nftables::Node {
                addresses: addresses.iter().filter(|a| a.is_ipv6() == ipv6).copied().collect(),
                pods: self.config.pods.iter().find(|p| p.addr().is_ipv6() == ipv6).copied(),
                masquerade_all: self.config.masquerade_all,
            };
            bytes += kernel.sync(&table, &rules)?;
            let stale = conntrack::plan(have, &table);
            *have = table;
            conntrack::forget(&stale)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        tracing::debug!(seconds, bytes, "rules written");
        self.health.synced(seconds, here.leaving);
        Ok(())
    }
}

fn here(name: &str, node: Option<&Node>) -> Here {
    let labels = node.and_then(|n| n.metadata.labels.as_ref());
    Here {
        node: name.to_owned(),
        zone: labels.and_then(|l| l.get(ZONE)).cloned(),
        leaving: node.is_some_and(|n| n.metadata.deletion_timestamp.is_some()),
    }
}

/// Where node ports answer: the node's own addresses, or those of this machine in the given
/// ranges.
fn addresses(config: &Config, node: Option<&Node>) -> Vec<IpAddr> {
    match &config.nodeport_addresses {
        None => {
            let status = node.and_then(|n| n.status.as_ref());
            let addresses = status.and_then(|s| s.addresses.as_ref()).into_iter().flatten();
            let internal = addresses.filter(|a| a.type_ == "InternalIP");
            internal.filter_map(|a| a.address.parse().ok()).collect()
        }
        Some(ranges) => {
            let own = nix::ifaddrs::getifaddrs().into_iter().flatten();
            let ips = own.filter_map(|i| {
                let address = i.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
            });
            ips.filter(|ip| ranges.iter().any(|r| r.contains(ip))).collect()
        }
    }
}
