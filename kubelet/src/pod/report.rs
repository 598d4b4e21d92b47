//! Sends a pod's status to the API server, when it differs from what is there.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Map, Value, json};

use super::conditions::{OWNED, PASSING};
use crate::kubelet::Kubelet;
use crate::objects::{name, namespace, uid};

/// The patch that makes `new` of `old`, `None` if they are the same. Conditions are merged by
/// type, so that those of others stay; addresses are replaced as a whole.
pub fn patch(pod_uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let fields = |status: &PodStatus| -> Map<String, Value> {
        match serde_json::to_value(status) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    };
    let (old, new) = (fields(old), fields(new));
    let mut changes = Map::new();
    for (key, value) in &new {
        if key == "conditions" {
            let changed = changed_conditions(old.get(key), value);
            if !changed.is_empty() {
                changes.insert(key.clone(), Value::Array(changed));
            }
        } else if old.get(key) != Some(value) {
            let mut value = value.clone();
            if let (Value::Array(items), "podIPs" | "hostIPs") = (&mut value, key.as_str()) {
                items.insert(0, json!({"$patch": "replace"}));
            }
            changes.insert(key.clone(), value);
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        // What others put there stays.
        if ![
            "resize",
            "nominatedNodeName",
            "resourceClaimStatuses",
            "extendedResourceClaimStatus",
            "allocatedResources",
            "resources",
        ]
        .contains(&key.as_str())
        {
            changes.insert(key.clone(), Value::Null);
        }
    }
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": pod_uid}, "status": changes}))
}

fn changed_conditions(old: Option<&Value>, new: &Value) -> Vec<Value> {
    let kind = |c: &Value| c.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let old: Vec<&Value> = old.and_then(Value::as_array).into_iter().flatten().collect();
    let mut changed = Vec::new();
    for condition in new.as_array().into_iter().flatten() {
        let name = kind(condition);
        let before = old.iter().find(|c| kind(c) == name);
        if !OWNED.contains(&name.as_str()) || before.is_some_and(|b| same(b, condition)) {
            continue;
        }
        let mut condition = condition.clone();
        for field in ["reason", "message"] {
            // A merge keeps what is not named.
            if condition.get(field).is_none() && before.is_some_and(|b| b.get(field).is_some()) {
                condition[field] = Value::Null;
            }
        }
        changed.push(condition);
    }
    let now: Vec<String> = new.as_array().into_iter().flatten().map(kind).collect();
    for gone in old.iter().map(|c| kind(c)) {
        if PASSING.contains(&gone.as_str()) && !now.contains(&gone) {
            changed.push(json!({"type": gone, "$patch": "delete"}));
        }
    }
    changed
}

/// Whether two conditions say the same; upstream's have an explicit null for the probe time.
fn same(a: &Value, b: &Value) -> bool {
    let plain = |v: &Value| {
        let mut v = v.clone();
        if let Value::Object(fields) = &mut v {
            fields.retain(|key, value| !value.is_null() && key != "lastProbeTime");
        }
        v
    };
    plain(a) == plain(b)
}

/// How sending ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    Unchanged,
    Written,
    /// The pod is no longer there, or is another one of the same name.
    Gone,
}

/// Sends a status. `target` is the pod in the API: the pod itself, or a static pod's mirror.
///
/// # Errors
/// The API server's.
pub async fn send(
    k: &Kubelet,
    target: &Pod,
    known: &PodStatus,
    new: &PodStatus,
) -> Result<Sent, kube::Error> {
    let Some(client) = &k.client else { return Ok(Sent::Unchanged) };
    let Some(patch) = patch(uid(target), known, new) else { return Ok(Sent::Unchanged) };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(target));
    match pods.patch_status(name(target), &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(Sent::Written),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(Sent::Gone),
        Err(error) => Err(error),
    }
}

/// Deletes a pod that is over from the API, if it still is this one.
///
/// # Errors
/// The API server's.
pub async fn delete(k: &Kubelet, pod: &Pod) -> Result<(), kube::Error> {
    let Some(client) = &k.client else { return Ok(()) };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace(pod));
    let preconditions = Preconditions { uid: Some(uid(pod).to_owned()), resource_version: None };
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    match pods.delete(name(pod), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn patches_hold_only_changes() {
        let condition = |status: &str| json!({"type": "Ready", "status": status});
        let foreign = json!({"type": "example.org/gate", "status": "True"});
        let old = status(json!({
            "phase": "Pending", "reason": "x", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [condition("False"), foreign],
        }));
        assert_eq!(patch("u", &old, &old), None);
        let new = status(json!({
            "phase": "Running", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [foreign, condition("True")],
        }));
        assert_eq!(
            patch("u", &old, &new).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running",
                "reason": null,
                "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}],
                "conditions": [condition("True")],
            }})
        );
    }
}
