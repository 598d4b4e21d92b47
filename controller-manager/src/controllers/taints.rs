//! NoExecute taints: pods that do not tolerate them are deleted, at once or after a while
//! (taint eviction).

use std::time::Duration;

use client::events::EventType;
use client::lean::Pod;
use client::matching::tolerates;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::pods;
use crate::runner::{Context, Controller};

pub struct TaintEviction {
    pods: Cache<Pod>,
    nodes: Cache<Node>,
}

impl TaintEviction {
    pub fn new(context: &Context) -> Self {
        Self { pods: context.caches.of(), nodes: context.caches.of() }
    }
}

fn no_execute(node: &Node) -> Vec<&Taint> {
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref());
    taints.into_iter().flatten().filter(|t| t.effect == "NoExecute").collect()
}

/// How long a pod may stay with these taints; `None`: for ever.
fn patience(tolerations: &[Toleration], taints: &[&Taint], now: Timestamp) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in taints {
        let covering: Vec<&Toleration> =
            tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if covering.is_empty() {
            return Some(Duration::ZERO);
        }
        let seconds = covering.iter().filter_map(|t| t.toleration_seconds).min();
        let Some(seconds) = seconds else { continue };
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let left = allowed.saturating_sub(passed);
        shortest = Some(shortest.map_or(left, |s| s.min(left)));
    }
    shortest
}

impl Controller for TaintEviction {
    fn name(&self) -> &'static str {
        "taint-eviction-controller"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.pods.feed(queue);
        let (q, pods) = (queue.clone(), self.pods.clone());
        self.nodes.on_change(move |change| {
            let taints = |n: Option<&std::sync::Arc<Node>>| {
                n.map(|n| no_execute(n).into_iter().cloned().collect::<Vec<_>>())
                    .unwrap_or_default()
            };
            if taints(change.old) != taints(change.new) {
                for pod in pods.list().iter().filter(|p| pods::node_name(p) == change.key.name) {
                    q.add(Key::of(&**pod));
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(pod) = self.pods.get(key) else { return Plan::default() };
        let node = self.nodes.get(&Key::new("", pods::node_name(&pod)));
        plan(&pod, node.as_deref(), now)
    }
}

fn plan(pod: &Pod, node: Option<&Node>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(node) = node else { return plan };
    let taints = no_execute(node);
    if taints.is_empty() || pod.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let spec = pod.spec.as_ref();
    let tolerations = spec.and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    match patience(tolerations, &taints, now) {
        None => {}
        Some(Duration::ZERO) => {
            let key = Key::of(pod);
            let message = format!("Marking for deletion Pod {key}");
            plan.push(Action::event(pod, EventType::Normal, "TaintManagerEviction", message));
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            }]}});
            plan.push(Action::Patch(Target::of::<Pod>(&key), "status", patch));
            plan.push(Action::delete(pod));
        }
        Some(left) => plan.again(left),
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_stay_as_long_as_their_tolerations_say() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let taint: Taint = serde_json::from_value(json!({
            "key": "k", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}))
        .expect("a taint");
        for (tolerations, wanted) in [
            (json!([]), Some(0)),
            (json!([{"key": "k", "operator": "Exists"}]), None),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 300}]), Some(240)),
            (json!([{"key": "k", "operator": "Exists", "tolerationSeconds": 30}]), Some(0)),
            (json!([{"key": "other", "operator": "Exists"}]), Some(0)),
        ] {
            let typed: Vec<Toleration> =
                serde_json::from_value(tolerations.clone()).expect("tolerations");
            let found = patience(&typed, &[&taint], now).map(|d| d.as_secs());
            assert_eq!(found, wanted, "{tolerations}");
        }
    }
}
