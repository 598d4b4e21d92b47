//! Nodes.

use std::borrow::Cow;
use std::collections::BTreeSet;

use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use jiff::Timestamp;

use super::cells::{age_column, column, named, or_none, wide};
use super::check::{self, At, Seen, check_legacy_cidr, label_key, legacy_cidr, same};
use super::row::Rows;
use super::{SPEC, STATUS, checked, keep, pods, resources};
use crate::registry::{Column, Connect, Context, SelectableField, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("Node", "nodes"), |row| {
        row.cluster()
            .prefix("minions")
            .short(&["no"])
            .strategy(Nodes)
            .part("status", Status, SPEC)
            .connect("proxy", Connect::Proxy)
            .columns(columns())
            .fields(vec![SelectableField {
                label: "spec.unschedulable",
                get: |n| match object::bool_at(n, &["spec", "unschedulable"]) {
                    true => Cow::Borrowed("true"),
                    false => Cow::Borrowed("false"),
                },
            }])
    });
}

struct Nodes;

fn default(object: &mut Value) {
    let status = super::child(object, "status");
    if let Some(capacity) = object::get(status, &["capacity"]).cloned() {
        super::default_absent(status, "allocatable", capacity);
    }
    both_cidrs(object);
}

/// `podCIDR` is the first of `podCIDRs`; where they differ, the older field holds.
fn both_cidrs(object: &mut Value) {
    let one = object::str_at(object, &["spec", "podCIDR"]).to_owned();
    let first = object::list_at(object, &["spec", "podCIDRs"]).first().cloned();
    match (one.as_str(), first) {
        ("", Some(first)) => set(object, &["spec", "podCIDR"], first),
        ("", None) => {}
        (one, Some(first)) if first == one => {}
        (one, _) => set(object, &["spec", "podCIDRs"], vec![Value::from(one)]),
    }
}

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        object::remove(object, &["spec", "configSource"]);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
        if object::get(old, &["spec", "configSource"]).is_none() {
            object::remove(object, &["spec", "configSource"]);
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            taints(errors, root);
            amounts(errors, root);
            pod_cidrs(errors, &root.down(&["spec", "podCIDRs"]));
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| validate_update(errors, root, old))
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let spec = At::root(object).at("spec");
        if spec.at("configSource").is_set() {
            warnings.push("spec.configSource: the feature is removed".to_owned());
        }
        if !spec.at("externalID").is_empty() {
            let text = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
            warnings.push(text.to_owned());
        }
        spec.at("podCIDRs").items().for_each(|at| pods::cidr_warning(&mut warnings, &at));
        warnings
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

struct Status;

impl Strategy for Status {
    fn default(&self, object: &mut Value) {
        default(object);
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| validate_update(errors, root, old))
    }
}

/// Upstream reports taints as fields of the metadata.
fn taints(errors: &mut ErrorList, root: &At<'_>) {
    let list =
        At::new(root.down(&["spec", "taints"]).value(), Path::new("metadata").child("taints"));
    let mut seen = Seen::default();
    for taint in list.items() {
        label_key(errors, &taint.at("key"));
        let messages = names::label_value(taint.at("value").str());
        if !messages.is_empty() {
            let value = taint.at("value");
            errors.push(value.invalid_as(value.str(), messages.join(";")));
        }
        let effect = taint.at("effect");
        if effect.is_empty() {
            errors.push(effect.required(""));
        } else {
            pods::taint_effect(errors, &effect);
        }
        if !seen.insert(format!("{}:{}", effect.str(), taint.at("key").str())) {
            let mut error = taint.duplicate().of_type("io.k8s.api.core.v1.Taint");
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
}

fn amounts(errors: &mut ErrorList, root: &At<'_>) {
    for field in ["capacity", "allocatable"] {
        let list = root.down(&["status", field]);
        for (name, amount) in list.entries() {
            let here = At::new(amount.value(), list.path().child(name));
            resources::resource_value(errors, &here, name);
        }
    }
}

fn pod_cidrs(errors: &mut ErrorList, at: &At<'_>) {
    for cidr in at.items() {
        check_legacy_cidr(errors, &cidr, cidr.str());
    }
    let broken = at.items().find(|c| legacy_cidr(c.str()).is_none());
    if let Some(broken) = broken.filter(|_| at.len() > 1) {
        let (i, text) = (at.items().position(|c| c.str() == broken.str()), broken.str());
        let i = i.unwrap_or_default();
        errors.push(FieldError::internal(at.path(), format!(
            "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> \
             (invalid CIDR address: {text})"
        )));
    }
    let six: Vec<bool> = at
        .strings()
        .map(|c| legacy_cidr(c).is_some_and(|c| matches!(c, ipnet::IpNet::V6(_))))
        .collect();
    if six.len() > 1 && !check::is_dual_stack(&six) {
        errors.push(at.invalid("may specify no more than one CIDR for each IP family"));
    }
}

fn validate_update(errors: &mut ErrorList, root: &At<'_>, old: &Value) {
    amounts(errors, root);
    let mut seen: Vec<&Value> = Vec::new();
    for address in root.down(&["status", "addresses"]).items() {
        if seen.iter().any(|s| same(s, address.value())) {
            errors.push(address.duplicate());
        }
        seen.push(address.value());
    }
    let spec = root.at("spec");
    let was = |field: &str| old["spec"].get(field).unwrap_or(&Value::Null);
    let set_once = |errors: &mut ErrorList, field: &str, name: &str| {
        if !check::is_zero(was(field)) && !same(was(field), spec.at(field).value()) {
            errors.push(spec.at(field).forbidden(format!(
                "node updates may not change {name} except from \"\" to valid"
            )));
        }
    };
    set_once(errors, "podCIDRs", "podCIDR");
    set_once(errors, "providerID", "providerID");
    taints(errors, root);
    if spec.at("externalID").str() != was("externalID").as_str().unwrap_or("") {
        errors.push(FieldError::forbidden(spec.at("externalID").path(), "may not be updated"));
    }
}

fn columns() -> Vec<Column> {
    fn info(node: &Value, field: &str) -> Value {
        match object::str_at(node, &["status", "nodeInfo", field]) {
            "" => "<unknown>".into(),
            text => text.into(),
        }
    }
    fn address(node: &Value, kind: &str) -> Value {
        let found = object::list_at(node, &["status", "addresses"])
            .iter()
            .find(|a| object::str_at(a, &["type"]) == kind);
        or_none(found.map_or("", |a| object::str_at(a, &["address"])))
    }
    named([
        column("Status", "string", "Whether the node is ready, and takes pods.", status),
        column("Roles", "string", "Roles in the node's labels.", roles),
        age_column(),
        column("Version", "string", "Version of the kubelet.", |n, _| {
            object::str_at(n, &["status", "nodeInfo", "kubeletVersion"]).into()
        }),
        wide("Internal-IP", "string", "First internal address.", |n, _| address(n, "InternalIP")),
        wide("External-IP", "string", "First external address.", |n, _| address(n, "ExternalIP")),
        wide("OS-Image", "string", "Operating system.", |n, _| info(n, "osImage")),
        wide("Kernel-Version", "string", "Kernel.", |n, _| info(n, "kernelVersion")),
        wide("Container-Runtime", "string", "Runtime and its version.", |n, _| {
            info(n, "containerRuntimeVersion")
        }),
    ])
}

fn status(node: &Value, _: Timestamp) -> Value {
    let ready = object::list_at(node, &["status", "conditions"])
        .iter()
        .find(|c| object::str_at(c, &["type"]) == "Ready")
        .map(|c| object::str_at(c, &["status"]) == "True");
    let mut text = match ready {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object::bool_at(node, &["spec", "unschedulable"]) {
        text.push_str(",SchedulingDisabled");
    }
    text.into()
}

fn roles(node: &Value, _: Timestamp) -> Value {
    let mut roles = BTreeSet::new();
    for (key, value) in object::map_at(node, &["metadata", "labels"]).into_iter().flatten() {
        let role = match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => role,
            None if key == "kubernetes.io/role" => value.as_str().unwrap_or(""),
            None => "",
        };
        if !role.is_empty() {
            roles.insert(role);
        }
    }
    or_none(&roles.into_iter().collect::<Vec<_>>().join(","))
}
