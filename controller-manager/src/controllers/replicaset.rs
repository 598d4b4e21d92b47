//! ReplicaSets and ReplicationControllers: so many pods of a template.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use client::events::EventType;
use client::lean::Pod;
use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerCondition,
    ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, Time};
use kube::Resource;
use parking_lot::Mutex;
use serde::Serialize;

use crate::action::{Action, Plan};
use crate::expectations::Expectations;
use crate::owners::{claim, controller_key, controller_reference};
use crate::pods::{self, is_active, is_available, is_ready};
use crate::runner::{Context, Controller};

/// Pods made or deleted by one plan, at most (upstream's burst).
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What the kinds have in common: a ReplicationController is a ReplicaSet of older form.
pub trait Replicated:
    Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + Send + Sync + 'static
{
    const NAME: &'static str;

    /// Pods wanted.
    fn replicas(&self) -> i32;

    fn selector(&self) -> Option<LabelSelector>;

    fn template(&self) -> Option<&PodTemplateSpec>;

    fn min_ready_seconds(&self) -> i32;

    fn status(&self) -> Option<ReplicaSetStatus>;

    fn with_status(&self, status: ReplicaSetStatus) -> Self;
}

impl Replicated for ReplicaSet {
    const NAME: &'static str = "replicaset";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Option<LabelSelector> {
        self.spec.as_ref().map(|s| s.selector.clone())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        self.status.clone()
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }
}

impl Replicated for ReplicationController {
    const NAME: &'static str = "replicationcontroller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Option<LabelSelector> {
        let labels = self.spec.as_ref()?.selector.clone()?;
        Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0)
    }

    fn status(&self) -> Option<ReplicaSetStatus> {
        let status = self.status.clone()?;
        let conditions = status.conditions.map(|all| {
            all.into_iter()
                .map(|c| ReplicaSetCondition {
                    type_: c.type_,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    last_transition_time: c.last_transition_time,
                })
                .collect()
        });
        Some(ReplicaSetStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            terminating_replicas: None,
            observed_generation: status.observed_generation,
            conditions,
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let conditions = status.conditions.map(|all| {
            all.into_iter()
                .map(|c| ReplicationControllerCondition {
                    type_: c.type_,
                    status: c.status,
                    reason: c.reason,
                    message: c.message,
                    last_transition_time: c.last_transition_time,
                })
                .collect()
        });
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions,
        };
        Self { status: Some(status), ..self.clone() }
    }
}

pub struct Replicas<K> {
    sets: Cache<K>,
    pods: Cache<Pod>,
    expectations: Arc<Expectations>,
    /// Why pods could not be made or deleted, until a plan goes through.
    failures: Mutex<HashMap<Key, String>>,
}

pub type ReplicaSets = Replicas<ReplicaSet>;
pub type ReplicationControllers = Replicas<ReplicationController>;

impl<K: Replicated + client::cache::Cacheable> Replicas<K> {
    pub fn new(context: &Context) -> Self {
        Self {
            sets: context.caches.of(),
            pods: context.caches.of(),
            expectations: Arc::default(),
            failures: Mutex::default(),
        }
    }
}

impl<K: Replicated + client::cache::Cacheable> Controller for Replicas<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.sets.feed(queue);
        let (q, sets) = (queue.clone(), self.sets.clone());
        let expectations = Arc::clone(&self.expectations);
        self.pods.on_change(move |change| {
            for pod in change.old.into_iter().chain(change.new) {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                if let Some(owner) = controller_key::<K>(&pod.metadata) {
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
                        let selector = set.selector();
                        if selector.is_some_and(|s| selects(&s, pod.metadata.labels.as_ref())) {
                            q.add(Key::of(&*set));
                        }
                    }
                }
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            self.failures.lock().remove(key);
            return Plan::default();
        };
        let all = self.pods.list_in(&key.namespace);
        let failure = self.failures.lock().get(key).cloned();
        let current = self.expectations.satisfied(key, now);
        let plan = plan(&*set, all, current, failure.as_deref(), now);
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

    fn announce(&self, key: &Key, pod: &str) -> Option<Action> {
        let set = self.sets.get(key)?;
        let message = format!("Created pod: {pod}");
        Some(Action::event(&*set, EventType::Normal, "SuccessfulCreate", message))
    }

    fn not_created(&self, key: &Key, why: &str) -> Vec<Action> {
        self.failures.lock().insert(key.clone(), why.to_owned());
        let Some(set) = self.sets.get(key) else { return Vec::new() };
        let message = format!("Error creating: {why}");
        vec![Action::event(&*set, EventType::Warning, "FailedCreate", message)]
    }

    fn went_through(&self, key: &Key) -> bool {
        self.failures.lock().remove(key).is_some()
    }
}

/// Decides about a set and the pods of its namespace. Unless `current`, the caches are known to
/// be behind, and only the status is brought up to date. `failure`: why pods could not be made.
pub fn plan<K: Replicated>(
    set: &K,
    all: Vec<Arc<Pod>>,
    current: bool,
    failure: Option<&str>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(selector) = set.selector() else { return plan };
    let (claimed, claims) = claim(set, &selector, all, is_active);
    plan.actions.extend(claims);
    let live: Vec<Arc<Pod>> = claimed.iter().filter(|p| is_active(p)).cloned().collect();
    if current && set.meta().deletion_timestamp.is_none() {
        scale(set, &live, &mut plan);
    }
    let min_ready = set.min_ready_seconds();
    if let Some(wait) = live.iter().filter_map(|p| pods::until_available(p, min_ready, now)).min() {
        plan.again(wait);
    }
    let status = status(set, &claimed, &live, failure, now);
    let changed = set.with_status(status);
    if changed.status() != set.status() {
        plan.push(Action::update_status(&changed));
    }
    plan
}

fn scale<K: Replicated>(set: &K, live: &[Arc<Pod>], plan: &mut Plan) {
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    if live.len() < wanted {
        let Some(template) = set.template() else { return };
        let name = set.meta().name.as_deref().unwrap_or_default();
        let namespace = set.meta().namespace.as_deref().unwrap_or_default();
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

/// The condition that tells why there are fewer pods than wanted.
fn conditions<K: Replicated>(
    set: &K,
    live: usize,
    failure: Option<&str>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    const FAILURE: &str = "ReplicaFailure";
    let mut all = set.status().and_then(|s| s.conditions).unwrap_or_default();
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    let have = all.iter().position(|c| c.type_ == FAILURE);
    match (failure, have) {
        (Some(why), None) => {
            let reason = if live < wanted { "FailedCreate" } else { "FailedDelete" };
            all.push(ReplicaSetCondition {
                type_: FAILURE.into(),
                status: "True".into(),
                reason: Some(reason.into()),
                message: Some(why.to_owned()),
                last_transition_time: Some(Time(now)),
            });
        }
        (None, Some(at)) => {
            all.remove(at);
        }
        _ => {}
    }
    Some(all).filter(|all| !all.is_empty())
}

fn status<K: Replicated>(
    set: &K,
    claimed: &[Arc<Pod>],
    live: &[Arc<Pod>],
    failure: Option<&str>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = set.min_ready_seconds();
    let labels: BTreeMap<String, String> = set
        .template()
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
    ReplicaSetStatus {
        replicas: count(live.len()),
        fully_labeled_replicas: non_zero(live.iter().filter(labelled).count()),
        ready_replicas: non_zero(live.iter().filter(|p| is_ready(p)).count()),
        available_replicas: non_zero(
            live.iter().filter(|p| is_available(p, min_ready, now)).count(),
        ),
        terminating_replicas: Some(count(ending)),
        observed_generation: set.meta().generation,
        conditions: conditions(set, live.len(), failure, now),
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
                Action::UpdatePart(_, "status", object) => Some(format!(
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
            told(&plan(&set(2), vec![], true, None, now())),
            ["create", "create", "status null/0"]
        );
        assert_eq!(told(&plan(&set(2), vec![], false, None, now())), ["status null/0"]);
        let failed = pod("a", json!({"status": {"phase": "Failed"}}));
        assert_eq!(told(&plan(&set(1), vec![failed], true, None, now()))[0], "create");
    }

    #[test]
    fn superfluous_pods_go_worst_first() {
        let pods = vec![
            pod("good", json!({})),
            pod("unready", json!({"status": {"conditions": []}})),
            pod("unplaced", json!({"spec": {"nodeName": null}, "status": {"phase": "Pending"}})),
            pod("cheap", json!({"metadata": {"annotations": {DELETION_COST: "-5"}}})),
        ];
        let told = told(&plan(&set(1), pods, true, None, now()));
        assert_eq!(told[..3], ["delete unplaced", "delete unready", "delete cheap"]);
    }

    #[test]
    fn pods_are_adopted_and_released_by_selector() {
        let orphan = pod("orphan", json!({"metadata": {"ownerReferences": null}}));
        let strayed = pod("strayed", json!({"metadata": {"labels": {"app": "db"}}}));
        let told = told(&plan(&set(1), vec![orphan, strayed], true, None, now()));
        assert_eq!(told, ["patch orphan", "patch strayed", "status 1/1"]);
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let conditions = |plan: &Plan| -> Value {
            let status = plan.actions.iter().find_map(|a| match a {
                Action::UpdatePart(_, "status", object) => {
                    Some(object["status"]["conditions"].clone())
                }
                _ => None,
            });
            status.unwrap_or_default()
        };
        let mut controller: ReplicationController = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "u", "generation": 1},
            "spec": {"replicas": 1, "selector": {"app": "web"},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
        .expect("a controller");
        let failed = plan(&controller, vec![], true, Some("exceeded quota"), now());
        assert_eq!(told(&failed)[0], "create", "it is tried again");
        let told = conditions(&failed);
        assert_eq!(
            (&told[0]["type"], &told[0]["reason"]),
            (&json!("ReplicaFailure"), &json!("FailedCreate"))
        );
        assert_eq!(told[0]["message"], "exceeded quota");
        let status = ReplicaSetStatus {
            conditions: serde_json::from_value(told).expect("conditions"),
            ..ReplicaSetStatus::default()
        };
        controller = controller.with_status(status);
        let over = plan(&controller, vec![], true, None, now());
        assert!(conditions(&over).is_null());
    }
}
