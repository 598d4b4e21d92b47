//! Flags and `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1).

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;

const VERSION: &str = "kubescheduler.config.k8s.io/v1";
/// The scheduler that pods name when they name none.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// kube-scheduler's flags, as upstream names them.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "kube-scheduler", version)]
pub struct Options {
    /// Path of a KubeSchedulerConfiguration
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Path of a kubeconfig
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Path of a kubeconfig to check callers' tokens with
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Path of a kubeconfig to check callers' rights with
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Address of /healthz and /metrics
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of /healthz and /metrics; 0 for none
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
    /// Serving certificate; self-signed in memory when there is none
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// Only the leader schedules
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
}

/// All that is settled.
#[derive(Clone, Debug)]
pub struct Config {
    pub kubeconfig: PathBuf,
    pub schedulers: Vec<String>,
    pub leader_elect: bool,
    pub address: Option<std::net::SocketAddr>,
    pub tls: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    leader_election: LeaderElection,
    profiles: Vec<Profile>,
    parallelism: Option<i32>,
    percentage_of_nodes_to_score: Option<i32>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    enable_profiling: Option<bool>,
    enable_contention_profiling: Option<bool>,
    extenders: Option<Vec<Value>>,
    delay_cache_until_active: Option<bool>,
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
struct LeaderElection {
    leader_elect: Option<bool>,
    lease_duration: Option<String>,
    renew_deadline: Option<String>,
    retry_period: Option<String>,
    resource_lock: Option<String>,
    resource_name: Option<String>,
    resource_namespace: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Profile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Option<Value>,
    plugin_config: Option<Value>,
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
        let election = &self.leader_election;
        let names = [
            &election.lease_duration,
            &election.renew_deadline,
            &election.retry_period,
            &election.resource_name,
            &election.resource_namespace,
        ];
        refuse(names.iter().any(|f| f.is_some()), "leaderElection");
        refuse(
            election.resource_lock.as_deref().is_some_and(|l| l != "leases"),
            "leaderElection.resourceLock",
        );
        refuse(
            self.percentage_of_nodes_to_score.is_some_and(|p| p != 0),
            "percentageOfNodesToScore",
        );
        refuse(
            self.pod_initial_backoff_seconds.is_some_and(|s| s != 1),
            "podInitialBackoffSeconds",
        );
        refuse(self.pod_max_backoff_seconds.is_some_and(|s| s != 10), "podMaxBackoffSeconds");
        refuse(self.enable_contention_profiling == Some(true), "enableContentionProfiling");
        refuse(self.extenders.as_ref().is_some_and(|e| !e.is_empty()), "extenders");
        refuse(self.delay_cache_until_active == Some(true), "delayCacheUntilActive");
        for profile in &self.profiles {
            refuse(profile.plugins.is_some(), "profiles.plugins");
            refuse(profile.plugin_config.is_some(), "profiles.pluginConfig");
            refuse(
                profile.percentage_of_nodes_to_score.is_some_and(|p| p != 0),
                "profiles.percentageOfNodesToScore",
            );
        }
        if !refused.is_empty() {
            bail!("KubeSchedulerConfiguration fields not supported: {}", refused.join(", "));
        }
        Ok(())
    }
}

impl Options {
    /// Settles flags and file.
    ///
    /// # Errors
    /// Names the flag or field that is wrong or not supported.
    pub fn settle(self) -> anyhow::Result<Config> {
        let file: File = match &self.config {
            Some(path) => component::config::load(path, &[VERSION], "KubeSchedulerConfiguration")?,
            None => File::default(),
        };
        file.check()?;
        let kubeconfig = match file.client_connection.kubeconfig.as_str() {
            "" => self.kubeconfig,
            path => Some(path.into()),
        };
        let Some(kubeconfig) = kubeconfig else {
            bail!("--kubeconfig, or clientConnection.kubeconfig in --config, is needed");
        };
        let tls = match (self.tls_cert_file, self.tls_private_key_file) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("--tls-cert-file and --tls-private-key-file go together"),
        };
        let mut schedulers: Vec<String> =
            file.profiles.iter().filter_map(|p| p.scheduler_name.clone()).collect();
        if schedulers.is_empty() {
            schedulers.push(DEFAULT_SCHEDULER.to_owned());
        }
        Ok(Config {
            kubeconfig,
            schedulers,
            leader_elect: file.leader_election.leader_elect.unwrap_or(self.leader_elect),
            address: (self.secure_port != 0).then(|| (self.bind_address, self.secure_port).into()),
            tls,
        })
    }
}
