//! Defaults of pods and of the pod templates in workloads (k8s.io/kubernetes
//! `apis/core/v1/defaults.go`). All of them are safe to apply again.

use apimachinery::amounts::is_hugepages;
use apimachinery::quantity::Quantity;
use apimachinery::{Map, Value};
use serde_json::json;

use super::super::resources::{aggregate_limits, aggregate_requests, overcommits};
use super::super::{child, default_absent, default_to, each};

/// The fields of a PodSpec that hold containers.
pub const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

/// What holds for any PodSpec, in pods and templates.
pub fn pod_spec(spec: &mut Value) {
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "restartPolicy", "Always");
    default_absent(spec, "securityContext", json!({}));
    default_absent(spec, "terminationGracePeriodSeconds", 30);
    default_to(spec, "schedulerName", "default-scheduler");
    both_accounts(spec);
    for volume in each(spec, "volumes") {
        self::volume(volume);
    }
    for field in CONTAINERS {
        each(spec, field).for_each(container);
    }
    if let Some(list) = spec.get_mut("overhead") {
        round_up(list);
    }
}

/// What holds for pods beyond their specs.
pub fn pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    let host_network = spec["hostNetwork"].as_bool() == Some(true);
    for field in ["containers", "initContainers"] {
        for container in each(spec, field) {
            requests_from_limits(container);
            if host_network {
                host_ports(container);
            }
        }
    }
    pod_level_limits(spec);
    pod_level_requests(spec);
    default_absent(spec, "enableServiceLinks", true);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|s| s < 0) {
        spec["terminationGracePeriodSeconds"] = 1.into();
    }
    pod_spec(spec);
    both_ips(child(pod, "status"));
}

/// `podIP` is the first of `podIPs`; where they differ, the older field holds.
fn both_ips(status: &mut Value) {
    let one = status["podIP"].as_str().unwrap_or("").to_owned();
    let first = status["podIPs"][0]["ip"].as_str().unwrap_or("").to_owned();
    if one.is_empty() && !first.is_empty() {
        status["podIP"] = first.into();
    } else if one != first {
        status["podIPs"] = json!([{"ip": one}]);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both always say the same.
fn both_accounts(spec: &mut Value) {
    let name = match (spec["serviceAccountName"].as_str(), spec["serviceAccount"].as_str()) {
        (Some(name), _) if !name.is_empty() => name.to_owned(),
        (_, Some(old)) if !old.is_empty() => old.to_owned(),
        _ => return,
    };
    if let Some(map) = spec.as_object_mut() {
        map.insert("serviceAccountName".to_owned(), name.as_str().into());
        map.insert("serviceAccount".to_owned(), name.into());
    }
}

/// A container of any sort.
fn container(container: &mut Value) {
    let policy = pull_policy(container["image"].as_str().unwrap_or(""));
    default_to(container, "imagePullPolicy", policy);
    default_to(container, "terminationMessagePath", "/dev/termination-log");
    default_to(container, "terminationMessagePolicy", "File");
    default_absent(container, "resources", json!({}));
    for port in each(container, "ports") {
        default_to(port, "protocol", "TCP");
    }
    for field in ["limits", "requests"] {
        if let Some(list) = container["resources"].get_mut(field) {
            round_up(list);
        }
    }
    for env in each(container, "env") {
        if let Some(source) = env.get_mut("valueFrom").and_then(|f| f.get_mut("fieldRef")) {
            default_to(source, "apiVersion", "v1");
        }
        if let Some(key) = env.get_mut("valueFrom").and_then(|f| f.get_mut("fileKeyRef")) {
            default_absent(key, "optional", false);
        }
        divisor(env.get_mut("valueFrom"));
    }
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(field).filter(|p| p.is_object()) {
            self::probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let handler = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook));
        if let Some(get) = handler.and_then(|h| h.get_mut("httpGet")) {
            http_get(get);
        }
    }
}

/// Go encodes a divisor that nobody set as "0".
fn divisor(source: Option<&mut Value>) {
    if let Some(field) = source.and_then(|f| f.get_mut("resourceFieldRef"))
        && field.is_object()
    {
        default_absent(field, "divisor", "0");
    }
}

/// `Always` for the tag `latest`, which is also that of an image without tag and digest.
pub fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    let latest = match (name.split_once('@'), name.rsplit_once(':')) {
        (Some((name, _)), _) => name.ends_with(":latest"),
        (None, Some((_, tag))) => tag == "latest",
        (None, None) => parses_as_image(image),
    };
    if latest { "Always" } else { "IfNotPresent" }
}

/// What is no image reference has no tag either, not even an implied one.
fn parses_as_image(image: &str) -> bool {
    !image.is_empty()
        && image.bytes().all(|b| {
            b.is_ascii_lowercase()
                || b.is_ascii_digit()
                || b"._-/:".contains(&b)
                || b.is_ascii_uppercase()
        })
        && !image.split('/').next_back().unwrap_or("").bytes().any(|b| b.is_ascii_uppercase())
        // Each component begins and ends with a letter or a digit.
        && image.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
                && !part.contains("..")
        })
}

fn probe(probe: &mut Value) {
    for (field, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        default_to(probe, field, value);
    }
    if let Some(get) = probe.get_mut("httpGet").filter(|g| g.is_object()) {
        http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc").filter(|g| g.is_object()) {
        default_absent(grpc, "service", "");
    }
}

fn http_get(get: &mut Value) {
    default_to(get, "path", "/");
    default_to(get, "scheme", "HTTP");
}

fn host_ports(container: &mut Value) {
    for port in each(container, "ports") {
        let number = port["containerPort"].clone();
        if !number.is_null() {
            default_to(port, "hostPort", number);
        }
    }
}

/// Amounts are whole thousandths at least.
fn round_up(list: &mut Value) {
    for value in list.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let Some(text) = value.as_str() else { continue };
        // Only nano and micro amounts can be finer; the common case stays as it is.
        let fine = text.ends_with(['n', 'u']) || text.contains(['e', 'E', '.']);
        if fine
            && let Ok(quantity) = text.parse::<Quantity>()
            && quantity.milli_value().unsigned_abs() < 1_000_000_000
        {
            let rounded = Quantity::from_millis(quantity.milli_value(), quantity.format());
            *value = rounded.to_string().into();
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let requests = child(child(container, "resources"), "requests");
    for (name, amount) in limits {
        default_absent(requests, &name, amount);
    }
}

/// Pod-level limits of huge pages follow from the containers'.
fn pod_level_limits(spec: &mut Value) {
    let resources = &spec["resources"];
    let has = |field: &str| resources[field].as_object().is_some_and(|m| !m.is_empty());
    if !has("limits") && !has("requests") {
        return;
    }
    let add: Vec<(String, String)> = aggregate_limits(spec)
        .into_iter()
        .filter(|(name, _)| is_hugepages(name) && resources["requests"].get(name).is_none())
        .map(|(name, amount)| (name, amount.to_string()))
        .collect();
    if !add.is_empty() {
        let limits = child(child(spec, "resources"), "limits");
        for (name, amount) in add {
            default_absent(limits, &name, amount);
        }
    }
}

/// Pod-level requests are the containers', and the pod's limits where they have none.
fn pod_level_requests(spec: &mut Value) {
    let Some(limits) = spec["resources"]["limits"].as_object().cloned() else { return };
    if limits.is_empty() {
        return;
    }
    let pod_level = |name: &str| name == "cpu" || name == "memory" || is_hugepages(name);
    let sums = aggregate_requests(spec);
    let requests = child(child(spec, "resources"), "requests");
    for (name, amount) in sums {
        if pod_level(&name) && overcommits(&name) {
            default_absent(requests, &name, amount.to_string());
        }
    }
    for (name, amount) in limits {
        if pod_level(&name) {
            default_absent(requests, &name, amount);
        }
    }
}

const VOLUME_SOURCES: [&str; 31] = [
    "hostPath",
    "emptyDir",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "gitRepo",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "persistentVolumeClaim",
    "rbd",
    "flexVolume",
    "cinder",
    "cephfs",
    "flocker",
    "downwardAPI",
    "fc",
    "azureFile",
    "configMap",
    "vsphereVolume",
    "quobyte",
    "azureDisk",
    "photonPersistentDisk",
    "projected",
    "portworxVolume",
    "scaleIO",
    "storageos",
    "csi",
    "ephemeral",
    "image",
    "",
];

fn volume(volume: &mut Value) {
    if volume.is_object()
        && VOLUME_SOURCES.iter().all(|s| volume.get(*s).is_none_or(Value::is_null))
    {
        default_absent(volume, "emptyDir", json!({}));
    }
    const MODE: i64 = 0o644;
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            default_absent(source, "defaultMode", MODE);
            downward_items(source);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|s| s.is_object()) {
        default_absent(path, "type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|s| s.is_object()) {
        let policy = pull_policy(image["reference"].as_str().unwrap_or(""));
        default_to(image, "pullPolicy", policy);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in each(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").filter(|s| s.is_object()) {
                default_absent(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(claim) = volume.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate"))
    {
        default_absent(child(claim, "spec"), "volumeMode", "Filesystem");
    }
    legacy_volume(volume);
}

fn downward_items(source: &mut Value) {
    for item in each(source, "items") {
        if let Some(field) = item.get_mut("fieldRef").filter(|f| f.is_object()) {
            default_to(field, "apiVersion", "v1");
        }
        divisor(Some(item));
    }
}

/// Declared defaults of volume sources that are older than CSI.
fn legacy_volume(volume: &mut Value) {
    let fields: [(&str, &[(&str, Value)]); 4] = [
        ("iscsi", &[("iscsiInterface", json!("default"))]),
        (
            "rbd",
            &[
                ("pool", json!("rbd")),
                ("user", json!("admin")),
                ("keyring", json!("/etc/ceph/keyring")),
            ],
        ),
        (
            "azureDisk",
            &[
                ("cachingMode", json!("ReadWrite")),
                ("kind", json!("Shared")),
                ("fsType", json!("ext4")),
                ("readOnly", json!(false)),
            ],
        ),
        ("scaleIO", &[("storageMode", json!("ThinProvisioned")), ("fsType", json!("xfs"))]),
    ];
    for (source, defaults) in fields {
        if let Some(source) = volume.get_mut(source).filter(|s| s.is_object()) {
            for (field, value) in defaults {
                default_absent(source, field, value.clone());
            }
        }
    }
}

/// The template of a workload.
pub fn template(template: &mut Value) {
    pod_spec(child(template, "spec"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_pulled_by_their_tag() {
        let cases = [
            ("x", "Always"),
            ("a.b/c", "Always"),
            ("localhost:5000/x", "Always"),
            ("a__b", "Always"),
            ("x:latest", "Always"),
            ("a/b:t", "IfNotPresent"),
            ("a@sha256:x", "IfNotPresent"),
            // What is no image has no tag.
            ("-x", "IfNotPresent"),
            ("a/b-", "IfNotPresent"),
            ("a/-b", "IfNotPresent"),
            ("a..b/c", "IfNotPresent"),
            ("_a", "IfNotPresent"),
        ];
        for (image, want) in cases {
            assert_eq!(pull_policy(image), want, "{image}");
        }
    }
}
