//! Claims that pods use and volumes that are bound stay until they are free, by a finalizer.

use client::lean::Pod;
use client::volumes::claims_of;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::{change, phase_of};
use crate::action::{Action, Plan, Unless};
use crate::pods::uses_claim;
use crate::runner::{Context, Controller};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

/// Keeps claims that pods on a node use.
pub struct ClaimProtection {
    claims: Cache<PersistentVolumeClaim>,
    pods: Cache<Pod>,
}

impl ClaimProtection {
    pub fn new(context: &Context) -> Self {
        Self { claims: context.caches.of(), pods: context.caches.of() }
    }
}

/// Keeps volumes that are bound.
pub struct VolumeProtection {
    volumes: Cache<PersistentVolume>,
}

impl VolumeProtection {
    pub fn new(context: &Context) -> Self {
        Self { volumes: context.caches.of() }
    }
}

/// Keeps classes of attributes that volumes and claims name.
pub struct AttributesProtection {
    classes: Cache<VolumeAttributesClass>,
    volumes: Cache<PersistentVolume>,
    claims: Cache<PersistentVolumeClaim>,
}

impl AttributesProtection {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self { classes: caches.of(), volumes: caches.of(), claims: caches.of() }
    }
}

/// The class that a volume names.
fn class_of(volume: &PersistentVolume) -> Option<&String> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_ref()
}

/// The classes that a claim has, wants and is on its way to.
fn classes_of(claim: &PersistentVolumeClaim) -> impl Iterator<Item = &String> {
    let (spec, status) = (claim.spec.as_ref(), claim.status.as_ref());
    let wanted = spec.and_then(|s| s.volume_attributes_class_name.as_ref());
    let has = status.and_then(|s| s.current_volume_attributes_class_name.as_ref());
    let target = status.and_then(|s| s.modify_volume_status.as_ref());
    let target = target.and_then(|m| m.target_volume_attributes_class_name.as_ref());
    wanted.into_iter().chain(has).chain(target)
}

/// Puts a finalizer on what is not being deleted, and takes it off what is and is not used.
fn protect<K>(object: &K, finalizer: &str, used: impl FnOnce() -> bool) -> Plan
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize,
{
    let meta: &ObjectMeta = object.meta();
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let has = finalizers.iter().any(|f| f == finalizer);
    let action: Option<Action> = match (meta.deletion_timestamp.is_some(), has) {
        (true, true) if !used() => {
            finalizers.retain(|f| f != finalizer);
            Some(change(object, json!({"metadata": {"finalizers": finalizers}})))
        }
        (false, false) => {
            finalizers.push(finalizer.to_owned());
            Some(change(object, json!({"metadata": {"finalizers": finalizers}})))
        }
        _ => None,
    };
    Plan { actions: action.into_iter().collect(), ..Plan::default() }
}

impl Controller for ClaimProtection {
    fn name(&self) -> &'static str {
        "persistentvolumeclaim-protection"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.claims.feed(queue);
        let q = queue.clone();
        self.pods.on_change(move |change| {
            // What a pod starts to use is of no matter.
            for (name, _) in change.old.into_iter().flat_map(|pod| claims_of(pod)) {
                q.add(Key::new(&change.key.namespace, &name));
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let Some(claim) = self.claims.get(key) else { return Plan::default() };
        let mut plan = protect(&*claim, CLAIM, || {
            self.pods.list_in(&key.namespace).iter().any(|pod| uses_claim(pod, &claim))
        });
        // To let go of a claim in use would lose data.
        let lets_go = claim.metadata.deletion_timestamp.is_some() && !plan.actions.is_empty();
        plan.unless = lets_go.then(|| Unless::Used(Box::new((*claim).clone())));
        plan
    }
}

impl Controller for VolumeProtection {
    fn name(&self) -> &'static str {
        "persistentvolume-protection"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.volumes.feed(queue);
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let Some(volume) = self.volumes.get(key) else { return Plan::default() };
        protect(&*volume, VOLUME, || phase_of(&volume) == "Bound")
    }
}

impl Controller for AttributesProtection {
    fn name(&self) -> &'static str {
        "volumeattributesclass-protection"
    }

    fn wire(&self, queue: &Queue<Key>) {
        self.classes.feed(queue);
        let q = queue.clone();
        self.volumes.on_change(move |change| {
            for name in change.old.into_iter().filter_map(|volume| class_of(volume)) {
                q.add(Key::new("", name));
            }
        });
        let q = queue.clone();
        self.claims.on_change(move |change| {
            for name in change.old.into_iter().flat_map(|claim| classes_of(claim)) {
                q.add(Key::new("", name));
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let Some(class) = self.classes.get(key) else { return Plan::default() };
        protect(&*class, ATTRIBUTES, || {
            self.volumes.list().iter().any(|volume| class_of(volume) == Some(&key.name))
                || self.claims.list().iter().any(|c| classes_of(c).any(|name| *name == key.name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(deleted: bool, finalizers: &[&str]) -> PersistentVolumeClaim {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let meta = json!({"namespace": "n", "name": "c", "uid": "c",
            "deletionTimestamp": deleted, "finalizers": finalizers});
        serde_json::from_value(json!({"metadata": meta})).expect("a claim")
    }

    #[test]
    fn a_finalizer_comes_and_goes() {
        for (deleted, finalizers, used, wanted) in [
            (false, &[CLAIM][..], false, None),
            (false, &["x"], false, Some(json!(["x", CLAIM]))),
            (true, &["x", CLAIM], true, None),
            (true, &["x", CLAIM], false, Some(json!(["x"]))),
            (true, &["x"], false, None),
        ] {
            let plan = protect(&claim(deleted, finalizers), CLAIM, || used);
            let written = plan.actions.into_iter().next().map(|action| match action {
                Action::Update(_, object) => object["metadata"]["finalizers"].clone(),
                other => panic!("{other:?}"),
            });
            assert_eq!(written, wanted, "{deleted} {finalizers:?} {used}");
        }
    }

    #[test]
    fn pods_on_a_node_use_claims() {
        let pod = |node: &str, volume: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "p"},
                "spec": {"nodeName": node, "containers": [], "volumes": [volume]},
            }))
            .expect("a pod")
        };
        let named = json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}});
        let other = json!({"name": "v", "persistentVolumeClaim": {"claimName": "d"}});
        assert!(uses_claim(&pod("node", named.clone()), &claim(true, &[])));
        assert!(!uses_claim(&pod("", named), &claim(true, &[])));
        assert!(!uses_claim(&pod("node", other), &claim(true, &[])));
        let mut of_pod = claim(true, &[]);
        of_pod.metadata.name = Some("p-v".into());
        let ephemeral = json!({"name": "v", "ephemeral": {}});
        assert!(!uses_claim(&pod("node", ephemeral.clone()), &of_pod));
        of_pod.metadata.owner_references = serde_json::from_value(json!([
            {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p", "controller": true}]))
        .expect("owners");
        assert!(uses_claim(&pod("node", ephemeral), &of_pod));
    }
}
