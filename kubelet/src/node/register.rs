//! Registers the node and keeps its status current.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, ObjectReference, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::machine::go_arch;
use super::status;
use crate::kubelet::Kubelet;
use crate::objects;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const RETRY: Duration = Duration::from_secs(2);

/// Labels and taints that a node begins with.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
}

/// Reads `key=value:effect` or `key:effect`, separated by commas.
///
/// # Errors
/// Names the piece that is none.
pub fn taints(text: &str) -> Result<Vec<Taint>, String> {
    text.split(',')
        .filter(|piece| !piece.is_empty())
        .map(|piece| {
            let invalid = || format!("invalid taint spec: {piece}");
            let (rest, effect) = piece.rsplit_once(':').ok_or_else(invalid)?;
            if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
                return Err(format!("invalid taint effect: {effect}, unsupported taint effect"));
            }
            let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
            Ok(Taint {
                key: key.to_owned(),
                value: Some(value.to_owned()).filter(|v| !v.is_empty()),
                effect: effect.to_owned(),
                time_added: None,
            })
        })
        .collect()
}

/// The labels that every node has.
fn default_labels(name: &str) -> BTreeMap<String, String> {
    let arch = go_arch();
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// Registers, then reports the status until shutdown.
pub async fn keep(k: Arc<Kubelet>, beginning: Beginning) {
    let Some(client) = &k.client else { return };
    let api: Api<Node> = Api::all(client.clone());
    while let Err(error) = register(&k, &api, &beginning).await {
        tracing::warn!(%error, "node not registered");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = k.shutdown.cancelled() => return,
        }
    }
    k.event(about(&k), false, "Starting", "Starting kubelet.");
    let mut reported: Option<Instant> = None;
    let mut health = k.health.subscribe();
    let mut pressure = k.pressure.subscribe();
    let mut shutdown = k.node_shutdown.now.subscribe();
    let mut was_ready: Option<bool> = None;
    loop {
        let due = reported.is_none_or(|at| at.elapsed() >= k.config.node_status_report_frequency.0);
        match report(&k, &api, &beginning, due, &mut was_ready).await {
            Ok(true) => reported = Some(Instant::now()),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "node status not written"),
        }
        tokio::select! {
            () = tokio::time::sleep(k.config.node_status_update_frequency.0) => {}
            // What makes the node ready or not is reported at once.
            changed = health.changed() => if changed.is_err() { return },
            changed = pressure.changed() => if changed.is_err() { return },
            changed = shutdown.changed() => if changed.is_err() { return },
            () = k.shutdown.cancelled() => return,
        }
    }
}

/// The node, for events.
pub fn about(k: &Kubelet) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(k.node_name.clone()),
        // Upstream's events name the node where others have a uid.
        uid: Some(k.node_name.clone()),
        ..ObjectReference::default()
    }
}

async fn register(k: &Kubelet, api: &Api<Node>, beginning: &Beginning) -> Result<(), kube::Error> {
    if !k.config.register_node {
        return Ok(());
    }
    let mut labels = default_labels(&k.node_name);
    labels.extend(beginning.labels.clone());
    if let Some(existing) = api.get_opt(&k.node_name).await? {
        let have = existing.metadata.labels.clone().unwrap_or_default();
        let missing: BTreeMap<_, _> =
            labels.into_iter().filter(|(key, value)| have.get(key) != Some(value)).collect();
        if !missing.is_empty() {
            let patch = json!({"metadata": {"labels": missing}});
            api.patch(&k.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
        }
        return Ok(());
    }
    let mut taints = beginning.taints.clone();
    // Nothing is to be scheduled here before the first report says that it can run.
    taints.push(Taint { key: NOT_READY.into(), effect: "NoSchedule".into(), ..Taint::default() });
    let annotations = BTreeMap::from([(
        "volumes.kubernetes.io/controller-managed-attach-detach".into(),
        "true".into(),
    )]);
    let mut node = Node {
        metadata: ObjectMeta {
            name: Some(k.node_name.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints),
            provider_id: Some(k.config.provider_id.clone()).filter(|id| !id.is_empty()),
            ..NodeSpec::default()
        }),
        status: None,
    };
    node.status = Some(status::current(k, &node, &objects::now()).await);
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Writes the status if it is due or has changed. Whether it was written.
async fn report(
    k: &Kubelet,
    api: &Api<Node>,
    beginning: &Beginning,
    due: bool,
    was_ready: &mut Option<bool>,
) -> Result<bool, kube::Error> {
    let node = match api.get_opt(&k.node_name).await? {
        Some(node) => node,
        None => {
            // Somebody deleted it; it is registered again, as at the start.
            register(k, api, beginning).await?;
            return Ok(false);
        }
    };
    let old = node.status.clone().unwrap_or_default();
    k.look_for_addresses();
    let new = status::current(k, &node, &objects::now()).await;
    let ready = new.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    if *was_ready != Some(ready) {
        let reason = if ready { "NodeReady" } else { "NodeNotReady" };
        let message = format!("Node {} status is now: {reason}", k.node_name);
        if was_ready.is_some() || ready {
            k.event(about(k), false, reason, message);
        }
        *was_ready = Some(ready);
    }
    if !due && !status::differs(&old, &new) {
        return Ok(false);
    }
    let patch = patch(&old, &new);
    api.patch_status(&k.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    Ok(true)
}

/// What makes `new` of `old`.
fn patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let fields = |status: &NodeStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let mut changes = Map::new();
    for (key, value) in new {
        if old.get(&key) == Some(&value) {
            continue;
        }
        let mut value = value;
        if let (Value::Array(items), "addresses") = (&mut value, key.as_str()) {
            items.insert(0, json!({"$patch": "replace"}));
        }
        changes.insert(key, value);
    }
    json!({ "status": changes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_read() {
        let read = taints("a=b:NoSchedule,c:NoExecute").unwrap();
        assert_eq!((read[0].key.as_str(), read[0].value.as_deref()), ("a", Some("b")));
        assert_eq!((read[1].value.as_deref(), read[1].effect.as_str()), (None, "NoExecute"));
        for bad in ["a", "a:Never"] {
            assert!(taints(bad).is_err(), "{bad}");
        }
    }
}
