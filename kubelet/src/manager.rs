//! Keeps one worker for each pod: those bound to this node in the API, static ones, and those
//! that only the runtime still has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use client::Cache;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::kubelet::Kubelet;
use crate::objects::{
    CONFIG_MIRROR, annotation, is_mirror, is_static, is_terminal_phase, name, namespace, spec, uid,
};
use crate::pleg::Seen;
use crate::pod::resources::{pod_total, qos_class};
use crate::pod::worker::{Desired, Worker};
use crate::static_pods::{self, StaticPods};
use crate::volumes::files;

/// Everything is looked over this often, whatever happened.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

struct Handle {
    desired: watch::Sender<Desired>,
    task: JoinHandle<()>,
}

/// Keeps the mirrors of static pods, whenever all has been looked over. Apart from that, since pods
/// must not wait for an API server that does not answer.
async fn mirror(
    k: Arc<Kubelet>,
    statics: StaticPods,
    api: Option<Cache<Pod>>,
    looked_over: Arc<Notify>,
) {
    loop {
        looked_over.notified().await;
        static_pods::mirror(&k, &statics.list(), api.as_ref()).await;
    }
}

/// The set of workers.
pub struct Manager {
    k: Arc<Kubelet>,
    api: Option<Cache<Pod>>,
    statics: StaticPods,
    seen: Seen,
    changed: Arc<Notify>,
    workers: HashMap<String, Handle>,
}

impl Manager {
    pub fn new(
        k: Arc<Kubelet>,
        api: Option<Cache<Pod>>,
        statics: StaticPods,
        seen: Seen,
        changed: Arc<Notify>,
    ) -> Self {
        Self { k, api, statics, seen, changed, workers: HashMap::new() }
    }

    /// Works until shutdown.
    pub async fn run(mut self) {
        if let Some(api) = &self.api {
            let changed = Arc::clone(&self.changed);
            api.on_change(move |_| changed.notify_one());
        }
        let looked_over = Arc::new(Notify::new());
        let mirrors = tokio::spawn(mirror(
            Arc::clone(&self.k),
            self.statics.clone(),
            self.api.clone(),
            Arc::clone(&looked_over),
        ));
        loop {
            self.reconcile();
            looked_over.notify_one();
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(HOUSEKEEPING) => self.tidy(),
                () = self.k.shutdown.cancelled() => break,
            }
        }
        mirrors.abort();
        for (_, handle) in self.workers.drain() {
            // They end by themselves at shutdown; one that hangs in a call is cut off.
            if tokio::time::timeout(Duration::from_secs(2), handle.task).await.is_err() {
                tracing::debug!("a pod's worker was cut off");
            }
        }
    }

    /// Whether all sources of pods have been read once, so that what is missing is gone.
    fn sources_ready(&self) -> bool {
        self.api.as_ref().is_none_or(Cache::is_synced)
    }

    fn reconcile(&mut self) {
        self.reap();
        let all = self.api.as_ref().map(Cache::list).unwrap_or_default();
        let (mirrors, own): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| is_mirror(p));
        let mut wanted: BTreeMap<String, Desired> = BTreeMap::new();
        for pod in own {
            wanted.insert(
                uid(&pod).to_owned(),
                Desired { pod: Some(pod), mirror: None, gone: false },
            );
        }
        for pod in self.statics.list() {
            let mirror = mirrors.iter().find(|m| {
                name(m) == name(&pod)
                    && namespace(m) == namespace(&pod)
                    && annotation(m, CONFIG_MIRROR) == Some(uid(&pod))
            });
            let mirror = mirror.cloned();
            wanted.insert(uid(&pod).to_owned(), Desired { pod: Some(pod), mirror, gone: false });
        }
        *self.k.pods.write() =
            wanted.iter().filter_map(|(uid, d)| d.pod.clone().map(|p| (uid.clone(), p))).collect();
        for (uid, desired) in &wanted {
            if !self.has_to_wait(uid, desired) {
                self.give(uid, desired.clone());
            }
        }
        if !self.sources_ready() {
            return;
        }
        for (uid, handle) in &self.workers {
            if !wanted.contains_key(uid) {
                handle.desired.send_if_modified(|d| !std::mem::replace(&mut d.gone, true));
            }
        }
        let orphans: Vec<String> = self.seen.lock().iter().flatten().cloned().collect();
        for uid in orphans {
            if !wanted.contains_key(&uid) && !self.workers.contains_key(&uid) {
                self.give(&uid, Desired { gone: true, ..Desired::default() });
            }
        }
    }

    /// Whether a static pod has to wait: the one that had its name before is still there.
    fn has_to_wait(&self, own: &str, desired: &Desired) -> bool {
        let Some(pod) = desired.pod.as_ref().filter(|p| is_static(p)) else { return false };
        if self.workers.contains_key(own) {
            return false;
        }
        self.workers.iter().any(|(uid, handle)| {
            let other = handle.desired.borrow();
            let other = other.pod.as_ref();
            uid != own
                && other.is_some_and(|o| {
                    is_static(o) && name(o) == name(pod) && namespace(o) == namespace(pod)
                })
        })
    }

    fn give(&mut self, uid: &str, desired: Desired) {
        if let Some(handle) = self.workers.get(uid) {
            handle.desired.send_if_modified(|current| {
                let same = |a: &Option<Arc<Pod>>, b: &Option<Arc<Pod>>| match (a, b) {
                    (Some(a), Some(b)) => {
                        a.metadata.resource_version.is_some()
                            && a.metadata.resource_version == b.metadata.resource_version
                            || Arc::ptr_eq(a, b)
                    }
                    (None, None) => true,
                    _ => false,
                };
                let changed = !same(&current.pod, &desired.pod)
                    || !same(&current.mirror, &desired.mirror)
                    || current.gone != desired.gone;
                if changed {
                    *current = desired;
                }
                changed
            });
            return;
        }
        let (sender, receiver) = watch::channel(desired);
        let wake = Arc::new(Notify::new());
        self.k.wakers.lock().insert(uid.to_owned(), Arc::clone(&wake));
        let worker = Worker::new(Arc::clone(&self.k), uid.to_owned(), receiver, wake);
        let changed = Arc::clone(&self.changed);
        let task = tokio::spawn(async move {
            worker.run().await;
            changed.notify_one();
        });
        self.workers.insert(uid.to_owned(), Handle { desired: sender, task });
    }

    /// Forgets workers that are through. A worker that ended though its pod is wanted (it cannot,
    /// but for a panic) is made again.
    fn reap(&mut self) {
        let ended: Vec<String> = self
            .workers
            .iter()
            .filter(|(_, h)| h.task.is_finished())
            .map(|(u, _)| u.clone())
            .collect();
        for uid in ended {
            self.workers.remove(&uid);
            self.k.wakers.lock().remove(&uid);
            self.k.prober.forget(&uid);
        }
    }

    /// Directories and cgroups of pods that nobody knows, and the shares of classes.
    fn tidy(&mut self) {
        self.k.images.collect();
        self.k.references.tidy(&self.k.config);
        self.k.crash_backoff.collect(tokio::time::Instant::now());
        let burstable: i64 = {
            let pods = self.k.pods.read();
            let live = pods.values().filter(|p| {
                qos_class(p) == "Burstable"
                    && !is_terminal_phase(p.status.as_ref().and_then(|s| s.phase.as_deref()))
                    && !spec(p).containers.is_empty()
            });
            live.map(|p| {
                pod_total(p, |r| r.requests.as_ref()).get("cpu").map_or(0, Quantity::milli_value)
            })
            .sum()
        };
        if let Err(error) = self.k.cgroups.balance(burstable) {
            tracing::warn!(error = format!("{error:#}"), "shares of classes not set");
        }
        if !self.sources_ready() {
            return;
        }
        let Some(seen) = self.seen.lock().clone() else { return };
        let unknown = |uid: &str| !seen.contains(uid) && !self.workers.contains_key(uid);
        let directories = std::fs::read_dir(self.k.root.join("pods"));
        for entry in directories.into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if unknown(&uid)
                && let Err(error) = files::remove(&entry.path())
            {
                tracing::warn!(uid, %error, "directory of a pod that is gone not removed");
            }
        }
        for uid in self.k.cgroups.pods() {
            if unknown(&uid)
                && let Err(error) = self.k.cgroups.remove_pod(&uid)
            {
                tracing::debug!(
                    uid,
                    error = format!("{error:#}"),
                    "cgroup of a pod that is gone not removed"
                );
            }
        }
    }
}
