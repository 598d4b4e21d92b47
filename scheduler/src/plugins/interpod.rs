//! InterPodAffinity: near or far from other pods, by topology.

use std::collections::HashMap;

use client::matching::{Labels, selects};
use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm};

use crate::args::InterPodArgs;
use crate::framework::{
    ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreScore, Refusal, Score, Waiter,
};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::topology::Tally;

pub struct InterPodAffinity {
    /// Weight of required affinity of pods that are there already.
    hard_weight: i64,
    /// Pods without preferences do not look at those of others.
    ignore_preferences: bool,
}

impl InterPodAffinity {
    pub fn new(args: &InterPodArgs) -> Self {
        Self {
            hard_weight: i64::from(args.hard_pod_affinity_weight),
            ignore_preferences: args.ignore_preferred_terms_of_existing_pods,
        }
    }
}

/// Sums by topology key.
type Sums = HashMap<String, Tally>;

/// The sums of a key.
fn of<'s>(sums: &'s mut Sums, key: &str, snapshot: &Snapshot) -> &'s mut Tally {
    sums.entry(key.to_owned()).or_insert_with(|| Tally::new(snapshot, key))
}

/// What a pod demands of others, and they of it, counted.
struct Demands<'a> {
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    /// With places of pods that all of these terms are about.
    affinity: Vec<(&'a PodAffinityTerm, Tally)>,
    /// With places of pods that the term is about.
    anti: Vec<(&'a PodAffinityTerm, Tally)>,
    /// Places whose pods will not have this one near.
    shunning: Sums,
    /// It wants to be near its own kind: the first of them may go anywhere.
    own_kind: bool,
}

/// What it prefers, and what others do, counted.
struct Preferences(Sums);

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
                || selector.as_ref().is_some_and(|s| selects(s, namespaces.get(other.namespace())))
        }
    };
    in_namespace && term.label_selector.as_ref().is_some_and(|s| selects(s, other.labels()))
}

impl<'a> Demands<'a> {
    fn new(pod: &'a PodInfo, snapshot: &'a Snapshot) -> Self {
        let tallied = |anti| {
            let terms = required(pod, anti).into_iter();
            terms.map(|t| (t, Tally::new(snapshot, &t.topology_key))).collect::<Vec<_>>()
        };
        let (affinity, anti) = (tallied(false), tallied(true));
        let about_itself = affinity.iter().all(|(t, _)| about(t, pod, pod, &snapshot.namespaces));
        let own_kind = !affinity.is_empty() && about_itself;
        let mut demands = Self { pod, snapshot, affinity, anti, shunning: Sums::new(), own_kind };
        for kin in snapshot.kins() {
            demands.count(&kin.one, kin.places());
        }
        demands
    }

    fn is_empty(&self) -> bool {
        self.affinity.is_empty() && self.anti.is_empty() && self.shunning.is_empty()
    }

    /// Counts pods like this one: so many on each node.
    fn count(&mut self, other: &PodInfo, places: impl Iterator<Item = (usize, i64)> + Clone) {
        let (pod, namespaces) = (self.pod, &self.snapshot.namespaces);
        if !self.affinity.is_empty()
            && self.affinity.iter().all(|(t, _)| about(t, pod, other, namespaces))
        {
            for (_, wanted) in &mut self.affinity {
                places.clone().for_each(|(slot, n)| wanted.add(slot, n));
            }
        }
        for (term, shunned) in &mut self.anti {
            if about(term, pod, other, namespaces) {
                places.clone().for_each(|(slot, n)| shunned.add(slot, n));
            }
        }
        if !other.required_anti_affinity {
            return;
        }
        for term in required(other, true) {
            if about(term, other, pod, namespaces) {
                let shunning = of(&mut self.shunning, &term.topology_key, self.snapshot);
                places.clone().for_each(|(slot, n)| shunning.add(slot, n));
            }
        }
    }
}

impl Preferences {
    fn new(plugin: &InterPodAffinity, pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let (mut sums, namespaces) = (Sums::new(), &snapshot.namespaces);
        let own = preferred(pod, false).into_iter();
        let own: Vec<_> =
            own.chain(preferred(pod, true).into_iter().map(|(t, w)| (t, -w))).collect();
        for kin in snapshot.kins() {
            let other = &kin.one;
            let mine = own.iter().copied().filter(|(t, _)| about(t, pod, other, namespaces));
            let theirs = plugin.terms_of_others(other).into_iter();
            let theirs = theirs.filter(|(t, _)| about(t, other, pod, namespaces));
            for (term, weight) in mine.chain(theirs) {
                let sum = of(&mut sums, &term.topology_key, snapshot);
                kin.places().for_each(|(slot, n)| sum.add(slot, n * weight));
            }
        }
        Self(sums)
    }
}

impl InterPodAffinity {
    /// The terms of a pod that is there, which count for those that come.
    fn terms_of_others<'o>(&self, other: &'o PodInfo) -> Vec<(&'o PodAffinityTerm, i64)> {
        if !other.affinity {
            return Vec::new();
        }
        let hard = required(other, false).into_iter().map(|t| (t, self.hard_weight));
        let soft = preferred(other, false).into_iter();
        let away = preferred(other, true).into_iter().map(|(t, w)| (t, -w));
        hard.filter(|(_, w)| *w > 0).chain(soft).chain(away).collect()
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn helps(&self, event: &ClusterEvent<'_>, _pod: &Waiter<'_>) -> bool {
        event.is_of_node() || matches!(event, ClusterEvent::PodGone(_) | ClusterEvent::PodPlaced)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreFilter for InterPodAffinity {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        if !pod.affinity && !snapshot.any_affinity() {
            return Ok(None);
        }
        let demands = Demands::new(pod, snapshot);
        Ok((!demands.is_empty()).then(|| Box::new(demands) as Box<dyn Filter>))
    }
}

impl Filter for Demands<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        // Every term's topology must be there, even for the first of a group.
        let any = || self.affinity.iter().any(|(_, wanted)| wanted.has_any());
        let keyed = self.affinity.iter().all(|(_, wanted)| wanted.at(node.slot).is_some());
        let near = |(_, wanted): &(_, Tally)| wanted.at(node.slot).is_some_and(|n| n > 0);
        if !(keyed && (self.affinity.iter().all(near) || self.own_kind && !any())) {
            return Err(Refusal::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let has = |tally: &Tally| tally.at(node.slot).is_some_and(|n| n > 0);
        if self.anti.iter().any(|(_, shunned)| has(shunned)) {
            return Err(Refusal::new("node(s) didn't match pod anti-affinity rules"));
        }
        if self.shunning.values().any(has) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Refusal::new(reason));
        }
        Ok(())
    }

    fn changed(&mut self, node: &NodeInfo, other: &PodInfo, comes: bool) {
        self.count(other, std::iter::once((node.slot, if comes { 1 } else { -1 })));
    }
}

impl PreScore for InterPodAffinity {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let prefers = [false, true].iter().any(|anti| !preferred(pod, *anti).is_empty());
        if !prefers && (self.ignore_preferences || !snapshot.any_affinity()) {
            return None;
        }
        let preferences = Preferences::new(self, pod, snapshot);
        (!preferences.0.is_empty()).then(|| Box::new(preferences) as Box<dyn Score>)
    }
}

impl Score for Preferences {
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        Some(self.0.values().filter_map(|sum| sum.at(node.slot)).sum())
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
    use crate::plugins::book::{self, Random};
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
        let plugin = InterPodAffinity::new(&InterPodArgs::default());
        let prepared = PreFilter::prepare(&plugin, pod, snapshot).expect("fits").expect("says");
        let fits = snapshot.nodes().filter(|n| prepared.filter(n).is_ok());
        assert_eq!(fits.map(NodeInfo::name).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn others_that_go_make_room_in_a_trial() {
        let mut snapshot = zones();
        let web = labelled("w", json!({"app": "web"}), json!({}));
        snapshot.assume(&web, "n1");
        let far = labelled("p", json!({}), affinity("podAntiAffinity", term("web", "zone")));
        let plugin = InterPodAffinity::new(&InterPodArgs::default());
        let mut trial = PreFilter::prepare(&plugin, &far, &snapshot).expect("fits").expect("says");
        let node = snapshot.node("n2").expect("a node");
        for (comes, fits) in [(false, true), (true, false)] {
            trial.changed(snapshot.node("n1").expect("a node"), &web, comes);
            assert_eq!(trial.filter(node).is_ok(), fits, "{comes}");
        }
    }

    #[test]
    fn preferences_of_others_count_as_the_profile_says() {
        let mut snapshot = zones();
        let preferring = json!({"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": term("web", "zone"),
            "preferredDuringSchedulingIgnoredDuringExecution":
                [{"weight": 10, "podAffinityTerm": term("web", "zone")[0]}]}}});
        snapshot.assume(&labelled("fan", json!({}), preferring), "n1");
        let web = labelled("w", json!({"app": "web"}), json!({}));
        for (args, wanted) in [
            (json!({}), Some(11)),
            (json!({"hardPodAffinityWeight": 5}), Some(15)),
            (json!({"hardPodAffinityWeight": 0}), Some(10)),
            (json!({"ignorePreferredTermsOfExistingPods": true}), None),
        ] {
            let plugin = serde_json::from_value(args.clone()).expect("arguments");
            let plugin = InterPodAffinity::new(&plugin);
            let prepared = PreScore::prepare(&plugin, &web, &snapshot, &[]);
            let score = prepared.and_then(|p| p.score(snapshot.node("n2").expect("a node")));
            assert_eq!(score, wanted, "{args}");
        }
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

    /// What the API says, with none of what makes it fast: `gone` is not counted.
    fn by_the_book(snapshot: &Snapshot, pod: &PodInfo, node: &NodeInfo, gone: &str) -> bool {
        let others: Vec<(&NodeInfo, &PodInfo)> = snapshot
            .nodes()
            .flat_map(|n| n.pods.iter().map(move |p| (n, &**p)))
            .filter(|(_, p)| p.uid != gone)
            .collect();
        let names = &snapshot.namespaces;
        let together =
            |a: &NodeInfo, key: &str| a.label(key).is_some() && a.label(key) == node.label(key);
        let (near, far) = (required(pod, false), required(pod, true));
        let liked = |p: &PodInfo| near.iter().all(|t| about(t, pod, p, names));
        let alone = !others
            .iter()
            .any(|(n, p)| liked(p) && near.iter().any(|t| n.label(&t.topology_key).is_some()));
        let near = near.iter().all(|t| {
            let key = &t.topology_key;
            let company = others.iter().any(|(n, p)| liked(p) && together(n, key));
            node.label(key).is_some() && (company || alone && liked(pod))
        });
        let shuns = others.iter().any(|(n, p)| {
            let mine = far.iter().any(|t| about(t, pod, p, names) && together(n, &t.topology_key));
            let theirs = required(p, true)
                .iter()
                .any(|t| about(t, p, pod, names) && together(n, &t.topology_key));
            mine || theirs
        });
        near && !shuns
    }

    #[test]
    fn counting_is_as_by_the_book() {
        let any = |random: &mut Random, name: &str| {
            let mut affinity = json!({});
            for kind in ["podAffinity", "podAntiAffinity"] {
                if random.below(3) == 0 {
                    let key = ["zone", "kubernetes.io/hostname"][random.below(2)];
                    let selector = json!({"matchLabels": random.app(3)});
                    affinity[kind] = json!({"requiredDuringSchedulingIgnoredDuringExecution":
                        [{"topologyKey": key, "labelSelector": selector}]});
                }
            }
            labelled(name, random.app(3), json!({"affinity": affinity}))
        };
        let plugin = InterPodAffinity::new(&InterPodArgs::default());
        book::check(&plugin, any, |random| any(random, "new"), by_the_book);
    }
}
