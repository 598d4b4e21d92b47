//! One scheduling cycle: a pod and a snapshot in, a node or the reasons out. Pure; ties are broken
//! by the randomness passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::framework::{Filter, Reason, Refusal};
use crate::profile::Profile;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Below so many nodes all are looked at (upstream's `minFeasibleNodesToFind`).
const ALWAYS_ENOUGH: usize = 100;

/// Why a pod was not given a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// Reason to the number of nodes; upstream's words.
    pub reasons: BTreeMap<Reason, usize>,
    /// The pod was refused as such, before any node was looked at.
    pub before: String,
    /// Plugins that refused.
    pub plugins: Vec<&'static str>,
    /// Slots of nodes that might take the pod in when other pods end.
    pub resolvable: Vec<usize>,
    /// Why preemption did not help either.
    pub preemption: String,
}

impl Unschedulable {
    /// As upstream words it in conditions and events.
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut texts: Vec<String> =
            self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        texts.sort();
        let head = format!("0/{} nodes are available", self.nodes);
        let mut message = match (self.before.as_str(), texts.is_empty()) {
            ("", true) => format!("{head}:"),
            ("", false) => format!("{head}: {}.", texts.join(", ")),
            (before, _) => format!("{head}: {before}."),
        };
        if !self.preemption.is_empty() {
            message.push_str(" preemption: ");
            message.push_str(&self.preemption);
        }
        message
    }

    fn refuse(&mut self, plugin: &'static str, refusal: &Refusal, nodes: usize) {
        for reason in &refusal.reasons {
            match self.reasons.get_mut(reason) {
                Some(n) => *n += nodes,
                None => {
                    self.reasons.insert(reason.clone(), nodes);
                }
            }
        }
        if !self.plugins.contains(&plugin) {
            self.plugins.push(plugin);
        }
    }
}

/// The filters that have something to say about a pod, in their order.
pub struct Filters<'a>(Vec<(&'static str, Box<dyn Filter + 'a>)>);

impl<'a> Filters<'a> {
    /// Prepares the profile's filters for a pod.
    ///
    /// # Errors
    /// The pod fits nowhere: who says so, and why.
    pub fn prepare(
        profile: &'a Profile,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
    ) -> Result<Self, (&'static str, Refusal)> {
        let mut filters = Vec::with_capacity(profile.steps.len());
        for step in &profile.steps {
            let name = step.plugin.name();
            let Some(plugin) = step.plugin.pre_filter() else { continue };
            let prepared = plugin.prepare(pod, snapshot).map_err(|refusal| (name, refusal))?;
            filters.extend(prepared.filter(|_| step.filter).map(|p| (name, p)));
        }
        Ok(Self(filters))
    }

    /// The first refusal of a node as it is.
    pub fn refusal(&self, node: &NodeInfo) -> Option<(&'static str, Refusal)> {
        self.0.iter().find_map(|(name, p)| Some((*name, p.filter(node).err()?)))
    }

    /// A pod comes to a node or leaves it, in a trial: the node is changed, and what was counted.
    pub fn change(&mut self, node: &mut NodeInfo, other: &Arc<PodInfo>, comes: bool) {
        match comes {
            true => node.add(Arc::clone(other)),
            false => node.remove(&other.uid),
        }
        self.0.iter_mut().for_each(|(_, p)| p.changed(node, other, comes));
    }

    /// The first refusal of a node: as it is, or with the pods to come that go before this one.
    fn refusal_with_coming(
        &mut self,
        snapshot: &Snapshot,
        pod: &PodInfo,
        node: &NodeInfo,
    ) -> Option<(&'static str, Refusal)> {
        if let Some(refused) = self.refusal(node) {
            return Some(refused);
        }
        let coming = snapshot.coming(node.name(), pod);
        if coming.is_empty() {
            return None;
        }
        let mut crowded = node.clone();
        coming.iter().for_each(|p| self.change(&mut crowded, p, true));
        let refused = self.refusal(&crowded);
        coming.iter().for_each(|p| self.change(&mut crowded, p, false));
        refused
    }

    /// The only nodes that are worth a look, and the plugins that say so.
    fn only(&self) -> Option<(BTreeSet<&str>, Vec<&'static str>)> {
        let mut all: Option<(BTreeSet<&str>, Vec<&'static str>)> = None;
        for (name, filter) in &self.0 {
            let Some(only) = filter.only() else { continue };
            let only: BTreeSet<&str> = only.into_iter().collect();
            let (nodes, mut plugins) = all.take().unwrap_or_else(|| (only.clone(), Vec::new()));
            plugins.push(*name);
            all = Some((nodes.intersection(&only).copied().collect(), plugins));
        }
        all
    }
}

/// Chooses a node. `start` is where to begin among the nodes, so that large clusters are looked
/// at all round; `random` gives numbers below its argument.
///
/// # Errors
/// No node takes the pod; why.
pub fn schedule(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    start: usize,
    random: impl FnMut(usize) -> usize,
) -> Result<String, Box<Unschedulable>> {
    look(profile, snapshot, pod, start, random).0
}

/// As [`schedule`]; and how many nodes were looked at.
pub fn look(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    start: usize,
    random: impl FnMut(usize) -> usize,
) -> (Result<String, Box<Unschedulable>>, usize) {
    let mut why = Unschedulable { nodes: snapshot.len(), ..Unschedulable::default() };
    let mut filters = match Filters::prepare(profile, snapshot, pod) {
        Ok(filters) => filters,
        Err((plugin, refusal)) => {
            why.plugins.push(plugin);
            why.before = refusal.reasons.join(", ");
            // Such a refusal is final: it is not about what others leave of a node.
            return (Err(Box::new(why)), 0);
        }
    };
    // The node that others were sent away from for this pod goes first.
    let kept = snapshot.nominated(&pod.uid).and_then(|name| snapshot.node(name));
    if let Some(node) = kept
        && filters.refusal_with_coming(snapshot, pod, node).is_none()
    {
        return (Ok(node.name().to_owned()), 1);
    }
    let only = filters.only().map(|(names, plugins)| {
        let nodes = names.into_iter().filter_map(|name| snapshot.node(name)).collect();
        (nodes, plugins)
    });
    let nodes: Vec<&NodeInfo> = match only {
        None => snapshot.nodes().collect(),
        Some((nodes, plugins)) => {
            let nodes: Vec<&NodeInfo> = nodes;
            let others = why.nodes - nodes.len();
            if others > 0 {
                let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
                let refusal = Refusal::unresolvable(reason);
                plugins.iter().for_each(|plugin| why.refuse(plugin, &refusal, 0));
                why.reasons.insert(refusal.reasons.concat().into(), others);
            }
            nodes
        }
    };
    let range = (start, enough(nodes.len(), profile.percentage));
    let (feasible, seen) = filter(&mut filters, snapshot, pod, &nodes, range, &mut why);
    let found = match feasible.as_slice() {
        [] => Err(Box::new(why)),
        [only] => Ok(only.name().to_owned()),
        many => Ok(best(profile, snapshot, pod, many, random).name().to_owned()),
    };
    (found, seen)
}

fn filter<'n>(
    filters: &mut Filters<'_>,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nodes: &[&'n NodeInfo],
    (start, enough): (usize, usize),
    why: &mut Unschedulable,
) -> (Vec<&'n NodeInfo>, usize) {
    let (mut feasible, mut seen) = (Vec::new(), 0);
    let (before, after) = nodes.split_at(if nodes.is_empty() { 0 } else { start % nodes.len() });
    for node in after.iter().chain(before) {
        seen += 1;
        match filters.refusal_with_coming(snapshot, pod, node) {
            None => feasible.push(*node),
            Some((plugin, refusal)) => {
                why.refuse(plugin, &refusal, 1);
                if !refusal.unresolvable {
                    why.resolvable.push(node.slot);
                }
            }
        }
        if feasible.len() >= enough {
            break;
        }
    }
    (feasible, seen)
}

/// How many nodes that would do are enough to choose from: 50 % less a share that grows with
/// the cluster, 5 % at least (upstream's adaptive `percentageOfNodesToScore`).
fn enough(nodes: usize, percent: usize) -> usize {
    if nodes < ALWAYS_ENOUGH {
        return nodes;
    }
    let percent = match percent {
        0 => 50_usize.saturating_sub(nodes / 125).max(5),
        percent => percent.min(100),
    };
    (nodes * percent / 100).max(ALWAYS_ENOUGH)
}

fn best<'n>(
    profile: &Profile,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nodes: &[&'n NodeInfo],
    mut random: impl FnMut(usize) -> usize,
) -> &'n NodeInfo {
    let mut totals = vec![0i64; nodes.len()];
    for (plugin, weight) in &profile.scores {
        let prepared = plugin.pre_score().and_then(|p| p.prepare(pod, snapshot, nodes));
        let Some(scorer) = prepared else { continue };
        let raw: Vec<Option<i64>> = nodes.iter().map(|n| scorer.score(n)).collect();
        let mut scores: Vec<i64> = raw.iter().copied().flatten().collect();
        scorer.normalize(&mut scores);
        let scored = totals.iter_mut().zip(&raw).filter(|(_, raw)| raw.is_some());
        scored.zip(scores).for_each(|((total, _), score)| *total += score * weight);
    }
    let highest = totals.iter().copied().max().unwrap_or(0);
    let top: Vec<usize> = (0..nodes.len()).filter(|i| totals[*i] == highest).collect();
    nodes[top[random(top.len())]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use serde_json::json;

    fn place(snapshot: &Snapshot, spec: serde_json::Value) -> Result<String, String> {
        let pod = pod("p", spec);
        schedule(&Profile::default(), snapshot, &pod, 0, |_| 0).map_err(|why| why.message())
    }

    fn asks(cpu: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }

    #[test]
    fn the_reasons_of_all_nodes_are_told() {
        let mut snapshot = Snapshot::default();
        assert_eq!(place(&snapshot, json!({})), Err("no nodes available to schedule pods".into()));
        snapshot.set_node("n1", Some(node("n1", json!({}))));
        snapshot.set_node("n2", Some(node("n2", json!({"spec": {"unschedulable": true}}))));
        let taint =
            json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}});
        snapshot.set_node("n3", Some(node("n3", taint)));
        assert_eq!(
            place(&snapshot, asks("8")),
            Err(
                "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint(s), \
                 1 node(s) were unschedulable."
                    .into()
            )
        );
        assert_eq!(place(&snapshot, asks("1")), Ok("n1".into()));
    }

    #[test]
    fn the_emptier_node_is_chosen() {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2"] {
            snapshot.set_node(name, Some(node(name, json!({}))));
        }
        snapshot.assume(&pod("a", asks("2")), "n1");
        assert_eq!(place(&snapshot, asks("1")), Ok("n2".into()));
        let preferred = json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["n1"]}]}}]}}});
        assert_eq!(place(&snapshot, preferred), Ok("n1".into()));
    }

    #[test]
    fn of_named_nodes_no_others_are_looked_at() {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2", "n3"] {
            snapshot.set_node(name, Some(node(name, json!({}))));
        }
        let mut spec = asks("1");
        spec["affinity"] = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]}}});
        assert_eq!(place(&snapshot, spec.clone()), Ok("n2".into()));
        snapshot.assume(&pod("a", asks("4")), "n2");
        let wanted = "0/3 nodes are available: 1 Insufficient cpu, \
                      2 node(s) didn't satisfy plugin(s) [NodeAffinity].";
        assert_eq!(place(&snapshot, spec), Err(wanted.into()));
    }

    #[test]
    fn large_clusters_are_sampled() {
        for (nodes, wanted) in [(50, 50), (100, 100), (1000, 420), (5000, 500), (20_000, 1000)] {
            assert_eq!(enough(nodes, 0), wanted, "{nodes}");
        }
        for (nodes, percent, wanted) in
            [(50, 10, 50), (1000, 20, 200), (1000, 1, 100), (1000, 100, 1000)]
        {
            assert_eq!(enough(nodes, percent), wanted, "{nodes} {percent}");
        }
    }
}
