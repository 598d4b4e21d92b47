//! Pods and services reach each other, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use e2e::manifests::web;
use e2e::{SOON, eventually};

use crate::cluster;

#[test]
fn pods_of_both_nodes_reach_each_other() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("nodes")?;
    let set = r"
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec:
      containers:
      - name: server
        image: localhost/test:1
        command: [testserver]
        env: [{name: DRAIN_SECONDS, value: '0'}]
        ports: [{containerPort: 8080, hostPort: 8099}]
";
    ns.apply(set)?;
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
    let cluster = cluster()?;
    let ns = cluster.namespace("nodeport")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    ns.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--name=outside",
        "--type=NodePort",
        "--port=80",
        "--target-port=http",
    ])?;
    let service = ns.get(&["service", "outside"])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a port")?;
    ensure!((30000..=32767).contains(&port), "{port}");
    let nodes = cluster.get(&["nodes"])?;
    for node in nodes["items"].as_array().context("nodes")? {
        let address = node["status"]["addresses"][0]["address"].as_str().context("an address")?;
        let mut names = BTreeSet::new();
        eventually("both pods answer", SOON, || {
            names.insert(cluster.fetch(&format!("http://{address}:{port}/hostname"))?);
            ensure!(names.len() == 2, "{names:?} at {address}");
            Ok(())
        })?;
    }
    // The type back, and the port is nobody's.
    ns.kubectl(&["patch", "service", "outside", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    let first = nodes["items"][0]["status"]["addresses"][0]["address"].as_str().context("one")?;
    eventually("the port is closed", SOON, || {
        ensure!(cluster.fetch(&format!("http://{first}:{port}/hostname")).is_err(), "open");
        Ok(())
    })
}

#[test]
fn services_follow_their_pods() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("services")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("client")?;
    let slices = ns.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"])?;
    let endpoints = slices["items"][0]["endpoints"].as_array().context("endpoints")?;
    ensure!(endpoints.len() == 2, "{endpoints:?}");
    ensure!(endpoints.iter().all(|e| e["conditions"]["ready"] == true), "{endpoints:?}");

    // Without an address of its own, its name leads to the pods.
    let headless = "apiVersion: v1\nkind: Service\nmetadata: {name: each}\nspec: \
                    {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}\n";
    ns.apply(headless)?;
    let addresses: BTreeSet<&str> =
        endpoints.iter().filter_map(|e| e["addresses"][0].as_str()).collect();
    let full = format!("each.{}.svc.cluster.local", ns.name());
    eventually("the name leads to all pods", SOON, || {
        let found = ns.shell("client", &format!("nslookup -type=a {full}"))?;
        ensure!(addresses.iter().all(|a| found.contains(a)), "{addresses:?}: {found}");
        Ok(())
    })?;

    // One client stays with one pod.
    ns.kubectl(&["patch", "service", "web", "-p", r#"{"spec":{"sessionAffinity":"ClientIP"}}"#])?;
    eventually("one pod answers", SOON, || {
        let ask = "for i in $(seq 10); do timeout 3 wget -q -O - http://web/hostname; done";
        let answered = ns.shell("client", ask)?;
        let names: BTreeSet<&str> = answered.lines().collect();
        ensure!(names.len() == 1, "{names:?}");
        Ok(())
    })?;

    // Nobody behind it: refused, not lost.
    ns.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    eventually("the service refuses", SOON, || {
        let refused = ns.refusal(
            &["exec", "client", "--", "timeout", "3", "wget", "-O", "-", "http://web/"],
            "",
        )?;
        ensure!(refused.contains("refused"), "{refused}");
        Ok(())
    })?;
    ns.kubectl(&["delete", "service", "web"])?;
    let gone = ns.refusal(
        &["exec", "client", "--", "nslookup", &format!("web.{}.svc.cluster.local", ns.name())],
        "",
    )?;
    ensure!(gone.contains("exit code 1"), "{gone}");
    Ok(())
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
