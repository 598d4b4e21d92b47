//! `coxswain up`: a cluster on this machine.
//!
//! Control plane and first node are one process. Further nodes are processes of their own in
//! network namespaces, joined by a bridge. Everything finds what an earlier run left.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use ::component::{logs, shutdown};
use anyhow::{Context, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::addons::{self, Dns};
use crate::component::{self, Component, Term};
use crate::credentials::Credentials;
use crate::further::{self, Further};
use crate::layout::Layout;
use crate::netns;
use crate::node::{self, NodeSpec};
use crate::pki::{self, Ca, Pki};
use crate::preflight;
use crate::process::Process;
use crate::{files, runtime};

/// Port of the DNS server on the first node; the service has 53.
const DNS_PORT: u16 = 10053;

#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    layout: Layout,
    /// Nodes to run; all but the first live in network namespaces of this machine
    #[arg(long, default_value_t = 1)]
    nodes: u32,
    /// Put the first node and the control plane into a network namespace too, with no way out
    #[arg(long)]
    isolated: bool,
    /// Name of the first node; others have -2, -3 ... behind it [default: the host's name]
    #[arg(long)]
    node_name: Option<String>,
    /// Address that the API server and the first node are known by [default: the address of the
    /// default route, or of the nodes' bridge]
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    /// Port of the API server
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    /// Addresses of services
    #[arg(long, default_value = "10.96.0.0/12")]
    service_cidr: IpNet,
    /// Addresses of pods
    #[arg(long, default_value = "10.244.0.0/16")]
    pod_cidr: IpNet,
    /// Addresses of nodes on this machine's bridge
    #[arg(long, default_value = "172.30.255.0/24")]
    node_cidr: IpNet,
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// How kube-proxy translates: nftables or iptables
    #[arg(long, default_value = "nftables")]
    proxy_mode: String,
    /// Use this etcd instead of the embedded store (comma-separated URLs)
    #[arg(long, default_value = "")]
    etcd_servers: String,
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    etcd_keyfile: Option<PathBuf>,
    /// OCI archives that every node imports [default: images below the data folder]
    #[arg(long)]
    images: Option<PathBuf>,
    /// More flags for a component: kube-apiserver=--v=4
    #[arg(long = "extra", value_name = "COMPONENT=FLAG", value_parser = extra)]
    extra: Vec<(Component, String)>,
    /// Verbosity of the logs
    #[arg(short = 'v', default_value_t = 0)]
    v: u8,
}

/// A component and a flag for it.
fn extra(text: &str) -> Result<(Component, String), String> {
    let (name, flag) = text.split_once('=').ok_or("is not COMPONENT=FLAG")?;
    let component = Component::by_name(name).ok_or_else(|| {
        format!("{name:?} is none of {}", Component::ALL.map(Component::name).join(", "))
    })?;
    Ok((component, flag.to_owned()))
}

impl Args {
    fn extra(&self, component: Component) -> Vec<String> {
        let of = self.extra.iter().filter(|(c, _)| *c == component);
        of.map(|(_, flag)| flag.clone()).collect()
    }
}

/// What runs, for `status` and `down`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// As it was started: who asks later may have other flags.
    pub layout: Layout,
    pub up: Process,
    /// Network namespace of the control plane and the first node; empty for the host's.
    pub netns: String,
    pub server: String,
    pub nodes: Vec<NodeRecord>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: String,
    pub netns: String,
    pub run: PathBuf,
    pub data: PathBuf,
    pub kubelet_dir: PathBuf,
}

/// Prints each step with its time.
struct Steps {
    start: Instant,
    last: Instant,
}

impl Steps {
    fn new() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    fn done(&mut self, what: &str) {
        let now = Instant::now();
        println!("{:>7.3} s  {what}", (now - self.last).as_secs_f64());
        self.last = now;
    }

    fn total(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

/// What is settled before anything runs.
struct Plan {
    args: Args,
    address: IpAddr,
    dns: IpAddr,
    nodes: Vec<NodeSpec>,
    pki: Pki,
}

pub fn main(args: Args) -> anyhow::Result<()> {
    logs::init(args.v);
    let mut steps = Steps::new();
    preflight::node()?;
    files::make_dir(&args.layout.run)?;
    let _lock = lock(&args.layout)?;
    if args.isolated {
        let name = args.layout.netns();
        netns::create(&name)?;
        netns::enter(&name)?;
    }
    let bridged = args.isolated || args.nodes > 1;
    if bridged {
        further::bridge(&args.node_cidr, args.isolated)?;
    }
    let address = match args.advertise_address {
        Some(address) => address,
        None if bridged => pki::nth_address(&args.node_cidr.to_string(), 1)?,
        None => default_address()?,
    };
    preflight::port(SocketAddr::new(address, args.secure_port), "--secure-port")?;
    let plan = Plan::new(args, address, bridged)?;
    plan.credentials().ensure(OffsetDateTime::now_utc())?;
    steps.done("checks, certificates and keys");
    runtime()?.block_on(plan.run(steps))
}

fn lock(layout: &Layout) -> anyhow::Result<Flock<File>> {
    let path = layout.lock();
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err(_) => bail!("a cluster is already running from {}", layout.run.display()),
    }
}

/// The address that the default route sends from.
fn default_address() -> anyhow::Result<IpAddr> {
    let why = "cannot tell this machine's address; give --advertise-address";
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context(why)?;
    // Connecting a UDP socket chooses a route and sends nothing (RFC 5737 address).
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).context(why)?;
    Ok(socket.local_addr().context(why)?.ip())
}

impl Plan {
    fn new(args: Args, address: IpAddr, bridged: bool) -> anyhow::Result<Self> {
        let dns = pki::nth_address(&args.service_cidr.to_string(), 10)?;
        let cni_plugins = preflight::cni_plugins().context("CNI plugins")?;
        let host = match &args.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().to_lowercase(),
        };
        let layout = &args.layout;
        let node = |index: u32| -> anyhow::Result<NodeSpec> {
            let first = index == 1;
            let name = if first { host.clone() } else { format!("{host}-{index}") };
            let data = layout.node_data(&name);
            let credentials = data.join("credentials");
            Ok(NodeSpec {
                address: match first {
                    true => address,
                    false => pki::nth_address(&args.node_cidr.to_string(), index)?,
                },
                run: layout.node_run(&name),
                kubelet_dir: if first { layout.kubelet.clone() } else { data.join("kubelet") },
                pod_logs: if first { layout.pod_logs.clone() } else { data.join("pod-logs") },
                cgroup: format!("{}/{name}", layout.cgroup()),
                ca: Pki::new(layout.pki()).ca_certificate(Ca::Cluster),
                kubelet_kubeconfig: match first {
                    true => layout.kubeconfig("kubelet"),
                    false => credentials.join("kubelet.conf"),
                },
                kubelet_certificate: credentials.join("kubelet.crt"),
                kubelet_key: credentials.join("kubelet.key"),
                proxy_kubeconfig: layout.kubeconfig("kube-proxy"),
                pods: args.pod_cidr,
                services: args.service_cidr,
                nodes: bridged.then_some(args.node_cidr),
                dns,
                domain: args.cluster_domain.clone(),
                images: args.images.clone().unwrap_or_else(|| layout.images()),
                cni_plugins: cni_plugins.clone(),
                proxy_mode: args.proxy_mode.clone(),
                kubelet_flags: args.extra(Component::Kubelet),
                proxy_flags: args.extra(Component::KubeProxy),
                name,
                data,
            })
        };
        let nodes = (1..=args.nodes.max(1)).map(node).collect::<anyhow::Result<_>>()?;
        let pki = Pki::new(layout.pki());
        Ok(Self { args, address, dns, nodes, pki })
    }

    fn server(&self) -> String {
        format!("https://{}", SocketAddr::new(self.address, self.args.secure_port))
    }

    /// What certificates, keys and kubeconfigs are made from.
    fn credentials(&self) -> Credentials {
        Credentials {
            layout: self.args.layout.clone(),
            pki: self.pki.clone(),
            nodes: self.nodes.clone(),
            address: self.address,
            server: self.server(),
            services: self.args.service_cidr.to_string(),
            domain: self.args.cluster_domain.clone(),
        }
    }

    fn record(&self) -> anyhow::Result<()> {
        let layout = &self.args.layout;
        let main = if self.args.isolated { layout.netns() } else { String::new() };
        let nodes = self.nodes.iter().enumerate().map(|(i, node)| NodeRecord {
            name: node.name.clone(),
            netns: if i == 0 { main.clone() } else { layout.node_netns(&node.name) },
            run: node.run.clone(),
            data: node.data.clone(),
            kubelet_dir: node.kubelet_dir.clone(),
        });
        let record = Record {
            layout: layout.clone(),
            up: Process::own()?,
            netns: main.clone(),
            server: self.server(),
            nodes: nodes.collect(),
        };
        files::write_public(&layout.record(), &serde_json::to_string_pretty(&record)?)
    }

    async fn run(self, mut steps: Steps) -> anyhow::Result<()> {
        let shutdown = shutdown::on_signal()?;
        self.record()?;
        let (term, renewed) = Term::new(shutdown.clone());
        tokio::spawn(self.credentials().keep(renewed, shutdown.clone()));
        let supervise = |component: Component, args: Vec<String>| {
            tokio::spawn(component::supervise(component, args, term.clone()))
        };
        let mut tasks = vec![supervise(Component::ApiServer, self.apiserver_args())];
        let first = self.nodes[0].clone();
        let runtime = tokio::spawn(node::start_runtime(first.clone(), shutdown.clone()));
        let admin = client::connect(&self.args.layout.super_admin_kubeconfig(), "coxswain").await?;
        wait_ready(&admin, &shutdown).await?;
        steps.done("API server answers");
        tasks.push(supervise(Component::ControllerManager, self.controller_manager_args()));
        tasks.push(supervise(Component::Scheduler, self.scheduler_args()));
        let dns = Dns { service: self.dns, server: self.address, port: DNS_PORT };
        addons::apply(&admin, dns).await.context("addons")?;
        // Its rights are an addon too.
        tasks.push(supervise(Component::Dns, self.dns_args()));
        steps.done("controllers, scheduler, DNS");
        runtime.await?.context("container runtime")?;
        steps.done("containerd answers, images imported");
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        tasks.push(tokio::spawn(run_node(first, term.clone())));
        for node in &self.nodes[1..] {
            let further = self.further(node);
            further.prepare().with_context(|| format!("node {}", node.name))?;
            tasks.push(tokio::spawn(further.keep(term.clone())));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            // Only the first one's kubelet is sure to start with us.
            let since = if index == 0 { since } else { Duration::ZERO };
            tokio::select! {
                () = node_ready(&admin, &node.name, since) => {}
                () = shutdown.cancelled() => break,
            }
            steps.done(&format!("node {} is Ready", node.name));
        }
        if !shutdown.is_cancelled() {
            println!("{:>7.3} s  in all", steps.total());
            println!("\nUse it:\n  {}", self.usage());
        }
        shutdown.cancelled().await;
        for task in tasks {
            // A task that crashed has been reported by its supervisor.
            let _ = tokio::time::timeout(Duration::from_secs(20), task).await;
        }
        Ok(())
    }

    fn usage(&self) -> String {
        let config = self.args.layout.admin_kubeconfig();
        let kubectl = format!("kubectl --kubeconfig {} get nodes", config.display());
        match self.args.isolated {
            true => format!(
                "nsenter --net={} {kubectl}",
                netns::path(&self.args.layout.netns()).display()
            ),
            false => kubectl,
        }
    }

    fn extra(&self, component: Component) -> Vec<String> {
        self.args.extra(component)
    }

    fn apiserver_args(&self) -> Vec<String> {
        let (pki, args) = (&self.pki, &self.args);
        let mut flags = vec![
            ("advertise-address", self.address.to_string()),
            ("allow-privileged", "true".into()),
            ("authorization-mode", "Node,RBAC".into()),
            ("client-ca-file", text(pki.ca_certificate(Ca::Cluster))),
            ("enable-admission-plugins", "NodeRestriction".into()),
            ("enable-bootstrap-token-auth", "true".into()),
            ("kubelet-certificate-authority", text(pki.ca_certificate(Ca::Cluster))),
            ("kubelet-client-certificate", text(pki.certificate("apiserver-kubelet-client"))),
            ("kubelet-client-key", text(pki.key("apiserver-kubelet-client"))),
            ("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname".into()),
            ("proxy-client-cert-file", text(pki.certificate("front-proxy-client"))),
            ("proxy-client-key-file", text(pki.key("front-proxy-client"))),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-client-ca-file", text(pki.ca_certificate(Ca::FrontProxy))),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("secure-port", args.secure_port.to_string()),
            (
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", args.cluster_domain),
            ),
            ("service-account-key-file", text(pki.dir.join("sa.pub"))),
            ("service-account-signing-key-file", text(pki.key("sa"))),
            ("service-cluster-ip-range", args.service_cidr.to_string()),
            ("tls-cert-file", text(pki.certificate("apiserver"))),
            ("tls-private-key-file", text(pki.key("apiserver"))),
        ];
        if args.etcd_servers.is_empty() {
            flags.push(("store-path", text(args.layout.store())));
        } else {
            flags.push(("etcd-servers", args.etcd_servers.clone()));
            let tls = [
                ("etcd-cafile", &args.etcd_cafile),
                ("etcd-certfile", &args.etcd_certfile),
                ("etcd-keyfile", &args.etcd_keyfile),
            ];
            let given = |(name, path): (_, &Option<PathBuf>)| Some((name, text(path.clone()?)));
            flags.extend(tls.into_iter().filter_map(given));
        }
        render(flags).chain(self.extra(Component::ApiServer)).collect()
    }

    fn controller_manager_args(&self) -> Vec<String> {
        let (pki, layout) = (&self.pki, &self.args.layout);
        let kubeconfig = text(layout.kubeconfig("controller-manager"));
        let flags = vec![
            ("allocate-node-cidrs", "true".into()),
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("client-ca-file", text(pki.ca_certificate(Ca::Cluster))),
            ("cluster-cidr", self.args.pod_cidr.to_string()),
            ("cluster-signing-cert-file", text(pki.ca_certificate(Ca::Cluster))),
            ("cluster-signing-key-file", text(pki.ca_key(Ca::Cluster))),
            ("kubeconfig", kubeconfig),
            ("leader-elect", "false".into()),
            ("root-ca-file", text(pki.ca_certificate(Ca::Cluster))),
            ("service-account-private-key-file", text(pki.key("sa"))),
            ("service-cluster-ip-range", self.args.service_cidr.to_string()),
            ("use-service-account-credentials", "true".into()),
        ];
        render(flags).chain(self.extra(Component::ControllerManager)).collect()
    }

    fn scheduler_args(&self) -> Vec<String> {
        let kubeconfig = text(self.args.layout.kubeconfig("scheduler"));
        let flags = vec![
            ("authentication-kubeconfig", kubeconfig.clone()),
            ("authorization-kubeconfig", kubeconfig.clone()),
            ("bind-address", "127.0.0.1".into()),
            ("client-ca-file", text(self.pki.ca_certificate(Ca::Cluster))),
            ("kubeconfig", kubeconfig),
            ("leader-elect", "false".into()),
        ];
        render(flags).chain(self.extra(Component::Scheduler)).collect()
    }

    fn dns_args(&self) -> Vec<String> {
        let flags = vec![
            ("kubeconfig", text(self.args.layout.kubeconfig("cluster-dns"))),
            ("listen", SocketAddr::new(self.address, DNS_PORT).to_string()),
            ("cluster-domain", self.args.cluster_domain.clone()),
            ("service-address", self.dns.to_string()),
        ];
        render(flags).chain(self.extra(Component::Dns)).collect()
    }

    fn further(&self, node: &NodeSpec) -> Further {
        Further {
            node: node.clone(),
            netns: self.args.layout.node_netns(&node.name),
            nodes: self.args.node_cidr,
            v: self.args.v,
        }
    }
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

fn render(flags: Vec<(&'static str, String)>) -> impl Iterator<Item = String> {
    flags.into_iter().map(|(name, value)| format!("--{name}={value}"))
}

async fn run_node(spec: NodeSpec, term: Term) {
    if let Err(error) = node::run(spec, term).await {
        tracing::error!(error = format!("{error:#}"), "node");
    }
}

async fn wait_ready(client: &kube::Client, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let request = http::Request::get("/readyz").body(Vec::new())?;
        let error = match client.request_text(request).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if shutdown.is_cancelled() || Instant::now() > deadline {
            return Err(error).context("the API server did not become ready");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a node's kubelet says that it is ready. What it said before a time (since 1970) does
/// not count: the store may remember a node as it was long ago.
async fn node_ready(client: &kube::Client, name: &str, since: Duration) {
    let nodes: Api<Node> = Api::all(client.clone());
    let since = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let ready = move |node: Option<&Node>| {
        let conditions = node.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| {
            let said = c.last_heartbeat_time.as_ref().map_or(0, |at| at.0.as_second());
            c.type_ == "Ready" && c.status == "True" && said >= since
        })
    };
    while kube::runtime::wait::await_condition(nodes.clone(), name, &ready).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
