//! One scheduling cycle: a pod and a snapshot in, a node or the reasons out. Pure; ties are broken
//! by the randomness passed in.

use std::collections::BTreeMap;

use crate::framework::{Prepared, Refusal};
use crate::plugins::Weighted;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Below so many nodes all are looked at (upstream's `minFeasibleNodesToFind`).
const ALWAYS_ENOUGH: usize = 100;

/// Why a pod was not given a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unschedulable {
    pub nodes: usize,
    /// Reason to the number of nodes; upstream's words.
    pub reasons: BTreeMap<String, usize>,
    /// Plugins that refused.
    pub plugins: Vec<&'static str>,
    /// Nodes from which other pods' end might take the pod in.
    pub resolvable: Vec<String>,
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
        let mut message = match texts.is_empty() {
            true => format!("{head}:"),
            false => format!("{head}: {}.", texts.join(", ")),
        };
        if !self.preemption.is_empty() {
            message.push_str(" preemption: ");
            message.push_str(&self.preemption);
        }
        message
    }

    fn refuse(&mut self, plugin: &'static str, refusal: &Refusal, nodes: usize) {
        for reason in &refusal.reasons {
            *self.reasons.entry(reason.clone()).or_insert(0) += nodes;
        }
        if !self.plugins.contains(&plugin) {
            self.plugins.push(plugin);
        }
    }
}

/// Plugins that have something to say about the pod.
type Prepareds<'a> = Vec<(&'a Weighted, Box<dyn Prepared + 'a>)>;

/// Chooses a node. `start` is where to begin among the nodes, so that large clusters are looked
/// at all round; `random` gives numbers below its argument.
///
/// # Errors
/// No node takes the pod; why.
pub fn schedule(
    plugins: &[Weighted],
    snapshot: &Snapshot,
    pod: &PodInfo,
    start: usize,
    random: impl FnMut(usize) -> usize,
) -> Result<String, Unschedulable> {
    schedule_share(plugins, snapshot, pod, (start, 0), random)
}

/// As [`schedule`]; `percent` of the nodes that would do are enough to choose from, 0 to let the
/// size of the cluster decide (`percentageOfNodesToScore`).
///
/// # Errors
/// As [`schedule`].
pub fn schedule_share(
    plugins: &[Weighted],
    snapshot: &Snapshot,
    pod: &PodInfo,
    (start, percent): (usize, usize),
    random: impl FnMut(usize) -> usize,
) -> Result<String, Unschedulable> {
    let nodes: Vec<&NodeInfo> = snapshot.nodes().collect();
    let mut why = Unschedulable { nodes: nodes.len(), ..Unschedulable::default() };
    let mut prepared: Prepareds<'_> = Vec::with_capacity(plugins.len());
    for weighted in plugins {
        match weighted.plugin.prepare(pod, snapshot) {
            Ok(Some(p)) => prepared.push((weighted, p)),
            Ok(None) => {}
            Err(refusal) => {
                why.refuse(weighted.plugin.name(), &refusal, nodes.len());
                if !refusal.unresolvable {
                    why.resolvable = nodes.iter().map(|n| n.name().to_owned()).collect();
                }
                return Err(why);
            }
        }
    }
    // The node that others were sent away from for this pod goes first.
    let kept = snapshot.nominated(&pod.uid).and_then(|name| snapshot.node(name));
    if let Some(node) = kept.filter(|n| refusal(&prepared, snapshot, pod, n).is_none()) {
        return Ok(node.name().to_owned());
    }
    let feasible = filter(&prepared, snapshot, pod, &nodes, (start, percent), &mut why);
    match feasible.as_slice() {
        [] => Err(why),
        [only] => Ok(only.name().to_owned()),
        many => Ok(best(&prepared, many, random).name().to_owned()),
    }
}

/// Whether a pod fits on one node.
///
/// # Errors
/// Why not.
pub fn fits(
    plugins: &[Weighted],
    snapshot: &Snapshot,
    pod: &PodInfo,
    node: &str,
) -> Result<(), Refusal> {
    let Some(node) = snapshot.node(node) else { return Err(Refusal::unresolvable("no such node")) };
    let mut prepared: Prepareds<'_> = Vec::with_capacity(plugins.len());
    for weighted in plugins {
        if let Some(p) = weighted.plugin.prepare(pod, snapshot)? {
            prepared.push((weighted, p));
        }
    }
    match refusal(&prepared, snapshot, pod, node) {
        Some((_, refusal)) => Err(refusal),
        None => Ok(()),
    }
}

/// The first refusal of a node: as it is, or with the pods to come that go before this one.
fn refusal(
    prepared: &Prepareds<'_>,
    snapshot: &Snapshot,
    pod: &PodInfo,
    node: &NodeInfo,
) -> Option<(&'static str, Refusal)> {
    let check = |node: &NodeInfo| {
        let filters = prepared.iter().filter(|(w, _)| w.filters);
        filters.into_iter().find_map(|(w, p)| Some((w.plugin.name(), p.filter(node).err()?)))
    };
    check(node).or_else(|| check(&snapshot.crowded(node, pod)?))
}

fn filter<'n>(
    prepared: &Prepareds<'_>,
    snapshot: &Snapshot,
    pod: &PodInfo,
    nodes: &[&'n NodeInfo],
    (start, percent): (usize, usize),
    why: &mut Unschedulable,
) -> Vec<&'n NodeInfo> {
    let enough = enough(nodes.len(), percent);
    let mut feasible = Vec::new();
    let (before, after) = nodes.split_at(if nodes.is_empty() { 0 } else { start % nodes.len() });
    for node in after.iter().chain(before) {
        match refusal(prepared, snapshot, pod, node) {
            None => feasible.push(*node),
            Some((plugin, refusal)) => {
                why.refuse(plugin, &refusal, 1);
                if !refusal.unresolvable {
                    why.resolvable.push(node.name().to_owned());
                }
            }
        }
        if feasible.len() >= enough {
            break;
        }
    }
    feasible
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
    prepared: &Prepareds<'_>,
    nodes: &[&'n NodeInfo],
    mut random: impl FnMut(usize) -> usize,
) -> &'n NodeInfo {
    let mut totals = vec![0i64; nodes.len()];
    for (weighted, p) in prepared.iter().filter(|(w, _)| w.weight > 0) {
        let raw: Vec<Option<i64>> = nodes.iter().map(|n| p.score(n)).collect();
        if raw.iter().all(Option::is_none) {
            continue;
        }
        let mut scores: Vec<i64> = raw.iter().map(|s| s.unwrap_or(0)).collect();
        p.normalize(&mut scores);
        for ((total, score), raw) in totals.iter_mut().zip(scores).zip(raw) {
            *total += if raw.is_some() { score * weighted.weight } else { 0 };
        }
    }
    let highest = totals.iter().copied().max().unwrap_or(0);
    let top: Vec<usize> = (0..nodes.len()).filter(|i| totals[*i] == highest).collect();
    nodes[top[random(top.len())]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins;
    use crate::snapshot::tests::{node, pod};
    use serde_json::json;

    fn place(snapshot: &Snapshot, spec: serde_json::Value) -> Result<String, String> {
        let pod = pod("p", spec);
        schedule(&plugins::defaults(), snapshot, &pod, 0, |_| 0).map_err(|why| why.message())
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
            Err("0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: v}, \
                 1 node(s) were unschedulable."
                .into())
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
