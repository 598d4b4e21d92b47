//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1), read strictly.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::GoDuration;

/// Fields that upstream has and that change nothing here; given, they are logged.
const IGNORED: &[&str] = &[
    "allowedUnsafeSysctls",
    "configMapAndSecretChangeDetectionStrategy",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "contentType",
    "cpuManagerPolicyOptions",
    "cpuManagerReconcilePeriod",
    "crashLoopBackOff",
    "enableContentionProfiling",
    "enableControllerAttachDetach",
    "enableDebugFlagsHandler",
    "enableDebuggingHandlers",
    "enableProfilingHandler",
    "enableServer",
    "enableSystemLogHandler",
    "enableSystemLogQuery",
    "enforceNodeAllocatable",
    "eventBurst",
    "eventRecordQPS",
    "evictionHard",
    "evictionMaxPodGracePeriod",
    "evictionMinimumReclaim",
    "evictionPressureTransitionPeriod",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "failCgroupV1",
    "featureGates",
    "hairpinMode",
    "httpCheckFrequency",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMaximumGCAge",
    "imageMinimumGCAge",
    "imagePullCredentialsVerificationPolicy",
    "iptablesDropBit",
    "iptablesMasqueradeBit",
    "kernelMemcgNotification",
    "kubeAPIBurst",
    "kubeAPIQPS",
    "kubeReservedCgroup",
    "kubeletCgroups",
    "localStorageCapacityIsolation",
    "logging",
    "makeIPTablesUtilChains",
    "maxOpenFiles",
    "memorySwap",
    "memoryThrottlingFactor",
    "mergeDefaultEvictionSettings",
    "nodeStatusMaxImages",
    "oomScoreAdj",
    "preloadedImagesVerificationAllowlist",
    "protectKernelDefaults",
    "qosReserved",
    "readOnlyPort",
    "registryBurst",
    "registryPullQPS",
    "reservedMemory",
    "reservedSystemCPUs",
    "rotateCertificates",
    "runtimeRequestTimeout",
    "serializeImagePulls",
    "showHiddenMetricsForVersion",
    "shutdownGracePeriod",
    "shutdownGracePeriodByPodPriority",
    "shutdownGracePeriodCriticalPods",
    "singleProcessOOMKill",
    "staticPodURL",
    "staticPodURLHeader",
    "systemCgroups",
    "systemReservedCgroup",
    "tlsCipherSuites",
    "tlsMinVersion",
    "topologyManagerPolicyOptions",
    "topologyManagerScope",
    "tracing",
    "userNamespaces",
    "volumePluginDir",
    "volumeStatsAggPeriod",
];

/// Fields of which only one value is implemented.
const ONLY: &[(&str, &[&str])] = &[
    ("cpuManagerPolicy", &["none"]),
    ("memoryManagerPolicy", &["None"]),
    ("topologyManagerPolicy", &["none"]),
    ("serverTLSBootstrap", &["false"]),
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
    pub cgroups_per_qos: bool,
    pub cgroup_driver: String,
    pub max_pods: i32,
    pub pods_per_core: i32,
    pub pod_pids_limit: i64,
    pub pod_cidr: String,
    pub resolv_conf: String,
    pub cpu_cfs_quota: bool,
    pub cpu_cfs_quota_period: GoDuration,
    pub fail_swap_on: bool,
    pub container_log_max_size: String,
    pub container_log_max_files: i32,
    pub system_reserved: BTreeMap<String, String>,
    pub kube_reserved: BTreeMap<String, String>,
    pub seccomp_default: bool,
    pub register_with_taints: Vec<RegisterTaint>,
    pub register_node: bool,
    pub container_runtime_endpoint: String,
    pub image_service_endpoint: String,
    pub max_parallel_image_pulls: Option<i32>,
    pub provider_id: String,
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
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            seccomp_default: false,
            register_with_taints: Vec::new(),
            register_node: true,
            container_runtime_endpoint: String::new(),
            image_service_endpoint: String::new(),
            max_parallel_image_pulls: None,
            provider_id: String::new(),
        }
    }
}

impl KubeletConfiguration {
    /// Reads a config file.
    ///
    /// # Errors
    /// Names the file and what is wrong in it.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("failed to read kubelet config file {path:?}"))?;
        Self::parse(&text).with_context(|| format!("kubelet config file {path:?}"))
    }

    /// As [`KubeletConfiguration::load`], from text.
    ///
    /// # Errors
    /// As there.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let versions = ["kubelet.config.k8s.io/v1beta1"];
        let mut value: Value = component::config::parse(text, &versions, "KubeletConfiguration")?;
        let known = serde_json::to_value(Self::default())?;
        let Some(fields) = value.as_object_mut() else { bail!("is not a YAML mapping") };
        // A null is as good as an absent field.
        fields.retain(|_, value| !value.is_null());
        for (name, value) in fields.iter() {
            if known.get(name).is_some() {
                continue;
            }
            if let Some((_, values)) = ONLY.iter().find(|(field, _)| field == name) {
                let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                if !given.is_empty() && !values.contains(&given.as_str()) {
                    bail!("{name}: {given} is not implemented, only {}", values.join(", "));
                }
            } else if IGNORED.contains(&name.as_str()) {
                tracing::debug!(field = name, "config field has no effect");
            } else {
                bail!("strict decoding error: unknown field {name:?}");
            }
        }
        Ok(serde_json::from_value(value)?)
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
        Ok(())
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
        assert!(error("cpuManagerPolicy: static\n").contains("not implemented"));
    }
}
