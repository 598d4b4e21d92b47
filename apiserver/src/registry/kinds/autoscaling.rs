//! HorizontalPodAutoscalers, in v2, which is stored, and in v1, which has annotations in the place
//! of fields that came later.

use std::borrow::Cow;

use apimachinery::amounts::quantity;
use apimachinery::field::ErrorList;
use apimachinery::gvk::split_api_version;
use apimachinery::object::{self, set};
use apimachinery::{Value, names};
use serde_json::{Map, json};

use super::cells::{age_column, column, named};
use super::check::{At, invalid_each, nonnegative, supported};
use super::resources::container_resource_name;
use super::row::Rows;
use super::{STATUS, checked, child, default_absent, keep};
use crate::registry::{Column, Context, Strategy};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// Annotations that stand for fields of v2, two that nobody writes any more among them.
const ANNOTATIONS: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];
/// Share of the requested CPU that is aimed at when nothing is.
const DEFAULT_UTILIZATION: i64 = 80;
const MAX_WINDOW: i64 = 3600;
const MAX_PERIOD: i64 = 1800;

pub fn rows(rows: &mut Rows<'_>) {
    for version in ["v2", "v1"] {
        let names = ("HorizontalPodAutoscaler", "horizontalpodautoscalers");
        let of = |part| Autoscalers { v1: version == "v1", part };
        rows.add(("autoscaling", version), names, |row| {
            row.in_all()
                .short(&["hpa"])
                .stored_as("autoscaling", "v2")
                .strategy(of(false))
                .status(of(true))
                .columns(columns())
        });
    }
}

struct Autoscalers {
    v1: bool,
    /// Of the status.
    part: bool,
}

impl Strategy for Autoscalers {
    fn default(&self, object: &mut Value) {
        let spec = child(object, "spec");
        default_absent(spec, "minReplicas", 1);
        if self.v1 {
            return;
        }
        if object::list_at(spec, &["metrics"]).is_empty() {
            set(spec, &["metrics"], json!([cpu(DEFAULT_UTILIZATION)]));
        }
        if spec.get("behavior").is_some_and(Value::is_object) {
            default_behavior(&mut spec["behavior"]);
        }
    }

    fn prepare_for_create(&self, _: &Context<'_>, object: &mut Value) {
        set(object, &["status"], json!({}));
        if self.v1 {
            for annotation in [CURRENT_METRICS, CONDITIONS] {
                object::remove(object, &["metadata", "annotations", annotation]);
            }
        }
    }

    fn prepare_for_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) {
        let (kept, annotations): (&str, &[&str]) = match self.part {
            false => ("status", &[CURRENT_METRICS, CONDITIONS]),
            true => ("spec", &[METRICS, BEHAVIOR]),
        };
        keep(object, old, &[kept]);
        for annotation in annotations.iter().filter(|_| self.v1) {
            keep(object, old, &["metadata", "annotations", annotation]);
        }
    }

    fn validate(&self, _: &Context<'_>, object: &Value) -> ErrorList {
        let object = self.as_v2(object);
        checked(&object, |root, errors| spec(errors, &root.at("spec"), None))
    }

    fn validate_update(&self, _: &Context<'_>, object: &Value, old: &Value) -> ErrorList {
        let (object, old) = (self.as_v2(object), self.as_v2(old));
        checked(&object, |root, errors| {
            if self.part {
                nonnegative(errors, &root.down(&["status", "currentReplicas"]));
                nonnegative(errors, &root.down(&["status", "desiredReplicas"]));
            } else {
                spec(errors, &root.at("spec"), Some(&old["spec"]));
            }
        })
    }

    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        STATUS
    }

    fn to_storage(&self, object: &mut Value) {
        if self.v1 {
            to_v2(object);
            // What is stored has its defaults.
            if object["spec"].get("behavior").is_some() {
                default_behavior(&mut object["spec"]["behavior"]);
            }
        }
    }

    fn to_served(&self, object: &mut Value) {
        if self.v1 {
            to_v1(object);
        }
    }
}

impl Autoscalers {
    fn as_v2<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        if !self.v1 {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        to_v2(&mut object);
        Cow::Owned(object)
    }
}

fn cpu(utilization: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": utilization}}})
}

fn default_behavior(behavior: &mut Value) {
    let policy =
        |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
    let up = json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max",
        "policies": [policy("Pods", 4), policy("Percent", 100)]});
    let down = json!({"selectPolicy": "Max", "policies": [policy("Percent", 100)]});
    for (field, defaults) in [("scaleUp", up), ("scaleDown", down)] {
        let rules = child(behavior, field);
        for (name, value) in defaults.as_object().into_iter().flatten() {
            default_absent(rules, name, value.clone());
        }
    }
}

/// `spec`, in v2. `old`: what an update changes.
fn spec(errors: &mut ErrorList, at: &At<'_>, old: Option<&Value>) {
    let (min, max) = (at.at("minReplicas"), at.at("maxReplicas"));
    let zero_before = old.is_some_and(|o| object::int_at(o, &["minReplicas"]) == Some(0));
    let least = i64::from(!zero_before);
    if min.opt_int().is_some_and(|n| n < least) {
        errors.push(min.invalid(format!("must be greater than or equal to {least}")));
    }
    if max.int() < 1 {
        errors.push(max.invalid_as(max.int(), "must be greater than 0"));
    }
    if min.opt_int().is_some_and(|n| max.int() < n) {
        let text = "must be greater than or equal to `minReplicas`";
        errors.push(max.invalid_as(max.int(), text));
    }
    let target = at.at("scaleTargetRef");
    let unchanged = old.is_some_and(|old| {
        ["apiVersion", "kind"].iter().all(|f| {
            let was = object::str_at(old, &["scaleTargetRef", f]);
            target.at(f).str() == was
        })
    });
    let any_group = target.at("kind").str() == "ReplicationController";
    reference(errors, &target, (!unchanged).then_some(any_group));
    let metrics = at.at("metrics");
    let bad_before = old.is_some_and(|old| {
        object::list_at(old, &["metrics"]).iter().any(|m| {
            let version = object::str_at(m, &["object", "describedObject", "apiVersion"]);
            m["type"] == "Object" && version.matches('/').count() > 1
        })
    });
    let mut may_be_zero = false;
    for item in metrics.items() {
        metric(errors, &item, !bad_before);
        may_be_zero |= matches!(item.at("type").str(), "Object" | "External");
    }
    if min.opt_int() == Some(0) && !may_be_zero {
        errors.push(metrics.forbidden(
            "must specify at least one Object or External metric to support scaling to zero \
             replicas",
        ));
    }
    for rules in ["scaleUp", "scaleDown"].map(|f| at.down(&["behavior", f])) {
        if rules.is_set() {
            scaling_rules(errors, &rules);
        }
    }
}

/// `group`: whether the version is looked at, and may then be one without a group.
fn reference(errors: &mut ErrorList, at: &At<'_>, group: Option<bool>) {
    for field in ["kind", "name"].map(|f| at.at(f)) {
        match field.str() {
            "" => errors.push(field.required("")),
            text => invalid_each(errors, &field, names::path_segment(text)),
        }
    }
    let version = at.at("apiVersion");
    let Some(may_be_without) = group else { return };
    if version.str().matches('/').count() > 1 {
        let text = format!("unexpected GroupVersion string: {}", version.str());
        errors.push(version.invalid_as(version.str(), text));
    } else if !may_be_without && split_api_version(version.str()).0.is_empty() {
        errors.push(version.invalid_as(version.str(), "apiVersion must specify API group"));
    }
}

fn scaling_rules(errors: &mut ErrorList, at: &At<'_>) {
    let window = at.at("stabilizationWindowSeconds");
    if window.int() < 0 {
        errors.push(window.invalid("must be greater than or equal to zero"));
    }
    if window.int() > MAX_WINDOW {
        errors.push(window.invalid(format!("must be less than or equal to {MAX_WINDOW}")));
    }
    let select = at.at("selectPolicy");
    if select.is_set() {
        supported(errors, &select, &["Disabled", "Max", "Min"]);
    }
    let policies = at.at("policies");
    if policies.is_empty() {
        errors.push(policies.required("must specify at least one Policy"));
    }
    for policy in policies.items() {
        supported(errors, &policy.at("type"), &["Percent", "Pods"]);
        for field in ["value", "periodSeconds"].map(|f| policy.at(f)) {
            if field.int() <= 0 {
                errors.push(field.invalid_as(field.int(), "must be greater than zero"));
            }
        }
        let period = policy.at("periodSeconds");
        if period.int() > MAX_PERIOD {
            errors.push(period.invalid(format!("must be less than or equal to {MAX_PERIOD}")));
        }
    }
    let tolerance = at.at("tolerance");
    if let Some(amount) = tolerance.quantity().filter(|q| q.sign() < 0) {
        errors.push(tolerance.invalid_as(amount.to_string(), "must be greater than or equal to 0"));
    }
}

/// Sources of metrics: type, and field.
const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

fn metric(errors: &mut ErrorList, at: &At<'_>, check_version: bool) {
    const TYPES: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    let kind = at.at("type");
    if kind.is_empty() {
        errors.push(kind.required("must specify a metric source type"));
    }
    let known = SOURCES.iter().find(|(name, _)| *name == kind.str());
    if known.is_none() {
        // Upstream says so twice.
        supported(errors, &kind, &TYPES);
        supported(errors, &kind, &TYPES);
    }
    let mut present: Vec<&str> = Vec::new();
    for (name, field) in SOURCES {
        let source = at.at(field);
        if !source.is_set() {
            continue;
        }
        if present.is_empty() {
            metric_source(errors, name, &source, check_version);
        }
        present.push(field);
    }
    let expected = known.map_or("", |(_, field)| field);
    if !expected.is_empty() && !present.contains(&expected) {
        let text = "must populate information for the given metric source";
        errors.push(at.at(expected).required(text));
    }
    if present.len() != 1 {
        for field in present.iter().filter(|f| **f != expected) {
            errors.push(at.at(field).forbidden("must populate the given metric source only"));
        }
    }
}

fn metric_source(errors: &mut ErrorList, kind: &str, at: &At<'_>, check_version: bool) {
    let target = at.at("target");
    let [value, average, utilization] =
        ["value", "averageValue", "averageUtilization"].map(|f| target.at(f));
    match kind {
        "Object" | "External" | "Pods" => {
            if kind == "Object" {
                reference(errors, &at.at("describedObject"), check_version.then_some(true));
            }
            let name = at.down(&["metric", "name"]);
            match name.str() {
                "" => errors.push(name.required("must specify a metric name")),
                text => invalid_each(errors, &name, names::path_segment(text)),
            }
        }
        _ => {
            let name = at.at("name");
            if name.is_empty() {
                errors.push(name.required("must specify a resource name"));
            } else if kind == "ContainerResource" {
                container_resource_name(errors, &name, name.str());
            }
            let container = at.at("container");
            if kind == "ContainerResource" {
                match container.str() {
                    "" => errors.push(container.required("must specify a container")),
                    text => invalid_each(errors, &container, names::dns1123_label(text)),
                }
            }
        }
    }
    metric_target(errors, &target);
    match kind {
        "Object" if !value.is_set() && !average.is_set() => {
            errors.push(average.required("must set either a target value or averageValue"));
        }
        "External" if !value.is_set() && !average.is_set() => errors.push(
            average.required("must set either a target value for metric or a per-pod target"),
        ),
        "External" if value.is_set() && average.is_set() => errors.push(
            value.forbidden("may not set both a target value for metric and a per-pod target"),
        ),
        "Pods" if !average.is_set() => {
            errors.push(average.required("must specify a positive target averageValue"));
        }
        "Resource" | "ContainerResource" => match (utilization.is_set(), average.is_set()) {
            (false, false) => errors.push(
                utilization.required("must set either a target raw value or a target utilization"),
            ),
            (true, true) => errors.push(
                average.forbidden("may not set both a target raw value and a target utilization"),
            ),
            _ => {}
        },
        _ => {}
    }
}

fn metric_target(errors: &mut ErrorList, at: &At<'_>) {
    let kind = at.at("type");
    if kind.is_empty() {
        errors.push(kind.required("must specify a metric target type"));
    }
    if !matches!(kind.str(), "Utilization" | "Value" | "AverageValue") {
        let text = "must be either Utilization, Value, or AverageValue";
        errors.push(kind.invalid_as(kind.str(), text));
    }
    for amount in ["value", "averageValue"].map(|f| at.at(f)) {
        if amount.quantity().is_some_and(|q| q.sign() <= 0) {
            errors.push(amount.invalid("must be positive"));
        }
    }
    let utilization = at.at("averageUtilization");
    if utilization.opt_int().is_some_and(|u| u < 1) {
        errors.push(utilization.invalid("must be greater than 0"));
    }
}

/// A field of one name where the other version has another.
type Pair = (&'static [&'static str], &'static str);

/// Where v2 and v1 have the same of a metric: of its source, and of its status.
fn pairs(kind: &str, status: bool) -> &'static [Pair] {
    match (kind, status) {
        ("Object", false) => &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["target", "value"], "targetValue"),
            (&["metric", "selector"], "selector"),
            (&["target", "averageValue"], "averageValue"),
        ],
        ("Object", true) => &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["current", "value"], "currentValue"),
            (&["metric", "selector"], "selector"),
            (&["current", "averageValue"], "averageValue"),
        ],
        ("Pods", false) => &[
            (&["metric", "name"], "metricName"),
            (&["target", "averageValue"], "targetAverageValue"),
            (&["metric", "selector"], "selector"),
        ],
        ("Pods", true) => &[
            (&["metric", "name"], "metricName"),
            (&["current", "averageValue"], "currentAverageValue"),
            (&["metric", "selector"], "selector"),
        ],
        ("Resource", false) => &[
            (&["name"], "name"),
            (&["target", "averageUtilization"], "targetAverageUtilization"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
        ("Resource", true) => &[
            (&["name"], "name"),
            (&["current", "averageUtilization"], "currentAverageUtilization"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
        ("ContainerResource", false) => &[
            (&["name"], "name"),
            (&["target", "averageUtilization"], "targetAverageUtilization"),
            (&["target", "averageValue"], "targetAverageValue"),
            (&["container"], "container"),
        ],
        ("ContainerResource", true) => &[
            (&["name"], "name"),
            (&["current", "averageUtilization"], "currentAverageUtilization"),
            (&["current", "averageValue"], "currentAverageValue"),
            (&["container"], "container"),
        ],
        ("External", false) => &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "targetAverageValue"),
        ],
        ("External", true) => &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["current", "value"], "currentValue"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
        _ => &[],
    }
}

/// Amounts that v1 always has.
const ALWAYS: [(&str, &str); 7] = [
    ("Object", "targetValue"),
    ("Object", "currentValue"),
    ("Pods", "targetAverageValue"),
    ("Pods", "currentAverageValue"),
    ("Resource", "currentAverageValue"),
    ("ContainerResource", "currentAverageValue"),
    ("External", "currentValue"),
];

fn source_of(metric: &Value) -> Option<(&'static str, &'static str)> {
    let kind = object::str_at(metric, &["type"]);
    SOURCES.iter().find(|(name, _)| *name == kind).copied()
}

fn metric_to_v1(metric: &Value, status: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    let Some((kind, field)) = source_of(metric) else { return out };
    let Some(source) = metric.get(field) else { return out };
    let mut old = Map::new();
    for (path, name) in pairs(kind, status) {
        let value = object::get(source, path).filter(|v| !v.is_null()).cloned();
        let value = value.or_else(|| ALWAYS.contains(&(kind, *name)).then(|| "0".into()));
        if let Some(value) = value {
            old.insert((*name).to_owned(), value);
        }
    }
    out[field] = old.into();
    out
}

fn metric_to_v2(metric: &Value, status: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    let Some((kind, field)) = source_of(metric) else { return out };
    let Some(source) = metric.get(field) else { return out };
    let mut new = json!({});
    for (path, name) in pairs(kind, status) {
        if let Some(value) = source.get(*name).filter(|v| !v.is_null()) {
            set(&mut new, path, value.clone());
        }
    }
    if !status {
        let has = |name: &str| source.get(name).is_some_and(|v| !v.is_null());
        let aim = match kind {
            "Object" if has("averageValue") => "AverageValue",
            "Object" => "Value",
            "External" if has("targetValue") => "Value",
            "Resource" | "ContainerResource" if has("targetAverageUtilization") => "Utilization",
            _ => "AverageValue",
        };
        set(&mut new, &["target", "type"], aim);
    }
    out[field] = new;
    out
}

/// The names of fields with their first letter in the other case: upstream wrote its own internal
/// type into the annotation.
fn recase(value: &Value, upper: bool) -> Value {
    let change = |name: &String| {
        let mut letters = name.chars();
        let first = letters.next().map(|c| match upper {
            true => c.to_ascii_uppercase(),
            false => c.to_ascii_lowercase(),
        });
        first.into_iter().chain(letters).collect::<String>()
    };
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (change(k), recase(v, upper))).collect(),
        Value::Array(list) => list.iter().map(|v| recase(v, upper)).collect(),
        other => other.clone(),
    }
}

/// The behavior as the annotation has it: all fields are there.
fn behavior_text(behavior: &Value) -> String {
    let rules = |field: &str| match behavior.get(field).filter(|r| !r.is_null()) {
        None => Value::Null,
        Some(rules) => {
            let fields = ["stabilizationWindowSeconds", "selectPolicy", "policies", "tolerance"];
            fields
                .into_iter()
                .map(|f| (f.to_owned(), rules.get(f).cloned().unwrap_or_default()))
                .collect()
        }
    };
    let all: Map<String, Value> =
        ["scaleUp", "scaleDown"].map(|f| (f.to_owned(), rules(f))).into_iter().collect();
    text(&recase(&all.into(), true))
}

/// Fields in the order in which upstream's types have them.
const ORDER: [&str; 39] = [
    "type",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "kind",
    "target",
    "name",
    "apiVersion",
    "metricName",
    "metricSelector",
    "targetValue",
    "currentValue",
    "targetAverageUtilization",
    "currentAverageUtilization",
    "targetAverageValue",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

/// JSON with the fields in upstream's order.
fn text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let rank = |key: &str| ORDER.iter().position(|k| *k == key).unwrap_or(ORDER.len());
            let mut fields: Vec<(&String, &Value)> = map.iter().collect();
            fields.sort_by_key(|(key, _)| rank(key));
            let fields: Vec<String> =
                fields.into_iter().map(|(k, v)| format!("{}:{}", json!(k), text(v))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(list) => {
            let list: Vec<String> = list.iter().map(text).collect();
            format!("[{}]", list.join(","))
        }
        other => other.to_string(),
    }
}

fn to_v1(object: &mut Value) {
    for annotation in ANNOTATIONS {
        object::remove(object, &["metadata", "annotations", annotation]);
    }
    let list = |path: &[&str]| object::list_at(object, path).to_vec();
    let (metrics, current) = (list(&["spec", "metrics"]), list(&["status", "currentMetrics"]));
    let conditions = list(&["status", "conditions"]);
    let behavior = object::get(object, &["spec", "behavior"]).filter(|b| !b.is_null()).cloned();
    let of_cpu =
        |metric: &Value| metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    let aim = |metric: &Value| {
        let of = metric.pointer("/resource/target/averageUtilization");
        of.filter(|_| of_cpu(metric)).and_then(Value::as_i64)
    };
    let others: Vec<Value> =
        metrics.iter().filter(|m| aim(m).is_none()).map(|m| metric_to_v1(m, false)).collect();
    let statuses: Vec<Value> = current.iter().map(|m| metric_to_v1(m, true)).collect();
    let reached = current
        .iter()
        .filter(|m| of_cpu(m))
        .filter_map(|m| m.pointer("/resource/current/averageUtilization").and_then(Value::as_i64))
        .next_back();
    for path in [
        ["spec", "metrics"],
        ["spec", "behavior"],
        ["status", "currentMetrics"],
        ["status", "conditions"],
    ] {
        object::remove(object, &path);
    }
    if let Some(aim) = metrics.iter().find_map(aim) {
        set(object, &["spec", "targetCPUUtilizationPercentage"], aim);
    }
    if let Some(reached) = reached {
        set(object, &["status", "currentCPUUtilizationPercentage"], reached);
    }
    let texts = [
        (METRICS, (!others.is_empty()).then(|| text(&json!(others)))),
        (CURRENT_METRICS, (!statuses.is_empty()).then(|| text(&json!(statuses)))),
        (BEHAVIOR, behavior.map(|b| behavior_text(&b))),
        (CONDITIONS, (!conditions.is_empty()).then(|| text(&json!(conditions)))),
    ];
    for (annotation, text) in texts {
        if let Some(text) = text {
            set(object, &["metadata", "annotations", annotation], text);
        }
    }
}

fn to_v2(object: &mut Value) {
    let noted = |annotation: &str| -> Option<Value> {
        serde_json::from_str(object::annotation(object, annotation)?).ok()
    };
    let list = |annotation: &str| noted(annotation).and_then(|v| v.as_array().cloned());
    let (metrics, current, conditions) = (list(METRICS), list(CURRENT_METRICS), list(CONDITIONS));
    let behavior = noted(BEHAVIOR).filter(Value::is_object).map(|b| recase(&b, false));
    let aim = object::remove(object, &["spec", "targetCPUUtilizationPercentage"]);
    let reached = object::remove(object, &["status", "currentCPUUtilizationPercentage"]);
    let mut all: Vec<Value> =
        metrics.into_iter().flatten().map(|m| metric_to_v2(&m, false)).collect();
    all.extend(aim.and_then(|a| a.as_i64()).map(cpu));
    if all.is_empty() {
        all.push(cpu(DEFAULT_UTILIZATION));
    }
    set(object, &["spec", "metrics"], all);
    let some = |b: &Value| b.as_object().is_some_and(|m| m.values().any(|v| !v.is_null()));
    if let Some(behavior) = behavior.filter(some) {
        set(object, &["spec", "behavior"], behavior);
    }
    match current {
        Some(current) => {
            let current: Vec<Value> = current.iter().map(|m| metric_to_v2(m, true)).collect();
            set(object, &["status", "currentMetrics"], current);
        }
        None => {
            if let Some(reached) = reached.and_then(|r| r.as_i64()) {
                let metric = json!({"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": reached}}});
                set(object, &["status", "currentMetrics"], json!([metric]));
            }
        }
    }
    if let Some(conditions) = conditions {
        set(object, &["status", "conditions"], conditions);
    }
    for annotation in ANNOTATIONS {
        object::remove(object, &["metadata", "annotations", annotation]);
    }
    let annotations = object::map_at(object, &["metadata", "annotations"]);
    if annotations.is_some_and(Map::is_empty) {
        object::remove(object, &["metadata", "annotations"]);
    }
}

fn columns() -> Vec<Column> {
    named([
        column("Reference", "string", "What is scaled.", |o, _| {
            let of = |field| object::str_at(o, &["spec", "scaleTargetRef", field]);
            format!("{}/{}", of("kind"), of("name")).into()
        }),
        column("Targets", "string", "What is, and what is aimed at.", |o, _| {
            if object::get(o, &["spec", "metrics"]).is_some() {
                return targets(o).into();
            }
            let mut object = o.clone();
            to_v2(&mut object);
            targets(&object).into()
        }),
        column("MinPods", "string", "As few pods as there may be.", |o, _| {
            match object::int_at(o, &["spec", "minReplicas"]) {
                Some(least) => least.to_string().into(),
                None => "<unset>".into(),
            }
        }),
        column("MaxPods", "string", "As many pods as there may be.", |o, _| {
            object::int_at(o, &["spec", "maxReplicas"]).unwrap_or(0).into()
        }),
        column("Replicas", "string", "Pods that there are.", |o, _| {
            object::int_at(o, &["status", "currentReplicas"]).unwrap_or(0).into()
        }),
        age_column(),
    ])
}

fn targets(autoscaler: &Value) -> String {
    const MAX: usize = 2;
    let metrics = object::list_at(autoscaler, &["spec", "metrics"]);
    let statuses = object::list_at(autoscaler, &["status", "currentMetrics"]);
    let mut shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(i, metric)| match source_of(metric) {
            Some((kind, field)) => target(kind, &metric[field], statuses.get(i).map(|s| &s[field])),
            None => "<unknown type>".to_owned(),
        })
        .collect();
    let count = shown.len();
    shown.truncate(MAX);
    match count {
        0 => "<none>".to_owned(),
        n if n > MAX => format!("{} + {} more...", shown.join(", "), n - MAX),
        _ => shown.join(", "),
    }
}

fn target(kind: &str, source: &Value, status: Option<&Value>) -> String {
    let amount = |of: Option<&Value>, path: &[&str]| {
        of.and_then(|o| object::get(o, path)).and_then(quantity).map(|q| q.to_string())
    };
    let unknown = || "<unknown>".to_owned();
    let aim = |field: &str| amount(Some(source), &["target", field]);
    let is = |field: &str| amount(status, &["current", field]);
    let percent = |of: Option<&Value>, path: &[&str]| {
        of.and_then(|o| object::int_at(o, path)).map(|p| format!("{p}%"))
    };
    match (kind, aim("averageValue")) {
        ("Pods", average) => {
            let is = is("averageValue").unwrap_or_else(unknown);
            format!("{is}/{}", average.unwrap_or_default())
        }
        ("Resource" | "ContainerResource", average) => {
            let name = object::str_at(source, &["name"]);
            match average {
                Some(average) => {
                    format!("{name}: {}/{average}", is("averageValue").unwrap_or_else(unknown))
                }
                None => {
                    let now = percent(status, &["current", "averageUtilization"]);
                    let aim = percent(Some(source), &["target", "averageUtilization"]);
                    let aim = aim.unwrap_or_else(|| "<auto>".to_owned());
                    format!("{name}: {}/{aim}", now.unwrap_or_else(unknown))
                }
            }
        }
        (_, Some(average)) => {
            format!("{}/{average} (avg)", is("averageValue").unwrap_or_else(unknown))
        }
        (_, None) => {
            let is = is("value").unwrap_or_else(unknown);
            format!("{is}/{}", aim("value").unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::same;
    use super::*;

    #[test]
    fn what_v1_cannot_say_is_in_annotations() {
        let v2 = json!({
            "metadata": {"name": "a"},
            "spec": {
                "maxReplicas": 3,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory",
                        "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Pods", "pods": {"metric": {"name": "m"},
                        "target": {"type": "AverageValue", "averageValue": "5"}}},
                    cpu(50),
                ],
                "behavior": {"scaleUp": {"selectPolicy": "Max", "policies":
                    [{"type": "Pods", "value": 4, "periodSeconds": 15}]}},
            },
            "status": {"currentReplicas": 1, "desiredReplicas": 1,
                "conditions": [{"type": "ScalingActive", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 7, "averageValue": "3m"}}}]},
        });
        let mut v1 = v2.clone();
        to_v1(&mut v1);
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            v1["metadata"]["annotations"][METRICS],
            r#"[{"type":"Resource","resource":{"name":"memory","targetAverageValue":"1Gi"}},{"type":"Pods","pods":{"metricName":"m","targetAverageValue":"5"}}]"#
        );
        assert_eq!(v1["status"]["currentCPUUtilizationPercentage"], 7);
        to_v2(&mut v1);
        assert!(same(&v1, &v2), "{v1:#}");
        assert_eq!(targets(&v2), "memory: 3m/1Gi, <unknown>/5 + 1 more...");
    }

    #[test]
    fn nothing_said_means_cpu() {
        let mut v1 = json!({"spec": {"maxReplicas": 3}});
        to_v2(&mut v1);
        assert_eq!(v1["spec"]["metrics"], json!([cpu(80)]));
        assert_eq!(targets(&v1), "cpu: <unknown>/80%");
    }
}
