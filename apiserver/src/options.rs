//! Flags, under upstream's names.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{ArgAction, Parser};
use component::cli::{self, CliError};
use ipnet::IpNet;

use crate::api::Limits;
use crate::pipeline::go_duration;
use crate::services::Routing;

/// Flags that upstream has and that change nothing here, with the reason. They are accepted so
/// that command lines need not be changed.
pub const NO_OPS: &[(&str, &str)] = &[
    ("watch-cache", "reads are always served from watch caches"),
    ("watch-cache-sizes", "the caches size themselves"),
    ("default-watch-cache-size", "the caches size themselves"),
    ("storage-media-type", "built-in kinds are always stored as protobuf"),
    ("etcd-count-metric-poll-period", "counts come from the caches"),
    ("etcd-healthcheck-timeout", "bound to two seconds"),
    ("etcd-readycheck-timeout", "bound to two seconds"),
    ("endpoint-reconciler-type", "endpoints are always reconciled by address"),
    ("goaway-chance", "connections are not told to go away"),
    ("http2-max-streams-per-connection", "the HTTP/2 library's default holds"),
    ("livez-grace-period", "liveness does not wait for hooks"),
    ("shutdown-delay-duration", "shutdown begins at once"),
    ("shutdown-send-retry-after", "connections are drained"),
    ("max-connection-bytes-per-sec", "users are not throttled"),
    ("contention-profiling", "there is no Go runtime"),
    ("profiling", "there is no Go runtime"),
    ("enable-priority-and-fairness", "requests are limited by --max-requests-inflight"),
    ("enable-garbage-collector", "finalizers of garbage collection are always kept"),
    ("delete-collection-workers", "eight deletions run at the same time"),
    ("feature-gates", "features are those that are on by default in this release"),
    ("emulated-version", "only this release is served"),
    ("runtime-config", "all built-in stable versions are served"),
    ("log-flush-frequency", "logs are not buffered"),
    ("logging-format", "logs are text"),
    ("log-json-info-buffer-size", "logs are text"),
    ("vmodule", "see COXSWAIN_LOG"),
    ("allow-metric-labels", "no metric has labels to restrict"),
    ("permit-port-sharing", "the port is bound alone"),
    ("permit-address-sharing", "the address is bound alone"),
    ("kubernetes-service-node-port", "the kubernetes Service is a ClusterIP"),
    ("apiserver-count", "endpoints are reconciled by address"),
    ("audit-log-path", "requests are not audited yet"),
    ("audit-policy-file", "requests are not audited yet"),
    ("audit-log-maxage", "requests are not audited yet"),
    ("audit-log-maxbackup", "requests are not audited yet"),
    ("audit-log-maxsize", "requests are not audited yet"),
    ("tracing-config-file", "requests are not traced"),
    ("external-hostname", "clients use the address that they know"),
    ("tls-min-version", "TLS 1.2 and 1.3 are served"),
    ("tls-cipher-suites", "the TLS library's suites are served"),
    ("cert-dir", "certificates are given by --tls-cert-file"),
    ("service-account-lookup", "service accounts are always looked up"),
    ("kubelet-port", "nodes tell their ports"),
    ("kubelet-timeout", "bound to thirty seconds"),
    ("kubelet-https", "kubelets are always reached over TLS"),
    ("event-burst", "events are not limited"),
    ("lease-reuse-duration-seconds", "leases are shared by minute"),
];

/// Flags that upstream has and that would change what the server does: giving one is an error.
const NOT_IMPLEMENTED: &[&str] = &[
    "encryption-provider-config",
    "authentication-config",
    "authorization-config",
    "authentication-token-webhook-config-file",
    "authorization-webhook-config-file",
    "oidc-issuer-url",
    "oidc-client-id",
    "oidc-ca-file",
    "oidc-username-claim",
    "oidc-groups-claim",
    "egress-selector-config-file",
    "audit-webhook-config-file",
    "admission-control-config-file",
    "service-account-signing-endpoint",
    "tls-sni-cert-key",
    "peer-ca-file",
    "tracing-endpoint",
];

#[derive(Debug, Parser)]
#[command(name = "kube-apiserver", disable_version_flag = true)]
struct Flags {
    #[arg(long, default_value_t = 6443)]
    secure_port: u16,
    #[arg(long, default_value = "0.0.0.0")]
    bind_address: IpAddr,
    #[arg(long)]
    advertise_address: Option<IpAddr>,
    #[arg(long)]
    tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    tls_private_key_file: Option<PathBuf>,
    #[arg(long)]
    client_ca_file: Option<PathBuf>,
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    #[arg(long)]
    service_account_issuer: Vec<String>,
    #[arg(long)]
    service_account_jwks_uri: Option<String>,
    #[arg(long, value_parser = duration)]
    service_account_max_token_expiration: Option<Duration>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = true, action = ArgAction::Set)]
    service_account_extend_token_expiration: bool,
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    #[arg(long, value_delimiter = ',', default_value = "10.0.0.0/24")]
    service_cluster_ip_range: Vec<IpNet>,
    #[arg(long, default_value = "30000-32767", value_parser = port_range)]
    service_node_port_range: (u16, u16),
    #[arg(long, value_delimiter = ',')]
    etcd_servers: Vec<String>,
    #[arg(long)]
    etcd_cafile: Option<PathBuf>,
    #[arg(long)]
    etcd_certfile: Option<PathBuf>,
    #[arg(long)]
    etcd_keyfile: Option<PathBuf>,
    #[arg(long, default_value = "/registry")]
    etcd_prefix: String,
    /// 0: never.
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    etcd_compaction_interval: Duration,
    #[arg(long, default_value = "etcd3")]
    storage_backend: String,
    /// The embedded store's file, instead of --etcd-servers.
    #[arg(long)]
    store_path: Option<PathBuf>,
    #[arg(long, value_delimiter = ',', default_value = "AlwaysAllow")]
    authorization_mode: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    enable_admission_plugins: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    disable_admission_plugins: Vec<String>,
    #[arg(long, default_value_t = 300)]
    default_not_ready_toleration_seconds: i64,
    #[arg(long, default_value_t = 300)]
    default_unreachable_toleration_seconds: i64,
    #[arg(long)]
    kubelet_client_certificate: Option<PathBuf>,
    #[arg(long)]
    kubelet_client_key: Option<PathBuf>,
    #[arg(long)]
    kubelet_certificate_authority: Option<PathBuf>,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP"
    )]
    kubelet_preferred_address_types: Vec<String>,
    #[arg(long)]
    requestheader_client_ca_file: Option<PathBuf>,
    #[arg(long, value_delimiter = ',')]
    requestheader_allowed_names: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_username_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_uid_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_group_headers: Vec<String>,
    #[arg(long, value_delimiter = ',')]
    requestheader_extra_headers_prefix: Vec<String>,
    #[arg(long)]
    proxy_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    proxy_client_key_file: Option<PathBuf>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = ArgAction::Set)]
    allow_privileged: bool,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = true, action = ArgAction::Set)]
    anonymous_auth: bool,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = ArgAction::Set)]
    enable_aggregator_routing: bool,
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: usize,
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: usize,
    #[arg(long, default_value = "1m0s", value_parser = duration)]
    request_timeout: Duration,
    /// Seconds.
    #[arg(long, default_value_t = 1800)]
    min_request_timeout: u64,
    #[arg(long, default_value = "1h0m0s", value_parser = duration)]
    event_ttl: Duration,
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    verbosity: u8,
}

fn duration(text: &str) -> Result<Duration, String> {
    go_duration(text).ok_or_else(|| format!("time: invalid duration {text:?}"))
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let bad = || format!("unable to parse port range: {text}");
    let (first, last) = match (text.split_once('-'), text.split_once('+')) {
        (Some((first, last)), _) => {
            (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?)
        }
        (_, Some((first, count))) => {
            let first: u16 = first.parse().map_err(|_| bad())?;
            let count: u16 = count.parse().map_err(|_| bad())?;
            (first, first.checked_add(count).ok_or_else(bad)?)
        }
        _ => {
            let one = text.parse().map_err(|_| bad())?;
            (one, one)
        }
    };
    if first > last { Err(bad()) } else { Ok((first, last)) }
}

/// Where objects are stored.
#[derive(Clone, Debug)]
pub enum StoreConfig {
    /// A file of this process.
    Embedded(PathBuf),
    /// With how much history is kept, at least; zero: all of it.
    Etcd(store::etcd::Options, Duration),
}

/// `--service-account-*` and `--api-audiences`.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccountConfig {
    /// PEM files of keys that verify.
    pub key_files: Vec<PathBuf>,
    pub signing_key_file: Option<PathBuf>,
    /// The first one signs.
    pub issuers: Vec<String>,
    pub jwks_uri: Option<String>,
    /// Empty: the issuers.
    pub audiences: Vec<String>,
    /// In seconds; 0: no limit.
    pub max_token_seconds: i64,
    pub extend_expiration: bool,
}

/// `--requestheader-*`.
#[derive(Clone, Debug, Default)]
pub struct RequestHeaderConfig {
    pub client_ca_file: Option<PathBuf>,
    pub allowed_names: Vec<String>,
    pub username: Vec<String>,
    pub uid: Vec<String>,
    pub group: Vec<String>,
    pub extra_prefixes: Vec<String>,
}

/// `--kubelet-*`.
#[derive(Clone, Debug, Default)]
pub struct KubeletConfig {
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub certificate_authority: Option<PathBuf>,
    pub address_types: Vec<String>,
}

/// How to run the server.
#[derive(Clone, Debug)]
pub struct Config {
    pub bind: SocketAddr,
    /// What the `kubernetes` Service leads to; absent: the address of the default route.
    pub advertise_address: Option<IpAddr>,
    pub tls_cert_file: PathBuf,
    pub tls_private_key_file: PathBuf,
    pub client_ca_file: Option<PathBuf>,
    pub token_auth_file: Option<PathBuf>,
    pub service_accounts: ServiceAccountConfig,
    pub service_cluster_ip_ranges: Vec<IpNet>,
    pub service_node_ports: (u16, u16),
    pub store: StoreConfig,
    /// Without a slash at its end.
    pub store_prefix: String,
    pub authorization_modes: Vec<String>,
    pub enable_admission_plugins: Vec<String>,
    pub disable_admission_plugins: Vec<String>,
    pub not_ready_toleration_seconds: i64,
    pub unreachable_toleration_seconds: i64,
    pub kubelet: KubeletConfig,
    pub request_header: RequestHeaderConfig,
    pub proxy_client: Option<(PathBuf, PathBuf)>,
    /// How webhooks and aggregated servers are reached.
    pub routing: Routing,
    pub allow_privileged: bool,
    pub anonymous_auth: bool,
    pub enable_bootstrap_token_auth: bool,
    pub limits: Limits,
    pub event_ttl: Duration,
    pub verbosity: u8,
}

impl Config {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// Names the flag that is unknown, not implemented, or wrong; or gives the text of `--help`.
    pub fn from_args(args: &[OsString]) -> Result<Self, CliError> {
        let kept = drop_no_ops(args).map_err(|e| CliError::Usage(e.to_string()))?;
        let flags: Flags = cli::parse("kube-apiserver", &kept)?;
        Self::from_flags(flags).map_err(|e| CliError::Usage(format!("{e:#}")))
    }

    fn from_flags(flags: Flags) -> anyhow::Result<Self> {
        if flags.storage_backend != "etcd3" {
            bail!(
                "--storage-backend invalid, allowed values: etcd3. If not specified, it will default to 'etcd3'"
            );
        }
        let store = match (flags.store_path, flags.etcd_servers.is_empty()) {
            (Some(path), true) => StoreConfig::Embedded(path),
            (Some(_), false) => bail!("--store-path and --etcd-servers exclude each other"),
            (None, true) => bail!("--etcd-servers must be specified"),
            (None, false) => {
                let mut options = store::etcd::Options::new(flags.etcd_servers);
                options.ca_file = flags.etcd_cafile;
                options.cert_file = flags.etcd_certfile;
                options.key_file = flags.etcd_keyfile;
                StoreConfig::Etcd(options, flags.etcd_compaction_interval)
            }
        };
        let issuers = flags.service_account_issuer;
        if issuers.is_empty() {
            bail!("service-account-issuer is a required flag");
        }
        let signing = flags.service_account_signing_key_file;
        let key_files = match (flags.service_account_key_file, &signing) {
            (files, Some(signing)) if files.is_empty() => vec![signing.clone()],
            (files, _) => files,
        };
        let proxy_client = match (flags.proxy_client_cert_file, flags.proxy_client_key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("--proxy-client-cert-file and --proxy-client-key-file go together"),
        };
        let max = flags.service_account_max_token_expiration.unwrap_or_default().as_secs();
        Ok(Self {
            bind: SocketAddr::new(flags.bind_address, flags.secure_port),
            advertise_address: flags.advertise_address,
            tls_cert_file: flags.tls_cert_file.context("--tls-cert-file is required")?,
            tls_private_key_file: flags
                .tls_private_key_file
                .context("--tls-private-key-file is required")?,
            client_ca_file: flags.client_ca_file,
            token_auth_file: flags.token_auth_file,
            service_accounts: ServiceAccountConfig {
                key_files,
                signing_key_file: signing,
                issuers,
                jwks_uri: flags.service_account_jwks_uri,
                audiences: flags.api_audiences,
                max_token_seconds: i64::try_from(max).unwrap_or(0),
                extend_expiration: flags.service_account_extend_token_expiration,
            },
            service_cluster_ip_ranges: flags.service_cluster_ip_range,
            service_node_ports: flags.service_node_port_range,
            store,
            store_prefix: format!("/{}", flags.etcd_prefix.trim_matches('/')),
            authorization_modes: flags.authorization_mode,
            enable_admission_plugins: flags.enable_admission_plugins,
            disable_admission_plugins: flags.disable_admission_plugins,
            not_ready_toleration_seconds: flags.default_not_ready_toleration_seconds,
            unreachable_toleration_seconds: flags.default_unreachable_toleration_seconds,
            kubelet: KubeletConfig {
                client_certificate: flags.kubelet_client_certificate,
                client_key: flags.kubelet_client_key,
                certificate_authority: flags.kubelet_certificate_authority,
                address_types: flags.kubelet_preferred_address_types,
            },
            request_header: RequestHeaderConfig {
                client_ca_file: flags.requestheader_client_ca_file,
                allowed_names: flags.requestheader_allowed_names,
                username: flags.requestheader_username_headers,
                uid: flags.requestheader_uid_headers,
                group: flags.requestheader_group_headers,
                extra_prefixes: flags.requestheader_extra_headers_prefix,
            },
            proxy_client,
            routing: match flags.enable_aggregator_routing {
                true => Routing::Endpoints,
                false => Routing::Cluster,
            },
            allow_privileged: flags.allow_privileged,
            anonymous_auth: flags.anonymous_auth,
            enable_bootstrap_token_auth: flags.enable_bootstrap_token_auth,
            limits: Limits {
                request_timeout: flags.request_timeout,
                min_request_timeout: Duration::from_secs(flags.min_request_timeout),
                max_requests_inflight: flags.max_requests_inflight,
                max_mutating_requests_inflight: flags.max_mutating_requests_inflight,
            },
            event_ttl: flags.event_ttl,
            verbosity: flags.verbosity,
        })
    }

    /// The server's port and certificates, and all else as upstream's flags default, over an
    /// embedded store.
    pub fn embedded(bind: SocketAddr, cert: PathBuf, key: PathBuf, store: PathBuf) -> Self {
        Self {
            bind,
            advertise_address: None,
            tls_cert_file: cert,
            tls_private_key_file: key,
            client_ca_file: None,
            token_auth_file: None,
            service_accounts: ServiceAccountConfig {
                extend_expiration: true,
                ..ServiceAccountConfig::default()
            },
            service_cluster_ip_ranges: Vec::new(),
            service_node_ports: (30000, 32767),
            store: StoreConfig::Embedded(store),
            store_prefix: "/registry".to_owned(),
            authorization_modes: vec!["AlwaysAllow".to_owned()],
            enable_admission_plugins: Vec::new(),
            disable_admission_plugins: Vec::new(),
            not_ready_toleration_seconds: 300,
            unreachable_toleration_seconds: 300,
            kubelet: KubeletConfig {
                address_types: crate::verbs::connect::ADDRESS_TYPES.map(str::to_owned).to_vec(),
                ..KubeletConfig::default()
            },
            request_header: RequestHeaderConfig::default(),
            proxy_client: None,
            routing: Routing::Cluster,
            allow_privileged: true,
            anonymous_auth: true,
            enable_bootstrap_token_auth: false,
            limits: Limits::default(),
            event_ttl: Duration::from_secs(3600),
            verbosity: 0,
        }
    }
}

/// Leaves out the flags that change nothing, with their values.
fn drop_no_ops(args: &[OsString]) -> anyhow::Result<Vec<OsString>> {
    let mut kept = Vec::with_capacity(args.len());
    let mut args = args.iter().peekable();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let name = text.strip_prefix("--").map(|t| t.split('=').next().unwrap_or(t));
        let Some(name) = name else {
            kept.push(arg.clone());
            continue;
        };
        if NOT_IMPLEMENTED.contains(&name) {
            bail!("--{name} is not implemented");
        }
        if let Some((_, reason)) = NO_OPS.iter().find(|(n, _)| *n == name) {
            tracing::info!(flag = name, reason, "flag changes nothing");
            // The value may stand apart.
            let apart = !text.contains('=')
                && args.peek().is_some_and(|next| !next.to_string_lossy().starts_with('-'));
            if apart {
                args.next();
            }
            continue;
        }
        kept.push(arg.clone());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let base =
            ["--tls-cert-file=c", "--tls-private-key-file=k", "--service-account-issuer=https://x"];
        let args: Vec<OsString> = base.iter().chain(args).map(OsString::from).collect();
        Config::from_args(&args).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_are_upstreams() {
        let config = parse(&[
            "--etcd-servers=http://a:1,http://b:2",
            "--secure-port=0",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--allow-privileged=true",
            "--anonymous-auth=false",
            "--watch-cache=true",
            "--feature-gates",
            "Foo=true",
            "--request-timeout=30s",
            "--service-node-port-range=30000-30010",
            "-v",
            "4",
        ])
        .expect("valid flags");
        assert_eq!(config.authorization_modes, ["Node", "RBAC"]);
        assert!(config.allow_privileged && !config.anonymous_auth);
        assert_eq!(config.limits.request_timeout, Duration::from_secs(30));
        assert_eq!((config.service_node_ports, config.verbosity), ((30000, 30010), 4));
        assert!(matches!(&config.store, StoreConfig::Etcd(o, keep)
            if o.endpoints.len() == 2 && *keep == Duration::from_secs(300)));
    }

    #[test]
    fn wrong_flags_are_named() {
        let store = "--store-path=/tmp/x";
        for (args, want) in [
            (&[store, "--foo"][..], "unknown flag: --foo"),
            (
                &[store, "--encryption-provider-config=x"],
                "--encryption-provider-config is not implemented",
            ),
            (&[], "--etcd-servers must be specified"),
        ] {
            assert_eq!(parse(args).err().as_deref(), Some(want));
        }
        assert!(parse(&[store, "--service-node-port-range=9-1"]).is_err());
    }
}
