//! The command line. A flag that a config file can also set wins over the file.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use crate::config::KubeletConfiguration;
use crate::duration::GoDuration;
use crate::flags::Given;

/// What the kubelet is started with. Names and defaults are upstream's.
#[derive(Clone, Debug, Parser)]
#[command(disable_version_flag = true)]
pub struct Options {
    /// Kubeconfig that says how to connect to the API server. Without it the kubelet runs static
    /// pods only.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig used to get a client certificate, when --kubeconfig's file does not exist or its
    /// certificate has expired.
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// KubeletConfiguration file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The node's name, instead of the host name.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The node's addresses, one per family.
    #[arg(long, value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// The CRI endpoint, like unix:///run/containerd/containerd.sock.
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// The CRI endpoint for images; the runtime's by default.
    #[arg(long)]
    pub image_service_endpoint: Option<String>,
    /// Directory of the kubelet's files: volumes, pods, checkpoints.
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// Directory or file with static pods.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// Register the node with the API server.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub register_node: Option<bool>,
    /// Labels of the node when it registers, key=value pairs.
    #[arg(long, default_value = "")]
    pub node_labels: String,
    /// Taints of the node when it registers, key=value:effect.
    #[arg(long, default_value = "")]
    pub register_with_taints: String,
    /// cgroupfs or systemd.
    #[arg(long)]
    pub cgroup_driver: Option<String>,
    /// The cgroup that holds the pods' hierarchy.
    #[arg(long)]
    pub cgroup_root: Option<String>,
    /// A hierarchy of cgroups by quality of service.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub cgroups_per_qos: Option<bool>,
    /// DNS servers for pods with dnsPolicy ClusterFirst.
    #[arg(long, value_delimiter = ',')]
    pub cluster_dns: Vec<String>,
    /// The cluster's DNS domain.
    #[arg(long)]
    pub cluster_domain: Option<String>,
    /// resolv.conf that pods' DNS settings start from.
    #[arg(long)]
    pub resolv_conf: Option<String>,
    /// Refuse to start when swap is on.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub fail_swap_on: Option<bool>,
    /// Directory of certificates that the kubelet makes for itself.
    #[arg(long, default_value = "/var/lib/kubelet/pki")]
    pub cert_dir: PathBuf,
    /// Serving certificate.
    #[arg(long)]
    pub tls_cert_file: Option<PathBuf>,
    /// Its private key.
    #[arg(long)]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA of client certificates.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// AlwaysAllow or Webhook.
    #[arg(long)]
    pub authorization_mode: Option<String>,
    /// Let requests without credentials in as system:anonymous.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub anonymous_auth: Option<bool>,
    /// Authenticate bearer tokens by TokenReview.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub authentication_token_webhook: Option<bool>,
    /// The most pods that may run here.
    #[arg(long)]
    pub max_pods: Option<i32>,
    /// Address that the server listens on.
    #[arg(long)]
    pub address: Option<IpAddr>,
    /// The server's port.
    #[arg(long)]
    pub port: Option<u16>,
    /// Port of the health endpoint, 0 for none.
    #[arg(long)]
    pub healthz_port: Option<u16>,
    /// Address of the health endpoint.
    #[arg(long)]
    pub healthz_bind_address: Option<IpAddr>,
    /// The pod range when there is no API server to give one.
    #[arg(long)]
    pub pod_cidr: Option<String>,
    /// Unique id of the machine for a cloud provider.
    #[arg(long)]
    pub provider_id: Option<String>,
    /// How long a sync of all pods may lie back.
    #[arg(long)]
    pub sync_frequency: Option<GoDuration>,
    /// How often the node's status is computed.
    #[arg(long)]
    pub node_status_update_frequency: Option<GoDuration>,
    /// Log level.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub v: u8,
    #[command(flatten)]
    given: Given,
}

impl Options {
    /// Reads the config file and lays the flags over it.
    ///
    /// # Errors
    /// A flag or field that is wrong or has no effect here; the error names it.
    pub fn configuration(&self) -> anyhow::Result<KubeletConfiguration> {
        let mut fields = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("failed to read kubelet config file {path:?}"))?;
                KubeletConfiguration::fields(&text)
                    .with_context(|| format!("kubelet config file {path:?}"))?
            }
            None => serde_json::Map::new(),
        };
        self.given.overlay(&mut fields).map_err(anyhow::Error::msg)?;
        let whence = || match &self.config {
            Some(path) => format!("kubelet config file {path:?} and flags"),
            None => "flags".to_owned(),
        };
        let mut config = KubeletConfiguration::from_fields(fields).with_context(whence)?;
        self.overlay(&mut config);
        config.validate()?;
        Ok(config)
    }

    fn overlay(&self, config: &mut KubeletConfiguration) {
        fn set<T: Clone>(field: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                field.clone_from(value);
            }
        }
        let text = |path: &PathBuf| path.display().to_string();
        set(&mut config.container_runtime_endpoint, &self.container_runtime_endpoint);
        set(&mut config.image_service_endpoint, &self.image_service_endpoint);
        set(&mut config.static_pod_path, &self.pod_manifest_path.as_ref().map(text));
        set(&mut config.register_node, &self.register_node);
        set(&mut config.cgroup_driver, &self.cgroup_driver);
        set(&mut config.cgroup_root, &self.cgroup_root);
        set(&mut config.cgroups_per_qos, &self.cgroups_per_qos);
        set(&mut config.cluster_domain, &self.cluster_domain);
        set(&mut config.resolv_conf, &self.resolv_conf);
        set(&mut config.fail_swap_on, &self.fail_swap_on);
        set(&mut config.tls_cert_file, &self.tls_cert_file.as_ref().map(text));
        set(&mut config.tls_private_key_file, &self.tls_private_key_file.as_ref().map(text));
        let x509 = &mut config.authentication.x509;
        set(&mut x509.client_ca_file, &self.client_ca_file.as_ref().map(text));
        set(&mut config.authorization.mode, &self.authorization_mode);
        set(&mut config.authentication.anonymous.enabled, &self.anonymous_auth);
        set(&mut config.authentication.webhook.enabled, &self.authentication_token_webhook);
        set(&mut config.max_pods, &self.max_pods);
        set(&mut config.address, &self.address.map(|a| a.to_string()));
        set(&mut config.port, &self.port);
        set(&mut config.healthz_port, &self.healthz_port);
        let bind = self.healthz_bind_address.map(|a| a.to_string());
        set(&mut config.healthz_bind_address, &bind);
        set(&mut config.pod_cidr, &self.pod_cidr);
        set(&mut config.provider_id, &self.provider_id);
        set(&mut config.sync_frequency, &self.sync_frequency);
        set(&mut config.node_status_update_frequency, &self.node_status_update_frequency);
        if !self.cluster_dns.is_empty() {
            config.cluster_dns.clone_from(&self.cluster_dns);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args: Vec<std::ffi::OsString> = args.iter().map(Into::into).collect();
        component::cli::parse::<Options>("kubelet", &args).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_win_over_defaults() {
        let options = parse(&[
            "--fail-swap-on=false",
            "--cluster-dns=10.0.0.10,10.0.0.11",
            "--max-pods",
            "7",
            "--register-node",
        ]);
        let config = options.unwrap().configuration().unwrap();
        assert!(!config.fail_swap_on);
        assert_eq!(config.cluster_dns, ["10.0.0.10", "10.0.0.11"]);
        assert_eq!(config.max_pods, 7);
    }

    #[test]
    fn unknown_and_unsupported_flags_are_errors() {
        assert_eq!(parse(&["--no-such-thing"]).unwrap_err(), "unknown flag: --no-such-thing");
        for (flag, part) in [
            ("--cpu-manager-policy=static", "cpuManagerPolicy: \"static\" is not supported"),
            ("--lock-file=/x", "--lock-file=/x is not supported"),
            ("--feature-gates=X=true", "featureGates"),
        ] {
            let error = parse(&[flag]).unwrap().configuration().unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
        let config =
            parse(&["--cpu-manager-policy=none", "--pods-per-core", "4", "--seccomp-default"])
                .unwrap()
                .configuration()
                .unwrap();
        assert_eq!((config.pods_per_core, config.seccomp_default), (4, true));
    }
}
