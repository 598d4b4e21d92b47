//! Flags and `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use component::cli::NoEffect;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::unsupported::Unsupported;

const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// kube-proxy's flags, as upstream names them. With `--config`, the file goes first for whatever
/// it can say.
#[derive(Clone, Debug, Default, clap::Parser)]
#[command(name = "kube-proxy", version)]
pub struct Options {
    /// Path of a KubeProxyConfiguration
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Path of a kubeconfig
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, over what the kubeconfig says
    #[arg(long)]
    pub master: Option<String>,
    /// Name of this node
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// nftables or iptables
    #[arg(long)]
    pub proxy_mode: Option<String>,
    /// Addresses of the cluster's pods: others are masqueraded on the way to a service
    #[arg(long)]
    pub cluster_cidr: Option<String>,
    /// Masquerade all traffic to services
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,
    /// Addresses on which node ports answer: CIDRs, or `primary`
    #[arg(long, value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// Where /healthz is served; empty to serve none
    #[arg(long)]
    pub healthz_bind_address: Option<String>,
    /// Where /metrics is served; empty to serve none
    #[arg(long)]
    pub metrics_bind_address: Option<String>,
    /// How often everything is written anew
    #[arg(long)]
    pub iptables_sync_period: Option<String>,
    /// Least time between two writings
    #[arg(long)]
    pub iptables_min_sync_period: Option<String>,
    #[command(flatten)]
    pub unsupported: NoEffect<Unsupported>,
    /// Remove all rules and end
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cleanup: Option<bool>,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

/// All that is settled.
#[derive(Clone, Debug)]
pub struct Config {
    pub kubeconfig: PathBuf,
    pub master: Option<String>,
    pub node: String,
    pub mode: Mode,
    pub pods: Vec<IpNet>,
    pub masquerade_all: bool,
    /// `None`: the node's own (primary) addresses.
    pub nodeport_addresses: Option<Vec<IpNet>>,
    pub healthz: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub sync_period: Duration,
    pub min_sync_period: Duration,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    hostname_override: String,
    mode: String,
    #[serde(rename = "clusterCIDR")]
    cluster_cidr: String,
    healthz_bind_address: Option<String>,
    metrics_bind_address: Option<String>,
    node_port_addresses: Vec<String>,
    iptables: Sync,
    nftables: Sync,
    ipvs: Option<Value>,
    conntrack: Option<Conntrack>,
    bind_address: Option<IpAddr>,
    bind_address_hard_fail: bool,
    enable_profiling: bool,
    show_hidden_metrics_for_version: String,
    config_sync_period: Option<String>,
    oom_score_adj: Option<i32>,
    port_range: String,
    detect_local_mode: String,
    detect_local: Option<Value>,
    winkernel: Option<Value>,
    logging: Option<Value>,
    feature_gates: Option<std::collections::BTreeMap<String, bool>>,
    window_runs_in_container: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct ClientConnection {
    kubeconfig: String,
    accept_content_types: String,
    content_type: String,
    qps: Option<f64>,
    burst: Option<i32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Sync {
    masquerade_all: bool,
    masquerade_bit: Option<i32>,
    localhost_node_ports: Option<bool>,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
}

/// Limits of the kernel's table: left as they are unless a number is given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Conntrack {
    max_per_core: Option<i32>,
    min: Option<i32>,
    tcp_established_timeout: Option<String>,
    tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
    udp_timeout: Option<String>,
    udp_stream_timeout: Option<String>,
}

impl Options {
    /// Settles flags and file.
    ///
    /// # Errors
    /// Names the flag or field that is wrong or not supported.
    pub fn settle(self) -> anyhow::Result<Config> {
        let file: File = match &self.config {
            Some(path) => component::config::load(path, &[VERSION], "KubeProxyConfiguration")?,
            None => File::default(),
        };
        file.check()?;
        let from_file = self.config.is_some();
        let pick = |file: &str, flag: Option<String>| match file {
            "" => flag.unwrap_or_default(),
            _ => file.to_owned(),
        };
        let kubeconfig = self.kubeconfig.map(|p| p.display().to_string());
        let kubeconfig = pick(&file.client_connection.kubeconfig, kubeconfig);
        if kubeconfig.is_empty() && self.cleanup != Some(true) {
            bail!("--kubeconfig, or clientConnection.kubeconfig in --config, is needed");
        }
        let mode = mode(&pick(&file.mode, self.proxy_mode))?;
        let own = if mode == Mode::Nftables { &file.nftables } else { &file.iptables };
        let addresses = match file.node_port_addresses.is_empty() {
            true => &self.nodeport_addresses,
            false => &file.node_port_addresses,
        };
        let bind = |file: Option<String>, flag: Option<String>, default: &str, name| {
            socket(file.or(flag).as_deref().unwrap_or(default), name)
        };
        Ok(Config {
            kubeconfig: kubeconfig.into(),
            master: self.master,
            node: node_name(&pick(&file.hostname_override, self.hostname_override))?,
            mode,
            pods: cidrs(&pick(&file.cluster_cidr, self.cluster_cidr))?,
            masquerade_all: if from_file {
                own.masquerade_all
            } else {
                self.masquerade_all.unwrap_or(false)
            },
            nodeport_addresses: nodeports(addresses)?,
            healthz: bind(
                file.healthz_bind_address,
                self.healthz_bind_address,
                "0.0.0.0:10256",
                "healthzBindAddress",
            )?,
            metrics: bind(
                file.metrics_bind_address,
                self.metrics_bind_address,
                "127.0.0.1:10249",
                "metricsBindAddress",
            )?,
            sync_period: duration(
                own.sync_period.as_deref().or(self.iptables_sync_period.as_deref()),
                30_000,
            )?,
            min_sync_period: duration(
                own.min_sync_period.as_deref().or(self.iptables_min_sync_period.as_deref()),
                10,
            )?,
        })
    }
}

impl File {
    /// Refuses what is asked for and not done.
    fn check(&self) -> anyhow::Result<()> {
        let mut refused = Vec::new();
        let mut refuse = |set: bool, field: &'static str| {
            if set {
                refused.push(field);
            }
        };
        let masquerade_bit = |s: &Sync| s.masquerade_bit.is_some_and(|bit| bit != 14);
        refuse(masquerade_bit(&self.iptables) || masquerade_bit(&self.nftables), "masqueradeBit");
        refuse(self.iptables.localhost_node_ports == Some(true), "iptables.localhostNodePorts");
        refuse(self.bind_address_hard_fail, "bindAddressHardFail");
        refuse(self.enable_profiling, "enableProfiling");
        refuse(!self.port_range.is_empty(), "portRange");
        refuse(self.detect_local.is_some(), "detectLocal");
        refuse(!matches!(self.detect_local_mode.as_str(), "" | "ClusterCIDR"), "detectLocalMode");
        refuse(self.winkernel.is_some(), "winkernel");
        refuse(self.window_runs_in_container.is_some(), "windowsRunAsService");
        let connection = &self.client_connection;
        refuse(
            !matches!(
                connection.content_type.as_str(),
                "" | "application/json" | "application/vnd.kubernetes.protobuf"
            ) || !connection.accept_content_types.is_empty(),
            "clientConnection.contentType",
        );
        refuse(connection.qps.is_some_and(|n| n != 0.0 && n != 5.0), "clientConnection.qps");
        refuse(connection.burst.is_some_and(|n| n != 0 && n != 10), "clientConnection.burst");
        let bound = self.bind_address.is_some_and(|a| !a.is_unspecified());
        refuse(bound, "bindAddress");
        refuse(self.oom_score_adj.is_some_and(|n| n != -999), "oomScoreAdj");
        let period = self.config_sync_period.as_deref().unwrap_or_default();
        refuse(!matches!(period, "" | "0s" | "15m0s" | "15m"), "configSyncPeriod");
        refuse(self.feature_gates.as_ref().is_some_and(|g| !g.is_empty()), "featureGates");
        refuse(!self.show_hidden_metrics_for_version.is_empty(), "showHiddenMetricsForVersion");
        if let Some(c) = &self.conntrack {
            let limits = [c.max_per_core, c.min].into_iter().flatten().any(|n| n != 0);
            let timeouts = [
                &c.tcp_established_timeout,
                &c.tcp_close_wait_timeout,
                &c.udp_timeout,
                &c.udp_stream_timeout,
            ];
            let timeouts =
                timeouts.into_iter().flatten().any(|t| !matches!(t.as_str(), "0" | "0s"));
            refuse(limits || timeouts || c.tcp_be_liberal == Some(true), "conntrack");
        }
        if !refused.is_empty() {
            bail!("KubeProxyConfiguration fields not supported: {}", refused.join(", "));
        }
        Ok(())
    }
}

fn mode(text: &str) -> anyhow::Result<Mode> {
    match text {
        "" | "nftables" => Ok(Mode::Nftables),
        "iptables" => Ok(Mode::Iptables),
        "ipvs" => bail!("proxy mode \"ipvs\" is not supported yet"),
        other => bail!("unknown proxy mode {other:?}: must be nftables or iptables"),
    }
}

fn node_name(given: &str) -> anyhow::Result<String> {
    if !given.is_empty() {
        return Ok(given.trim().to_lowercase());
    }
    let name = nix::unistd::gethostname().context("the host's name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

fn cidrs(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let pieces = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    pieces.map(|t| t.parse().with_context(|| format!("clusterCIDR: {t:?} is not a CIDR"))).collect()
}

fn nodeports(texts: &[String]) -> anyhow::Result<Option<Vec<IpNet>>> {
    if texts.is_empty() || texts == ["primary"] {
        return Ok(None);
    }
    let parse = |t: &String| {
        t.parse().with_context(|| format!("nodePortAddresses: {t:?} is neither a CIDR nor primary"))
    };
    texts.iter().map(parse).collect::<anyhow::Result<_>>().map(Some)
}

fn socket(text: &str, name: &str) -> anyhow::Result<Option<SocketAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(port) = text.strip_prefix(':') {
        let port = port.parse().with_context(|| format!("{name}: {text:?}"))?;
        return Ok(Some((Ipv4Addr::UNSPECIFIED, port).into()));
    }
    text.parse().map(Some).with_context(|| format!("{name}: {text:?} is not address:port"))
}

fn duration(text: Option<&str>, default_ms: u64) -> anyhow::Result<Duration> {
    let default = Duration::from_millis(default_ms);
    match text {
        None | Some("" | "0" | "0s") => Ok(default),
        Some(text) => {
            let span: jiff::SignedDuration =
                text.parse().with_context(|| format!("{text:?} is not a duration"))?;
            Duration::try_from(span).with_context(|| format!("{text:?} is negative"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(yaml: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config");
        let own = yaml.contains("clientConnection");
        let connection = if own { "" } else { "clientConnection: {kubeconfig: /k}\n" };
        let head = format!("apiVersion: {VERSION}\nkind: KubeProxyConfiguration\n{connection}");
        std::fs::write(&path, format!("{head}{yaml}"))?;
        Options { config: Some(path), ..Options::default() }.settle()
    }

    #[test]
    fn a_file_is_read_strictly() -> anyhow::Result<()> {
        let config = file(
            "mode: iptables\nhostnameOverride: N1\nclusterCIDR: 10.244.0.0/16\niptables: {minSyncPeriod: 1s}",
        )?;
        assert_eq!((config.mode, config.node.as_str()), (Mode::Iptables, "n1"));
        assert_eq!(config.min_sync_period, Duration::from_secs(1));
        for (yaml, wanted) in [
            ("hostnameOveride: x", "hostnameOveride"),
            ("mode: ebpf", "unknown proxy mode \"ebpf\""),
            ("enableProfiling: true", "enableProfiling"),
            ("clusterCIDR: everything", "\"everything\" is not a CIDR"),
            ("healthzBindAddress: nowhere", "healthzBindAddress"),
            ("bindAddress: 10.0.0.1", "bindAddress"),
            ("oomScoreAdj: -1", "oomScoreAdj"),
            ("featureGates: {X: true}", "featureGates"),
            ("clientConnection: {kubeconfig: /k, qps: 7}", "clientConnection.qps"),
        ] {
            let error = format!("{:#}", file(yaml).expect_err(yaml));
            assert!(error.contains(wanted), "{error}");
        }
        Ok(())
    }
}
