//! What pods and volumes refer to.

use crate::{Value, object};

/// Marks pods that a kubelet mirrors from its own files.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

pub fn is_mirror(pod: &Value) -> bool {
    object::annotation(pod, MIRROR).is_some()
}

/// All containers of a pod: initContainers, containers, ephemeralContainers.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|kind| object::list_at(pod, &["spec", kind]))
}

pub fn volumes(pod: &Value) -> &[Value] {
    object::list_at(pod, &["spec", "volumes"])
}

fn named<'a>(object: &'a Value, path: &[&str]) -> Option<&'a str> {
    Some(object::str_at(object, path)).filter(|name| !name.is_empty())
}

fn from_env<'a>(
    pod: &'a Value,
    key_ref: &'static str,
    from: &'static str,
) -> impl Iterator<Item = &'a str> {
    containers(pod).flat_map(move |c| {
        let env = object::list_at(c, &["env"])
            .iter()
            .filter_map(move |e| named(e, &["valueFrom", key_ref, "name"]));
        let all =
            object::list_at(c, &["envFrom"]).iter().filter_map(move |e| named(e, &[from, "name"]));
        env.chain(all)
    })
}

fn projected<'a>(volume: &'a Value, source: &'static str) -> impl Iterator<Item = &'a str> {
    object::list_at(volume, &["projected", "sources"])
        .iter()
        .filter_map(move |s| named(s, &[source, "name"]))
}

/// Names of all Secrets that a pod uses.
pub fn secrets(pod: &Value) -> impl Iterator<Item = &str> {
    const VOLUMES: [&[&str]; 10] = [
        &["secret", "secretName"],
        &["azureFile", "secretName"],
        &["cephfs", "secretRef", "name"],
        &["cinder", "secretRef", "name"],
        &["flexVolume", "secretRef", "name"],
        &["rbd", "secretRef", "name"],
        &["scaleIO", "secretRef", "name"],
        &["iscsi", "secretRef", "name"],
        &["storageos", "secretRef", "name"],
        &["csi", "nodePublishSecretRef", "name"],
    ];
    let pull = object::list_at(pod, &["spec", "imagePullSecrets"]);
    let pull = pull.iter().filter_map(|s| named(s, &["name"]));
    let mounted = volumes(pod).iter().flat_map(|v| {
        VOLUMES.iter().filter_map(|path| named(v, path)).chain(projected(v, "secret"))
    });
    pull.chain(from_env(pod, "secretKeyRef", "secretRef")).chain(mounted)
}

/// Names of all ConfigMaps that a pod uses.
pub fn config_maps(pod: &Value) -> impl Iterator<Item = &str> {
    let mounted = volumes(pod).iter().flat_map(|v| {
        named(v, &["configMap", "name"]).into_iter().chain(projected(v, "configMap"))
    });
    from_env(pod, "configMapKeyRef", "configMapRef").chain(mounted)
}

/// Names of all PersistentVolumeClaims that a pod uses, those of ephemeral volumes too.
pub fn claims(pod: &Value) -> impl Iterator<Item = String> {
    volumes(pod).iter().filter_map(|v| {
        if let Some(name) = named(v, &["persistentVolumeClaim", "claimName"]) {
            return Some(name.to_owned());
        }
        object::get(v, &["ephemeral"])
            .map(|_| format!("{}-{}", object::name(pod), object::str_at(v, &["name"])))
    })
}

/// Names of all ResourceClaims of a pod that exist.
pub fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let direct = object::list_at(pod, &["spec", "resourceClaims"])
        .iter()
        .filter_map(|c| named(c, &["resourceClaimName"]));
    let generated = object::list_at(pod, &["status", "resourceClaimStatuses"])
        .iter()
        .filter_map(|s| named(s, &["resourceClaimName"]));
    let extended = named(pod, &["status", "extendedResourceClaimStatus", "resourceClaimName"]);
    direct.chain(generated).chain(extended)
}

/// Namespaces and names of the Secrets that a kubelet reads to use a PersistentVolume.
pub fn volume_secrets(volume: &Value) -> impl Iterator<Item = (&str, &str)> {
    const REFERENCES: [&[&str]; 10] = [
        &["cephfs", "secretRef"],
        &["cinder", "secretRef"],
        &["flexVolume", "secretRef"],
        &["rbd", "secretRef"],
        &["scaleIO", "secretRef"],
        &["iscsi", "secretRef"],
        &["storageos", "secretRef"],
        &["csi", "nodePublishSecretRef"],
        &["csi", "nodeStageSecretRef"],
        &["csi", "nodeExpandSecretRef"],
    ];
    let claim = object::str_at(volume, &["spec", "claimRef", "namespace"]);
    let spec = volume.get("spec").unwrap_or(&Value::Null);
    let referenced = REFERENCES.iter().filter_map(move |path| {
        let reference = object::get(spec, path)?;
        let namespace = named(reference, &["namespace"]).unwrap_or(claim);
        Some((namespace, named(reference, &["name"])?))
    });
    let azure = named(spec, &["azureFile", "secretName"])
        .map(move |name| (named(spec, &["azureFile", "secretNamespace"]).unwrap_or(claim), name));
    referenced.chain(azure)
}

/// The first kind of API object that a pod refers to, as upstream words it; a mirror pod must
/// refer to none.
///
/// # Errors
/// The name of a volume of an unknown kind, in upstream's sentence.
pub fn api_reference(pod: &Value) -> Result<Option<&'static str>, String> {
    if !object::str_at(pod, &["spec", "serviceAccountName"]).is_empty() {
        return Ok(Some("serviceaccounts"));
    }
    if secrets(pod).next().is_some() {
        return Ok(Some("secrets"));
    }
    if config_maps(pod).next().is_some() {
        return Ok(Some("configmaps"));
    }
    if !object::list_at(pod, &["spec", "resourceClaims"]).is_empty() {
        return Ok(Some("resourceclaims"));
    }
    for volume in volumes(pod) {
        if let Some(found) = volume_reference(volume)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn volume_reference(volume: &Value) -> Result<Option<&'static str>, String> {
    const LOCAL: [&str; 22] = [
        "awsElasticBlockStore",
        "azureDisk",
        "cephfs",
        "cinder",
        "downwardAPI",
        "emptyDir",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "hostPath",
        "image",
        "iscsi",
        "nfs",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ];
    const API: [(&str, &str); 7] = [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
    ];
    const PROJECTED: [(&str, &str); 5] = [
        ("configMap", "configmaps (via projected volumes)"),
        ("secret", "secrets (via projected volumes)"),
        ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    let has = |object: &Value, field: &str| object::get(object, &[field]).is_some();
    if LOCAL.iter().any(|kind| has(volume, kind)) {
        return Ok(None);
    }
    if let Some((_, says)) = API.iter().find(|(kind, _)| has(volume, kind)) {
        return Ok(Some(says));
    }
    let name = object::str_at(volume, &["name"]);
    if !has(volume, "projected") {
        return Err(format!("unknown volume type for volume  {name:?}"));
    }
    for source in object::list_at(volume, &["projected", "sources"]) {
        if let Some((_, says)) = PROJECTED.iter().find(|(kind, _)| has(source, kind)) {
            return Ok(Some(says));
        }
        if !has(source, "downwardAPI") {
            return Err(format!("unknown source for projected volume {name:?}"));
        }
    }
    Ok(None)
}
