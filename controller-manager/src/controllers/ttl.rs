//! Nodes are told how long what they know of Secrets and ConfigMaps may be old: the longer, the more
//! nodes there are (`pkg/controller/ttl`).

use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::runner::{Context, Controller};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// Seconds, and for how many nodes: at least, at most. They overlap, so that a node more or less
/// does not change all others each time.
const STEPS: [(u32, usize, usize); 5] =
    [(0, 0, 100), (15, 90, 500), (30, 450, 1000), (60, 900, 2000), (300, 1800, usize::MAX)];

pub struct Ttl {
    nodes: Cache<Node>,
    step: Mutex<usize>,
}

impl Ttl {
    pub fn new(context: &Context) -> Self {
        Self { nodes: context.caches.of(), step: Mutex::default() }
    }
}

impl Controller for Ttl {
    fn name(&self) -> &'static str {
        "ttlcontroller"
    }

    fn wire(&self, queue: &Queue<Key>) {
        // Nodes change all the time: each learns of another step by its next change.
        self.nodes.feed(queue);
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let Some(node) = self.nodes.get(key) else { return Plan::default() };
        let mut step = self.step.lock();
        *step = next(*step, self.nodes.list().len());
        plan(&node, STEPS[*step].0)
    }
}

/// The step for so many nodes, after the last one.
fn next(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].2 {
        step += 1;
    }
    while nodes < STEPS[step].1 {
        step -= 1;
    }
    step
}

fn plan(node: &Node, seconds: u32) -> Plan {
    let mut plan = Plan::default();
    let wanted = seconds.to_string();
    let have = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
    if have != Some(&wanted) {
        let patch = json!({"metadata": {"annotations": {ANNOTATION: wanted}}});
        plan.push(Action::Patch(Target::of::<Node>(&Key::of(node)), "", patch));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_taken_late_both_ways() {
        let mut step = 0;
        let seconds = [1, 100, 101, 95, 90, 89, 2500, 1800, 1799, 0].map(|nodes| {
            step = next(step, nodes);
            STEPS[step].0
        });
        assert_eq!(seconds, [0, 0, 15, 15, 15, 0, 300, 300, 60, 0]);
    }

    #[test]
    fn a_node_is_told_once() {
        let mut node = Node::default();
        node.metadata.name = Some("n".to_owned());
        assert_eq!(plan(&node, 15).actions.len(), 1);
        let annotations = [(ANNOTATION.to_owned(), "15".to_owned())];
        node.metadata.annotations = Some(annotations.into_iter().collect());
        assert_eq!(plan(&node, 15).actions.len(), 0);
        assert_eq!(plan(&node, 0).actions.len(), 1);
    }
}
