//! PersistentVolumeClaims.

use apimachinery::amounts::{is_native, quantity};
use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::set;
use apimachinery::quantity::Quantity;
use apimachinery::{Value, names, object};
use serde_json::json;

use super::super::cells::{age_column, column, named, wide};
use super::super::check::{At, immutable, same};
use super::super::difference::difference;
use super::super::pods::{fractional_warning, volumes as sources};
use super::super::resources::{compare, resource_value};
use super::super::{STATUS, checked, child, default_absent, default_to, keep};
use super::persistent::basic_amount;
use super::{CLASS, class_of, or_unset, phase, short_modes};
use crate::registry::{Column, Context, Strategy};

pub(super) struct Claims;

impl Strategy for Claims {
    fn default(&self, object: &mut Value) {
        default_claim(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({"phase": "Pending"}));
        let spec = child(object, "spec");
        drop_foreign_source(spec, false);
        normalize_source(spec);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
        let has = |field: &str| object::get(old, &["spec", field]).is_some_and(|v| !v.is_null());
        let spec = child(object, "spec");
        if !has("dataSource") && !has("dataSourceRef") {
            drop_foreign_source(spec, has("dataSourceRef"));
        }
        normalize_source(spec);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| sources::claim_spec(errors, &root.at("spec")))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            sources::claim_spec(errors, &root.at("spec"));
            claim_update(errors, root, old);
        })
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if object::annotation(object, CLASS).is_some() {
            warnings.push(format!(
                "metadata.annotations[{CLASS}]: deprecated since v1.8; use \"storageClassName\" \
                 attribute instead"
            ));
        }
        claim_warnings(&mut warnings, &At::root(object).at("spec"));
        warnings
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

/// Warnings about the spec of a claim, wherever it stands.
pub fn claim_warnings(warnings: &mut Vec<String>, spec: &At<'_>) {
    for field in ["requests", "limits"] {
        fractional_warning(warnings, &spec.at("resources").at(field), "storage");
    }
}

fn default_claim(object: &mut Value) {
    default_to(child(object, "status"), "phase", "Pending");
    default_absent(child(object, "spec"), "volumeMode", "Filesystem");
}

/// What old clients put into `dataSource` and was ignored still is; sources in other namespaces
/// are not taken.
pub(super) fn drop_foreign_source(spec: &mut Value, in_use: bool) {
    if !in_use && !object::str_at(spec, &["dataSourceRef", "namespace"]).is_empty() {
        object::remove(spec, &["dataSourceRef"]);
    }
    if spec.get("dataSourceRef").is_some_and(|v| !v.is_null()) {
        return;
    }
    let of = |field| object::str_at(spec, &["dataSource", field]);
    let known = match of("kind") {
        "PersistentVolumeClaim" => of("apiGroup").is_empty(),
        "VolumeSnapshot" => of("apiGroup") == "snapshot.storage.k8s.io",
        _ => false,
    };
    if !known {
        object::remove(spec, &["dataSource"]);
    }
}

/// The two fields of a claim's source say the same.
pub(super) fn normalize_source(spec: &mut Value) {
    let of = |field: &str| spec.get(field).filter(|v| !v.is_null()).cloned();
    match (of("dataSource"), of("dataSourceRef")) {
        (Some(source), None) => set(spec, &["dataSourceRef"], source),
        (None, Some(mut reference)) if object::str_at(&reference, &["namespace"]).is_empty() => {
            object::remove(&mut reference, &["namespace"]);
            set(spec, &["dataSource"], reference);
        }
        _ => {}
    }
}

pub(super) fn storage(claim: &Value, path: &[&str]) -> Quantity {
    object::get(claim, path).and_then(quantity).unwrap_or(Quantity::ZERO)
}

fn claim_update(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    const SIZE: [&str; 4] = ["spec", "resources", "requests", "storage"];
    const ATTRIBUTES: [&str; 2] = ["spec", "volumeAttributesClassName"];
    const CLASS_NAME: [&str; 2] = ["spec", "storageClassName"];
    let new = root.value();
    let (mut munged, mut before) = (new.clone(), old.clone());
    // Controllers choose the volume, once.
    if object::str_at(old, &["spec", "volumeName"]).is_empty() {
        keep(&mut before, new, &["spec", "volumeName"]);
    }
    let class_annotation = object::annotation(old, CLASS);
    let class = |o: &Value| object::get(o, &CLASS_NAME).and_then(Value::as_str).map(str::to_owned);
    let new_annotation = object::annotation(new, CLASS);
    let moved = class(old).is_none()
        && class_annotation.is_some()
        && class(new).as_deref() == class_annotation
        && new_annotation.is_none_or(|a| Some(a) == class_annotation);
    if moved {
        object::remove(&mut munged, &CLASS_NAME);
    } else {
        if new_annotation.unwrap_or("") != class_annotation.unwrap_or("") {
            let at = root.down(&["metadata", "annotations", CLASS]);
            errors.push(at.invalid_as(new_annotation.unwrap_or(""), "field is immutable"));
        }
        let from_nothing = class(old).is_none()
            && class(new).is_some()
            && class_annotation.is_none_or(|a| class(new).as_deref() == Some(a));
        if from_nothing {
            keep(&mut munged, old, &CLASS_NAME);
        }
    }
    if object::str_at(new, &["status", "phase"]) == "Bound" {
        keep(&mut munged, old, &SIZE);
        keep(&mut munged, old, &ATTRIBUTES);
    }
    let (new_spec, old_spec) = (&munged["spec"], &before["spec"]);
    if !same(new_spec, old_spec) {
        let difference = difference(old_spec, new_spec);
        errors.push(root.at("spec").forbidden(format!(
            "spec is immutable after creation except resources.requests and \
             volumeAttributesClassName for bound claims\n{difference}"
        )));
    }
    let size = storage(new, &SIZE);
    let capacity = storage(old, &["status", "capacity", "storage"]);
    if compare(size, storage(old, &SIZE)).is_lt() && compare(size, capacity).is_le() {
        errors.push(root.down(&SIZE).forbidden("field can not be less than status.capacity"));
    }
    let mode = At::new(
        root.down(&["spec", "volumeMode"]).value(),
        apimachinery::field::Path::new("volumeMode"),
    );
    immutable(errors, &mode, object::get(old, &["spec", "volumeMode"]).unwrap_or(&Value::Null));
    attributes_update(errors, &root.down(&ATTRIBUTES), old);
}

fn attributes_update(errors: &mut ErrorList, at: &At<'_>, old: &Value) {
    let was = object::get(old, &["spec", "volumeAttributesClassName"]).unwrap_or(&Value::Null);
    let current = object::get(old, &["status", "currentVolumeAttributesClassName"]);
    if same(at.value(), was) || current.is_none_or(Value::is_null) {
        return;
    }
    let to = if !at.is_set() {
        "nil"
    } else if at.is_empty() {
        "empty string"
    } else {
        return;
    };
    errors.push(at.forbidden(format!(
        "update to {to} is forbidden when status.currentVolumeAttributesClassName is not nil"
    )));
}

pub(super) struct ClaimStatus;

impl Strategy for ClaimStatus {
    fn default(&self, object: &mut Value) {
        default_claim(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        const STATES: [&str; 5] = [
            "ControllerResizeInProgress",
            "ControllerResizeInfeasible",
            "NodeResizeInProgress",
            "NodeResizeInfeasible",
            "NodeResizePending",
        ];
        checked(object, |root, errors| {
            let status = root.at("status");
            for (_, amount) in status.at("capacity").entries() {
                basic_amount(errors, &amount);
            }
            let states = status.at("allocatedResourceStatuses");
            for (name, state) in states.entries() {
                claim_resource(errors, &states, name);
                if !STATES.contains(&state.str()) {
                    let mut sorted = STATES;
                    sorted.sort_unstable();
                    errors.push(FieldError::not_supported(states.path(), name, &sorted));
                }
            }
            let allocated = status.at("allocatedResources");
            for (name, amount) in allocated.entries() {
                if !claim_resource(errors, &allocated, name) {
                    continue;
                }
                let before = errors.len();
                basic_amount(errors, &amount);
                if errors.len() == before {
                    resource_value(errors, &amount, "storage");
                }
            }
        })
    }
}

/// Names of what claims are allocated: storage, or something qualified. False for an error.
fn claim_resource(errors: &mut ErrorList, at: &At<'_>, name: &str) -> bool {
    let messages = names::qualified_name(name);
    if messages.is_empty() && is_native(name) && name != "storage" {
        errors.push(FieldError::not_supported(at.path(), name, &["storage"]));
        return false;
    }
    let good = messages.is_empty();
    errors.extend(messages.into_iter().map(|m| at.invalid_as(name, m)));
    good
}

pub(super) fn claim_columns() -> Vec<Column> {
    fn bound(o: &Value) -> bool {
        !object::str_at(o, &["spec", "volumeName"]).is_empty()
    }
    named([
        column("Status", "string", "Phase of the claim.", |o, _| phase(o).into()),
        column("Volume", "string", "The volume that it has.", |o, _| {
            object::str_at(o, &["spec", "volumeName"]).into()
        }),
        column("Capacity", "string", "Size of the volume.", |o, _| match bound(o) {
            true => storage(o, &["status", "capacity", "storage"]).to_string().into(),
            false => "".into(),
        }),
        column("Access Modes", "string", "Ways to mount it.", |o, _| match bound(o) {
            true => short_modes(object::list_at(o, &["status", "accessModes"])).into(),
            false => "".into(),
        }),
        column("StorageClass", "string", "Class of the claim.", |o, _| class_of(o).into()),
        column("VolumeAttributesClass", "string", "Class of its attributes.", |o, _| {
            or_unset(o, "volumeAttributesClassName")
        }),
        age_column(),
        wide("VolumeMode", "string", "Whether it is a file system or a device.", |o, _| {
            or_unset(o, "volumeMode")
        }),
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_two_sources_of_a_claim_agree() {
        let claim = json!({"kind": "PersistentVolumeClaim", "name": "a"});
        let other = json!({"apiGroup": "example.com", "kind": "Populator", "name": "a"});
        let cases = [
            (json!({"dataSource": claim}), json!({"dataSource": claim, "dataSourceRef": claim})),
            (json!({"dataSource": other}), json!({})),
            (json!({"dataSourceRef": other}), json!({"dataSource": other, "dataSourceRef": other})),
        ];
        for (mut spec, want) in cases {
            drop_foreign_source(&mut spec, false);
            normalize_source(&mut spec);
            assert_eq!(spec, want);
        }
    }
}
