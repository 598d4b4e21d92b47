//! Keeps the node from running out of memory, disk or processes: frees what nobody uses, then
//! evicts pods, one at a time (upstream: `pkg/kubelet/eviction`).
//!
//! `thresholds` is what must stay free, `judge` what follows from what is, `rank` who goes first.

mod judge;
mod rank;
mod thresholds;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::matching::tolerates;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Taint};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::eviction::{self, Cause, Eviction, GRACE};
use crate::kubelet::Kubelet;
use crate::objects::{describe, is_terminal_phase, spec, status, uid};
use crate::pod::resources::qos_class;
use crate::pod::status::Waiting;
use crate::runtime::labels;
use crate::{image_gc, stats};
use judge::{Judge, Observation, Observations};
use rank::Usage;
pub use rank::is_critical;
pub use thresholds::{Condition, Signal, Threshold, default_hard, kept, parse};

/// Upstream's period.
const PERIOD: Duration = Duration::from_secs(10);
/// An evicted pod may take so long to go before the next is chosen.
const CLEANUP: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);

/// The conditions that the node shows, and that pods are admitted by.
pub type Pressure = watch::Sender<BTreeSet<Condition>>;

/// Whether a pod may begin on a node with these conditions; upstream's rules.
///
/// # Errors
/// Reason and message that the pod fails with.
pub fn admits(conditions: &BTreeSet<Condition>, pod: &Pod) -> Result<(), Waiting> {
    if conditions.is_empty() || is_critical(pod) {
        return Ok(());
    }
    // Only who was promised no memory makes a shortage of memory worse.
    if conditions.iter().eq([&Condition::Memory]) {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        let tolerated = spec(pod).tolerations.iter().flatten().any(|t| tolerates(t, &taint));
        if tolerated || qos_class(pod) != "BestEffort" {
            return Ok(());
        }
    }
    let names: Vec<&str> = conditions.iter().map(|c| c.name()).collect();
    Err(Waiting {
        reason: "Evicted".to_owned(),
        message: format!("The node had condition: [{}]. ", names.join(" ")),
    })
}

/// A file system's bytes and inodes.
fn file_system(path: &Path) -> Option<(Observation, Observation)> {
    let s = nix::sys::statvfs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks * s.fragment_size();
    let room = Observation { available: bytes(s.blocks_available()), capacity: bytes(s.blocks()) };
    // Some file systems count no inodes.
    let inodes = Observation { available: s.files_available(), capacity: s.files() };
    Some((room, inodes))
}

/// The kernel's processes and what it takes at most.
fn processes() -> Option<Observation> {
    let most = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok()?;
    let capacity: u64 = most.trim().parse().ok()?;
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let all: u64 = load.split_whitespace().nth(3)?.split('/').nth(1)?.parse().ok()?;
    Some(Observation { available: capacity.saturating_sub(all), capacity })
}

/// What is free now. `images`: where the runtime keeps images.
fn observe(root: &Path, images: &Path, memory: u64) -> Observations {
    let mut observed = Observations::new();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(available) = crate::node::machine::meminfo(&meminfo, "MemAvailable") {
        let available = available.unsigned_abs();
        observed.insert(Signal::MemoryAvailable, Observation { available, capacity: memory });
    }
    let disks = [
        (root, Signal::NodefsAvailable, Signal::NodefsInodesFree),
        (images, Signal::ImagefsAvailable, Signal::ImagefsInodesFree),
    ];
    for (path, room, inodes) in disks {
        let Some((bytes, files)) = file_system(path) else { continue };
        observed.insert(room, bytes);
        if files.capacity > 0 {
            observed.insert(inodes, files);
        }
    }
    observed.extend(processes().map(|found| (Signal::PidAvailable, found)));
    observed
}

/// The pods that run and may be evicted, with what they use of what is short.
async fn usages(k: &Kubelet, signal: Signal) -> Vec<Usage> {
    let pods: Vec<Arc<Pod>> = k.pods.read().values().cloned().collect();
    let runs = |pod: &Arc<Pod>| {
        !is_terminal_phase(status(pod).phase.as_deref())
            && status(pod).start_time.is_some()
            && !is_critical(pod)
    };
    let pods: Vec<Arc<Pod>> = pods.into_iter().filter(runs).collect();
    let by_pod = match signal.condition() {
        Condition::Memory => stats::memory(k).await,
        Condition::Disk => match stats::written(k).await {
            Ok(layers) => {
                let used = eviction::disk(k, &pods, layers).await;
                Ok(used.into_iter().map(|(uid, used)| (uid, used.into())).collect())
            }
            Err(error) => Err(error),
        },
        Condition::Pid => Ok(stats::processes(k, &pods)),
    };
    let by_pod = match by_pod {
        Ok(by_pod) => by_pod,
        Err(error) => {
            tracing::warn!(%error, "what pods use is not known");
            return Vec::new();
        }
    };
    let usage = |pod: Arc<Pod>| {
        let used = by_pod.get(uid(&pod))?.clone();
        Some(Usage { pod, used })
    };
    pods.into_iter().filter_map(usage).collect()
}

/// Looks after the node until shutdown.
pub async fn run(k: Arc<Kubelet>) {
    let mut judge =
        Judge::new(k.thresholds.clone(), k.config.eviction_pressure_transition_period.0);
    let memory = k.machine.memory.unsigned_abs();
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = k.shutdown.cancelled() => return,
        }
        // Where the runtime keeps images; the node's own disk while it does not tell.
        let images = image_gc::place(&k).await.unwrap_or_else(|| k.root.clone());
        let look = || observe(&k.root, &images, memory);
        let observed = look();
        let verdict = judge.judge(&observed, Instant::now());
        k.pressure.send_if_modified(|shown| {
            let changed = *shown != verdict.conditions;
            shown.clone_from(&verdict.conditions);
            changed
        });
        let Some(threshold) = verdict.reclaim else { continue };
        let resource = threshold.signal.resource();
        let node = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(k.node_name.clone()),
            uid: Some(k.node_name.clone()),
            ..ObjectReference::default()
        };
        let text = format!("Attempting to reclaim {resource}");
        k.event(node, true, "EvictionThresholdMet", text);
        // At 100 percent images are never collected.
        let collects = k.config.image_gc_high_threshold_percent < 100;
        if threshold.signal.condition() == Condition::Disk && collects {
            if let Err(error) = image_gc::reclaim(&k).await {
                tracing::warn!(%error, "unused images not removed");
            }
            if !judge.is_short(&look()) {
                continue;
            }
        }
        let mut candidates = usages(&k, threshold.signal).await;
        rank::order(threshold.signal, &mut candidates);
        let Some(first) = candidates.first() else {
            tracing::warn!(resource, "the node runs short and no pod can be evicted");
            continue;
        };
        let message = rank::message(&threshold, first, &observed);
        tracing::info!(pod = describe(&first.pod), message, "pod evicted");
        let grace = match threshold.is_hard() {
            true => GRACE,
            false => i64::from(k.config.eviction_max_pod_grace_period),
        };
        let order = Eviction { cause: Cause::Shortage, message, grace, ended: None };
        k.evictions.add(uid(&first.pod), order);
        k.wake(uid(&first.pod));
        gone(&k, uid(&first.pod)).await;
    }
}

/// Waits until a pod's containers have ended, for a while.
async fn gone(k: &Kubelet, uid: &str) {
    let deadline = Instant::now() + CLEANUP;
    while Instant::now() < deadline && !k.shutdown.is_cancelled() {
        tokio::time::sleep(LOOK).await;
        let filter = cri::ContainerFilter {
            state: Some(cri::ContainerStateValue {
                state: cri::ContainerState::ContainerRunning.into(),
            }),
            label_selector: [(labels::POD_UID.to_owned(), uid.to_owned())].into(),
            ..cri::ContainerFilter::default()
        };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        if k.cri.list_containers(request).await.is_ok_and(|l| l.containers.is_empty()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn admission_under_pressure() {
        let pod = |spec: serde_json::Value| -> Pod {
            serde_json::from_value(json!({ "spec": spec })).expect("a pod")
        };
        let plain = pod(json!({"containers": [{"name": "a"}]}));
        let promised = pod(
            json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "1Mi"}}}]}),
        );
        let critical = pod(json!({"priority": 2_000_001_000, "containers": [{"name": "a"}]}));
        let tolerant = pod(json!({"containers": [{"name": "a"}], "tolerations":
            [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]}));
        let memory = BTreeSet::from([Condition::Memory]);
        let both = BTreeSet::from([Condition::Memory, Condition::Disk]);
        let none = BTreeSet::new();
        for (conditions, pod, refused) in [
            (&none, &plain, None),
            (&memory, &plain, Some("The node had condition: [MemoryPressure]. ")),
            (&memory, &promised, None),
            (&memory, &tolerant, None),
            (&both, &promised, Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&both, &tolerant, Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&both, &critical, None),
        ] {
            let got = admits(conditions, pod).err().map(|why| why.message);
            assert_eq!(got.as_deref(), refused);
        }
    }

    #[test]
    fn the_machine_is_observed() {
        let observed = observe(Path::new("/"), Path::new("/proc"), 1 << 40);
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::PidAvailable] {
            let found = observed.get(&signal).expect("an observation");
            assert!(found.available > 0 && found.available <= found.capacity, "{signal:?}");
        }
    }
}
