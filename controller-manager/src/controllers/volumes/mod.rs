//! PersistentVolumes and their claims: who is bound to what, and what is kept while it is used.
//!
//! Volumes are made and deleted by provisioners of their own (CSI); none of upstream's old in-tree
//! ones is here.

mod claim;
mod ephemeral;
mod protection;
#[cfg(test)]
mod tests;
mod volume;

use std::sync::Arc;

use client::lean::Pod;
use client::volumes::{BIND_COMPLETED, claim_ref, claims_of};
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::action::{Action, Plan, Target, Unless};
use crate::runner::{Context, Controller};
pub use ephemeral::Ephemeral;
pub use protection::{AttributesProtection, ClaimProtection, VolumeProtection};

/// Binds claims to volumes. Keys without a namespace are volumes, others claims.
pub struct Binder {
    volumes: Cache<PersistentVolume>,
    claims: Cache<PersistentVolumeClaim>,
    classes: Cache<StorageClass>,
    pods: Cache<Pod>,
}

impl Binder {
    pub fn new(context: &Context) -> Self {
        let caches = &context.caches;
        Self { volumes: caches.of(), claims: caches.of(), classes: caches.of(), pods: caches.of() }
    }

    fn volume_plan(&self, volume: &PersistentVolume) -> Plan {
        let Some(claim_ref) = claim_ref(volume) else { return volume::available(volume) };
        let key = claim_key(claim_ref);
        let claim = self.claims.get(&key).filter(|c| c.metadata.uid == claim_ref.uid);
        match (claim_ref.uid.as_deref().unwrap_or_default(), claim) {
            ("", _) => volume::available(volume),
            (_, Some(claim)) => volume::claimed(volume, &claim),
            // Volumes and claims are watched one by one: another may have bound what has not been
            // seen here.
            (uid, None) => {
                let claim = Target::of::<PersistentVolumeClaim>(&key);
                let unless = Some(Unless::Exists(claim, Some(uid.to_owned())));
                Plan { unless, ..volume::released(volume) }
            }
        }
    }
}

impl Controller for Binder {
    fn name(&self) -> &'static str {
        "persistentvolume-binder"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let (q, claims) = (queue.clone(), self.claims.clone());
        self.volumes.on_change(move |change| {
            q.add(change.key.clone());
            for volume in change.old.into_iter().chain(change.new) {
                if let Some(claim) = claim_ref(volume) {
                    q.add(claim_key(claim));
                }
            }
            // One that is free may be what a claim waits for.
            let free = |v: &Arc<PersistentVolume>| claim_ref(v).is_none_or(|c| c.uid.is_none());
            if change.new.is_some_and(free) {
                for claim in claims.list() {
                    if !has(&claim.metadata, BIND_COMPLETED) {
                        q.add(Key::of(&*claim));
                    }
                }
            }
        });
        let (q, volumes) = (queue.clone(), self.volumes.clone());
        self.claims.on_change(move |change| {
            q.add(change.key.clone());
            // Volumes of a claim are few, and so are volumes.
            for volume in volumes.list() {
                if claim_ref(&volume).is_some_and(|c| claim_key(c) == *change.key) {
                    q.add(Key::of(&*volume));
                }
            }
        });
        let (q, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |_| {
            for claim in claims.list() {
                if !has(&claim.metadata, BIND_COMPLETED) {
                    q.add(Key::of(&*claim));
                }
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        if key.namespace.is_empty() {
            return match self.volumes.get(key) {
                Some(volume) => one_write(self.volume_plan(&volume)),
                None => Plan::default(),
            };
        }
        let Some(claim) = self.claims.get(key) else { return Plan::default() };
        let waiting = |key: &Key| {
            let pods = self.pods.list_in(&key.namespace);
            let uses = |p: &Arc<Pod>| crate::pods::node_name(p).is_empty() && names(p, &key.name);
            pods.iter().filter(|p| uses(p)).map(|p| p.name_any()).collect()
        };
        let look = claim::Look {
            volumes: &self.volumes.list(),
            classes: &self.classes.list(),
            waiting: &waiting,
        };
        one_write(claim::plan(&claim, &look))
    }
}

/// Whether a pod names a claim.
fn names(pod: &Pod, claim: &str) -> bool {
    claims_of(pod).any(|(name, _)| name == claim)
}

fn has(meta: &ObjectMeta, annotation: &str) -> bool {
    meta.annotations.as_ref().is_some_and(|all| all.contains_key(annotation))
}

fn spec(volume: &PersistentVolume) -> Option<&PersistentVolumeSpec> {
    volume.spec.as_ref()
}

fn claim_key(claim: &ObjectReference) -> Key {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    Key::new(&text(&claim.namespace), &text(&claim.name))
}

fn phase_of(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The object with a change (a JSON merge patch), which fails if the object is not as it was seen.
fn change<K>(object: &K, patch: Value) -> Action
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize,
{
    Action::Update(Target::of::<K>(&Key::of(object)), changed(object, patch))
}

/// As [`change`], of the status.
fn change_status<K>(object: &K, status: Value) -> Action
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize,
{
    let object_with = changed(object, json!({"status": status}));
    Action::UpdatePart(Target::of::<K>(&Key::of(object)), "status", object_with)
}

fn changed<K: serde::Serialize>(object: &K, patch: Value) -> Value {
    // Typed objects are always JSON.
    let mut changed = serde_json::to_value(object).unwrap_or_default();
    apimachinery::patch::merge::apply(&mut changed, &patch);
    changed
}

/// The plan up to its first write: what follows depends on what that one makes of the object, which
/// is seen soon.
fn one_write(mut plan: Plan) -> Plan {
    let mut written = false;
    plan.actions.retain(|action| {
        let event = matches!(action, Action::Event(..));
        let keep = event || !written;
        written |= !event;
        keep
    });
    plan
}
