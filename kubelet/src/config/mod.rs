//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1), read strictly: what has no effect here
//! is refused unless it asks for what this kubelet does anyway ([`support`]).

pub mod support;

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::duration::{self, GoDuration};
use crate::pressure::{self, Threshold};
use crate::references::Strategy;
use crate::shutdown::plan::{self, Stage};

/// Fields of which upstream takes an empty value for the default.
const EMPTY_IS_DEFAULT: &[&str] = &[
    "address",
    "authentication.webhook.cacheTTL",
    "authorization.mode",
    "authorization.webhook.cacheAuthorizedTTL",
    "authorization.webhook.cacheUnauthorizedTTL",
    "cgroupDriver",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxSize",
    "containerRuntimeEndpoint",
    "eventBurst",
    "evictionHard",
    "evictionPressureTransitionPeriod",
    "fileCheckFrequency",
    "healthzBindAddress",
    "imageMinimumGCAge",
    "maxPods",
    "nodeLeaseDurationSeconds",
    "nodeStatusReportFrequency",
    "nodeStatusUpdateFrequency",
    "podLogsDir",
    "port",
    "registryBurst",
    "runtimeRequestTimeout",
    "streamingConnectionIdleTimeout",
    "syncFrequency",
];

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct X509 {
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WebhookAuthentication {
    pub enabled: bool,
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: GoDuration::secs(120) }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Anonymous {
    pub enabled: bool,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Authentication {
    pub x509: X509,
    pub webhook: WebhookAuthentication,
    pub anonymous: Anonymous,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WebhookAuthorization {
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self {
            cache_authorized_ttl: GoDuration::secs(300),
            cache_unauthorized_ttl: GoDuration::secs(30),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Authorization {
    pub mode: String,
    pub webhook: WebhookAuthorization,
}

impl Default for Authorization {
    fn default() -> Self {
        Self { mode: "Webhook".into(), webhook: WebhookAuthorization::default() }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisterTaint {
    pub key: String,
    #[serde(default)]
    pub value: String,
    pub effect: String,
    #[serde(default)]
    pub time_added: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CrashLoopBackOff {
    /// The longest pause between restarts, from 1 s to 5 min.
    pub max_container_restart_period: Option<GoDuration>,
}

/// The fields that this kubelet acts on, with upstream's defaults.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeletConfiguration {
    pub static_pod_path: String,
    pub pod_logs_dir: String,
    pub sync_frequency: GoDuration,
    pub file_check_frequency: GoDuration,
    pub address: String,
    pub port: u16,
    pub healthz_port: u16,
    pub healthz_bind_address: String,
    pub tls_cert_file: String,
    pub tls_private_key_file: String,
    /// Keep the client certificate current.
    pub rotate_certificates: bool,
    /// Ask the cluster for a serving certificate.
    #[serde(rename = "serverTLSBootstrap")]
    pub server_tls_bootstrap: bool,
    pub authentication: Authentication,
    pub authorization: Authorization,
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<String>,
    pub cluster_domain: String,
    pub streaming_connection_idle_timeout: GoDuration,
    pub node_status_update_frequency: GoDuration,
    pub node_status_report_frequency: GoDuration,
    pub node_lease_duration_seconds: i32,
    pub cgroup_root: String,
    #[serde(rename = "cgroupsPerQOS")]
    pub cgroups_per_qos: bool,
    pub cgroup_driver: String,
    pub max_pods: i32,
    pub pods_per_core: i32,
    pub pod_pids_limit: i64,
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    pub resolv_conf: String,
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    pub fail_swap_on: bool,
    pub container_log_max_size: String,
    pub container_log_max_files: i32,
    pub container_log_monitor_interval: GoDuration,
    pub config_map_and_secret_change_detection_strategy: String,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub seccomp_default: bool,
    pub register_with_taints: Vec<RegisterTaint>,
    pub register_node: bool,
    pub container_runtime_endpoint: String,
    pub image_service_endpoint: String,
    pub serialize_image_pulls: Option<bool>,
    pub max_parallel_image_pulls: Option<i32>,
    #[serde(rename = "providerID")]
    pub provider_id: String,
    pub enable_server: bool,
    pub enable_debugging_handlers: bool,
    pub read_only_port: u16,
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
    pub event_burst: i32,
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    pub registry_burst: i32,
    pub node_status_max_images: i32,
    pub runtime_request_timeout: GoDuration,
    #[serde(rename = "imageGCHighThresholdPercent")]
    pub image_gc_high_threshold_percent: i32,
    #[serde(rename = "imageGCLowThresholdPercent")]
    pub image_gc_low_threshold_percent: i32,
    #[serde(rename = "imageMinimumGCAge")]
    pub image_minimum_gc_age: GoDuration,
    #[serde(rename = "imageMaximumGCAge")]
    pub image_maximum_gc_age: GoDuration,
    pub enforce_node_allocatable: Vec<String>,
    pub allowed_unsafe_sysctls: Vec<String>,
    #[serde(rename = "failCgroupV1")]
    pub fail_cgroup_v1: bool,
    pub crash_loop_back_off: CrashLoopBackOff,
    /// `None`: upstream's default.
    pub eviction_hard: Option<BTreeMap<String, String>>,
    pub eviction_soft: BTreeMap<String, String>,
    pub eviction_soft_grace_period: BTreeMap<String, String>,
    pub eviction_pressure_transition_period: GoDuration,
    /// Seconds.
    pub eviction_max_pod_grace_period: i32,
    pub eviction_minimum_reclaim: BTreeMap<String, String>,
    /// What `eviction_hard` does not name has its default still.
    pub merge_default_eviction_settings: bool,
    /// How long shutdown of the node waits for pods; 0: not at all.
    pub shutdown_grace_period: GoDuration,
    /// Of that, what is for critical pods, which end last.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// The same for any number of priorities, in the place of both.
    pub shutdown_grace_period_by_pod_priority: Vec<Stage>,
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            static_pod_path: String::new(),
            pod_logs_dir: "/var/log/pods".into(),
            sync_frequency: GoDuration::secs(60),
            file_check_frequency: GoDuration::secs(20),
            address: "0.0.0.0".into(),
            port: 10250,
            healthz_port: 10248,
            healthz_bind_address: "127.0.0.1".into(),
            tls_cert_file: String::new(),
            tls_private_key_file: String::new(),
            rotate_certificates: false,
            server_tls_bootstrap: false,
            authentication: Authentication::default(),
            authorization: Authorization::default(),
            cluster_dns: Vec::new(),
            cluster_domain: String::new(),
            streaming_connection_idle_timeout: GoDuration::secs(4 * 3600),
            node_status_update_frequency: GoDuration::secs(10),
            node_status_report_frequency: GoDuration::secs(300),
            node_lease_duration_seconds: 40,
            cgroup_root: String::new(),
            cgroups_per_qos: true,
            cgroup_driver: "cgroupfs".into(),
            max_pods: 110,
            pods_per_core: 0,
            pod_pids_limit: -1,
            pod_cidr: String::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: GoDuration(std::time::Duration::from_millis(100)),
            fail_swap_on: true,
            container_log_max_size: "10Mi".into(),
            container_log_max_files: 5,
            container_log_monitor_interval: GoDuration::secs(10),
            config_map_and_secret_change_detection_strategy: "Watch".into(),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            seccomp_default: false,
            register_with_taints: Vec::new(),
            register_node: true,
            container_runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            image_service_endpoint: String::new(),
            serialize_image_pulls: None,
            max_parallel_image_pulls: None,
            provider_id: String::new(),
            enable_server: true,
            enable_debugging_handlers: true,
            read_only_port: 0,
            event_record_qps: 50,
            event_burst: 100,
            registry_pull_qps: 5,
            registry_burst: 10,
            node_status_max_images: 50,
            runtime_request_timeout: GoDuration::secs(120),
            image_gc_high_threshold_percent: 85,
            image_gc_low_threshold_percent: 80,
            image_minimum_gc_age: GoDuration::secs(120),
            image_maximum_gc_age: GoDuration::secs(0),
            enforce_node_allocatable: vec!["pods".into()],
            allowed_unsafe_sysctls: Vec::new(),
            fail_cgroup_v1: true,
            crash_loop_back_off: CrashLoopBackOff::default(),
            eviction_hard: None,
            eviction_soft: BTreeMap::new(),
            eviction_soft_grace_period: BTreeMap::new(),
            eviction_pressure_transition_period: GoDuration::secs(300),
            eviction_max_pod_grace_period: 0,
            eviction_minimum_reclaim: BTreeMap::new(),
            merge_default_eviction_settings: false,
            shutdown_grace_period: GoDuration::secs(0),
            shutdown_grace_period_critical_pods: GoDuration::secs(0),
            shutdown_grace_period_by_pod_priority: Vec::new(),
        }
    }
}

impl KubeletConfiguration {
    /// Reads a config file's text.
    ///
    /// # Errors
    /// Says what is wrong in it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        Self::from_fields(Self::fields(text)?)
    }

    /// The fields of a file's text, not looked at yet.
    ///
    /// # Errors
    /// It is not YAML, or of another kind or version.
    pub fn fields(text: &str) -> anyhow::Result<Map<String, Value>> {
        let versions = ["kubelet.config.k8s.io/v1beta1"];
        match component::config::parse(text, &versions, "KubeletConfiguration")? {
            Value::Object(fields) => Ok(fields),
            _ => bail!("is not a YAML mapping"),
        }
    }

    /// A configuration from its fields.
    ///
    /// # Errors
    /// Names a field that is unknown, of another type, or not supported.
    pub fn from_fields(mut fields: Map<String, Value>) -> anyhow::Result<Self> {
        drop_empty("", &mut fields);
        let known = serde_json::to_value(Self::default())?;
        let acts = |name: &str| known.get(name).is_some();
        support::check(&fields, &acts).map_err(anyhow::Error::msg)?;
        // Upstream's rule: who changes how often the status is computed changes with it how often
        // it is reported.
        if !fields.contains_key("nodeStatusReportFrequency")
            && let Some(update) = fields.get("nodeStatusUpdateFrequency").cloned()
        {
            fields.insert("nodeStatusReportFrequency".into(), update);
        }
        Ok(serde_json::from_value(Value::Object(fields))?)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the field.
    pub fn validate(&self) -> anyhow::Result<()> {
        if !["cgroupfs", "systemd"].contains(&self.cgroup_driver.as_str()) {
            bail!(
                "invalid configuration: cgroupDriver {:?} must be one of cgroupfs, systemd",
                self.cgroup_driver
            );
        }
        if !["AlwaysAllow", "Webhook"].contains(&self.authorization.mode.as_str()) {
            bail!("unknown authorization mode {}", self.authorization.mode);
        }
        for server in &self.cluster_dns {
            if server.parse::<std::net::IpAddr>().is_err() {
                bail!("invalid configuration: clusterDNS {server:?} is not an IP address");
            }
        }
        if self.max_pods < 0 {
            bail!(
                "invalid configuration: maxPods (--max-pods) {} must be a non-negative number",
                self.max_pods
            );
        }
        if self.container_log_max_files <= 1 {
            bail!(
                "invalid configuration: containerLogMaxFiles {} must be greater than 1",
                self.container_log_max_files
            );
        }
        self.container_log_max_bytes()?;
        self.strategy()?;
        self.thresholds().map_err(|error| anyhow::anyhow!("invalid configuration: {error}"))?;
        self.validate_numbers()?;
        self.validate_shutdown()?;
        for level in &self.enforce_node_allocatable {
            if !["pods", "none", ""].contains(&level.as_str()) {
                bail!(
                    "invalid configuration: enforceNodeAllocatable (--enforce-node-allocatable): {level:?} is not supported by this kubelet, only pods or none"
                );
            }
        }
        crate::sysctl::validate_patterns(&self.allowed_unsafe_sysctls)
            .map_err(anyhow::Error::msg)?;
        Ok(())
    }

    fn validate_numbers(&self) -> anyhow::Result<()> {
        for (field, value, least) in [
            ("podsPerCore (--pods-per-core)", self.pods_per_core, 0),
            ("nodeLeaseDurationSeconds", self.node_lease_duration_seconds, 1),
            ("eventRecordQPS (--event-qps)", self.event_record_qps, 0),
            ("eventBurst (--event-burst)", self.event_burst, 0),
            ("registryPullQPS (--registry-qps)", self.registry_pull_qps, 0),
            ("registryBurst (--registry-burst)", self.registry_burst, 0),
            ("nodeStatusMaxImages (--node-status-max-images)", self.node_status_max_images, -1),
        ] {
            if value < least {
                bail!("invalid configuration: {field} {value} must not be less than {least}");
            }
        }
        let (high, low) =
            (self.image_gc_high_threshold_percent, self.image_gc_low_threshold_percent);
        if !(0..=100).contains(&high) || !(0..=100).contains(&low) {
            bail!(
                "invalid configuration: imageGCHighThresholdPercent (--image-gc-high-threshold) {high} and imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be between 0 and 100, inclusive"
            );
        }
        if low >= high {
            bail!(
                "invalid configuration: imageGCLowThresholdPercent (--image-gc-low-threshold) {low} must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) {high}"
            );
        }
        match self.max_parallel_image_pulls {
            Some(pulls) if pulls < 1 => bail!(
                "invalid configuration: maxParallelImagePulls {pulls} must be a positive number"
            ),
            Some(pulls) if pulls > 1 && self.serialize_image_pulls == Some(true) => bail!(
                "invalid configuration: maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls (--serialize-image-pulls) is set to false"
            ),
            _ => {}
        }
        if let Some(GoDuration(period)) = self.crash_loop_back_off.max_container_restart_period
            && !(1..=300).contains(&period.as_secs())
        {
            bail!(
                "invalid configuration: CrashLoopBackOff.MaxContainerRestartPeriod (got: {} seconds) must be set between 1s and 300s",
                period.as_secs()
            );
        }
        Ok(())
    }

    fn validate_shutdown(&self) -> anyhow::Result<()> {
        let GoDuration(whole) = self.shutdown_grace_period;
        let GoDuration(critical) = self.shutdown_grace_period_critical_pods;
        if critical > whole {
            let [critical, whole] = [critical, whole].map(duration::format);
            bail!(
                "invalid configuration: shutdownGracePeriodCriticalPods {critical} must be <= shutdownGracePeriod {whole}"
            );
        }
        for (field, period) in
            [("shutdownGracePeriod", whole), ("shutdownGracePeriodCriticalPods", critical)]
        {
            if !period.is_zero() && period.as_secs() == 0 {
                let period = duration::format(period);
                bail!(
                    "invalid configuration: {field} {period} must be either zero or otherwise >= 1 sec"
                );
            }
        }
        if !self.shutdown_grace_period_by_pod_priority.is_empty() && !whole.is_zero() {
            bail!(
                "invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time"
            );
        }
        Ok(())
    }

    /// In which order pods end when the node shuts down, and in how much time; none: it is not
    /// waited for.
    pub fn shutdown_stages(&self) -> Vec<Stage> {
        let GoDuration(whole) = self.shutdown_grace_period;
        let GoDuration(critical) = self.shutdown_grace_period_critical_pods;
        plan::stages(whole, critical, &self.shutdown_grace_period_by_pod_priority)
    }

    /// How many images may be pulled at the same time, `None` for any number.
    pub fn parallel_pulls(&self) -> Option<usize> {
        let most = self.max_parallel_image_pulls.and_then(|n| usize::try_from(n).ok());
        match (self.serialize_image_pulls, most) {
            (Some(false), most) => most,
            (Some(true), _) | (None, None) => Some(1),
            (None, most) => most,
        }
    }

    /// How changes of config maps and secrets are found.
    ///
    /// # Errors
    /// There is no such way.
    pub fn strategy(&self) -> anyhow::Result<Strategy> {
        let name = &self.config_map_and_secret_change_detection_strategy;
        Strategy::named(name)
            .with_context(|| format!("unknown configmap and secret manager mode: {name}"))
    }

    /// What of the node must stay free.
    ///
    /// # Errors
    /// Names the entry that is wrong.
    pub fn thresholds(&self) -> Result<Vec<Threshold>, String> {
        let mut hard = match (&self.eviction_hard, self.merge_default_eviction_settings) {
            (None, _) | (_, true) => pressure::default_hard(),
            _ => BTreeMap::new(),
        };
        hard.extend(self.eviction_hard.clone().unwrap_or_default());
        let (soft, grace) = (&self.eviction_soft, &self.eviction_soft_grace_period);
        pressure::parse(&hard, soft, grace, &self.eviction_minimum_reclaim)
    }

    /// Whether pods are held to what the node can give them in all.
    pub fn enforces_pods(&self) -> bool {
        self.enforce_node_allocatable.iter().any(|level| level == "pods")
    }

    /// `containerLogMaxSize`, in bytes.
    ///
    /// # Errors
    /// It is no quantity.
    pub fn container_log_max_bytes(&self) -> anyhow::Result<u64> {
        let size: apimachinery::quantity::Quantity =
            self.container_log_max_size.parse().with_context(|| {
                format!(
                    "invalid configuration: containerLogMaxSize {}",
                    self.container_log_max_size
                )
            })?;
        Ok(size.value().max(0).unsigned_abs())
    }
}

/// Removes nulls, and empty values of [`EMPTY_IS_DEFAULT`].
fn drop_empty(above: &str, fields: &mut Map<String, Value>) {
    fields.retain(|name, value| {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        if let Value::Object(inner) = value {
            drop_empty(&path, inner);
        }
        let empty = match value {
            Value::Null => return false,
            Value::String(text) => {
                text.is_empty() || duration::parse(text).is_ok_and(|d| d.is_zero())
            }
            Value::Number(number) => number.as_i64() == Some(0),
            _ => false,
        };
        !(empty && EMPTY_IS_DEFAULT.contains(&path.as_str()))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    #[test]
    fn fields_are_read_and_unknown_ones_named() {
        let config = KubeletConfiguration::parse(&format!(
            "{HEAD}clusterDNS: [10.96.0.10]\nsyncFrequency: 1m30s\nauthentication:\n  anonymous: {{enabled: true}}\nevictionHard: {{}}\n"
        ))
        .unwrap();
        assert_eq!(config.cluster_dns, ["10.96.0.10"]);
        assert_eq!(config.sync_frequency, GoDuration::secs(90));
        assert!(config.authentication.anonymous.enabled && config.authentication.webhook.enabled);

        let error = |rest: &str| {
            KubeletConfiguration::parse(&format!("{HEAD}{rest}")).unwrap_err().to_string()
        };
        assert_eq!(error("maxPod: 3\n"), "strict decoding error: unknown field \"maxPod\"");
        assert!(error("authentication: {x: 1}\n").contains("unknown field `x`"));
        assert!(
            error("cpuManagerPolicy: static\n")
                .contains("cpuManagerPolicy: \"static\" is not supported")
        );
    }

    /// What kubeadm v1.35 writes for a new cluster.
    const KUBEADM: &str = r#"
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization:
  mode: Webhook
  webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}
cgroupDriver: systemd
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerRuntimeEndpoint: ""
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {}
evictionPressureTransitionPeriod: 0s
fileCheckFrequency: 0s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
httpCheckFrequency: 0s
imageMaximumGCAge: 0s
imageMinimumGCAge: 0s
logging:
  flushFrequency: 0
  options:
    json: {infoBufferSize: "0"}
    text: {infoBufferSize: "0"}
  verbosity: 0
memorySwap: {}
nodeStatusReportFrequency: 0s
nodeStatusUpdateFrequency: 0s
resolvConf: /run/systemd/resolve/resolv.conf
rotateCertificates: true
runtimeRequestTimeout: 0s
shutdownGracePeriod: 0s
shutdownGracePeriodCriticalPods: 0s
staticPodPath: /etc/kubernetes/manifests
streamingConnectionIdleTimeout: 0s
syncFrequency: 0s
volumeStatsAggPeriod: 0s
"#;

    #[test]
    fn kubeadms_file_loads_with_defaults_for_what_is_empty() {
        let config = KubeletConfiguration::parse(&format!("{HEAD}{KUBEADM}")).unwrap();
        config.validate().unwrap();
        let default = KubeletConfiguration::default();
        assert_eq!(config.sync_frequency, default.sync_frequency);
        assert_eq!(config.node_status_report_frequency, GoDuration::secs(300));
        assert_eq!(config.authentication.webhook.cache_ttl, GoDuration::secs(120));
        assert_eq!(config.container_runtime_endpoint, default.container_runtime_endpoint);
        assert_eq!(config.cgroup_driver, "systemd");
        assert!(config.rotate_certificates && !config.server_tls_bootstrap);
    }

    #[test]
    fn fields_have_upstreams_names() {
        let text = "cpuCFSQuota: false\ncpuCFSQuotaPeriod: 50ms\ncgroupsPerQOS: false\npodCIDR: 10.0.0.0/24\nproviderID: x\nnodeStatusUpdateFrequency: 4s\n";
        let config = KubeletConfiguration::parse(&format!("{HEAD}{text}")).unwrap();
        assert!(!config.cpu_cfs_quota && !config.cgroups_per_qos);
        assert_eq!((config.pod_cidr.as_str(), config.provider_id.as_str()), ("10.0.0.0/24", "x"));
        assert_eq!(config.node_status_report_frequency, GoDuration::secs(4));
    }

    #[test]
    fn changes_are_found_as_the_file_says() {
        for (text, want) in [
            ("", Some(Strategy::Watch)),
            ("\"\"", Some(Strategy::Watch)),
            ("Watch", Some(Strategy::Watch)),
            ("Cache", Some(Strategy::Cache)),
            ("Get", Some(Strategy::Get)),
            ("get", None),
        ] {
            let field = format!("configMapAndSecretChangeDetectionStrategy: {text}\n");
            let config = KubeletConfiguration::parse(&format!("{HEAD}{field}")).unwrap();
            assert_eq!(config.validate().and_then(|()| config.strategy()).ok(), want, "{text}");
        }
    }

    #[test]
    fn shutdown_waits_as_long_as_asked() {
        let stage = |priority, seconds| Stage { priority, seconds };
        let many = "shutdownGracePeriodByPodPriority: [{priority: 9, shutdownGracePeriodSeconds: 4}, {shutdownGracePeriodSeconds: 5}]\n";
        for (text, want) in [
            (String::new(), Ok(vec![])),
            ("shutdownGracePeriodByPodPriority: null\n".into(), Ok(vec![])),
            (
                "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n".into(),
                Ok(vec![stage(0, 20), stage(2_000_000_000, 10)]),
            ),
            (many.into(), Ok(vec![stage(0, 5), stage(9, 4)])),
            (
                format!("{many}shutdownGracePeriod: 1s\n"),
                Err("Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod"),
            ),
            (
                "shutdownGracePeriod: 5s\nshutdownGracePeriodCriticalPods: 1m6s\n".into(),
                Err("shutdownGracePeriodCriticalPods 1m6s must be <= shutdownGracePeriod 5s"),
            ),
            (
                "shutdownGracePeriod: 500ms\n".into(),
                Err("shutdownGracePeriod 500ms must be either zero or otherwise >= 1 sec"),
            ),
        ] {
            let config = KubeletConfiguration::parse(&format!("{HEAD}{text}")).unwrap();
            match (config.validate(), want) {
                (Ok(()), Ok(stages)) => assert_eq!(config.shutdown_stages(), stages, "{text}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn pulls_at_a_time() {
        for (text, want) in [
            ("", Some(1)),
            ("serializeImagePulls: false\n", None),
            ("serializeImagePulls: false\nmaxParallelImagePulls: 3\n", Some(3)),
            ("maxParallelImagePulls: 4\n", Some(4)),
            ("serializeImagePulls: true\n", Some(1)),
        ] {
            let config = KubeletConfiguration::parse(&format!("{HEAD}{text}")).unwrap();
            config.validate().unwrap();
            assert_eq!(config.parallel_pulls(), want, "{text}");
        }
        let both = format!("{HEAD}serializeImagePulls: true\nmaxParallelImagePulls: 2\n");
        assert!(KubeletConfiguration::parse(&both).unwrap().validate().is_err());
    }
}
