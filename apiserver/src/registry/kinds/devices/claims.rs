//! Claims for devices, and templates of them.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::gvk::GroupResource;
use apimachinery::object::set;
use apimachinery::{Value, names, object};
use serde_json::json;

use super::super::check::{At, Seen, annotations, immutable, labels, supported};
use super::super::{STATUS, checked, child, default_to, each, keep};
use super::{
    ADMIN_LABEL, MAX, MAX_ALTERNATIVES, bounded, fully_qualified, label, opaque, required,
    selectors,
};
use crate::registry::{Context, Strategy};

/// Names of requests, each with those of its alternatives.
pub(super) type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

pub(super) fn request_names<'a>(devices: &At<'a>) -> RequestNames<'a> {
    let names_of = |at: &At<'a>| at.items().map(|r| r.at("name").str()).collect();
    devices
        .at("requests")
        .items()
        .map(|r| (r.at("name").str(), names_of(&r.at("firstAvailable"))))
        .collect()
}

/// `request` or `request/alternative`
pub(super) fn request_ref(errors: &mut ErrorList, at: &At<'_>, names: &RequestNames<'_>) {
    const TEXT: &str = "must be the name of a request in the claim or the name of a request and a \
         subrequest separated by '/'";
    let name = at.str();
    let parts: Vec<&str> = name.split('/').collect();
    let known = match parts.as_slice() {
        [one] => names.contains_key(one),
        [one, other] => names.get(one).is_some_and(|all| all.contains(other)),
        _ => {
            errors.push(at.invalid_as(name, TEXT));
            return;
        }
    };
    for part in parts {
        let messages = names::dns1123_label(part);
        errors.extend(messages.into_iter().map(|m| at.invalid_as(part, m)));
    }
    if !known {
        errors.push(at.invalid_as(name, TEXT));
    }
}

pub(super) fn request_refs(errors: &mut ErrorList, at: &At<'_>, names: &RequestNames<'_>) {
    if !bounded(errors, at, MAX) {
        return;
    }
    let mut seen = Seen::default();
    at.items().for_each(|name| request_ref(errors, &name, names));
    for name in at.items() {
        if !seen.insert(name.str()) {
            errors.push(name.duplicate());
        }
    }
}

/// `spec` of a claim.
fn claim_spec(errors: &mut ErrorList, spec: &At<'_>) {
    let devices = spec.at("devices");
    let known = request_names(&devices);
    let requests = devices.at("requests");
    if bounded(errors, &requests, MAX) {
        requests.items().for_each(|r| request(errors, &r));
        unique(errors, &requests);
    }
    let constraints = devices.at("constraints");
    if bounded(errors, &constraints, MAX) {
        for constraint in constraints.items() {
            request_refs(errors, &constraint.at("requests"), &known);
            let attribute = constraint.at("matchAttribute");
            if attribute.is_set() {
                fully_qualified(errors, &attribute);
            } else {
                errors.push(attribute.required(""));
            }
        }
    }
    let config = devices.at("config");
    if bounded(errors, &config, MAX) {
        for one in config.items() {
            request_refs(errors, &one.at("requests"), &known);
            opaque(errors, &one);
        }
    }
}

/// No name twice.
pub(super) fn unique(errors: &mut ErrorList, list: &At<'_>) {
    let mut seen = Seen::default();
    for item in list.items() {
        if !seen.insert(item.at("name").str()) {
            errors.push(FieldError::duplicate(item.path(), item.at("name").str()));
        }
    }
}

pub(super) fn request(errors: &mut ErrorList, at: &At<'_>) {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    label(errors, &at.at("name"));
    let (exactly, alternatives) = (at.at("exactly"), at.at("firstAvailable"));
    match (exactly.is_set(), !alternatives.is_empty()) {
        (false, false) => errors.push(at.required(ONE)),
        (true, true) => {
            errors.push(at.invalid_as(Value::Null, format!("{ONE}, but multiple fields are set")));
        }
        (true, false) => device_request(errors, &exactly),
        (false, true) => {
            if bounded(errors, &alternatives, MAX_ALTERNATIVES) {
                for one in alternatives.items() {
                    label(errors, &one.at("name"));
                    device_request(errors, &one);
                }
                unique(errors, &alternatives);
            }
        }
    }
}

fn device_request(errors: &mut ErrorList, at: &At<'_>) {
    required(errors, &at.at("deviceClassName"), names::dns1123_subdomain);
    selectors(errors, &at.at("selectors"));
    let (mode, count) = (at.at("allocationMode"), at.at("count"));
    match mode.str() {
        "All" if count.int() != 0 => {
            let text = "must not be specified when allocationMode is 'All'";
            errors.push(count.invalid(text));
        }
        "All" => {}
        "ExactCount" if count.int() <= 0 => {
            errors.push(count.invalid_as(count.int(), "must be greater than zero"));
        }
        "ExactCount" => {}
        _ => supported(errors, &mode, &["All", "ExactCount"]),
    }
}

/// Fields of requests that belong to gates that are off.
fn drop_from_requests(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in each(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly") {
            drop_from_request(exactly);
        }
        each(request, "firstAvailable").for_each(drop_from_request);
    }
    for constraint in each(devices, "constraints") {
        object::remove(constraint, &["distinctAttribute"]);
    }
}

fn drop_from_request(request: &mut Value) {
    for field in ["tolerations", "capacity"] {
        object::remove(request, &[field]);
    }
}

pub(super) fn default_requests(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in each(devices, "requests") {
        if request.get("exactly").is_some_and(Value::is_object) {
            default_request(&mut request["exactly"]);
        }
        each(request, "firstAvailable").for_each(default_request);
    }
}

fn default_request(request: &mut Value) {
    default_to(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" {
        default_to(request, "count", 1);
    }
}

/// Whoever asks for access as an administrator needs a namespace that is marked for it.
pub(super) fn admin_access(
    errors: &mut ErrorList,
    context: &Context<'_>,
    object: &Value,
    asks: Option<FieldError>,
) {
    let Some(asks) = asks else { return };
    let namespaces = GroupResource::new("", "namespaces");
    let found = context.reader.get(&namespaces, "", object::namespace(object));
    if found.is_none_or(|ns| object::label(&ns, ADMIN_LABEL) != Some("true")) {
        errors.push(asks);
    }
}

fn admin_request(spec: &At<'_>, shown: &At<'_>) -> Option<FieldError> {
    let requests = spec.down(&["devices", "requests"]);
    let (i, _) =
        requests.items().enumerate().find(|(_, r)| r.down(&["exactly", "adminAccess"]).bool())?;
    let path = shown.down(&["devices", "requests"]).path().index(i).child("adminAccess");
    Some(FieldError::forbidden(&path, admin_text()))
}

pub(super) fn admin_text() -> String {
    format!(
        "admin access to devices requires the `{ADMIN_LABEL}: true` label on the containing \
         namespace"
    )
}

pub(super) struct Claims;

impl Strategy for Claims {
    fn default(&self, object: &mut Value) {
        default_requests(child(object, "spec"));
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({}));
        drop_from_requests(child(object, "spec"));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
        drop_from_requests(child(object, "spec"));
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            admin_access(errors, context, object, admin_request(&spec, &spec));
            claim_spec(errors, &spec);
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| immutable(errors, &root.at("spec"), &old["spec"]))
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

pub(super) struct Templates;

impl Strategy for Templates {
    fn default(&self, object: &mut Value) {
        default_requests(child(child(object, "spec"), "spec"));
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        drop_from_requests(child(child(object, "spec"), "spec"));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, _: &Value) {
        drop_from_requests(child(child(object, "spec"), "spec"));
    }

    fn validate(&self, context: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let template = root.at("spec");
            let spec = template.at("spec");
            admin_access(errors, context, object, admin_request(&spec, &template));
            annotations(errors, &template.down(&["metadata", "annotations"]));
            labels(errors, &template.down(&["metadata", "labels"]));
            claim_spec(errors, &spec);
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| immutable(errors, &root.at("spec"), &old["spec"]))
    }
}

/// A device, as allocations name it.
pub(super) type DeviceId = [String; 3];

pub(super) fn device_id(device: &Value) -> DeviceId {
    ["driver", "pool", "device"].map(|f| object::str_at(device, &[f]).to_owned())
}

pub(super) fn allocated(claim: &Value) -> BTreeSet<DeviceId> {
    let results = object::list_at(claim, &["status", "allocation", "devices", "results"]);
    results.iter().map(device_id).collect()
}
