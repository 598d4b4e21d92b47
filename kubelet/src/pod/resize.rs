//! Changing the resources of a pod that runs: whether they can be had, which containers have to
//! be told or restarted, and in which order cgroups change. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use super::plan::{Kill, KillReason, Plan};
use super::resources::{PodLimits, pod_total};
use crate::admission::{counted, fits};
use crate::objects::{init_containers, is_static, spec};
use crate::quantity::{List, amount};
use crate::runtime::{PodView, State};

/// The resources that can be changed.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Resources by container name.
pub type Resources = BTreeMap<String, ResourceRequirements>;

/// What a container was told last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Actuated {
    /// The runtime's id of the container.
    pub id: String,
    pub resources: ResourceRequirements,
}

fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    spec(pod).containers.iter().chain(init_containers(pod))
}

/// The resources that a pod asks for.
pub fn asked(pod: &Pod) -> Resources {
    containers(pod).map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

fn same_amount(a: Option<&Quantity>, b: Option<&Quantity>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => amount(a).milli_value() == amount(b).milli_value(),
        (None, None) => true,
        _ => false,
    }
}

/// Whether two containers' requirements differ in a resource.
fn differs_in(a: &ResourceRequirements, b: &ResourceRequirements, name: &str) -> bool {
    let get = |list: &Option<List>| list.as_ref().and_then(|l| l.get(name)).cloned();
    !same_amount(get(&a.requests).as_ref(), get(&b.requests).as_ref())
        || !same_amount(get(&a.limits).as_ref(), get(&b.limits).as_ref())
}

/// Whether two containers' requirements differ in what can be changed.
pub fn differs(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    RESIZABLE.iter().any(|name| differs_in(a, b, name))
}

/// The pod with the resources that it has been given; the pod itself if it asks for the same.
pub fn with(pod: &Arc<Pod>, allocated: &Resources) -> Arc<Pod> {
    let changed = containers(pod).any(|c| {
        let own = c.resources.clone().unwrap_or_default();
        allocated.get(&c.name).is_some_and(|given| differs(&own, given))
    });
    if !changed {
        return Arc::clone(pod);
    }
    let mut copy = Pod::clone(pod);
    if let Some(spec) = &mut copy.spec {
        let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
        for container in all {
            if let Some(given) = allocated.get(&container.name) {
                let own = container.resources.get_or_insert_default();
                take_over(&mut own.requests, given.requests.as_ref());
                take_over(&mut own.limits, given.limits.as_ref());
            }
        }
    }
    Arc::new(copy)
}

fn take_over(list: &mut Option<List>, given: Option<&List>) {
    for name in RESIZABLE {
        match given.and_then(|g| g.get(name)) {
            Some(quantity) => {
                list.get_or_insert_default().insert(name.to_owned(), quantity.clone());
            }
            None => {
                if let Some(list) = list {
                    list.remove(name);
                }
            }
        }
    }
    if list.as_ref().is_some_and(BTreeMap::is_empty) {
        *list = None;
    }
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// `Deferred` or `Infeasible`.
    pub reason: &'static str,
    pub message: String,
}

/// Judges a pod that asks for other resources than it has. `others` are the pods beside it.
///
/// # Errors
/// Why it has to wait, or cannot be.
pub fn judge(pod: &Pod, others: &[&Pod], allocatable: &List) -> Result<(), Pending> {
    let infeasible = |message: String| Err(Pending { reason: "Infeasible", message });
    if is_static(pod) {
        return infeasible("In-place resize of static-pods is not supported".to_owned());
    }
    let wanted = pod_total(pod, |r| r.requests.as_ref());
    for name in ["memory", "cpu"] {
        let wanted = wanted.get(name).copied().unwrap_or_default();
        let capacity = allocatable.get(name).map(amount).unwrap_or_default();
        if wanted > capacity {
            return infeasible(format!(
                "Node didn't have enough capacity: {name}, requested: {}, capacity: {}",
                counted(name, wanted),
                counted(name, capacity)
            ));
        }
    }
    fits(pod, others, allocatable).map_err(|why| Pending {
        reason: "Deferred",
        message: why.message.trim_start_matches("Pod was rejected: ").to_owned(),
    })
}

/// A running container that has to be told of other limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub id: String,
    pub name: String,
}

/// The running containers whose resources are not those that the pod has been given, and whether
/// the pod's resize policy wants them restarted for it.
fn outdated<'a>(
    pod: &'a Pod,
    view: &'a PodView,
    actuated: &'a BTreeMap<String, Actuated>,
) -> impl Iterator<Item = (&'a Container, String, bool)> {
    containers(pod).filter_map(move |container| {
        let found = view.container(&container.name).filter(|c| c.state == State::Running)?;
        let told = actuated.get(&container.name).filter(|told| told.id == found.id)?;
        let wanted = container.resources.clone().unwrap_or_default();
        let changed: Vec<&str> = RESIZABLE
            .into_iter()
            .filter(|name| differs_in(&told.resources, &wanted, name))
            .collect();
        if changed.is_empty() {
            return None;
        }
        let restart = container.resize_policy.iter().flatten().any(|policy| {
            policy.restart_policy == "RestartContainer"
                && changed.contains(&policy.resource_name.as_str())
        });
        Some((container, found.id.clone(), restart))
    })
}

/// Whether a resize has been granted that containers do not have yet.
pub fn in_progress(pod: &Pod, view: &PodView, actuated: &BTreeMap<String, Actuated>) -> bool {
    outdated(pod, view, actuated).next().is_some()
}

/// Adds to a plan what a resize needs: restarts to the plan itself; what can be changed while it
/// runs is returned.
pub fn plan(
    pod: &Pod,
    view: &PodView,
    actuated: &BTreeMap<String, Actuated>,
    todo: &mut Plan,
) -> Vec<Update> {
    if todo.kill_pod || todo.create_sandbox {
        return Vec::new();
    }
    let mut updates = Vec::new();
    for (container, id, restart) in outdated(pod, view, actuated) {
        if todo.kill.iter().any(|kill| kill.id == id) {
            continue;
        }
        let regular = spec(pod).containers.iter().position(|c| c.name == container.name);
        let init = init_containers(pod).iter().position(|c| c.name == container.name);
        match (restart, regular, init) {
            (false, _, _) => updates.push(Update { id, name: container.name.clone() }),
            (true, regular, init) => {
                let list = if regular.is_some() { &mut todo.start } else { &mut todo.init };
                if let Some(index) = regular.or(init)
                    && !list.contains(&index)
                {
                    list.push(index);
                    list.sort_unstable();
                }
                todo.kill.push(Kill {
                    id,
                    name: container.name.clone(),
                    message: format!("Container {} resize requires restart", container.name),
                    reason: KillReason::Changed,
                });
            }
        }
    }
    updates
}

/// Limits that hold both before and after a change: while its containers change one by one, a
/// pod's cgroup must hold either. What is unlimited in either is left alone.
pub fn widest(old: &PodLimits, new: &PodLimits) -> PodLimits {
    let both = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
    PodLimits {
        shares: old.shares.max(new.shares),
        quota: both(old.quota, new.quota),
        period: new.period,
        memory: both(old.memory, new.memory),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerView;
    use serde_json::json;

    fn pod(cpu: &str, memory: &str, policy: &str) -> Arc<Pod> {
        let resources = json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu}});
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": "p", "uid": "u"},
                "spec": {"containers": [{"name": "c", "resources": resources, "resizePolicy": [
                    {"resourceName": "memory", "restartPolicy": policy},
                    {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}]},
            }))
            .unwrap(),
        )
    }

    fn running(id: &str) -> PodView {
        let container = ContainerView {
            id: id.into(),
            name: "c".into(),
            state: State::Running,
            ..ContainerView::default()
        };
        PodView { containers: vec![container], ..PodView::default() }
    }

    fn told(pod: &Pod, id: &str) -> BTreeMap<String, Actuated> {
        let all = asked(pod).into_iter();
        all.map(|(name, resources)| (name, Actuated { id: id.into(), resources })).collect()
    }

    #[test]
    fn a_pod_keeps_what_it_was_given() {
        let (old, new) = (pod("1", "1Gi", "NotRequired"), pod("2", "1Gi", "NotRequired"));
        let effective = with(&new, &asked(&old));
        assert_eq!(asked(&effective), asked(&old));
        assert!(Arc::ptr_eq(&with(&new, &asked(&pod("2000m", "1024Mi", ""))), &new));
        let mut without = asked(&old);
        without.insert("c".into(), ResourceRequirements::default());
        assert_eq!(asked(&with(&new, &without))["c"], ResourceRequirements::default());
    }

    #[test]
    fn what_cannot_be_is_told_from_what_has_to_wait() {
        let allocatable: List =
            serde_json::from_value(json!({"cpu": "4", "memory": "4Gi", "pods": "9"})).unwrap();
        let other = pod("3", "1Gi", "");
        assert_eq!(judge(&pod("1", "1Gi", ""), &[&other], &allocatable), Ok(()));
        for (cpu, memory, reason, message) in [
            (
                "2",
                "1Gi",
                "Deferred",
                "Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000",
            ),
            (
                "5",
                "1Gi",
                "Infeasible",
                "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000",
            ),
            (
                "1",
                "5Gi",
                "Infeasible",
                "Node didn't have enough capacity: memory, requested: 5368709120, capacity: 4294967296",
            ),
        ] {
            let pending = judge(&pod(cpu, memory, ""), &[&other], &allocatable).unwrap_err();
            assert_eq!((pending.reason, pending.message.as_str()), (reason, message));
        }
    }

    #[test]
    fn containers_are_told_or_restarted() {
        let old = pod("1", "1Gi", "RestartContainer");
        for (new, id, updates, kills) in [
            (pod("1", "1Gi", "RestartContainer"), "a", 0, 0),
            (pod("2", "1Gi", "RestartContainer"), "a", 1, 0),
            (pod("1", "2Gi", "RestartContainer"), "a", 0, 1),
            (pod("1", "2Gi", "NotRequired"), "a", 1, 0),
            // A container that was started since has them already.
            (pod("1", "2Gi", "NotRequired"), "b", 0, 0),
        ] {
            let mut todo = Plan::default();
            let found = plan(&new, &running(id), &told(&old, "a"), &mut todo);
            assert_eq!((found.len(), todo.kill.len(), todo.start.len()), (updates, kills, kills));
        }
    }

    #[test]
    fn a_pods_cgroup_is_wide_enough_for_both() {
        let limits = |shares, quota, memory| PodLimits { shares, quota, period: 5, memory };
        let widest = widest(&limits(2, Some(10), None), &limits(1, Some(20), Some(7)));
        assert_eq!(widest, limits(2, Some(20), None));
    }
}
