//! NodeAffinity: nodeSelector and nodeAffinity, and the affinity that a profile adds.

use std::collections::BTreeSet;

use client::matching::{any_term_matches, term_matches};
use k8s_openapi::api::core::v1::{
    Node, NodeAffinity as Terms, NodeSelector, NodeSelectorTerm, PreferredSchedulingTerm,
};

use crate::args::NodeAffinityArgs;
use crate::framework::{
    ClusterEvent, Filter, Plugin, PreFilter, PreScore, Refusal, Score, Waiter, scale,
};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeAffinity {
    added: Option<Terms>,
}

impl NodeAffinity {
    pub fn new(args: &NodeAffinityArgs) -> Self {
        Self { added: args.added_affinity.clone() }
    }
}

struct Wants<'a> {
    pod: &'a PodInfo,
    added: Option<&'a NodeSelector>,
}

struct Prefers<'a>(Vec<&'a PreferredSchedulingTerm>);

fn terms(pod: &PodInfo) -> Option<&Terms> {
    pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

fn demanded(terms: &Terms) -> Option<&NodeSelector> {
    terms.required_during_scheduling_ignored_during_execution.as_ref()
}

fn preferred(terms: Option<&Terms>) -> impl Iterator<Item = &PreferredSchedulingTerm> {
    let all = terms.and_then(|t| t.preferred_during_scheduling_ignored_during_execution.as_ref());
    all.into_iter().flatten()
}

fn any_matches(selector: &NodeSelector, node: &Node) -> bool {
    any_term_matches(selector, node.metadata.labels.as_ref(), node.metadata.name.as_deref())
}

/// Whether a node has what the pod demands by nodeSelector and required affinity.
pub fn required(pod: &PodInfo, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selector = pod.pod.spec.as_ref().and_then(|s| s.node_selector.as_ref());
    let selected = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value));
    selected && terms(pod).and_then(demanded).is_none_or(|s| any_matches(s, node))
}

/// The nodes that a term names, if it does.
fn named(term: &NodeSelectorTerm) -> Option<BTreeSet<&str>> {
    let fields = term.match_fields.iter().flatten();
    let names = fields.filter(|f| f.key == "metadata.name" && f.operator == "In");
    let sets = names.map(|f| f.values.iter().flatten().map(String::as_str).collect());
    sets.reduce(|a: BTreeSet<&str>, b| a.intersection(&b).copied().collect())
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        event.is_of_node()
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreFilter for NodeAffinity {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        let added = self.added.as_ref().and_then(demanded);
        let selector = pod.pod.spec.as_ref().is_some_and(|s| s.node_selector.is_some());
        let says = selector || added.is_some() || terms(pod).and_then(demanded).is_some();
        Ok(says.then(|| Box::new(Wants { pod, added }) as Box<dyn Filter>))
    }
}

impl Filter for Wants<'_> {
    fn only(&self) -> Option<Vec<&str>> {
        let terms = &terms(self.pod).and_then(demanded)?.node_selector_terms;
        let all: Option<Vec<BTreeSet<&str>>> = terms.iter().map(named).collect();
        let all = all.filter(|sets| !sets.is_empty())?;
        Some(all.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(object) = &node.node else { return Err(Refusal::unresolvable("no such node")) };
        if self.added.is_some_and(|added| !any_matches(added, object)) {
            let reason = "node(s) didn't match scheduler-enforced node affinity";
            return Err(Refusal::unresolvable(reason));
        }
        match required(self.pod, object) {
            true => Ok(()),
            false => {
                Err(Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector"))
            }
        }
    }
}

impl PreScore for NodeAffinity {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let all: Vec<_> = preferred(self.added.as_ref()).chain(preferred(terms(pod))).collect();
        (!all.is_empty()).then(|| Box::new(Prefers(all)) as Box<dyn Score>)
    }
}

impl Score for Prefers<'_> {
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let node = node.node.as_ref()?;
        let (labels, name) = (node.metadata.labels.as_ref(), node.metadata.name.as_deref());
        let matching = self.0.iter().filter(|p| term_matches(&p.preference, labels, name));
        Some(matching.map(|p| i64::from(p.weight)).sum())
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use serde_json::{Value, json};

    fn asking(terms: Value) -> Value {
        json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
    }

    #[test]
    fn nodes_that_are_named_are_the_only_ones_looked_at() {
        let by_name = |names: Value| json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": names}]});
        let label = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        for (terms, wanted) in [
            (json!([by_name(json!(["b"])), by_name(json!(["a"]))]), Some(vec!["a", "b"])),
            (json!([by_name(json!(["b"])), label]), None),
            (json!([label]), None),
        ] {
            let (plugin, pod) =
                (NodeAffinity::new(&NodeAffinityArgs::default()), pod("p", asking(terms.clone())));
            let snapshot = Snapshot::default();
            let wants = PreFilter::prepare(&plugin, &pod, &snapshot).expect("fits").expect("says");
            assert_eq!(wants.only(), wanted, "{terms}");
        }
    }

    #[test]
    fn a_profile_adds_affinity() {
        let added = asking(json!([{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]));
        let args = json!({"addedAffinity": added["affinity"]["nodeAffinity"]});
        let plugin = NodeAffinity::new(&serde_json::from_value(args).expect("arguments"));
        let (mut snapshot, pod) = (Snapshot::default(), pod("p", json!({})));
        snapshot.set_node("n1", Some(node("n1", json!({}))));
        snapshot.set_node("n2", Some(node("n2", json!({"labels": {"a": "b"}}))));
        let wants = PreFilter::prepare(&plugin, &pod, &snapshot).expect("fits").expect("says");
        let refused = wants.filter(snapshot.node("n1").expect("a node")).expect_err("no label");
        assert_eq!(refused.reasons, ["node(s) didn't match scheduler-enforced node affinity"]);
        assert!(wants.filter(snapshot.node("n2").expect("a node")).is_ok());
    }
}
