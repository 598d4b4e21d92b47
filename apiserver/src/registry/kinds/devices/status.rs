//! What a claim was given, and who uses it.

use std::collections::BTreeSet;

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::{Value, names, object};

use super::super::check::{At, Seen, immutable, legacy_cidr, same, supported};
use super::super::pods::volumes::csi_driver_name;
use super::super::storage::keep_metadata;
use super::super::{checked, child, keep, pods};
use super::claims::{
    DeviceId, RequestNames, admin_access, admin_text, allocated, default_requests, device_id,
    request_names, request_ref, request_refs,
};
use super::{MAX, MAX_CONDITIONS, MAX_IPS, MAX_RESERVED, bounded, label, opaque, pool_name, raw};
use crate::registry::{Context, Strategy};

pub(super) struct ClaimStatus;

impl Strategy for ClaimStatus {
    fn default(&self, object: &mut Value) {
        default_requests(child(object, "spec"));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
        keep_metadata(object, old);
        let results = object.pointer_mut("/status/allocation/devices/results");
        for result in results.and_then(Value::as_array_mut).into_iter().flatten() {
            for field in [
                "shareID",
                "consumedCapacity",
                "tolerations",
                "bindingConditions",
                "bindingFailureConditions",
            ] {
                object::remove(result, &[field]);
            }
        }
        // What is said of devices goes with them.
        let (before, now) = (allocated(old), allocated(object));
        if let Some(devices) = object.pointer_mut("/status/devices").and_then(Value::as_array_mut) {
            devices.retain(|d| !before.contains(&device_id(d)) || now.contains(&device_id(d)));
            devices.iter_mut().for_each(|d| drop(object::remove(d, &["shareID"])));
        }
    }

    fn validate_update(&self, context: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            claim_admin(errors, context, root, old);
            claim_status(errors, root, old);
        })
    }
}

fn claim_admin(errors: &mut ErrorList, context: &Context<'_>, root: &At<'_>, old: &Value) {
    const RESULTS: [&str; 4] = ["status", "allocation", "devices", "results"];
    fn asks<'a>(at: &At<'a>) -> Option<At<'a>> {
        at.items().map(|r| r.at("adminAccess")).find(At::bool)
    }
    if asks(&At::root(old).down(&RESULTS)).is_none() {
        let asked = asks(&root.down(&RESULTS)).map(|at| at.forbidden(admin_text()));
        admin_access(errors, context, root.value(), asked);
    }
}

fn claim_status(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let status = root.at("status");
    let allocation = status.at("allocation");
    let was = object::get(old, &["status", "allocation"]).filter(|a| !a.is_null());
    reserved(errors, root, old);
    let devices = status.at("devices");
    let known = allocated(root.value());
    let mut seen = BTreeSet::new();
    for device in devices.items() {
        device_status(errors, &device, &known);
    }
    for device in devices.items() {
        if !seen.insert(device_id(device.value())) {
            errors.push(device.duplicate());
        }
    }
    match was {
        Some(was) if allocation.is_set() => immutable(errors, &allocation, was),
        None if allocation.is_set() => {
            let names = request_names(&root.down(&["spec", "devices"]));
            allocation_result(errors, &allocation, &names);
        }
        _ => {}
    }
}

pub(super) fn reserved(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    let status = root.at("status");
    let list = status.at("reservedFor");
    if bounded(errors, &list, MAX_RESERVED) {
        for consumer in list.items() {
            for field in ["resource", "name", "uid"].map(|f| consumer.at(f)) {
                if field.is_empty() {
                    errors.push(field.required(""));
                }
            }
        }
        let mut seen = Seen::default();
        for consumer in list.items() {
            let uid = consumer.at("uid").str();
            if !seen.insert(uid) {
                errors.push(FieldError::duplicate(consumer.path(), uid));
            }
        }
    }
    if list.is_empty() {
        return;
    }
    let before = object::list_at(old, &["status", "reservedFor"]);
    let deleted = !object::deletion_timestamp(root.value()).is_empty();
    if !status.at("allocation").is_set() {
        errors.push(list.forbidden("may not be specified when `allocated` is not set"));
    } else if deleted && list.items().any(|c| !before.iter().any(|b| same(b, c.value()))) {
        errors.push(list.forbidden(
            "new entries may not be added while `deallocationRequested` or `deletionTimestamp` \
             are set",
        ));
    }
}

fn allocation_result(errors: &mut ErrorList, at: &At<'_>, names: &RequestNames<'_>) {
    let devices = at.at("devices");
    let results = devices.at("results");
    if bounded(errors, &results, MAX) {
        for result in results.items() {
            request_ref(errors, &result.at("request"), names);
            csi_driver_name(errors, &result.at("driver"));
            pool_name(errors, &result.at("pool"));
            label(errors, &result.at("device"));
        }
    }
    let config = devices.at("config");
    if bounded(errors, &config, 2 * MAX) {
        for one in config.items() {
            let source = one.at("source");
            match source.str() {
                "" => errors.push(source.required("")),
                _ => supported(errors, &source, &["FromClaim", "FromClass"]),
            }
            request_refs(errors, &one.at("requests"), names);
            opaque(errors, &one);
        }
    }
    let selector = at.at("nodeSelector");
    if selector.is_set() {
        pods::node_selector(errors, &selector);
    }
}

fn device_status(errors: &mut ErrorList, device: &At<'_>, known: &BTreeSet<DeviceId>) {
    csi_driver_name(errors, &device.at("driver"));
    pool_name(errors, &device.at("pool"));
    label(errors, &device.at("device"));
    if !known.contains(&device_id(device.value())) {
        let id = device_id(device.value()).join("/");
        errors.push(device.invalid_as(id, "must be an allocated device in the claim"));
    }
    let conditions = device.at("conditions");
    bounded(errors, &conditions, MAX_CONDITIONS);
    check_conditions(errors, &conditions);
    let data = device.at("data");
    if data.is_set() {
        raw(errors, &data);
    }
    let network = device.at("networkData");
    for (field, max) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if network.at(field).len() > max {
            errors.push(network.at(field).too_long(max));
        }
    }
    let ips = network.at("ips");
    if bounded(errors, &ips, MAX_IPS) {
        ips.items().for_each(|ip| interface_address(errors, &ip));
        let mut seen = Seen::default();
        for ip in ips.items() {
            if !seen.insert(ip.str()) {
                errors.push(ip.duplicate());
            }
        }
    }
}

/// `10.9.8.7/24`
fn interface_address(errors: &mut ErrorList, at: &At<'_>) {
    match legacy_cidr(at.str()) {
        None => {
            errors.push(at.invalid(
                "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)",
            ))
        }
        Some(net) => {
            let canonical = format!("{}/{}", net.addr(), net.prefix_len());
            if canonical != at.str() {
                errors.push(at.invalid(format!("must be in canonical form (\"{canonical}\")")));
            }
        }
    }
}

/// `metav1.Condition`s.
fn check_conditions(errors: &mut ErrorList, at: &At<'_>) {
    let mut seen = Seen::default();
    for condition in at.items() {
        let [kind, status, reason, time, message] =
            ["type", "status", "reason", "lastTransitionTime", "message"].map(|f| condition.at(f));
        if !seen.insert(kind.str()) {
            errors.push(FieldError::duplicate(kind.path(), kind.str()));
        }
        let messages = names::qualified_name(kind.str());
        errors.extend(messages.into_iter().map(|m| kind.invalid_as(kind.str(), m)));
        supported(errors, &status, &["False", "True", "Unknown"]);
        let generation = condition.at("observedGeneration");
        if generation.int() < 0 {
            errors.push(generation.invalid("must be greater than or equal to zero"));
        }
        if time.is_empty() {
            errors.push(time.required(""));
        }
        if reason.is_empty() {
            errors.push(reason.required(""));
        } else if reason.len() > 1024 {
            errors.push(reason.too_long(1024));
        }
        if message.len() > 32 << 10 {
            errors.push(message.too_long(32 << 10));
        }
    }
}
