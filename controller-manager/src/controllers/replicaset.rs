//! ReplicaSets: so many pods of a template.

use std::sync::Arc;

use client::events::EventType;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use crate::action::{Action, Plan};
use crate::expectations::Expectations;
use crate::owners::{claim, controller_key, controller_reference, selects};
use crate::pods::{self, is_active, is_available, is_ready};
use crate::runner::{Context, Controller};

/// Pods made or deleted by one plan, at most (upstream's burst).
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

pub struct ReplicaSets {
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    expectations: Arc<Expectations>,
}

impl ReplicaSets {
    pub fn new(context: &Context) -> Self {
        Self { sets: context.caches.of(), pods: context.caches.of(), expectations: Arc::default() }
    }
}

impl Controller for ReplicaSets {
    fn name(&self) -> &'static str {
        "replicaset"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.sets.on_change(move |change| q.add(change.key.clone()));
        let (q, sets) = (queue.clone(), self.sets.clone());
        let expectations = Arc::clone(&self.expectations);
        self.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if let Some(owner) = controller_key::<ReplicaSet>(&pod.metadata) {
                    let ends = change.new.is_none() || pod.metadata.deletion_timestamp.is_some();
                    if ends {
                        expectations.saw_end(&owner, uid);
                    } else {
                        expectations.saw(&owner, uid);
                    }
                    q.add(owner);
                } else if crate::owners::controller_of(&pod.metadata).is_none() {
                    // An orphan: whoever selects it may adopt it.
                    for set in sets.list_in(&change.key.namespace) {
                        let selector = set.spec.as_ref().map(|s| &s.selector);
                        if selector.is_some_and(|s| selects(s, pod.metadata.labels.as_ref())) {
                            q.add(Key::of(&*set));
                        }
                    }
                }
            }
        });
    }

    async fn synced(&self) {
        tokio::join!(self.sets.synced(), self.pods.synced());
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Plan::default();
        };
        let all = self.pods.list_in(&key.namespace);
        let plan = plan(&set, all, self.expectations.satisfied(key, now), now);
        for action in &plan.actions {
            if let Action::Delete(_, uid, _) = action {
                self.expectations.deleting(key, uid, now);
            }
        }
        plan
    }

    fn created(&self, key: &Key, uid: &str) {
        let of = |pod: &Arc<Pod>| pod.metadata.uid.as_deref() == Some(uid);
        let seen = || self.pods.list_in(&key.namespace).iter().any(of);
        self.expectations.created(key, uid, Timestamp::now(), seen);
    }
}

/// Decides about a set and the pods of its namespace. Unless `current`, the caches are known to
/// be behind, and only the status is brought up to date.
pub fn plan(set: &ReplicaSet, all: Vec<Arc<Pod>>, current: bool, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &set.spec else { return plan };
    let (claimed, claims) = claim(set, &spec.selector, all, is_active);
    plan.actions.extend(claims);
    let live: Vec<Arc<Pod>> = claimed.iter().filter(|p| is_active(p)).cloned().collect();
    if current && set.metadata.deletion_timestamp.is_none() {
        scale(set, &live, &mut plan);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    if let Some(wait) = live.iter().filter_map(|p| pods::until_available(p, min_ready, now)).min() {
        plan.again(wait);
    }
    let status = status(set, &claimed, &live, now);
    if set.status.as_ref() != Some(&status) {
        let changed = ReplicaSet { status: Some(status), ..set.clone() };
        plan.push(Action::update_status(&changed));
    }
    plan
}

fn scale(set: &ReplicaSet, live: &[Arc<Pod>], plan: &mut Plan) {
    let Some(spec) = &set.spec else { return };
    let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if live.len() < wanted {
        let Some(template) = &spec.template else { return };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for _ in 0..(wanted - live.len()).min(BURST) {
            let owner = controller_reference(set);
            plan.push(Action::create(&pods::from_template(template, namespace, name, owner)));
        }
    }
    if live.len() > wanted {
        let mut ranked: Vec<&Arc<Pod>> = live.iter().collect();
        ranked.sort_by_key(|p| rank(p, live));
        for pod in ranked.into_iter().take((live.len() - wanted).min(BURST)) {
            plan.push(Action::delete(&**pod));
            let message =
                format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
            plan.push(Action::event(set, EventType::Normal, "SuccessfulDelete", message));
        }
    }
}

/// Who goes first: not placed, pending, not ready, of lower cost, crowded with its own kind,
/// ready for a shorter time, restarted more often, younger (upstream's ActivePodsWithRanks).
type Rank = (bool, u8, bool, i64, std::cmp::Reverse<usize>, i64, std::cmp::Reverse<i32>, i64);

fn rank(pod: &Pod, all: &[Arc<Pod>]) -> Rank {
    let node = pods::node_name(pod);
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    };
    let cost = pod.metadata.annotations.as_ref().and_then(|a| a.get(DELETION_COST));
    let beside = all.iter().filter(|p| pods::node_name(p) == node && !node.is_empty()).count();
    let ready = pods::ready_since(pod);
    let containers = pod.status.as_ref().and_then(|s| s.container_statuses.as_ref());
    let restarts = containers.into_iter().flatten().map(|c| c.restart_count).max().unwrap_or(0);
    // Later is smaller: the youngest go first.
    let age = |t: Option<Timestamp>| t.map_or(i64::MIN, |t| -t.as_second());
    (
        !node.is_empty(),
        phase,
        ready.is_some(),
        cost.and_then(|c| c.parse().ok()).unwrap_or(0),
        std::cmp::Reverse(beside),
        age(ready),
        std::cmp::Reverse(restarts),
        age(pod.metadata.creation_timestamp.as_ref().map(|t| t.0)),
    )
}

fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn status(
    set: &ReplicaSet,
    claimed: &[Arc<Pod>],
    live: &[Arc<Pod>],
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.as_ref();
    let min_ready = spec.and_then(|s| s.min_ready_seconds).unwrap_or(0);
    let labels = spec
        .and_then(|s| s.template.as_ref())
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let labelled = |p: &&Arc<Pod>| {
        labels.iter().all(|(k, v)| p.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v))
    };
    let ending = claimed
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_some() && !pods::is_finished(p))
        .count();
    let non_zero = |n: usize| Some(count(n)).filter(|n| *n > 0);
    let old = set.status.clone().unwrap_or_default();
    ReplicaSetStatus {
        replicas: count(live.len()),
        fully_labeled_replicas: non_zero(live.iter().filter(labelled).count()),
        ready_replicas: non_zero(live.iter().filter(|p| is_ready(p)).count()),
        available_replicas: non_zero(
            live.iter().filter(|p| is_available(p, min_ready, now)).count(),
        ),
        terminating_replicas: Some(count(ending)),
        observed_generation: set.metadata.generation,
        conditions: old.conditions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .expect("a set")
    }

    fn pod(name: &str, extra: Value) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                    "uid": "u", "controller": true}]},
            "spec": {"containers": [], "nodeName": "n"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        });
        merge(&mut pod, extra);
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(a), Value::Object(b)) => {
                for (k, v) in b {
                    merge(a.entry(k).or_insert(Value::Null), v);
                }
            }
            (a, b) => *a = b,
        }
    }

    fn told(plan: &Plan) -> Vec<String> {
        plan.actions
            .iter()
            .filter_map(|a| match a {
                Action::Create(..) => Some("create".to_owned()),
                Action::Delete(target, ..) => Some(format!("delete {}", target.key.name)),
                Action::Patch(target, ..) => Some(format!("patch {}", target.key.name)),
                Action::UpdateStatus(_, object) => Some(format!(
                    "status {}/{}",
                    object["status"]["readyReplicas"], object["status"]["replicas"]
                )),
                _ => None,
            })
            .collect()
    }

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    #[test]
    fn missing_pods_are_made_unless_caches_are_behind() {
        assert_eq!(
            told(&plan(&set(2), vec![], true, now())),
            ["create", "create", "status null/0"]
        );
        assert_eq!(told(&plan(&set(2), vec![], false, now())), ["status null/0"]);
        let failed = pod("a", json!({"status": {"phase": "Failed"}}));
        assert_eq!(told(&plan(&set(1), vec![failed], true, now()))[0], "create");
    }

    #[test]
    fn superfluous_pods_go_worst_first() {
        let pods = vec![
            pod("good", json!({})),
            pod("unready", json!({"status": {"conditions": []}})),
            pod("unplaced", json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}})),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
        ];
        let told = told(&plan(&set(1), pods, true, now()));
        assert_eq!(told[..3], ["delete unplaced", "delete unready", "delete cheap"]);
    }

    #[test]
    fn pods_are_adopted_and_released_by_selector() {
        let orphan = pod("orphan", json!({"metadata": {"ownerReferences": null}}));
        let strayed = pod("strayed", json!({"metadata": {"labels": {"app": "db"}}}));
        let told = told(&plan(&set(1), vec![orphan, strayed], true, now()));
        assert_eq!(told, ["patch orphan", "patch strayed", "status 1/1"]);
    }
}
