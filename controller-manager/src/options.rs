//! Flags, as upstream names them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use client::secure::SecureFlags;
use component::cli::{NoEffect, duration};
use component::leader::LeaderFlags;
use ipnet::IpNet;

use crate::controllers::autoscaler;
use crate::controllers::certificates::Signers;
use crate::controllers::ipam::Range;
use crate::controllers::legacytokens;
use crate::controllers::nodelifecycle::Rates;
use crate::known::{Choice, is_off_by_default};
use crate::unsupported::Unsupported;

#[derive(Clone, Debug, clap::Parser)]
#[command(name = "kube-controller-manager", version)]
pub struct Options {
    /// Path of a kubeconfig
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Give each node a range of pod addresses
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allocate_node_cidrs: bool,
    /// Port of /healthz; 0 for none
    #[arg(long, default_value_t = 10257)]
    pub secure_port: u16,
    #[command(flatten)]
    pub secure: SecureFlags,
    /// Addresses of pods, to be cut up for nodes
    #[arg(long, default_value = "")]
    pub cluster_cidr: String,
    #[arg(long, default_value = "kubernetes")]
    pub cluster_name: String,
    #[command(flatten)]
    pub signing: SigningFlags,
    #[command(flatten)]
    pub autoscaling: AutoscalingFlags,
    /// Controllers to run: `*`, names, or `-name` to leave one out
    #[arg(long, value_delimiter = ',', default_value = "*", allow_hyphen_values = true)]
    pub controllers: Vec<Choice>,
    #[command(flatten)]
    pub leader: LeaderFlags,
    /// So long may a token in a Secret be unused before it is refused, and so long refused before it
    /// is deleted, if it was made without being asked for
    #[arg(long, default_value = "8760h0m0s", value_parser = duration)]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// URL of the API server, over what the kubeconfig says
    #[arg(long)]
    pub master: Option<String>,
    /// Serve /debug/pprof: there is none, whatever this says
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub profiling: Option<bool>,
    /// Addresses of each subset of an Endpoints object that are mirrored (1 to 1000)
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub mirroring_max_endpoints_per_subset: u16,
    /// Prefix length of a node's range (IPv4)
    #[arg(long, default_value_t = 0)]
    pub node_cidr_mask_size: u8,
    #[arg(long, default_value_t = 0)]
    pub node_cidr_mask_size_ipv4: u8,
    #[arg(long, default_value_t = 0)]
    pub node_cidr_mask_size_ipv6: u8,
    /// A node that has not reported for so long is lost
    #[arg(long, default_value = "50s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// How often nodes are looked at
    #[arg(long, default_value = "5s", value_parser = duration)]
    pub node_monitor_period: Duration,
    #[command(flatten)]
    pub eviction: EvictionFlags,
    /// CA that is published in every namespace
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key that signs the tokens of service accounts that Secrets hold; without it there are none
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    #[arg(long, default_value = "")]
    pub service_cluster_ip_range: String,
    /// Finished pods beyond this many are deleted
    #[arg(long, default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: i64,
    /// Each controller under its own service account
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false,
          default_missing_value = "true", action = clap::ArgAction::Set)]
    pub use_service_account_credentials: bool,
    /// Verbosity of the log
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
    #[command(flatten)]
    pub unsupported: NoEffect<Unsupported>,
}

/// How fast pods of nodes that are lost are given up.
#[derive(Clone, Debug, clap::Args)]
pub struct EvictionFlags {
    /// Nodes of a zone, in a second
    #[arg(long, default_value_t = 0.1)]
    pub node_eviction_rate: f64,
    /// The same where the zone is unhealthy, if it is large
    #[arg(long, default_value_t = 0.01)]
    pub secondary_node_eviction_rate: f64,
    /// A zone with more nodes is large
    #[arg(long, default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    /// The share of its nodes that makes a zone unhealthy when it is lost
    #[arg(long, default_value_t = 0.55)]
    pub unhealthy_zone_threshold: f64,
}

impl EvictionFlags {
    pub fn rates(&self) -> Rates {
        Rates {
            normal: self.node_eviction_rate,
            secondary: self.secondary_node_eviction_rate,
            large: self.large_cluster_size_threshold,
            unhealthy: self.unhealthy_zone_threshold,
        }
    }
}

/// How horizontal autoscaling goes.
#[derive(Clone, Debug, clap::Args)]
pub struct AutoscalingFlags {
    /// So long after its start a pod's CPU counts only while it is ready, and measured since
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// How long a high recommendation keeps from scaling down
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// A pod that last changed its readiness so soon after its start has never been ready
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
    /// How often each autoscaler is looked at
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// How far from 1 the ratio of usage to target may be without anything being done
    #[arg(long, default_value_t = 0.1)]
    pub horizontal_pod_autoscaler_tolerance: f64,
}

impl AutoscalingFlags {
    pub fn settings(&self) -> autoscaler::Settings {
        autoscaler::Settings {
            // Without a pause it would ask without end.
            period: self.horizontal_pod_autoscaler_sync_period.max(Duration::from_secs(1)),
            downscale_window: self.horizontal_pod_autoscaler_downscale_stabilization,
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            initialization: self.horizontal_pod_autoscaler_cpu_initialization_period,
            readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
        }
    }
}

/// CAs that sign certificate requests.
#[derive(Clone, Debug, clap::Args)]
pub struct SigningFlags {
    /// CA that signs certificate requests, of all of Kubernetes' own signers
    #[arg(long)]
    pub cluster_signing_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// How long certificates hold at most
    #[arg(long, default_value = "8760h0m0s", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// CA of one signer alone, as those that follow
    #[arg(long)]
    pub cluster_signing_kube_apiserver_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kube_apiserver_client_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_client_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_client_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_serving_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_kubelet_serving_key_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_legacy_unknown_cert_file: Option<PathBuf>,
    #[arg(long)]
    pub cluster_signing_legacy_unknown_key_file: Option<PathBuf>,
}

impl SigningFlags {
    /// The CAs; `None`: none is given.
    ///
    /// # Errors
    /// Names the flag or file that is wrong.
    pub fn read(&self) -> anyhow::Result<Option<Signers>> {
        let of = |name, cert, key| (name, (cert, key));
        let each = [
            of(
                "cluster-signing-kube-apiserver-client",
                &self.cluster_signing_kube_apiserver_client_cert_file,
                &self.cluster_signing_kube_apiserver_client_key_file,
            ),
            of(
                "cluster-signing-kubelet-client",
                &self.cluster_signing_kubelet_client_cert_file,
                &self.cluster_signing_kubelet_client_key_file,
            ),
            of(
                "cluster-signing-kubelet-serving",
                &self.cluster_signing_kubelet_serving_cert_file,
                &self.cluster_signing_kubelet_serving_key_file,
            ),
            of(
                "cluster-signing-legacy-unknown",
                &self.cluster_signing_legacy_unknown_cert_file,
                &self.cluster_signing_legacy_unknown_key_file,
            ),
        ];
        let all = (&self.cluster_signing_cert_file, &self.cluster_signing_key_file);
        Signers::read(all, each, self.cluster_signing_duration)
    }
}

impl Options {
    /// The ranges that nodes are given theirs from.
    ///
    /// # Errors
    /// Names the flag that is wrong.
    pub fn ranges(&self) -> anyhow::Result<Vec<Range>> {
        let mut ranges = Vec::new();
        for text in self.cluster_cidr.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let cluster: IpNet =
                text.parse().with_context(|| format!("--cluster-cidr: {text:?} is not a CIDR"))?;
            let (own, default) = match cluster {
                IpNet::V4(_) => (self.node_cidr_mask_size_ipv4, 24),
                IpNet::V6(_) => (self.node_cidr_mask_size_ipv6, 64),
            };
            let node = match (own, self.node_cidr_mask_size) {
                (0, 0) => default,
                (0, both) => both,
                (own, _) => own,
            };
            if node < cluster.prefix_len() || node > cluster.max_prefix_len() {
                bail!("--node-cidr-mask-size: /{node} is no part of {cluster}");
            }
            ranges.push(Range { cluster, node });
        }
        if self.allocate_node_cidrs && ranges.is_empty() {
            bail!("--allocate-node-cidrs needs --cluster-cidr");
        }
        Ok(ranges)
    }

    /// How long tokens in Secrets may be unused.
    ///
    /// # Errors
    /// The controller that it is for is to run, and it is none.
    pub fn unused_tokens(&self) -> anyhow::Result<Duration> {
        let period = self.legacy_service_account_token_clean_up_period;
        if period.is_zero() && self.enabled(legacytokens::NAME) {
            bail!(
                "failed to init the legacy service account token cleaner: invalid CleanUpPeriod: 0s"
            );
        }
        Ok(period)
    }

    /// Whether a controller is to run.
    pub fn enabled(&self, name: &str) -> bool {
        debug_assert!(matches!(name.parse(), Ok(Choice::Run(known)) if known == name), "{name}");
        let mut enabled = false;
        for choice in &self.controllers {
            match choice {
                Choice::LeaveOut(left_out) if *left_out == name => return false,
                Choice::LeaveOut(_) => {}
                Choice::All => enabled |= !is_off_by_default(name),
                Choice::Run(chosen) => enabled |= *chosen == name,
            }
        }
        enabled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        component::cli::parse("kube-controller-manager", &args).map_err(|e| e.to_string())
    }

    #[test]
    fn a_manifest_s_flags_are_taken_and_others_named() {
        let options = parse(&[
            "--allocate-node-cidrs=true",
            "--authentication-kubeconfig=/etc/kubernetes/controller-manager.conf",
            "--authorization-kubeconfig=/etc/kubernetes/controller-manager.conf",
            "--bind-address=127.0.0.1",
            "--client-ca-file=/etc/kubernetes/pki/ca.crt",
            "--cluster-cidr=10.244.0.0/16",
            "--cluster-name=kubernetes",
            "--cluster-signing-cert-file=/etc/kubernetes/pki/ca.crt",
            "--cluster-signing-key-file=/etc/kubernetes/pki/ca.key",
            "--controllers=*,bootstrapsigner,tokencleaner,-job-controller",
            "--horizontal-pod-autoscaler-sync-period=1m",
            "--horizontal-pod-autoscaler-tolerance=0.2",
            "--kubeconfig=/etc/kubernetes/controller-manager.conf",
            "--leader-elect=true",
            "--leader-elect-lease-duration=1m",
            "--requestheader-client-ca-file=/etc/kubernetes/pki/front-proxy-ca.crt",
            "--root-ca-file=/etc/kubernetes/pki/ca.crt",
            "--service-account-private-key-file=/etc/kubernetes/pki/sa.key",
            "--service-cluster-ip-range=10.96.0.0/12",
            "--use-service-account-credentials=true",
            "--profiling=false",
        ])
        .expect("all are known");
        assert!(options.enabled("cronjob-controller") && !options.enabled("job-controller"));
        let autoscaling = options.autoscaling.settings();
        assert_eq!((autoscaling.period, autoscaling.tolerance), (Duration::from_secs(60), 0.2));
        let signer = "bootstrap-signer-controller";
        assert!(options.enabled(signer) && !parse(&[]).expect("none").enabled(signer));
        assert_eq!(options.node_monitor_grace_period, Duration::from_secs(50));
        assert_eq!(options.unused_tokens().ok(), Some(Duration::from_secs(365 * 24 * 3600)));
        let none = "--legacy-service-account-token-clean-up-period=0";
        let error = parse(&[none]).expect("none").unused_tokens().expect_err("none");
        assert!(error.to_string().ends_with("invalid CleanUpPeriod: 0s"), "{error}");
        let without = "--controllers=*,-legacy-service-account-token-cleaner";
        assert!(parse(&[none, without]).expect("none").unused_tokens().is_ok());
        for (arg, wanted) in [
            ("--concurrent-gc-syncs=7", "--concurrent-gc-syncs=7: not supported"),
            ("--feature-gates=X=true", "--feature-gates=X=true: not supported"),
            ("--concurent-gc-syncs=20", "unknown flag: --concurent-gc-syncs"),
            ("--node-monitor-period=5", "missing unit in duration"),
            ("--controllers=*,jobs", "\"jobs\" is not in the list of known controllers"),
        ] {
            let error = parse(&[arg]).expect_err(arg);
            assert!(error.contains(wanted), "{error}");
        }
    }
}
