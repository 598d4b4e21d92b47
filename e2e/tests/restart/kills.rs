//! kill -9 of everything but the containers: they run on, and no acknowledged write is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use e2e::manifests::{maps, web};
use e2e::{Cluster, Namespace, Running, SOON, Settings, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Name, container and address of each pod that runs; none may ever have been restarted.
pub fn containers(ns: &Namespace<'_>) -> anyhow::Result<BTreeMap<String, (String, String)>> {
    let pods = ns.get(&["pods"])?;
    let items = pods["items"].as_array().context("pods")?;
    let mut found = BTreeMap::new();
    for pod in items {
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["restartCount"] == 0, "{status}");
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let container = text(&status["containerID"])?;
        found.insert(text(&pod["metadata"]["name"])?, (container, text(&pod["status"]["podIP"])?));
    }
    Ok(found)
}

/// Fails unless these pods, with whatever others, have the same containers still.
pub fn run_on(
    ns: &Namespace<'_>,
    before: &BTreeMap<String, (String, String)>,
) -> anyhow::Result<()> {
    let mut after = containers(ns)?;
    after.retain(|pod, _| before.contains_key(pod));
    ensure!(after == *before, "the same containers: {after:?}, before: {before:?}");
    Ok(())
}

/// Writers that go on until the server is gone: each prints a line for each acknowledged write.
struct Writers {
    created: Vec<Running>,
    replaced: Running,
}

impl Writers {
    fn start(ns: &Namespace<'_>, round: usize) -> anyhow::Result<Self> {
        let mut created = Vec::new();
        for writer in 0..3 {
            let mut running = ns.spawn(&["create", "-f", "-"])?;
            running.write(&maps(&format!("w{round}-{writer}"), 500))?;
            running.close();
            created.push(running);
        }
        let counter = |i| {
            format!(
                "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: counter}}\ndata: {{count: '{i}'}}\n"
            )
        };
        ns.apply(&counter(0))?;
        let mut replaced = ns.spawn(&["replace", "-f", "-"])?;
        replaced.write(&(1..=500).map(counter).collect::<String>())?;
        replaced.close();
        Ok(Self { created, replaced })
    }

    /// Acknowledged so far.
    fn acknowledged(&self) -> usize {
        let lines = |r: &Running| r.text().matches('\n').count();
        self.created.iter().map(lines).sum::<usize>() + lines(&self.replaced)
    }

    /// Ends them: they would go on with what is left to write when the server is back.
    fn end(&mut self) -> anyhow::Result<()> {
        for writer in self.created.iter_mut().chain([&mut self.replaced]) {
            writer.end()?;
        }
        Ok(())
    }

    /// Compares what was acknowledged before they were ended with what there is.
    fn check(&self, ns: &Namespace<'_>) -> anyhow::Result<usize> {
        let text = ns.kubectl(&["get", "configmaps", "-o", "name"])?;
        let there: BTreeSet<&str> = text.lines().collect();
        let mut count = 0;
        for writer in &self.created {
            let said = writer.text();
            for name in said.lines().filter_map(|l| l.strip_suffix(" created")) {
                ensure!(there.contains(name), "{name} was acknowledged, and is lost");
                count += 1;
            }
        }
        let last = self.replaced.text().matches("configmap/counter replaced").count();
        let now = ns.get(&["configmap", "counter"])?;
        let n: usize = now["data"]["count"].as_str().context("a count")?.parse()?;
        // The write under way may have been made without its acknowledgement.
        ensure!(n == last || n == last + 1, "{last} writes were acknowledged, {n} are there");
        Ok(count + last)
    }
}

/// Kills and restarts the cluster that was started with these arguments, with pods running and
/// writers writing.
fn survive(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<()> {
    let ns = cluster.namespace("steady")?;
    ns.apply(&web("web", 3))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("client")?;
    let before = containers(&ns)?;
    ensure!(before.len() == 4, "{before:?}");
    for round in 0..3 {
        let busy = cluster.namespace(&format!("busy{round}"))?;
        let mut writers = Writers::start(&busy, round)?;
        eventually("some writes were made", SOON, || {
            ensure!(writers.acknowledged() > 100 * (round + 1), "{}", writers.acknowledged());
            Ok(())
        })?;
        if round == 1 {
            // In the middle of a rollout.
            busy.apply(&web("rolling", 3))?;
        }
        cluster.kill()?;
        writers.end()?;
        for (pod, (_, address)) in before.iter().filter(|(name, _)| name.starts_with("web-")) {
            let answer = cluster.fetch(&format!("http://{address}:8080/hostname"));
            let answer = answer.context("it runs on while nobody looks after it")?;
            ensure!(answer.trim() == pod, "{answer}");
        }
        Cluster::start(cluster.settings(), arguments)?;
        let acknowledged = writers.check(&busy)?;
        ensure!(acknowledged > 100, "{acknowledged} acknowledged writes");
        if round == 1 {
            busy.rolled_out("deployment/rolling")?;
        }
        ns.rolled_out("deployment/web")?;
        eventually("the service answers", SOON, || {
            ns.shell("client", "timeout 3 wget -q -O - http://web/hostname").map(drop)
        })?;
        let after = containers(&ns)?;
        ensure!(after == before, "the same containers: {after:?}, before: {before:?}");
    }
    ns.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
    ns.rolled_out("deployment/web")
}

#[test]
fn a_killed_cluster_on_the_embedded_store_comes_back() -> anyhow::Result<()> {
    let settings = Settings::own("embedded")?;
    let arguments = ["--nodes", "2"];
    let cluster = Cluster::start(&settings, &arguments)?;
    survive(&cluster, &arguments)?;

    // containerd too may be killed: its containers run on.
    let ns = cluster.namespace("runtime")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    let before = containers(&ns)?;
    let mut all = spaces(&cluster)?;
    ensure!(all.len() >= before.len(), "{before:?} in {all:?}");
    for node in ["node", "node-2"] {
        cluster.kill_containerd(node)?;
    }
    eventually("pods are made again", SOON, || ns.idle("later"))?;
    // And the process of a further node.
    cluster.kill_node("node-2")?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=6"])?;
    ns.rolled_out("deployment/web")?;
    run_on(&ns, &before)?;
    drop(ns);
    all.extend(spaces(&cluster)?);

    // Nothing stays of pods whose containerd is dead when the cluster is removed.
    cluster.kill()?;
    eventually("a further node ends with the first", SOON, || {
        ensure!(cluster.node_process("node-2")?.is_none(), "it runs");
        Ok(())
    })?;
    for node in ["node", "node-2"] {
        cluster.kill_containerd(node)?;
    }
    settings.purge()?;
    all.retain(|name| Path::new("/run/netns").join(name).exists());
    ensure!(all.is_empty(), "left behind: {all:?}");
    Ok(())
}

/// The network namespaces of the cluster's pods: what is at the other ends of its nodes' links.
/// Their names say nothing of the cluster.
fn spaces(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let name = &cluster.settings().name;
    let mut found = BTreeSet::new();
    for node in [name.clone(), format!("{name}-node-2")] {
        let mut ip = Command::new("ip");
        ip.args(["-n", &node, "link", "show", "type", "veth"]);
        let links = e2e::run(ip, "")?.text()?;
        let named = links.split("link-netns ").skip(1).filter_map(|l| l.split_whitespace().next());
        found.extend(named.filter(|name| name.starts_with("cni-")).map(str::to_owned));
    }
    Ok(found)
}

/// etcd on the loopback of the cluster's network namespace.
pub fn etcd(cluster: &Settings) -> anyhow::Result<Running> {
    let netns = format!("/run/netns/{}", cluster.name);
    if !Path::new(&netns).exists() {
        for arguments in [
            &["netns", "add", &cluster.name][..],
            &["-n", &cluster.name, "link", "set", "lo", "up"],
        ] {
            let mut ip = Command::new("ip");
            ip.args(arguments);
            e2e::run(ip, "")?.text()?;
        }
    }
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={netns}")).args(["etcd", "--listen-client-urls", ETCD]);
    command.args(["--advertise-client-urls", ETCD, "--listen-peer-urls", "http://127.0.0.1:2380"]);
    command.arg("--data-dir").arg(cluster.dir.join("etcd"));
    let running = Running::start(command)?;
    running.until("ready to serve client requests", SOON)?;
    Ok(running)
}

pub const ETCD: &str = "http://127.0.0.1:2379";

#[test]
fn a_killed_cluster_on_etcd_comes_back() -> anyhow::Result<()> {
    let settings = Settings::own("outside")?;
    let running = etcd(&settings)?;
    let arguments = ["--etcd-servers", ETCD];
    let cluster = Cluster::start(&settings, &arguments)?;
    survive(&cluster, &arguments)?;

    // etcd too may be killed.
    let ns = cluster.namespace("engine")?;
    ns.kubectl(&["create", "configmap", "before"])?;
    drop(running);
    let running = etcd(&settings)?;
    eventually("it writes again", SOON, || ns.kubectl(&["create", "configmap", "after"]))?;
    ns.kubectl(&["get", "configmap", "before"])?;
    ns.idle("later")?;
    drop(ns);
    drop(running);
    settings.purge()
}

/// Certificates are renewed while the cluster runs, and are used at once.
#[test]
fn credentials_are_renewed_under_way() -> anyhow::Result<()> {
    let settings = Settings::own("renewed")?;
    let cluster = Cluster::start(&settings, &["--nodes", "2"])?;
    let ns = cluster.namespace("renewed")?;
    ns.apply(&web("web", 2))?;
    ns.rolled_out("deployment/web")?;
    let before = containers(&ns)?;
    let dir = cluster.settings().dir.clone();
    let files = ["etc/pki/apiserver.crt", "etc/controller-manager.conf", "etc/scheduler.conf"];
    let read = |name: &str| std::fs::read(dir.join(name)).with_context(|| name.to_owned());
    let old: Vec<Vec<u8>> = files.iter().map(|f| read(f)).collect::<anyhow::Result<_>>()?;
    for file in files {
        std::fs::remove_file(dir.join(file))?;
    }
    cluster.signal(Signal::SIGUSR1)?;
    eventually("they are there again", SOON, || {
        for (file, old) in files.iter().zip(&old) {
            ensure!(&read(file)? != old, "{file} is the old one");
        }
        Ok(())
    })?;
    eventually("the components run again", SOON, || {
        let status = e2e::run(cluster.settings().coxswain(&["status"]), "")?;
        ensure!(status.success && !status.stdout.contains("WRONG"), "{}", status.stdout);
        Ok(())
    })?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=3"])?;
    ns.rolled_out("deployment/web")?;
    run_on(&ns, &before)?;
    drop(ns);
    settings.purge()
}
