//! The cluster as the scheduler sees it: nodes with the pods on them, updated in place.
//!
//! Pods that were given a node but are not bound yet are assumed: they count until the binding
//! fails or the cache shows them.
//!
//! It is laid out for plugins that look at all nodes or all pods for each pod: nodes have numbers,
//! and placed pods that are alike to such plugins are counted together ([`Kin`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use apimachinery::amounts::Combine;
use client::Key;
use client::lean::Pod;
use client::matching::Labels;
use client::volumes::claims_of;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;

use crate::owners::Owners;
use crate::resources::{PodRequests, Resources, of_pod};
use crate::topology::Topology;
use crate::volumes::Volumes;

/// A pod with what plugins ask of it often.
#[derive(Clone, Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub key: Key,
    pub uid: String,
    pub requests: PodRequests,
    pub ports: Vec<HostPort>,
    /// Names of the claims of its volumes; whether each is made for the pod (KEP-1698).
    pub claims: Vec<(String, bool)>,
    /// Has (anti-)affinity to other pods.
    pub affinity: bool,
    pub required_anti_affinity: bool,
}

/// A port of the node that a pod wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// Empty: all addresses.
    pub address: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_empty()
                || other.address.is_empty()
                || self.address == other.address)
    }
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Self {
        let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
        let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let required =
            anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        Self {
            key: Key::of(&*pod),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            requests: of_pod(&pod),
            ports: ports(&pod),
            claims: claims_of(&pod).collect(),
            affinity: affinity.is_some_and(|a| a.pod_affinity.is_some()) || anti.is_some(),
            required_anti_affinity: required.is_some_and(|terms| !terms.is_empty()),
            pod,
        }
    }

    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    pub fn labels(&self) -> Option<&Labels> {
        self.pod.metadata.labels.as_ref()
    }

    pub fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
    }

    pub fn node_name(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref().filter(|n| !n.is_empty())
    }
}

/// What other pods' constraints and its own can tell a pod by: namespace, labels, whether it is ending,
/// and (anti-)affinity, as text. Those of the same are [`Kin`].
fn likeness(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let affinity = pod.spec.as_ref().and_then(|s| s.affinity.as_ref());
    let affinity = affinity.map(|a| (&a.pod_affinity, &a.pod_anti_affinity));
    let ending = meta.deletion_timestamp.is_some();
    // Typed objects are always JSON.
    serde_json::to_string(&(&meta.namespace, &meta.labels, ending, affinity)).unwrap_or_default()
}

fn ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    all.filter_map(|p| {
        let port = p.host_port.filter(|n| *n > 0)?;
        let address = p.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::");
        Some(HostPort {
            address: address.unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            port,
        })
    })
    .collect()
}

/// A node with its pods.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// Absent for a node that is gone, or not yet seen, while pods name it.
    pub node: Option<Arc<Node>>,
    pub pods: Vec<Arc<PodInfo>>,
    pub allocatable: Resources,
    pub allowed_pods: usize,
    pub requested: Resources,
    pub scored: (i64, i64),
    /// Image name to bytes.
    pub images: Arc<HashMap<String, i64>>,
    /// Its number among the nodes; another's, once it and its pods are gone.
    pub slot: usize,
}

impl NodeInfo {
    pub fn name(&self) -> &str {
        self.node.as_ref().and_then(|n| n.metadata.name.as_deref()).unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.node.as_ref()?.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }

    fn set_node(&mut self, node: Arc<Node>) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|s| s.allocatable.as_ref());
        self.allocatable = Resources::parse(allocatable);
        let pods = allocatable.and_then(|a| a.get("pods"));
        self.allowed_pods = pods.and_then(|q| q.0.parse().ok()).unwrap_or(0);
        let images = status.and_then(|s| s.images.as_ref()).into_iter().flatten();
        let sized = images.flat_map(|i| {
            let size = i.size_bytes.unwrap_or(0);
            i.names.iter().flatten().map(move |name| (name.clone(), size))
        });
        self.images = Arc::new(sized.collect());
        self.node = Some(node);
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.remove(&pod.uid);
        self.requested.add(&pod.requests.asked);
        self.scored.0 += pod.requests.scored.0;
        self.scored.1 += pod.requests.scored.1;
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) {
        if let Some(at) = self.pods.iter().position(|p| p.uid == uid) {
            let pod = self.pods.swap_remove(at);
            self.requested.subtract(&pod.requests.asked);
            self.scored.0 -= pod.requests.scored.0;
            self.scored.1 -= pod.requests.scored.1;
        }
    }
}

/// Placed pods of one namespace with the same labels and (anti-)affinity, ending or not.
#[derive(Debug)]
pub struct Kin {
    /// One of them.
    pub one: Arc<PodInfo>,
    /// The node's slot to how many of them are there.
    nodes: HashMap<usize, i64>,
}

impl Kin {
    /// Slots of nodes, and how many of these pods are there.
    pub fn places(&self) -> impl Iterator<Item = (usize, i64)> + Clone {
        self.nodes.iter().map(|(slot, n)| (*slot, *n))
    }
}

/// Where a pod counts: the slot of its node, and its key among [`Kin`], which those share that are
/// alike.
#[derive(Debug)]
struct Placed {
    slot: usize,
    kin: Arc<str>,
}

/// So many topology keys are remembered: pods may name any.
const MOST_TOPOLOGIES: usize = 64;

/// The whole cluster.
#[derive(Debug, Default)]
pub struct Snapshot {
    slots: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    free: Vec<usize>,
    /// Region and zone to the slots of nodes that exist.
    zones: BTreeMap<(String, String), Vec<usize>>,
    /// The same slots, one of each zone in turn.
    order: Vec<usize>,
    kins: HashMap<Arc<str>, Kin>,
    topologies: Mutex<HashMap<String, Arc<Topology>>>,
    /// By the pod's uid.
    placed: HashMap<String, Placed>,
    /// Of those, the ones that are only assumed.
    assumed: HashSet<String>,
    pub namespaces: HashMap<String, Labels>,
    pub owners: Owners,
    pub volumes: Volumes,
    /// Claim to the number of placed pods that use it.
    claim_users: HashMap<Key, usize>,
    /// Image name to the number of nodes that have it.
    images: HashMap<String, usize>,
    /// Pods that wait for others to leave a node, by uid, with that node.
    nominated: HashMap<String, (String, Arc<PodInfo>)>,
    /// How many pods have (anti-)affinity to others: none is the common case.
    with_affinity: usize,
}

fn zone(node: &Node) -> (String, String) {
    let label = |key: &str| {
        let labels = node.metadata.labels.as_ref();
        labels.and_then(|l| l.get(key)).cloned().unwrap_or_default()
    };
    (label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone"))
}

impl Snapshot {
    /// Nodes that exist: one of each zone in turn, so that a part of them is of all zones.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.order.iter().map(|slot| &self.slots[*slot])
    }

    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|slot| &self.slots[*slot]).filter(|n| n.node.is_some())
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The node of a slot.
    pub fn at(&self, slot: usize) -> Option<&NodeInfo> {
        self.slots.get(slot).filter(|n| n.node.is_some())
    }

    /// Nodes' slots are below this.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// All placed pods, those that are alike together.
    pub fn kins(&self) -> impl Iterator<Item = &Kin> {
        self.kins.values()
    }

    /// The domains of a topology key.
    pub fn topology(&self, key: &str) -> Arc<Topology> {
        let mut known = self.topologies.lock();
        if let Some(topology) = known.get(key) {
            return Arc::clone(topology);
        }
        if known.len() >= MOST_TOPOLOGIES {
            known.clear();
        }
        let topology = Arc::new(Topology::new(key, self.slots.len(), self.nodes()));
        known.insert(key.to_owned(), Arc::clone(&topology));
        topology
    }

    /// The slot of a node, of whom there may be but pods yet.
    fn slot(&mut self, name: &str) -> usize {
        if let Some(slot) = self.index.get(name) {
            return *slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(NodeInfo::default());
            self.slots.len() - 1
        });
        self.slots[slot] = NodeInfo { slot, ..NodeInfo::default() };
        self.index.insert(name.to_owned(), slot);
        slot
    }

    /// Gives the slot of a node up of which nothing is left.
    fn release(&mut self, slot: usize) {
        let info = &self.slots[slot];
        if info.node.is_none() && info.pods.is_empty() {
            self.index.retain(|_, s| *s != slot);
            self.free.push(slot);
        }
    }

    fn enter_zone(&mut self, slot: usize, there: bool) {
        let Some(node) = &self.slots[slot].node else { return };
        let zone = zone(node);
        let slots = self.zones.entry(zone.clone()).or_default();
        match there {
            true => slots.push(slot),
            false => slots.retain(|s| *s != slot),
        }
        if slots.is_empty() {
            self.zones.remove(&zone);
        }
        self.order.clear();
        let mut turns: Vec<_> = self.zones.values().map(|slots| slots.iter()).collect();
        while !turns.is_empty() {
            turns.retain_mut(|zone| {
                let next = zone.next();
                self.order.extend(next);
                next.is_some()
            });
        }
    }

    pub fn any_affinity(&self) -> bool {
        self.with_affinity > 0
    }

    /// How many nodes have an image.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    fn count_images(&mut self, images: &HashMap<String, i64>, there: bool) {
        for name in images.keys() {
            let n = self.images.entry(name.clone()).or_insert(0);
            *n = if there { *n + 1 } else { n.saturating_sub(1) };
            if *n == 0 {
                self.images.remove(name);
            }
        }
    }

    pub fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) {
        if node.is_none() && !self.index.contains_key(name) {
            return;
        }
        let slot = self.slot(name);
        let labels = |n: &Option<Arc<Node>>| n.as_ref().map(|n| n.metadata.labels.clone());
        let moved = labels(&self.slots[slot].node) != labels(&node);
        let images = std::mem::take(&mut self.slots[slot].images);
        self.count_images(&images, false);
        if moved {
            self.topologies.get_mut().clear();
            self.enter_zone(slot, false);
        }
        match node {
            Some(node) => {
                self.slots[slot].set_node(node);
                let images = self.slots[slot].images.clone();
                self.count_images(&images, true);
            }
            None => self.slots[slot].node = None,
        }
        if moved {
            self.enter_zone(slot, true);
        }
        self.release(slot);
    }

    /// Brings in a pod as the cache has it. A finished pod, or one without a node, counts nowhere;
    /// but one that is assumed goes on counting until it is bound or forgotten.
    pub fn set_pod(&mut self, pod: &Arc<PodInfo>) {
        let phase = pod.pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let finished = matches!(phase, Some("Succeeded" | "Failed"));
        let wanted = pod.pod.status.as_ref().and_then(|s| s.nominated_node_name.as_deref());
        match pod.node_name() {
            None if !finished && !self.assumed.contains(&pod.uid) => {
                if let Some(node) = wanted.filter(|n| !n.is_empty()) {
                    self.nominate(pod, node);
                }
            }
            Some(node) if !finished => {
                self.assumed.remove(&pod.uid);
                self.place(node, Arc::clone(pod));
            }
            None if self.assumed.contains(&pod.uid) && !finished => {}
            _ => self.remove_pod(&pod.uid),
        }
    }

    /// Counts a pod on the node that was chosen for it.
    pub fn assume(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.place(node, Arc::clone(pod));
        self.assumed.insert(pod.uid.clone());
    }

    /// Takes an assumption back: the binding failed.
    pub fn forget(&mut self, uid: &str) {
        if self.assumed.remove(uid) {
            self.remove_pod(uid);
        }
    }

    /// Whether a pod has a node, or one is kept for it.
    pub fn holds(&self, uid: &str) -> bool {
        self.placed.contains_key(uid) || self.nominated.contains_key(uid)
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains(uid)
    }

    /// Keeps a node's room for a pod, from those that are not above it.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.nominated.insert(pod.uid.clone(), (node.to_owned(), Arc::clone(pod)));
    }

    pub fn withdraw(&mut self, uid: &str) {
        self.nominated.remove(uid);
    }

    /// The node that is kept for a pod.
    pub fn nominated(&self, uid: &str) -> Option<&str> {
        self.nominated.get(uid).map(|(node, _)| node.as_str())
    }

    /// Pods below a priority that a node is kept for.
    pub fn nominated_below(&self, node: &str, priority: i32) -> Vec<Arc<PodInfo>> {
        let there = self.nominated.values().filter(|(n, p)| n == node && p.priority() < priority);
        there.map(|(_, p)| Arc::clone(p)).collect()
    }

    /// Pods that come to a node before this one: it is kept for them.
    pub fn coming(&self, node: &str, pod: &PodInfo) -> Vec<Arc<PodInfo>> {
        if self.nominated.is_empty() {
            return Vec::new();
        }
        let before = |(n, p): &&(String, Arc<PodInfo>)| {
            n == node && p.uid != pod.uid && p.priority() >= pod.priority()
        };
        self.nominated.values().filter(before).map(|(_, p)| Arc::clone(p)).collect()
    }

    fn place(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.nominated.remove(&pod.uid);
        self.displace(&pod.uid);
        let slot = self.slot(node);
        self.count_claims(&pod, true);
        self.with_affinity += usize::from(pod.affinity);
        let kin = self.join(&pod, slot);
        self.placed.insert(pod.uid.clone(), Placed { slot, kin });
        self.slots[slot].add(pod);
    }

    fn displace(&mut self, uid: &str) {
        let Some(Placed { slot, kin }) = self.placed.remove(uid) else { return };
        if let Some(pod) = self.slots[slot].pods.iter().find(|p| p.uid == uid).cloned() {
            self.count_claims(&pod, false);
            self.with_affinity -= usize::from(pod.affinity);
            self.slots[slot].remove(uid);
        }
        self.leave(&kin, slot);
        self.release(slot);
    }

    /// Counts a pod among those that are alike; their key.
    fn join(&mut self, pod: &Arc<PodInfo>, slot: usize) -> Arc<str> {
        let text = likeness(&pod.pod);
        let key = match self.kins.get_key_value(text.as_str()) {
            Some((key, _)) => Arc::clone(key),
            None => text.into(),
        };
        let new = || Kin { one: Arc::clone(pod), nodes: HashMap::new() };
        let kin = self.kins.entry(Arc::clone(&key)).or_insert_with(new);
        *kin.nodes.entry(slot).or_insert(0) += 1;
        key
    }

    /// Counts one of these pods less on a node. With the last of them their key goes.
    fn leave(&mut self, key: &str, slot: usize) {
        let Some(kin) = self.kins.get_mut(key) else { return };
        if let Some(n) = kin.nodes.get_mut(&slot) {
            *n -= 1;
            if *n == 0 {
                kin.nodes.remove(&slot);
            }
        }
        if kin.nodes.is_empty() {
            self.kins.remove(key);
        }
    }

    /// How many placed pods use a claim.
    pub fn users_of_claim(&self, claim: &Key) -> usize {
        self.claim_users.get(claim).copied().unwrap_or(0)
    }

    fn count_claims(&mut self, pod: &PodInfo, there: bool) {
        for (name, _) in &pod.claims {
            let key = Key::new(pod.namespace(), name);
            let n = self.claim_users.entry(key.clone()).or_insert(0);
            *n = if there { *n + 1 } else { n.saturating_sub(1) };
            if *n == 0 {
                self.claim_users.remove(&key);
            }
        }
    }

    pub fn remove_pod(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.nominated.remove(uid);
        self.displace(uid);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::{Value, json};

    pub fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
        labelled(name, json!({}), spec)
    }

    pub fn labelled(name: &str, labels: Value, spec: Value) -> Arc<PodInfo> {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "labels": labels},
            "spec": spec,
        });
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod"))))
    }

    pub fn node(name: &str, extra: Value) -> Arc<Node> {
        let mut node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
        });
        for part in ["spec", "status"] {
            for (k, v) in extra.get(part).and_then(Value::as_object).into_iter().flatten() {
                node[part][k] = v.clone();
            }
        }
        for (k, v) in extra.get("labels").and_then(Value::as_object).into_iter().flatten() {
            node["metadata"]["labels"][k] = v.clone();
        }
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    #[test]
    fn an_assumed_pod_counts_until_bound_or_forgotten() {
        let asks = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        let waiting = pod("p", asks.clone());
        let mut bound = asks;
        bound["nodeName"] = json!("n");
        let bound = pod("p", bound);
        let used = |s: &Snapshot| s.node("n").expect("a node").requested.milli_cpu;

        let mut snapshot = Snapshot::default();
        snapshot.set_node("n", Some(node("n", json!({}))));
        snapshot.assume(&waiting, "n");
        snapshot.set_pod(&waiting);
        assert_eq!(used(&snapshot), 1000, "an old view of the pod takes nothing back");
        snapshot.set_pod(&bound);
        assert_eq!(used(&snapshot), 1000, "counted once");
        snapshot.forget("p");
        assert_eq!(used(&snapshot), 1000, "bound: no longer an assumption");
        snapshot.remove_pod("p");
        assert_eq!(used(&snapshot), 0);

        assert!(!snapshot.holds("p"));
        snapshot.nominate(&waiting, "n");
        assert!(snapshot.holds("p"), "a node is kept for it");
        snapshot.assume(&waiting, "n");
        assert!(snapshot.holds("p"));
        snapshot.forget("p");
        assert_eq!((used(&snapshot), snapshot.holds("p")), (0, false));
    }

    #[test]
    fn nodes_come_from_all_zones_in_turn_and_leave_their_slots() {
        let mut snapshot = Snapshot::default();
        let zone = |zone: &str| json!({"labels": {"topology.kubernetes.io/zone": zone}});
        for (name, place) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b")] {
            snapshot.set_node(name, Some(node(name, zone(place))));
        }
        let names = |s: &Snapshot| s.nodes().map(|n| n.name().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(&snapshot), ["a1", "b1", "a2", "a3"]);
        let domains = |s: &Snapshot| s.topology("topology.kubernetes.io/zone").len();
        assert_eq!(domains(&snapshot), 2);
        snapshot.set_pod(&pod("p", json!({"nodeName": "b1"})));
        snapshot.set_node("b1", None);
        assert_eq!((names(&snapshot).join(" ").as_str(), domains(&snapshot)), ("a1 a2 a3", 1));
        snapshot.remove_pod("p");
        snapshot.set_node("c1", Some(node("c1", zone("c"))));
        assert_eq!((snapshot.slots(), names(&snapshot)[1].as_str()), (4, "c1"), "a slot again");
        snapshot.set_node("c1", Some(node("c1", zone("a"))));
        assert_eq!((names(&snapshot).join(" ").as_str(), domains(&snapshot)), ("a1 a2 a3 c1", 1));
    }

    #[test]
    fn pods_that_are_alike_are_counted_together() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node("n", Some(node("n", json!({}))));
        let told = |s: &Snapshot| {
            let mut all: Vec<String> = s
                .kins()
                .map(|k| format!("{:?} {}", k.one.labels(), k.places().map(|p| p.1).sum::<i64>()))
                .collect();
            all.sort();
            all.join(", ")
        };
        let web = |name: &str| labelled(name, json!({"a": "web"}), json!({"nodeName": "n"}));
        snapshot.set_pod(&web("1"));
        snapshot.set_pod(&web("2"));
        snapshot.set_pod(&web("2"));
        assert_eq!(told(&snapshot), "Some({\"a\": \"web\"}) 2");
        assert!(Arc::ptr_eq(&snapshot.placed["1"].kin, &snapshot.placed["2"].kin), "one text");
        snapshot.set_pod(&labelled("2", json!({"a": "db"}), json!({"nodeName": "n"})));
        assert_eq!(told(&snapshot), "Some({\"a\": \"db\"}) 1, Some({\"a\": \"web\"}) 1");
        snapshot.remove_pod("1");
        snapshot.remove_pod("2");
        assert_eq!((told(&snapshot).as_str(), snapshot.kins.len()), ("", 0));
    }

    #[test]
    fn pods_of_a_node_not_yet_seen_are_counted_when_it_comes() {
        let mut snapshot = Snapshot::default();
        snapshot.set_pod(&pod("p", json!({"nodeName": "n"})));
        assert!(snapshot.is_empty());
        snapshot.set_node("n", Some(node("n", json!({}))));
        assert_eq!(snapshot.node("n").map(|n| n.pods.len()), Some(1));
    }
}
