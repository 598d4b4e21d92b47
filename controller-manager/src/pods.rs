//! What controllers ask of pods.

use client::lean::Pod;
use client::volumes::claims_of;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, PersistentVolumeClaim, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use std::time::Duration;

use crate::owners::controller_of;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Neither finished nor ending.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Since when the pod is ready.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
}

pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// Ready for so long.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).unwrap_or(0));
    ready_since(pod).is_some_and(|since| {
        wanted.is_zero()
            || Duration::try_from(now.duration_since(since)).is_ok_and(|age| age >= wanted)
    })
}

/// How long until the pod counts as available, if it is ready but not long enough.
pub fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let wanted = Duration::from_secs(u64::try_from(min_ready_seconds).ok().filter(|s| *s > 0)?);
    let age = Duration::try_from(now.duration_since(ready_since(pod)?)).unwrap_or_default();
    wanted.checked_sub(age).filter(|left| !left.is_zero())
}

pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// A pod from a template, for its controller.
pub fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    owner_name: &str,
    owner: OwnerReference,
) -> core::Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{owner_name}-")),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Whether a pod on a node uses a claim.
pub fn uses_claim(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    // A kubelet does not start a pod whose claim is on its way out.
    if node_name(pod).is_empty() {
        return false;
    }
    let shut_down = pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0);
    let owned =
        controller_of(&claim.metadata).is_some_and(|o| Some(&o.uid) == pod.metadata.uid.as_ref());
    claims_of(pod)
        .any(|(name, ephemeral)| name == claim.name_any() && (!ephemeral || owned && !shut_down))
}
