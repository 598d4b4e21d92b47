//! Claims, volumes and what else decides where a pod's volumes can be: kept current from the
//! caches, with the bindings that are decided but not yet seen (upstream's assume caches).

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;
use std::sync::Arc;

use apimachinery::quantity::Quantity;
use client::Key;
use client::matching::selects;
use client::volumes::{
    BIND_COMPLETED, SELECTED_NODE, asked, claim_ref, class_of_claim, has_modes, held, is_delayed,
    is_for, is_free, reachable, suits, volume_name,
};
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Volumes of such a class are made by hand.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// How a pod's unbound claims get their volumes on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Claims, and the volumes that are there for them.
    pub bind: Vec<(Key, String)>,
    /// Claims for which a volume is to be made.
    pub provision: Vec<Key>,
}

impl Decision {
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }

    pub fn claims(&self) -> impl Iterator<Item = &Key> {
        self.bind.iter().map(|(claim, _)| claim).chain(&self.provision)
    }
}

/// What keeps volumes off a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    NodeAffinity,
    NoVolume,
    NoSpace,
    VolumeGone,
}

impl Conflict {
    /// Upstream's words.
    pub fn text(self) -> &'static str {
        match self {
            Self::NodeAffinity => "node(s) had volume node affinity conflict",
            Self::NoVolume => "node(s) didn't find available persistent volumes to bind",
            Self::NoSpace => "node(s) did not have enough free storage",
            Self::VolumeGone => {
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"
            }
        }
    }
}

/// Everything about volumes that the scheduler looks at.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    claims: HashMap<Key, Arc<PersistentVolumeClaim>>,
    volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub classes: HashMap<String, Arc<StorageClass>>,
    pub drivers: HashMap<String, Arc<CSIDriver>>,
    pub nodes: HashMap<String, Arc<CSINode>>,
    pub capacities: HashMap<Key, Arc<CSIStorageCapacity>>,
    /// By the pod's uid: what was decided for it, and the node; until its binding has ended.
    assumed: HashMap<String, (String, Decision)>,
}

fn annotation<'o>(meta: &'o ObjectMeta, name: &str) -> Option<&'o str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

pub fn selected_node(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE)
}

/// Bound on both sides, and the volume controller has said so.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

/// Whether a node is among a class's allowed topologies; no terms allow all.
fn allowed(terms: &[TopologySelectorTerm], node: &Node) -> bool {
    let label = |key: &String| node.metadata.labels.as_ref().and_then(|l| l.get(key));
    let matches = |term: &TopologySelectorTerm| {
        let all = term.match_label_expressions.as_deref().unwrap_or_default();
        !all.is_empty() && all.iter().all(|e| label(&e.key).is_some_and(|v| e.values.contains(v)))
    };
    terms.is_empty() || terms.iter().any(matches)
}

/// The largest volume that there is room for, where a driver tells of it.
pub fn largest(room: &CSIStorageCapacity) -> Option<Quantity> {
    let limit = room.maximum_volume_size.as_ref().or(room.capacity.as_ref());
    limit.and_then(|q| Quantity::from_str(&q.0).ok())
}

/// The nodes that a volume can be used on, where that is by the value of one label, as it is for local
/// volumes.
fn places(volume: &PersistentVolume) -> Option<(&str, &[String])> {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?;
    let [term] = affinity.required.as_ref()?.node_selector_terms.as_slice() else { return None };
    match (term.match_expressions.as_deref(), &term.match_fields) {
        (Some([only]), None) if only.operator == "In" => Some((&only.key, only.values.as_deref()?)),
        _ => None,
    }
}

/// A volume that a claim could have.
#[derive(Clone)]
struct Choice<'v> {
    size: Quantity,
    name: &'v str,
    volume: &'v PersistentVolume,
}

/// A claim without a volume, and those it could have. They are found once for all nodes.
struct Wanted<'v> {
    claim: Arc<PersistentVolumeClaim>,
    key: Key,
    /// The node for which its volume is to be made.
    chosen: Option<String>,
    /// The one volume for it.
    reserved: Option<Choice<'v>>,
    /// Free ones, of which each is to be asked whether a node can use it.
    anywhere: Vec<Choice<'v>>,
    /// Free ones by the label and its value that nodes must have to use them.
    places: HashMap<&'v str, HashMap<&'v str, Vec<Choice<'v>>>>,
}

impl Wanted<'_> {
    /// The smallest volume that is there on a node, but for those that others take.
    fn find(&self, node: &Node, taken: &Decision) -> Option<String> {
        if let Some(reserved) = &self.reserved {
            return reachable(reserved.volume, node).then(|| reserved.name.to_owned());
        }
        let label = |key: &str| node.metadata.labels.as_ref().and_then(|l| l.get(key));
        let here = self.places.iter().filter_map(|(key, values)| values.get(label(key)?.as_str()));
        let anywhere = self.anywhere.iter().filter(|c| reachable(c.volume, node));
        let free = |c: &&Choice<'_>| taken.bind.iter().all(|(_, other)| other != c.name);
        let all = here.flatten().chain(anywhere).filter(free);
        all.min_by_key(|c| (&c.size, c.name)).map(|c| c.name.to_owned())
    }
}

/// What can become of a pod's claims.
pub struct Look<'v> {
    all: &'v Volumes,
    bound: Vec<Arc<PersistentVolumeClaim>>,
    unbound: Vec<Wanted<'v>>,
}

impl Look<'_> {
    /// How they get their volumes on a node; of those that have one, only that it can be used there.
    ///
    /// # Errors
    /// What keeps them off it.
    pub fn decide(&self, node: &Node) -> Result<Decision, Vec<Conflict>> {
        let mut conflicts = Vec::new();
        let mut note = |conflict| {
            if !conflicts.contains(&conflict) {
                conflicts.push(conflict);
            }
        };
        for claim in &self.bound {
            match self.all.volumes.get(volume_name(claim)) {
                None => note(Conflict::VolumeGone),
                Some(volume) if !reachable(volume, node) => note(Conflict::NodeAffinity),
                Some(_) => {}
            }
        }
        let mut decision = Decision::default();
        for wanted in &self.unbound {
            match &wanted.chosen {
                Some(chosen) if Some(chosen) != node.metadata.name.as_ref() => {
                    note(Conflict::NoVolume);
                    continue;
                }
                Some(_) => {}
                None => {
                    if let Some(volume) = wanted.find(node, &decision) {
                        decision.bind.push((wanted.key.clone(), volume));
                        continue;
                    }
                }
            }
            match self.all.may_be_made(&wanted.claim, node) {
                None => decision.provision.push(wanted.key.clone()),
                Some(conflict) => note(conflict),
            }
        }
        if conflicts.is_empty() { Ok(decision) } else { Err(conflicts) }
    }
}

/// Whether a version of an object is older than the one that is known: what was written by the
/// scheduler itself is known before caches show it (resourceVersions compare: KEP-5504).
fn is_stale(known: &ObjectMeta, other: &ObjectMeta) -> bool {
    let version = |m: &ObjectMeta| m.resource_version.as_ref().and_then(|v| v.parse::<u64>().ok());
    known.uid == other.uid && version(other) < version(known)
}

impl Volumes {
    pub fn claim(&self, key: &Key) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(key)
    }

    pub fn volume(&self, name: &str) -> Option<&Arc<PersistentVolume>> {
        self.volumes.get(name)
    }

    /// A claim as it is now; `None`: it is gone.
    pub fn set_claim(&mut self, key: &Key, claim: Option<Arc<PersistentVolumeClaim>>) {
        match claim {
            Some(new) => {
                let known = self.claims.get(key);
                if known.is_none_or(|known| !is_stale(&known.metadata, &new.metadata)) {
                    self.claims.insert(key.clone(), new);
                }
            }
            None => {
                self.claims.remove(key);
            }
        }
    }

    /// A volume as it is now; `None`: it is gone.
    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<PersistentVolume>>) {
        match volume {
            Some(new) => {
                let known = self.volumes.get(name);
                if known.is_none_or(|known| !is_stale(&known.metadata, &new.metadata)) {
                    self.volumes.insert(name.to_owned(), new);
                }
            }
            None => {
                self.volumes.remove(name);
            }
        }
    }

    pub fn class(&self, claim: &PersistentVolumeClaim) -> Option<&StorageClass> {
        self.classes.get(class_of_claim(claim)?).map(|c| &**c)
    }

    /// Whether a claim waits for the first pod that uses it.
    pub fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        is_delayed(self.class(claim))
    }

    /// The node that was chosen for a claim: by what is written, or by what is decided.
    fn chosen_node<'v>(&'v self, claim: &'v PersistentVolumeClaim) -> Option<&'v str> {
        let key = Key::of(claim);
        let mut assumed = self.assumed.values();
        let decided = assumed.find(|(_, d)| d.provision.contains(&key));
        decided.map(|(node, _)| node.as_str()).or(selected_node(claim))
    }

    /// How the claims of a pod, all of them, may get their volumes; to be asked for each node.
    pub fn look(&self, claims: &[Arc<PersistentVolumeClaim>]) -> Look<'_> {
        let (bound, unbound): (Vec<_>, Vec<_>) = claims.iter().cloned().partition(|c| is_bound(c));
        let mut unbound: Vec<Wanted<'_>> = unbound.into_iter().map(|c| self.wanted(c)).collect();
        // Small ones first, so that they do not take what large ones need.
        unbound.sort_by_key(|w| (asked(&w.claim), w.key.clone()));
        Look { all: self, bound, unbound }
    }

    /// The volumes that a claim could have.
    fn wanted(&self, claim: Arc<PersistentVolumeClaim>) -> Wanted<'_> {
        let key = Key::of(&*claim);
        let chosen = self.chosen_node(&claim).map(str::to_owned);
        let mut wanted = Wanted {
            key,
            chosen,
            reserved: None,
            anywhere: Vec::new(),
            places: HashMap::new(),
            claim,
        };
        let decided: HashMap<&str, &Key> = self
            .assumed
            .values()
            .flat_map(|(_, d)| d.bind.iter().map(|(claim, volume)| (volume.as_str(), claim)))
            .collect();
        for (name, volume) in &self.volumes {
            let decided = decided.get(name.as_str()).copied();
            if decided.is_some_and(|other| *other != wanted.key) || !suits(volume, &wanted.claim) {
                continue;
            }
            let choice = Choice { size: held(volume), name, volume };
            if is_for(volume, &wanted.claim) || decided.is_some() {
                wanted.reserved = Some(choice);
                break;
            }
            if !is_free(volume, &wanted.claim) || !has_modes(volume, &wanted.claim) {
                continue;
            }
            match places(volume) {
                None => wanted.anywhere.push(choice),
                Some((key, values)) => {
                    let by_value = wanted.places.entry(key).or_default();
                    for value in values {
                        by_value.entry(value).or_default().push(choice.clone());
                    }
                }
            }
        }
        wanted
    }

    /// Why no volume can be made for a claim on a node.
    fn may_be_made(&self, claim: &PersistentVolumeClaim, node: &Node) -> Option<Conflict> {
        let Some(class) = self.class(claim) else { return Some(Conflict::NoVolume) };
        let provisioner = class.provisioner.as_str();
        let terms = class.allowed_topologies.as_deref().unwrap_or_default();
        if provisioner.is_empty() || provisioner == NO_PROVISIONER || !allowed(terms, node) {
            return Some(Conflict::NoVolume);
        }
        // Drivers that tell what is left are believed.
        let driver = self.drivers.get(provisioner);
        if driver.and_then(|d| d.spec.storage_capacity) != Some(true) {
            return None;
        }
        let (size, labels) = (asked(claim), node.metadata.labels.as_ref());
        let enough = |c: &Arc<CSIStorageCapacity>| {
            Some(c.storage_class_name.as_str()) == class_of_claim(claim)
                && largest(c).is_some_and(|limit| limit >= size)
                && c.node_topology.as_ref().is_some_and(|s| selects(s, labels))
        };
        match self.capacities.values().any(enough) {
            true => None,
            false => Some(Conflict::NoSpace),
        }
    }

    /// Counts a decision as made.
    pub fn assume(&mut self, pod: &str, node: &str, decision: Decision) {
        if !decision.is_empty() {
            self.assumed.insert(pod.to_owned(), (node.to_owned(), decision));
        }
    }

    /// What was decided for a pod, by its uid.
    pub fn assumed(&self, pod: &str) -> Option<(&str, &Decision)> {
        self.assumed.get(pod).map(|(node, decision)| (node.as_str(), decision))
    }

    /// The binding has ended, one way or the other.
    pub fn forget(&mut self, pod: &str) {
        self.assumed.remove(pod);
    }

    /// Whether what was decided for a pod, and written, has come about.
    ///
    /// # Errors
    /// It never will.
    pub fn has_come_about(&self, pod: &str, node: &Node) -> Result<bool, String> {
        let Some((name, decision)) = self.assumed(pod) else { return Ok(true) };
        for (claim, volume) in &decision.bind {
            let Some(volume) = self.volumes.get(volume) else {
                return Err(format!("persistentvolume {volume:?} not found"));
            };
            let uid = self.claims.get(claim).and_then(|c| c.metadata.uid.as_ref());
            if claim_ref(volume).and_then(|r| r.uid.as_ref()) != uid {
                let name = volume.metadata.name.as_deref().unwrap_or_default();
                return Err(format!("ClaimRef got reset for pv {name:?}"));
            }
        }
        let mut all = true;
        for key in decision.claims() {
            let Some(claim) = self.claims.get(key) else {
                return Err(format!("persistentvolumeclaim {:?} not found", key.name));
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim {:?} is being deleted", key.name));
            }
            if !is_bound(claim) {
                // A provisioner that cannot make it here takes the node back.
                let given_up = decision.provision.contains(key)
                    && selected_node(claim).is_none_or(|chosen| chosen != name);
                if given_up {
                    return Err(format!("provisioning failed for PVC {:?}", key.name));
                }
                all = false;
                continue;
            }
            match self.volumes.get(volume_name(claim)) {
                None => all = false,
                Some(volume) if !reachable(volume, node) => {
                    let volume = volume_name(claim);
                    return Err(format!("pv {volume:?} node affinity doesn't match node {name:?}"));
                }
                Some(_) => {}
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::snapshot::tests::node;
    use serde_json::{Value, json};

    pub fn claim(name: &str, more: Value) -> Arc<PersistentVolumeClaim> {
        let mut claim = json!({
            "metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": "5"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "late",
                "resources": {"requests": {"storage": "1Gi"}}},
        });
        apimachinery::patch::merge::apply(&mut claim, &more);
        Arc::new(serde_json::from_value(claim).expect("a claim"))
    }

    /// A volume of a node, or of all.
    pub fn volume(name: &str, size: &str, at: &str, more: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({
            "metadata": {"name": name, "uid": name, "resourceVersion": "5"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "late"},
            "status": {"phase": "Available"},
        });
        if !at.is_empty() {
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In",
                    "values": [at]}]}]}});
        }
        apimachinery::patch::merge::apply(&mut volume, &more);
        Arc::new(serde_json::from_value(volume).expect("a volume"))
    }

    pub fn class(name: &str, provisioner: &str, more: Value) -> Arc<StorageClass> {
        let mut class = json!({"metadata": {"name": name}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"});
        apimachinery::patch::merge::apply(&mut class, &more);
        Arc::new(serde_json::from_value(class).expect("a class"))
    }

    pub fn with(
        claims: &[Arc<PersistentVolumeClaim>],
        volumes: &[Arc<PersistentVolume>],
        class: &Arc<StorageClass>,
    ) -> Volumes {
        let mut all = Volumes::default();
        for claim in claims {
            all.set_claim(&Key::of(&**claim), Some(Arc::clone(claim)));
        }
        for volume in volumes {
            let name = volume.metadata.name.clone().unwrap_or_default();
            all.set_volume(&name, Some(Arc::clone(volume)));
        }
        let name = class.metadata.name.clone().unwrap_or_default();
        all.classes.insert(name, Arc::clone(class));
        all
    }

    fn told(decision: Result<Decision, Vec<Conflict>>) -> String {
        match decision {
            Ok(d) => {
                let bind = d.bind.iter().map(|(claim, volume)| format!("{}={volume}", claim.name));
                let made = d.provision.iter().map(|claim| format!("{}=new", claim.name));
                bind.chain(made).collect::<Vec<_>>().join(" ")
            }
            Err(why) => why.iter().map(|c| c.text()).collect::<Vec<_>>().join(", "),
        }
    }

    #[test]
    fn volumes_are_found_or_made_where_the_node_is() {
        let (local, csi) =
            (class("late", NO_PROVISIONER, json!({})), class("late", "csi.example.com", json!({})));
        let a = || claim("a", json!({}));
        let volumes = [
            volume("big", "9Gi", "n1", json!({})),
            volume("fit", "2Gi", "n1", json!({})),
            volume("small", "1Mi", "n1", json!({})),
            volume(
                "taken",
                "1Gi",
                "n1",
                json!({"spec": {"claimRef": {"namespace": "ns", "name": "x"}}}),
            ),
            volume("other-class", "1Gi", "n1", json!({"spec": {"storageClassName": "x"}})),
            volume("block", "1Gi", "n1", json!({"spec": {"volumeMode": "Block"}})),
            volume("released", "1Gi", "n1", json!({"status": {"phase": "Released"}})),
            volume("elsewhere", "1Gi", "n2", json!({})),
        ];
        let big = claim("b", json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}));
        let bound = |volume: &str| {
            claim(
                "a",
                json!({"metadata": {"annotations": {BIND_COMPLETED: "yes"}},
                "spec": {"volumeName": volume}}),
            )
        };
        let chosen =
            |node: &str| claim("a", json!({"metadata": {"annotations": {SELECTED_NODE: node}}}));
        let nothing = Conflict::NoVolume.text();
        for (claims, class, volumes, wanted) in [
            (vec![a()], &local, &volumes[..], "a=fit"),
            // The large one needs what the small one could have had as well.
            (vec![big.clone(), a()], &local, &volumes[..], "a=fit b=big"),
            (vec![a()], &local, &volumes[2..], nothing),
            (vec![a()], &csi, &volumes[..], "a=fit"),
            (vec![a()], &csi, &volumes[2..], "a=new"),
            (vec![chosen("n1")], &csi, &volumes[..], "a=new"),
            (vec![chosen("n2")], &csi, &volumes[..], nothing),
            (vec![bound("fit")], &local, &volumes[..], ""),
            (vec![bound("elsewhere")], &local, &volumes[..], Conflict::NodeAffinity.text()),
            (vec![bound("gone")], &local, &volumes[..], Conflict::VolumeGone.text()),
        ] {
            let all = with(&claims, volumes, class);
            assert_eq!(
                told(all.look(&claims).decide(&node("n1", json!({})))),
                wanted,
                "{claims:?}"
            );
        }
    }

    #[test]
    fn what_is_decided_for_one_pod_is_not_for_another() {
        let (a, b) = (claim("a", json!({})), claim("b", json!({})));
        let volumes = [volume("v", "1Gi", "", json!({}))];
        let local = class("late", NO_PROVISIONER, json!({}));
        let mut all = with(&[a.clone(), b.clone()], &volumes, &local);
        let n = node("n1", json!({}));
        let decision = all.look(std::slice::from_ref(&a)).decide(&n).expect("a volume");
        all.assume("p", "n1", decision);
        assert_eq!(told(all.look(std::slice::from_ref(&b)).decide(&n)), Conflict::NoVolume.text());
        assert_eq!(told(all.look(&[a]).decide(&n)), "a=v", "another pod of the same claim");
        all.forget("p");
        assert_eq!(told(all.look(&[b]).decide(&n)), "b=v");
    }

    #[test]
    fn room_is_looked_for_where_a_driver_tells_of_it() {
        let a = claim("a", json!({}));
        let csi = class(
            "late",
            "csi.example.com",
            json!({"allowedTopologies": [
            {"matchLabelExpressions": [{"key": "zone", "values": ["z"]}]}]}),
        );
        let mut all = with(std::slice::from_ref(&a), &[], &csi);
        let at = |zone: &str| node("n1", json!({"labels": {"zone": zone}}));
        let decide =
            |all: &Volumes, zone| told(all.look(std::slice::from_ref(&a)).decide(&at(zone)));
        assert_eq!(decide(&all, "y"), Conflict::NoVolume.text());
        assert_eq!(decide(&all, "z"), "a=new");
        let driver =
            json!({"metadata": {"name": "csi.example.com"}, "spec": {"storageCapacity": true}});
        let driver = serde_json::from_value(driver).expect("a driver");
        all.drivers.insert("csi.example.com".into(), Arc::new(driver));
        assert_eq!(decide(&all, "z"), Conflict::NoSpace.text());
        for (size, wanted) in [("1Mi", Conflict::NoSpace.text()), ("1Gi", "a=new")] {
            let capacity = json!({"metadata": {"name": "c"}, "storageClassName": "late",
                "capacity": size, "nodeTopology": {"matchLabels": {"zone": "z"}}});
            let capacity = serde_json::from_value(capacity).expect("a capacity");
            all.capacities.insert(Key::new("ns", "c"), Arc::new(capacity));
            assert_eq!(decide(&all, "z"), wanted);
        }
    }

    #[test]
    fn a_binding_comes_about_or_fails() {
        let n = node("n1", json!({}));
        let csi = class("late", "csi.example.com", json!({}));
        let chosen = json!({"metadata": {"annotations": {SELECTED_NODE: "n1"}}});
        let mut bound = chosen.clone();
        bound["metadata"]["annotations"][BIND_COMPLETED] = "yes".into();
        bound["spec"]["volumeName"] = "v".into();
        for (state, at, wanted) in [
            (chosen.clone(), "n1", Ok(false)),
            (bound.clone(), "n1", Ok(true)),
            (bound, "n2", Err("pv \"v\" node affinity doesn't match node \"n1\"".to_owned())),
            (json!({}), "n1", Err("provisioning failed for PVC \"a\"".to_owned())),
        ] {
            let mut all =
                with(&[claim("a", state.clone())], &[volume("v", "1Gi", at, json!({}))], &csi);
            let provision = vec![Key::new("ns", "a")];
            all.assume("p", "n1", Decision { provision, ..Decision::default() });
            assert_eq!(all.has_come_about("p", &n), wanted, "{state}");
        }
    }

    #[test]
    fn an_older_view_takes_back_nothing() {
        let mut all = Volumes::default();
        let (key, at) = (Key::new("ns", "a"), |v: &str| {
            claim("a", json!({"metadata": {"resourceVersion": v}}))
        });
        for (version, wanted) in [("5", "5"), ("10", "10"), ("9", "10"), ("11", "11")] {
            all.set_claim(&key, Some(at(version)));
            let known = all.claim(&key).and_then(|c| c.metadata.resource_version.clone());
            assert_eq!(known.as_deref(), Some(wanted));
        }
    }
}
