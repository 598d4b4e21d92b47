//! The group `resource.k8s.io`: devices, classes of them, and claims for them.
//!
//! What upstream keeps behind gates that are off (taints of devices, devices in parts, binding
//! conditions, shared capacity, extended resources of classes) is dropped, as upstream drops it.

mod claims;
mod slices;
mod status;

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::object::set;
use apimachinery::{Value, names, object};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{At, invalid_each};
use super::pods::volumes::csi_driver_name;
use super::row::Rows;
use super::{META_AND_SPEC, checked, count_up, selectable};
use crate::registry::{Context, Strategy};
use claims::{Claims, Templates};
use slices::Slices;
use status::ClaimStatus;

const GROUP: (&str, &str) = ("resource.k8s.io", "v1");
/// Entries that most lists may have.
const MAX: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_DEVICES: usize = 128;
const MAX_RESERVED: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_IPS: usize = 16;
/// Bytes of what only a driver understands, and of expressions.
const MAX_TEXT: usize = 10 << 10;
const MAX_POOL_NAME: usize = 253;
const MAX_ID: usize = 32;
const MAX_ATTRIBUTE: usize = 64;
const ADMIN_LABEL: &str = "resource.kubernetes.io/admin-access";

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(GROUP, ("DeviceClass", "deviceclasses"), |row| {
        row.cluster().strategy(Classes).columns(named([age_column()]))
    });
    rows.add(GROUP, ("ResourceClaim", "resourceclaims"), |row| {
        row.strategy(Claims).part("status", ClaimStatus, META_AND_SPEC).columns(named([
            column("State", "string", "Whether it has its devices.", |o, _| state(o).into()),
            age_column(),
        ]))
    });
    rows.add(GROUP, ("ResourceClaimTemplate", "resourceclaimtemplates"), |row| {
        row.strategy(Templates).columns(named([age_column()]))
    });
    rows.add(GROUP, ("ResourceSlice", "resourceslices"), |row| {
        row.cluster()
            .strategy(Slices)
            .fields(selectable! {
                "spec.nodeName" => ["spec", "nodeName"],
                "spec.driver" => ["spec", "driver"],
            })
            .columns(named([
                column("Node", "string", "Where the devices are.", |o, _| {
                    object::str_at(o, &["spec", "nodeName"]).into()
                }),
                column("Driver", "string", "Whose devices they are.", |o, _| {
                    object::str_at(o, &["spec", "driver"]).into()
                }),
                column("Pool", "string", "Pool that they belong to.", |o, _| {
                    object::str_at(o, &["spec", "pool", "name"]).into()
                }),
                age_column(),
            ]))
    });
}

fn state(claim: &Value) -> String {
    let deleted = !object::deletion_timestamp(claim).is_empty();
    let mut states: Vec<&str> = Vec::new();
    if deleted {
        states.push("deleted");
    }
    if object::get(claim, &["status", "allocation"]).is_none() {
        if !deleted {
            states.push("pending");
        }
    } else {
        states.push("allocated");
        if !object::list_at(claim, &["status", "reservedFor"]).is_empty() {
            states.push("reserved");
        }
    }
    states.join(",")
}

/// The list, if it is not longer than it may be.
fn bounded(errors: &mut ErrorList, at: &At<'_>, max: usize) -> bool {
    let fits = at.len() <= max;
    if !fits {
        errors.push(FieldError::too_many(at.path(), at.len(), max));
    }
    fits
}

fn required(errors: &mut ErrorList, at: &At<'_>, check: fn(&str) -> Vec<String>) {
    match at.str() {
        "" => errors.push(at.required("")),
        text => invalid_each(errors, at, check(text)),
    }
}

/// As [`required`], for names that are only checked: an empty one is invalid.
fn label(errors: &mut ErrorList, at: &At<'_>) {
    let messages = names::dns1123_label(at.str());
    errors.extend(messages.into_iter().map(|m| at.invalid_as(at.str(), m)));
}

struct Classes;

impl Strategy for Classes {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
        object::remove(object, &["spec", "extendedResourceName"]);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        if object::get(old, &["spec", "extendedResourceName"]).is_none() {
            object::remove(object, &["spec", "extendedResourceName"]);
        }
        count_up(object, old, &["spec"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let spec = root.at("spec");
            selectors(errors, &spec.at("selectors"));
            let config = spec.at("config");
            if bounded(errors, &config, MAX) {
                config.items().for_each(|c| opaque(errors, &c));
            }
        })
    }
}

fn selectors(errors: &mut ErrorList, at: &At<'_>) {
    if !bounded(errors, at, MAX) {
        return;
    }
    for cel in at.items().map(|s| s.at("cel")) {
        let expression = cel.at("expression");
        if !cel.is_set() {
            errors.push(cel.required(""));
        } else if expression.is_empty() {
            errors.push(expression.required(""));
        } else if expression.len() > MAX_TEXT {
            errors.push(expression.too_long(MAX_TEXT));
        }
    }
}

/// What only the driver understands.
fn opaque(errors: &mut ErrorList, at: &At<'_>) {
    let opaque = at.at("opaque");
    if !opaque.is_set() {
        errors.push(opaque.required(""));
        return;
    }
    csi_driver_name(errors, &opaque.at("driver"));
    raw(errors, &opaque.at("parameters"));
}

fn raw(errors: &mut ErrorList, at: &At<'_>) {
    if !at.is_set() {
        errors.push(at.required(""));
    } else if at.value().to_string().len() > MAX_TEXT {
        errors.push(at.too_long(MAX_TEXT));
    } else if !at.value().is_object() {
        errors.push(at.invalid_as("<value omitted>", "must be a valid JSON object"));
    }
}

fn c_identifier(errors: &mut ErrorList, at: &At<'_>, text: &str) {
    if text.len() > MAX_ID {
        errors.push(at.too_long(MAX_ID));
    }
    errors.extend(names::c_identifier(text).into_iter().map(|m| at.invalid_as(text, m)));
}

/// `name` or `domain/name`
fn qualified(errors: &mut ErrorList, at: &At<'_>, name: &str) {
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => c_identifier(errors, at, id),
        [domain, id] => {
            match *domain {
                "" => errors.push(at.invalid_as("", "the domain must not be empty")),
                domain => {
                    let domain = json!(domain);
                    csi_driver_name(errors, &At::new(&domain, at.path().clone()));
                }
            }
            match *id {
                "" => errors.push(at.invalid_as("", "the name must not be empty")),
                id => c_identifier(errors, at, id),
            }
        }
        _ => {}
    }
}

fn fully_qualified(errors: &mut ErrorList, at: &At<'_>) {
    qualified(errors, at, at.str());
    if !at.str().contains('/') {
        errors.push(
            at.invalid("a fully qualified name must be a domain and a name separated by a slash"),
        );
    }
}

fn pool_name(errors: &mut ErrorList, at: &At<'_>) {
    if at.is_empty() {
        errors.push(at.required(""));
        return;
    }
    if at.len() > MAX_POOL_NAME {
        errors.push(at.too_long(MAX_POOL_NAME));
    }
    for part in at.str().split('/') {
        let messages = names::dns1123_subdomain(part);
        errors.extend(messages.into_iter().map(|m| at.invalid_as(part, m)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn claims_have_states() {
        let claim = |status: Value| state(&json!({"status": status}));
        assert_eq!(claim(json!({})), "pending");
        assert_eq!(claim(json!({"allocation": {}})), "allocated");
        assert_eq!(claim(json!({"allocation": {}, "reservedFor": [{}]})), "allocated,reserved");
    }
}
