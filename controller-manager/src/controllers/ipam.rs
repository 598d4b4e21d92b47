//! Every node has a range of pod addresses (node IPAM, range allocator).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use client::events::EventType;
use client::{Cache, Key, Queue};
use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::runner::{Context, Controller};

pub struct Ipam {
    nodes: Cache<Node>,
    ranges: Vec<Range>,
    /// Granted and not yet seen on the node.
    pending: Arc<Mutex<HashMap<String, Vec<IpNet>>>>,
}

/// A cluster range cut into ranges of one length for nodes.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub cluster: IpNet,
    /// Prefix length of a node's range.
    pub node: u8,
}

impl Range {
    /// The first range that is not taken.
    fn free(&self, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
        let mut subnets = self.cluster.subnets(self.node).ok()?;
        subnets.find(|s| !taken.contains(s))
    }
}

impl Ipam {
    pub fn new(context: &Context, ranges: Vec<Range>) -> Self {
        Self { nodes: context.caches.of(), ranges, pending: Arc::default() }
    }

    fn taken(&self) -> BTreeSet<IpNet> {
        let nodes = self.nodes.list();
        let seen = nodes.iter().flat_map(|n| ranges_of(n));
        let pending = self.pending.lock();
        seen.chain(pending.values().flatten().copied()).collect()
    }
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    all.filter_map(|c| c.parse().ok()).collect()
}

impl Controller for Ipam {
    fn name(&self) -> &'static str {
        "node-ipam"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let (q, pending) = (queue.clone(), Arc::clone(&self.pending));
        self.nodes.on_change(move |change| {
            if change.new.is_none_or(|n| !ranges_of(n).is_empty()) {
                pending.lock().remove(&change.key.name);
            }
            q.add(change.key.clone());
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        let Some(node) = self.nodes.get(key) else { return plan };
        if !ranges_of(&node).is_empty() || self.pending.lock().contains_key(&key.name) {
            return plan;
        }
        let taken = self.taken();
        let granted: Option<Vec<IpNet>> = self.ranges.iter().map(|r| r.free(&taken)).collect();
        match granted {
            Some(granted) if !granted.is_empty() => {
                let patch = json!({
                    "metadata": {"uid": node.metadata.uid},
                    "spec": {"podCIDR": granted[0], "podCIDRs": granted},
                });
                plan.push(Action::Patch(Target::of::<Node>(key), "", patch));
                self.pending.lock().insert(key.name.clone(), granted);
            }
            _ => {
                let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
                plan.push(Action::event(&*node, EventType::Normal, "CIDRNotAvailable", message));
            }
        }
        plan
    }

    /// One at a time: a range must not be granted twice.
    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_in_order_and_once() {
        let range = Range { cluster: "10.244.0.0/22".parse().expect("a range"), node: 24 };
        let mut taken = BTreeSet::new();
        let mut given = Vec::new();
        while let Some(free) = range.free(&taken) {
            given.push(free.to_string());
            taken.insert(free);
        }
        assert_eq!(given, ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        taken.remove(&"10.244.1.0/24".parse::<IpNet>().expect("a range"));
        assert_eq!(range.free(&taken).map(|r| r.to_string()).as_deref(), Some("10.244.1.0/24"));
    }
}
