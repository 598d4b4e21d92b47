//! Claims of pods' own: for each ephemeral volume of a pod one is made from its template (KEP-1698).

use std::sync::Arc;

use client::events::EventType;
use client::lean::{Pod, Volume};
use client::volumes::claims_of;
use client::{Cache, Key, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::action::{Action, Plan};
use crate::owners::{controller_of, controller_reference};
use crate::runner::{Context, Controller};

const FAILED: &str = "FailedBinding";

/// Makes claims for ephemeral volumes.
pub struct Ephemeral {
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
}

impl Ephemeral {
    pub fn new(context: &Context) -> Self {
        Self { pods: context.caches.of(), claims: context.caches.of() }
    }

    fn claim(&self, pod: &Pod, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&Key::new(pod.metadata.namespace.as_deref()?, name))
    }
}

/// Volumes that want a claim of their own.
fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let all = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    all.filter(|volume| volume.ephemeral.is_some())
}

fn claim_name(pod: &Pod, volume: &Volume) -> String {
    format!("{}-{}", pod.name_any(), volume.name)
}

fn failed(pod: &Pod, volume: &Volume, why: &str) -> Action {
    let message = format!("ephemeral volume {}: {why}", volume.name);
    Action::event(pod, EventType::Warning, FAILED, message)
}

impl Controller for Ephemeral {
    fn name(&self) -> &'static str {
        "ephemeral-volume"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.pods.on_change(move |change| {
            // Volumes of a pod do not change.
            if change.old.is_none() && change.new.is_some_and(|p| volumes(p).next().is_some()) {
                q.add(change.key.clone());
            }
        });
        let (q, pods) = (queue.clone(), self.pods.clone());
        self.claims.on_change(move |change| {
            if change.new.is_some() {
                return;
            }
            // Somebody else's may have stood in the way.
            let own = (change.key.name.clone(), true);
            for pod in pods.list_in(&change.key.namespace) {
                if claims_of(&pod).any(|claim| claim == own) {
                    q.add(Key::of(&*pod));
                }
            }
        });
    }

    fn plan(&self, key: &Key, _now: Timestamp) -> Plan {
        let Some(pod) = self.pods.get(key) else { return Plan::default() };
        plan(&pod, |name| self.claim(&pod, name))
    }

    fn not_created(&self, key: &Key, why: &str) -> Vec<Action> {
        let Some(pod) = self.pods.get(key) else { return Vec::new() };
        let missing = volumes(&pod).find(|v| self.claim(&pod, &claim_name(&pod, v)).is_none());
        let why = |volume: &Volume| format!("create PVC {}: {why}", claim_name(&pod, volume));
        missing.map(|volume| failed(&pod, volume, &why(volume))).into_iter().collect()
    }
}

/// Decides about a pod; `claim` finds one of its namespace.
fn plan(pod: &Pod, claim: impl Fn(&str) -> Option<Arc<PersistentVolumeClaim>>) -> Plan {
    let mut plan = Plan::default();
    if pod.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    for volume in volumes(pod) {
        let name = claim_name(pod, volume);
        match claim(&name) {
            Some(claim) => {
                let owner = controller_of(&claim.metadata).map(|owner| owner.uid.as_str());
                if owner != pod.metadata.uid.as_deref() {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    let why = format!(
                        "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                        pod.name_any()
                    );
                    plan.push(failed(pod, volume, &why));
                }
            }
            None => plan.push(Action::create(&made(pod, volume, name))),
        }
    }
    plan
}

/// The claim that a volume wants. The pod takes it along when it goes.
fn made(pod: &Pod, volume: &Volume, name: String) -> PersistentVolumeClaim {
    let template = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.clone());
    let (meta, spec) = template.map(|t| (t.metadata, t.spec)).unwrap_or_default();
    let meta = meta.unwrap_or_default();
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_is_made_once_and_others_are_left_alone() {
        let pod = |deleted: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": "p", "uid": "u",
                    "deletionTimestamp": deleted},
                "spec": {"containers": [], "volumes": [
                    {"name": "v", "ephemeral": {"volumeClaimTemplate": {
                        "metadata": {"labels": {"a": "b"}, "annotations": {"c": "d"}},
                        "spec": {"accessModes": ["ReadWriteOnce"]}}}},
                    {"name": "w", "persistentVolumeClaim": {"claimName": "p-w"}},
                ]},
            }))
            .expect("a pod")
        };
        let claim = |owner: &str| -> Arc<PersistentVolumeClaim> {
            Arc::new(PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some("p-v".into()),
                    owner_references: Some(vec![controller_reference(&Pod {
                        metadata: ObjectMeta { uid: Some(owner.into()), ..ObjectMeta::default() },
                        ..Pod::default()
                    })]),
                    ..ObjectMeta::default()
                },
                ..PersistentVolumeClaim::default()
            })
        };
        let want = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": "ns", "name": "p-v", "labels": {"a": "b"},
                "annotations": {"c": "d"}, "ownerReferences": [{"apiVersion": "v1", "kind": "Pod",
                    "name": "p", "uid": "u", "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"accessModes": ["ReadWriteOnce"]}});
        let made = plan(&pod(None), |_| None);
        assert!(matches!(&made.actions[..], [Action::Create(_, object)] if *object == want));
        assert!(plan(&pod(Some("2026-01-01T00:00:00Z")), |_| None).actions.is_empty());
        assert!(plan(&pod(None), |_| Some(claim("u"))).actions.is_empty());
        let foreign = plan(&pod(None), |_| Some(claim("other")));
        let [Action::Event(_, EventType::Warning, FAILED, message)] = &foreign.actions[..] else {
            panic!("{foreign:?}")
        };
        assert_eq!(
            message,
            "ephemeral volume v: PVC ns/p-v was not created for pod ns/p (pod is not owner)"
        );
    }
}
