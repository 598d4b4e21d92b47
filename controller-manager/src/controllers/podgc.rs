//! Pods that nobody else ends: of nodes that are gone, never placed and ending, too many finished.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::lean::Pod;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::pods;
use crate::runner::{Context, Controller};

/// How often all pods are looked through.
const PERIOD: Duration = Duration::from_secs(20);
/// A node that is gone may come back so soon.
const QUARANTINE: Duration = Duration::from_secs(40);

pub struct PodGc {
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    /// Finished pods that are kept; 0 keeps all.
    threshold: usize,
    /// Nodes that were missing at the last look, and since when.
    missing: parking_lot::Mutex<std::collections::HashMap<String, Timestamp>>,
}

impl PodGc {
    pub fn new(context: &Context, threshold: usize) -> Self {
        Self {
            pods: context.caches.of(),
            nodes: context.caches.of(),
            threshold,
            missing: parking_lot::Mutex::default(),
        }
    }
}

impl Controller for PodGc {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn wire(&self, queue: &Queue<Key>) {
        queue.add(Key::new("", "all"));
    }

    fn plan(&self, _key: &Key, now: Timestamp) -> Plan {
        let all = self.pods.list();
        let nodes: HashSet<String> =
            self.nodes.list().iter().filter_map(|n| n.metadata.name.clone()).collect();
        let lost: HashSet<String> = {
            let mut missing = self.missing.lock();
            let used = all.iter().map(|p| pods::node_name(p)).filter(|n| !n.is_empty());
            let gone: HashSet<String> =
                used.filter(|n| !nodes.contains(*n)).map(str::to_owned).collect();
            missing.retain(|n, _| gone.contains(n));
            for node in &gone {
                missing.entry(node.clone()).or_insert(now);
            }
            let long = |since: &Timestamp| {
                Duration::try_from(now.duration_since(*since)).is_ok_and(|d| d >= QUARANTINE)
            };
            missing.iter().filter(|(_, since)| long(since)).map(|(n, _)| n.clone()).collect()
        };
        let mut plan = plan(&all, &lost, self.threshold, now);
        plan.again(PERIOD);
        plan
    }
}

fn plan(all: &[Arc<Pod>], lost: &HashSet<String>, threshold: usize, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    for pod in all.iter().filter(|p| lost.contains(pods::node_name(p))) {
        if !pods::is_finished(pod) {
            plan.push(disrupted(pod, now));
        }
        plan.push(Action::delete(&**pod));
    }
    let ending =
        |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some() && pods::node_name(p).is_empty();
    for pod in all.iter().filter(ending) {
        plan.push(Action::delete(&**pod));
    }
    let mut finished: Vec<&Arc<Pod>> = all
        .iter()
        .filter(|p| pods::is_finished(p))
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .collect();
    if threshold > 0 && finished.len() > threshold {
        finished.sort_by_key(|p| p.metadata.creation_timestamp.clone());
        for pod in &finished[..finished.len() - threshold] {
            plan.push(Action::delete(&***pod));
        }
    }
    plan
}

/// Its node is gone: the pod has failed.
fn disrupted(pod: &Pod, now: Timestamp) -> Action {
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {
        "phase": "Failed",
        "conditions": [{
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }],
    }});
    Action::Patch(Target::of::<Pod>(&Key::of(pod)), "status", patch)
}
