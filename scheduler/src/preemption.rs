//! Preemption (DefaultPreemption): which pods of lower priority must go, and from which node, so
//! that a pod that fits nowhere fits there. Pure: tries on copies of nodes.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use client::matching::selects;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::args::PreemptionArgs;
use crate::cycle::{Filters, Unschedulable};
use crate::framework::{Plugin, PostFilter, Reason, Refused};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Preemption {
    pub node: String,
    pub victims: Vec<Arc<PodInfo>>,
}

struct Candidate {
    preemption: Preemption,
    violations: usize,
}

pub struct DefaultPreemption {
    /// Nodes that are tried: such a share of them in percent, but at least so many.
    share: usize,
    at_least: usize,
}

impl DefaultPreemption {
    pub fn new(args: &PreemptionArgs) -> Self {
        let positive = |n: i32| usize::try_from(n).unwrap_or(0);
        Self {
            share: positive(args.min_candidate_nodes_percentage),
            at_least: positive(args.min_candidate_nodes_absolute),
        }
    }
}

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    fn post_filter(&self) -> Option<&dyn PostFilter> {
        Some(self)
    }
}

impl PostFilter for DefaultPreemption {
    fn make_room(&self, refused: &Refused<'_>) -> Result<Preemption, String> {
        let Refused { profile, snapshot, pod, why, budgets, start } = *refused;
        eligible(snapshot, pod, why)?;
        let nodes = &why.resolvable;
        let wanted = (nodes.len() * self.share / 100).max(self.at_least);
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut reasons: BTreeMap<Reason, usize> = BTreeMap::new();
        // Without filters, nothing is resolvable either.
        let mut filters = Filters::prepare(profile, snapshot, pod).ok();
        let start = if nodes.is_empty() { 0 } else { start % nodes.len() };
        let (before, after) = nodes.split_at(start);
        for slot in after.iter().chain(before) {
            let (Some(filters), Some(node)) = (&mut filters, snapshot.at(*slot)) else { break };
            let coming = snapshot.coming(node.name(), pod);
            match select(filters, &mut node.clone(), pod, &coming, budgets) {
                Ok(candidate) => candidates.push(candidate),
                Err(texts) => texts.into_iter().for_each(|t| *reasons.entry(t).or_insert(0) += 1),
            }
            // Budgets are broken only where no node was found that breaks none.
            if candidates.len() >= wanted && candidates.iter().any(|c| c.violations == 0) {
                break;
            }
        }
        if let Some(best) = candidates.into_iter().min_by_key(rank) {
            return Ok(best.preemption);
        }
        let others = why.nodes - nodes.len();
        if others > 0 {
            *reasons.entry("Preemption is not helpful for scheduling".into()).or_insert(0) +=
                others;
        }
        let why = Unschedulable { nodes: why.nodes, reasons, ..Unschedulable::default() };
        Err(why.message())
    }
}

fn eligible(snapshot: &Snapshot, pod: &PodInfo, why: &Unschedulable) -> Result<(), String> {
    let spec = pod.pod.spec.as_ref();
    if spec.and_then(|s| s.preemption_policy.as_deref()) == Some("Never") {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    let Some(node) = snapshot.nominated(&pod.uid) else { return Ok(()) };
    // It can never take the pod: another node is to be found.
    let slot = snapshot.node(node).map(|n| n.slot);
    if slot.is_none_or(|slot| !why.resolvable.contains(&slot)) {
        return Ok(());
    }
    let pods = snapshot.node(node).into_iter().flat_map(|n| n.pods.iter());
    if pods.filter(|p| p.priority() < pod.priority()).any(|p| is_leaving(p)) {
        return Err("not eligible due to a terminating pod on the nominated node.".into());
    }
    Ok(())
}

/// Whether an earlier preemption ends this pod.
fn is_leaving(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|s| s.conditions.as_deref());
    pod.pod.metadata.deletion_timestamp.is_some()
        && conditions.unwrap_or_default().iter().any(|c| {
            c.type_ == "DisruptionTarget"
                && c.status == "True"
                && c.reason.as_deref() == Some("PreemptionByScheduler")
        })
}

fn started(pod: &PodInfo) -> Timestamp {
    let time = pod.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    time.map_or(Timestamp::MAX, |t| t.0)
}

/// More important pods first: higher priority, then longer running.
fn by_importance(a: &Arc<PodInfo>, b: &Arc<PodInfo>) -> Ordering {
    let of = |p: &PodInfo| (Reverse(p.priority()), started(p));
    of(a).cmp(&of(b)).then_with(|| a.key.cmp(&b.key))
}

/// The fewest victims on this node, of which a copy is passed. Filters are left as they were.
fn select(
    filters: &mut Filters<'_>,
    node: &mut NodeInfo,
    pod: &PodInfo,
    coming: &[Arc<PodInfo>],
    budgets: &[Arc<PodDisruptionBudget>],
) -> Result<Candidate, Vec<Reason>> {
    let there = node.pods.iter();
    let mut lower: Vec<Arc<PodInfo>> =
        there.filter(|p| p.priority() < pod.priority()).cloned().collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".into()]);
    }
    lower.sort_by(by_importance);
    let set = |filters: &mut Filters<'_>, node: &mut NodeInfo, pods: &[Arc<PodInfo>], comes| {
        pods.iter().for_each(|p| filters.change(node, p, comes));
    };
    // With those who come first, and without: either may be what happens.
    let refusal = |filters: &mut Filters<'_>, node: &mut NodeInfo| {
        let alone = filters.refusal(node);
        if alone.is_some() || coming.is_empty() {
            return alone;
        }
        set(filters, node, coming, true);
        let refused = filters.refusal(node);
        set(filters, node, coming, false);
        refused
    };
    set(filters, node, &lower, false);
    if let Some((_, refused)) = refusal(filters, node) {
        set(filters, node, &lower, true);
        return Err(refused.reasons);
    }
    let (violating, others) = by_budget(&lower, budgets);
    let (mut victims, mut violations) = (Vec::new(), 0);
    for (p, violates) in
        violating.iter().map(|p| (p, true)).chain(others.iter().map(|p| (p, false)))
    {
        filters.change(node, p, true);
        if refusal(filters, node).is_some() {
            filters.change(node, p, false);
            victims.push(Arc::clone(p));
            violations += usize::from(violates);
        }
    }
    set(filters, node, &victims, true);
    victims.sort_by(by_importance);
    let preemption = Preemption { node: node.name().to_owned(), victims };
    Ok(Candidate { preemption, violations })
}

/// Pods whose end would break a budget, and the others; in their order.
fn by_budget(
    pods: &[Arc<PodInfo>],
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let status = |b: &PodDisruptionBudget| b.status.clone().unwrap_or_default();
    let mut allowed: Vec<i32> = budgets.iter().map(|b| status(b).disruptions_allowed).collect();
    pods.iter().cloned().partition(|pod| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut allowed) {
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let empty = selector.is_none_or(|s| {
                s.match_labels.as_ref().is_none_or(|l| l.is_empty())
                    && s.match_expressions.as_ref().is_none_or(Vec::is_empty)
            });
            let about = budget.metadata.namespace.as_deref() == Some(pod.namespace())
                && !empty
                && pod.labels().is_some_and(|l| !l.is_empty())
                && selector.is_some_and(|s| selects(s, pod.labels()));
            let counted = status(budget).disrupted_pods.unwrap_or_default();
            if about && !counted.contains_key(&pod.key.name) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

/// The best candidate has the least: broken budgets, highest victim, sum of priorities, victims;
/// then the one whose most important victim started last.
fn rank(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let victims = &candidate.preemption.victims;
    let highest = victims.iter().map(|p| p.priority()).max().unwrap_or(i32::MIN);
    // Shifted, so that many victims of negative priority do not look cheaper than one.
    let sum = victims.iter().map(|p| i64::from(p.priority()) + i64::from(i32::MAX) + 1).sum();
    let first = victims.iter().filter(|p| p.priority() == highest).map(|p| started(p)).min();
    let first = first.unwrap_or(Timestamp::MIN);
    (candidate.violations, highest, sum, victims.len(), Reverse(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycle;
    use crate::profile::Profile;
    use crate::snapshot::tests::{labelled, node};
    use serde_json::{Value, json};

    fn asks(name: &str, cpu: &str, priority: i32) -> Arc<PodInfo> {
        let spec = json!({"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
        labelled(name, json!({"app": name}), spec)
    }

    /// Nodes of 4 CPUs with pods as (name, CPU, priority); what a pod of 3 CPUs and priority 100
    /// does: `node: victims`, or why nothing.
    #[track_caller]
    fn check(
        nodes: &[(&str, &[(&str, &str, i32)])],
        pod: &Arc<PodInfo>,
        budgets: &[Value],
        wanted: &str,
    ) {
        let mut snapshot = Snapshot::default();
        for (name, pods) in nodes {
            snapshot.set_node(name, Some(node(name, json!({}))));
            for (pod, cpu, priority) in *pods {
                snapshot.assume(&asks(pod, cpu, *priority), name);
            }
        }
        let budgets: Vec<Arc<PodDisruptionBudget>> = budgets
            .iter()
            .map(|b| Arc::new(serde_json::from_value(b.clone()).expect("a budget")))
            .collect();
        let profile = Profile::default();
        let before = format!("{:?}", snapshot.node("n1").map(|n| &n.requested));
        let why = cycle::schedule(&profile, &snapshot, pod, 0, |_| 0).expect_err("is full");
        let refused = Refused {
            profile: &profile,
            snapshot: &snapshot,
            pod,
            why: &why,
            budgets: &budgets,
            start: 0,
        };
        let plugin = DefaultPreemption::new(&PreemptionArgs::default());
        let got = match plugin.make_room(&refused) {
            Ok(found) => {
                let names: Vec<&str> = found.victims.iter().map(|p| p.key.name.as_str()).collect();
                format!("{}: {}", found.node, names.join(" "))
            }
            Err(why) => why,
        };
        assert_eq!(got, wanted);
        assert_eq!(before, format!("{:?}", snapshot.node("n1").map(|n| &n.requested)));
    }

    #[test]
    fn the_cheapest_victims_go() {
        let pod = asks("p", "3", 100);
        let budget = |app: &str, left: i32| {
            json!({"metadata": {"namespace": "ns", "name": app},
                "spec": {"selector": {"matchLabels": {"app": app}}},
                "status": {"disruptionsAllowed": left, "currentHealthy": 1, "desiredHealthy": 1,
                           "expectedPods": 1}})
        };
        check(&[("n1", &[("a", "2", 1), ("b", "2", 2)])], &pod, &[], "n1: b a");
        check(&[("n1", &[("a", "2", 1), ("b", "1", 2)])], &pod, &[], "n1: a");
        check(&[("n1", &[("a", "2", 50)]), ("n2", &[("b", "2", 5)])], &pod, &[], "n2: b");
        check(
            &[("n1", &[("a", "1", 5), ("b", "1", 5)]), ("n2", &[("c", "3", 5)])],
            &pod,
            &[],
            "n1: b",
        );
        // One that is guarded costs more than one of higher priority.
        check(
            &[("n1", &[("a", "2", 5)]), ("n2", &[("b", "2", 50)])],
            &pod,
            &[budget("a", 0)],
            "n2: b",
        );
        check(&[("n1", &[("a", "2", 5)])], &pod, &[budget("a", 1)], "n1: a");
    }

    #[test]
    fn without_victims_it_says_why() {
        let pod = asks("p", "3", 100);
        check(
            &[("n1", &[("a", "2", 100)]), ("n2", &[("b", "2", 101)])],
            &pod,
            &[],
            "0/2 nodes are available: 2 No preemption victims found for incoming pod.",
        );
        check(
            &[("n1", &[("a", "1", 1)])],
            &asks("p", "9", 100),
            &[],
            "0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
        );
        check(
            &[("n1", &[("a", "2", 1), ("b", "2", 200)])],
            &pod,
            &[],
            "0/1 nodes are available: 1 Insufficient cpu.",
        );
        let never = labelled(
            "p",
            json!({}),
            json!({"priority": 100, "preemptionPolicy": "Never",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]}),
        );
        check(
            &[("n1", &[("a", "2", 1)])],
            &never,
            &[],
            "not eligible due to preemptionPolicy=Never.",
        );
    }

    #[test]
    fn a_nominated_pod_keeps_its_place_from_those_that_are_not_above_it() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node("n1", Some(node("n1", json!({}))));
        let (profile, waiting) = (Profile::default(), asks("w", "3", 10));
        snapshot.nominate(&waiting, "n1");
        let place = |snapshot: &Snapshot, pod: &PodInfo| {
            cycle::schedule(&profile, snapshot, pod, 0, |_| 0).map_err(|why| why.message())
        };
        assert_eq!(
            place(&snapshot, &asks("low", "2", 5)),
            Err("0/1 nodes are available: 1 Insufficient cpu.".into())
        );
        assert_eq!(place(&snapshot, &asks("high", "2", 11)), Ok("n1".into()));
        assert_eq!(place(&snapshot, &waiting), Ok("n1".into()));
        snapshot.assume(&waiting, "n1");
        assert_eq!(snapshot.nominated("w"), None);
    }
}
