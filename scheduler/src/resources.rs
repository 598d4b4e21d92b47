//! Amounts of resources: what pods ask for and nodes have.

use std::collections::BTreeMap;
use std::str::FromStr;

use apimachinery::amounts::{Combine, of_containers};
use apimachinery::quantity::Quantity;
use client::lean::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What a container without requests counts as in scores (upstream's non-zero requests), so that
/// pods without requests spread too: 100m and 200 MB.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes.
    pub ephemeral_storage: i64,
    /// Extended resources and huge pages, in units.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    /// From a list as specs and statuses have it. Text that is no quantity counts as nothing: the
    /// API has validated it.
    pub fn parse(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut out = Self::default();
        for (name, text) in list.into_iter().flatten() {
            let Ok(amount) = Quantity::from_str(&text.0) else { continue };
            match name.as_str() {
                "cpu" => out.milli_cpu = amount.milli_value(),
                "memory" => out.memory = amount.value(),
                "ephemeral-storage" => out.ephemeral_storage = amount.value(),
                "pods" => {}
                other => {
                    out.others.insert(other.to_owned(), amount.value());
                }
            }
        }
        out
    }

    /// The amount of a resource: thousandths of CPUs, else bytes or units.
    pub fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            other => self.others.get(other).copied().unwrap_or(0),
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.apply(other, i64::saturating_sub);
    }

    fn apply(&mut self, other: &Self, f: fn(i64, i64) -> i64) {
        self.milli_cpu = f(self.milli_cpu, other.milli_cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_insert(0);
            *mine = f(*mine, *amount);
        }
    }
}

impl Combine for Resources {
    fn add(&mut self, more: &Self) {
        self.apply(more, i64::saturating_add);
    }

    fn raise(&mut self, other: &Self) {
        self.apply(other, i64::max);
    }
}

/// What a pod asks for, and what it counts as in scores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodRequests {
    pub asked: Resources,
    /// CPU and memory with defaults for containers that ask for none.
    pub scored: (i64, i64),
}

/// Sums a pod's requests: containers and sidecars together, or the largest step of initialization
/// if that is more; plus overhead (KEP-753, KEP-688; pod-level resources: KEP-2837).
pub fn of_pod(pod: &Pod) -> PodRequests {
    let Some(spec) = &pod.spec else { return PodRequests::default() };
    let requests = |c: &Container| requests(c, pod);
    let mut asked = total(spec, requests);
    let mut scored = total(spec, |c| with_defaults(requests(c)));
    if let Some(pod_level) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let level = Resources::parse(Some(pod_level));
        for (name, whole) in [("cpu", level.milli_cpu), ("memory", level.memory)] {
            if pod_level.contains_key(name) {
                let (a, s) = match name {
                    "cpu" => (&mut asked.milli_cpu, &mut scored.milli_cpu),
                    _ => (&mut asked.memory, &mut scored.memory),
                };
                (*a, *s) = (whole, whole);
            }
        }
    }
    let overhead = Resources::parse(spec.overhead.as_ref());
    asked.add(&overhead);
    scored.add(&overhead);
    PodRequests { asked, scored: (scored.milli_cpu, scored.memory) }
}

/// What a container asks for. While it is resized (KEP-1287), the most of that, of what its node
/// has given it, and of what it still has; of a resize that its node can never do, only the latter.
fn requests(container: &Container, pod: &Pod) -> Resources {
    let asked = Resources::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let Some(status) = &pod.status else { return asked };
    let lists = [&status.container_statuses, &status.init_container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let known = all.find(|s| s.name == container.name);
    let Some((known, has)) = known.and_then(|s| Some((s, s.resources.as_ref()?))) else {
        return asked;
    };
    let infeasible = status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"));
    let mut most = if infeasible { Resources::default() } else { asked };
    most.raise(&Resources::parse(has.requests.as_ref()));
    most.raise(&Resources::parse(known.allocated_resources.as_ref()));
    most
}

fn with_defaults(mut requests: Resources) -> Resources {
    if requests.milli_cpu == 0 {
        requests.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if requests.memory == 0 {
        requests.memory = DEFAULT_MEMORY;
    }
    requests
}

fn total(spec: &PodSpec, of: impl Fn(&Container) -> Resources) -> Resources {
    let is_sidecar = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.iter().flatten().map(|c| (of(c), is_sidecar(c)));
    of_containers(spec.containers.iter().map(&of), init)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(spec: serde_json::Value, milli_cpu: i64) {
        let pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("a pod");
        assert_eq!(of_pod(&pod).asked.milli_cpu, milli_cpu, "{spec}");
    }

    #[test]
    fn a_resize_counts_as_the_most_of_before_and_after() {
        let pod = |asked: &str, has: &str, given: &str, why: &str| -> Pod {
            let condition = json!({"type": "PodResizePending", "status": "True", "reason": why});
            let status = json!({"name": "c", "image": "", "imageID": "", "ready": true,
                "restartCount": 0, "resources": {"requests": {"cpu": has}},
                "allocatedResources": {"cpu": given}});
            let container = json!({"name": "c", "resources": {"requests": {"cpu": asked}}});
            let pod = json!({"metadata": {}, "spec": {"containers": [container]},
                "status": {"containerStatuses": [status], "conditions": [condition]}});
            serde_json::from_value(pod).expect("a pod")
        };
        for (asked, has, given, why, wanted) in [
            ("3", "1", "1", "Deferred", 3000),
            ("1", "3", "1", "", 3000),
            ("1", "1", "2", "", 2000),
            ("9", "1", "2", "Infeasible", 2000),
        ] {
            let counted = of_pod(&pod(asked, has, given, why)).asked.milli_cpu;
            assert_eq!(counted, wanted, "{asked} {has} {given} {why}");
        }
    }

    #[test]
    fn requests_are_those_of_the_largest_moment() {
        let c = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        let sidecar = |cpu: &str| json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        check(json!({"containers": [c("1"), c("500m")]}), 1500);
        check(json!({"containers": [c("1")], "initContainers": [c("3")]}), 3000);
        check(json!({"containers": [c("1")], "initContainers": [sidecar("1"), c("3")]}), 4000);
        check(json!({"containers": [c("1")], "initContainers": [c("1"), sidecar("1")]}), 2000);
        check(json!({"containers": [c("1")], "overhead": {"cpu": "250m"}}), 1250);
        check(json!({"containers": [c("1")], "resources": {"requests": {"cpu": "5"}}}), 5000);
    }
}
