//! Deployments, DaemonSets, nodes that are emptied, and namespaces that go.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::manifests::{Each, each, web};
use e2e::{Namespace, SOON, eventually};
use serde_json::Value;

use crate::cluster;

/// Names of the pods with a label.
/// The pods that are not about to end.
fn names(ns: &Namespace<'_>, selector: &str) -> anyhow::Result<BTreeSet<String>> {
    let list = ns.get(&["pods", "-l", selector])?;
    let pods = list["items"].as_array().context("pods")?;
    let staying = pods.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null());
    Ok(staying.filter_map(|p| Some(p["metadata"]["name"].as_str()?.to_owned())).collect())
}

fn count(ns: &Namespace<'_>, selector: &str, wanted: usize) -> anyhow::Result<()> {
    eventually(&format!("{wanted} pods with {selector}"), SOON, || {
        let found = names(ns, selector)?;
        ensure!(found.len() == wanted, "{found:?}");
        Ok(())
    })
}

#[test]
fn a_deployment_answers_by_name_and_by_address() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("answers")?;
    ns.apply(&web("web", 3))?;
    ns.rolled_out("deployment/web")?;
    let wide = ns.kubectl(&["get", "pods", "-o", "wide"])?;
    ensure!(wide.contains("NOMINATED NODE") && wide.matches("Running").count() == 3, "{wide}");
    ensure!(wide.matches("1/1").count() == 3, "{wide}");
    let table = ns.kubectl(&["get", "deployment", "web"])?;
    ensure!(table.contains("3/3"), "{table}");
    let described = ns.kubectl(&["describe", "deployment", "web"])?;
    ensure!(described.contains("Scaled up replica set web-"), "{described}");
    let pods = names(&ns, "app=web")?;
    let pod = pods.first().context("a pod")?;
    let described = ns.kubectl(&["describe", "pod", pod])?;
    for wanted in ["Scheduled", "Pulled", "Created", "Started", "Controlled By:", "default-token"] {
        // Since v1.22 a token is projected, and no secret is mounted.
        let there = described.contains(wanted);
        ensure!(there == (wanted != "default-token"), "{wanted}: {described}");
    }

    ns.idle("client")?;
    let name = ns.name();
    let ask = "for i in $(seq 40); do timeout 3 wget -q -O - http://web/hostname; done";
    let answered: BTreeSet<String> = ns.shell("client", ask)?.lines().map(str::to_owned).collect();
    ensure!(answered == pods, "all replicas answer by name: {answered:?} of {pods:?}");
    let service = ns.get(&["service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("an address")?.to_owned();
    for host in [address.clone(), format!("web.{name}"), format!("web.{name}.svc.cluster.local")] {
        let answer =
            ns.shell("client", &format!("timeout 3 wget -q -O - http://{host}/hostname"))?;
        ensure!(pods.contains(answer.trim()), "{host}: {answer}");
    }
    let full = ns.shell("client", &format!("nslookup web.{name}.svc.cluster.local"))?;
    ensure!(full.contains(&address), "{full}");
    let unknown =
        ns.refusal(&["exec", "client", "--", "nslookup", "nothing.default.svc.cluster.local"], "")?;
    ensure!(unknown.contains("exit code 1"), "{unknown}");
    Ok(())
}

#[test]
fn revisions_are_rolled_out_and_back() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("revisions")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=1"])?;
    count(&ns, "app=web", 1)?;
    ns.kubectl(&["set", "env", "deployment/web", "A=B"])?;
    ns.rolled_out("deployment/web")?;
    let history = ns.kubectl(&["rollout", "history", "deployment/web"])?;
    let revisions: Vec<&str> =
        history.lines().filter_map(|l| l.split_whitespace().next()).collect();
    ensure!(revisions.ends_with(&["1", "2"]), "{history}");
    let second = ns.kubectl(&["rollout", "history", "deployment/web", "--revision=2"])?;
    ensure!(second.contains("A:\tB"), "{second}");
    ns.kubectl(&["rollout", "undo", "deployment/web"])?;
    ns.rolled_out("deployment/web")?;
    let now = ns.get(&["deployment", "web"])?;
    ensure!(now["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{now}");
    ensure!(now["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3", "{now}");

    // One that never becomes ready leaves what runs in its place.
    let before = names(&ns, "app=web")?;
    ns.kubectl(&["rollout", "pause", "deployment/web"])?;
    ns.kubectl(&["set", "image", "deployment/web", "server=localhost/nothing:1"])?;
    ensure!(names(&ns, "app=web")? == before, "nothing happens while it is paused");
    ns.kubectl(&["rollout", "resume", "deployment/web"])?;
    eventually("the image is missing", SOON, || {
        let pods = ns.kubectl(&["get", "pods"])?;
        ensure!(pods.contains("ErrImagePull") || pods.contains("ImagePullBackOff"), "{pods}");
        Ok(())
    })?;
    ensure!(names(&ns, "app=web")?.is_superset(&before), "what runs stays");
    let slow = ns.refusal(&["rollout", "status", "deployment/web", "--timeout=2s"], "")?;
    ensure!(slow.contains("timed out waiting for the condition"), "{slow}");
    ns.kubectl(&["rollout", "undo", "deployment/web"])?;
    ns.rolled_out("deployment/web")?;
    ensure!(names(&ns, "app=web")?.is_superset(&before), "what ran is kept");

    ns.kubectl(&["rollout", "restart", "deployment/web"])?;
    ns.rolled_out("deployment/web")?;
    // By cascade: replica sets and pods go with it.
    ns.kubectl(&["delete", "deployment", "web", "--cascade=foreground", "--timeout=60s"])?;
    let left = ns.kubectl(&["get", "replicasets,pods", "-l", "app=web", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn orphans_stay_and_are_adopted() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("orphans")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    let before = names(&ns, "app=web")?;
    ns.kubectl(&["delete", "deployment", "web", "--cascade=orphan"])?;
    eventually("the replica set has no owner", SOON, || {
        let sets = ns.get(&["replicasets", "-l", "app=web"])?;
        let owners = &sets["items"][0]["metadata"]["ownerReferences"];
        ensure!(owners.is_null(), "{owners}");
        Ok(())
    })?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    ensure!(names(&ns, "app=web")? == before, "the same pods");
    // A pod that goes is made anew.
    let gone = before.first().context("a pod")?;
    ns.kubectl(&["delete", "pod", gone, "--grace-period=1"])?;
    ns.rolled_out("deployment/web")?;
    count(&ns, "app=web", 2)?;
    ensure!(!names(&ns, "app=web")?.contains(gone), "another one");
    Ok(())
}

#[test]
fn a_rolling_update_loses_no_request() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("lossless")?;
    ns.apply(&web("web", 2))?;
    ns.idle("client")?;
    ns.rolled_out("deployment/web")?;
    eventually("it answers", SOON, || {
        ns.shell("client", "timeout 3 wget -q -O - http://web/hostname").map(drop)
    })?;
    let ask = "while [ ! -e /tmp/stop ]; do timeout 3 wget -q -O /dev/null http://web/hostname \
               && echo ok || echo lost; sleep 0.02; done; echo end";
    let mut asking = ns.spawn(&["exec", "client", "--", "sh", "-c", ask])?;
    asking.until("ok", SOON)?;
    for _ in 0..2 {
        ns.kubectl(&["rollout", "restart", "deployment/web"])?;
        ns.rolled_out("deployment/web")?;
    }
    ns.shell("client", "touch /tmp/stop")?;
    asking.wait(SOON)?;
    asking.until("end", Duration::from_secs(5))?;
    let log = asking.text();
    let (good, lost) = (log.matches("ok").count(), log.matches("lost").count());
    ensure!(good > 50 && lost == 0, "{good} answered, {lost} lost");
    Ok(())
}

#[test]
fn a_node_is_drained_and_comes_back() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("drained")?;
    ns.apply(&web("leaves", 6))?;
    ns.rolled_out("deployment/leaves")?;
    let on_second = |pods: &Value| -> usize {
        let items = pods["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        items.iter().filter(|p| p["spec"]["nodeName"] == "node-2").count()
    };
    let before = on_second(&ns.get(&["pods", "-l", "app=leaves"])?);
    ensure!(before > 0, "pods are spread over the nodes");
    // Other tests' pods are left alone.
    let drain = ["drain", "node-2", "--pod-selector=app=leaves", "--timeout=120s"];
    let drained = ns.kubectl(&drain);
    let result = (|| {
        let text = drained?;
        ensure!(text.matches(" evicted").count() == before, "{before} pods: {text}");
        let node = ns.get(&["node", "node-2"])?;
        ensure!(node["spec"]["unschedulable"] == true, "{}", node["spec"]);
        let nodes = ns.kubectl(&["get", "nodes"])?;
        ensure!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
        ns.rolled_out("deployment/leaves")?;
        ensure!(
            on_second(&ns.get(&["pods", "-l", "app=leaves"])?) == 0,
            "they are on the other node"
        );
        Ok(())
    })();
    ns.kubectl(&["uncordon", "node-2"])?;
    result?;
    let node = ns.get(&["node", "node-2"])?;
    ensure!(node["spec"]["unschedulable"].is_null(), "{}", node["spec"]);
    Ok(())
}

#[test]
fn a_daemon_set_runs_on_each_node_and_rolls() -> anyhow::Result<()> {
    let ns = cluster()?.namespace("daemons")?;
    ns.apply(&each(Each::Idles))?;
    ns.rolled_out("daemonset/each")?;
    let pods = ns.get(&["pods", "-l", "app=each"])?;
    let items = pods["items"].as_array().context("pods")?;
    let nodes: BTreeSet<&str> =
        items.iter().filter_map(|p| p["spec"]["nodeName"].as_str()).collect();
    ensure!(nodes.len() == 2 && items.len() == 2, "one on each node: {nodes:?}");
    let before = names(&ns, "app=each")?;
    ns.kubectl(&["set", "env", "daemonset/each", "A=B"])?;
    ns.rolled_out("daemonset/each")?;
    ensure!(names(&ns, "app=each")?.is_disjoint(&before), "both were replaced");
    let history = ns.kubectl(&["rollout", "history", "daemonset/each"])?;
    ensure!(history.lines().any(|l| l.starts_with("2 ")), "{history}");
    ns.kubectl(&["rollout", "undo", "daemonset/each"])?;
    ns.rolled_out("daemonset/each")
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() -> anyhow::Result<()> {
    let cluster = cluster()?;
    let ns = cluster.namespace("doomed")?;
    ns.apply(&web("web", 1))?;
    ns.kubectl(&["create", "configmap", "m"])?;
    ns.rolled_out("deployment/web")?;
    cluster.kubectl(&["delete", "namespace", ns.name(), "--timeout=90s"])?;
    ensure!(cluster.refusal(&["get", "namespace", ns.name()], "")?.contains("not found"));
    let left = ns.kubectl(&["get", "all,configmaps", "-o", "name"])?;
    ensure!(left.is_empty(), "{left}");
    let refused = ns.refusal(&["create", "configmap", "m"], "")?;
    ensure!(refused.contains("not found"), "{refused}");
    Ok(())
}
