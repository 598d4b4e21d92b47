//! TaintToleration and NodeUnschedulable.

use client::matching::tolerates;
use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::framework::{
    ClusterEvent, Filter, Plugin, PreFilter, PreScore, Refusal, Score, Waiter, scale,
};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// What a cordoned node is tainted with.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

pub struct TaintToleration;
pub struct NodeUnschedulable;

struct Tolerates<'a>(&'a [Toleration]);
struct Cordoned<'a>(&'a [Toleration]);

fn tolerations(pod: &PodInfo) -> &[Toleration] {
    pod.pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default()
}

fn taints(node: &NodeInfo) -> impl Iterator<Item = &Taint> {
    let spec = node.node.as_ref().and_then(|n| n.spec.as_ref());
    spec.and_then(|s| s.taints.as_ref()).into_iter().flatten()
}

/// The first taint that keeps a pod off a node.
pub fn untolerated<'n>(tolerations: &[Toleration], node: &'n NodeInfo) -> Option<&'n Taint> {
    let hard = |t: &&Taint| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute");
    taints(node).filter(hard).find(|taint| !tolerations.iter().any(|t| tolerates(t, taint)))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
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

impl PreFilter for TaintToleration {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        Ok(Some(Box::new(Tolerates(tolerations(pod)))))
    }
}

impl PreScore for TaintToleration {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        // Where nobody minds, all are as good.
        let minds = |n: &&NodeInfo| taints(n).any(|t| t.effect == "PreferNoSchedule");
        nodes.iter().any(minds).then(|| Box::new(Tolerates(tolerations(pod))) as Box<dyn Score>)
    }
}

impl Filter for Tolerates<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        match untolerated(self.0, node) {
            None => Ok(()),
            // Which one is not for all to see who may see the pod.
            Some(_) => Err(Refusal::unresolvable("node(s) had untolerated taint(s)")),
        }
    }
}

impl Score for Tolerates<'_> {
    /// Taints that would rather not have the pod; fewer are better.
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        // Tolerations of other effects say nothing of preferences.
        let about = |t: &&Toleration| {
            matches!(t.effect.as_deref().unwrap_or_default(), "" | "PreferNoSchedule")
        };
        let soft = taints(node).filter(|t| t.effect == "PreferNoSchedule");
        let tolerated = |taint: &Taint| self.0.iter().filter(about).any(|t| tolerates(t, taint));
        let count = soft.filter(|taint| !tolerated(taint)).count();
        i64::try_from(count).ok()
    }

    fn normalize(&self, scores: &mut [i64]) {
        scale(scores, true);
    }
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        event.is_of_node()
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

impl PreFilter for NodeUnschedulable {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        _snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        Ok(Some(Box::new(Cordoned(tolerations(pod)))))
    }
}

impl Filter for Cordoned<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let spec = node.node.as_ref().and_then(|n| n.spec.as_ref());
        if spec.and_then(|s| s.unschedulable) != Some(true) {
            return Ok(());
        }
        let taint =
            Taint { key: UNSCHEDULABLE.into(), effect: "NoSchedule".into(), ..Taint::default() };
        match self.0.iter().any(|t| tolerates(t, &taint)) {
            true => Ok(()),
            false => Err(Refusal::unresolvable("node(s) were unschedulable")),
        }
    }
}
