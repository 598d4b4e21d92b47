//! PodTopologySpread (KEP-895, KEP-1258, KEP-3022, KEP-3094).

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use client::matching::{Labels, selects};
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::args::SpreadArgs;
use crate::framework::{
    ClusterEvent, Filter, MAX_SCORE, Plugin, PreFilter, PreScore, Refusal, Score, Waiter,
};
use crate::plugins::{affinity, taints};
use crate::snapshot::{Kin, NodeInfo, PodInfo, Snapshot};
use crate::topology::Tally;

pub struct PodTopologySpread {
    /// For pods without constraints; their selectors come from what the pods belong to.
    defaults: Vec<TopologySpreadConstraint>,
    /// Upstream's own defaults: nodes without a zone take part too.
    system: bool,
}

const HARD: &str = "DoNotSchedule";
const SOFT: &str = "ScheduleAnyway";
const HOSTNAME: &str = "kubernetes.io/hostname";

impl PodTopologySpread {
    pub fn new(args: &SpreadArgs) -> Self {
        let system = args.defaulting_type != "List";
        let constraint = |key: &str, max_skew| TopologySpreadConstraint {
            topology_key: key.to_owned(),
            max_skew,
            when_unsatisfiable: SOFT.to_owned(),
            ..TopologySpreadConstraint::default()
        };
        let defaults = match system {
            true => vec![constraint(HOSTNAME, 3), constraint("topology.kubernetes.io/zone", 5)],
            false => args.default_constraints.clone(),
        };
        Self { defaults, system }
    }

    /// The pod's constraints of a kind; of a pod that has none, the default ones.
    fn constraints<'a>(
        &self,
        pod: &'a PodInfo,
        when: &str,
        snapshot: &Snapshot,
    ) -> Vec<Cow<'a, TopologySpreadConstraint>> {
        let own = own(pod).iter().filter(|c| c.when_unsatisfiable == when);
        if !self::own(pod).is_empty() {
            return own.map(Cow::Borrowed).collect();
        }
        let defaults = self.defaults.iter().filter(|c| c.when_unsatisfiable == when);
        let defaults: Vec<_> = defaults.collect();
        if defaults.is_empty() {
            return Vec::new();
        }
        let Some(selector) = snapshot.owners.selector(&pod.pod) else { return Vec::new() };
        let with_selector = |c: &TopologySpreadConstraint| {
            Cow::Owned(TopologySpreadConstraint {
                label_selector: Some(selector.clone()),
                ..c.clone()
            })
        };
        defaults.into_iter().map(with_selector).collect()
    }
}

fn own(pod: &PodInfo) -> &[TopologySpreadConstraint] {
    let spec = pod.pod.spec.as_ref();
    spec.and_then(|s| s.topology_spread_constraints.as_deref()).unwrap_or_default()
}

/// A constraint with the pods counted.
struct Counted<'a> {
    constraint: Cow<'a, TopologySpreadConstraint>,
    /// Matching pods on the nodes that count.
    tally: Tally,
    /// Nodes that count, by slot.
    counting: Vec<bool>,
    /// Domains that have such nodes.
    domains: usize,
    /// Number of pods to the number of such domains that have so many.
    levels: BTreeMap<i64, usize>,
    own: bool,
}

struct Hard<'a> {
    pod: &'a PodInfo,
    all: Vec<Counted<'a>>,
}

/// A preference, and where pods are.
struct Preference<'a> {
    constraint: Cow<'a, TopologySpreadConstraint>,
    tally: Tally,
    /// For hostnames: pods by the node's slot, as its own pods are all that counts.
    nodes: Option<Vec<i64>>,
    weight: f64,
}

struct Soft<'a> {
    all: Vec<Preference<'a>>,
    require_all: bool,
}

/// Whether a pod that is there counts for a constraint of another.
fn counts(constraint: &TopologySpreadConstraint, pod: &PodInfo, other: &PodInfo) -> bool {
    other.namespace() == pod.namespace()
        && other.pod.metadata.deletion_timestamp.is_none()
        && is_about(constraint, pod, other.labels())
}

/// Where the pods are that count for a constraint: slots of nodes, and how many are there.
fn places<'s>(
    constraint: &'s TopologySpreadConstraint,
    pod: &'s PodInfo,
    snapshot: &'s Snapshot,
) -> impl Iterator<Item = (usize, i64)> + 's {
    let kins = snapshot.kins().filter(|kin| counts(constraint, pod, &kin.one));
    kins.flat_map(Kin::places)
}

/// Constraints with the domains of their keys.
type Keyed<'a> = Vec<(Cow<'a, TopologySpreadConstraint>, Tally)>;

fn keyed<'a>(all: Vec<Cow<'a, TopologySpreadConstraint>>, snapshot: &Snapshot) -> Keyed<'a> {
    all.into_iter()
        .map(|c| {
            let tally = Tally::new(snapshot, &c.topology_key);
            (c, tally)
        })
        .collect()
}

/// Whether a node has the keys of all constraints.
fn has_all(keyed: &Keyed<'_>, node: &NodeInfo) -> bool {
    keyed.iter().all(|(_, tally)| tally.topology.of(node.slot).is_some())
}

/// Nodes that count for a constraint, by slot.
fn counting(
    constraint: &TopologySpreadConstraint,
    pod: &PodInfo,
    snapshot: &Snapshot,
    takes_part: impl Fn(&NodeInfo) -> bool,
) -> Vec<bool> {
    let mut counting = vec![false; snapshot.slots()];
    for node in snapshot.nodes() {
        counting[node.slot] = takes_part(node) && counts_for(constraint, pod, node);
    }
    counting
}

impl<'a> Counted<'a> {
    fn new(
        (constraint, mut tally): (Cow<'a, TopologySpreadConstraint>, Tally),
        counting: Vec<bool>,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Self {
        let counted = |(slot, _): &(usize, i64)| counting.get(*slot) == Some(&true);
        let there = places(&constraint, pod, snapshot).filter(counted);
        there.for_each(|(slot, n)| tally.add(slot, n));
        let mut present = vec![false; tally.topology.len()];
        for (slot, _) in counting.iter().enumerate().filter(|(_, counts)| **counts) {
            if let Some(domain) = tally.topology.of(slot) {
                present[domain] = true;
            }
        }
        let mut levels = BTreeMap::new();
        for (n, _) in tally.counts.iter().zip(&present).filter(|(_, present)| **present) {
            *levels.entry(*n).or_insert(0) += 1;
        }
        let domains = present.iter().filter(|p| **p).count();
        let own = is_about(&constraint, pod, pod.labels());
        Self { constraint, tally, counting, domains, levels, own }
    }

    /// The fewest pods of a domain; none, while there are fewer domains than `minDomains`.
    fn least(&self) -> i64 {
        let wanted = self.constraint.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
        match self.domains < wanted {
            true => 0,
            false => self.levels.keys().next().copied().unwrap_or(0),
        }
    }

    fn change(&mut self, slot: usize, by: i64) {
        let Some(count) = self.tally.at(slot) else { return };
        if let Some(n) = self.levels.get_mut(&count) {
            *n -= 1;
            if *n == 0 {
                self.levels.remove(&count);
            }
        }
        self.tally.add(slot, by);
        *self.levels.entry(count + by).or_insert(0) += 1;
    }
}

/// Selector and matchLabelKeys: those labels must be the pod's own.
fn is_about(constraint: &TopologySpreadConstraint, pod: &PodInfo, labels: Option<&Labels>) -> bool {
    let get = |l: Option<&Labels>, key: &String| l.and_then(|l| l.get(key)).cloned();
    let same = constraint.match_label_keys.iter().flatten().all(|key| {
        let own = get(pod.labels(), key);
        own.is_none() || own == get(labels, key)
    });
    same && constraint.label_selector.as_ref().is_some_and(|s| selects(s, labels))
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

impl PreFilter for PodTopologySpread {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        let constraints = self.constraints(pod, HARD, snapshot);
        if constraints.is_empty() {
            return Ok(None);
        }
        let keyed = keyed(constraints, snapshot);
        // A node without one of the keys takes no part.
        let count = |(c, tally): &(Cow<'a, TopologySpreadConstraint>, Tally)| {
            let counting = counting(c, pod, snapshot, |n| has_all(&keyed, n));
            Counted::new((c.clone(), tally.clone()), counting, pod, snapshot)
        };
        let all = keyed.iter().map(count).collect();
        Ok(Some(Box::new(Hard { pod, all })))
    }
}

impl Filter for Hard<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for counted in &self.all {
            let Some(there) = counted.tally.at(node.slot) else {
                return Err(Refusal::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let here = there + i64::from(counted.own);
            if here - counted.least() > i64::from(counted.constraint.max_skew) {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Refusal::new(reason));
            }
        }
        Ok(())
    }

    fn changed(&mut self, node: &NodeInfo, other: &PodInfo, comes: bool) {
        for counted in &mut self.all {
            let counts_here = counted.counting.get(node.slot) == Some(&true);
            if counts_here && counts(&counted.constraint, self.pod, other) {
                counted.change(node.slot, if comes { 1 } else { -1 });
            }
        }
    }
}

impl PreScore for PodTopologySpread {
    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let constraints = self.constraints(pod, SOFT, snapshot);
        if constraints.is_empty() {
            return None;
        }
        let require_all = !own(pod).is_empty() || !self.system;
        let keyed = keyed(constraints, snapshot);
        let takes_part = |n: &NodeInfo| !require_all || has_all(&keyed, n);
        let choice: Vec<&&NodeInfo> = nodes.iter().filter(|n| takes_part(n)).collect();
        let weigh = |(constraint, tally): &(Cow<'a, TopologySpreadConstraint>, Tally)| {
            let (constraint, mut tally) = (constraint.clone(), tally.clone());
            let (domains, nodes) = if constraint.topology_key == HOSTNAME {
                let mut own = vec![0; snapshot.slots()];
                places(&constraint, pod, snapshot).for_each(|(slot, n)| own[slot] += n);
                (choice.len(), Some(own))
            } else {
                let counting = counting(&constraint, pod, snapshot, takes_part);
                let there = places(&constraint, pod, snapshot).filter(|(slot, _)| counting[*slot]);
                there.for_each(|(slot, n)| tally.add(slot, n));
                let found: HashSet<Option<usize>> =
                    choice.iter().map(|n| tally.topology.of(n.slot)).collect();
                (found.len(), None)
            };
            Preference { constraint, tally, nodes, weight: (domains as f64 + 2.0).ln() }
        };
        let all = keyed.iter().map(weigh).collect();
        Some(Box::new(Soft { all, require_all }))
    }
}

impl Score for Soft<'_> {
    /// Pods in the node's domains; domains of keys with many values weigh more.
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "weights")]
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let mut score = 0.0;
        for preference in &self.all {
            let here = match (preference.tally.at(node.slot), &preference.nodes) {
                (None, _) if self.require_all => return None,
                (None, _) => continue,
                (Some(_), Some(nodes)) => nodes.get(node.slot).copied().unwrap_or(0),
                (Some(count), None) => count,
            };
            let tolerated = f64::from(preference.constraint.max_skew - 1);
            score += here as f64 * preference.weight + tolerated;
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
    use crate::plugins::book::{self, Random};
    use crate::snapshot::tests::{labelled, node};
    use serde_json::{Value, json};

    fn zones() -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("n1", "a"), ("n2", "b"), ("n3", "b")] {
            snapshot.set_node(name, Some(node(name, json!({"labels": {"zone": zone}}))));
        }
        snapshot
    }

    fn plugin(args: Value) -> PodTopologySpread {
        PodTopologySpread::new(&serde_json::from_value(args).expect("arguments"))
    }

    #[test]
    fn skew_is_kept_within_bounds() {
        let mut snapshot = zones();
        let web = json!({"app": "web"});
        let spread = |more: Value| {
            let mut c = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": "web"}}});
            for (k, v) in more.as_object().expect("a map") {
                c[k] = v.clone();
            }
            json!({"topologySpreadConstraints": [c]})
        };
        let first = labelled("1", web.clone(), json!({}));
        snapshot.assume(&first, "n1");
        let plugin = plugin(json!({}));
        let names = |prepared: &dyn Filter| -> Vec<String> {
            let nodes = snapshot.nodes().filter(|n| prepared.filter(n).is_ok());
            nodes.map(|n| n.name().to_owned()).collect()
        };
        let fits = |more: Value| -> Vec<String> {
            let pod = labelled("p", web.clone(), spread(more));
            let prepared = PreFilter::prepare(&plugin, &pod, &snapshot).expect("ok").expect("says");
            names(&*prepared)
        };
        assert_eq!(fits(json!({})), ["n2", "n3"]);
        assert_eq!(fits(json!({"maxSkew": 2})), ["n1", "n2", "n3"]);
        assert_eq!(fits(json!({"minDomains": 3})), ["n2", "n3"]);
        assert!(fits(json!({"topologyKey": "rack"})).is_empty());

        let pod = labelled("p", web.clone(), spread(json!({})));
        let mut trial = PreFilter::prepare(&plugin, &pod, &snapshot).expect("ok").expect("says");
        let at = |name: &str| snapshot.node(name).expect("a node");
        trial.changed(at("n1"), &first, false);
        assert_eq!(names(&*trial), ["n1", "n2", "n3"], "the one in zone a has gone");
        trial.changed(at("n1"), &first, true);
        assert_eq!(names(&*trial), ["n2", "n3"], "and is back");
    }

    #[test]
    fn pods_of_a_service_are_spread_by_default() {
        let mut snapshot = zones();
        let web = json!({"app": "web"});
        let pod = labelled("p", web.clone(), json!({}));
        let scores =
            |plugin: &PodTopologySpread, snapshot: &Snapshot| -> Option<Vec<Option<i64>>> {
                let nodes: Vec<&NodeInfo> = snapshot.nodes().collect();
                let prepared = PreScore::prepare(plugin, &pod, snapshot, &nodes)?;
                Some(nodes.iter().map(|n| prepared.score(n)).collect())
            };
        let system = plugin(json!({}));
        assert_eq!(scores(&system, &snapshot), None, "nothing selects it");
        let selector: Labels = serde_json::from_value(web.clone()).expect("labels");
        snapshot.owners.set_service("ns", "s", Some(&selector));
        snapshot.assume(&labelled("1", web, json!({})), "n2");
        // By hostname alone, as no node has upstream's zone label: ln(3 + 2) for each pod, and
        // two for the skew that is tolerated.
        assert_eq!(scores(&system, &snapshot), Some(vec![Some(2), Some(4), Some(2)]));
        let zone = plugin(json!({"defaultingType": "List", "defaultConstraints": [
            {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}]}));
        assert_eq!(scores(&zone, &snapshot), Some(vec![Some(0), Some(1), Some(1)]));
        let none = plugin(json!({"defaultingType": "List"}));
        assert_eq!(scores(&none, &snapshot), None);
    }

    /// What the API says, with none of what makes it fast: `gone` is not counted.
    fn by_the_book(snapshot: &Snapshot, pod: &PodInfo, node: &NodeInfo, gone: &str) -> bool {
        let all = own(pod);
        let takes_part = |n: &&NodeInfo| all.iter().all(|c| n.label(&c.topology_key).is_some());
        let nodes: Vec<&NodeInfo> = snapshot.nodes().filter(takes_part).collect();
        all.iter().all(|c| {
            let Some(here) = node.label(&c.topology_key) else { return false };
            let mut domains: BTreeMap<&str, i64> = BTreeMap::new();
            for n in nodes.iter().filter(|n| counts_for(c, pod, n)) {
                let matching = n.pods.iter().filter(|p| p.uid != gone && counts(c, pod, p));
                let count = i64::try_from(matching.count()).expect("few pods");
                *domains.entry(n.label(&c.topology_key).unwrap_or_default()).or_insert(0) += count;
            }
            let wanted = usize::try_from(c.min_domains.unwrap_or(1)).expect("not negative");
            let few = domains.len() < wanted;
            let least = if few { 0 } else { domains.values().copied().min().unwrap_or(0) };
            let own = i64::from(is_about(c, pod, pod.labels()));
            domains.get(here).copied().unwrap_or(0) + own - least <= i64::from(c.max_skew)
        })
    }

    #[test]
    fn counting_is_as_by_the_book() {
        let placed = |random: &mut Random, name: &str| labelled(name, random.app(2), json!({}));
        let new = |random: &mut Random| {
            let mut constraint = |key: &str| {
                let mut c = json!({"topologyKey": key, "maxSkew": 1 + random.below(2),
                    "whenUnsatisfiable": HARD, "labelSelector": {"matchLabels": random.app(2)}});
                if random.below(2) == 0 {
                    c["minDomains"] = json!(1 + random.below(4));
                }
                c
            };
            let all = [constraint("zone"), constraint(HOSTNAME)];
            let mut spec = json!({"topologySpreadConstraints": all[..1 + random.below(2)]});
            if random.below(2) == 0 {
                spec["nodeSelector"] = json!({"disk": "0"});
            }
            labelled("new", random.app(2), spec)
        };
        book::check(&plugin(json!({})), placed, new, by_the_book);
    }
}
