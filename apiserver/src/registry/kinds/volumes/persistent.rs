//! PersistentVolumes.

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::set;
use apimachinery::{Value, names, object};
use serde_json::json;

use super::super::cells::{age_column, column, named, wide};
use super::super::check::{At, immutable, invalid_each, same, supported, supported_if_set};
use super::super::difference::difference;
use super::super::pods::volumes as sources;
use super::super::{STATUS, checked, child, default_absent, default_to, keep, node_labels, pods};
use super::claims::storage;
use super::{
    CLASS, MOUNT_OPTIONS, access_modes, class_name, class_of, or_unset, phase, short_modes,
};
use crate::api::rfc3339;
use crate::registry::{Column, Context, Strategy};

pub(super) struct Volumes;

impl Strategy for Volumes {
    fn default(&self, object: &mut Value) {
        default_volume(object);
    }

    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        let now = rfc3339(context.now);
        set(object, &["status"], json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            volume_spec(errors, object::name(object), &root.at("spec"));
            mount_options(errors, root);
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            volume_spec(errors, object::name(object), &root.at("spec"));
            mount_options(errors, root);
            volume_update(errors, root, old);
        })
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        volume_warnings(object)
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn default_volume(object: &mut Value) {
    default_to(child(object, "status"), "phase", "Pending");
    let spec = child(object, "spec");
    default_to(spec, "persistentVolumeReclaimPolicy", "Retain");
    default_absent(spec, "volumeMode", "Filesystem");
    default_sources(spec);
}

/// Defaults of what kinds of volumes have.
pub(in super::super) fn default_sources(spec: &mut Value) {
    if spec.get("hostPath").is_some_and(Value::is_object) {
        default_absent(&mut spec["hostPath"], "type", "");
    }
    for (source, field, value) in [
        ("iscsi", "iscsiInterface", "default"),
        ("rbd", "pool", "rbd"),
        ("rbd", "user", "admin"),
        ("rbd", "keyring", "/etc/ceph/keyring"),
        ("scaleIO", "storageMode", "ThinProvisioned"),
        ("scaleIO", "fsType", "xfs"),
    ] {
        if spec.get(source).is_some_and(Value::is_object) {
            default_to(&mut spec[source], field, value);
        }
    }
    if spec.get("azureDisk").is_some_and(Value::is_object) {
        let disk = &mut spec["azureDisk"];
        default_absent(disk, "cachingMode", "ReadWrite");
        default_absent(disk, "kind", "Shared");
        default_absent(disk, "fsType", "ext4");
        default_absent(disk, "readOnly", false);
    }
}

fn volume_spec(errors: &mut ErrorList, name: &str, spec: &At<'_>) {
    modes_of_volume(errors, spec);
    let capacity = spec.at("capacity");
    if capacity.is_empty() {
        errors.push(capacity.required(""));
    }
    if capacity.value().get("storage").is_none() || capacity.len() > 1 {
        let shown = if capacity.is_set() { capacity.value().clone() } else { json!(null) };
        errors.push(FieldError::not_supported(capacity.path(), shown, &["storage"]));
    }
    for (_, amount) in capacity.entries() {
        basic_amount(errors, &amount);
        if let Some(q) = amount.quantity().filter(|q| q.sign() <= 0) {
            errors.push(amount.invalid_as(q.to_string(), "must be greater than zero"));
        }
    }
    let policy = spec.at("persistentVolumeReclaimPolicy");
    if !policy.is_empty() {
        supported(errors, &policy, &["Delete", "Recycle", "Retain"]);
    }
    let affinity = spec.at("nodeAffinity");
    if affinity.is_set() {
        let required = affinity.at("required");
        if required.is_set() {
            pods::node_selector(errors, &required);
        } else {
            errors.push(required.required("must specify required node constraints"));
        }
    }
    source(errors, name, spec);
    if spec.down(&["hostPath", "path"]).str() == "/" && policy.str() == "Recycle" {
        errors.push(policy.forbidden("may not be 'recycle' for a hostPath mount of '/'"));
    }
    class_name(errors, &spec.at("storageClassName"));
    supported_if_set(errors, &spec.at("volumeMode"), &["Block", "Filesystem"]);
    let attributes = spec.at("volumeAttributesClassName");
    if attributes.is_set() {
        if attributes.is_empty() {
            errors.push(attributes.required("an empty string is disallowed"));
        }
        class_name(errors, &attributes);
        if !spec.at("csi").is_set() {
            errors.push(
                spec.at("csi").required("has to be specified when using volumeAttributesClassName"),
            );
        }
    }
}

fn modes_of_volume(errors: &mut ErrorList, spec: &At<'_>) {
    let modes = spec.at("accessModes");
    if modes.is_empty() {
        errors.push(modes.required(""));
    }
    access_modes(errors, &modes);
}

/// A volume within a VolumeAttachment, which no claim can be for.
pub(in super::super) fn inline_volume(errors: &mut ErrorList, spec: &At<'_>) {
    const TEXT: &str = "may not be specified in the context of inline volumes";
    if spec.at("claimRef").is_set() {
        errors.push(spec.at("claimRef").forbidden(TEXT));
    }
    if !spec.at("capacity").is_empty() {
        errors.push(spec.at("capacity").forbidden(TEXT));
    }
    if !spec.at("csi").is_set() {
        errors
            .push(spec.at("csi").required("has to be specified in the context of inline volumes"));
    }
    modes_of_volume(errors, spec);
    let policy = spec.at("persistentVolumeReclaimPolicy");
    if !matches!(policy.str(), "" | "Retain") {
        errors.push(policy.forbidden("may only be Retain in the context of inline volumes"));
    }
    if spec.at("nodeAffinity").is_set() {
        errors.push(spec.at("nodeAffinity").forbidden(TEXT));
    }
    source(errors, "", spec);
    if !spec.at("storageClassName").is_empty() {
        errors.push(spec.at("storageClassName").forbidden(TEXT));
    }
    let mode = spec.at("volumeMode");
    if mode.is_set() && mode.str() != "Filesystem" {
        errors.push(mode.forbidden(
            "may not specify volumeMode other than Filesystem in the context of inline volumes",
        ));
    }
}

pub(super) fn basic_amount(errors: &mut ErrorList, at: &At<'_>) {
    if let Some(q) = at.quantity().filter(|q| q.value() < 0) {
        errors.push(at.invalid_as(q.value(), "must be a valid resource quantity"));
    }
}

/// Kinds of volumes that take options for mounting in an annotation.
const MOUNTED: [&str; 13] = [
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "nfs",
    "rbd",
    "quobyte",
    "iscsi",
    "cinder",
    "cephfs",
    "azureFile",
    "vsphereVolume",
    "azureDisk",
    "photonPersistentDisk",
];

fn mount_options(errors: &mut ErrorList, root: &At<'_>) {
    let at = root.down(&["metadata", "annotations", MOUNT_OPTIONS]);
    let spec = root.at("spec");
    if at.is_set() && !MOUNTED.iter().any(|source| spec.at(source).is_set()) {
        errors.push(at.forbidden("may not specify mount options for this volume type"));
    }
}

/// Kinds of volumes, in the order in which the first counts, with the name in paths of errors.
const SOURCES: [(&str, &str); 22] = [
    ("hostPath", "hostPath"),
    ("gcePersistentDisk", "persistentDisk"),
    ("awsElasticBlockStore", "awsElasticBlockStore"),
    ("glusterfs", "glusterfs"),
    ("flocker", "flocker"),
    ("nfs", "nfs"),
    ("rbd", "rbd"),
    ("quobyte", "quobyte"),
    ("cephfs", "cephfs"),
    ("iscsi", "iscsi"),
    ("cinder", "cinder"),
    ("fc", "fc"),
    ("flexVolume", "flexVolume"),
    ("azureFile", "azureFile"),
    ("vsphereVolume", "vsphereVolume"),
    ("photonPersistentDisk", "photonPersistentDisk"),
    ("portworxVolume", "portworxVolume"),
    ("azureDisk", "azureDisk"),
    ("scaleIO", "scaleIO"),
    ("local", "local"),
    ("storageos", "storageos"),
    ("csi", "csi"),
];

pub(super) fn source(errors: &mut ErrorList, name: &str, spec: &At<'_>) {
    let mut found = false;
    for (field, shown) in SOURCES {
        let at = spec.at(field);
        if !at.is_set() {
            continue;
        }
        if found && field != "flexVolume" {
            errors.push(at.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        found = true;
        let at = At::new(at.value(), spec.path().child(shown));
        match field {
            "local" => {
                let path = at.at("path");
                match path.str() {
                    "" => errors.push(path.required("")),
                    _ => sources::no_backsteps(errors, &path),
                }
                let affinity = spec.at("nodeAffinity");
                if !affinity.is_set() {
                    errors.push(affinity.required("Local volume requires node affinity"));
                }
            }
            "csi" => csi(errors, &at),
            "iscsi" => {
                sources::of_volume(errors, field, &at);
                iscsi_name(errors, &at, name);
                let secret = at.at("secretRef");
                if secret.is_set() && secret.at("name").is_empty() {
                    errors.push(secret.at("name").required(""));
                }
            }
            _ => {
                sources::of_volume(errors, field, &at);
                with_namespace(errors, field, &at);
            }
        }
    }
    if !found {
        errors.push(spec.required("must specify a volume type"));
    }
}

fn csi(errors: &mut ErrorList, at: &At<'_>) {
    sources::csi_driver_name(errors, &at.at("driver"));
    if at.at("volumeHandle").is_empty() {
        errors.push(at.at("volumeHandle").required(""));
    }
    for field in [
        "controllerPublishSecretRef",
        "controllerExpandSecretRef",
        "nodePublishSecretRef",
        "nodeExpandSecretRef",
    ] {
        let secret = at.at(field);
        if secret.is_set() {
            let (name, namespace) = (secret.at("name"), secret.at("namespace"));
            match name.str() {
                "" => errors.push(name.required("")),
                text => invalid_each(errors, &name, names::dns1123_subdomain(text)),
            }
            match namespace.str() {
                "" => errors.push(namespace.required("")),
                text => invalid_each(errors, &namespace, names::dns1123_label(text)),
            }
        }
    }
}

fn iscsi_name(errors: &mut ErrorList, at: &At<'_>, volume: &str) {
    let portal = at.at("targetPortal");
    if at.at("initiatorName").is_set() && volume.len() + 1 + portal.len() > 64 {
        errors.push(at.at("targetportal").invalid_as(
            portal.str(),
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
             iscsi.initiatorName is specified.",
        ));
    }
}

/// Volumes have no namespace, so what they refer to must name one.
fn with_namespace(errors: &mut ErrorList, kind: &str, at: &At<'_>) {
    let secret = at.at("secretRef");
    if matches!(kind, "cinder" | "storageos") && secret.is_set() {
        if kind == "storageos" && secret.at("name").is_empty() {
            errors.push(secret.at("name").required(""));
        }
        if secret.at("namespace").is_empty() {
            errors.push(secret.at("namespace").required(""));
        }
    }
    let namespace = at.at("secretNamespace");
    if kind == "azureFile" && namespace.is_set() && namespace.is_empty() {
        errors.push(namespace.required(""));
    }
    let endpoints = at.at("endpointsNamespace");
    if kind == "glusterfs" && endpoints.is_set() {
        if endpoints.is_empty() {
            let text = "if the endpointnamespace is set, it must be a valid namespace name";
            errors.push(endpoints.invalid(text));
        } else {
            invalid_each(errors, &endpoints, names::dns1123_label(endpoints.str()));
        }
    }
}

fn volume_update(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let spec = root.at("spec");
    let before = &old["spec"];
    let source = |spec: &Value| -> Value {
        SOURCES.iter().filter_map(|(f, _)| Some(((*f).to_owned(), spec.get(*f)?.clone()))).collect()
    };
    let (mut new_source, old_source) = (source(spec.value()), source(before));
    const EXPAND: &str = "controllerExpandSecretRef";
    if before.pointer("/csi").is_some() && before.pointer(&format!("/csi/{EXPAND}")).is_none() {
        object::remove(&mut new_source, &["csi", EXPAND]);
    }
    if !same(&new_source, &old_source) {
        let difference = difference(&old_source, &new_source);
        let path = apimachinery::field::Path::new("spec.persistentvolumesource");
        errors.push(FieldError::forbidden(
            &path,
            format!("spec.persistentvolumesource is immutable after creation\n{difference}"),
        ));
    }
    let was = |field: &str| before.get(field).unwrap_or(&Value::Null);
    let bare = |field: &str| At::new(spec.at(field).value(), apimachinery::field::Path::new(field));
    immutable(errors, &bare("volumeMode"), was("volumeMode"));
    let affinity = bare("nodeAffinity");
    if !was("nodeAffinity").is_null() && !same(affinity.value(), was("nodeAffinity")) {
        errors.push(
            affinity.invalid("field is immutable, except for updating from beta label to GA"),
        );
    }
    let class = spec.at("volumeAttributesClassName");
    if !was("volumeAttributesClassName").is_null() && !class.is_set() {
        errors.push(class.forbidden("update from non-nil value to nil is forbidden"));
    }
}

fn volume_warnings(object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    for (key, text) in [
        (CLASS, "deprecated since v1.8; use \"storageClassName\" attribute instead"),
        (MOUNT_OPTIONS, "deprecated since v1.31; use \"mountOptions\" attribute instead"),
    ] {
        if object::annotation(object, key).is_some() {
            warnings.push(format!("metadata.annotations[{key}]: {text}"));
        }
    }
    let spec = &object["spec"];
    if spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        warnings.push(
            "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. \
             Instead, the recommended approach is to use dynamic provisioning."
                .to_owned(),
        );
    }
    let required = At::root(object).down(&["spec", "nodeAffinity", "required"]);
    for term in required.at("nodeSelectorTerms").items() {
        node_labels::term(&mut warnings, &term, false);
    }
    for (field, shown, since, gone) in [
        ("cephfs", "cephfs", "v1.28", "v1.31"),
        ("photonPersistentDisk", "photonPersistentDisk", "v1.11", "v1.16"),
        ("scaleIO", "scaleIO", "v1.16", "v1.22"),
        ("storageos", "storageOS", "v1.22", "v1.25"),
        ("glusterfs", "glusterfs", "v1.25", "v1.26"),
        ("rbd", "rbd", "v1.28", "v1.31"),
    ] {
        if spec.get(field).is_some_and(|v| !v.is_null()) {
            warnings
                .push(format!("spec.{shown}: deprecated in {since}, non-functional in {gone}+"));
        }
    }
    warnings
}

pub(super) struct VolumeStatus;

impl Strategy for VolumeStatus {
    fn default(&self, object: &mut Value) {
        default_volume(object);
    }

    fn prepare_for_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) {
        const TIME: [&str; 2] = ["status", "lastPhaseTransitionTime"];
        keep(object, old, &["spec"]);
        let phase = |o: &Value| object::str_at(o, &["status", "phase"]).to_owned();
        let time = |o: &Value| object::str_at(o, &TIME).to_owned();
        if phase(object) == phase(old) {
            if time(object).is_empty() {
                keep(object, old, &TIME);
            }
        } else if time(object).is_empty() || time(object) == time(old) {
            set(object, &TIME, rfc3339(context.now));
        }
    }
}

pub(super) fn volume_columns() -> Vec<Column> {
    named([
        column("Capacity", "string", "Size of the volume.", |o, _| {
            storage(o, &["spec", "capacity", "storage"]).to_string().into()
        }),
        column("Access Modes", "string", "Ways to mount it.", |o, _| {
            short_modes(object::list_at(o, &["spec", "accessModes"])).into()
        }),
        column("Reclaim Policy", "string", "What becomes of it without its claim.", |o, _| {
            object::str_at(o, &["spec", "persistentVolumeReclaimPolicy"]).into()
        }),
        column("Status", "string", "Phase of the volume.", |o, _| phase(o).into()),
        column("Claim", "string", "Whose it is.", |o, _| {
            let of = |field| object::str_at(o, &["spec", "claimRef", field]);
            match object::get(o, &["spec", "claimRef"]) {
                Some(_) => format!("{}/{}", of("namespace"), of("name")).into(),
                None => "".into(),
            }
        }),
        column("StorageClass", "string", "Class of the volume.", |o, _| class_of(o).into()),
        column("VolumeAttributesClass", "string", "Class of its attributes.", |o, _| {
            or_unset(o, "volumeAttributesClassName")
        }),
        column("Reason", "string", "Why it is in its phase.", |o, _| {
            object::str_at(o, &["status", "reason"]).into()
        }),
        age_column(),
        wide("VolumeMode", "string", "Whether it is a file system or a device.", |o, _| {
            or_unset(o, "volumeMode")
        }),
    ])
}
