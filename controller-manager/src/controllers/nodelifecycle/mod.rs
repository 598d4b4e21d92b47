//! Nodes that do not report any more: their conditions become unknown, they are tainted, their
//! pods count as not ready.

mod zones;

use std::collections::HashMap;
use std::time::Duration;

use client::events::EventType;
use client::lean::Pod;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::json;

use crate::action::{Action, Plan, Target};
use crate::pods;
use crate::runner::{Context, Controller};
pub use zones::Rates;
use zones::{Eviction, Turns, Zones};

const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NETWORK: &str = "node.kubernetes.io/network-unavailable";
/// Conditions that taint while they are true (and Ready while it is not).
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", NETWORK),
];
/// Conditions that become unknown with the node.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub struct NodeLifecycle {
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    /// A node that has not reported for so long is lost.
    grace: Duration,
    period: Duration,
    rates: Rates,
    turns: Mutex<Turns>,
    /// When each node's report was last seen to change, by our clock: other machines' clocks
    /// may be off.
    seen: Mutex<HashMap<String, (String, Timestamp)>>,
}

impl NodeLifecycle {
    pub fn new(context: &Context, grace: Duration, period: Duration, rates: Rates) -> Self {
        let caches = &context.caches;
        Self {
            nodes: caches.of(),
            leases: caches.of(),
            pods: caches.of(),
            grace,
            period,
            rates,
            turns: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// When the node last reported, as far as was seen here.
    fn reported(&self, node: &Node, now: Timestamp) -> Timestamp {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let lease = self.leases.get(&Key::new(LEASES, name));
        let renewed =
            lease.and_then(|l| l.spec.as_ref()?.renew_time.as_ref().map(|t| t.0.to_string()));
        let beat = condition(node, "Ready")
            .and_then(|c| c.last_heartbeat_time.as_ref().map(|t| t.0.to_string()));
        let report = format!("{renewed:?} {beat:?}");
        let mut seen = self.seen.lock();
        let entry = seen.entry(name.to_owned()).or_insert_with(|| (report.clone(), now));
        if entry.0 != report {
            *entry = (report, now);
        }
        entry.1
    }

    /// Whether its pods may be told to go, if it is not ready.
    fn eviction(&self, node: &Node, lost: bool, now: Timestamp) -> Eviction {
        let mut turns = self.turns.lock();
        if !lost && condition(node, "Ready").is_some_and(|c| c.status == "True") {
            turns.forget(node.metadata.name.as_deref().unwrap_or_default());
            return Eviction::Wait(None);
        }
        let nodes = self.nodes.list();
        let zones = Zones::of(nodes.iter().map(AsRef::as_ref));
        turns.ask(node, &zones, &self.rates, now)
    }
}

fn condition<'n>(
    node: &'n Node,
    ty: &str,
) -> Option<&'n k8s_openapi::api::core::v1::NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == ty)
}

impl Controller for NodeLifecycle {
    fn name(&self) -> &'static str {
        "node-lifecycle"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.nodes.feed(queue);
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(node) = self.nodes.get(key) else {
            self.seen.lock().remove(&key.name);
            self.turns.lock().forget(&key.name);
            return Plan::default();
        };
        let since = self.reported(&node, now);
        let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let lost = age > self.grace;
        let eviction = self.eviction(&node, lost, now);
        let mut plan = plan(&node, lost, eviction, now);
        if let Eviction::Wait(Some(left)) = eviction {
            plan.again(left);
        }
        if condition(&node, "Ready").is_some_and(|c| c.status != "True") {
            let pods = self.pods.list();
            mark_pods(&node, pods.iter().map(AsRef::as_ref), now, &mut plan);
        }
        plan.again(self.period);
        plan
    }
}

fn plan(node: &Node, lost: bool, eviction: Eviction, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let key = Key::of(node);
    if lost && condition(node, "Ready").is_none_or(|c| c.status != "Unknown") {
        let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let conditions: Vec<_> = REPORTED
            .iter()
            .map(|ty| match condition(node, ty) {
                Some(_) => json!({
                    "type": ty, "status": "Unknown", "reason": "NodeStatusUnknown",
                    "message": "Kubelet stopped posting node status.", "lastTransitionTime": time,
                }),
                None => json!({
                    "type": ty, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.", "lastTransitionTime": time,
                }),
            })
            .collect();
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}});
        plan.push(Action::Patch(Target::of::<Node>(&key), "status", patch));
        let message = format!("Node {} status is now: NodeNotReady", key.name);
        plan.push(Action::event(node, EventType::Normal, "NodeNotReady", message));
    }
    if let Some(taints) = taints(node, lost, eviction, now) {
        let mut changed = node.clone();
        changed.spec.get_or_insert_default().taints = Some(taints).filter(|t| !t.is_empty());
        plan.push(Action::update(&changed));
    }
    plan
}

/// The node's taints as its conditions want them; `None`: they are so.
fn taints(node: &Node, lost: bool, eviction: Eviction, now: Timestamp) -> Option<Vec<Taint>> {
    let have = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    let evicts =
        |t: &Taint| matches!(t.key.as_str(), NOT_READY | UNREACHABLE) && t.effect == "NoExecute";
    // Pods that were told to go are not told otherwise, unless all are to stay.
    let evict = match eviction {
        Eviction::Go => true,
        Eviction::Wait(_) => have.iter().any(evicts),
        Eviction::Stay => false,
    };
    let status = |ty: &str| condition(node, ty).map_or("", |c| c.status.as_str());
    let ready = if lost { "Unknown" } else { status("Ready") };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready {
        "True" => {}
        not => {
            let key = if not == "Unknown" { UNREACHABLE } else { NOT_READY };
            wanted.push((key, "NoSchedule"));
            if evict {
                wanted.push((key, "NoExecute"));
            }
        }
    }
    for (ty, key) in PRESSURES {
        if status(ty) == "True" {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let managed = |t: &Taint| {
        let key = t.key.as_str();
        matches!(key, NOT_READY | UNREACHABLE | UNSCHEDULABLE)
            || PRESSURES.iter().any(|(_, k)| *k == key)
    };
    let mut next: Vec<Taint> = have
        .iter()
        .filter(|t| !managed(t) || wanted.iter().any(|(k, e)| t.key == *k && t.effect == *e))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !next.iter().any(|t| t.key == key && t.effect == effect) {
            next.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (next != have).then_some(next)
}

/// Pods of a node that is not ready are not ready either.
fn mark_pods<'p>(node: &Node, all: impl Iterator<Item = &'p Pod>, now: Timestamp, plan: &mut Plan) {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for pod in all.filter(|p| pods::node_name(p) == name && pods::is_ready(p)) {
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
            "type": "Ready", "status": "False", "lastTransitionTime": time,
        }]}});
        plan.push(Action::Patch(Target::of::<Pod>(&Key::of(pod)), "status", patch));
        plan.push(Action::event(pod, EventType::Warning, "NodeNotReady", "Node is not ready"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: &str, taints: serde_json::Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("a node")
    }

    #[test]
    fn taints_follow_the_conditions() {
        let show = |t: Option<Vec<Taint>>| {
            t.map(|t| {
                t.iter()
                    .map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap_or(""), t.effect))
                    .collect::<Vec<_>>()
                    .join(" ")
            })
        };
        let own = json!({"key": "mine", "effect": "NoSchedule"});
        let not_ready = json!([own, {"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute"}]);
        let (go, wait, stay) = (Eviction::Go, Eviction::Wait(None), Eviction::Stay);
        let unreachable = Some("mine:NoSchedule unreachable:NoSchedule unreachable:NoExecute");
        for (ready, have, lost, eviction, wanted) in [
            ("True", json!([own]), false, wait, None),
            (
                "False",
                json!([own]),
                false,
                go,
                Some("mine:NoSchedule not-ready:NoSchedule not-ready:NoExecute"),
            ),
            ("False", json!([own]), false, wait, Some("mine:NoSchedule not-ready:NoSchedule")),
            ("True", not_ready.clone(), false, wait, Some("mine:NoSchedule")),
            ("False", not_ready.clone(), false, go, None),
            ("False", not_ready.clone(), false, wait, None),
            ("False", not_ready.clone(), false, stay, Some("mine:NoSchedule not-ready:NoSchedule")),
            ("True", not_ready.clone(), true, go, unreachable),
            ("True", not_ready, true, wait, unreachable),
        ] {
            let node = node(ready, have.clone());
            let found = show(taints(&node, lost, eviction, Timestamp::UNIX_EPOCH));
            assert_eq!(found.as_deref(), wanted, "{ready} {have} {eviction:?}");
        }
    }
}
