//! Domains of a topology key, and counts in them: numbers in the place of labels, so that looking
//! at thousands of nodes compares no text.

use std::collections::HashMap;
use std::sync::Arc;

use crate::snapshot::{NodeInfo, Snapshot};

/// Which node is in which domain of one key.
#[derive(Debug, Default)]
pub struct Topology {
    /// By the node's slot; `None`: the node has no such label.
    domains: Vec<Option<usize>>,
    len: usize,
}

impl Topology {
    /// The domains of a key among these nodes, the slots of which are below a number.
    pub fn new<'n>(key: &str, slots: usize, nodes: impl Iterator<Item = &'n NodeInfo>) -> Self {
        let mut values: HashMap<&str, usize> = HashMap::new();
        let mut domains = vec![None; slots];
        for node in nodes {
            let Some(value) = node.label(key) else { continue };
            let next = values.len();
            domains[node.slot] = Some(*values.entry(value).or_insert(next));
        }
        Self { domains, len: values.len() }
    }

    /// How many domains there are.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The domain of the node in a slot.
    pub fn of(&self, slot: usize) -> Option<usize> {
        self.domains.get(slot).copied().flatten()
    }
}

/// A count for each domain of a key.
#[derive(Clone, Debug)]
pub struct Tally {
    pub topology: Arc<Topology>,
    pub counts: Vec<i64>,
}

impl Tally {
    pub fn new(snapshot: &Snapshot, key: &str) -> Self {
        let topology = snapshot.topology(key);
        let counts = vec![0; topology.len()];
        Self { topology, counts }
    }

    /// Counts in the domain of the node in a slot, if it is in one.
    pub fn add(&mut self, slot: usize, n: i64) {
        if let Some(domain) = self.topology.of(slot) {
            self.counts[domain] += n;
        }
    }

    /// The count of the domain that the node in a slot is in.
    pub fn at(&self, slot: usize) -> Option<i64> {
        self.topology.of(slot).map(|domain| self.counts[domain])
    }

    pub fn has_any(&self) -> bool {
        self.counts.iter().any(|n| *n > 0)
    }
}
