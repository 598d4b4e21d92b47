//! Stale connections: flows of protocols without an end (UDP) that the kernel goes on sending
//! where a backend is no more, or past a service that has got its first backend.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, bail};

use crate::table::{Changes, Protocol, ServicePort};

/// Flows to forget.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stale {
    /// To this address and port, wherever they were sent.
    Service {
        address: IpAddr,
        port: u16,
    },
    /// To this address, sent to this backend.
    Backend {
        address: IpAddr,
        backend: IpAddr,
    },
    /// To this node port, wherever they were sent.
    NodePort {
        port: u16,
        ipv6: bool,
    },
    NodePortBackend {
        port: u16,
        backend: IpAddr,
    },
}

/// What changes of the table make stale.
pub fn plan(changes: &Changes) -> BTreeSet<Stale> {
    let mut stale = BTreeSet::new();
    let udp = |row: &&ServicePort| row.protocol == Protocol::Udp;
    for change in changes.values() {
        let (before, after) = (change.old.as_ref().filter(udp), change.new.as_ref().filter(udp));
        if let Some(before) = before {
            lost(before, after, &mut stale);
        }
        if let Some(after) = after {
            gained(before, after, &mut stale);
        }
    }
    stale
}

/// Flows to backends that are no more.
fn lost(before: &ServicePort, after: Option<&ServicePort>, stale: &mut BTreeSet<Stale>) {
    let all = |row| backends(row).chain(row.cluster.backends.iter().map(|b| b.address));
    let stay: BTreeSet<IpAddr> = after.into_iter().flat_map(all).collect();
    for backend in all(before).filter(|b| !stay.contains(b)) {
        for address in addresses(before) {
            stale.insert(Stale::Backend { address, backend });
        }
        if let Some(port) = before.node_port {
            stale.insert(Stale::NodePortBackend { port, backend });
        }
    }
}

/// Flows that began before there was a backend: they were not translated.
fn gained(before: Option<&ServicePort>, after: &ServicePort, stale: &mut BTreeSet<Stale>) {
    let had = before.is_some_and(|row| backends(row).next().is_some());
    if had || backends(after).next().is_none() {
        return;
    }
    for address in addresses(after) {
        stale.insert(Stale::Service { address, port: after.port });
    }
    if let Some(port) = after.node_port {
        stale.insert(Stale::NodePort { port, ipv6: after.cluster_ip.is_ipv6() });
    }
}

fn backends(row: &ServicePort) -> impl Iterator<Item = IpAddr> {
    row.internal.backends.iter().chain(&row.external.backends).map(|b| b.address)
}

fn addresses(row: &ServicePort) -> impl Iterator<Item = IpAddr> {
    std::iter::once(row.cluster_ip)
        .chain(row.external_ips.iter().copied())
        .chain(row.load_balancer_ips.iter().copied())
}

impl Stale {
    /// Arguments of the `conntrack` program.
    fn arguments(&self) -> Vec<String> {
        let family = |ipv6: bool| if ipv6 { "ipv6" } else { "ipv4" };
        let (ipv6, rest) = match self {
            Self::Service { address, port } => (
                address.is_ipv6(),
                vec![
                    "--orig-dst".into(),
                    address.to_string(),
                    "--orig-port-dst".into(),
                    port.to_string(),
                ],
            ),
            Self::Backend { address, backend } => (
                address.is_ipv6(),
                vec![
                    "--orig-dst".into(),
                    address.to_string(),
                    "--dst-nat".into(),
                    backend.to_string(),
                ],
            ),
            Self::NodePort { port, ipv6 } => (*ipv6, vec!["--dport".into(), port.to_string()]),
            Self::NodePortBackend { port, backend } => (
                backend.is_ipv6(),
                vec!["--dport".into(), port.to_string(), "--dst-nat".into(), backend.to_string()],
            ),
        };
        let mut arguments: Vec<String> =
            ["-D", "-p", "udp", "-f", family(ipv6)].into_iter().map(str::to_owned).collect();
        arguments.extend(rest);
        arguments
    }
}

/// Forgets these flows.
///
/// # Errors
/// What `conntrack` printed; that there was no such flow is none.
pub fn forget(stale: &BTreeSet<Stale>) -> anyhow::Result<()> {
    for flow in stale {
        let arguments = flow.arguments();
        let output = Command::new("conntrack")
            .args(&arguments)
            .output()
            .context("conntrack cannot be started (package conntrack)")?;
        let text = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && !text.contains("0 flow entries have been deleted") {
            bail!("conntrack {}: {}", arguments.join(" "), text.trim());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::tests::{here, service, slice};
    use crate::table::{Changed, Table, build};
    use serde_json::json;

    fn table(protocol: &str, endpoints: &[&str]) -> Table {
        let spec = json!({"clusterIP": "10.96.0.10",
            "ports": [{"port": 53, "protocol": protocol, "nodePort": 30053}]});
        build(&here(), false, [&service(spec)], [&slice(endpoints)])
    }

    #[track_caller]
    fn check(old: &Table, new: &Table, wanted: &[&str]) {
        let names: BTreeSet<_> = old.keys().chain(new.keys()).cloned().collect();
        let change = |name| {
            let (old, new) = (old.get(&name).cloned(), new.get(&name).cloned());
            (name, Changed { old, new })
        };
        let changes = names.into_iter().map(change).filter(|(_, c)| c.old != c.new).collect();
        let found: Vec<String> =
            plan(&changes).iter().map(|s| s.arguments()[5..].join(" ")).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn flows_of_udp_services_are_forgotten_when_they_must() {
        let (none, one) = (table("UDP", &[]), table("UDP", &["10.0.0.1"]));
        let other = table("UDP", &["10.0.0.2"]);
        check(&none, &one, &["--orig-dst 10.96.0.10 --orig-port-dst 53", "--dport 30053"]);
        check(
            &one,
            &other,
            &["--orig-dst 10.96.0.10 --dst-nat 10.0.0.1", "--dport 30053 --dst-nat 10.0.0.1"],
        );
        check(
            &one,
            &Table::new(),
            &["--orig-dst 10.96.0.10 --dst-nat 10.0.0.1", "--dport 30053 --dst-nat 10.0.0.1"],
        );
        check(&one, &one, &[]);
        check(&table("TCP", &["10.0.0.1"]), &table("TCP", &[]), &[]);
    }
}
