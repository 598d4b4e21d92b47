//! One node on this machine: its containerd, kubelet, kube-proxy and pod network.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::component::{self, Component, Term};
use crate::containerd::Containerd;
use crate::files;
use crate::network::Network;

/// The sandbox image, among those that every node imports.
pub const PAUSE_IMAGE: &str = "localhost/pause:3.10.1";

/// All that a node needs to know. Written to a file for the nodes that are processes of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: String,
    pub address: IpAddr,
    /// containerd's root, CNI configuration and logs.
    pub data: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    pub kubelet_dir: PathBuf,
    pub pod_logs: PathBuf,
    /// Cgroup above the node's pods.
    pub cgroup: String,
    pub ca: PathBuf,
    pub kubelet_kubeconfig: PathBuf,
    pub kubelet_certificate: PathBuf,
    pub kubelet_key: PathBuf,
    pub proxy_kubeconfig: PathBuf,
    pub pods: IpNet,
    pub services: IpNet,
    pub nodes: Option<IpNet>,
    pub dns: IpAddr,
    pub domain: String,
    pub images: PathBuf,
    pub cni_plugins: PathBuf,
    pub proxy_mode: String,
    /// More flags of the kubelet and the proxy.
    pub kubelet_flags: Vec<String>,
    pub proxy_flags: Vec<String>,
}

impl NodeSpec {
    pub fn containerd(&self) -> Containerd {
        Containerd::of(&self.data, &self.run, &self.cni_plugins)
    }

    fn cni_config(&self) -> PathBuf {
        self.data.join("cni")
    }

    fn network(&self) -> Network {
        Network {
            node: self.name.clone(),
            pods: self.pods,
            services: self.services,
            nodes: self.nodes,
            cni_config: self.cni_config(),
        }
    }

    fn kubelet_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.ca},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self.cgroup,
            "clusterDNS": [self.dns],
            "clusterDomain": self.domain,
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd().socket().display()),
            "failCgroupV1": false,
            "failSwapOn": false,
            // Images come from archives: what is removed cannot be pulled again.
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": self.pod_logs,
            "resolvConf": "/etc/resolv.conf",
            "staticPodPath": self.kubelet_dir.join("manifests"),
            "tlsCertFile": self.kubelet_certificate,
            "tlsPrivateKeyFile": self.kubelet_key,
        })
    }

    fn proxy_config(&self) -> serde_json::Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.proxy_kubeconfig},
            "clusterCIDR": self.pods,
            // Nodes in network namespaces of their own cannot set how much the kernel tracks.
            "conntrack": {"maxPerCore": 0},
            "hostnameOverride": self.name,
            "mode": self.proxy_mode,
        })
    }

    fn write_configs(&self) -> anyhow::Result<(PathBuf, PathBuf)> {
        files::make_dir(&self.kubelet_dir.join("manifests"))?;
        files::make_dir(&self.pod_logs)?;
        let kubelet = self.kubelet_dir.join("config.yaml");
        let proxy = self.data.join("kube-proxy.yaml");
        for (path, config) in [(&kubelet, self.kubelet_config()), (&proxy, self.proxy_config())] {
            files::update_public(path, &(serde_json::to_string_pretty(&config)? + "\n"))?;
        }
        Ok((kubelet, proxy))
    }
}

/// Starts the node's containerd and imports the images: what takes longest, and needs no apiserver.
///
/// # Errors
/// The network cannot be prepared, or containerd does not come up.
pub async fn start_runtime(spec: NodeSpec, shutdown: CancellationToken) -> anyhow::Result<()> {
    for dir in [&spec.data, &spec.run] {
        files::make_dir(dir)?;
    }
    spec.network().prepare().context("pod network")?;
    let containerd = spec.containerd();
    let running = containerd.start().await?;
    containerd.import(&spec.images).await?;
    tokio::spawn(async move { containerd.keep(running, shutdown).await });
    Ok(())
}

/// Runs kubelet, kube-proxy and the pod network until shutdown. The runtime must be started.
///
/// # Errors
/// A config file cannot be written, or a kubeconfig cannot be read.
pub async fn run(spec: NodeSpec, term: Term) -> anyhow::Result<()> {
    let (kubelet, proxy) = spec.write_configs()?;
    // The proxy may list nodes; a kubelet may only read its own.
    let client = client::connect(&spec.proxy_kubeconfig, "coxswain").await?;
    let network = tokio::spawn(spec.network().keep(client, term.shutdown.clone()));
    let flag = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    let mut kubelet_args = vec![
        flag("config", &kubelet.display()),
        flag("kubeconfig", &spec.kubelet_kubeconfig.display()),
        flag("hostname-override", &spec.name),
        flag("node-ip", &spec.address),
        flag("root-dir", &spec.kubelet_dir.display()),
    ];
    let mut proxy_args = vec![flag("config", &proxy.display())];
    kubelet_args.extend(spec.kubelet_flags);
    proxy_args.extend(spec.proxy_flags);
    let kubelet = component::supervise(Component::Kubelet, kubelet_args, term.clone());
    let proxy = component::supervise(Component::KubeProxy, proxy_args, term);
    let (network, (), ()) = tokio::join!(network, kubelet, proxy);
    network.context("pod network")
}
