//! NodeResourcesFit (with upstream's LeastAllocated score) and NodeResourcesBalancedAllocation.

use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeResourcesFit;
pub struct NodeResourcesBalancedAllocation;

struct Fit<'a>(&'a PodInfo);
struct Balanced<'a>(&'a PodInfo);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        Ok(Some(Box::new(Fit(pod))))
    }

    fn helps(&self, event: ClusterEvent) -> bool {
        !matches!(event, ClusterEvent::PodPlaced | ClusterEvent::Other)
    }
}

/// What the node has too little of, in upstream's words.
fn lacking(pod: &PodInfo, node: &NodeInfo) -> Refusal {
    let mut refusal = Refusal { reasons: Vec::new(), unresolvable: false };
    if node.pods.len() + 1 > node.allowed_pods {
        refusal.reasons.push("Too many pods".into());
    }
    let (asked, used, have) = (&pod.requests.asked, &node.requested, &node.allocatable);
    let mut check = |name: &str, asked: i64, used: i64, have: i64| {
        if asked > 0 && asked > have - used {
            refusal.reasons.push(format!("Insufficient {name}"));
            // More than the node has in all: no pod's end would help.
            refusal.unresolvable |= asked > have;
        }
    };
    check("cpu", asked.milli_cpu, used.milli_cpu, have.milli_cpu);
    check("memory", asked.memory, used.memory, have.memory);
    check(
        "ephemeral-storage",
        asked.ephemeral_storage,
        used.ephemeral_storage,
        have.ephemeral_storage,
    );
    for (name, amount) in &asked.others {
        let of = |r: &crate::resources::Resources| r.others.get(name).copied().unwrap_or(0);
        check(name, *amount, of(used), of(have));
    }
    refusal
}

impl Prepared for Fit<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let refusal = lacking(self.0, node);
        if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
    }

    /// The share left of CPU and memory, averaged.
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let (cpu, memory) = self.0.requests.scored;
        let left = |asked: i64, used: i64, have: i64| match have {
            have if have <= 0 || asked + used > have => 0,
            have => (have - asked - used) * MAX_SCORE / have,
        };
        let cpu = left(cpu, node.scored.0, node.allocatable.milli_cpu);
        let memory = left(memory, node.scored.1, node.allocatable.memory);
        Some(i64::midpoint(cpu, memory))
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        let asked = &pod.requests.asked;
        // A pod that asks for nothing balances nothing.
        let says = asked.milli_cpu > 0 || asked.memory > 0;
        Ok(says.then(|| Box::new(Balanced(pod)) as Box<dyn Prepared>))
    }

    fn helps(&self, _event: ClusterEvent) -> bool {
        false
    }
}

impl Prepared for Balanced<'_> {
    /// High when CPU and memory are used in like shares.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "shares")]
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let asked = &self.0.requests.asked;
        let share = |used: i64, have: i64| match have {
            have if have <= 0 => 1.0,
            have => (used as f64 / have as f64).min(1.0),
        };
        let cpu = share(node.requested.milli_cpu + asked.milli_cpu, node.allocatable.milli_cpu);
        let memory = share(node.requested.memory + asked.memory, node.allocatable.memory);
        // The standard deviation of two numbers.
        let deviation = ((cpu - memory) / 2.0).abs();
        Some(((1.0 - deviation) * MAX_SCORE as f64) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use serde_json::json;

    #[test]
    fn what_is_lacking_is_named() {
        let mut snapshot = Snapshot::default();
        let small = json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}});
        snapshot.set_node("n", Some(node("n", small)));
        let asks = |name: &str, list: serde_json::Value| {
            pod(name, json!({"containers": [{"name": "c", "resources": {"requests": list}}]}))
        };
        let reasons = |snapshot: &Snapshot, p: &PodInfo| {
            let refusal = lacking(p, snapshot.node("n").expect("a node"));
            (refusal.reasons.join(", "), refusal.unresolvable)
        };
        let p = asks("p", json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(reasons(&snapshot, &p), (String::new(), false));
        snapshot.assume(&p, "n");
        let q = asks("q", json!({"cpu": "1m", "memory": "2Gi", "example.com/gpu": "1"}));
        let wanted =
            "Too many pods, Insufficient cpu, Insufficient memory, Insufficient example.com/gpu";
        assert_eq!(reasons(&snapshot, &q), (wanted.to_owned(), true));
        let r = asks("r", json!({"cpu": "1m"}));
        assert_eq!(reasons(&snapshot, &r), ("Too many pods, Insufficient cpu".to_owned(), false));
    }
}
