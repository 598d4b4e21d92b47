//! Validation of metadata that all kinds share (k8s.io/apimachinery `api/validation` and
//! `apis/meta/v1/validation`).

use std::collections::BTreeSet;

use crate::field::{ErrorList, FieldError, Path, is_print};
use crate::gvk::GroupVersionKind;
use crate::names::{self, NameRule};
use crate::object::{bool_at, int_at, list_at, map_at, str_at};
use crate::{Map, Value};

/// What upstream says of a field that an update may not change.
pub const IMMUTABLE: &str = "field is immutable";
/// Bytes of all keys and values of an object's annotations together.
pub const MAX_ANNOTATION_BYTES: usize = 256 * 1024;
/// Bytes of a `fieldManager`.
pub const MAX_FIELD_MANAGER_BYTES: usize = 128;
const MAX_SUBRESOURCE_BYTES: usize = 256;

const ORPHAN_DEPENDENTS: &str = "orphan";
const DELETE_DEPENDENTS: &str = "foregroundDeletion";

/// Rules for the metadata of a new object (`ValidateObjectMeta`).
pub fn validate_object_meta(
    object: &Value,
    namespaced: bool,
    name_rule: NameRule,
    path: &Path,
) -> ErrorList {
    let meta = object.get("metadata").unwrap_or(&Value::Null);
    let mut errors = ErrorList::new();
    let generate_name = str_at(meta, &["generateName"]);
    if !generate_name.is_empty() {
        let at = path.child("generateName");
        errors.extend(invalid_each(&at, generate_name, name_rule(generate_name, true)));
    }
    let at = path.child("name");
    match str_at(meta, &["name"]) {
        "" => errors.push(FieldError::required(&at, "name or generateName is required")),
        name => errors.extend(invalid_each(&at, name, name_rule(name, false))),
    }
    let at = path.child("namespace");
    match (namespaced, str_at(meta, &["namespace"])) {
        (true, "") => errors.push(FieldError::required(&at, "")),
        (true, namespace) => {
            errors.extend(invalid_each(&at, namespace, names::dns1123_label(namespace)));
        }
        (false, "") => {}
        (false, _) => errors.push(FieldError::forbidden(&at, "not allowed on this type")),
    }
    let generation = int_at(meta, &["generation"]).unwrap_or(0);
    errors.extend(validate_nonnegative(generation, &path.child("generation")));
    errors.extend(validate_labels(meta.get("labels"), &path.child("labels")));
    errors.extend(validate_annotations(meta.get("annotations"), &path.child("annotations")));
    errors.extend(validate_owner_references(meta, &path.child("ownerReferences")));
    errors.extend(validate_finalizers(meta, &path.child("finalizers")));
    errors.extend(validate_managed_fields(meta, &path.child("managedFields")));
    errors
}

/// Rules for the metadata of a changed object (`ValidateObjectMetaUpdate`).
pub fn validate_object_meta_update(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let null = Value::Null;
    let (new, old) = (new.get("metadata").unwrap_or(&null), old.get("metadata").unwrap_or(&null));
    let mut errors = ErrorList::new();
    if !str_at(old, &["deletionTimestamp"]).is_empty() {
        errors.extend(validate_no_new_finalizers(new, old, &path.child("finalizers")));
    }
    if str_at(new, &["resourceVersion"]).is_empty() {
        let at = path.child("resourceVersion");
        errors.push(FieldError::invalid(&at, "", "must be specified for an update"));
    }
    let generation = |meta| int_at(meta, &["generation"]).unwrap_or(0);
    if generation(new) < generation(old) {
        let at = path.child("generation");
        errors.push(FieldError::invalid(&at, generation(new), "must not be decremented"));
    }
    for name in ["name", "namespace", "uid"] {
        let text = |meta| Value::from(str_at(meta, &[name]));
        errors.extend(validate_immutable_field(&text(new), &text(old), &path.child(name)));
    }
    for name in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let value = |meta: &Value| meta.get(name).cloned().unwrap_or_default();
        errors.extend(validate_immutable_field(&value(new), &value(old), &path.child(name)));
    }
    errors.extend(validate_labels(new.get("labels"), &path.child("labels")));
    errors.extend(validate_annotations(new.get("annotations"), &path.child("annotations")));
    errors.extend(validate_owner_references(new, &path.child("ownerReferences")));
    errors.extend(validate_managed_fields(new, &path.child("managedFields")));
    errors
}

/// One error for each message of a rule.
pub fn invalid_each<'a>(
    path: &'a Path,
    value: &'a str,
    messages: Vec<String>,
) -> impl Iterator<Item = FieldError> + 'a {
    messages.into_iter().map(move |m| FieldError::invalid(path, value, m))
}

/// A field that an update must leave as it is. Absent and empty are the same.
pub fn validate_immutable_field(new: &Value, old: &Value, path: &Path) -> ErrorList {
    if semantically_equal(new, old) {
        return ErrorList::new();
    }
    vec![FieldError::invalid(path, new.clone(), IMMUTABLE)]
}

/// Equality of what two values mean: null, the empty list and the empty map are alike, inside
/// of maps too, as upstream's semantic comparison has it.
pub fn semantically_equal(a: &Value, b: &Value) -> bool {
    let hollow = |v: &Value| match v {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let null = Value::Null;
            a.iter().all(|(k, v)| semantically_equal(v, b.get(k).unwrap_or(&null)))
                && b.iter().all(|(k, v)| a.contains_key(k) || hollow(v))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| semantically_equal(a, b))
        }
        _ => a == b || (hollow(a) && hollow(b)),
    }
}

/// A count or a generation.
pub fn validate_nonnegative(value: i64, path: &Path) -> ErrorList {
    if value >= 0 {
        return ErrorList::new();
    }
    vec![FieldError::invalid(path, value, "must be greater than or equal to 0")]
}

/// The key of a label.
pub fn validate_label_name(name: &str, path: &Path) -> ErrorList {
    invalid_each(path, name, names::qualified_name(name)).collect()
}

/// A map of labels.
pub fn validate_labels(labels: Option<&Value>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        errors.extend(validate_label_name(key, path));
        let value = value.as_str().unwrap_or_default();
        errors.extend(invalid_each(path, value, names::label_value(value)));
    }
    errors
}

/// A map of annotations: keys as labels' in any case, and a limit on all of them together.
pub fn validate_annotations(annotations: Option<&Value>, path: &Path) -> ErrorList {
    let Some(annotations) = annotations.and_then(Value::as_object) else {
        return ErrorList::new();
    };
    let mut errors = ErrorList::new();
    for key in annotations.keys() {
        let messages = names::qualified_name(&key.to_lowercase());
        errors.extend(invalid_each(path, key, messages));
    }
    if annotation_bytes(annotations) > MAX_ANNOTATION_BYTES {
        errors.push(FieldError::too_long(path, MAX_ANNOTATION_BYTES));
    }
    errors
}

/// What [`MAX_ANNOTATION_BYTES`] limits.
pub fn annotation_bytes(annotations: &Map) -> usize {
    annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum()
}

fn validate_owner_references(meta: &Value, path: &Path) -> ErrorList {
    let references = list_at(meta, &["ownerReferences"]);
    let mut errors = ErrorList::new();
    let mut controller: Option<String> = None;
    for reference in references {
        errors.extend(validate_owner_reference(reference, path));
        if !bool_at(reference, &["controller"]) {
            continue;
        }
        let this = format!("{}/{}", str_at(reference, &["kind"]), str_at(reference, &["name"]));
        match &controller {
            Some(first) => {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in \
                     references for {first} and {this}"
                );
                let error = FieldError::invalid(path, references.to_vec(), detail);
                errors.push(error.of_type("io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference"));
            }
            None => controller = Some(this),
        }
    }
    errors
}

fn validate_owner_reference(reference: &Value, path: &Path) -> ErrorList {
    let text = |name| str_at(reference, &[name]);
    let gvk = GroupVersionKind::from_api_version(text("apiVersion"), text("kind"));
    let mut errors = ErrorList::new();
    let mut require = |name: &'static str, empty: bool, detail: &str| {
        if empty {
            errors.push(FieldError::invalid(&path.child(name), text(name), detail));
        }
    };
    require("apiVersion", gvk.version.is_empty(), "version must not be empty");
    for name in ["kind", "name", "uid"] {
        require(name, str_at(reference, &[name]).is_empty(), "must not be empty");
    }
    if gvk == GroupVersionKind::new("", "v1", "Event") {
        let detail = format!("{gvk} is disallowed from being an owner");
        errors.push(FieldError::invalid(path, reference.clone(), detail));
    }
    errors
}

fn strings<'a>(meta: &'a Value, name: &str) -> impl Iterator<Item = &'a str> {
    list_at(meta, &[name]).iter().filter_map(Value::as_str)
}

fn validate_finalizers(meta: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for finalizer in strings(meta, "finalizers") {
        errors.extend(invalid_each(path, finalizer, names::qualified_name(finalizer)));
    }
    let has = |name| strings(meta, "finalizers").any(|f| f == name);
    if has(ORPHAN_DEPENDENTS) && has(DELETE_DEPENDENTS) {
        let detail =
            format!("finalizer {ORPHAN_DEPENDENTS} and {DELETE_DEPENDENTS} cannot be both set");
        let all = list_at(meta, &["finalizers"]).to_vec();
        errors.push(FieldError::invalid(path, all, detail));
    }
    errors
}

fn validate_no_new_finalizers(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let known: BTreeSet<&str> = strings(old, "finalizers").collect();
    let added: BTreeSet<&str> = strings(new, "finalizers").filter(|f| !known.contains(f)).collect();
    if added.is_empty() {
        return ErrorList::new();
    }
    let added: Vec<String> = added.into_iter().map(crate::field::quote).collect();
    let detail = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers \
         []string{{{}}}",
        added.join(", ")
    );
    vec![FieldError::forbidden(path, detail)]
}

fn validate_managed_fields(meta: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, entry) in list_at(meta, &["managedFields"]).iter().enumerate() {
        let at = path.index(i);
        let text = |name| str_at(entry, &[name]);
        if !["Apply", "Update"].contains(&text("operation")) {
            let detail = "must be `Apply` or `Update`";
            errors.push(FieldError::invalid(&at.child("operation"), text("operation"), detail));
        }
        if !["", "FieldsV1"].contains(&text("fieldsType")) {
            let detail = "must be `FieldsV1`";
            errors.push(FieldError::invalid(&at.child("fieldsType"), text("fieldsType"), detail));
        }
        errors.extend(validate_field_manager(text("manager"), &at.child("manager")));
        if text("subresource").len() > MAX_SUBRESOURCE_BYTES {
            errors.push(FieldError::too_long(&at.child("subresource"), MAX_SUBRESOURCE_BYTES));
        }
    }
    errors
}

/// The name of a field manager: at most 128 bytes, all printable.
pub fn validate_field_manager(manager: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if manager.len() > MAX_FIELD_MANAGER_BYTES {
        errors.push(FieldError::too_long(path, MAX_FIELD_MANAGER_BYTES));
    }
    for (i, c) in manager.char_indices().filter(|(_, c)| !is_print(*c)) {
        let detail = format!("invalid character U+{:04X} (at position {i})", c as u32);
        errors.push(FieldError::invalid(path, manager, detail));
    }
    errors
}

/// What of a label selector is not checked, for the sake of objects that are there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct LabelSelectorOptions {
    pub allow_invalid_label_value: bool,
    pub allow_unknown_operator: bool,
}

/// A `metav1.LabelSelector`; null is valid.
pub fn validate_label_selector(
    selector: Option<&Value>,
    options: LabelSelectorOptions,
    path: &Path,
) -> ErrorList {
    let Some(selector) = selector.filter(|s| !s.is_null()) else { return ErrorList::new() };
    let mut errors = validate_labels(selector.get("matchLabels"), &path.child("matchLabels"));
    for (i, requirement) in list_at(selector, &["matchExpressions"]).iter().enumerate() {
        let at = path.child("matchExpressions").index(i);
        errors.extend(validate_selector_requirement(requirement, options, &at));
    }
    errors
}

fn validate_selector_requirement(
    requirement: &Value,
    options: LabelSelectorOptions,
    path: &Path,
) -> ErrorList {
    let mut errors = ErrorList::new();
    let values = list_at(requirement, &["values"]);
    match str_at(requirement, &["operator"]) {
        "In" | "NotIn" if values.is_empty() => errors.push(FieldError::required(
            &path.child("values"),
            "must be specified when `operator` is 'In' or 'NotIn'",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(FieldError::forbidden(
            &path.child("values"),
            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
        )),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        operator if !options.allow_unknown_operator => errors.push(FieldError::invalid(
            &path.child("operator"),
            operator,
            "not a valid selector operator",
        )),
        _ => {}
    }
    errors.extend(validate_label_name(str_at(requirement, &["key"]), &path.child("key")));
    if !options.allow_invalid_label_value {
        for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
            let at = path.child("values").index(i);
            errors.extend(invalid_each(&at, value, names::label_value(value)));
        }
    }
    errors
}

/// Whether a selector's expressions hold a value that is no label value, so that an update may
/// keep it.
pub fn selector_has_invalid_value(selector: Option<&Value>) -> bool {
    selector
        .and_then(|s| map_at(s, &[]))
        .and_then(|s| s.get("matchExpressions"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .flat_map(|e| list_at(e, &["values"]))
        .filter_map(Value::as_str)
        .any(|v| !names::label_value(v).is_empty())
}

#[cfg(test)]
#[path = "meta_tests.rs"]
mod tests;
