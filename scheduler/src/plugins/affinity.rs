//! NodeAffinity: nodeSelector and nodeAffinity.

use k8s_openapi::api::core::v1::{Node, NodeAffinity as Terms};

use crate::framework::{ClusterEvent, Plugin, Prepared, Refusal, scale};
use crate::selectors::term_matches;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

pub struct NodeAffinity;

struct Wants<'a>(&'a PodInfo);

fn terms(pod: &PodInfo) -> Option<&Terms> {
    pod.pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()
}

/// Whether a node has what the pod demands by nodeSelector and required affinity.
pub fn required(pod: &PodInfo, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let selector = pod.pod.spec.as_ref().and_then(|s| s.node_selector.as_ref());
    let selected = selector
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value));
    let demanded = terms(pod)
        .and_then(|t| t.required_during_scheduling_ignored_during_execution.as_ref())
        .is_none_or(|s| s.node_selector_terms.iter().any(|term| term_matches(term, node)));
    selected && demanded
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        let selector = pod.pod.spec.as_ref().is_some_and(|s| s.node_selector.is_some());
        let says = selector || terms(pod).is_some();
        Ok(says.then(|| Box::new(Wants(pod)) as Box<dyn Prepared>))
    }

    fn helps(&self, event: ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdded | ClusterEvent::NodeChanged)
    }
}

impl Prepared for Wants<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        match node.node.as_ref().is_some_and(|n| required(self.0, n)) {
            true => Ok(()),
            false => {
                Err(Refusal::unresolvable("node(s) didn't match Pod's node affinity/selector"))
            }
        }
    }

    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let preferred =
            terms(self.0)?.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        let node = node.node.as_ref()?;
        let matching = preferred.iter().filter(|p| term_matches(&p.preference, node));
        Some(matching.map(|p| i64::from(p.weight)).sum())
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, false);
    }
}
