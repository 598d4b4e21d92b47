//! APIServices: who serves a version of a group (kube-aggregator `apis/apiregistration`).

use apimachinery::Value;
use apimachinery::field::ErrorList;
use apimachinery::{names, object};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{At, service_reference, supported};
use super::row::Rows;
use super::{META_AND_SPEC, STATUS, checked, default_absent, keep};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("apiregistration.k8s.io", "v1"), ("APIService", "apiservices"), |row| {
        row.cluster()
            .category("api-extensions")
            .prefix("apiregistration.k8s.io/apiservices")
            .strategy(Services)
            .part("status", Status, META_AND_SPEC)
            .columns(named([
                column("Service", "string", "Who serves it.", |o, _| {
                    match object::get(o, &["spec", "service"]).filter(|s| s.is_object()) {
                        Some(service) => {
                            let text = |field| object::str_at(service, &[field]);
                            format!("{}/{}", text("namespace"), text("name")).into()
                        }
                        None => "Local".into(),
                    }
                }),
                column("Available", "string", "Whether it can be asked.", |o, _| available(o)),
                age_column(),
            ]))
    });
}

/// The condition of that type.
pub(crate) fn condition<'a>(service: &'a Value, ty: &str) -> Option<&'a Value> {
    object::list_at(service, &["status", "conditions"]).iter().find(|c| c["type"] == ty)
}

fn available(service: &Value) -> Value {
    let Some(condition) = condition(service, "Available") else { return "Unknown".into() };
    let text = |field| object::str_at(condition, &[field]);
    match (text("status"), text("reason")) {
        ("True", _) => "True".into(),
        (status, "") => status.into(),
        (status, reason) => format!("{status} ({reason})").into(),
    }
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        if let Some(service) = object.pointer_mut("/spec/service")
            && service.is_object()
        {
            default_absent(service, "port", 443);
        }
    }

    fn prepare_for_create(&self, context: &Context<'_>, object: &mut Value) {
        object::set(object, &["status"], json!({}));
        if object::get(object, &["spec", "service"]).is_none_or(Value::is_null) {
            let now = crate::api::rfc3339(context.now);
            object::set(
                object,
                &["status", "conditions"],
                json!([{"type": "Available", "status": "True", "lastTransitionTime": now,
                    "reason": "Local", "message": "Local APIServices are always available"}]),
            );
        }
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, errors_of)
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn errors_of(root: &At<'_>, errors: &mut ErrorList) {
    let spec = root.at("spec");
    let (group, version) = (spec.at("group"), spec.at("version"));
    let wanted = format!("{}.{}", version.str(), group.str());
    let name = root.down(&["metadata", "name"]);
    if name.str() != wanted {
        errors.push(name.invalid(format!("must be `spec.version+\".\"+spec.group`: {wanted:?}")));
    }
    if group.is_empty() && version.str() != "v1" {
        let text = "only v1 may have an empty group and it better be legacy kube";
        errors.push(group.required(text));
    }
    if !group.is_empty() {
        let wrong = names::dns1123_subdomain(group.str());
        errors.extend(wrong.into_iter().map(|text| group.invalid(text)));
    }
    let wrong = names::dns1035_label(version.str());
    errors.extend(wrong.into_iter().map(|text| version.invalid_as(version.str(), text)));
    for (field, most) in [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)] {
        let priority = spec.at(field);
        if !(1..=most).contains(&priority.int()) {
            let text = format!("must be positive and less than {most}");
            errors.push(priority.invalid_as(priority.int(), text));
        }
    }
    let (service, bundle) = (spec.at("service"), spec.at("caBundle"));
    let insecure = spec.at("insecureSkipTLSVerify");
    if !service.is_set() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", bundle.len() / 4 * 3);
            errors.push(bundle.invalid_as(shown, "local APIServices may not have a caBundle"));
        }
        if insecure.bool() {
            let text = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(insecure.invalid(text));
        }
        return;
    }
    service_reference(errors, &service, ["namespace", "name"]);
    if insecure.bool() && !bundle.is_empty() {
        errors.push(insecure.invalid("may not be true if caBundle is present"));
    }
}

struct Status;

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        Services.default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
            keep(object, old, &["metadata", field]);
        }
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            for condition in root.down(&["status", "conditions"]).items() {
                supported(errors, &condition.at("status"), &["True", "False", "Unknown"]);
            }
        })
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}
