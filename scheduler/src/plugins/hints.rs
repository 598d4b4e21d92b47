//! Which changes may help pods that wait for their volumes (KEP-4247): upstream's queueing hints of
//! VolumeBinding, VolumeRestrictions, VolumeZone and NodeVolumeLimits. What goes away helps none.

use std::collections::HashMap;

use client::volumes::{claims_of, is_delayed};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::CSINode;

use super::volumes::zones_of;
use crate::framework::{ClusterEvent, Seen, Waiter};
use crate::volumes::largest;

/// Whether a pod names a claim itself.
fn names(pod: &Waiter<'_>, claim: &PersistentVolumeClaim) -> bool {
    is_its(pod, claim, |ephemeral| !ephemeral)
}

/// As [`names`], or has it made.
fn uses(pod: &Waiter<'_>, claim: &PersistentVolumeClaim) -> bool {
    is_its(pod, claim, |_| true)
}

fn is_its(pod: &Waiter<'_>, claim: &PersistentVolumeClaim, kind: impl Fn(bool) -> bool) -> bool {
    let meta = &claim.metadata;
    let mut claims = pod.claims.iter().filter(|(_, ephemeral)| kind(*ephemeral));
    meta.namespace.as_ref() == Some(&pod.key.namespace)
        && claims.any(|(name, _)| meta.name.as_ref() == Some(name))
}

/// Any volume may be what is missing. What drivers say of nodes is not asked: no volume of a kind
/// without a driver is made one with a driver here.
pub(super) fn binding(event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
    match event {
        ClusterEvent::NodeAdded | ClusterEvent::NodeChanged | ClusterEvent::Volume(_) => true,
        ClusterEvent::Claim(claim) => uses(pod, claim.new),
        ClusterEvent::Class(class) => class.differs(|c| &c.allowed_topologies),
        // Room is no longer asked after.
        ClusterEvent::Driver(driver) => driver.old.is_some_and(|old| {
            old.spec.storage_capacity == Some(true)
                && driver.new.spec.storage_capacity != Some(true)
        }),
        ClusterEvent::Capacity(room) => room.old.is_none_or(|old| largest(room.new) > largest(old)),
        _ => false,
    }
}

pub(super) fn restrictions(event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
    match event {
        ClusterEvent::NodeAdded => true,
        ClusterEvent::PodGone(gone) => {
            let shared = |claim: (String, bool)| !claim.1 && pod.claims.contains(&claim);
            gone.metadata.namespace.as_ref() == Some(&pod.key.namespace)
                && claims_of(gone).any(shared)
        }
        ClusterEvent::Claim(claim) => claim.is_new() && names(pod, claim.new),
        _ => false,
    }
}

pub(super) fn zone(event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
    match event {
        ClusterEvent::NodeAdded | ClusterEvent::NodeChanged => true,
        ClusterEvent::Class(class) => class.is_new() && is_delayed(Some(class.new)),
        ClusterEvent::Claim(claim) => names(pod, claim.new),
        ClusterEvent::Volume(volume) => volume.differs(zones_of),
        _ => false,
    }
}

pub(super) fn limits(event: &ClusterEvent<'_>, pod: &Waiter<'_>) -> bool {
    match event {
        ClusterEvent::PodGone(gone) => claims_of(gone).next().is_some(),
        ClusterEvent::Claim(claim) => claim.is_new() && uses(pod, claim.new),
        ClusterEvent::Attachable(node) => more_attachable(node),
        _ => false,
    }
}

/// Whether a driver takes more volumes than before; none is told of: 0, as upstream has it.
fn more_attachable(node: &Seen<'_, CSINode>) -> bool {
    let limits = |node: &CSINode| -> HashMap<String, i32> {
        let drivers = node.spec.drivers.iter();
        let limit = |d: &k8s_openapi::api::storage::v1::CSINodeDriver| {
            d.allocatable.as_ref().and_then(|a| a.count).unwrap_or(0)
        };
        drivers.map(|d| (d.name.clone(), limit(d))).collect()
    };
    let Some(old) = node.old.map(limits) else { return true };
    limits(node.new).iter().any(|(driver, n)| *n > old.get(driver).copied().unwrap_or(0))
}

#[cfg(test)]
#[expect(clippy::redundant_closure, reason = "a variant by itself is of one lifetime")]
mod tests {
    use super::*;
    use crate::plugins::all;
    use crate::snapshot::PodInfo;
    use crate::snapshot::tests::pod;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    /// The plugins whose refusals an event may mend: B, L, R and Z.
    fn helped(event: &ClusterEvent<'_>, pod: &PodInfo) -> String {
        let waiter = Waiter { key: &pod.key, claims: &pod.claims };
        let plugins = all(&crate::args::Args::default());
        let helps = |name: &str| {
            let plugin = plugins.iter().find(|p| p.name() == name).expect("a plugin");
            plugin.helps(event, &waiter)
        };
        [
            ("B", "VolumeBinding"),
            ("L", "NodeVolumeLimits"),
            ("R", "VolumeRestrictions"),
            ("Z", "VolumeZone"),
        ]
        .into_iter()
        .filter(|(_, name)| helps(name))
        .map(|(letter, _)| letter)
        .collect()
    }

    /// A pod that names the claim `a`, and has `p-v` made.
    fn waiting() -> std::sync::Arc<PodInfo> {
        let volumes = json!([{"name": "a", "persistentVolumeClaim": {"claimName": "a"}},
            {"name": "v", "ephemeral": {}}]);
        pod("p", json!({"volumes": volumes}))
    }

    fn typed<K: DeserializeOwned>(value: &Value) -> K {
        serde_json::from_value(value.clone()).expect("an object")
    }

    /// What an object helps that came, and then one that took its place.
    #[track_caller]
    fn check<K: DeserializeOwned>(
        event: impl for<'e> Fn(Seen<'e, K>) -> ClusterEvent<'e>,
        (old, new): (&Value, &Value),
        (came, changed): (&str, &str),
    ) {
        let pod = waiting();
        let (before, after): (K, K) = (typed(old), typed(new));
        assert_eq!(helped(&event(Seen { old: None, new: &after }), &pod), came, "{new} came");
        let seen = Seen { old: Some(&before), new: &after };
        assert_eq!(helped(&event(seen), &pod), changed, "{new} was {old}");
    }

    #[test]
    fn a_claim_helps_its_own_pods() {
        for (namespace, name, came, changed) in [
            ("ns", "a", "BLRZ", "BZ"),
            ("ns", "p-v", "BL", "B"),
            ("ns", "other", "", ""),
            ("elsewhere", "a", "", ""),
        ] {
            let claim = json!({"metadata": {"namespace": namespace, "name": name}});
            check(|seen| ClusterEvent::Claim(seen), (&claim, &claim), (came, changed));
        }
    }

    #[test]
    fn a_volume_helps_wherever_it_comes_to_be() {
        let zone = |zone: &str| {
            json!({"metadata": {"name": "v",
                "labels": {"topology.kubernetes.io/zone": zone, "other": zone.len().to_string()}}})
        };
        let other = json!({"metadata": {"name": "v", "labels": {"other": "x"}}});
        for (old, new, changed) in [
            (zone("a"), zone("b"), "BZ"),
            (zone("a"), other.clone(), "BZ"),
            (other.clone(), other, "B"),
        ] {
            check(|seen| ClusterEvent::Volume(seen), (&old, &new), ("BZ", changed));
        }
    }

    #[test]
    fn a_class_helps_by_its_topologies() {
        let class = |mode: &str, zone: &str| {
            let terms = json!([{"matchLabelExpressions": [{"key": "zone", "values": [zone]}]}]);
            json!({"metadata": {"name": "c"}, "provisioner": "p", "volumeBindingMode": mode,
                "allowedTopologies": terms})
        };
        let (late, now) = ("WaitForFirstConsumer", "Immediate");
        for (old, new, came, changed) in [
            (class(late, "a"), class(late, "a"), "BZ", ""),
            (class(late, "a"), class(late, "b"), "BZ", "B"),
            (class(now, "a"), class(now, "b"), "B", "B"),
        ] {
            check(|seen| ClusterEvent::Class(seen), (&old, &new), (came, changed));
        }
    }

    #[test]
    fn drivers_help_when_there_is_more_room() {
        let driver =
            |told: Value| json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": told}});
        for (old, new, changed) in [
            (driver(json!(true)), driver(json!(false)), "B"),
            (driver(json!(true)), driver(json!(null)), "B"),
            (driver(json!(true)), driver(json!(true)), ""),
            (driver(json!(false)), driver(json!(true)), ""),
        ] {
            check(|seen| ClusterEvent::Driver(seen), (&old, &new), ("", changed));
        }
        let room = |capacity: Value, largest: Value| {
            json!({"metadata": {"name": "r"}, "storageClassName": "c", "capacity": capacity,
                "maximumVolumeSize": largest})
        };
        let none = || json!(null);
        for (old, new, changed) in [
            (room(json!("1Gi"), none()), room(json!("2Gi"), none()), "B"),
            (room(json!("2Gi"), none()), room(json!("1Gi"), none()), ""),
            (room(none(), none()), room(json!("1Gi"), none()), "B"),
            (room(json!("1Gi"), none()), room(none(), none()), ""),
            (room(json!("1Gi"), json!("1Gi")), room(json!("2Gi"), json!("1Gi")), ""),
        ] {
            check(|seen| ClusterEvent::Capacity(seen), (&old, &new), ("B", changed));
        }
        let node = |drivers: &[(&str, Value)]| {
            let driver = |(name, count): &(&str, Value)| {
                json!({"name": name, "nodeID": "n", "topologyKeys": [],
                    "allocatable": {"count": count}})
            };
            let drivers: Vec<Value> = drivers.iter().map(driver).collect();
            json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}})
        };
        for (old, new, changed) in [
            (node(&[("d", json!(1))]), node(&[("d", json!(2))]), "L"),
            (node(&[("d", json!(2))]), node(&[("d", json!(1))]), ""),
            (node(&[]), node(&[("d", json!(1))]), "L"),
            (node(&[]), node(&[("d", none())]), ""),
        ] {
            check(|seen| ClusterEvent::Attachable(seen), (&old, &new), ("L", changed));
        }
    }

    #[test]
    fn a_pod_that_goes_leaves_its_claims_and_its_node() {
        let using = |source: Value| {
            let mut volume = source;
            volume["name"] = "x".into();
            pod("q", json!({"volumes": [volume]}))
        };
        let claim = |name: &str| using(json!({"persistentVolumeClaim": {"claimName": name}}));
        let mut elsewhere = client::lean::Pod::clone(&claim("a").pod);
        elsewhere.metadata.namespace = Some("elsewhere".to_owned());
        for (gone, wanted) in [
            (&*claim("a").pod, "LR"),
            (&*claim("b").pod, "L"),
            (&elsewhere, "L"),
            (&*using(json!({"ephemeral": {}})).pod, "L"),
            (&*pod("q", json!({})).pod, ""),
        ] {
            assert_eq!(helped(&ClusterEvent::PodGone(gone), &waiting()), wanted, "{gone:?}");
        }
        for (event, wanted) in [
            (ClusterEvent::NodeAdded, "BRZ"),
            (ClusterEvent::NodeChanged, "BZ"),
            (ClusterEvent::PodPlaced, ""),
            (ClusterEvent::PodResized, ""),
        ] {
            assert_eq!(helped(&event, &waiting()), wanted, "{event:?}");
        }
    }
}
