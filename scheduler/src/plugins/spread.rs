//! PodTopologySpread (KEP-895, KEP-3022, KEP-3094).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::plugins::{affinity, taints};
use crate::selectors::{Labels, matches};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct PodTopologySpread;

/// A constraint with the pods counted.
struct Counted<'a> {
    constraint: &'a TopologySpreadConstraint,
    /// Topology value to matching pods, over the nodes that count.
    counts: HashMap<String, i64>,
    own: bool,
}

struct State<'a> {
    hard: Vec<Counted<'a>>,
    soft: Vec<Counted<'a>>,
}

impl Counted<'_> {
    fn new<'a>(
        constraint: &'a TopologySpreadConstraint,
        pod: &PodInfo,
        nodes: &[&NodeInfo],
    ) -> Counted<'a> {
        let mut counts = HashMap::new();
        for node in nodes.iter().filter(|n| counts_for(constraint, pod, n)) {
            let Some(value) = node.label(&constraint.topology_key) else { continue };
            let matching = node
                .pods
                .values()
                .filter(|p| p.uid != pod.uid && p.namespace() == pod.namespace())
                .filter(|p| p.pod.metadata.deletion_timestamp.is_none())
                .filter(|p| selects(constraint, pod, p.labels()));
            let n = i64::try_from(matching.count()).unwrap_or(i64::MAX);
            *counts.entry(value.to_owned()).or_insert(0) += n;
        }
        Counted { constraint, counts, own: selects(constraint, pod, pod.labels()) }
    }

    /// The fewest pods of a domain; none, while there are fewer domains than `minDomains`.
    fn least(&self) -> i64 {
        let wanted = self.constraint.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
        match self.counts.len() < wanted {
            true => 0,
            false => self.counts.values().copied().min().unwrap_or(0),
        }
    }
}

/// Selector and matchLabelKeys: those labels must be the pod's own.
fn selects(constraint: &TopologySpreadConstraint, pod: &PodInfo, labels: Option<&Labels>) -> bool {
    let get = |l: Option<&Labels>, key: &String| l.and_then(|l| l.get(key)).cloned();
    let same = constraint.match_label_keys.iter().flatten().all(|key| {
        let own = get(pod.labels(), key);
        own.is_none() || own == get(labels, key)
    });
    same && matches(constraint.label_selector.as_ref(), labels.or(Some(&Labels::new())))
}

/// Whether a node's pods count, by nodeAffinityPolicy (Honor) and nodeTaintsPolicy (Ignore).
fn counts_for(constraint: &TopologySpreadConstraint, pod: &PodInfo, info: &NodeInfo) -> bool {
    let Some(node) = &info.node else { return false };
    let honor = |policy: &Option<String>, default: bool| match policy.as_deref() {
        Some("Honor") => true,
        Some(_) => false,
        None => default,
    };
    let tolerations = pod.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref());
    (!honor(&constraint.node_affinity_policy, true) || affinity::required(pod, node))
        && (!honor(&constraint.node_taints_policy, false)
            || taints::untolerated(tolerations.unwrap_or_default(), info).is_none())
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        let spec = pod.pod.spec.as_ref();
        let all = spec.and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default();
        if all.is_empty() {
            return Ok(None);
        }
        let of = |when: &str| -> Vec<Counted<'a>> {
            let constraints: Vec<_> = all.iter().filter(|c| c.when_unsatisfiable == when).collect();
            // A node without one of the keys takes no part.
            let keyed: Vec<&NodeInfo> = snapshot
                .nodes()
                .filter(|n| constraints.iter().all(|c| n.label(&c.topology_key).is_some()))
                .collect();
            constraints.into_iter().map(|c| Counted::new(c, pod, &keyed)).collect()
        };
        Ok(Some(Box::new(State { hard: of("DoNotSchedule"), soft: of("ScheduleAnyway") })))
    }

    fn helps(&self, event: ClusterEvent) -> bool {
        event != ClusterEvent::Other
    }
}

impl Prepared for State<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for counted in &self.hard {
            let Some(value) = node.label(&counted.constraint.topology_key) else {
                return Err(Refusal::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let here = counted.counts.get(value).copied().unwrap_or(0) + i64::from(counted.own);
            if here - counted.least() > i64::from(counted.constraint.max_skew) {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Refusal::new(reason));
            }
        }
        Ok(())
    }

    /// Pods in the node's domains; domains of keys with many values weigh more.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "weights")]
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        if self.soft.is_empty() {
            return None;
        }
        let mut score = 0.0;
        for counted in &self.soft {
            let value = node.label(&counted.constraint.topology_key)?;
            let weight = (counted.counts.len() as f64 + 2.0).ln();
            let here = counted.counts.get(value).copied().unwrap_or(0);
            score += here as f64 * weight + f64::from(counted.constraint.max_skew - 1);
        }
        Some(score.round() as i64)
    }

    fn normalize(&self, scores: &mut [i64]) {
        let max = scores.iter().copied().max().unwrap_or(0);
        let min = scores.iter().copied().min().unwrap_or(0);
        for score in scores {
            *score = match max {
                0 => MAX_SCORE,
                max => MAX_SCORE * (max + min - *score) / max,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{labelled, node};
    use serde_json::json;

    #[test]
    fn skew_is_kept_within_bounds() {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("n1", "a"), ("n2", "b"), ("n3", "b")] {
            snapshot.set_node(name, Some(node(name, json!({"labels": {"zone": zone}}))));
        }
        let web = json!({"app": "web"});
        let spread = |more: serde_json::Value| {
            let mut c = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}});
            for (k, v) in more.as_object().expect("a map") {
                c[k] = v.clone();
            }
            json!({"topologySpreadConstraints": [c]})
        };
        snapshot.assume(&labelled("1", web.clone(), json!({})), "n1");
        let fits = |more: serde_json::Value| -> Vec<String> {
            let pod = labelled("p", web.clone(), spread(more));
            let prepared = PodTopologySpread.prepare(&pod, &snapshot).expect("ok").expect("says");
            let nodes = snapshot.nodes().filter(|n| prepared.filter(n).is_ok());
            nodes.map(|n| n.name().to_owned()).collect()
        };
        assert_eq!(fits(json!({})), ["n2", "n3"]);
        assert_eq!(fits(json!({"maxSkew": 2})), ["n1", "n2", "n3"]);
        assert_eq!(fits(json!({"minDomains": 3})), ["n2", "n3"]);
        assert!(fits(json!({"topologyKey": "rack"})).is_empty());
    }
}
