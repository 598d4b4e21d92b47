//! Which pod goes first, and what it is told.

use std::cmp::Reverse;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::judge::Observations;
use super::thresholds::{Signal, Threshold};
use crate::objects::{init_containers, is_mirror, is_static, name, spec};
use crate::pod::resources::pod_total;
use crate::quantity::{binary, value};
use crate::stats::PodUsage;

/// Pods of this priority and above are never evicted.
const CRITICAL: i32 = 2_000_000_000;

/// What a pod uses of the resource that is short.
#[derive(Clone, Debug)]
pub struct Usage {
    pub pod: Arc<Pod>,
    pub used: PodUsage,
}

/// Whether the node cannot do without the pod.
pub fn is_critical(pod: &Pod) -> bool {
    is_static(pod) || is_mirror(pod) || spec(pod).priority.is_some_and(|p| p >= CRITICAL)
}

/// What a pod asked for of a resource, in whole units.
fn request(pod: &Pod, resource: &str) -> u64 {
    let total = pod_total(pod, |r| r.requests.as_ref());
    let whole = total.get(resource).map_or(0, Quantity::value);
    u64::try_from(whole).unwrap_or(0)
}

/// Who goes first: who uses more than was asked for, then who matters least, then who uses the
/// most beyond that. Inodes and processes are not asked for.
pub fn order(signal: Signal, pods: &mut [Usage]) {
    let resource = signal.resource();
    let beyond = |usage: &Usage| {
        let asked = request(&usage.pod, resource);
        (usage.used.total > asked, i128::from(usage.used.total) - i128::from(asked))
    };
    let asks = matches!(resource, "memory" | "ephemeral-storage");
    pods.sort_by_key(|usage| {
        let (exceeds, by) = beyond(usage);
        (asks && !exceeds, spec(&usage.pod).priority.unwrap_or(0), Reverse(by))
    });
}

/// What an evicted pod's status says; upstream's words.
pub fn message(threshold: &Threshold, usage: &Usage, observed: &Observations) -> String {
    let signal = threshold.signal;
    let resource = signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    if let Some(now) = observed.get(&signal) {
        text += &format!(
            "Threshold quantity: {}, available: {}. ",
            signal.shown(threshold.amount.of(now.capacity)).0,
            signal.shown(now.available).0
        );
    }
    let pod = &usage.pod;
    let whole = spec(pod).resources.as_ref().and_then(|r| r.requests.as_ref());
    if resource == "memory"
        && let Some(asked) = whole.and_then(|list| list.get(resource))
    {
        text += &format!(
            "Pod {} was using {}, request is {}, has larger consumption of {resource}. ",
            name(pod),
            shown(usage.used.total),
            asked.0
        );
    }
    let find = |name: &str| -> Option<&Container> {
        let mut all = spec(pod).containers.iter().chain(init_containers(pod));
        all.find(|c| c.name == name)
    };
    for (name, used) in &usage.used.containers {
        let Some(container) = find(name) else { continue };
        let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
        let asked = value(requests, resource).and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        if *used > asked {
            let asked = requests.and_then(|r| r.get(resource)).map_or("0", |q| &q.0);
            text += &format!(
                "Container {name} was using {}, request is {asked}, has larger consumption of \
                 {resource}. ",
                shown(*used)
            );
        }
    }
    text
}

fn shown(bytes: u64) -> String {
    binary(i64::try_from(bytes).unwrap_or(i64::MAX)).0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::judge::Observation;
    use super::super::thresholds::Amount;
    use super::*;
    use serde_json::json;

    fn usage(name: &str, priority: i32, request: &str, used: u64) -> Usage {
        let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": [
            {"name": "main", "resources": {"requests": {"memory": request}}}]}});
        Usage {
            pod: Arc::new(serde_json::from_value(pod).expect("a pod")),
            used: PodUsage {
                total: used << 20,
                containers: [("main".to_owned(), used << 20)].into(),
            },
        }
    }

    #[test]
    fn those_beyond_their_requests_go_first() {
        let mut pods = vec![
            usage("within", 0, "100Mi", 90),
            usage("important", 100, "0", 500),
            usage("little", 0, "10Mi", 20),
            usage("much", 0, "10Mi", 200),
        ];
        order(Signal::MemoryAvailable, &mut pods);
        let names: Vec<&str> = pods.iter().map(|u| name(&u.pod)).collect();
        assert_eq!(names, ["much", "little", "important", "within"]);
        order(Signal::PidAvailable, &mut pods);
        let names: Vec<&str> = pods.iter().map(|u| name(&u.pod)).collect();
        assert_eq!(names, ["much", "within", "little", "important"]);
    }

    #[test]
    fn critical_pods_stay() {
        assert!(is_critical(&usage("a", CRITICAL, "0", 1).pod));
        assert!(!is_critical(&usage("a", CRITICAL - 1, "0", 1).pod));
    }

    #[test]
    fn messages_say_what_was_short_and_who_took_it() {
        let threshold = Threshold {
            signal: Signal::MemoryAvailable,
            amount: Amount::Of(100 << 20),
            grace: Duration::ZERO,
            reclaim: None,
        };
        let now = Observation { available: 50 << 20, capacity: 1 << 30 };
        let observed = [(Signal::MemoryAvailable, now)].into();
        assert_eq!(
            message(&threshold, &usage("a", 0, "10Mi", 20), &observed),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. \
             Container main was using 20Mi, request is 10Mi, has larger consumption of memory. "
        );
    }
}
