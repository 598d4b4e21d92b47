//! VolumeBinding, VolumeRestrictions, VolumeZone and NodeVolumeLimits: where a pod's volumes are, or
//! can be made.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use client::volumes::{SELECTED_NODE, class_of_claim, reserve, volume_name};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use serde_json::json;

use super::hints;
use crate::args::VolumeBindingArgs;
use crate::framework::{
    ClusterEvent, Filter, Plugin, PreBind, PreFilter, Refusal, Reserve, Waiter, Write,
};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};
use crate::volumes::{Look, Volumes, is_bound, selected_node};

pub struct VolumeBinding {
    patience: Duration,
}
pub struct VolumeRestrictions;
pub struct VolumeZone;
pub struct NodeVolumeLimits;

/// Labels of a volume that say where it is, and what the same of a node is called today.
const PLACES: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

fn not_found(kind: &str, name: &str) -> Refusal {
    Refusal::unresolvable(format!("{kind} {name:?} not found"))
}

/// Claims that a pod names: not those that are made for it.
fn named(pod: &PodInfo) -> impl Iterator<Item = &String> {
    pod.claims.iter().filter(|(_, ephemeral)| !ephemeral).map(|(name, _)| name)
}

/// The pod's claims, all of which can be used.
fn usable(pod: &PodInfo, all: &Volumes) -> Result<Vec<Arc<PersistentVolumeClaim>>, Refusal> {
    let mut claims: Vec<Arc<PersistentVolumeClaim>> = Vec::new();
    for (name, ephemeral) in &pod.claims {
        let Some(claim) = all.claim(&Key::new(pod.namespace(), name)) else {
            return Err(match ephemeral {
                false => not_found("persistentvolumeclaim", name),
                true => Refusal::unresolvable(format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \
                     {name:?}"
                )),
            });
        };
        let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase == Some("Lost") {
            let volume = volume_name(claim);
            return Err(Refusal::unresolvable(format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            )));
        }
        if claim.metadata.deletion_timestamp.is_some() {
            let why = format!("persistentvolumeclaim {name:?} is being deleted");
            return Err(Refusal::unresolvable(why));
        }
        let mut owners = claim.metadata.owner_references.iter().flatten();
        if *ephemeral && !owners.any(|o| o.controller == Some(true) && o.uid == pod.uid) {
            return Err(Refusal::unresolvable(format!(
                "PVC {} was not created for pod {} (pod is not owner)",
                Key::of(&**claim),
                pod.key
            )));
        }
        if !claims.iter().any(|other| Arc::ptr_eq(other, claim)) {
            claims.push(Arc::clone(claim));
        }
    }
    Ok(claims)
}

impl VolumeBinding {
    pub fn new(args: &VolumeBindingArgs) -> Self {
        let seconds = u64::try_from(args.bind_timeout_seconds).unwrap_or(0);
        Self { patience: Duration::from_secs(seconds) }
    }
}

struct Bindings<'a>(Look<'a>);

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn helps(&self, event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
        hints::binding(event, pod)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }

    fn reserve(&self) -> Option<&dyn Reserve> {
        Some(self)
    }

    fn pre_bind(&self) -> Option<&dyn PreBind> {
        Some(self)
    }
}

impl PreFilter for VolumeBinding {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        if pod.claims.is_empty() {
            return Ok(None);
        }
        let all = &snapshot.volumes;
        let claims = usable(pod, all)?;
        let waits = |c: &Arc<PersistentVolumeClaim>| all.is_delayed(c) && volume_name(c).is_empty();
        if claims.iter().any(|c| !is_bound(c) && !waits(c)) {
            let why = "pod has unbound immediate PersistentVolumeClaims";
            return Err(Refusal::unresolvable(why));
        }
        Ok(Some(Box::new(Bindings(all.look(&claims)))))
    }
}

impl Filter for Bindings<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(node) = &node.node else { return Err(Refusal::unresolvable("no such node")) };
        let conflicts = match self.0.decide(node) {
            Ok(_) => return Ok(()),
            Err(conflicts) => conflicts,
        };
        let reasons = conflicts.iter().map(|c| c.text().into()).collect();
        Err(Refusal { reasons, unresolvable: true })
    }
}

impl Reserve for VolumeBinding {
    fn reserve(&self, pod: &PodInfo, node: &str, snapshot: &mut Snapshot) -> Result<(), String> {
        if pod.claims.is_empty() {
            return Ok(());
        }
        let node = snapshot.node(node).and_then(|n| n.node.clone());
        let Some(node) = node else { return Err("the node is gone".to_owned()) };
        let all = &mut snapshot.volumes;
        let claims = usable(pod, all).map_err(|refusal| refusal.reasons.join(", "))?;
        let decision = all.look(&claims).decide(&node).map_err(|conflicts| {
            conflicts.iter().map(|c| c.text()).collect::<Vec<_>>().join(", ")
        })?;
        all.assume(&pod.uid, node.metadata.name.as_deref().unwrap_or_default(), decision);
        Ok(())
    }

    fn ended(&self, pod: &PodInfo, snapshot: &mut Snapshot) {
        snapshot.volumes.forget(&pod.uid);
    }
}

impl PreBind for VolumeBinding {
    fn writes(&self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<Write> {
        let all = &snapshot.volumes;
        let Some((node, decision)) = all.assumed(&pod.uid) else { return Vec::new() };
        let bind = decision.bind.iter().filter_map(|(key, name)| {
            let (claim, volume) = (all.claim(key)?, all.volume(name)?);
            let mut patch = reserve(volume, claim)?;
            patch["metadata"]["uid"] = json!(volume.metadata.uid);
            patch["metadata"]["resourceVersion"] = json!(volume.metadata.resource_version);
            Some(Write::Volume(name.clone(), patch))
        });
        let provision = decision.provision.iter().filter_map(|key| {
            let claim = all.claim(key)?;
            if selected_node(claim) == Some(node) {
                return None;
            }
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid,
                "resourceVersion": claim.metadata.resource_version,
                "annotations": {SELECTED_NODE: node},
            }});
            Some(Write::Claim(key.clone(), patch))
        });
        bind.chain(provision).collect()
    }

    fn is_done(&self, pod: &PodInfo, snapshot: &Snapshot) -> Result<bool, String> {
        let Some((node, _)) = snapshot.volumes.assumed(&pod.uid) else { return Ok(true) };
        let Some(node) = snapshot.node(node).and_then(|n| n.node.clone()) else {
            return Err(format!("binding volumes: node {node:?} not found"));
        };
        let done = snapshot.volumes.has_come_about(&pod.uid, &node);
        done.map_err(|why| format!("binding volumes: {why}"))
    }

    fn patience(&self) -> (Duration, &'static str) {
        (self.patience, "binding volumes: context deadline exceeded")
    }
}

/// Claims that one pod alone may use, and the pods that do.
struct Alone<'a> {
    pod: &'a PodInfo,
    claims: Vec<Key>,
    used: usize,
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn helps(&self, event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
        hints::restrictions(event, pod)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

impl PreFilter for VolumeRestrictions {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        let mut alone = Alone { pod, claims: Vec::new(), used: 0 };
        for name in named(pod) {
            let key = Key::new(pod.namespace(), name);
            let Some(claim) = snapshot.volumes.claim(&key) else {
                return Err(not_found("persistentvolumeclaim", name));
            };
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref());
            if modes.unwrap_or_default().iter().any(|m| m == "ReadWriteOncePod") {
                alone.used += snapshot.users_of_claim(&key);
                alone.claims.push(key);
            }
        }
        Ok((!alone.claims.is_empty()).then(|| Box::new(alone) as Box<dyn Filter>))
    }
}

impl Filter for Alone<'_> {
    fn filter(&self, _node: &NodeInfo) -> Result<(), Refusal> {
        match self.used {
            0 => Ok(()),
            _ => Err(Refusal::new(
                "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode \
                 already in-use by another pod",
            )),
        }
    }

    fn changed(&mut self, _node: &NodeInfo, other: &PodInfo, comes: bool) {
        if other.namespace() != self.pod.namespace() {
            return;
        }
        let uses = |key: &&Key| named(other).any(|name| *name == key.name);
        let n = self.claims.iter().filter(uses).count();
        self.used = if comes { self.used + n } else { self.used.saturating_sub(n) };
    }
}

/// A label of a volume that says where it is, the same of a node today, and its values.
type Zone = (&'static str, &'static str, BTreeSet<String>);

/// Where bound volumes are.
struct Zones(Vec<Zone>);

/// Where a volume is, by its labels. One that names no place is passed over.
pub(super) fn zones_of(volume: &PersistentVolume) -> Vec<Zone> {
    let zone = |(label, today): (&'static str, &'static str)| {
        let value = volume.metadata.labels.as_ref()?.get(label)?;
        let values: BTreeSet<String> = value.split("__").map(|v| v.trim().to_owned()).collect();
        (!values.contains("")).then_some((label, today, values))
    };
    PLACES.into_iter().filter_map(zone).collect()
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn helps(&self, event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
        hints::zone(event, pod)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

impl PreFilter for VolumeZone {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        let (all, mut zones) = (&snapshot.volumes, Vec::new());
        for name in named(pod) {
            let Some(claim) = all.claim(&Key::new(pod.namespace(), name)) else {
                return Err(not_found("persistentvolumeclaim", name));
            };
            let volume = volume_name(claim);
            if volume.is_empty() {
                unbound_zone(all, claim)?;
                continue;
            }
            let Some(volume) = all.volume(volume) else {
                return Err(not_found("persistentvolume", volume));
            };
            zones.extend(zones_of(volume));
        }
        Ok((!zones.is_empty()).then(|| Box::new(Zones(zones)) as Box<dyn Filter>))
    }
}

/// A claim without a volume may be anywhere, if its volume comes after the pod's node is known.
fn unbound_zone(all: &Volumes, claim: &PersistentVolumeClaim) -> Result<(), Refusal> {
    let name = class_of_claim(claim).unwrap_or_default();
    if name.is_empty() {
        let why = "PersistentVolumeClaim had no pv name and storageClass name";
        return Err(Refusal::unresolvable(why));
    }
    match all.class(claim) {
        None => Err(not_found("storageclass.storage.k8s.io", name)),
        Some(_) if all.is_delayed(claim) => Ok(()),
        Some(_) => Err(Refusal::unresolvable("PersistentVolume had no name")),
    }
}

impl Filter for Zones {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        if PLACES.iter().all(|(label, _)| node.label(label).is_none()) {
            return Ok(());
        }
        let there = |(label, today, values): &Zone| {
            node.label(label).or(node.label(today)).is_some_and(|v| values.contains(v))
        };
        match self.0.iter().all(there) {
            true => Ok(()),
            false => Err(Refusal::unresolvable("node(s) had no available volume zone")),
        }
    }
}

/// Volumes by driver, each with a name of its own.
type Attached = HashMap<String, BTreeSet<String>>;

struct Limits<'a> {
    wanted: Attached,
    all: &'a Volumes,
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn helps(&self, event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
        hints::limits(event, pod)
    }

    fn pre_filter(&self) -> Option<&dyn PreFilter> {
        Some(self)
    }
}

/// Counts the volumes of drivers that a pod has on a node, or will have.
fn attach(pod: &PodInfo, all: &Volumes, attached: &mut Attached) {
    for (name, _) in &pod.claims {
        let key = Key::new(pod.namespace(), name);
        let Some(claim) = all.claim(&key) else { continue };
        let source = match all.volume(volume_name(claim)) {
            Some(volume) => volume.spec.as_ref().and_then(|s| s.csi.as_ref()),
            None => None,
        };
        let (driver, id) = match (source, all.class(claim)) {
            (Some(csi), _) => (csi.driver.clone(), csi.volume_handle.clone()),
            (None, Some(class)) if volume_name(claim).is_empty() => {
                (class.provisioner.clone(), format!("claim {key}"))
            }
            _ => continue,
        };
        attached.entry(driver).or_default().insert(id);
    }
}

impl PreFilter for NodeVolumeLimits {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Refusal> {
        let (all, mut wanted) = (&snapshot.volumes, Attached::new());
        attach(pod, all, &mut wanted);
        Ok((!wanted.is_empty()).then(|| Box::new(Limits { wanted, all }) as Box<dyn Filter>))
    }
}

impl Filter for Limits<'_> {
    fn filter(&self, node: &NodeInfo) -> Result<(), Refusal> {
        let Some(csi) = self.all.nodes.get(node.name()) else { return Ok(()) };
        let limit = |driver: &str| {
            let known = csi.spec.drivers.iter().find(|d| d.name == driver);
            let count = known.and_then(|d| d.allocatable.as_ref()).and_then(|a| a.count);
            count.and_then(|n| usize::try_from(n).ok())
        };
        let limited: Vec<_> =
            self.wanted.iter().filter_map(|(d, ids)| Some((d, ids, limit(d)?))).collect();
        if limited.is_empty() {
            return Ok(());
        }
        let mut attached = Attached::new();
        let users = node.pods.iter().filter(|p| !p.claims.is_empty());
        users.for_each(|p| attach(p, self.all, &mut attached));
        let none = BTreeSet::new();
        for (driver, ids, limit) in limited {
            let there = attached.get(driver).unwrap_or(&none);
            let more = ids.difference(there).count();
            if more > 0 && there.len() + more > limit {
                return Err(Refusal::new("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::tests::{node, pod};
    use crate::volumes::tests::{claim, class, volume, with};
    use serde_json::{Value, json};

    fn using(name: &str, claims: &[&str]) -> Arc<PodInfo> {
        let volumes: Vec<Value> = claims
            .iter()
            .map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}}))
            .collect();
        pod(name, json!({"volumes": volumes}))
    }

    /// One node, with labels, and these volumes.
    fn cluster(volumes: Volumes, labels: Value) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.set_node("n1", Some(node("n1", json!({"labels": labels}))));
        snapshot.volumes = volumes;
        snapshot
    }

    fn refusal(plugin: &dyn PreFilter, snapshot: &Snapshot, pod: &PodInfo) -> String {
        let refused = match plugin.prepare(pod, snapshot) {
            Ok(None) => return String::new(),
            Ok(Some(filter)) => filter.filter(snapshot.node("n1").expect("a node")),
            Err(refused) => Err(refused),
        };
        refused.err().map(|r| r.reasons.join(", ")).unwrap_or_default()
    }

    #[test]
    fn claims_that_cannot_be_used_are_told() {
        let late = class("late", "csi.example.com", json!({}));
        let binding = VolumeBinding::new(&VolumeBindingArgs::default());
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let lost = json!({"spec": {"volumeName": "v"}, "status": {"phase": "Lost"}});
        for (state, wanted) in [
            (json!({}), ""),
            (
                json!({"spec": {"storageClassName": "now"}}),
                "pod has unbound immediate PersistentVolumeClaims",
            ),
            (
                json!({"spec": {"volumeName": "v"}}),
                "pod has unbound immediate PersistentVolumeClaims",
            ),
            (deleted, "persistentvolumeclaim \"a\" is being deleted"),
            (lost, "persistentvolumeclaim \"a\" bound to non-existent persistentvolume \"v\""),
        ] {
            let all = with(&[claim("a", state.clone())], &[], &late);
            let snapshot = cluster(all, json!({}));
            assert_eq!(refusal(&binding, &snapshot, &using("p", &["a"])), wanted, "{state}");
        }
        let snapshot = cluster(Volumes::default(), json!({}));
        let wanted = "persistentvolumeclaim \"a\" not found";
        assert_eq!(refusal(&binding, &snapshot, &using("p", &["a"])), wanted);
        assert_eq!(refusal(&VolumeRestrictions, &snapshot, &using("p", &["a"])), wanted);
        let inline = pod("p", json!({"volumes": [{"name": "v", "ephemeral": {}}]}));
        let wanted =
            "waiting for ephemeral volume controller to create the persistentvolumeclaim \"p-v\"";
        assert_eq!(refusal(&binding, &snapshot, &inline), wanted);
        let others = with(&[claim("p-v", json!({}))], &[], &late);
        let wanted = "PVC ns/p-v was not created for pod ns/p (pod is not owner)";
        assert_eq!(refusal(&binding, &cluster(others, json!({})), &inline), wanted);
    }

    #[test]
    fn a_reserved_volume_is_written_and_a_node_is_chosen() {
        let binding = VolumeBinding::new(&VolumeBindingArgs::default());
        let late = class("late", "csi.example.com", json!({}));
        let claims = [claim("a", json!({})), claim("b", json!({}))];
        let volumes = [volume("v", "1Gi", "n1", json!({}))];
        let mut snapshot = cluster(with(&claims, &volumes, &late), json!({}));
        let pod = using("p", &["a", "b"]);
        Reserve::reserve(&binding, &pod, "n1", &mut snapshot).expect("room");
        let written: Vec<String> = binding
            .writes(&pod, &snapshot)
            .iter()
            .map(|w| match w {
                Write::Volume(name, patch) => {
                    let claim = &patch["spec"]["claimRef"];
                    format!(
                        "{name} {} {} {}",
                        claim["name"], claim["uid"], patch["metadata"]["resourceVersion"]
                    )
                }
                Write::Claim(key, patch) => {
                    format!("{} {}", key.name, patch["metadata"]["annotations"])
                }
            })
            .collect();
        assert_eq!(
            written,
            ["v \"a\" \"a\" \"5\"", "b {\"volume.kubernetes.io/selected-node\":\"n1\"}"]
        );
        binding.ended(&pod, &mut snapshot);
        assert!(binding.writes(&pod, &snapshot).is_empty());
    }

    #[test]
    fn a_claim_for_one_pod_is_for_one_pod() {
        let late = class("late", "csi.example.com", json!({}));
        let alone = claim("a", json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}));
        let mut snapshot = cluster(with(&[alone], &[], &late), json!({}));
        let (first, second) = (using("first", &["a"]), using("second", &["a"]));
        assert_eq!(refusal(&VolumeRestrictions, &snapshot, &first), "");
        snapshot.assume(&first, "n1");
        let wanted = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod";
        assert_eq!(refusal(&VolumeRestrictions, &snapshot, &second), wanted);
        {
            let prepared = VolumeRestrictions.prepare(&second, &snapshot);
            let mut trial = prepared.expect("fits").expect("says");
            let node = snapshot.node("n1").expect("a node");
            trial.changed(node, &first, false);
            assert!(trial.filter(node).is_ok());
        }
        snapshot.remove_pod("first");
        assert_eq!(refusal(&VolumeRestrictions, &snapshot, &second), "");
    }

    #[test]
    fn volumes_stay_in_their_zone() {
        let late = class("late", "csi.example.com", json!({}));
        let bound = claim("a", json!({"spec": {"volumeName": "v"}}));
        let of = |zone: &str| {
            volume(
                "v",
                "1Gi",
                "",
                json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}),
            )
        };
        let conflict = "node(s) had no available volume zone";
        for (zone, labels, wanted) in [
            ("x", json!({"topology.kubernetes.io/zone": "x"}), ""),
            ("w__x", json!({"topology.kubernetes.io/zone": "x"}), ""),
            ("y__", json!({"topology.kubernetes.io/zone": "x"}), ""),
            ("y", json!({"topology.kubernetes.io/zone": "x"}), conflict),
            ("y", json!({"topology.kubernetes.io/region": "r"}), conflict),
            ("y", json!({}), ""),
        ] {
            let all = with(std::slice::from_ref(&bound), &[of(zone)], &late);
            let found = refusal(&VolumeZone, &cluster(all, labels.clone()), &using("p", &["a"]));
            assert_eq!(found, wanted, "{zone} {labels}");
        }
    }

    #[test]
    fn a_node_takes_as_many_volumes_as_its_driver_says() {
        let late = class("late", "csi.example.com", json!({}));
        let source = |handle: &str| json!({"spec": {"csi": {"driver": "csi.example.com", "volumeHandle": handle}}});
        let claims = [
            claim("a", json!({"spec": {"volumeName": "va"}})),
            claim("b", json!({"spec": {"volumeName": "vb"}})),
            claim("c", json!({})),
        ];
        let volumes = [volume("va", "1Gi", "", source("1")), volume("vb", "1Gi", "", source("2"))];
        let mut snapshot = cluster(with(&claims, &volumes, &late), json!({}));
        snapshot.assume(&using("there", &["a"]), "n1");
        let check = |snapshot: &Snapshot, claim: &str| {
            refusal(&NodeVolumeLimits, snapshot, &using("p", &[claim]))
        };
        assert_eq!(check(&snapshot, "b"), "", "no limit is known");
        let csi = json!({"metadata": {"name": "n1"}, "spec": {"drivers": [{"name": "csi.example.com",
            "nodeID": "n1", "topologyKeys": [], "allocatable": {"count": 1}}]}});
        let csi = serde_json::from_value(csi).expect("a CSINode");
        snapshot.volumes.nodes.insert("n1".into(), Arc::new(csi));
        let full = "node(s) exceed max volume count";
        for (claim, wanted) in [("a", ""), ("b", full), ("c", full)] {
            assert_eq!(check(&snapshot, claim), wanted, "{claim}");
        }
    }
}
