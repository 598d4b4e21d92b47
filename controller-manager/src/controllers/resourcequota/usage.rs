//! What objects count as against a quota.

use std::collections::BTreeMap;
use std::str::FromStr;

use apimachinery::amounts::{Amounts, Combine, of_containers};
use apimachinery::quantity::{Format, Quantity};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodAffinityTerm, PodSpec, ResourceQuotaSpec,
    ScopedResourceSelectorRequirement, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

pub fn units(n: usize) -> Quantity {
    Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSI)
}

fn read(list: Option<&BTreeMap<String, Text>>) -> Amounts {
    let all = list.into_iter().flatten();
    all.filter_map(|(name, text)| Some((name.clone(), Quantity::from_str(&text.0).ok()?))).collect()
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Amounts) -> Amounts {
    let is_sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().map(|c| (of(c), is_sidecar(c)));
    of_containers(spec.containers.iter().map(&of), init)
}

fn requests_and_limits(spec: &PodSpec) -> (Amounts, Amounts) {
    let mut requests =
        total(spec, |c| read(c.resources.as_ref().and_then(|r| r.requests.as_ref())));
    let mut limits = total(spec, |c| read(c.resources.as_ref().and_then(|r| r.limits.as_ref())));
    if let Some(level) = &spec.resources {
        requests.extend(read(level.requests.as_ref()));
        limits.extend(read(level.limits.as_ref()));
    }
    let overhead = read(spec.overhead.as_ref());
    // A limit that is not set stays so.
    let limited = overhead.clone().into_iter().filter(|(name, _)| limits.contains_key(name));
    let limited: Amounts = limited.collect();
    limits.add(&limited);
    requests.add(&overhead);
    (requests, limits)
}

/// Whether a pod still uses anything.
fn lives(pod: &Pod, now: Timestamp) -> bool {
    if crate::pods::is_finished(pod) {
        return false;
    }
    // One that should be gone, on a node that is lost, is not held against its owner.
    match (&pod.metadata.deletion_timestamp, pod.metadata.deletion_grace_period_seconds) {
        (Some(at), Some(grace)) => {
            at.0.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
        }
        _ => true,
    }
}

pub fn of_pod(pod: &Pod, now: Timestamp) -> Amounts {
    let mut used = Amounts::from([("count/pods".to_owned(), units(1))]);
    let Some(spec) = pod.spec.as_ref().filter(|_| lives(pod, now)) else { return used };
    used.insert("pods".into(), units(1));
    let (requests, limits) = requests_and_limits(spec);
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-");
        if plain {
            used.insert(name.clone(), amount);
        }
        // Extended resources are counted under `requests.` alone.
        if plain || name.contains('/') {
            used.insert(format!("requests.{name}"), amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

pub fn of_service(service: &Service) -> Amounts {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let kind = spec.and_then(|s| s.type_.as_deref()).unwrap_or_default();
    let allocates = spec.and_then(|s| s.allocate_load_balancer_node_ports) != Some(false);
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => ports.iter().filter(|p| p.node_port.unwrap_or(0) != 0).count(),
        _ => 0,
    };
    Amounts::from([
        ("count/services".to_owned(), units(1)),
        ("services".to_owned(), units(1)),
        ("services.nodeports".to_owned(), units(node_ports)),
        ("services.loadbalancers".to_owned(), units(usize::from(kind == "LoadBalancer"))),
    ])
}

pub fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let spec = claim.spec.as_ref();
    let requests = spec.and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let storage = read(requests).get("storage").copied().unwrap_or_default();
    let mut used = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), units(1)),
        ("persistentvolumeclaims".to_owned(), units(1)),
        ("requests.storage".to_owned(), storage),
    ]);
    let annotated = claim.metadata.annotations.as_ref();
    let annotated = annotated.and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = annotated.or(spec.and_then(|s| s.storage_class_name.as_ref()));
    if let Some(class) = class.filter(|c| !c.is_empty()) {
        let head = format!("{class}.storageclass.storage.k8s.io");
        used.insert(format!("{head}/requests.storage"), storage);
        used.insert(format!("{head}/persistentvolumeclaims"), units(1));
    }
    used
}

fn best_effort(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let (requests, limits) = requests_and_limits(spec);
    !["cpu", "memory"].iter().any(|name| {
        [&requests, &limits].into_iter().any(|all| all.get(*name).is_some_and(|q| !q.is_zero()))
    })
}

fn crosses_namespaces(spec: &PodSpec) -> bool {
    let crosses = |t: &PodAffinityTerm| {
        t.namespaces.as_ref().is_some_and(|n| !n.is_empty()) || t.namespace_selector.is_some()
    };
    let Some(affinity) = &spec.affinity else { return false };
    let near = affinity.pod_affinity.as_ref();
    let far = affinity.pod_anti_affinity.as_ref();
    let hard = [
        near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
    ];
    let soft = [
        near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
    ];
    hard.into_iter().flatten().flatten().any(crosses)
        || soft.into_iter().flatten().flatten().any(|w| crosses(&w.pod_affinity_term))
}

fn in_scope(pod: &Pod, scope: &ScopedResourceSelectorRequirement) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let terminating = spec.active_deadline_seconds.is_some_and(|s| s >= 0);
    match scope.scope_name.as_str() {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(pod),
        "NotBestEffort" => !best_effort(pod),
        "CrossNamespacePodAffinity" => crosses_namespaces(spec),
        "PriorityClass" => {
            let class = spec.priority_class_name.as_deref().filter(|c| !c.is_empty());
            let listed =
                class.is_some_and(|c| scope.values.iter().flatten().any(|value| value == c));
            match scope.operator.as_str() {
                "Exists" => class.is_some(),
                "DoesNotExist" => class.is_none(),
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
        }
        _ => false,
    }
}

/// The quota's scopes, of both forms.
pub fn scopes(spec: &ResourceQuotaSpec) -> Vec<ScopedResourceSelectorRequirement> {
    let plain = spec.scopes.iter().flatten().map(|name| ScopedResourceSelectorRequirement {
        scope_name: name.clone(),
        operator: "Exists".into(),
        values: None,
    });
    let selector = spec.scope_selector.as_ref().and_then(|s| s.match_expressions.clone());
    plain.chain(selector.into_iter().flatten()).collect()
}

/// Whether a pod is in all of the scopes.
pub fn covers(scopes: &[ScopedResourceSelectorRequirement], pod: &Pod) -> bool {
    scopes.iter().all(|scope| in_scope(pod, scope))
}
