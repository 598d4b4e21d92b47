//! Each component as a process of its own under its upstream name, with the flags that kubeadm gives
//! it, on an etcd; each is killed and started again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use e2e::manifests::web;
use e2e::{Cluster, Namespace, Running, SOON, Settings, eventually};

use crate::kills::{ETCD, containers, etcd};

/// The control plane's address, and one for another API server.
pub const ADDRESS: &str = "172.30.255.1";
const OTHER: &str = "172.30.255.9";

/// The components of one cluster.
pub struct Alone<'a> {
    cluster: &'a Cluster,
    running: BTreeMap<&'static str, Running>,
}

impl<'a> Alone<'a> {
    /// In the place of a `coxswain up` that is killed: its certificates, its containerd.
    pub fn take_over(cluster: &'a Cluster) -> anyhow::Result<Self> {
        cluster.kill()?;
        let bin = cluster.settings().dir.join("bin");
        std::fs::create_dir_all(&bin)?;
        for name in COMPONENTS {
            let link = bin.join(name);
            // An earlier run may have made them.
            if !link.exists() {
                std::os::unix::fs::symlink(&cluster.settings().coxswain, link)?;
            }
        }
        let mut alone = Self { cluster, running: BTreeMap::new() };
        for name in COMPONENTS {
            alone.start(name)?;
        }
        alone.ready()?;
        Ok(alone)
    }

    fn start(&mut self, name: &'static str) -> anyhow::Result<()> {
        self.start_with(name, &[])
    }

    /// With these flags besides, or in the place of those of the same name.
    pub fn start_with(&mut self, name: &'static str, more: &[String]) -> anyhow::Result<()> {
        let mut flags = flags(self.cluster.settings(), name);
        flags.extend_from_slice(more);
        let running = self.run(name, &flags)?;
        self.running.insert(name, running);
        Ok(())
    }

    fn run(&self, name: &str, flags: &[String]) -> anyhow::Result<Running> {
        let program = self.cluster.settings().dir.join("bin").join(name);
        let mut command = self.cluster.inside(&program);
        command.args(flags);
        Running::start(command)
    }

    /// kill -9.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let mut running = self.running.remove(name).context("it does not run")?;
        ensure!(running.exited()?.is_none(), "{name} had ended: {}", running.text());
        running.end()
    }

    /// Waits until the node is Ready.
    pub fn ready(&self) -> anyhow::Result<()> {
        eventually("the node is Ready", SOON, || {
            let ready = "jsonpath={range .items[*].status.conditions[?(@.type==\"Ready\")]}{.status}: {.message}{end}";
            let text = self.cluster.kubectl(&["get", "nodes", "-o", ready])?;
            let logs = || self.running.iter().map(|(name, r)| format!("{name}: {}", r.text()));
            ensure!(text.starts_with("True: "), "{text:?}: {}", logs().collect::<String>());
            Ok(())
        })
    }
}

const COMPONENTS: [&str; 5] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];

/// As kubeadm's manifests and units have them, with the folders of this cluster.
fn flags(settings: &Settings, component: &str) -> Vec<String> {
    let dir = &settings.dir;
    let etc = |name: &str| dir.join("etc").join(name).display().to_string();
    let pki = |name: &str| etc(&format!("pki/{name}"));
    let at = |path: PathBuf| path.display().to_string();
    let list: Vec<(&str, String)> = match component {
        "kube-apiserver" => vec![
            ("advertise-address", ADDRESS.into()),
            ("allow-privileged", "true".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("client-ca-file", pki("ca.crt")),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("enable-bootstrap-token-auth", "true".into()),
            ("etcd-servers", ETCD.into()),
            ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
            ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
            ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".into()),
            ("proxy-client-cert-file", pki("front-proxy-client.crt")),
            ("proxy-client-key-file", pki("front-proxy-client.key")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("secure-port", "6443".into()),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
            ("service-account-key-file", pki("sa.pub")),
            ("service-account-signing-key-file", pki("sa.key")),
            ("service-cluster-ip-range", "10.96.0.0/12".into()),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
        ],
        "kube-controller-manager" => vec![
            ("allocate-node-cidrs", "true".into()),
            ("authentication-kubeconfig", etc("controller-manager.conf")),
            ("authorization-kubeconfig", etc("controller-manager.conf")),
            ("bind-address", "127.0.0.1".into()),
            ("client-ca-file", pki("ca.crt")),
            ("cluster-cidr", "10.244.0.0/16".into()),
            ("cluster-name", "kubernetes".into()),
            ("cluster-signing-cert-file", pki("ca.crt")),
            ("cluster-signing-key-file", pki("ca.key")),
            ("controllers", "*,bootstrapsigner,tokencleaner".into()),
            ("kubeconfig", etc("controller-manager.conf")),
            ("leader-elect", "true".into()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("root-ca-file", pki("ca.crt")),
            ("service-account-private-key-file", pki("sa.key")),
            ("service-cluster-ip-range", "10.96.0.0/12".into()),
            ("use-service-account-credentials", "true".into()),
        ],
        "kube-scheduler" => vec![
            ("authentication-kubeconfig", etc("scheduler.conf")),
            ("authorization-kubeconfig", etc("scheduler.conf")),
            ("bind-address", "127.0.0.1".into()),
            ("kubeconfig", etc("scheduler.conf")),
            ("leader-elect", "true".into()),
        ],
        "kubelet" => vec![
            ("bootstrap-kubeconfig", etc("bootstrap-kubelet.conf")),
            ("kubeconfig", etc("kubelet.conf")),
            ("config", at(dir.join("kubelet/config.yaml"))),
            (
                "container-runtime-endpoint",
                format!("unix://{}", dir.join("run/node/containerd.sock").display()),
            ),
            ("hostname-override", "node".into()),
            ("node-ip", ADDRESS.into()),
            ("root-dir", at(dir.join("kubelet"))),
        ],
        _ => vec![
            ("config", at(dir.join("data/nodes/node/kube-proxy.yaml"))),
            ("hostname-override", "node".into()),
        ],
    };
    list.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

fn reachable(ns: &Namespace<'_>, service: &str) -> anyhow::Result<()> {
    let address = ns.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])?;
    let fetch = format!("timeout 3 wget -q -O - http://{address}/hostname");
    eventually("the service answers", SOON, || ns.shell("client", &fetch).map(drop))
}

#[test]
fn each_component_runs_alone_and_survives_being_killed() -> anyhow::Result<()> {
    let settings = Settings::own("alone")?;
    let store = etcd(&settings)?;
    let cluster = Cluster::start(&settings, &["--etcd-servers", ETCD])?;
    let mut alone = Alone::take_over(&cluster)?;
    let ns = cluster.namespace("alone")?;
    ns.apply(&web("web", 3))?;
    ns.rolled_out("deployment/web")?;
    ns.idle("client")?;
    reachable(&ns, "web")?;
    let steady = containers(&ns)?;
    let same = |when: &str| -> anyhow::Result<()> {
        let mut now = containers(&ns)?;
        now.retain(|pod, _| steady.contains_key(pod));
        ensure!(now == steady, "{when}: the same containers: {now:?}, before: {steady:?}");
        Ok(())
    };

    // Writes go on where they were.
    let made = |n: usize| ns.kubectl(&["create", "configmap", &format!("made-{n}")]);
    (0..20).try_for_each(|n| made(n).map(drop))?;
    alone.kill("kube-apiserver")?;
    reachable_without_api(&cluster, &steady)?;
    alone.start("kube-apiserver")?;
    eventually("writes go on", SOON, || made(20))?;
    let maps = ns.kubectl(&["get", "configmaps", "-o", "name"])?;
    for n in 0..=20 {
        ensure!(maps.lines().any(|l| l == format!("configmap/made-{n}")), "{n} is lost");
    }
    same("after the API server's end")?;

    alone.kill("kube-controller-manager")?;
    ns.kubectl(&["scale", "deployment/web", "--replicas=4"])?;
    alone.start("kube-controller-manager")?;
    ns.rolled_out("deployment/web")?;
    same("after the controller manager's end")?;

    alone.kill("kube-scheduler")?;
    ns.apply(&e2e::manifests::idle("late"))?;
    alone.start("kube-scheduler")?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=90s"])?;
    same("after the scheduler's end")?;

    alone.kill("kubelet")?;
    ns.kubectl(&["delete", "pod", "late", "--wait=false"])?;
    ns.apply(&e2e::manifests::idle("later"))?;
    alone.start("kubelet")?;
    ns.kubectl(&["wait", "--for=delete", "pod/late", "--timeout=90s"])?;
    ns.kubectl(&["wait", "--for=condition=Ready", "pod/later", "--timeout=90s"])?;
    same("after the kubelet's end")?;

    alone.kill("kube-proxy")?;
    ns.kubectl(&["expose", "deployment/web", "--name=new", "--port=80", "--target-port=8080"])?;
    alone.start("kube-proxy")?;
    reachable(&ns, "new")?;
    reachable(&ns, "web")?;
    same("after the proxy's end")?;

    another_api_server(&alone, &ns)?;
    drop(ns);
    drop(alone);
    drop(store);
    settings.purge()
}

/// Pods answer while there is no API server.
fn reachable_without_api(
    cluster: &Cluster,
    pods: &BTreeMap<String, (String, String)>,
) -> anyhow::Result<()> {
    for (pod, (_, address)) in pods.iter().filter(|(name, _)| name.starts_with("web-")) {
        let answer = cluster.fetch(&format!("http://{address}:8080/hostname"))?;
        ensure!(answer.trim() == pod, "{answer}");
    }
    Ok(())
}

/// Two API servers on one etcd see each other's writes, and are both known until one is killed.
fn another_api_server(alone: &Alone<'_>, ns: &Namespace<'_>) -> anyhow::Result<()> {
    let cluster = alone.cluster;
    let mut flags = flags(cluster.settings(), "kube-apiserver");
    for flag in &mut flags {
        if flag.starts_with("--advertise-address=") {
            *flag = format!("--advertise-address={OTHER}");
        } else if flag.starts_with("--secure-port=") {
            *flag = "--secure-port=6444".to_owned();
        }
    }
    let mut other = alone.run("kube-apiserver", &flags)?;
    let server = format!("--server=https://{ADDRESS}:6444");
    eventually("the other one is ready", SOON, || {
        cluster.kubectl(&[&server, "get", "--raw", "/readyz"])
    })?;
    let watch = ns.spawn(&["get", "configmaps", "--watch-only", "-o", "name"])?;
    eventually("what is written there is seen here", SOON, || {
        let name = format!("there-{}", std::process::id());
        // Again and again: the watch may begin after the first.
        let _ = ns.kubectl(&[&server, "delete", "configmap", &name]);
        ns.kubectl(&[&server, "create", "configmap", &name])?;
        ensure!(watch.text().contains(&name), "{:?}", watch.text());
        Ok(())
    })?;
    let addresses = || -> anyhow::Result<String> {
        let path = "jsonpath={.endpoints[*].addresses[*]}";
        cluster.kubectl(&["get", "endpointslice", "kubernetes", "-o", path])
    };
    eventually("both are known", SOON, || {
        let text = addresses()?;
        ensure!(text.contains(ADDRESS) && text.contains(OTHER), "{text}");
        Ok(())
    })?;
    other.end()?;
    eventually("the killed one is forgotten", SOON, || {
        let text = addresses()?;
        ensure!(text == ADDRESS, "{text}");
        Ok(())
    })
}
