//! Flags and `KubeSchedulerConfiguration` (kubescheduler.config.k8s.io/v1).

mod profiles;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use apimachinery::field::{ErrorList, FieldError, Path, aggregate};
use client::secure::SecureFlags;
use component::cli::NoEffect;
use component::leader::{Leader, LeaderFile, LeaderFlags};
use serde::Deserialize;
use serde_json::Value;

use self::profiles::ProfileFile;
use crate::profile::Profile;
use crate::queue::Pauses;
use crate::unsupported::Unsupported;

const VERSION: &str = "kubescheduler.config.k8s.io/v1";

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
    /// Port of /healthz and /metrics; 0 for none
    #[arg(long, default_value_t = 10259)]
    pub secure_port: u16,
    #[command(flatten)]
    pub secure: SecureFlags,
    #[command(flatten)]
    pub leader: LeaderFlags,
    /// URL of the API server, over what the kubeconfig says
    #[arg(long)]
    pub master: Option<String>,
    /// Serve /debug/pprof: there is none, whatever these say
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub profiling: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub contention_profiling: Option<bool>,
    #[command(flatten)]
    pub unsupported: NoEffect<Unsupported>,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
}

/// All that is settled.
pub struct Config {
    pub kubeconfig: PathBuf,
    /// At least one; no two for one scheduler name.
    pub profiles: Vec<Profile>,
    pub pauses: Pauses,
    pub master: Option<String>,
    pub leader: Option<Leader>,
    pub port: u16,
    pub secure: SecureFlags,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct File {
    client_connection: ClientConnection,
    leader_election: LeaderFile,
    profiles: Vec<ProfileFile>,
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

impl File {
    /// Refuses what is asked for and not done.
    fn check(&self) -> anyhow::Result<()> {
        let mut refused = Vec::new();
        let mut refuse = |set: bool, field: &'static str| {
            if set {
                refused.push(field);
            }
        };
        refuse(self.extenders.as_ref().is_some_and(|e| !e.is_empty()), "extenders");
        let connection = &self.client_connection;
        refuse(
            !matches!(
                connection.content_type.as_str(),
                "" | "application/json" | "application/vnd.kubernetes.protobuf"
            ) || !connection.accept_content_types.is_empty(),
            "clientConnection.contentType",
        );
        refuse(connection.qps.is_some_and(|n| n != 0.0 && n != 50.0), "clientConnection.qps");
        refuse(connection.burst.is_some_and(|n| n != 0 && n != 100), "clientConnection.burst");
        refuse(self.parallelism.is_some_and(|n| n != 0 && n != 16), "parallelism");
        refuse(self.delay_cache_until_active == Some(true), "delayCacheUntilActive");
        if !refused.is_empty() {
            bail!("KubeSchedulerConfiguration fields not supported: {}", refused.join(", "));
        }
        Ok(())
    }
}

/// How long refused pods pause.
fn pauses(first: Option<i64>, longest: Option<i64>) -> anyhow::Result<Pauses> {
    let (first, longest) = (first.unwrap_or(1), longest.unwrap_or(10));
    let mut errors = ErrorList::new();
    if first <= 0 {
        let path = Path::new("podInitialBackoffSeconds");
        errors.push(FieldError::invalid(&path, first, "must be greater than 0"));
    }
    if longest < first {
        let detail = "must be greater than or equal to PodInitialBackoffSeconds";
        errors.push(FieldError::invalid(&Path::new("podMaxBackoffSeconds"), longest, detail));
    }
    if !errors.is_empty() {
        bail!("{}", aggregate(&errors));
    }
    let seconds = |n: i64| Duration::from_secs(n.unsigned_abs());
    Ok(Pauses { first: seconds(first), longest: seconds(longest) })
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
        Ok(Config {
            kubeconfig,
            pauses: pauses(file.pod_initial_backoff_seconds, file.pod_max_backoff_seconds)?,
            profiles: profiles::settle(file.profiles, file.percentage_of_nodes_to_score)?,
            master: self.master,
            leader: self.leader.settle(&file.leader_election, "kube-scheduler")?,
            port: self.secure_port,
            secure: self.secure,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn settle(args: &[&str], yaml: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config");
        std::fs::write(
            &path,
            format!("apiVersion: {VERSION}\nkind: KubeSchedulerConfiguration\n{yaml}"),
        )?;
        let mut all: Vec<OsString> = args.iter().map(OsString::from).collect();
        if !yaml.is_empty() {
            all.extend(["--config".into(), path.into_os_string()]);
        }
        let options: Options = component::cli::parse("kube-scheduler", &all)?;
        options.settle()
    }

    #[test]
    fn flags_and_file_are_read_strictly() -> anyhow::Result<()> {
        let config = settle(
            &["--leader-elect-retry-period=1s"],
            "clientConnection: {kubeconfig: /k}\npercentageOfNodesToScore: 30\n\
             leaderElection: {leaseDuration: 30s, retryPeriod: 5s, resourceName: other}\n\
             profiles: [{schedulerName: a}, {schedulerName: b, percentageOfNodesToScore: 7}]\n",
        )?;
        let told = |c: &Config| -> Vec<String> {
            c.profiles.iter().map(|p| format!("{} {}", p.scheduler, p.percentage)).collect()
        };
        assert_eq!(told(&config), ["a 30", "b 7"]);
        let leader = config.leader.expect("an election by default");
        assert_eq!((leader.lease.as_secs(), leader.retry.as_secs()), (30, 1));
        assert_eq!((leader.name.as_str(), leader.namespace.as_str()), ("other", "kube-system"));
        let none = settle(&["--kubeconfig=/k", "--leader-elect=false"], "")?;
        assert_eq!((&none.leader, told(&none)), (&None, vec!["default-scheduler 0".to_owned()]));
        let cases: [(&[&str], &str, &str); 7] = [
            (&[], "profils: []\n", "profils"),
            (&[], "parallelism: 3\n", "parallelism"),
            (
                &["--kubeconfig=/k"],
                "podInitialBackoffSeconds: 20\n",
                "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to \
                 PodInitialBackoffSeconds",
            ),
            (
                &["--kubeconfig=/k"],
                "percentageOfNodesToScore: 101\n",
                "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
            ),
            (
                &[],
                "leaderElection: {resourceLock: endpoints}\nclientConnection: {kubeconfig: /k}\n",
                "endpoints",
            ),
            (&["--kubeconfig=/k", "--tls-min-version=VersionTLS13"], "", "--tls-min-version"),
            (&["--kubeconfig=/k", "--secure-prt=1"], "", "unknown flag: --secure-prt"),
        ];
        for (args, yaml, wanted) in cases {
            let error = settle(args, yaml).err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(error.contains(wanted), "{error}");
        }
        Ok(())
    }
}
