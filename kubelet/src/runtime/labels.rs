//! The labels and annotations that tie sandboxes and containers to their pods. They are
//! upstream's, so that either kubelet finds what the other left running.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, Pod};

pub const POD_NAME: &str = "io.kubernetes.pod.name";
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub const POD_UID: &str = "io.kubernetes.pod.uid";
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub const HASH: &str = "io.kubernetes.container.hash";
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const DELETION_GRACE: &str = "io.kubernetes.pod.deletionGracePeriod";
const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
const PORTS: &str = "io.kubernetes.container.ports";

/// Labels of a pod's sandbox: the pod's own, and its identity.
pub fn sandbox_labels(pod: &Pod) -> HashMap<String, String> {
    let own = pod.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone()));
    own.chain(identity(pod)).collect()
}

/// Labels of a pod's container.
pub fn container_labels(pod: &Pod, container: &str) -> HashMap<String, String> {
    identity(pod).chain([(CONTAINER_NAME.to_owned(), container.to_owned())]).collect()
}

fn identity(pod: &Pod) -> impl Iterator<Item = (String, String)> {
    let meta = &pod.metadata;
    [(POD_NAME, &meta.name), (POD_NAMESPACE, &meta.namespace), (POD_UID, &meta.uid)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.clone().unwrap_or_default()))
}

/// Annotations of a pod's container: what is needed to judge and to stop it without the pod.
pub fn container_annotations(
    pod: &Pod,
    container: &Container,
    restart_count: u32,
) -> HashMap<String, String> {
    let mut map = HashMap::new();
    let mut set = |key: &str, value: String| map.insert(key.to_owned(), value);
    set(HASH, format!("{:x}", container_hash(container)));
    set(RESTART_COUNT, restart_count.to_string());
    let path = container.termination_message_path.clone();
    set(TERMINATION_PATH, path.unwrap_or_default());
    set(TERMINATION_POLICY, container.termination_message_policy.clone().unwrap_or_default());
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        set(DELETION_GRACE, seconds.to_string());
    }
    let spec = pod.spec.as_ref();
    if let Some(seconds) = spec.and_then(|s| s.termination_grace_period_seconds) {
        set(TERMINATION_GRACE, seconds.to_string());
    }
    let pre_stop = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(text) = pre_stop.and_then(|handler| serde_json::to_string(handler).ok()) {
        set(PRE_STOP, text);
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty())
        && let Ok(text) = serde_json::to_string(ports)
    {
        set(PORTS, text);
    }
    map
}

/// A hash of what may not change while a container runs: its name and image. The value is
/// upstream's: FNV-1a over the text that Go's spew gives for the JSON's bytes.
pub fn container_hash(container: &Container) -> u64 {
    let mut fields = BTreeMap::new();
    fields.insert("name", container.name.as_str());
    fields.insert("image", container.image.as_deref().unwrap_or_default());
    // Go's JSON escapes these three.
    let json = serde_json::to_string(&fields)
        .unwrap_or_default()
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e");
    let numbers: Vec<String> = json.bytes().map(|b| b.to_string()).collect();
    let text = format!("([]uint8)[{}]", numbers.join(" "));
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    u64::from(hash)
}
