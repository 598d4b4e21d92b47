//! Quality of service and the cgroup settings that follow from requests and limits.

use apimachinery::amounts::{Amounts, Combine, of_containers};
use apimachinery::quantity::Quantity;
use k8s_cri::v1::LinuxContainerResources;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::objects::{init_containers, is_sidecar, spec};
use crate::quantity::{List, amounts, millis, value};

/// Least `cpu.shares`.
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// Least quota, in microseconds.
const MIN_QUOTA: i64 = 1000;

/// `Guaranteed`, `Burstable` or `BestEffort`. The API server has set it; without it (static
/// pods) it is computed.
pub fn qos_class(pod: &Pod) -> &'static str {
    match pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        Some("Guaranteed") => return "Guaranteed",
        Some("Burstable") => return "Burstable",
        Some("BestEffort") => return "BestEffort",
        _ => {}
    }
    let pod_level = spec(pod).resources.as_ref();
    let lists: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(r) => vec![Some(r)],
        None => {
            let all = spec(pod).containers.iter().chain(init_containers(pod));
            all.map(|c| c.resources.as_ref()).collect()
        }
    };
    let positive = |list: Option<&List>, name: &str| value(list, name).is_some_and(|v| v > 0);
    let (mut any, mut guaranteed) = (false, true);
    for resources in lists {
        let requests = resources.and_then(|r| r.requests.as_ref());
        let limits = resources.and_then(|r| r.limits.as_ref());
        for name in ["cpu", "memory"] {
            any |= positive(requests, name) || positive(limits, name);
            let limit = millis(limits, name).filter(|l| *l > 0);
            let request = millis(requests, name).or(limit);
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `cpu.shares` for thousandths of a CPU.
pub fn shares(milli_cpu: i64) -> i64 {
    match milli_cpu {
        0 => MIN_SHARES,
        m => (m * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES),
    }
}

/// `cpu.cfs_quota_us` for thousandths of a CPU, with the period in microseconds. 0: no quota.
pub fn quota(milli_cpu: i64, period: i64) -> i64 {
    match milli_cpu {
        0 => 0,
        m => (m * period / 1000).max(MIN_QUOTA),
    }
}

/// Who the kernel kills first when memory runs out (-1000 to 1000).
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if spec(pod).priority.is_some_and(|p| p >= 2_000_000_000) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let request = value(requests, "memory").unwrap_or(0);
            let adjust = 1000 - (1000 * request) / memory_capacity.max(1);
            if init_containers(pod).iter().any(|c| c.name == container.name && is_sidecar(c)) {
                // A sidecar is not killed before the containers it serves.
                let least = spec(pod).containers.iter().map(|c| {
                    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
                    1000 - (1000 * value(requests, "memory").unwrap_or(0)) / memory_capacity.max(1)
                });
                let least = least.min().unwrap_or(adjust);
                return adjust.min(least).clamp(2, 999);
            }
            match adjust {
                a if a < 3 => 3,
                1000 => 999,
                a => a,
            }
        }
    }
}

/// How the kubelet is set up to limit containers.
#[derive(Clone, Copy, Debug)]
pub struct Limiting {
    pub enforce_quota: bool,
    /// Microseconds.
    pub period: i64,
    /// Processes of a container end together when its memory is short; cgroup v2 can do that, and
    /// upstream does it there (`singleProcessOOMKill`).
    pub group_oom: bool,
}

/// The limits of a container's cgroup.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    how: Limiting,
    memory_capacity: i64,
) -> LinuxContainerResources {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|r| r.requests.as_ref());
    let limits = resources.and_then(|r| r.limits.as_ref());
    // A container without a limit of its own may use what its pod may.
    let whole = spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref());
    let limit = millis(limits, "cpu").or_else(|| millis(whole, "cpu")).unwrap_or(0);
    let request = millis(requests, "cpu").unwrap_or(limit);
    let mut result = LinuxContainerResources {
        cpu_shares: shares(request),
        memory_limit_in_bytes: value(limits, "memory")
            .or_else(|| value(whole, "memory"))
            .unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..LinuxContainerResources::default()
    };
    if how.enforce_quota {
        result.cpu_period = how.period;
        result.cpu_quota = quota(limit, how.period);
    }
    if how.group_oom {
        result.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    result
}

/// What a pod asks for in all: the largest of what its containers need at any one time, or the
/// pod's own request where it has one.
pub fn pod_total(pod: &Pod, pick: impl Fn(&ResourceRequirements) -> Option<&List>) -> Amounts {
    let of = |c: &Container| amounts(c.resources.as_ref().and_then(&pick));
    let init = init_containers(pod).iter().map(|c| (of(c), is_sidecar(c)));
    let mut total = of_containers(spec(pod).containers.iter().map(of), init);
    total.extend(amounts(spec(pod).resources.as_ref().and_then(&pick)));
    total.add(&amounts(spec(pod).overhead.as_ref()));
    total
}

/// The limits of a pod's own cgroup; `None` where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    pub shares: i64,
    pub quota: Option<i64>,
    pub period: i64,
    pub memory: Option<i64>,
}

/// Computes the limits of a pod's cgroup. A limit holds only if every container has one.
pub fn pod_limits(pod: &Pod, how: Limiting) -> PodLimits {
    let requests = pod_total(pod, |r| r.requests.as_ref());
    let limits = pod_total(pod, |r| r.limits.as_ref());
    let pod_level = spec(pod).resources.as_ref().and_then(|r| r.limits.as_ref());
    let limited = |name: &str| {
        pod_level.is_some_and(|l| l.contains_key(name))
            || spec(pod).containers.iter().chain(init_containers(pod)).all(|c| {
                let list = c.resources.as_ref().and_then(|r| r.limits.as_ref());
                value(list, name).is_some_and(|v| v > 0)
            })
    };
    let milli_limit = limits.get("cpu").map_or(0, Quantity::milli_value);
    let milli_request = requests.get("cpu").map_or(milli_limit, Quantity::milli_value);
    let quota = (how.enforce_quota && limited("cpu")).then(|| quota(milli_limit, how.period));
    let memory = limited("memory").then(|| limits.get("memory").map_or(0, Quantity::value));
    if qos_class(pod) == "BestEffort" {
        return PodLimits { shares: MIN_SHARES, ..PodLimits::default() };
    }
    PodLimits { shares: shares(milli_request), quota, period: how.period, memory }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_quota() {
        for (milli, want) in
            [(0, 2), (1, 2), (100, 102), (1000, 1024), (i64::from(u32::MAX), 262_144)]
        {
            assert_eq!(shares(milli), want, "{milli}");
        }
        for (milli, want) in [(0, 0), (1, 1000), (250, 25_000), (2000, 200_000)] {
            assert_eq!(quota(milli, 100_000), want, "{milli}");
        }
    }

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": json })).unwrap()
    }

    #[test]
    fn quality_of_service() {
        let limits = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (resources, want) in [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "1"}}), "Burstable"),
            (limits.clone(), "Guaranteed"),
            (serde_json::json!({"limits": {"cpu": "1"}}), "Burstable"),
        ] {
            let pod =
                pod(serde_json::json!({"containers": [{"name": "a", "resources": resources}]}));
            assert_eq!(qos_class(&pod), want);
        }
    }

    #[test]
    fn init_containers_count_while_they_run() {
        let pod = pod(serde_json::json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                {"name": "i", "resources": {"requests": {"cpu": "3"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}],
        }));
        assert_eq!(pod_total(&pod, |r| r.requests.as_ref())["cpu"].value(), 4);
    }
}
