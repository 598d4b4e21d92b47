//! Claims and volumes, as those see them who bind one to the other or place pods by them: which
//! volume a claim may have, and on which nodes.

use std::collections::BTreeMap;
use std::str::FromStr;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use crate::lean::Pod;
use crate::matching::{any_term_matches, selects};

/// The node that a provisioner is to make a volume for.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The volume controller has bound a claim.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The binding is of a controller or scheduler: nobody else had asked for that one.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Names of a pod's claims; whether each is made for the pod (KEP-1698).
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = (String, bool)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    volumes.filter_map(move |v| match (&v.persistent_volume_claim, &v.ephemeral) {
        (Some(claim), _) => Some((claim.claim_name.clone(), false)),
        (None, Some(_)) => Some((format!("{name}-{}", v.name), true)),
        (None, None) => None,
    })
}

/// The class that an object names, by its annotation of old or its field.
fn class<'o>(meta: &'o ObjectMeta, field: Option<&'o String>) -> Option<&'o str> {
    let annotation = meta.annotations.as_ref().and_then(|all| all.get(CLASS));
    annotation.or(field).map(String::as_str)
}

/// The class that a claim names; empty is a name, too: volumes of no class.
pub fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    let field = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    class(&claim.metadata, field)
}

pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = volume.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    class(&volume.metadata, field).unwrap_or_default()
}

/// Whether claims of a class wait for their first pod.
pub fn is_delayed(class: Option<&StorageClass>) -> bool {
    class.and_then(|c| c.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

/// The volume that a claim names; empty: none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default()
}

pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether a volume is bound to this claim, or reserved for it.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|r| {
        let uid = r.uid.as_ref().filter(|uid| !uid.is_empty());
        r.namespace == claim.metadata.namespace
            && r.name == claim.metadata.name
            && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
    })
}

/// Nothing is zero.
fn storage(amounts: Option<&BTreeMap<String, Text>>) -> Quantity {
    let text = amounts.and_then(|all| all.get("storage"));
    text.and_then(|q| Quantity::from_str(&q.0).ok()).unwrap_or_default()
}

/// How much a claim asks for.
pub fn asked(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    storage(resources.and_then(|r| r.requests.as_ref()))
}

/// How much a volume holds.
pub fn held(volume: &PersistentVolume) -> Quantity {
    storage(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()))
}

/// The access modes of a volume.
pub fn modes(volume: &PersistentVolume) -> &[String] {
    volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default()
}

/// Whether a volume has all access modes that a claim asks for.
pub fn has_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let mut asked = claim.spec.as_ref().and_then(|s| s.access_modes.as_ref()).into_iter().flatten();
    asked.all(|mode| modes(volume).contains(mode))
}

/// Whether both are file systems, or both block devices.
pub fn same_volume_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    fn mode(field: Option<&String>) -> &str {
        field.map_or("Filesystem", String::as_str)
    }
    let asked = claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref());
    mode(asked) == mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

/// Whether both name the same VolumeAttributesClass, or none.
pub fn same_attributes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let asked = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let given = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    asked.unwrap_or_default() == given.unwrap_or_default()
}

/// Whether a volume is what a claim needs, as far as that must hold of one that is reserved for it,
/// too.
pub fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    held(volume) >= asked(claim)
        && same_volume_mode(volume, claim)
        && same_attributes(volume, claim)
        && volume.metadata.deletion_timestamp.is_none()
}

/// Whether a volume is nobody's, and of those that a claim chooses from.
pub fn is_free(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref());
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    claim_ref(volume).is_none()
        && phase == Some("Available")
        && selector.is_none_or(|s| selects(s, volume.metadata.labels.as_ref()))
        && class_of_volume(volume) == class_of_claim(claim).unwrap_or_default()
}

/// Whether a volume can be used on a node, by its node affinity. Labels alone decide: what the
/// affinity demands of fields is passed over, as upstream does.
pub fn reachable(volume: &PersistentVolume, node: &Node) -> bool {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required.as_ref());
    required.is_none_or(|s| any_term_matches(s, node.metadata.labels.as_ref(), None))
}

/// The change (a JSON merge patch) that reserves a volume for a claim; `None`: it is.
pub fn reserve(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<Value> {
    let have = claim_ref(volume);
    if have.is_some_and(|r| r.uid.is_some() && r.uid == claim.metadata.uid) {
        return None;
    }
    let mut patch = json!({"spec": {"claimRef": {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": claim.metadata.namespace,
        "name": claim.metadata.name,
        "uid": claim.metadata.uid,
        "resourceVersion": claim.metadata.resource_version,
    }}});
    if have.is_none() {
        patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    Some(patch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(more: &Value) -> PersistentVolume {
        let mut volume = json!({
            "metadata": {"name": "v"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Available"},
        });
        apimachinery::patch::merge::apply(&mut volume, more);
        serde_json::from_value(volume).expect("a volume")
    }

    fn claim(more: &Value) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"namespace": "n", "name": "c", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1024Mi"}}},
        });
        apimachinery::patch::merge::apply(&mut claim, more);
        serde_json::from_value(claim).expect("a claim")
    }

    #[test]
    fn a_volume_is_used_where_its_affinity_allows() {
        let node: Node = serde_json::from_value(
            json!({"metadata": {"name": "n", "labels": {"zone": "a", "disk": "fast"}}}),
        )
        .expect("a node");
        let label =
            |key: &str, value: &str| json!({"key": key, "operator": "In", "values": [value]});
        let expressions = |all: &[Value]| json!({"matchExpressions": all});
        let zone = |value: &str| expressions(&[label("zone", value)]);
        for (terms, wanted) in [
            (json!([zone("a")]), true),
            (json!([zone("b")]), false),
            (json!([zone("b"), zone("a")]), true),
            (json!([expressions(&[label("zone", "a"), label("disk", "slow")])]), false),
            (json!([]), false),
            (json!([{}]), false),
            (json!([{"matchFields": [label("metadata.name", "other")]}]), true),
        ] {
            let affinity = json!({"required": {"nodeSelectorTerms": terms}});
            let volume = volume(&json!({"spec": {"nodeAffinity": affinity}}));
            assert_eq!(reachable(&volume, &node), wanted, "{terms}");
        }
        assert!(reachable(&volume(&json!({})), &node), "no affinity");
    }

    #[test]
    fn a_claim_gets_what_it_asks_for() {
        let old = json!({"metadata": {"annotations": {CLASS: "old"}}});
        let of = |class: &str| json!({"spec": {"storageClassName": class}});
        let labelled = json!({"metadata": {"labels": {"a": "b"}}});
        let selects = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        let many = json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}});
        let class = json!({"spec": {"volumeAttributesClassName": "gold"}});
        let none = json!({});
        for (asks, has, suited, free) in [
            (&none, &none, true, true),
            (&none, &json!({"spec": {"capacity": {"storage": "1Mi"}}}), false, true),
            (&none, &json!({"spec": {"volumeMode": "Filesystem"}}), true, true),
            (&none, &json!({"spec": {"volumeMode": "Block"}}), false, true),
            (&none, &class, false, true),
            (&class, &class, true, true),
            (&none, &json!({"status": {"phase": "Released"}}), true, false),
            (&none, &json!({"spec": {"claimRef": {"namespace": "n", "name": "c"}}}), true, false),
            (&none, &of("x"), true, false),
            (&of("x"), &of("x"), true, true),
            (&of("old"), &old, true, true),
            (&old, &of("old"), true, true),
            (&selects, &none, true, false),
            (&selects, &labelled, true, true),
            (&many, &none, true, true),
        ] {
            let (claim, volume) = (claim(asks), volume(has));
            let found = (suits(&volume, &claim), is_free(&volume, &claim));
            assert_eq!(found, (suited, free), "{asks} {has}");
            assert_eq!(has_modes(&volume, &claim), asks != &many || has == &many, "{asks} {has}");
        }
    }

    #[test]
    fn a_volume_is_reserved_once() {
        let of = |uid: Value, name: &str| {
            volume(&json!({"spec": {"claimRef": {"namespace": "n", "name": name, "uid": uid}}}))
        };
        let claim = claim(&json!({}));
        for (volume, is_its, patched) in [
            (volume(&json!({})), false, Some(true)),
            (of(json!(null), "c"), true, Some(false)),
            (of("".into(), "c"), true, Some(false)),
            (of("u".into(), "c"), true, None),
            (of("other".into(), "c"), false, Some(false)),
            (of(json!(null), "d"), false, Some(false)),
        ] {
            let patch = reserve(&volume, &claim);
            let noted = |p: &Value| p["metadata"]["annotations"][BOUND_BY_CONTROLLER] == "yes";
            assert_eq!(is_for(&volume, &claim), is_its, "{volume:?}");
            assert_eq!(patch.as_ref().map(noted), patched, "{volume:?}");
            assert!(patch.is_none_or(|p| p["spec"]["claimRef"]["uid"] == "u"));
        }
    }
}
