//! What services do, whatever kube-proxy keeps them with.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};

use crate::manifests::{self, web};
use crate::{Namespace, SOON, eventually};

/// A node port leads to all pods from every node, as long as it is one.
///
/// # Errors
/// What was seen instead.
pub fn node_port(ns: &Namespace<'_>) -> anyhow::Result<()> {
    let cluster = ns.cluster();
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    let port = outside(ns)?;
    let addresses = node_addresses(ns)?;
    for address in &addresses {
        let mut names = BTreeSet::new();
        eventually("both pods answer", SOON, || {
            names.insert(cluster.fetch(&format!("http://{address}:{port}/hostname"))?);
            ensure!(names.len() == 2, "{names:?} at {address}");
            Ok(())
        })?;
    }
    // The type back, and the port is nobody's.
    ns.kubectl(&["patch", "service", "outside", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    let first = addresses.first().context("a node")?;
    eventually("the port is closed", SOON, || {
        ensure!(cluster.fetch(&format!("http://{first}:{port}/hostname")).is_err(), "open");
        Ok(())
    })
}

/// The node port of a Service `outside` for the Deployment `web`, which is made.
fn outside(ns: &Namespace<'_>) -> anyhow::Result<u64> {
    let target = ["--name=outside", "--type=NodePort", "--port=80", "--target-port=http"];
    ns.kubectl(&[&["expose", "deployment", "web"], &target[..]].concat())?;
    let service = ns.get(&["service", "outside"])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().context("a port")?;
    ensure!((30000..=32767).contains(&port), "{port}");
    Ok(port)
}

fn node_addresses(ns: &Namespace<'_>) -> anyhow::Result<Vec<String>> {
    let nodes = ns.cluster().get(&["nodes"])?;
    let addresses = nodes["items"].as_array().context("nodes")?.iter();
    let addresses = addresses.map(|n| n["status"]["addresses"][0]["address"].as_str());
    addresses.map(|a| a.map(str::to_owned).context("an address")).collect()
}

/// With `externalTrafficPolicy: Local` a node port leads to the pods of that node alone, and they
/// see who asks.
///
/// # Errors
/// What was seen instead.
pub fn local_node_port(ns: &Namespace<'_>) -> anyhow::Result<()> {
    let cluster = ns.cluster();
    ns.apply(&web("web", 1))?;
    let there =
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"node-2"}}}}}"#;
    ns.kubectl(&["patch", "deployment", "web", "-p", there])?;
    ns.rolled_out("deployment/web")?;
    let port = outside(ns)?;
    let addresses = node_addresses(ns)?;
    let [here, there] = addresses.as_slice() else { anyhow::bail!("{addresses:?}") };
    let ask = |node: &str| cluster.fetch(&format!("http://{node}:{port}/peer"));
    let peer = eventually("the pod answers through its node", SOON, || ask(there))?;
    ensure!(peer.trim() != here, "{peer} is not the other node's address");
    eventually("the pod answers through the other node", SOON, || ask(here))?;
    let local = r#"{"spec":{"externalTrafficPolicy":"Local"}}"#;
    ns.kubectl(&["patch", "service", "outside", "-p", local])?;
    eventually("the pod sees who asks", SOON, || {
        let peer = ask(there)?;
        ensure!(peer.trim() == here, "{peer} instead of {here}");
        Ok(())
    })?;
    // A node's own processes, and pods, are inside: they reach the pod through any node. Others do
    // not: a pod that keeps its node's network asks as the node that it is on.
    eventually("the node itself reaches the pod by its own port", SOON, || ask(here).map(drop))?;
    let outsider = "apiVersion: v1\nkind: Pod\nmetadata: {name: outsider}\nspec: {hostNetwork: true, \
                    nodeName: node-2, containers: [{name: main, image: 'localhost/test:1', command: \
                    [sleep, infinity]}]}\n";
    ns.ready(outsider, "outsider")?;
    let asked = format!("timeout 3 wget -q -O - http://{here}:{port}/peer");
    // Each node learns of the policy in its own time.
    eventually("the node without a pod does not answer", SOON, || {
        ensure!(ns.shell("outsider", &asked).is_err(), "it does");
        Ok(())
    })
}

/// A client that keeps its socket reaches the pods that there are now, though the kernel remembers
/// where its datagrams went before.
///
/// # Errors
/// What was seen instead.
pub fn datagrams(ns: &Namespace<'_>) -> anyhow::Result<()> {
    ns.apply(&web("web", 1))?;
    ns.rolled_out("deployment/web")?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: who}\nspec: {selector: {app: web}, \
                   ports: [{port: 53, targetPort: 8080, protocol: UDP}]}\n";
    ns.apply(service)?;
    let address = ns.get(&["service", "who"])?["spec"]["clusterIP"].clone();
    let address = address.as_str().context("an address")?;
    // One that asks before there is anybody is not lost either.
    ns.apply(&manifests::script("client", &format!("exec testserver ask {address} 53")))?;
    let pod = |ns: &Namespace<'_>| -> anyhow::Result<String> {
        let pods = ns.get(&["pods", "-l", "app=web"])?;
        let alive = |p: &&serde_json::Value| p["metadata"]["deletionTimestamp"].is_null();
        let found = pods["items"].as_array().context("pods")?.iter().find(alive);
        Ok(found.context("a pod")?["metadata"]["name"].as_str().context("a name")?.to_owned())
    };
    let answers = |name: &str| {
        eventually("the pod that is there answers", SOON, || {
            let last = ns.kubectl(&["logs", "client", "--tail=1"])?;
            ensure!(last.trim() == name, "{last:?} instead of {name}");
            Ok(())
        })
    };
    let first = pod(ns)?;
    answers(&first)?;
    ns.kubectl(&["rollout", "restart", "deployment/web"])?;
    ns.rolled_out("deployment/web")?;
    let second = pod(ns)?;
    ensure!(first != second, "{first} is another");
    answers(&second)?;
    // Nobody, and then somebody again.
    ns.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    ns.kubectl(&["wait", "pod", &second, "--for=delete", "--timeout=60s"])?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    ns.rolled_out("deployment/web")?;
    answers(&pod(ns)?)
}

/// Names and addresses of services lead to the pods that there are.
///
/// # Errors
/// What was seen instead.
pub fn follow_pods(ns: &Namespace<'_>) -> anyhow::Result<()> {
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
