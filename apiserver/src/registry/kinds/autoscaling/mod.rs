//! HorizontalPodAutoscalers, in v2, which is stored, and in v1, which has annotations in the place
//! of fields that came later.

mod conversion;

use std::borrow::Cow;

use apimachinery::amounts::quantity;
use apimachinery::field::ErrorList;
use apimachinery::gvk::split_api_version;
use apimachinery::object::set;
use apimachinery::{Value, names, object};
use serde_json::json;

use super::cells::{age_column, column, named};
use super::check::{At, invalid_each, nonnegative, supported};
use super::resources::container_resource_name;
use super::row::Rows;
use super::{STATUS, checked, child, default_absent, keep};
use crate::registry::{Column, Context, Strategy};
use conversion::{BEHAVIOR, CONDITIONS, CURRENT_METRICS, METRICS, source_of, to_v1, to_v2};

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
