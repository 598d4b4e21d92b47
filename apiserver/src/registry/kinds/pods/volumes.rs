//! Validation of volumes.

use std::collections::BTreeMap;

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::{Value, names};

use super::super::check::{self, At, Seen, invalid_each, one_of, supported_if_set};
use super::super::{resources, subdomain_name};
use super::containers::{field_ref, resource_field_ref};
use super::spec::Options;

/// Volume sources in the order of upstream's rules: the first one counts, others are too many.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// `spec.volumes`; gives the good ones by name. `pod_name` is empty for templates.
pub fn volumes<'a>(
    errors: &mut ErrorList,
    at: &At<'a>,
    pod_name: &str,
    options: &Options,
) -> BTreeMap<&'a str, &'a Value> {
    let mut good: BTreeMap<&str, &Value> = BTreeMap::new();
    let created: Vec<String> = at
        .items()
        .filter(|v| !pod_name.is_empty() && v.at("ephemeral").is_set())
        .map(|v| format!("{pod_name}-{}", v.at("name").str()))
        .collect();
    for volume in at.items() {
        let before = errors.len();
        source(errors, &volume, pod_name, options);
        let name = volume.at("name");
        match name.str() {
            "" => errors.push(name.required("")),
            text => invalid_each(errors, &name, names::dns1123_label(text)),
        }
        if good.contains_key(name.str()) {
            errors.push(name.duplicate());
        }
        if errors.len() == before {
            good.insert(name.str(), volume.value());
        }
        let claim = volume.down(&["persistentVolumeClaim", "claimName"]);
        if created.iter().any(|c| c == claim.str()) {
            errors.push(
                claim.invalid("must not reference a PVC that gets created for an ephemeral volume"),
            );
        }
    }
    good
}

fn source(errors: &mut ErrorList, volume: &At<'_>, pod_name: &str, options: &Options) {
    let mut found = false;
    for kind in SOURCES {
        let at = volume.at(kind);
        if !at.is_set() {
            continue;
        }
        if found {
            errors.push(at.forbidden("may not specify more than 1 volume type"));
            continue;
        }
        found = true;
        match kind {
            "emptyDir" => empty_dir(errors, &at),
            "hostPath" => host_path(errors, &at),
            "gitRepo" => {
                required(errors, &at, &["repository"]);
                descending_path(errors, &at.at("directory"));
            }
            "secret" => with_items(errors, &at, "secretName"),
            "configMap" => with_items(errors, &at, "name"),
            "nfs" => nfs(errors, &at),
            "persistentVolumeClaim" => required(errors, &at, &["claimName"]),
            "downwardAPI" => {
                mode(errors, &at.at("defaultMode"));
                for file in at.at("items").items() {
                    downward_file(errors, &At::new(file.value(), at.path().clone()));
                }
            }
            "projected" => projected(errors, &at),
            "csi" => csi(errors, &at),
            "ephemeral" => ephemeral(errors, volume, &at, pod_name),
            "image" => {
                if options.is_pod && at.at("reference").is_empty() {
                    errors.push(at.at("reference").required(""));
                }
                one_of(errors, &at.at("pullPolicy"), &["Always", "IfNotPresent", "Never"]);
            }
            old => in_tree(errors, old, &at),
        }
    }
    if !found {
        errors.push(volume.required("must specify a volume type"));
    }
}

fn required(errors: &mut ErrorList, at: &At<'_>, fields: &[&str]) {
    for field in fields.iter().map(|f| at.at(f)).filter(At::is_zero) {
        errors.push(field.required(""));
    }
}

fn empty_dir(errors: &mut ErrorList, at: &At<'_>) {
    let limit = at.at("sizeLimit");
    if limit.quantity().is_some_and(|q| q.sign() < 0) {
        errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
    }
}

fn host_path(errors: &mut ErrorList, at: &At<'_>) {
    let path = at.at("path");
    if path.is_empty() {
        errors.push(path.required(""));
        return;
    }
    no_backsteps(errors, &path);
    const TYPES: [&str; 8] = [
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    supported_if_set(errors, &at.at("type"), &TYPES);
}

fn nfs(errors: &mut ErrorList, at: &At<'_>) {
    required(errors, at, &["server", "path"]);
    let path = at.at("path");
    if !path.str().starts_with('/') {
        errors.push(path.invalid_as(path.str(), "must be an absolute path"));
    }
}

/// File modes: `0` to `0777`.
fn mode(errors: &mut ErrorList, at: &At<'_>) {
    if at.opt_int().is_some_and(|m| !(0..=0o777).contains(&m)) {
        errors.push(at.invalid("must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

/// Secrets and ConfigMaps as volumes.
fn with_items(errors: &mut ErrorList, at: &At<'_>, name: &str) {
    required(errors, at, &[name]);
    mode(errors, &at.at("defaultMode"));
    for item in at.at("items").items() {
        key_to_path(errors, &item);
    }
}

fn key_to_path(errors: &mut ErrorList, at: &At<'_>) {
    required(errors, at, &["key", "path"]);
    non_reserved_path(errors, &at.at("path"));
    mode(errors, &at.at("mode"));
}

fn downward_file(errors: &mut ErrorList, at: &At<'_>) {
    const FIELDS: [&str; 5] = [
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
    ];
    required(errors, at, &["path"]);
    non_reserved_path(errors, &at.at("path"));
    let (field, resource) = (at.at("fieldRef"), at.at("resourceFieldRef"));
    if field.is_set() {
        field_ref(errors, &field, &FIELDS);
        if resource.is_set() {
            errors.push(at.invalid_as(
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
    } else if resource.is_set() {
        resource_field_ref(errors, &resource, true);
    } else {
        errors.push(at.required("one of fieldRef and resourceFieldRef is required"));
    }
    mode(errors, &at.at("mode"));
}

fn projected(errors: &mut ErrorList, at: &At<'_>) {
    mode(errors, &at.at("defaultMode"));
    let mut paths = Seen::default();
    for source in at.at("sources").items() {
        let mut count = 0;
        for kind in ["secret", "configMap"] {
            let from = source.at(kind);
            if from.is_set() {
                count += 1;
                required(errors, &from, &["name"]);
                for item in from.at("items").items() {
                    key_to_path(errors, &item);
                    let shown = from.at("name").str();
                    unique_path(errors, at, &mut paths, item.at("path").str(), shown);
                }
            }
        }
        let downward = source.at("downwardAPI");
        if downward.is_set() {
            count += 1;
            for file in downward.at("items").items() {
                downward_file(errors, &At::new(file.value(), downward.path().clone()));
                let path = file.at("path").str();
                unique_path(errors, at, &mut paths, path, path);
            }
        }
        let token = source.at("serviceAccountToken");
        if token.is_set() {
            count += 1;
            token_projection(errors, at, &token);
        }
        let bundle = source.at("clusterTrustBundle");
        if bundle.is_set() {
            count += 1;
            trust_bundle(errors, at, &bundle, &mut paths);
        }
        if count > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type per source"));
        }
    }
}

fn unique_path(errors: &mut ErrorList, at: &At<'_>, paths: &mut Seen, path: &str, shown: &str) {
    if !path.is_empty() && !paths.insert(path) {
        errors.push(at.invalid_as(shown, "conflicting duplicate paths"));
    }
}

fn token_projection(errors: &mut ErrorList, volume: &At<'_>, at: &At<'_>) {
    let seconds = at.at("expirationSeconds");
    if seconds.int() < 600 {
        errors.push(
            seconds.invalid_as(seconds.int(), "may not specify a duration less than 10 minutes"),
        );
    }
    if seconds.int() > 1 << 32 {
        errors.push(seconds.invalid("may not specify a duration larger than 2^32 seconds"));
    }
    // Upstream reports the path as a field of the volume.
    let path = At::new(at.at("path").value(), volume.path().child("path"));
    if path.is_empty() {
        errors.push(path.required(""));
    } else {
        non_reserved_path(errors, &path);
    }
}

fn trust_bundle(errors: &mut ErrorList, volume: &At<'_>, at: &At<'_>, paths: &mut Seen) {
    let (name, signer, selector) = (at.at("name"), at.at("signerName"), at.at("labelSelector"));
    if name.is_set() && signer.is_set() {
        errors.push(at.invalid("only one of name and signerName may be used"));
    } else if name.is_set() {
        if name.is_empty() {
            errors.push(name.required("must be a valid object name"));
        }
        for message in names::dns1123_subdomain(name.str().rsplit(':').next().unwrap_or("")) {
            errors.push(name.invalid(format!("not a valid clustertrustbundlename: {message}")));
        }
        if selector.is_set() {
            errors.push(selector.invalid("labelSelector must be unset if name is specified"));
        }
    } else if signer.is_set() {
        if signer.is_empty() {
            errors.push(signer.required("must be a valid signer name"));
        }
        check::label_selector(errors, &selector);
    } else {
        errors.push(at.required("either name or signerName must be specified"));
    }
    let path = at.at("path");
    if path.is_empty() {
        errors.push(path.required(""));
    }
    non_reserved_path(errors, &path);
    unique_path(errors, volume, paths, path.str(), path.str());
}

/// Names of CSI drivers.
pub fn csi_driver_name(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
        return;
    }
    if at.len() > 63 {
        errors.push(at.too_long(63));
    }
    invalid_each(errors, at, names::dns1123_subdomain(&at.str().to_lowercase()));
}

fn csi(errors: &mut ErrorList, at: &At<'_>) {
    csi_driver_name(errors, &at.at("driver"));
    let secret = at.at("nodePublishSecretRef");
    if secret.is_set() {
        let name = secret.at("name");
        match name.str() {
            "" => errors.push(name.required("")),
            text => {
                let here = At::new(name.value(), at.path().child("name"));
                invalid_each(errors, &here, names::dns1123_subdomain(text));
            }
        }
    }
}

fn ephemeral(errors: &mut ErrorList, volume: &At<'_>, at: &At<'_>, pod_name: &str) {
    let template = at.at("volumeClaimTemplate");
    if template.is_set() {
        check::annotations(errors, &template.down(&["metadata", "annotations"]));
        check::labels(errors, &template.down(&["metadata", "labels"]));
        claim_spec(errors, &template.at("spec"));
    } else {
        errors.push(template.required(""));
    }
    let name = volume.at("name").str();
    if !pod_name.is_empty() && !name.is_empty() {
        let claim = format!("{pod_name}-{name}");
        for message in subdomain_name(&claim, false) {
            let message = format!("PVC name \"{claim}\": {message}");
            errors.push(FieldError::invalid(&at.path().child("name"), name, message));
        }
    }
}

/// `spec` of a PersistentVolumeClaim.
pub fn claim_spec(errors: &mut ErrorList, at: &At<'_>) {
    const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    let modes = at.at("accessModes");
    if modes.is_empty() {
        errors.push(modes.required("at least 1 access mode is required"));
    }
    check::label_selector(errors, &at.at("selector"));
    for mode in modes.strings().filter(|m| !MODES.contains(m)) {
        errors.push(FieldError::not_supported(modes.path(), mode, &MODES));
    }
    let single = modes.strings().any(|m| m == "ReadWriteOncePod");
    if single && modes.strings().any(|m| m != "ReadWriteOncePod" && MODES.contains(&m)) {
        errors.push(modes.forbidden("may not use ReadWriteOncePod with other access modes"));
    }
    let requests = at.down(&["resources", "requests"]);
    let storage =
        At::new(requests.at("storage").value(), at.path().child("resources").key("storage"));
    match storage.quantity() {
        None => errors.push(storage.required("")),
        Some(q) if q.sign() <= 0 => {
            errors.push(storage.invalid_as(q.to_string(), "must be greater than zero"));
        }
        Some(_) => resources::resource_value(errors, &storage, "storage"),
    }
    for field in ["storageClassName", "volumeAttributesClassName"] {
        let class = at.at(field);
        if !class.is_empty() {
            invalid_each(errors, &class, names::dns1123_subdomain(class.str()));
        }
    }
    supported_if_set(errors, &at.at("volumeMode"), &["Block", "Filesystem"]);
    data_source(errors, &at.at("dataSource"));
    data_source(errors, &at.at("dataSourceRef"));
    let (source, reference) = (at.at("dataSource"), at.at("dataSourceRef"));
    if source.is_set() && reference.is_set() {
        let differs = ["apiGroup", "kind", "name"]
            .iter()
            .any(|f| source.at(f).str() != reference.at(f).str());
        // Upstream shows a path, which has no fields that JSON would show.
        let shown = serde_json::json!({});
        if !reference.at("namespace").is_empty() {
            let text = "may not be specified when dataSourceRef.namespace is specified";
            errors.push(at.invalid_as(shown, text));
        } else if differs {
            errors.push(at.invalid_as(shown, "must match dataSourceRef"));
        }
    }
}

fn data_source(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        return;
    }
    required(errors, at, &["name", "kind"]);
    let (group, kind) = (at.at("apiGroup"), at.at("kind").str());
    if group.is_empty() && kind != "PersistentVolumeClaim" {
        let text = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.push(at.invalid_as(kind, text));
    }
    if !group.is_empty() {
        invalid_each(errors, &group, names::dns1123_subdomain(group.str()));
    }
    let namespace = at.at("namespace");
    if !namespace.is_empty() {
        invalid_each(errors, &namespace, names::dns1123_label(namespace.str()));
    }
}

/// A source that PersistentVolumes have as pods do.
pub fn of_volume(errors: &mut ErrorList, kind: &str, at: &At<'_>) {
    match kind {
        "hostPath" => host_path(errors, at),
        "nfs" => nfs(errors, at),
        old => in_tree(errors, old, at),
    }
}

/// Names of iSCSI (RFC 3720: iqn, and those of IEEE and INCITS), the unit, and who logs in.
fn iscsi(errors: &mut ErrorList, at: &At<'_>) {
    for (field, shown) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let name = at.at(field);
        let given = if field == "iqn" { !name.is_empty() } else { name.is_set() };
        if given && !is_iscsi_name(name.str()) {
            errors.push(at.at(shown).invalid_as(name.str(), "must be valid format"));
        }
    }
    let lun = at.at("lun");
    if !(0..=255).contains(&lun.int()) {
        errors.push(lun.invalid_as(lun.int(), check::range_message(0, 255)));
    }
    let logs_in = ["chapAuthDiscovery", "chapAuthSession"].iter().any(|f| at.at(f).bool());
    let secret = at.at("secretRef");
    if logs_in && !secret.is_set() {
        errors.push(secret.required(""));
    }
}

fn is_iscsi_name(name: &str) -> bool {
    let letters = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    match name.split_at_checked(4) {
        // `iqn.2001-04.com.example:storage`: a date, who had the domain then, and a name of theirs.
        Some(("iqn.", rest)) => {
            let Some((owner, own)) = rest.split_once(':') else { return false };
            let (date, domain) = owner.split_once('.').unwrap_or((owner, ""));
            let dated = date.len() == 7
                && date.bytes().enumerate().all(|(i, b)| match i {
                    4 => b == b'-',
                    _ => b.is_ascii_digit(),
                });
            dated
                && !domain.is_empty()
                && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
                && !own.is_empty()
                && !own.contains(|c: char| ",;*&$|".contains(c) || c.is_whitespace())
        }
        Some(("eui.", rest)) => letters(rest, 16),
        Some(("naa.", rest)) => letters(rest, 32),
        _ => false,
    }
}

/// Sources that are older than CSI: their required fields.
fn in_tree(errors: &mut ErrorList, kind: &str, at: &At<'_>) {
    let fields: &[&str] = match kind {
        "gcePersistentDisk" => &["pdName"],
        "awsElasticBlockStore" | "cinder" => &["volumeID"],
        "iscsi" => &["targetPortal", "iqn"],
        "glusterfs" => &["endpoints", "path"],
        "rbd" => &["monitors", "image"],
        "cephfs" => &["monitors"],
        "quobyte" => &["registry", "volume"],
        "flexVolume" => &["driver"],
        "azureFile" => &["secretName", "shareName"],
        "vsphereVolume" => &["volumePath"],
        "photonPersistentDisk" => &["pdID"],
        "portworxVolume" => &["volumeID"],
        "azureDisk" => &["diskName", "diskURI"],
        "storageos" => &["volumeName"],
        "scaleIO" => &["gateway", "system", "volumeName"],
        _ => &[],
    };
    required(errors, at, fields);
    if matches!(kind, "gcePersistentDisk" | "awsElasticBlockStore") {
        let partition = at.at("partition");
        if !(0..=255).contains(&partition.int()) {
            errors.push(partition.invalid(check::range_message(1, 255)));
        }
    }
    if kind == "iscsi" {
        iscsi(errors, at);
    }
    if kind == "azureDisk" {
        supported_if_set(errors, &at.at("cachingMode"), &["None", "ReadOnly", "ReadWrite"]);
        azure_disk(errors, at);
    }
    if kind == "fc" && at.at("targetWWNs").is_empty() && at.at("wwids").is_empty() {
        errors.push(at.at("targetWWNs").required("must specify either targetWWNs or wwids"));
    }
    if kind == "flocker" {
        let (name, uuid) = (at.at("datasetName"), at.at("datasetUUID"));
        if name.is_empty() && uuid.is_empty() {
            errors.push(at.required("one of datasetName and datasetUUID is required"));
        }
        if name.str().contains('/') {
            errors.push(name.invalid("must not contain '/'"));
        }
    }
    let secret = at.at("secretRef");
    if kind == "cinder" && secret.is_set() && secret.at("name").is_empty() {
        errors.push(secret.at("name").required(""));
    }
}

fn azure_disk(errors: &mut ErrorList, at: &At<'_>) {
    const MANAGED: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/\
        microsoft.compute/disks/{disk-id}";
    const BLOB: &str =
        "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let (kind, uri) = (at.at("kind"), at.at("diskURI"));
    supported_if_set(errors, &kind, &["Dedicated", "Managed", "Shared"]);
    if kind.str() == "Managed" && !uri.str().starts_with("/subscriptions/") {
        errors.push(FieldError::not_supported(uri.path(), uri.str(), &[MANAGED]));
    }
    if kind.is_set() && kind.str() != "Managed" && !uri.str().starts_with("https://") {
        errors.push(FieldError::not_supported(uri.path(), uri.str(), &[BLOB]));
    }
}

/// A relative path that stays below where it begins.
pub fn descending_path(errors: &mut ErrorList, at: &At<'_>) {
    if at.str().starts_with('/') {
        errors.push(at.invalid("must be a relative path"));
    }
    no_backsteps(errors, at);
}

pub fn no_backsteps(errors: &mut ErrorList, at: &At<'_>) {
    if at.str().split('/').any(|part| part == "..") {
        errors.push(at.invalid("must not contain '..'"));
    }
}

/// A descending path whose first part does not begin with two dots, which volumes keep for
/// themselves.
fn non_reserved_path(errors: &mut ErrorList, at: &At<'_>) {
    descending_path(errors, at);
    if at.str().starts_with("..") && !at.str().starts_with("../") {
        errors.push(at.invalid("must not start with '..'"));
    }
}
