//! What an object counts as against a quota, and which quotas it counts against
//! (upstream: `pkg/quota/v1/evaluator`).

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::amounts::{Amounts, Combine, is_hugepages, is_native, of_spec, quantity, read};
use crate::qos::qos_class;
use crate::quantity::{Format, Quantity};
use crate::{Value, object};

/// Devices that a claim for "all" may get.
const ALL_DEVICES: i64 = 32;
const PER_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
const BY_STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Resources that quotas of pods count.
const OF_PODS: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Where a quota counts these, each container must say how much it asks for.
const MUST_SAY: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

pub fn units(n: usize) -> Quantity {
    Quantity::from_units(i64::try_from(n).unwrap_or(i64::MAX), Format::DecimalSI)
}

/// What all containers ask for; of those that are being resized, with `granted`, the most of what
/// they want, are granted and have.
fn of_containers(pod: &Value, field: &str, granted: bool) -> Amounts {
    let statuses = ["containerStatuses", "initContainerStatuses"]
        .map(|list| object::list_at(pod, &["status", list]));
    let of = |container: &Value| {
        let mut asked = read(object::get(container, &["resources", field]));
        let status =
            statuses.iter().flat_map(|s| s.iter()).find(|s| s["name"] == container["name"]);
        if let Some(status) = status.filter(|_| granted) {
            asked.raise(&read(object::get(status, &["resources", field])));
            if field == "requests" {
                asked.raise(&read(status.get("allocatedResources")));
            }
        }
        asked
    };
    let mut total = of_spec(pod.get("spec").unwrap_or(&Value::Null), of);
    // What the pod says of itself as a whole goes before.
    for (name, amount) in read(object::get(pod, &["spec", "resources", field])) {
        if matches!(name.as_str(), "cpu" | "memory") || granted && is_hugepages(&name) {
            total.insert(name, amount);
        }
    }
    total
}

/// What a pod asks for. `whole`: with its overhead, and what a resize has not given back yet.
pub fn pod_requests(pod: &Value, whole: bool) -> Amounts {
    let mut total = of_containers(pod, "requests", whole);
    if whole {
        total.add(&read(object::get(pod, &["spec", "overhead"])));
    }
    total
}

/// A pod's limits, likewise.
pub fn pod_limits(pod: &Value, whole: bool) -> Amounts {
    let mut total = of_containers(pod, "limits", whole);
    if whole {
        let overhead = read(object::get(pod, &["spec", "overhead"]));
        for (name, amount) in overhead {
            // A limit that is not set stays so.
            if let Some(have) = total.get_mut(&name) {
                *have += amount;
            }
        }
    }
    total
}

/// Amounts under the names that quotas have for them.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::from([("pods".to_owned(), units(1))]);
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        if plain || is_hugepages(name) {
            used.insert(name.clone(), *amount);
        }
        // Extended resources are counted under `requests.` alone.
        if plain || is_hugepages(name) || !is_native(name) {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            used.insert(format!("limits.{name}"), *amount);
        }
    }
    used
}

/// Whether a pod still uses anything.
fn lives(pod: &Value, now: Timestamp) -> bool {
    if matches!(object::str_at(pod, &["status", "phase"]), "Succeeded" | "Failed") {
        return false;
    }
    let grace = object::int_at(pod, &["metadata", "deletionGracePeriodSeconds"]);
    match (object::deletion_timestamp(pod).parse::<Timestamp>(), grace) {
        (Ok(at), Some(grace)) => {
            at.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
        }
        _ => true,
    }
}

/// The resources that quotas can count in a special way; all others are only counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted<'a> {
    Pod,
    Service,
    Claim,
    DeviceClaim,
    /// `count/` and what an older name, if it has one, says.
    Object {
        group: &'a str,
        resource: &'a str,
    },
}

impl<'a> Counted<'a> {
    /// Those that count as more than their number.
    pub const SPECIAL: [Self; 4] = [Self::Pod, Self::Service, Self::Claim, Self::DeviceClaim];

    pub fn of(group: &'a str, resource: &'a str) -> Self {
        match (group, resource) {
            ("", "pods") => Self::Pod,
            ("", "services") => Self::Service,
            ("", "persistentvolumeclaims") => Self::Claim,
            ("resource.k8s.io", "resourceclaims") => Self::DeviceClaim,
            _ => Self::Object { group, resource },
        }
    }

    /// What an object counts as.
    pub fn usage(self, object: &Value, now: Timestamp) -> Amounts {
        match self {
            Self::Pod => {
                let mut used = Amounts::from([("count/pods".to_owned(), units(1))]);
                if lives(object, now) {
                    let (requests, limits) = (pod_requests(object, true), pod_limits(object, true));
                    used.extend(compute(&requests, &limits));
                }
                used
            }
            Self::Service => of_service(object),
            Self::Claim => of_claim(object),
            Self::DeviceClaim => of_device_claim(object),
            Self::Object { group, resource } => {
                object_names(group, resource).map(|name| (name, units(1))).collect()
            }
        }
    }

    /// Whether such objects count against this resource of a quota.
    pub fn counts_as(self, name: &str) -> bool {
        match self {
            Self::Pod => {
                OF_PODS.contains(&name)
                    || is_hugepages(name)
                    || name.starts_with("requests.hugepages-")
                    || name.starts_with("requests.") && !is_native(name)
            }
            Self::Service => matches!(
                name,
                "count/services" | "services" | "services.nodeports" | "services.loadbalancers"
            ),
            Self::Claim => {
                name == "count/persistentvolumeclaims" || {
                    let last = name.split_once(BY_STORAGE_CLASS).map_or(name, |(_, last)| last);
                    matches!(last, "persistentvolumeclaims" | "requests.storage")
                }
            }
            Self::DeviceClaim => {
                name == "count/resourceclaims.resource.k8s.io" || name.ends_with(PER_CLASS)
            }
            Self::Object { group, resource } => object_names(group, resource).any(|n| n == name),
        }
    }

    /// Those of a quota's resources that such objects count against.
    pub fn matching(self, hard: &Amounts) -> BTreeSet<&str> {
        hard.keys().map(String::as_str).filter(|name| self.counts_as(name)).collect()
    }

    /// Whether an object is in a scope of a quota.
    pub fn in_scope(self, object: &Value, scope: &Scope<'_>) -> bool {
        match self {
            Self::Pod => pod_in_scope(object, scope),
            Self::Claim => claim_in_scope(object, scope),
            _ => false,
        }
    }

    /// What keeps an object from being counted, though it must be.
    pub fn constraint(self, required: &BTreeSet<&str>, object: &Value) -> Option<String> {
        if self != Self::Pod || whole_pod_resources(object) {
            return None;
        }
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let containers = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| object::list_at(object, &["spec", list]));
        for container in containers {
            let of = |field| read(object::get(container, &["resources", field]));
            let said = compute(&of("requests"), &of("limits"));
            for name in MUST_SAY.iter().filter(|n| required.contains(**n)) {
                if !said.contains_key(*name) {
                    missing.entry(name).or_default().insert(object::str_at(container, &["name"]));
                }
            }
        }
        let texts: Vec<String> = missing
            .iter()
            .map(|(resource, containers)| {
                let containers: Vec<&str> = containers.iter().copied().collect();
                format!("{resource} for: {}", containers.join(","))
            })
            .collect();
        (!texts.is_empty()).then(|| format!("must specify {}", texts.join("; ")))
    }
}

fn whole_pod_resources(pod: &Value) -> bool {
    ["requests", "limits"].iter().any(|field| {
        let amounts = read(object::get(pod, &["spec", "resources", field]));
        amounts.keys().any(|n| matches!(n.as_str(), "cpu" | "memory") || is_hugepages(n))
    })
}

fn object_names<'a>(group: &'a str, resource: &'a str) -> impl Iterator<Item = String> + use<'a> {
    let counted = match group {
        "" => format!("count/{resource}"),
        group => format!("count/{resource}.{group}"),
    };
    let known = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];
    let older = (group.is_empty() && known.contains(&resource)).then(|| resource.to_owned());
    std::iter::once(counted).chain(older)
}

fn of_service(service: &Value) -> Amounts {
    let ports = object::list_at(service, &["spec", "ports"]);
    let kind = object::str_at(service, &["spec", "type"]);
    let allocates = object::get(service, &["spec", "allocateLoadBalancerNodePorts"])
        .and_then(Value::as_bool)
        .unwrap_or(true);
    let node_ports = match kind {
        "NodePort" => ports.len(),
        "LoadBalancer" if allocates => ports.len(),
        "LoadBalancer" => {
            ports.iter().filter(|p| object::int_at(p, &["nodePort"]).unwrap_or(0) != 0).count()
        }
        _ => 0,
    };
    Amounts::from([
        ("count/services".to_owned(), units(1)),
        ("services".to_owned(), units(1)),
        ("services.nodeports".to_owned(), units(node_ports)),
        ("services.loadbalancers".to_owned(), units(usize::from(kind == "LoadBalancer"))),
    ])
}

fn of_claim(claim: &Value) -> Amounts {
    let mut used = Amounts::from([
        ("count/persistentvolumeclaims".to_owned(), units(1)),
        ("persistentvolumeclaims".to_owned(), units(1)),
    ]);
    let amount = |path: &[&str]| object::get(claim, path).and_then(quantity);
    let asked = amount(&["spec", "resources", "requests", "storage"]);
    let allocated = amount(&["status", "allocatedResources", "storage"]);
    // Whole bytes alone can be counted.
    let storage = asked.map(|asked| {
        let most = allocated.map_or(asked, |allocated| asked.max(allocated));
        Quantity::from_units(most.value(), most.format())
    });
    let annotated = object::annotation(claim, "volume.beta.kubernetes.io/storage-class");
    let class = annotated.unwrap_or_else(|| object::str_at(claim, &["spec", "storageClassName"]));
    if !class.is_empty() {
        used.insert(format!("{class}{BY_STORAGE_CLASS}persistentvolumeclaims"), units(1));
    }
    if let Some(storage) = storage {
        used.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            used.insert(format!("{class}{BY_STORAGE_CLASS}requests.storage"), storage);
        }
    }
    used
}

fn of_device_claim(claim: &Value) -> Amounts {
    let count = |request: &Value| match object::str_at(request, &["allocationMode"]) {
        "ExactCount" => object::int_at(request, &["count"]).unwrap_or(0),
        "All" => ALL_DEVICES,
        _ => 0,
    };
    let name =
        |request: &Value| format!("{}{PER_CLASS}", object::str_at(request, &["deviceClassName"]));
    let mut used = Amounts::from([("count/resourceclaims.resource.k8s.io".to_owned(), units(1))]);
    for request in object::list_at(claim, &["spec", "devices", "requests"]) {
        // Of alternatives, the worst of each class.
        let mut worst = Amounts::new();
        let alternatives = object::list_at(request, &["firstAvailable"]);
        for one in alternatives.iter().chain(request.get("exactly")) {
            let amount = Quantity::from_units(count(one), Format::DecimalSI);
            worst.raise(&Amounts::from([(name(one), amount)]));
        }
        used.add(&worst);
    }
    used
}

/// A scope that a quota is narrowed to.
#[derive(Clone, Debug)]
pub struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: Vec<&'a str>,
}

/// The scopes of a quota, of both forms.
pub fn scopes(quota: &Value) -> Vec<Scope<'_>> {
    let plain = object::list_at(quota, &["spec", "scopes"]).iter().filter_map(Value::as_str);
    let plain = plain.map(|name| Scope { name, operator: "Exists", values: Vec::new() });
    let selector = object::list_at(quota, &["spec", "scopeSelector", "matchExpressions"]);
    let selector = selector.iter().map(|e| Scope {
        name: object::str_at(e, &["scopeName"]),
        operator: object::str_at(e, &["operator"]),
        values: object::list_at(e, &["values"]).iter().filter_map(Value::as_str).collect(),
    });
    plain.chain(selector).collect()
}

impl Scope<'_> {
    /// Whether one of these names fits; without any, only a scope of what has none does.
    fn takes(&self, names: &[&str]) -> bool {
        let listed = |name: &&str| self.values.contains(name);
        match self.operator {
            "Exists" => !names.is_empty(),
            "DoesNotExist" => names.is_empty(),
            "In" => names.iter().any(listed),
            "NotIn" => names.is_empty() || names.iter().any(|n| !listed(n)),
            _ => false,
        }
    }
}

pub fn is_terminating(pod: &Value) -> bool {
    object::int_at(pod, &["spec", "activeDeadlineSeconds"]).is_some_and(|s| s >= 0)
}

fn pod_in_scope(pod: &Value, scope: &Scope<'_>) -> bool {
    match scope.name {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => qos_class(pod) == "BestEffort",
        "NotBestEffort" => qos_class(pod) != "BestEffort",
        "PriorityClass" => {
            let class = object::str_at(pod, &["spec", "priorityClassName"]);
            scope.takes(if class.is_empty() { &[] } else { std::slice::from_ref(&class) })
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    const HARD: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const SOFT: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    let crosses = |term: &Value| {
        !object::list_at(term, &["namespaces"]).is_empty()
            || term.get("namespaceSelector").is_some_and(|s| !s.is_null())
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let of = |list| object::list_at(pod, &["spec", "affinity", kind, list]).iter();
        of(HARD).any(crosses) || of(SOFT).any(|w| w.get("podAffinityTerm").is_some_and(crosses))
    })
}

/// Classes of attributes that a claim has, had, or is to get.
pub fn attributes_classes(claim: &Value) -> BTreeSet<&str> {
    [
        &["spec", "volumeAttributesClassName"][..],
        &["status", "currentVolumeAttributesClassName"],
        &["status", "modifyVolumeStatus", "targetVolumeAttributesClassName"],
    ]
    .into_iter()
    .map(|path| object::str_at(claim, path))
    .filter(|name| !name.is_empty())
    .collect()
}

fn claim_in_scope(claim: &Value, scope: &Scope<'_>) -> bool {
    let names: Vec<&str> = attributes_classes(claim).into_iter().collect();
    scope.name == "VolumeAttributesClass" && scope.takes(&names)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(amounts: &Amounts) -> String {
        let all: Vec<String> = amounts.iter().map(|(n, q)| format!("{n}={q}")).collect();
        all.join(",")
    }

    #[test]
    fn objects_are_counted_by_what_they_ask_for() {
        let asks = |requests: Value| json!({"resources": {"requests": requests}});
        let pod = json!({"spec": {
            "overhead": {"cpu": "100m"},
            "containers": [asks(json!({"cpu": "1", "example.com/gpu": "1"}))],
            "initContainers": [asks(json!({"cpu": "3", "memory": "1Gi"}))],
        }});
        let mut ended = pod.clone();
        ended["status"] = json!({"phase": "Failed"});
        let balanced = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {"nodePort": 1}],
            "allocateLoadBalancerNodePorts": false}});
        let claim = json!({"spec": {"storageClassName": "fast",
            "resources": {"requests": {"storage": "1500m"}}}});
        let devices = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "c", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [{"deviceClassName": "c", "allocationMode": "All"}]}]}}});
        for (counted, object, want) in [
            (
                Counted::Pod,
                &pod,
                "count/pods=1,cpu=3100m,memory=1Gi,pods=1,requests.cpu=3100m,\
                 requests.example.com/gpu=1,requests.memory=1Gi",
            ),
            (Counted::Pod, &ended, "count/pods=1"),
            (
                Counted::Service,
                &balanced,
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=1",
            ),
            (
                Counted::Claim,
                &claim,
                "count/persistentvolumeclaims=1,\
                 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
                 fast.storageclass.storage.k8s.io/requests.storage=2,persistentvolumeclaims=1,\
                 requests.storage=2",
            ),
            (
                Counted::DeviceClaim,
                &devices,
                "c.deviceclass.resource.k8s.io/devices=34,count/resourceclaims.resource.k8s.io=1",
            ),
            (Counted::of("batch", "jobs"), &json!({}), "count/jobs.batch=1"),
            (Counted::of("", "secrets"), &json!({}), "count/secrets=1,secrets=1"),
        ] {
            assert_eq!(shown(&counted.usage(object, Timestamp::UNIX_EPOCH)), want);
        }
    }

    #[test]
    fn scopes_take_what_they_name() {
        let pod = json!({"spec": {"priorityClassName": "high", "activeDeadlineSeconds": 3}});
        let quota = |operator: &str, values: Value| {
            json!({"spec": {"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values}]}}})
        };
        for (quota, want) in [
            (json!({"spec": {"scopes": ["Terminating", "BestEffort"]}}), true),
            (json!({"spec": {"scopes": ["NotTerminating"]}}), false),
            (quota("In", json!(["high"])), true),
            (quota("In", json!(["low"])), false),
            (quota("NotIn", json!(["high"])), false),
            (quota("Exists", json!([])), true),
        ] {
            let all = scopes(&quota).iter().all(|s| Counted::Pod.in_scope(&pod, s));
            assert_eq!(all, want, "{quota}");
        }
    }
}
