//! Ends pods that use more of the node's disk than they may: an `emptyDir` beyond its limit, a
//! container beyond its `ephemeral-storage`, a pod beyond that of all its containers.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::DropGuard;

use crate::kubelet::Kubelet;
use crate::objects::{describe, is_static, is_terminal_phase, spec, status, uid};
use crate::pod::resources::pod_total;
use crate::pod::sandbox::log_directory;
use crate::quantity::{amount, binary};
use crate::stats::{self, PodUsage};
use crate::volumes::volume_directory;

/// Usage is looked at this often (upstream's).
const PERIOD: Duration = Duration::from_secs(10);
const STORAGE: &str = "ephemeral-storage";
/// The seconds that a pod has to end which must go at once.
pub const GRACE: i64 = 1;

/// What pods have to go for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The node runs short of something, or they use too much of it.
    Shortage,
    NodeShutdown,
}

impl Cause {
    pub const ALL: [Self; 2] = [Self::Shortage, Self::NodeShutdown];

    /// For the pod's status.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Shortage => "Evicted",
            Self::NodeShutdown => "Terminated",
        }
    }

    /// Whether there is an event about each pod.
    pub fn has_event(self) -> bool {
        match self {
            Self::Shortage => true,
            Self::NodeShutdown => false,
        }
    }
}

/// Why a pod has to go, and how fast.
#[derive(Debug)]
pub struct Eviction {
    pub cause: Cause,
    /// For the pod's status.
    pub message: String,
    /// Seconds that it has to end, at most.
    pub grace: i64,
    /// Dropped when the pod has ended, and the API server was told once; or when there is no pod.
    pub ended: Option<DropGuard>,
}

/// The pods that have to go, until their workers take note.
#[derive(Default)]
pub struct Evictions {
    orders: Mutex<HashMap<String, Eviction>>,
    added: Notify,
}

impl Evictions {
    /// A pod, by its uid, has to go.
    pub fn add(&self, uid: &str, eviction: Eviction) {
        self.orders.lock().insert(uid.to_owned(), eviction);
        self.added.notify_waiters();
    }

    /// Whether a pod has to go.
    pub fn take(&self, uid: &str) -> Option<Eviction> {
        self.orders.lock().remove(uid)
    }

    /// Waits until a pod has to go that has not had to, or in less time than it ends in anyway.
    pub async fn sooner(&self, uid: &str, ends_in: Option<i64>) {
        loop {
            let added = self.added.notified();
            let sooner = |order: &Eviction| ends_in.is_none_or(|seconds| order.grace < seconds);
            if self.orders.lock().get(uid).is_some_and(sooner) {
                return;
            }
            added.await;
        }
    }
}

/// What a pod uses of the disk, in bytes: by volume, and by container its writable layer and logs.
#[derive(Clone, Debug, Default)]
pub struct Used {
    volumes: BTreeMap<String, u64>,
    containers: BTreeMap<String, u64>,
}

impl Used {
    fn sum(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).sum()
    }
}

impl From<Used> for PodUsage {
    fn from(used: Used) -> Self {
        Self { total: used.sum(), containers: used.containers }
    }
}

fn limit(container: &Container) -> Option<i64> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;
    limits.get(STORAGE).map(|q| amount(q).value()).filter(|l| *l > 0)
}

fn bytes(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Whether a pod has any limit of this kind.
fn is_limited(pod: &Pod) -> bool {
    let volumes = spec(pod).volumes.iter().flatten();
    volumes.into_iter().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
        || spec(pod).containers.iter().any(|c| limit(c).is_some())
}

/// Why a pod has to go; upstream's words.
fn exceeds(pod: &Pod, used: &Used) -> Option<String> {
    for volume in spec(pod).volumes.iter().flatten() {
        let size = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        if let (Some(size), Some(used)) = (size, used.volumes.get(&volume.name)) {
            let most = amount(size).value();
            if most > 0 && bytes(*used) > most {
                let name = &volume.name;
                return Some(format!(
                    "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                    size.0
                ));
            }
        }
    }
    let total = pod_total(pod, |r| r.limits.as_ref()).get(STORAGE).map_or(0, Quantity::value);
    let all = used.sum();
    let every = spec(pod).containers.iter().all(|c| limit(c).is_some());
    if every && total > 0 && bytes(all) > total {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(total).0
        ));
    }
    spec(pod).containers.iter().find_map(|container| {
        let most = limit(container)?;
        let used = used.containers.get(&container.name)?;
        (bytes(*used) > most).then(|| {
            format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name,
                binary(most).0
            )
        })
    })
}

/// The bytes that a directory's files take.
fn size(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let (mut sum, mut pending) = (0, vec![directory.to_owned()]);
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            // Sparse files take less than they show.
            sum += meta.blocks() * 512;
            if meta.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    sum
}

/// Measures a pod's directories.
fn measure(root: &Path, logs: &Path, pod: &Pod, layers: &BTreeMap<String, u64>) -> Used {
    let mut used = Used::default();
    for volume in spec(pod).volumes.iter().flatten() {
        let disk = volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() != Some("Memory"));
        if disk {
            let place = volume_directory(root, uid(pod), "empty-dir", &volume.name);
            used.volumes.insert(volume.name.clone(), size(&place));
        }
    }
    let logs = log_directory(logs, pod);
    for container in &spec(pod).containers {
        let layer = layers.get(&container.name).copied().unwrap_or(0);
        used.containers.insert(container.name.clone(), layer + size(&logs.join(&container.name)));
    }
    used
}

/// What pods use of the disk, by uid. `layers`: their writable layers, by container.
pub async fn disk(
    k: &Kubelet,
    pods: &[Arc<Pod>],
    layers: HashMap<String, BTreeMap<String, u64>>,
) -> HashMap<String, Used> {
    let (root, logs, pods) = (k.root.clone(), k.logs.clone(), pods.to_vec());
    // Walking through directories takes its time.
    let measured = tokio::task::spawn_blocking(move || {
        let none = BTreeMap::new();
        let one = |pod: &Arc<Pod>| {
            let layers = layers.get(uid(pod)).unwrap_or(&none);
            (uid(pod).to_owned(), measure(&root, &logs, pod, layers))
        };
        pods.iter().map(one).collect()
    });
    measured.await.unwrap_or_default()
}

/// Watches the pods' usage until shutdown.
pub async fn run(k: Arc<Kubelet>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = k.shutdown.cancelled() => return,
        }
        let limited: Vec<Arc<Pod>> = {
            let pods = k.pods.read();
            let live = pods.values().filter(|p| {
                is_limited(p) && !is_static(p) && !is_terminal_phase(status(p).phase.as_deref())
            });
            live.cloned().collect()
        };
        if limited.is_empty() {
            continue;
        }
        let layers = match stats::written(&k).await {
            Ok(layers) => layers,
            Err(error) => {
                tracing::warn!(%error, "usage of the disk not known");
                continue;
            }
        };
        let used = disk(&k, &limited, layers).await;
        for pod in &limited {
            let Some(message) = used.get(uid(pod)).and_then(|used| exceeds(pod, used)) else {
                continue;
            };
            tracing::info!(pod = describe(pod), message, "pod evicted");
            let (cause, grace) = (Cause::Shortage, GRACE);
            k.evictions.add(uid(pod), Eviction { cause, message, grace, ended: None });
            k.wake(uid(pod));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_of_volumes_containers_and_pods() {
        let limits = |n: &str| json!({"limits": {"ephemeral-storage": n}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "10Mi"}}],
            "containers": [
                {"name": "a", "resources": limits("1Mi")},
                {"name": "b", "resources": limits("20Mi")},
            ],
        }}))
        .unwrap();
        assert!(is_limited(&pod) && !is_limited(&Pod::default()));
        for (volume, a, b, want) in [
            (10, 1, 1, None),
            (11, 0, 0, Some("Usage of EmptyDir volume \"v\" exceeds the limit \"10Mi\". ")),
            (0, 2, 0, Some("Container a exceeded its local ephemeral storage limit \"1Mi\". ")),
            (
                10,
                1,
                11,
                Some(
                    "Pod ephemeral local storage usage exceeds the total limit of containers 21Mi. ",
                ),
            ),
        ] {
            let used = Used {
                volumes: BTreeMap::from([("v".to_owned(), volume << 20)]),
                containers: BTreeMap::from([("a".to_owned(), a << 20), ("b".to_owned(), b << 20)]),
            };
            assert_eq!(exceeds(&pod, &used).as_deref(), want, "{volume} {a} {b}");
        }
    }

    #[tokio::test]
    async fn workers_hear_of_what_is_more_urgent() {
        let order = |grace| Eviction {
            cause: Cause::NodeShutdown,
            message: String::new(),
            grace,
            ended: None,
        };
        for (ends_in, grace, want) in
            [(None, 30, true), (Some(30), 10, true), (Some(10), 10, false), (Some(1), 10, false)]
        {
            let evictions = Evictions::default();
            let hears = evictions.sooner("a", ends_in);
            tokio::pin!(hears);
            assert!(futures::poll!(&mut hears).is_pending());
            evictions.add("b", order(0));
            assert!(futures::poll!(&mut hears).is_pending());
            evictions.add("a", order(grace));
            assert_eq!(futures::poll!(&mut hears).is_ready(), want, "{ends_in:?} {grace}");
            // As for those who come later.
            let later = evictions.sooner("a", ends_in);
            tokio::pin!(later);
            assert_eq!(futures::poll!(later).is_ready(), want, "{ends_in:?} {grace}");
            assert_eq!(evictions.take("a").map(|order| order.grace), Some(grace));
        }
    }

    #[test]
    fn files_are_counted_at_all_depths() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1; 100_000]).unwrap();
        assert!(size(dir.path()) >= 100_000);
        assert_eq!(size(&dir.path().join("none")), 0);
    }
}
