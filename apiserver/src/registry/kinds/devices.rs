//! The group `resource.k8s.io`: devices, classes of them, and claims for them.
//!
//! What upstream keeps behind gates that are off (taints of devices, devices in parts, binding
//! conditions, shared capacity, extended resources of classes) is dropped, as upstream drops it.

use std::collections::{BTreeMap, BTreeSet};

use apimachinery::field::{ErrorList, FieldError};
use apimachinery::gvk::GroupResource;
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{
    At, Seen, annotations, immutable, invalid_each, labels, legacy_cidr, same, supported,
};
use super::pods::{self, volumes::csi_driver_name};
use super::row::Rows;
use super::storage::keep_metadata;
use super::{STATUS, checked, child, count_up, default_to, each, keep, selectable};
use crate::registry::{Context, Strategy};

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
        row.strategy(Claims).status(ClaimStatus).columns(named([
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

/// Names of requests, each with those of its alternatives.
type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn request_names<'a>(devices: &At<'a>) -> RequestNames<'a> {
    let names_of = |at: &At<'a>| at.items().map(|r| r.at("name").str()).collect();
    devices
        .at("requests")
        .items()
        .map(|r| (r.at("name").str(), names_of(&r.at("firstAvailable"))))
        .collect()
}

/// `request` or `request/alternative`
fn request_ref(errors: &mut ErrorList, at: &At<'_>, names: &RequestNames<'_>) {
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

fn request_refs(errors: &mut ErrorList, at: &At<'_>, names: &RequestNames<'_>) {
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
fn unique(errors: &mut ErrorList, list: &At<'_>) {
    let mut seen = Seen::default();
    for item in list.items() {
        if !seen.insert(item.at("name").str()) {
            errors.push(FieldError::duplicate(item.path(), item.at("name").str()));
        }
    }
}

fn request(errors: &mut ErrorList, at: &At<'_>) {
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

fn default_requests(spec: &mut Value) {
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
fn admin_access(
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

fn admin_text() -> String {
    format!(
        "admin access to devices requires the `{ADMIN_LABEL}: true` label on the containing \
         namespace"
    )
}

struct Claims;

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

struct Templates;

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
type DeviceId = [String; 3];

fn device_id(device: &Value) -> DeviceId {
    ["driver", "pool", "device"].map(|f| object::str_at(device, &[f]).to_owned())
}

fn allocated(claim: &Value) -> BTreeSet<DeviceId> {
    let results = object::list_at(claim, &["status", "allocation", "devices", "results"]);
    results.iter().map(device_id).collect()
}

struct ClaimStatus;

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

fn reserved(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
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

struct Slices;

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

fn pool(errors: &mut ErrorList, at: &At<'_>) {
    pool_name(errors, &at.at("name"));
    let (count, generation) = (at.at("resourceSliceCount"), at.at("generation"));
    if count.int() <= 0 {
        errors.push(count.invalid_as(count.int(), "must be greater than zero"));
    }
    if generation.int() < 0 {
        errors.push(generation.invalid("must be greater than or equal to zero"));
    }
}

fn device(errors: &mut ErrorList, at: &At<'_>) {
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
fn is_semantic_version(text: &str) -> bool {
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

    #[test]
    fn claims_have_states() {
        let claim = |status: Value| state(&json!({"status": status}));
        assert_eq!(claim(json!({})), "pending");
        assert_eq!(claim(json!({"allocation": {}})), "allocated");
        assert_eq!(claim(json!({"allocation": {}, "reservedFor": [{}]})), "allocated,reserved");
    }
}
