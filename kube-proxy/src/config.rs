//! Flags and `KubeProxyConfiguration` (kubeproxy.config.k8s.io/v1alpha1).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use component::cli::NoEffect;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use crate::limits::Limits;
use crate::nftables::MASQUERADE_BIT;
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
    /// How this cluster's pods are told from others: ClusterCIDR, NodeCIDR, BridgeInterface or
    /// InterfaceNamePrefix
    #[arg(long)]
    pub detect_local_mode: Option<String>,
    /// The bridge of BridgeInterface
    #[arg(long)]
    pub pod_bridge_interface: Option<String>,
    /// The prefix of InterfaceNamePrefix
    #[arg(long)]
    pub pod_interface_name_prefix: Option<String>,
    /// Bit of a packet's mark that asks for masquerading, 0 to 31
    #[arg(long)]
    pub iptables_masquerade_bit: Option<u32>,
    /// Least connections that the kernel tracks for each core; 0 leaves it
    #[arg(long)]
    pub conntrack_max_per_core: Option<u32>,
    /// Least connections that the kernel tracks, whatever the cores
    #[arg(long)]
    pub conntrack_min: Option<u32>,
    /// Least time that idle established TCP connections are tracked; 0 leaves it
    #[arg(long)]
    pub conntrack_tcp_timeout_established: Option<String>,
    /// Least time that TCP connections are tracked in CLOSE_WAIT; 0 leaves it
    #[arg(long)]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    /// Packets out of a TCP connection's window are tracked with it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,
    /// Least time that UDP flows are tracked; 0 leaves it
    #[arg(long)]
    pub conntrack_udp_timeout: Option<String>,
    /// Least time that answered UDP flows are tracked; 0 leaves it
    #[arg(long)]
    pub conntrack_udp_timeout_stream: Option<String>,
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

/// How pods are told from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// By these addresses.
    Cluster(Vec<IpNet>),
    /// By the addresses of the node's own pods.
    Node,
    Bridge(String),
    Prefix(String),
}

/// Where node ports answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    Primary,
    Ranges(Vec<IpNet>),
}

/// All that is settled.
#[derive(Clone, Debug)]
pub struct Config {
    pub kubeconfig: PathBuf,
    pub master: Option<String>,
    pub node: String,
    pub mode: Mode,
    pub detect_local: DetectLocal,
    pub masquerade_all: bool,
    /// Marks packets to be masqueraded.
    pub mark: u32,
    /// `None`: the mode's default, the primary address (nftables) or all (iptables).
    pub nodeport_addresses: Option<NodePortAddresses>,
    pub limits: Limits,
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
    node_port_addresses: Option<Vec<String>>,
    iptables: Sync,
    nftables: Sync,
    ipvs: Option<serde_json::Map<String, Value>>,
    conntrack: Option<Conntrack>,
    bind_address: Option<IpAddr>,
    bind_address_hard_fail: bool,
    enable_profiling: bool,
    show_hidden_metrics_for_version: String,
    config_sync_period: Option<String>,
    oom_score_adj: Option<i32>,
    port_range: String,
    detect_local_mode: String,
    detect_local: DetectLocalFile,
    winkernel: Value,
    logging: Option<Value>,
    feature_gates: Option<std::collections::BTreeMap<String, bool>>,
    windows_run_as_service: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct DetectLocalFile {
    bridge_interface: String,
    interface_name_prefix: String,
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
    masquerade_bit: Option<u32>,
    localhost_node_ports: Option<bool>,
    sync_period: Option<String>,
    min_sync_period: Option<String>,
}

/// Limits of the kernel's table of connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Conntrack {
    max_per_core: Option<u32>,
    min: Option<u32>,
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
        let addresses = file.node_port_addresses.filter(|texts| !texts.is_empty());
        let addresses = addresses.unwrap_or(self.nodeport_addresses);
        let bind = |file: Option<String>, flag: Option<String>, default: &str, name| {
            // Empty, in a file, is the default.
            socket(
                file.filter(|text| !text.is_empty()).or(flag).as_deref().unwrap_or(default),
                name,
            )
        };
        let tracked = file.conntrack.unwrap_or_default();
        let limits = Limits {
            per_core: tracked.max_per_core.or(self.conntrack_max_per_core).unwrap_or(32_768),
            min: tracked.min.or(self.conntrack_min).unwrap_or(131_072),
            tcp_established: timeout(
                tracked.tcp_established_timeout.or(self.conntrack_tcp_timeout_established),
                86_400,
            )?,
            tcp_close_wait: timeout(
                tracked.tcp_close_wait_timeout.or(self.conntrack_tcp_timeout_close_wait),
                3600,
            )?,
            tcp_be_liberal: tracked
                .tcp_be_liberal
                .or(self.conntrack_tcp_be_liberal)
                .unwrap_or_default(),
            udp: timeout(tracked.udp_timeout.or(self.conntrack_udp_timeout), 0)?,
            udp_stream: timeout(
                tracked.udp_stream_timeout.or(self.conntrack_udp_timeout_stream),
                0,
            )?,
        };
        Ok(Config {
            kubeconfig: kubeconfig.into(),
            master: self.master,
            node: node_name(&pick(&file.hostname_override, self.hostname_override))?,
            mode,
            detect_local: detect_local(
                &pick(&file.detect_local_mode, self.detect_local_mode),
                &pick(&file.cluster_cidr, self.cluster_cidr),
                pick(&file.detect_local.bridge_interface, self.pod_bridge_interface),
                pick(&file.detect_local.interface_name_prefix, self.pod_interface_name_prefix),
            )?,
            mark: mark(own.masquerade_bit.or(self.iptables_masquerade_bit))?,
            limits,
            masquerade_all: if from_file {
                own.masquerade_all
            } else {
                self.masquerade_all.unwrap_or(false)
            },
            nodeport_addresses: nodeports(&addresses)?,
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
        refuse(self.iptables.localhost_node_ports == Some(true), "iptables.localhostNodePorts");
        refuse(self.bind_address_hard_fail, "bindAddressHardFail");
        refuse(self.enable_profiling, "enableProfiling");
        refuse(!self.port_range.is_empty(), "portRange");
        refuse(!says_nothing(&self.winkernel), "winkernel");
        refuse(self.windows_run_as_service, "windowsRunAsService");
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
        refuse(self.logging.as_ref().is_some_and(|l| !logs_as_usual(l)), "logging");
        refuse(!self.show_hidden_metrics_for_version.is_empty(), "showHiddenMetricsForVersion");
        if !refused.is_empty() {
            bail!("KubeProxyConfiguration fields not supported: {}", refused.join(", "));
        }
        // The settings of another mode: without effect, but known.
        for name in self.ipvs.iter().flat_map(|ipvs| ipvs.keys()) {
            if !IPVS.contains(&name.as_str()) {
                bail!("strict decoding error: unknown field \"ipvs.{name}\"");
            }
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

/// Fields of `ipvs`.
const IPVS: &[&str] = &[
    "excludeCIDRs",
    "minSyncPeriod",
    "scheduler",
    "strictARP",
    "syncPeriod",
    "tcpFinTimeout",
    "tcpTimeout",
    "udpTimeout",
];

/// Whether `logging` asks for text, written at once.
fn logs_as_usual(logging: &Value) -> bool {
    let Value::Object(fields) = logging else { return says_nothing(logging) };
    fields.iter().all(|(name, value)| match name.as_str() {
        "format" => matches!(value.as_str(), Some("" | "text")) || value.is_null(),
        // Nothing is held back that would have to be flushed.
        "flushFrequency" => true,
        "verbosity" | "vmodule" | "options" => says_nothing(value),
        _ => false,
    })
}

/// Whether all fields have the values that they have unset: kubeadm writes them all.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(yes) => !yes,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty() || text == "0s" || text == "0",
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(says_nothing),
    }
}

fn cidrs(text: &str) -> anyhow::Result<Vec<IpNet>> {
    let pieces = text.split(',').map(str::trim).filter(|t| !t.is_empty());
    pieces.map(|t| t.parse().with_context(|| format!("clusterCIDR: {t:?} is not a CIDR"))).collect()
}

fn detect_local(
    mode: &str,
    cidr: &str,
    bridge: String,
    prefix: String,
) -> anyhow::Result<DetectLocal> {
    let nets = cidrs(cidr)?;
    let name = |text: String, field: &str| {
        // What the kernel takes as a name: it goes into rules.
        let good = (1..16).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'+');
        if !good {
            bail!("detectLocal.{field}: {text:?} is not an interface's name");
        }
        Ok(text)
    };
    Ok(match mode {
        "" | "ClusterCIDR" => DetectLocal::Cluster(nets),
        "NodeCIDR" => DetectLocal::Node,
        "BridgeInterface" => DetectLocal::Bridge(name(bridge, "bridgeInterface")?),
        "InterfaceNamePrefix" => DetectLocal::Prefix(name(prefix, "interfaceNamePrefix")?),
        other => bail!(
            "unknown detectLocalMode {other:?}: must be ClusterCIDR, NodeCIDR, BridgeInterface or \
             InterfaceNamePrefix"
        ),
    })
}

fn mark(bit: Option<u32>) -> anyhow::Result<u32> {
    let bit = bit.unwrap_or(MASQUERADE_BIT);
    1u32.checked_shl(bit).with_context(|| format!("masqueradeBit: {bit} is not within [0, 31]"))
}

/// Seconds; 0 leaves the kernel's.
fn timeout(text: Option<String>, default: u64) -> anyhow::Result<u64> {
    match text {
        None => Ok(default),
        Some(text) => component::cli::duration(&text)
            .map(|time| time.as_secs())
            .map_err(|error| anyhow::anyhow!("conntrack: {error}")),
    }
}

fn nodeports(texts: &[String]) -> anyhow::Result<Option<NodePortAddresses>> {
    if texts.is_empty() {
        return Ok(None);
    }
    if texts == ["primary"] {
        return Ok(Some(NodePortAddresses::Primary));
    }
    let parse = |t: &String| {
        t.parse().with_context(|| format!("nodePortAddresses: {t:?} is neither a CIDR nor primary"))
    };
    let ranges = texts.iter().map(parse).collect::<anyhow::Result<_>>()?;
    Ok(Some(NodePortAddresses::Ranges(ranges)))
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
            ("winkernel: {enableDSR: true}", "winkernel"),
            ("detectLocalMode: Guess", "unknown detectLocalMode \"Guess\""),
            ("detectLocalMode: BridgeInterface", "detectLocal.bridgeInterface: \"\""),
            ("nftables: {masqueradeBit: 32}", "masqueradeBit: 32"),
            ("conntrack: {udpTimeout: soon}", "conntrack"),
            ("conntrack: {min: -1}", "expected u32"),
            ("nodePortAddresses: [primary, 10.0.0.0/8]", "\"primary\""),
            ("clientConnection: {kubeconfig: /k, qps: 7}", "clientConnection.qps"),
            ("logging: {format: json}", "logging"),
            ("ipvs: {colour: red}", "unknown field \"ipvs.colour\""),
        ] {
            let error = format!("{:#}", file(yaml).expect_err(yaml));
            assert!(error.contains(wanted), "{error}");
        }
        Ok(())
    }

    /// As kubeadm writes it, with every field.
    #[test]
    fn a_file_that_says_nothing_is_the_defaults() -> anyhow::Result<()> {
        let config = file(
            "bindAddress: 0.0.0.0\nbindAddressHardFail: false\n\
             clientConnection: {acceptContentTypes: '', burst: 0, contentType: '', kubeconfig: /k, qps: 0}\n\
             clusterCIDR: 10.244.0.0/16,fd00::/48\nconfigSyncPeriod: 0s\n\
             conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, \
             tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}\n\
             detectLocal: {bridgeInterface: '', interfaceNamePrefix: ''}\ndetectLocalMode: ''\n\
             enableProfiling: false\nhealthzBindAddress: ''\nhostnameOverride: n1\n\
             iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, \
             minSyncPeriod: 0s, syncPeriod: 0s}\n\
             ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: '', strictARP: false}\n\
             logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}}, verbosity: 0}\nmetricsBindAddress: ''\nmode: ''\n\
             nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}\n\
             nodePortAddresses: null\noomScoreAdj: null\nportRange: ''\n\
             showHiddenMetricsForVersion: ''\n\
             winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: '', \
             rootHnsEndpointName: '', sourceVip: ''}",
        )?;
        assert_eq!(config.healthz.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10256"));
        assert_eq!(config.metrics.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:10249"));
        assert_eq!(config.mark, 0x4000);
        let nets = vec!["10.244.0.0/16".parse()?, "fd00::/48".parse()?];
        assert_eq!(config.detect_local, DetectLocal::Cluster(nets));
        assert_eq!((config.limits.per_core, config.limits.min), (32_768, 131_072));
        assert_eq!((config.limits.tcp_established, config.limits.tcp_close_wait), (86_400, 3600));
        Ok(())
    }

    #[test]
    fn pods_are_told_by_what_the_file_says() -> anyhow::Result<()> {
        for (yaml, wanted) in [
            ("detectLocalMode: NodeCIDR", DetectLocal::Node),
            (
                "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
                DetectLocal::Bridge("cni0".into()),
            ),
            (
                "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
                DetectLocal::Prefix("veth".into()),
            ),
        ] {
            assert_eq!(file(yaml)?.detect_local, wanted);
        }
        Ok(())
    }
}
