//! Where things are on a machine. Each folder can be moved by a flag of `up`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folders of one cluster on this machine.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
pub struct Layout {
    /// State of our own: the embedded store, the nodes' containerd folders, images
    #[arg(long = "data-dir", default_value = "/var/lib/coxswain", global = true)]
    pub data: PathBuf,
    /// Sockets, locks and what runs now; gone after a reboot
    #[arg(long = "run-dir", default_value = "/run/coxswain", global = true)]
    pub run: PathBuf,
    /// Certificates, keys and kubeconfigs
    #[arg(long = "config-dir", default_value = "/etc/kubernetes", global = true)]
    pub config: PathBuf,
    /// The first node's kubelet
    #[arg(long = "kubelet-dir", default_value = "/var/lib/kubelet", global = true)]
    pub kubelet: PathBuf,
    /// Logs of the first node's pods
    #[arg(long = "pod-logs-dir", default_value = "/var/log/pods", global = true)]
    pub pod_logs: PathBuf,
    /// Name of the cluster on this machine: of its cgroup and network namespaces
    #[arg(long, default_value = "coxswain", global = true)]
    pub cluster_name: String,
}

impl Layout {
    pub fn pki(&self) -> PathBuf {
        self.config.join("pki")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.config.join("admin.conf")
    }

    pub fn super_admin_kubeconfig(&self) -> PathBuf {
        self.config.join("super-admin.conf")
    }

    pub fn kubeconfig(&self, component: &str) -> PathBuf {
        self.config.join(format!("{component}.conf"))
    }

    pub fn store(&self) -> PathBuf {
        self.data.join("store").join("coxswain.redb")
    }

    /// OCI archives that every node imports.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// What `up` started, for `status` and `down`.
    pub fn record(&self) -> PathBuf {
        self.run.join("cluster.json")
    }

    /// Held by the running `up`.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// The cgroup above the pods of all nodes, below each controller's root.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.cluster_name)
    }

    /// The network namespace of `up --isolated`.
    pub fn netns(&self) -> String {
        self.cluster_name.clone()
    }

    pub fn node_netns(&self, node: &str) -> String {
        format!("{}-{node}", self.cluster_name)
    }

    pub fn node_data(&self, node: &str) -> PathBuf {
        self.data.join("nodes").join(node)
    }

    pub fn node_run(&self, node: &str) -> PathBuf {
        self.run.join(node)
    }
}

/// The containerd of a node.
pub fn containerd_socket(run: &Path) -> PathBuf {
    run.join("containerd.sock")
}
