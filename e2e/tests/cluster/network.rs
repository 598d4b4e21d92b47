//! Pods and services reach each other, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use e2e::manifests::{Each, each};
use e2e::{SOON, eventually, services};

use crate::cluster;

#[test]
fn pods_of_both_nodes_reach_each_other() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("nodes")?;
    ns.apply(&each(Each::Serves { host_port: 8099 }))?;
    ns.rolled_out("daemonset/each")?;
    let pods = ns.get(&["pods"])?;
    let items = pods["items"].as_array().context("pods")?;
    let nodes: BTreeSet<&str> =
        items.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    ensure!(nodes.len() == 2, "one on each node: {nodes:?}");
    for from in items {
        for to in items {
            let name = from["metadata"]["name"].as_str().context("a name")?;
            let ip = to["status"]["podIP"].as_str().context("an address")?;
            let wanted = to["metadata"]["name"].as_str();
            let ask = format!("timeout 3 wget -q -O - http://{ip}:8080/hostname");
            let answer = eventually("pods reach each other", SOON, || ns.shell(name, &ask))?;
            ensure!(Some(answer.trim()) == wanted, "{answer}");
            let host = to["status"]["hostIP"].as_str().context("an address")?;
            let answer = ns.cluster().fetch(&format!("http://{host}:8099/hostname"))?;
            ensure!(Some(answer.trim()) == wanted, "{answer} by a port of the host");
        }
    }
    Ok(())
}

#[test]
fn a_node_port_leads_to_pods() -> anyhow::Result<()> {
    services::node_port(&cluster()?.namespace("nodeport")?)
}

#[test]
fn services_follow_their_pods() -> anyhow::Result<()> {
    services::follow_pods(&cluster()?.namespace("services")?)
}

#[test]
fn a_local_node_port_keeps_clients_addresses() -> anyhow::Result<()> {
    services::local_node_port(&cluster()?.namespace("local")?)
}

#[test]
fn datagrams_of_one_socket_follow_a_service() -> anyhow::Result<()> {
    services::datagrams(&cluster()?.namespace("datagrams")?)
}

#[test]
fn the_api_server_is_a_service_too() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("apiservice")?;
    ns.idle("client")?;
    // busybox speaks no TLS here that checks: that the port answers is enough.
    for host in
        ["kubernetes.default", "kubernetes.default.svc.cluster.local", "$KUBERNETES_SERVICE_HOST"]
    {
        ns.shell("client", &format!("nc -w 3 {host} 443 < /dev/null"))?;
    }
    Ok(())
}

#[test]
fn there_is_no_way_out() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("noway")?;
    ns.idle("client")?;
    // RFC 5737 addresses; and names that are not the cluster's.
    let out = ns.refusal(&["exec", "client", "--", "nc", "-w", "2", "192.0.2.1", "80"], "")?;
    ensure!(out.contains("timed out") || out.contains("unreachable"), "{out}");
    ns.refusal(&["exec", "client", "--", "nslookup", "example.com"], "")?;
    // An address of the service range that no service has.
    let out = ns.refusal(&["exec", "client", "--", "nc", "-w", "2", "10.111.222.33", "80"], "")?;
    ensure!(out.contains("refused") || out.contains("unreachable"), "{out}");
    Ok(())
}
