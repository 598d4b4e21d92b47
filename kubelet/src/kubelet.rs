//! What all parts of one kubelet share.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use client::Cache;
use client::events::EventType;
use k8s_openapi::api::core::v1::{ConfigMap, Node, ObjectReference, Pod, Secret, Service};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::allocation::Allocations;
use crate::backoff::Backoff;
use crate::cgroups::Cgroups;
use crate::config::KubeletConfiguration;
use crate::events::Events;
use crate::eviction::Evictions;
use crate::images::Images;
use crate::node;
use crate::node::machine::Machine;
use crate::objects::spec;
use crate::pod::env::Missing;
use crate::pod::resources::Limiting;
use crate::pressure::{Pressure, Threshold};
use crate::probe::Prober;
use crate::quantity::List;
use crate::references::{self, References};
use crate::runtime::Cri;
use crate::runtime::views::Views;
use crate::shutdown::NodeShutdown;
use crate::tokens::Tokens;

/// Whether the runtime and the pods' network work; the reason if not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHealth {
    pub runtime: Option<String>,
    pub network: Option<String>,
}

/// What the runtime can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeFeatures {
    pub supplemental_groups: bool,
    /// Names of handlers, and whether each knows recursive read-only mounts.
    pub handlers: Vec<(String, bool)>,
}

impl RuntimeFeatures {
    /// Whether mounts of a pod can be read-only with all that is mounted below them (KEP-3857). Of
    /// a runtime class the API alone knows the handler: what all of them can do, it can.
    pub fn recursive_read_only(&self, pod: &Pod) -> bool {
        match spec(pod).runtime_class_name.as_deref() {
            None | Some("") => self.handlers.iter().any(|(name, can)| name.is_empty() && *can),
            Some(_) => !self.handlers.is_empty() && self.handlers.iter().all(|(_, can)| *can),
        }
    }
}

/// One kubelet.
pub struct Kubelet {
    pub config: KubeletConfiguration,
    pub root: PathBuf,
    pub logs: PathBuf,
    pub node_name: String,
    pub client: Option<kube::Client>,
    pub cri: Cri,
    pub views: Views,
    pub events: Events,
    pub services: Option<Cache<Service>>,
    pub node: Option<Cache<Node>>,
    pub images: Images,
    pub crash_backoff: Backoff,
    pub prober: Prober,
    pub cgroups: Cgroups,
    pub machine: Machine,
    pub tokens: Tokens,
    pub admission: Admission,
    pub allocations: Allocations,
    pub evictions: Evictions,
    /// What of the node must stay free.
    pub thresholds: Vec<Threshold>,
    pub pressure: Pressure,
    pub node_shutdown: NodeShutdown,
    /// Hooks that were asked over HTTP, since their servers do not speak TLS.
    pub http_fallbacks: AtomicU64,
    pub wakers: Mutex<HashMap<String, Arc<Notify>>>,
    pub health: watch::Sender<RuntimeHealth>,
    pub runtime: Mutex<RuntimeFeatures>,
    /// Told when the runtime may be in another state than a moment ago.
    pub look_at_runtime: Notify,
    /// The node's addresses as an administrator gave them.
    pub given_ips: Vec<IpAddr>,
    /// The node's addresses, the primary first.
    pub host_ips: watch::Sender<Vec<String>>,
    /// The pods that are the kubelet's to run, by uid.
    pub pods: RwLock<BTreeMap<String, Arc<Pod>>>,
    pub relisted: Mutex<Option<Instant>>,
    pub references: References,
    pub started: Instant,
    pub shutdown: CancellationToken,
}

impl Kubelet {
    /// Makes a pod's worker look again.
    pub fn wake(&self, uid: &str) {
        if let Some(waker) = self.wakers.lock().get(uid) {
            waker.notify_one();
        }
    }

    pub fn event(
        &self,
        about: ObjectReference,
        warning: bool,
        reason: &str,
        message: impl Into<String>,
    ) {
        let kind = if warning { EventType::Warning } else { EventType::Normal };
        self.events.event(about, kind, reason, message);
    }

    pub fn limiting(&self) -> Limiting {
        Limiting {
            enforce_quota: self.config.cpu_cfs_quota,
            period: i64::try_from(self.config.cpu_cfs_quota_period.0.as_micros())
                .unwrap_or(100_000),
            group_oom: self.cgroups.is_v2(),
        }
    }

    pub fn host_ips(&self) -> Vec<String> {
        self.host_ips.borrow().clone()
    }

    /// Looks the node's addresses up again. While it has none, the ones before are kept.
    pub fn look_for_addresses(&self) {
        let found = node::addresses::find(&self.given_ips);
        self.host_ips.send_if_modified(|known| {
            let changed = !found.is_empty() && *known != found;
            if changed {
                *known = found;
            }
            changed
        });
    }

    /// What pods may use of this machine.
    pub fn allocatable(&self) -> List {
        crate::node::status::allocatable(&self.config, &self.machine, &self.thresholds)
    }

    /// What pods are let in by: what they may use of this machine, and the extended resources that
    /// the node is said to have.
    pub fn admissible(&self) -> List {
        let nodes = self.node.as_ref().map(Cache::list).unwrap_or_default();
        let status = nodes.first().and_then(|n| n.status.as_ref());
        let given = status.and_then(|s| s.allocatable.as_ref());
        crate::node::status::with_extended(self.allocatable(), given)
    }

    /// The node's labels, empty without an API server.
    pub fn node_labels(&self) -> BTreeMap<String, String> {
        let nodes = self.node.as_ref().map(Cache::list).unwrap_or_default();
        nodes.first().and_then(|n| n.metadata.labels.clone()).unwrap_or_default()
    }

    /// A config map that a pod refers to; where it is not watched, one read a while ago will do
    /// unless it must be `fresh`.
    ///
    /// # Errors
    /// It is not there, or the API server does not give it.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Arc<ConfigMap>, Missing> {
        self.references.config_maps.get(namespace, name, self.object_ttl(fresh)).await
    }

    /// A secret, as [`Kubelet::config_map`].
    ///
    /// # Errors
    /// As there.
    pub async fn secret(
        &self,
        namespace: &str,
        name: &str,
        fresh: bool,
    ) -> Result<Arc<Secret>, Missing> {
        self.references.secrets.get(namespace, name, self.object_ttl(fresh)).await
    }

    fn object_ttl(&self, fresh: bool) -> Duration {
        let nodes = || self.node.as_ref().map(Cache::list).unwrap_or_default();
        if fresh { Duration::ZERO } else { references::ttl(nodes().first().map(|node| &**node)) }
    }
}
