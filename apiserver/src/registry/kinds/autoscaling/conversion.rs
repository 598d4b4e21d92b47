//! Between v1 and v2: what v1 has no fields for is in annotations there (upstream: `apis/autoscaling/v1/conversion.go`).

use apimachinery::object::set;
use apimachinery::{Value, object};
use serde_json::{Map, json};

use super::{DEFAULT_UTILIZATION, SOURCES, cpu};

pub(super) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
pub(super) const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
pub(super) const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
pub(super) const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// Annotations that stand for fields of v2, two that nobody writes any more among them.
const ANNOTATIONS: [&str; 6] = [
    METRICS,
    CURRENT_METRICS,
    CONDITIONS,
    BEHAVIOR,
    "autoscaling.alpha.kubernetes.io/scale-down-tolerance",
    "autoscaling.alpha.kubernetes.io/scale-up-tolerance",
];

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

pub(super) fn source_of(metric: &Value) -> Option<(&'static str, &'static str)> {
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
pub(super) fn text(value: &Value) -> String {
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

pub(super) fn to_v1(object: &mut Value) {
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

pub(super) fn to_v2(object: &mut Value) {
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
