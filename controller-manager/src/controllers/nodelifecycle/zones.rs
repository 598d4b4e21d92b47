//! How fast pods of nodes that are lost are given up: where many nodes are lost at once it is rather
//! the way to them that is (the page "Nodes", Rate limits on eviction).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;

use super::condition;

/// What flags say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Nodes of a zone, in a second.
    pub normal: f64,
    /// As `normal`, in a zone that is unhealthy and large; small ones have none.
    pub secondary: f64,
    /// A zone with more nodes is large.
    pub large: usize,
    /// The share of nodes of a zone that makes it unhealthy when it is lost.
    pub unhealthy: f64,
}

/// Whether the pods of a lost node may be told to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    Go,
    /// Not yet; when to ask again, if that is known.
    Wait(Option<Duration>),
    /// No node answers: they are to stay.
    Stay,
}

/// Region and zone.
type Zone = (String, String);

/// Nodes that are ready, and those that are not, of each zone.
#[derive(Default)]
pub struct Zones(BTreeMap<Zone, (usize, usize)>);

fn zone_of(node: &Node) -> Zone {
    let labels = node.metadata.labels.as_ref();
    let label = |names: [&str; 2]| {
        let found = names.iter().find_map(|name| labels?.get(*name));
        found.cloned().unwrap_or_default()
    };
    (
        label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]),
        label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
    )
}

impl Zones {
    pub fn of<'n>(nodes: impl Iterator<Item = &'n Node>) -> Self {
        let mut zones = Self::default();
        for node in nodes {
            let (ready, lost) = zones.0.entry(zone_of(node)).or_default();
            match condition(node, "Ready").is_some_and(|c| c.status == "True") {
                true => *ready += 1,
                false => *lost += 1,
            }
        }
        zones
    }

    /// Nodes of a zone in a second; `None`: no node of any zone answers.
    fn rate(&self, zone: &Zone, rates: &Rates) -> Option<f64> {
        if self.0.values().all(|(ready, _)| *ready == 0) {
            return None;
        }
        let (ready, lost) = self.0.get(zone).copied().unwrap_or_default();
        let all = ready + lost;
        let unhealthy = ready > 0 && lost > 2 && lost as f64 / all as f64 >= rates.unhealthy;
        Some(match (unhealthy, all > rates.large) {
            (false, _) => rates.normal,
            (true, true) => rates.secondary,
            (true, false) => 0.0,
        })
    }
}

/// Whose turn it is.
#[derive(Default)]
pub struct Turns {
    /// When the next node of a zone may be given up.
    next: HashMap<Zone, Timestamp>,
    /// Nodes that have had their turn.
    had: HashSet<String>,
}

impl Turns {
    /// Whether it is a lost node's turn.
    pub fn ask(&mut self, node: &Node, zones: &Zones, rates: &Rates, now: Timestamp) -> Eviction {
        let zone = zone_of(node);
        let name = node.metadata.name.clone().unwrap_or_default();
        let Some(rate) = zones.rate(&zone, rates) else {
            self.had.clear();
            return Eviction::Stay;
        };
        if self.had.contains(&name) {
            return Eviction::Go;
        }
        if rate <= 0.0 {
            return Eviction::Wait(None);
        }
        let left = self.next.get(&zone).map(|next| next.duration_since(now));
        if let Some(left) = left.and_then(|left| Duration::try_from(left).ok())
            && !left.is_zero()
        {
            return Eviction::Wait(Some(left));
        }
        let pause = SignedDuration::try_from_secs_f64(1.0 / rate).unwrap_or(SignedDuration::MAX);
        self.next.insert(zone, now.checked_add(pause).unwrap_or(Timestamp::MAX));
        self.had.insert(name);
        Eviction::Go
    }

    /// The node is back, or gone.
    pub fn forget(&mut self, name: &str) {
        self.had.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RATES: Rates = Rates { normal: 0.1, secondary: 0.01, large: 5, unhealthy: 0.55 };

    fn node(name: &str, zone: &str, ready: bool) -> Node {
        let status = if ready { "True" } else { "Unknown" };
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": status}]},
        }))
        .expect("a node")
    }

    #[test]
    fn many_lost_at_once_slow_it_down_and_all_stop_it() {
        // Ready and lost ones of zone a, of zone b; nodes of a in a second.
        for (a, b, want) in [
            ((3, 1), (0, 0), Some(0.1)),
            // Two may be lost of any.
            ((1, 2), (0, 0), Some(0.1)),
            ((2, 3), (0, 0), Some(0.0)),
            ((3, 3), (0, 0), Some(0.1)),
            ((2, 4), (0, 0), Some(0.01)),
            ((0, 9), (0, 0), None),
            ((0, 9), (1, 0), Some(0.1)),
            ((0, 9), (0, 1), None),
        ] {
            let all = |zone: &'static str, (ready, lost): (usize, usize)| {
                let states =
                    std::iter::repeat_n(true, ready).chain(std::iter::repeat_n(false, lost));
                states.map(move |ready| node("n", zone, ready)).collect::<Vec<_>>()
            };
            let nodes = [all("a", a), all("b", b)].concat();
            let zones = Zones::of(nodes.iter());
            let got = zones.rate(&(String::new(), "a".to_owned()), &RATES);
            assert_eq!(got, want, "{a:?} {b:?}");
        }
    }

    #[test]
    fn nodes_of_a_zone_wait_for_their_turn() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a time");
        let nodes = [
            node("a1", "a", false),
            node("a2", "a", false),
            node("a3", "a", true),
            node("b1", "b", false),
        ];
        let zones = Zones::of(nodes.iter());
        let mut turns = Turns::default();
        let wait = |seconds| Eviction::Wait(Some(Duration::from_secs(seconds)));
        for (i, now, want) in [
            (0, 0, Eviction::Go),
            (1, 0, wait(10)),
            (0, 1, Eviction::Go),
            (3, 1, Eviction::Go),
            (1, 4, wait(6)),
            (1, 10, Eviction::Go),
        ] {
            assert_eq!(turns.ask(&nodes[i], &zones, &RATES, at(now)), want, "{i} {now}");
        }
        turns.forget("a1");
        assert_eq!(turns.ask(&nodes[0], &zones, &RATES, at(10)), wait(10));
        let none = Rates { normal: 0.0, ..RATES };
        assert_eq!(turns.ask(&nodes[0], &zones, &none, at(99)), Eviction::Wait(None));
        let lost = Zones::of(nodes.iter().filter(|n| n.metadata.name.as_deref() != Some("a3")));
        assert_eq!(turns.ask(&nodes[1], &lost, &RATES, at(99)), Eviction::Stay);
    }
}
