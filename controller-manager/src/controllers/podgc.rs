//! Pods that nobody else ends: of nodes that are gone or out of service (KEP-2268), never placed and
//! ending, too many finished.

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

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

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
        let nodes = self.nodes.list();
        let out: HashSet<String> = nodes
            .iter()
            .filter(|node| is_out_of_service(node))
            .filter_map(|node| node.metadata.name.clone())
            .collect();
        let nodes: HashSet<String> = nodes.iter().filter_map(|n| n.metadata.name.clone()).collect();
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
        let mut plan = plan(&all, (&lost, &out), self.threshold, now);
        plan.again(PERIOD);
        plan
    }
}

/// Whether somebody has said that the node is shut down for good, and it is not ready.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE)
        && !conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// `lost`: nodes that are gone, `out`: those that are out of service.
fn plan(
    all: &[Arc<Pod>],
    (lost, out): (&HashSet<String>, &HashSet<String>),
    threshold: usize,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let is_ending = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_some();
    for pod in all.iter().filter(is_ending).filter(|p| out.contains(pods::node_name(p))) {
        // A pod that has failed goes at once: no kubelet is waited for.
        if !pods::is_finished(pod) {
            let patch =
                json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed"}});
            plan.push(Action::Patch(Target::of::<Pod>(&Key::of(&**pod)), "status", patch));
        }
        plan.push(Action::delete(&**pod));
    }
    for pod in all.iter().filter(|p| lost.contains(pods::node_name(p))) {
        if !pods::is_finished(pod) {
            plan.push(disrupted(pod, now));
        }
        plan.push(Action::delete(&**pod));
    }
    for pod in all.iter().filter(is_ending).filter(|p| pods::node_name(p).is_empty()) {
        plan.push(Action::delete(&**pod));
    }
    let mut finished: Vec<&Arc<Pod>> = all
        .iter()
        .filter(|p| pods::is_finished(p))
        .filter(|p| p.metadata.deletion_timestamp.is_none())
        .collect();
    if threshold > 0 && finished.len() > threshold {
        // Evicted ones first, then the oldest.
        let evicted = |pod: &Pod| {
            let reason = pod.status.as_ref().and_then(|s| s.reason.as_deref());
            pods::phase(pod) == "Failed" && reason == Some("Evicted")
        };
        finished.sort_by_key(|p| (!evicted(p), p.metadata.creation_timestamp.clone()));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str, ending: bool, reason: &str) -> Arc<Pod> {
        let minute = name.len();
        let deleted = ending.then_some("2026-01-01T00:30:00Z");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": name, "uid": name,
                    "creationTimestamp": format!("2026-01-01T00:0{minute}:00Z"),
                    "deletionTimestamp": deleted},
                "spec": {"containers": [], "nodeName": node},
                "status": {"phase": phase, "reason": reason},
            }))
            .expect("a pod"),
        )
    }

    /// `failed a, deleted a` and so on.
    fn told(plan: &Plan) -> String {
        let texts = plan.actions.iter().map(|action| match action {
            Action::Patch(target, "status", _) => format!("failed {}", target.key.name),
            Action::Delete(target, ..) => format!("deleted {}", target.key.name),
            other => format!("{other:?}"),
        });
        texts.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn pods_that_nobody_else_ends_are_ended() {
        let names = |name: &str| HashSet::from([name.to_owned()]);
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        for (pod, want) in [
            (pod("a", "lost", "Running", false, ""), "failed a, deleted a"),
            (pod("a", "lost", "Succeeded", false, ""), "deleted a"),
            (pod("a", "out", "Running", true, ""), "failed a, deleted a"),
            (pod("a", "out", "Failed", true, ""), "deleted a"),
            (pod("a", "out", "Running", false, ""), ""),
            (pod("a", "fine", "Running", true, ""), ""),
            (pod("a", "", "Pending", true, ""), "deleted a"),
            (pod("a", "", "Pending", false, ""), ""),
        ] {
            let made = plan(std::slice::from_ref(&pod), (&names("lost"), &names("out")), 0, now);
            assert_eq!(told(&made), want, "{pod:?}");
        }
    }

    #[test]
    fn of_finished_pods_the_evicted_and_the_old_go_first() {
        let all = [
            pod("a", "n", "Succeeded", false, ""),
            pod("bb", "n", "Failed", false, ""),
            pod("ccc", "n", "Failed", false, "Evicted"),
            pod("dddd", "n", "Running", false, ""),
        ];
        let none = HashSet::new();
        for (threshold, want) in
            [(0, ""), (3, ""), (2, "deleted ccc"), (1, "deleted ccc, deleted a")]
        {
            let now = "2026-01-01T01:00:00Z".parse().expect("a time");
            let made = plan(&all, (&none, &none), threshold, now);
            assert_eq!(told(&made), want, "{threshold}");
        }
    }

    #[test]
    fn a_node_is_out_of_service_by_its_taint_and_while_it_is_not_ready() {
        for (taint, ready, want) in [
            (OUT_OF_SERVICE, "Unknown", true),
            (OUT_OF_SERVICE, "True", false),
            ("other", "Unknown", false),
        ] {
            let node = serde_json::from_value(json!({
                "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .expect("a node");
            assert_eq!(is_out_of_service(&node), want, "{taint} {ready}");
        }
    }
}
