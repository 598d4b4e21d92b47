//! InterPodAffinity: near or far from other pods, by topology.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm};

use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::selectors::{Labels, matches};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct InterPodAffinity;

/// Topology key and value to a count or weight.
type Pairs = HashMap<(String, String), i64>;

/// Weight of required affinity of pods that are there already, as upstream's default
/// `hardPodAffinityWeight`.
const HARD_WEIGHT: i64 = 1;

struct State<'a> {
    pod: &'a PodInfo,
    affinity: Vec<&'a PodAffinityTerm>,
    anti: Vec<&'a PodAffinityTerm>,
    /// Places of pods that all affinity terms are about.
    wanted: Pairs,
    /// Places of pods that an anti-affinity term is about.
    shunned: Pairs,
    /// Places whose pods will not have this one near.
    shunning: Pairs,
    /// The first of a group that wants to be near its own kind may go anywhere.
    first: bool,
    scores: Pairs,
}

fn affinity(pod: &PodInfo) -> Option<&Affinity> {
    pod.pod.spec.as_ref()?.affinity.as_deref()
}

fn required(pod: &PodInfo, anti: bool) -> Vec<&PodAffinityTerm> {
    let Some(affinity) = affinity(pod) else { return Vec::new() };
    let terms = match anti {
        true => affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        false => affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
    };
    terms.into_iter().flatten().collect()
}

fn preferred(pod: &PodInfo, anti: bool) -> Vec<(&PodAffinityTerm, i64)> {
    let Some(affinity) = affinity(pod) else { return Vec::new() };
    let terms = match anti {
        true => affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        false => affinity
            .pod_affinity
            .as_ref()
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
    };
    terms.into_iter().flatten().map(|t| (&t.pod_affinity_term, i64::from(t.weight))).collect()
}

/// Whether a term of `owner` is about `other`. matchLabelKeys have become part of the selector
/// when the API took the pod (KEP-3633).
fn about(
    term: &PodAffinityTerm,
    owner: &PodInfo,
    other: &PodInfo,
    namespaces: &HashMap<String, Labels>,
) -> bool {
    let named = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match (&term.namespace_selector, named) {
        (None, []) => other.namespace() == owner.namespace(),
        (selector, named) => {
            named.iter().any(|n| n == other.namespace())
                || selector.is_some()
                    && matches(
                        selector.as_ref(),
                        namespaces.get(other.namespace()).or(Some(&Labels::new())),
                    )
        }
    };
    in_namespace && matches(term.label_selector.as_ref(), other.labels().or(Some(&Labels::new())))
}

fn count(pairs: &mut Pairs, term: &PodAffinityTerm, node: &NodeInfo, weight: i64) {
    if let Some(value) = node.label(&term.topology_key) {
        *pairs.entry((term.topology_key.clone(), value.to_owned())).or_insert(0) += weight;
    }
}

fn at(pairs: &Pairs, term: &PodAffinityTerm, node: &NodeInfo) -> i64 {
    let Some(value) = node.label(&term.topology_key) else { return 0 };
    pairs.get(&(term.topology_key.clone(), value.to_owned())).copied().unwrap_or(0)
}

impl<'a> State<'a> {
    fn new(pod: &'a PodInfo, snapshot: &Snapshot) -> Self {
        let mut state = Self {
            pod,
            affinity: required(pod, false),
            anti: required(pod, true),
            wanted: Pairs::new(),
            shunned: Pairs::new(),
            shunning: Pairs::new(),
            first: false,
            scores: Pairs::new(),
        };
        for node in snapshot.nodes() {
            for other in node.pods.values().filter(|p| p.uid != pod.uid) {
                state.look_at(other, node, &snapshot.namespaces);
            }
        }
        let own = |t: &&PodAffinityTerm| about(t, pod, pod, &snapshot.namespaces);
        state.first =
            state.wanted.is_empty() && !state.affinity.is_empty() && state.affinity.iter().all(own);
        state
    }

    fn look_at(
        &mut self,
        other: &Arc<PodInfo>,
        node: &NodeInfo,
        namespaces: &HashMap<String, Labels>,
    ) {
        let pod = self.pod;
        if !self.affinity.is_empty()
            && self.affinity.iter().all(|t| about(t, pod, other, namespaces))
        {
            for term in &self.affinity {
                count(&mut self.wanted, term, node, 1);
            }
        }
        for term in self.anti.iter().filter(|t| about(t, pod, other, namespaces)) {
            count(&mut self.shunned, term, node, 1);
        }
        for (term, weight) in preferred(pod, false) {
            if about(term, pod, other, namespaces) {
                count(&mut self.scores, term, node, weight);
            }
        }
        for (term, weight) in preferred(pod, true) {
            if about(term, pod, other, namespaces) {
                count(&mut self.scores, term, node, -weight);
            }
        }
        if !other.affinity {
            return;
        }
        for term in required(other, true) {
            if about(term, other, pod, namespaces) {
                count(&mut self.shunning, term, node, 1);
            }
        }
        let hard = required(other, false).into_iter().map(|t| (t, HARD_WEIGHT));
        let soft = preferred(other, false).into_iter();
        let away = preferred(other, true).into_iter().map(|(t, w)| (t, -w));
        for (term, weight) in hard.chain(soft).chain(away) {
            if about(term, other, pod, namespaces) {
                count(&mut self.scores, term, node, weight);
            }
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        if !pod.affinity && !snapshot.any_affinity() {
            return Ok(None);
        }
        Ok(Some(Box::new(State::new(pod, snapshot))))
    }

    fn helps(&self, event: ClusterEvent) -> bool {
        event != ClusterEvent::Other
    }
}

impl Prepared for State<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        // Every term's topology must be there, even for the first of a group.
        let keyed = |t: &&PodAffinityTerm| node.label(&t.topology_key).is_some();
        let near = self.affinity.iter().all(keyed)
            && (self.first || self.affinity.iter().all(|t| at(&self.wanted, t, node) > 0));
        if !near {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        if self.anti.iter().any(|t| at(&self.shunned, t, node) > 0) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules"));
        }
        let shunning = self.shunning.keys().any(|(key, value)| node.label(key) == Some(value));
        if shunning {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Refusal::new(reason));
        }
        Ok(())
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        if self.scores.is_empty() {
            return None;
        }
        let keys: BTreeSet<&String> = self.scores.keys().map(|(key, _)| key).collect();
        let values = keys.into_iter().filter_map(|key| {
            let value = node.label(key)?;
            self.scores.get(&(key.clone(), value.to_owned()))
        });
        Some(values.sum())
    }

    fn normalize(&self, scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let max = scores.iter().copied().max().unwrap_or(0);
        for score in scores {
            *score = match max - min {
                0 => 0,
                span => MAX_SCORE * (*score - min) / span,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{labelled, node};
    use serde_json::{Value, json};

    fn zones() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
            snapshot.set_node(name, Some(node(name, json!({"labels": {"zone": zone}}))));
        }
        snapshot
    }

    fn term(label: &str, key: &str) -> Value {
        json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": label}}}])
    }

    fn affinity(kind: &str, terms: Value) -> Value {
        json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
    }

    #[track_caller]
    fn check(snapshot: &Snapshot, pod: &PodInfo, wanted: &[&str]) {
        let prepared = InterPodAffinity.prepare(pod, snapshot).expect("fits").expect("says");
        let fits = snapshot.nodes().filter(|n| prepared.filter(n).is_ok());
        assert_eq!(fits.map(NodeInfo::name).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn pods_go_near_and_far_by_topology() {
        let mut snapshot = zones();
        let web = json!({"app": "web"});
        snapshot.assume(&labelled("w", web.clone(), json!({})), "n1");
        let near = affinity("podAffinity", term("web", "zone"));
        check(&snapshot, &labelled("p", json!({}), near), &["n1", "n2"]);
        let far = affinity("podAntiAffinity", term("web", "kubernetes.io/hostname"));
        check(&snapshot, &labelled("p", json!({}), far.clone()), &["n2", "n3"]);
        let near_none = affinity("podAffinity", term("db", "zone"));
        check(&snapshot, &labelled("p", json!({}), near_none.clone()), &[]);
        let first = labelled("p", json!({"app": "db"}), near_none);
        check(&snapshot, &first, &["n1", "n2", "n3"]);

        let hermit = affinity("podAntiAffinity", term("web", "zone"));
        snapshot.assume(&labelled("hermit", json!({}), hermit), "n3");
        check(&snapshot, &labelled("p", web, json!({})), &["n1", "n2"]);
    }
}
