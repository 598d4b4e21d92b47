//! NodeResourcesFit, with upstream's three strategies of scoring, and
//! NodeResourcesBalancedAllocation.

use crate::args::{BalancedArgs, FitArgs, MAX_SHAPE_SCORE, ResourceSpec, ShapePoint};
use crate::framework::{
    ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreScore, Refusal, Score, Waiter,
};
use crate::resources::Resources;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeResourcesFit {
    args: FitArgs,
    strategy: Strategy,
}

pub struct NodeResourcesBalancedAllocation {
    resources: Vec<ResourceSpec>,
}

enum Strategy {
    Least,
    Most,
    /// By a line from utilization to score.
    Ratio(Vec<ShapePoint>),
}

impl NodeResourcesFit {
    pub fn new(args: &FitArgs) -> Self {
        let asked = &args.scoring_strategy;
        let shape = asked.requested_to_capacity_ratio.as_ref().map(|r| r.shape.clone());
        let strategy = match asked.r#type.as_str() {
            "MostAllocated" => Strategy::Most,
            "RequestedToCapacityRatio" => Strategy::Ratio(shape.unwrap_or_default()),
            _ => Strategy::Least,
        };
        Self { args: args.clone(), strategy }
    }

    /// Whether an extended resource is not looked at.
    fn ignores(&self, name: &str) -> bool {
        let Some((group, _)) = name.split_once('/') else { return false };
        let extended = !group.ends_with("kubernetes.io");
        extended
            && (self.args.ignored_resources.iter().any(|r| r == name)
                || self.args.ignored_resource_groups.iter().any(|g| g == group))
    }

    /// What the node has too little of, in upstream's words.
    fn lacking(&self, pod: &PodInfo, node: &NodeInfo) -> Refusal {
        let mut refusal = Refusal { reasons: Vec::new(), unresolvable: false };
        if node.pods.len() + 1 > node.allowed_pods {
            refusal.reasons.push("Too many pods".into());
        }
        let (asked, used, have) = (&pod.requests.asked, &node.requested, &node.allocatable);
        let mut check = |name: &str, asked: i64, used: i64, have: i64| {
            if asked > 0 && asked > have - used {
                refusal.reasons.push(match name {
                    "cpu" => "Insufficient cpu".into(),
                    "memory" => "Insufficient memory".into(),
                    name => format!("Insufficient {name}").into(),
                });
                // More than the node has in all: no pod's end would help.
                refusal.unresolvable |= asked > have;
            }
        };
        for name in ["cpu", "memory", "ephemeral-storage"] {
            check(name, asked.get(name), used.get(name), have.get(name));
        }
        for (name, amount) in asked.others.iter().filter(|(name, _)| !self.ignores(name)) {
            check(name, *amount, used.get(name), have.get(name));
        }
        refusal
    }
}

struct Fit<'a>(&'a NodeResourcesFit, &'a PodInfo);
struct Balanced<'a>(&'a NodeResourcesBalancedAllocation, &'a PodInfo);

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        event.is_of_node() || matches!(event, ClusterEvent::PodGone(_) | ClusterEvent::PodResized)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreFilter for NodeResourcesFit {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        Ok(Some(Box::new(Fit(self, pod))))
    }
}

impl Filter for Fit<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let refusal = self.0.lacking(self.1, node);
        if refusal.reasons.is_empty() { Ok(()) } else { Err(refusal) }
    }
}

impl PreScore for NodeResourcesFit {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Fit(self, pod)))
    }
}

/// What would be used of a resource, and what there is; `None` where it does not matter: the node
/// has none, or the pod asks for none of an extended one. `scored`: with defaults for containers
/// that ask for no CPU or memory.
fn used_of(name: &str, pod: &PodInfo, node: &NodeInfo, scored: bool) -> Option<(i64, i64)> {
    let asked = pod.requests.asked.get(name);
    let special = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    let have = node.allocatable.get(name);
    if have <= 0 || !special && asked == 0 {
        return None;
    }
    let used = match name {
        "cpu" if scored => node.scored.0 + pod.requests.scored.0,
        "memory" if scored => node.scored.1 + pod.requests.scored.1,
        _ => node.requested.get(name) + asked,
    };
    Some((used, have))
}

impl Score for Fit<'_> {
    /// The resources' scores, averaged by weight.
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let Self(plugin, pod) = self;
        let (mut sum, mut weights) = (0, 0);
        for resource in &plugin.args.scoring_strategy.resources {
            let Some((used, have)) = used_of(&resource.name, pod, node, true) else { continue };
            let score = match &plugin.strategy {
                Strategy::Least if used > have => 0,
                Strategy::Least => (have - used) * MAX_SCORE / have,
                Strategy::Most => used.min(have) * MAX_SCORE / have,
                Strategy::Ratio(shape) => {
                    along(shape, if used > have { 100 } else { used * 100 / have })
                }
            };
            // Upstream leaves out of this average what scores nothing.
            if score > 0 || !matches!(plugin.strategy, Strategy::Ratio(_)) {
                sum += score * resource.weight;
                weights += resource.weight;
            }
        }
        Some(match (&plugin.strategy, weights) {
            (_, 0) => 0,
            (Strategy::Ratio(_), weights) => (2 * sum + weights) / (2 * weights),
            (_, weights) => sum / weights,
        })
    }
}

/// The score at a utilization in percent: along straight lines between the points.
fn along(shape: &[ShapePoint], utilization: i64) -> i64 {
    let scaled = |p: &ShapePoint| i64::from(p.score) * (MAX_SCORE / i64::from(MAX_SHAPE_SCORE));
    let at = |p: &ShapePoint| i64::from(p.utilization);
    match shape.iter().position(|p| utilization <= at(p)) {
        None => shape.last().map_or(0, scaled),
        Some(0) => scaled(&shape[0]),
        Some(i) => {
            let (a, b) = (&shape[i - 1], &shape[i]);
            scaled(a) + (scaled(b) - scaled(a)) * (utilization - at(a)) / (at(b) - at(a))
        }
    }
}

impl NodeResourcesBalancedAllocation {
    pub fn new(args: &BalancedArgs) -> Self {
        Self { resources: args.resources.clone() }
    }
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreScore for NodeResourcesBalancedAllocation {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        // A pod that asks for nothing balances nothing.
        let asked: &Resources = &pod.requests.asked;
        let says = self.resources.iter().any(|r| asked.get(&r.name) > 0);
        says.then(|| Box::new(Balanced(self, pod)) as Box<dyn Score>)
    }
}

impl Score for Balanced<'_> {
    /// High when the resources are used in like shares.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "shares")]
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let resources = self.0.resources.iter();
        let shares: Vec<f64> = resources
            .filter_map(|r| used_of(&r.name, self.1, node, false))
            .map(|(used, have)| (used as f64 / have as f64).min(1.0))
            .collect();
        let n = shares.len().max(1) as f64;
        let mean = shares.iter().sum::<f64>() / n;
        let deviation = match shares.as_slice() {
            [a, b] => ((a - b) / 2.0).abs(),
            all => (all.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n).sqrt(),
        };
        Some(((1.0 - deviation) * MAX_SCORE as f64) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn asks(name: &str, list: Value) -> Arc<PodInfo> {
        pod(name, json!({"containers": [{"name": "c", "resources": {"requests": list}}]}))
    }

    #[test]
    fn what_is_lacking_is_named() {
        let mut snapshot = Snapshot::default();
        let small = json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}});
        snapshot.set_node("n", Some(node("n", small)));
        let fit = NodeResourcesFit::new(&FitArgs::default());
        let reasons = |fit: &NodeResourcesFit, snapshot: &Snapshot, p: &PodInfo| {
            let refusal = fit.lacking(p, snapshot.node("n").expect("a node"));
            (refusal.reasons.join(", "), refusal.unresolvable)
        };
        let p = asks("p", json!({"cpu": "1", "memory": "1Gi"}));
        assert_eq!(reasons(&fit, &snapshot, &p), (String::new(), false));
        snapshot.assume(&p, "n");
        let q = asks("q", json!({"cpu": "1m", "memory": "2Gi", "example.com/gpu": "1"}));
        let wanted =
            "Too many pods, Insufficient cpu, Insufficient memory, Insufficient example.com/gpu";
        assert_eq!(reasons(&fit, &snapshot, &q), (wanted.to_owned(), true));
        let r = asks("r", json!({"cpu": "1m"}));
        let wanted = "Too many pods, Insufficient cpu".to_owned();
        assert_eq!(reasons(&fit, &snapshot, &r), (wanted, false));

        snapshot.remove_pod("p");
        let gpu = asks("s", json!({"example.com/gpu": "1"}));
        for (ignored, lacks) in [
            (json!({"ignoredResources": ["example.com/gpu"]}), ""),
            (json!({"ignoredResourceGroups": ["example.com"]}), ""),
            (json!({"ignoredResources": ["example.com/tpu"]}), "Insufficient example.com/gpu"),
        ] {
            let args = serde_json::from_value(ignored).expect("arguments");
            let fit = NodeResourcesFit::new(&args);
            assert_eq!(reasons(&fit, &snapshot, &gpu).0, lacks);
        }
    }

    #[test]
    fn strategies_score_by_what_would_be_used() {
        let mut snapshot = Snapshot::default();
        let has = json!({"cpu": "4", "memory": "8Gi", "pods": "9", "example.com/gpu": "4"});
        snapshot.set_node("n", Some(node("n", json!({"status": {"allocatable": has}}))));
        let shape = json!({"shape": [{"utilization": 0, "score": 0}, {"utilization": 50, "score": 10},
            {"utilization": 100, "score": 4}]});
        let gpu = json!([{"name": "example.com/gpu", "weight": 3}, {"name": "cpu", "weight": 1}]);
        // A quarter of the CPU, half of the memory, a quarter of the GPUs.
        let p = asks("p", json!({"cpu": "1", "memory": "4Gi", "example.com/gpu": "1"}));
        for (strategy, wanted) in [
            (json!({}), (75 + 50) / 2),
            (json!({"type": "MostAllocated"}), (25 + 50) / 2),
            (json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": shape}), 75),
            (
                json!({"type": "RequestedToCapacityRatio", "requestedToCapacityRatio": shape,
                    "resources": gpu}),
                50,
            ),
            (json!({"type": "MostAllocated", "resources": gpu}), 25),
        ] {
            let args = json!({"scoringStrategy": strategy});
            let fit = NodeResourcesFit::new(&serde_json::from_value(args).expect("arguments"));
            let score = Fit(&fit, &p).score(snapshot.node("n").expect("a node"));
            assert_eq!(score, Some(wanted), "{strategy}");
        }
        for (utilization, wanted) in [(0, 0), (25, 50), (50, 100), (75, 70), (100, 40)] {
            let shape: crate::args::RequestedToCapacityRatio =
                serde_json::from_value(shape.clone()).expect("a shape");
            assert_eq!(along(&shape.shape, utilization), wanted, "{utilization}");
        }
        let three = json!({"resources": [{"name": "cpu", "weight": 1}, {"name": "memory", "weight": 1},
            {"name": "example.com/gpu", "weight": 1}]});
        for (args, wanted) in [(json!({}), 87), (three, 88)] {
            let args = serde_json::from_value(args).expect("arguments");
            let balanced = NodeResourcesBalancedAllocation::new(&args);
            let score = Balanced(&balanced, &p).score(snapshot.node("n").expect("a node"));
            assert_eq!(score, Some(wanted));
        }
    }
}
