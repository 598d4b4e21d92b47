//! Slices: which devices there are.

use apimachinery::field::ErrorList;
use apimachinery::object::set;
use apimachinery::{Value, names, object};

use super::super::check::{At, immutable, invalid_each};
use super::super::pods::volumes::csi_driver_name;
use super::super::{checked, child, count_up, each, pods};
use super::claims::unique;
use super::{MAX, MAX_ATTRIBUTE, MAX_DEVICES, bounded, label, pool_name, qualified};
use crate::registry::{Context, Strategy};

pub(super) struct Slices;

impl Strategy for Slices {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["metadata", "generation"], 1);
        drop_from_slice(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        count_up(object, old, &["spec"]);
        drop_from_slice(object);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| slice(errors, &root.at("spec"), None))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| slice(errors, &root.at("spec"), Some(&old["spec"])))
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let driver = object::str_at(object, &["spec", "driver"]);
        if driver.to_lowercase() == driver {
            return Vec::new();
        }
        vec![format!(
            "spec.driver: driver names should be lowercase; \"{driver}\" contains uppercase characters"
        )]
    }
}

fn drop_from_slice(object: &mut Value) {
    let spec = child(object, "spec");
    for field in ["sharedCounters", "perDeviceNodeSelection"] {
        object::remove(spec, &[field]);
    }
    for device in each(spec, "devices") {
        for field in [
            "taints",
            "consumesCounters",
            "nodeName",
            "nodeSelector",
            "allNodes",
            "bindingConditions",
            "bindingFailureConditions",
            "bindsToNode",
            "allowMultipleAllocations",
        ] {
            object::remove(device, &[field]);
        }
        let capacity = device.get_mut("capacity").and_then(Value::as_object_mut);
        for (_, amount) in capacity.into_iter().flatten() {
            object::remove(amount, &["requestPolicy"]);
        }
    }
}

fn slice(errors: &mut ErrorList, spec: &At<'_>, old: Option<&Value>) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
         `perDeviceNodeSelection` is required";
    csi_driver_name(errors, &spec.at("driver"));
    pool(errors, &spec.at("pool"));
    if let Some(old) = old {
        for path in [&["pool", "name"][..], &["driver"], &["nodeName"]] {
            let was = object::get(old, path).unwrap_or(&Value::Null);
            immutable(errors, &spec.down(path), was);
        }
    }
    let mut places: Vec<&str> = Vec::new();
    let (node, selector, all) = (spec.at("nodeName"), spec.at("nodeSelector"), spec.at("allNodes"));
    if node.is_set() {
        if node.is_empty() {
            errors.push(node.invalid("must be either unset or set to a non-empty string"));
        } else {
            places.push("`nodeName`");
            invalid_each(errors, &node, names::dns1123_subdomain(node.str()));
        }
    }
    if selector.is_set() {
        places.push("`nodeSelector`");
        pods::node_selector(errors, &selector);
        let terms = selector.at("nodeSelectorTerms");
        if terms.len() != 1 {
            errors.push(terms.invalid("must have exactly one node selector term"));
        }
    }
    match all.opt_bool() {
        Some(true) => places.push("`allNodes`"),
        Some(false) => errors.push(all.invalid("must be either unset or set to true")),
        None => {}
    }
    match places.len() {
        0 => errors.push(spec.required(ONE)),
        1 => {}
        _ => errors.push(spec.invalid_as(
            format!("{{{}}}", places.join(", ")),
            format!("{ONE}, but multiple fields are set"),
        )),
    }
    let devices = spec.at("devices");
    if bounded(errors, &devices, MAX_DEVICES) {
        devices.items().for_each(|d| device(errors, &d));
        unique(errors, &devices);
    }
}

pub(super) fn pool(errors: &mut ErrorList, at: &At<'_>) {
    pool_name(errors, &at.at("name"));
    let (count, generation) = (at.at("resourceSliceCount"), at.at("generation"));
    if count.int() <= 0 {
        errors.push(count.invalid_as(count.int(), "must be greater than zero"));
    }
    if generation.int() < 0 {
        errors.push(generation.invalid("must be greater than or equal to zero"));
    }
}

pub(super) fn device(errors: &mut ErrorList, at: &At<'_>) {
    label(errors, &at.at("name"));
    let (attributes, capacity) = (at.at("attributes"), at.at("capacity"));
    let count = attributes.len() + capacity.len();
    if count > MAX {
        let text = format!("the total number of attributes and capacities must not exceed {MAX}");
        errors.push(at.invalid_as(count, text));
    }
    for (name, attribute) in attributes.entries() {
        qualified(errors, &attribute, name);
        device_attribute(errors, &attribute);
    }
    for (name, amount) in capacity.entries() {
        qualified(errors, &amount, name);
    }
}

fn device_attribute(errors: &mut ErrorList, at: &At<'_>) {
    let (text, version) = (at.at("string"), at.at("version"));
    let too_long = |at: &At<'_>| at.len() > MAX_ATTRIBUTE;
    if too_long(&text) {
        errors.push(text.too_long(MAX_ATTRIBUTE));
    }
    if version.is_set() && !is_semantic_version(version.str()) {
        errors.push(version.invalid("must be a string compatible with semver.org spec 2.0.0"));
    }
    if too_long(&version) {
        errors.push(version.too_long(MAX_ATTRIBUTE));
    }
    let kinds = ["bool", "int", "string", "version"];
    match kinds.iter().filter(|k| at.at(k).is_set()).count() {
        0 => errors.push(at.invalid_as("", "exactly one value must be specified")),
        1 => {}
        _ => errors.push(at.invalid("exactly one value must be specified")),
    }
}

/// `1.2.3-pre.1+build`
pub(super) fn is_semantic_version(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(a, b)| (a, Some(b)));
    let (core, pre) = rest.split_once('-').map_or((rest, None), |(a, b)| (a, Some(b)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let number = |s: &str| digits(s) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let mut parts = core.split('.');
    let three = parts.by_ref().take(3).filter(|p| number(p)).count() == 3 && parts.next().is_none();
    three
        && pre.is_none_or(|p| p.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|b| b.split('.').all(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_semantic() {
        for good in ["1.2.3", "0.0.0", "1.2.3-a.1+b.01", "1.0.0+x-y"] {
            assert!(is_semantic_version(good), "{good}");
        }
        for bad in ["", "1", "1.2", "1.2.3.4", "01.2.3", "1.2.3-01", "1.2.3-", "1.2.3+"] {
            assert!(!is_semantic_version(bad), "{bad}");
        }
    }
}
