//! LimitRanges and ResourceQuotas: how much one object, and all objects of a namespace, may ask
//! for.

use std::collections::BTreeSet;

use apimachinery::amounts::quantity;
use apimachinery::field::ErrorList;
use apimachinery::object::{self, set};
use apimachinery::quantity::Quantity;
use apimachinery::{Value, names};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{At, Seen};
use super::resources::{self, compare};
use super::row::Rows;
use super::{STATUS, checked, child, each, keep};
use crate::registry::{Context, Strategy};

pub fn rows(rows: &mut Rows<'_>) {
    rows.add(("", "v1"), ("LimitRange", "limitranges"), |row| {
        row.short(&["limits"]).strategy(LimitRanges)
    });
    rows.add(("", "v1"), ("ResourceQuota", "resourcequotas"), |row| {
        row.short(&["quota"]).strategy(Quotas).status(QuotaStatus).columns(named([
            column("Request", "string", "What is used, of what may be.", |o, _| {
                usage(o, false).into()
            }),
            column("Limit", "string", "The same of limits.", |o, _| usage(o, true).into()),
            age_column(),
        ]))
    });
}

struct LimitRanges;

impl Strategy for LimitRanges {
    fn default(&self, object: &mut Value) {
        for item in each(child(object, "spec"), "limits").filter(|i| i["type"] == "Container") {
            let map = |field: &str| item.get(field).cloned().unwrap_or_else(|| json!({}));
            let fill = |to: &mut Value, from: &Value| {
                for (name, amount) in from.as_object().into_iter().flatten() {
                    if to.get(name).is_none_or(Value::is_null) {
                        to[name.as_str()] = amount.clone();
                    }
                }
            };
            let (mut limits, mut requests) = (map("default"), map("defaultRequest"));
            fill(&mut limits, &map("max"));
            fill(&mut requests, &limits);
            fill(&mut requests, &map("min"));
            for (field, amounts) in [("default", limits), ("defaultRequest", requests)] {
                if amounts.as_object().is_some_and(|m| !m.is_empty()) {
                    set(item, &[field], amounts);
                }
            }
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            let mut types = Seen::default();
            for item in root.down(&["spec", "limits"]).items() {
                limit_type(errors, &item.at("type"), &mut types);
                limit_item(errors, &item);
            }
        })
    }
}

fn limit_type(errors: &mut ErrorList, at: &At<'_>, seen: &mut Seen) {
    let name = at.str();
    let messages = names::qualified_name(name);
    let known = ["Pod", "Container", "PersistentVolumeClaim"].contains(&name);
    if messages.is_empty() && !name.contains('/') && !known {
        errors.push(at.invalid_as(name, "must be a standard limit type or fully qualified"));
    }
    errors.extend(messages.into_iter().map(|m| at.invalid_as(name, m)));
    if !seen.insert(name) {
        errors.push(at.duplicate());
    }
}

fn limit_item(errors: &mut ErrorList, item: &At<'_>) {
    let kind = item.at("type").str();
    let containers = matches!(kind, "Pod" | "Container");
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for field in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
        let amounts = item.at(field);
        if kind == "Pod" && field.starts_with("default") {
            if !amounts.is_empty() {
                errors.push(amounts.forbidden("may not be specified when `type` is 'Pod'"));
            }
            continue;
        }
        for (name, amount) in amounts.entries() {
            if containers {
                resources::container_resource_name(errors, &amount, name);
            } else {
                resources::resource_name(errors, &amount, name);
            }
            names.insert(name);
        }
    }
    let storage = ["min", "max"].iter().any(|f| item.at(f).value().get("storage").is_some());
    if kind == "PersistentVolumeClaim" && !storage {
        errors.push(item.at("limits").required(
            "either minimum or maximum storage value is required, but neither was provided",
        ));
    }
    for name in names {
        amounts_fit(errors, item, name, kind == "Pod");
    }
}

/// The amounts of one resource are in order.
fn amounts_fit(errors: &mut ErrorList, item: &At<'_>, name: &str, of_pod: bool) {
    let at = |field: &str| {
        let map = item.at(field);
        At::new(map.value().get(name).unwrap_or(&Value::Null), map.path().key(name))
    };
    let fields = ["min", "max", "default", "defaultRequest", "maxLimitRequestRatio"].map(at);
    let amounts: Vec<Option<Quantity>> = fields
        .iter()
        .enumerate()
        .map(|(i, f)| f.quantity().filter(|_| !(of_pod && (i == 2 || i == 3))))
        .collect();
    let [min, max, default, request, ratio] = amounts.as_slice() else { return };
    let [min_at, _, default_at, request_at, ratio_at] = &fields;
    let mut above = |low: &Option<Quantity>,
                     high: &Option<Quantity>,
                     at: &At<'_>,
                     shown: u8,
                     low_name: &str,
                     high_name: &str| {
        if let (Some(low), Some(high)) = (low, high)
            && compare(*low, *high).is_gt()
        {
            let shown = if shown == 0 { low } else { high };
            errors.push(at.invalid_as(
                shown.to_string(),
                format!("{low_name} value {low} is greater than {high_name} value {high}"),
            ));
        }
    };
    above(min, max, min_at, 0, "min", "max");
    above(min, request, request_at, 1, "min", "default request");
    above(request, max, request_at, 0, "default request", "max");
    above(request, default, request_at, 0, "default request", "default limit");
    above(min, default, default_at, 0, "min", "default");
    above(default, max, default_at, 1, "default", "max");
    if let Some(ratio) = ratio {
        max_ratio(errors, ratio_at, ratio, min.as_ref(), max.as_ref());
    }
    if !resources::overcommits(name)
        && let (Some(default), Some(request)) = (default, request)
        && compare(*default, *request).is_ne()
    {
        errors.push(request_at.invalid_as(
            request.to_string(),
            format!(
                "default value {default} must equal to defaultRequest value {request} in {name}"
            ),
        ));
    }
}

fn max_ratio(
    errors: &mut ErrorList,
    at: &At<'_>,
    ratio: &Quantity,
    min: Option<&Quantity>,
    max: Option<&Quantity>,
) {
    if compare(*ratio, Quantity::from_units(1, ratio.format())).is_lt() {
        errors.push(at.invalid_as(ratio.to_string(), format!("ratio {ratio} is less than 1")));
    }
    if let (Some(min), Some(max)) = (min, max) {
        let limit = max.approximate() / min.approximate();
        if ratio.approximate() > limit {
            let text = format!("ratio {ratio} is greater than max/min = {limit:.6}");
            errors.push(at.invalid_as(ratio.to_string(), text));
        }
    }
}

/// Resources that quotas know by a plain name.
const QUOTA_RESOURCES: [&str; 19] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
const POD_COMPUTE: [&str; 6] =
    ["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

fn is_quota_resource(name: &str) -> bool {
    QUOTA_RESOURCES.contains(&name)
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

struct Quotas;

impl Strategy for Quotas {
    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({}));
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["status"]);
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        checked(object, |root, errors| {
            quota_spec(errors, &root.at("spec"));
            quota_amounts(errors, &root.down(&["status", "hard"]));
            quota_amounts(errors, &root.down(&["status", "used"]));
        })
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        checked(object, |root, errors| {
            quota_spec(errors, &root.at("spec"));
            let scopes = root.down(&["spec", "scopes"]);
            let set =
                |at: &At<'_>| -> BTreeSet<String> { at.strings().map(str::to_owned).collect() };
            let before = At::new(&old["spec"]["scopes"], scopes.path().clone());
            if set(&scopes) != set(&before) {
                errors.push(scopes.invalid("field is immutable"));
            }
        })
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let hard = |name: &str| object::get(object, &["spec", "hard", name]).and_then(quantity);
        let mut warnings = Vec::new();
        for resource in ["cpu", "memory", "storage", "ephemeral-storage"] {
            let mut name = format!("requests.{resource}");
            let mut request = hard(&name);
            if request.is_none() && matches!(resource, "cpu" | "memory") {
                name = resource.to_owned();
                request = hard(&name);
            }
            let limit_name = format!("limits.{resource}");
            if let (Some(request), Some(limit)) = (request, hard(&limit_name))
                && compare(request, limit).is_gt()
            {
                warnings.push(format!(
                    "ResourceQuota {name} ({request}) should be less than {limit_name} ({limit})"
                ));
            }
        }
        warnings
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }
}

fn quota_amounts(errors: &mut ErrorList, at: &At<'_>) {
    for (name, amount) in at.entries() {
        resources::resource_name(errors, &amount, name);
        if !name.contains('/') && !is_quota_resource(name) {
            errors.push(amount.invalid_as(name, "must be a standard resource for quota"));
        }
        resources::resource_value(errors, &amount, name);
    }
}

/// Whether a scope can be about the resource.
fn scope_fits(scope: &str, resource: &str) -> bool {
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => resource == "pods" || POD_COMPUTE.contains(&resource),
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => true,
    }
}

fn quota_spec(errors: &mut ErrorList, spec: &At<'_>) {
    let hard = spec.at("hard");
    quota_amounts(errors, &hard);
    let unfit = |scope: &str| {
        let names = hard.entries().map(|(name, _)| name);
        names.filter(|name| is_quota_resource(name) && !scope_fits(scope, name)).count()
    };
    let scopes = spec.at("scopes");
    for scope in scopes.strings() {
        if !SCOPES.contains(&scope) {
            errors.push(scopes.invalid("unsupported scope"));
        }
        for _ in 0..unfit(scope) {
            errors.push(scopes.invalid("unsupported scope applied to resource"));
        }
    }
    conflicting(errors, &scopes.strings().collect(), &scopes);
    let selector = spec.at("scopeSelector");
    if !selector.is_set() {
        return;
    }
    let list = selector.at("matchExpressions");
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for expression in list.items() {
        let scope = expression.at("scopeName").str();
        if !SCOPES.contains(&scope) {
            errors.push(list.at("scopeName").invalid_as(scope, "unsupported scope"));
        }
        for _ in 0..unfit(scope) {
            let text = "unsupported scope applied to resource";
            errors.push(list.invalid_as(selector.value().clone(), text));
        }
        scope_operator(errors, &list, &expression);
        seen.insert(scope);
    }
    conflicting(errors, &seen, &At::new(scopes.value(), list.path().clone()));
}

fn scope_operator(errors: &mut ErrorList, list: &At<'_>, expression: &At<'_>) {
    let scope = expression.at("scopeName").str();
    let operator = expression.at("operator").str();
    let at = list.at("operator");
    let exists_only =
        SCOPES.contains(&scope) && !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
    if exists_only && operator != "Exists" {
        errors.push(at.invalid_as(
            operator,
            "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
             ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
             ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
        ));
    }
    let values = expression.at("values");
    match operator {
        "In" | "NotIn" if values.is_empty() => errors.push(list.at("values").required(
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        )),
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.push(list.at("values").invalid_as(
                values.value().clone(),
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        _ => errors.push(at.invalid_as(operator, "not a valid selector operator")),
    }
}

fn conflicting(errors: &mut ErrorList, scopes: &BTreeSet<&str>, at: &At<'_>) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.contains(scope)) {
            errors.push(at.invalid("conflicting scopes"));
        }
    }
}

struct QuotaStatus;

impl Strategy for QuotaStatus {
    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        keep(object, old, &["spec"]);
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, _: &Value) -> ErrorList {
        checked(object, |root, errors| {
            quota_amounts(errors, &root.down(&["status", "hard"]));
            quota_amounts(errors, &root.down(&["status", "used"]));
        })
    }
}

/// `pods: 1/10, ...`, of limits or of all else.
fn usage(quota: &Value, limits: bool) -> String {
    let text = |field: &str, name: &str| {
        let amount = object::get(quota, &["status", field, name]).and_then(quantity);
        amount.unwrap_or(Quantity::ZERO).to_string()
    };
    let hard = quota.pointer("/status/hard").unwrap_or(&Value::Null);
    let mut names: Vec<&str> =
        hard.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
    names.sort_unstable();
    let cells: Vec<String> = names
        .into_iter()
        .filter(|name| name.starts_with("limits.") == limits)
        .map(|name| format!("{name}: {}/{}", text("used", name), text("hard", name)))
        .collect();
    cells.join(", ")
}
