//! Finds out what has changed in the runtime: lists its containers each second and wakes the
//! workers of the pods that differ.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};

use crate::kubelet::Kubelet;
use crate::runtime::labels;

const PERIOD: Duration = Duration::from_secs(1);

/// A digest of what the runtime has of each pod, by uid.
fn digests(sandboxes: &[cri::PodSandbox], containers: &[cri::Container]) -> BTreeMap<String, u64> {
    let mut parts: BTreeMap<String, Vec<(&str, i32)>> = BTreeMap::new();
    for sandbox in sandboxes {
        if let Some(uid) = sandbox.labels.get(labels::POD_UID) {
            parts.entry(uid.clone()).or_default().push((&sandbox.id, sandbox.state));
        }
    }
    for container in containers {
        if let Some(uid) = container.labels.get(labels::POD_UID) {
            parts.entry(uid.clone()).or_default().push((&container.id, container.state));
        }
    }
    parts
        .into_iter()
        .map(|(uid, mut list)| {
            list.sort_unstable();
            let mut hasher = DefaultHasher::new();
            list.hash(&mut hasher);
            (uid, hasher.finish())
        })
        .collect()
}

/// What relisting shows: the uids of pods that the runtime has anything of.
pub type Seen = Arc<parking_lot::Mutex<Option<HashSet<String>>>>;

/// Relists until shutdown. `changed` is told when the set of pods differs.
pub async fn run(k: Arc<Kubelet>, seen: Seen, changed: Arc<Notify>) {
    let mut last: HashMap<String, u64> = HashMap::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = k.shutdown.cancelled() => return,
        }
        let sandboxes = k.cri.list_pod_sandbox(cri::ListPodSandboxRequest::default());
        let containers = k.cri.list_containers(cri::ListContainersRequest::default());
        let (sandboxes, containers) = match tokio::try_join!(sandboxes, containers) {
            Ok((s, c)) => (s.items, c.containers),
            Err(error) => {
                tracing::warn!(%error, "relisting failed");
                continue;
            }
        };
        *k.relisted.lock() = Some(Instant::now());
        let ids: HashSet<&str> = containers.iter().map(|c| c.id.as_str()).collect();
        k.views.retain(|id| ids.contains(id));
        let fresh = digests(&sandboxes, &containers);
        for (uid, digest) in &fresh {
            if last.get(uid) != Some(digest) {
                k.wake(uid);
            }
        }
        for uid in last.keys().filter(|uid| !fresh.contains_key(*uid)) {
            k.wake(uid);
        }
        let uids: HashSet<String> = fresh.keys().cloned().collect();
        let differs = seen.lock().as_ref() != Some(&uids);
        if differs {
            *seen.lock() = Some(uids);
            changed.notify_one();
        }
        last = fresh.into_iter().collect();
    }
}
