//! Quality of service: who goes first when a node runs short.

use crate::amounts::{Amounts, Combine, read};
use crate::{Value, object};

/// `Guaranteed`, `Burstable` or `BestEffort`, by the pod's spec
/// (k8s.io/kubernetes `apis/core/helper/qos`).
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let compute = |list: Option<&Value>| -> Amounts {
        let mut amounts = read(list);
        amounts
            .retain(|name, amount| matches!(name.as_str(), "cpu" | "memory") && amount.sign() > 0);
        amounts
    };
    let own = &spec["resources"];
    if own.is_object() {
        let (requests, limits) = (compute(own.get("requests")), compute(own.get("limits")));
        if !requests.is_empty() || !limits.is_empty() {
            return class(&requests, &limits, limits.len() == 2);
        }
    }
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut all_limited = true;
    let containers = ["containers", "initContainers"];
    for container in containers.iter().flat_map(|f| object::list_at(spec, &[f])) {
        let resources = &container["resources"];
        let own_limits = compute(resources.get("limits"));
        all_limited &= own_limits.len() == 2;
        requests.add(&compute(resources.get("requests")));
        limits.add(&own_limits);
    }
    class(&requests, &limits, all_limited)
}

fn class(requests: &Amounts, limits: &Amounts, all_limited: bool) -> &'static str {
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if all_limited && requests == limits { "Guaranteed" } else { "Burstable" }
}
