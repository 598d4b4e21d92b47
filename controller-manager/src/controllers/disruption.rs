//! PodDisruptionBudgets: how many of their pods may be evicted now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use client::events::EventType;
use client::lean::Pod;
use client::matching::selects;
use client::{Cache, Key, Queue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::action::{Action, Plan};
use crate::owners::controller_of;
use crate::pods::is_ready;
use crate::runner::{Context, Controller};

const ALLOWED: &str = "DisruptionAllowed";
/// An eviction that was granted and has not come to pass after so long will not.
const PATIENCE: SignedDuration = SignedDuration::from_secs(120);

pub struct Budgets {
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    replicasets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    controllers: Cache<ReplicationController>,
    statefulsets: Cache<StatefulSet>,
}

impl Budgets {
    pub fn new(context: &Context) -> Self {
        let c = &context.caches;
        Self {
            budgets: c.of(),
            pods: c.of(),
            replicasets: c.of(),
            deployments: c.of(),
            controllers: c.of(),
            statefulsets: c.of(),
        }
    }

    /// The size that the pod's controller is to have, and who that is.
    fn scale(&self, pod: &Pod) -> Option<(String, i32)> {
        let reference = controller_of(&pod.metadata)?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let key = Key::new(namespace, &reference.name);
        let same = |uid: &Option<String>| uid.as_deref() == Some(reference.uid.as_str());
        let sized = |uid: &Option<String>, n: Option<i32>| {
            same(uid).then(|| (reference.uid.clone(), n.unwrap_or(1)))
        };
        match reference.kind.as_str() {
            "ReplicaSet" => {
                let set = self.replicasets.get(&key)?;
                if let Some(above) = controller_of(&set.metadata) {
                    let deployment = self.deployments.get(&Key::new(namespace, &above.name))?;
                    let uid = deployment.metadata.uid.clone()?;
                    let size = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
                    return (uid == above.uid).then_some((uid, size));
                }
                sized(&set.metadata.uid, set.spec.as_ref().and_then(|s| s.replicas))
            }
            "ReplicationController" => {
                let rc = self.controllers.get(&key)?;
                sized(&rc.metadata.uid, rc.spec.as_ref().and_then(|s| s.replicas))
            }
            "StatefulSet" => {
                let set = self.statefulsets.get(&key)?;
                sized(&set.metadata.uid, set.spec.as_ref().and_then(|s| s.replicas))
            }
            _ => None,
        }
    }
}

impl Controller for Budgets {
    fn name(&self) -> &'static str {
        "disruption"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.budgets.feed(queue);
        let (q, budgets) = (queue.clone(), self.budgets.clone());
        self.pods.on_change(move |change| {
            for budget in budgets.list_in(&change.key.namespace) {
                let about = |p: &&Arc<Pod>| covers(&budget, p);
                if change.old.into_iter().chain(change.new).any(|p| about(&p)) {
                    q.add(Key::of(&*budget));
                }
            }
        });
        let add_all = |queue: &Queue<Key>, budgets: &Cache<PodDisruptionBudget>| {
            let (q, budgets) = (queue.clone(), budgets.clone());
            move |namespace: &str| {
                budgets.list_in(namespace).iter().for_each(|b| q.add(Key::of(&**b)));
            }
        };
        let all = add_all(queue, &self.budgets);
        self.replicasets.on_change(move |change| {
            let size = |s: Option<&Arc<ReplicaSet>>| s.and_then(|s| s.spec.as_ref()?.replicas);
            if size(change.old) != size(change.new) {
                all(&change.key.namespace);
            }
        });
        let all = add_all(queue, &self.budgets);
        self.statefulsets.on_change(move |change| {
            let size = |s: Option<&Arc<StatefulSet>>| s.and_then(|s| s.spec.as_ref()?.replicas);
            if size(change.old) != size(change.new) {
                all(&change.key.namespace);
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(budget) = self.budgets.get(key) else { return Plan::default() };
        plan(&budget, &self.pods.list_in(&key.namespace), |p| self.scale(p), now)
    }
}

/// An empty selector covers all pods of the namespace, none covers none.
fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
    selector.is_some_and(|s| selects(s, pod.metadata.labels.as_ref()))
}

/// A number, or a share of `of`, rounded up.
fn scaled(value: &IntOrString, of: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(n) => Ok(*n),
        IntOrString::String(text) => {
            let share = text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok());
            let share = share.ok_or_else(|| {
                format!("invalid value for IntOrString: invalid type: string is not a percentage: {text:?}")
            })?;
            Ok(i32::try_from((share * i64::from(of) + 99).div_euclid(100)).unwrap_or(i32::MAX))
        }
    }
}

/// Decides about a budget and the pods of its namespace. `scale` tells a pod's controller, by uid,
/// and the size that it is to have.
pub fn plan(
    budget: &PodDisruptionBudget,
    all: &[Arc<Pod>],
    scale: impl Fn(&Pod) -> Option<(String, i32)>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &budget.spec else { return plan };
    let finished = |p: &Pod| crate::pods::is_finished(p);
    let pods: Vec<&Arc<Pod>> = all.iter().filter(|p| covers(budget, p) && !finished(p)).collect();
    if pods.is_empty() {
        let message = "No matching pods found";
        plan.push(Action::event(budget, EventType::Normal, "NoPods", message));
    }
    let mut unmanaged = BTreeSet::new();
    let mut expected = || -> i32 {
        let mut sizes: BTreeMap<String, i32> = BTreeMap::new();
        for pod in &pods {
            match (scale(pod), controller_of(&pod.metadata)) {
                (Some((uid, size)), _) => {
                    sizes.insert(uid, size);
                }
                _ => {
                    unmanaged.insert(pod.metadata.name.clone().unwrap_or_default());
                }
            }
        }
        sizes.values().sum()
    };
    let count = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    let wanted = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = expected();
            scaled(most, expected).map(|most| (expected, (expected - most).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((count, *least)),
        (None, Some(least)) => {
            let expected = expected();
            scaled(least, expected).map(|least| (expected, least))
        }
        (None, None) => Ok((0, 0)),
    };
    let old = budget.status.clone().unwrap_or_default();
    let mut status = PodDisruptionBudgetStatus {
        observed_generation: budget.metadata.generation,
        ..old.clone()
    };
    match wanted {
        Ok((expected, desired)) => {
            let disrupted = disrupted(&pods, &old, now, &mut plan);
            let healthy = pods.iter().filter(|p| {
                let name = p.metadata.name.as_deref().unwrap_or_default();
                p.metadata.deletion_timestamp.is_none()
                    && !disrupted.contains_key(name)
                    && is_ready(p)
            });
            status.current_healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
            status.desired_healthy = desired;
            status.expected_pods = expected;
            let spare = (status.current_healthy - desired).max(0);
            status.disruptions_allowed = if expected > 0 { spare } else { 0 };
            status.disrupted_pods = Some(disrupted).filter(|d| !d.is_empty());
            let allowed = match status.disruptions_allowed {
                0 => ("False", "InsufficientPods", String::new()),
                _ => ("True", "SufficientPods", String::new()),
            };
            condition(&mut status, allowed, now);
        }
        Err(why) => {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            let event = Action::event(
                budget,
                EventType::Warning,
                "CalculateExpectedPodCountFailed",
                message,
            );
            plan.push(event);
            status.disruptions_allowed = 0;
            condition(&mut status, ("False", "SyncFailed", why), now);
        }
    }
    if !unmanaged.is_empty() {
        let names: Vec<String> = unmanaged.into_iter().collect();
        let message = format!(
            "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
            names.join(",")
        );
        plan.push(Action::event(budget, EventType::Warning, "UnmanagedPods", message));
    }
    if status != old || budget.status.is_none() {
        let changed = PodDisruptionBudget { status: Some(status), ..budget.clone() };
        plan.push(Action::update_status(&changed));
    }
    plan
}

/// Pods whose eviction was granted and is still to come.
fn disrupted(
    pods: &[&Arc<Pod>],
    old: &PodDisruptionBudgetStatus,
    now: Timestamp,
    plan: &mut Plan,
) -> BTreeMap<String, Time> {
    let mut left = BTreeMap::new();
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let Some(at) = old.disrupted_pods.as_ref().and_then(|d| d.get(&name)) else { continue };
        let wait = PATIENCE - now.duration_since(at.0);
        match Duration::try_from(wait).ok().filter(|w| !w.is_zero()) {
            Some(wait) => {
                plan.again(wait);
                left.insert(name, at.clone());
            }
            None => {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let message = format!(
                    "Pod was expected by PDB {namespace}/{namespace} to be deleted but it wasn't"
                );
                plan.push(Action::event(&***pod, EventType::Warning, "NotDeleted", message));
            }
        }
    }
    left
}

fn condition(
    status: &mut PodDisruptionBudgetStatus,
    (value, reason, message): (&str, &str, String),
    now: Timestamp,
) {
    let generation = status.observed_generation;
    let conditions = status.conditions.get_or_insert_default();
    let have = conditions.iter().find(|c| c.type_ == ALLOWED);
    let since = have.filter(|c| c.status == value).map(|c| c.last_transition_time.clone());
    let next = Condition {
        type_: ALLOWED.into(),
        status: value.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or(Time(now)),
    };
    conditions.retain(|c| c.type_ != ALLOWED);
    conditions.push(next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn pod(name: &str, ready: bool, owner: &str) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let owners = match owner {
            "" => json!([]),
            uid => json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": uid, "uid": uid,
                "controller": true}]),
        };
        let pod = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": {"app": "web"},
                "ownerReferences": owners},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    /// healthy, desired, expected, allowed and the reason.
    #[track_caller]
    fn check(spec: Value, status: Value, wanted: (i64, i64, i64, i64, &str)) -> Plan {
        let mut spec = spec;
        spec["selector"] = json!({"matchLabels": {"app": "web"}});
        let budget: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "b", "generation": 1},
            "spec": spec, "status": status,
        }))
        .expect("a budget");
        let pods = [pod("a", true, "rs"), pod("b", true, "rs"), pod("c", false, "rs")];
        let scale = |_: &Pod| Some(("rs".to_owned(), 4));
        let plan = plan(&budget, &pods, scale, now());
        let found = plan.actions.iter().find_map(|a| match a {
            Action::UpdatePart(_, "status", o) => Some(o["status"].clone()),
            _ => None,
        });
        let s = found.expect("a status");
        let n = |key: &str| s[key].as_i64().unwrap_or(-1);
        let reason = s["conditions"][0]["reason"].as_str().unwrap_or_default();
        let got = (
            n("currentHealthy"),
            n("desiredHealthy"),
            n("expectedPods"),
            n("disruptionsAllowed"),
            reason,
        );
        assert_eq!(got, wanted, "{s}");
        plan
    }

    #[test]
    fn budgets_count_what_may_go() {
        let none = || json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0, "disruptionsAllowed": 0});
        check(json!({"minAvailable": 1}), none(), (2, 1, 3, 1, "SufficientPods"));
        check(json!({"minAvailable": 2}), none(), (2, 2, 3, 0, "InsufficientPods"));
        check(json!({"minAvailable": "30%"}), none(), (2, 2, 4, 0, "InsufficientPods"));
        check(json!({"maxUnavailable": 3}), none(), (2, 1, 4, 1, "SufficientPods"));
        check(json!({"maxUnavailable": "75%"}), none(), (2, 1, 4, 1, "SufficientPods"));
        check(json!({"maxUnavailable": "x"}), none(), (0, 0, 0, 0, "SyncFailed"));
    }

    #[test]
    fn a_granted_eviction_counts_until_it_is_late() {
        let status = |at: &str| {
            json!({"currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0,
                "disruptionsAllowed": 0, "disruptedPods": {"a": at}})
        };
        let spec = || json!({"minAvailable": 1});
        let plan = check(spec(), status("2026-01-01T00:59:00Z"), (1, 1, 3, 0, "InsufficientPods"));
        assert_eq!(plan.again, Some(Duration::from_secs(60)));
        check(spec(), status("2026-01-01T00:50:00Z"), (2, 1, 3, 1, "SufficientPods"));
    }
}
