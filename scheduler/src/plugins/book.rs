//! Holds plugins that count to what counting one by one gives, on random clusters.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::framework::PreFilter;
use crate::snapshot::tests::node;
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Numbers that are the same in each run.
pub struct Random(usize);

impl Random {
    /// One below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % n
    }

    /// Labels of one of the first `n` apps.
    pub fn app(&mut self, n: usize) -> Value {
        json!({"app": format!("app{}", self.below(n))})
    }
}

/// Nodes in three zones, and in none; half of the former with each kind of disk.
fn nodes(random: &mut Random) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for i in 0..8 {
        let name = format!("n{i}");
        let labels = match random.below(4) {
            3 => json!({}),
            zone => json!({"zone": zone.to_string(), "disk": (zone % 2).to_string()}),
        };
        snapshot.set_node(&name, Some(node(&name, json!({"labels": labels}))));
    }
    snapshot
}

/// Asks of many clusters whether a new pod fits on each node: the plugin, and the book, which is told
/// of a pod that does not count. `placed` and `new` make the pods.
pub fn check(
    plugin: &dyn PreFilter,
    placed: impl Fn(&mut Random, &str) -> Arc<PodInfo>,
    new: impl Fn(&mut Random) -> Arc<PodInfo>,
    book: impl Fn(&Snapshot, &PodInfo, &NodeInfo, &str) -> bool,
) {
    let (mut random, mut answers) = (Random(7), [0, 0]);
    for _ in 0..60 {
        let mut snapshot = nodes(&mut random);
        let mut place = |snapshot: &mut Snapshot, name: &str| {
            let (pod, place) = (placed(&mut random, name), format!("n{}", random.below(8)));
            snapshot.assume(&pod, &place);
            (pod, place)
        };
        let (one, at) = place(&mut snapshot, "p0");
        for i in 1..12 {
            place(&mut snapshot, &format!("p{i}"));
        }
        let pod = new(&mut random);
        let prepared = plugin.prepare(&pod, &snapshot).expect("no refusal");
        let Some(mut prepared) = prepared else { continue };
        let at = snapshot.node(&at).expect("a node");
        for (gone, comes) in [("", false), (one.uid.as_str(), true), ("", false)] {
            for node in snapshot.nodes() {
                let wanted = book(&snapshot, &pod, node, gone);
                let spec = &pod.pod.spec;
                assert_eq!(prepared.filter(node).is_ok(), wanted, "{gone:?} {spec:?}");
                answers[usize::from(wanted)] += 1;
            }
            prepared.changed(at, &one, comes);
        }
    }
    assert!(answers.iter().all(|n| *n > 100), "{answers:?}");
}
