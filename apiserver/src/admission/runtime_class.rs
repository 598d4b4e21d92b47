//! RuntimeClass: pods take the overhead and the scheduling of their RuntimeClass.

use apimachinery::gvk::GroupResource;
use apimachinery::quantity::Quantity;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use async_trait::async_trait;

use super::lookup::Lookup;
use super::{Attributes, Operation, Plugin, forbidden, tolerations};
use crate::reader::Object;

pub struct RuntimeClass {
    lookup: Lookup,
    classes: GroupResource,
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

impl RuntimeClass {
    pub fn new(lookup: Lookup) -> Self {
        Self { lookup, classes: GroupResource::new("node.k8s.io", "runtimeclasses") }
    }

    async fn class(&self, a: &Attributes<'_>, pod: &Value) -> Result<Option<Object>, ApiError> {
        let Some(name) = object::get(pod, &["spec", "runtimeClassName"]).and_then(Value::as_str)
        else {
            return Ok(None);
        };
        let pause = std::time::Duration::ZERO;
        let found = self.lookup.patient(&self.classes, "", name, (1, pause)).await;
        if found.is_none() {
            let reason = format!("pod rejected: RuntimeClass {name:?} not found");
            return Err(forbidden(a, Some(pod), reason));
        }
        Ok(found)
    }
}

fn concerns(a: &Attributes<'_>) -> bool {
    a.resource.group.is_empty() && a.resource.resource == "pods" && a.subresource.is_empty()
}

fn has_overhead(class: &Value) -> bool {
    object::get(class, &["overhead"]).is_some()
}

fn overhead(class: &Value) -> Value {
    object::get(class, &["overhead", "podFixed"]).cloned().unwrap_or(Value::Null)
}

/// Whether two resource lists have the same amounts, however they are written.
fn same_amounts(a: &Value, b: &Value) -> bool {
    let empty = serde_json::Map::new();
    let (a, b) = (a.as_object().unwrap_or(&empty), b.as_object().unwrap_or(&empty));
    let same = |x: &Value, y: &Value| {
        let amount = |v: &Value| v.as_str().and_then(|s| s.parse::<Quantity>().ok());
        match (amount(x), amount(y)) {
            (Some(x), Some(y)) => x == y,
            _ => x == y,
        }
    };
    a.len() == b.len() && a.iter().all(|(key, x)| b.get(key).is_some_and(|y| same(x, y)))
}

fn set_scheduling(pod: &mut Value, class: &Value) -> Result<(), String> {
    let Some(scheduling) = object::get(class, &["scheduling"]) else { return Ok(()) };
    let wanted = object::map_at(scheduling, &["nodeSelector"]).cloned().unwrap_or_default();
    let has = object::map_at(pod, &["spec", "nodeSelector"]).cloned().unwrap_or_default();
    let mut merged = has.clone();
    for (key, value) in wanted {
        if let Some(own) = has.get(&key)
            && *own != value
        {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(&value),
                text(own)
            ));
        }
        merged.insert(key, value);
    }
    if !merged.is_empty() {
        object::set(pod, &["spec", "nodeSelector"], merged);
    }
    let own = object::list_at(pod, &["spec", "tolerations"]);
    let all = tolerations::merge(own, object::list_at(scheduling, &["tolerations"]));
    if !all.is_empty() {
        object::set(pod, &["spec", "tolerations"], all);
    }
    Ok(())
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    async fn mutate(
        &self,
        a: &Attributes<'_>,
        object: Option<&mut Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        if !concerns(a) {
            return Ok(());
        }
        let Some(class) = self.class(a, pod).await? else { return Ok(()) };
        if has_overhead(&class) {
            let fixed = overhead(&class);
            let own = object::get(pod, &["spec", "overhead"]).cloned().unwrap_or(Value::Null);
            let set = own.as_object().is_some_and(|o| !o.is_empty());
            if set && !same_amounts(&own, &fixed) {
                return Err(forbidden(a, Some(pod), MISMATCH));
            }
            if !fixed.is_null() {
                object::set(pod, &["spec", "overhead"], fixed);
            }
        }
        set_scheduling(pod, &class).map_err(|reason| forbidden(a, Some(pod), reason))
    }

    async fn validate(
        &self,
        a: &Attributes<'_>,
        object: Option<&Value>,
        _warnings: &mut Vec<String>,
    ) -> Result<(), ApiError> {
        let Some(pod) = object else { return Ok(()) };
        if !concerns(a) {
            return Ok(());
        }
        let own = object::get(pod, &["spec", "overhead"]);
        match self.class(a, pod).await? {
            Some(class) if has_overhead(&class) => {
                if same_amounts(own.unwrap_or(&Value::Null), &overhead(&class)) {
                    return Ok(());
                }
                Err(forbidden(a, object, MISMATCH))
            }
            _ if own.is_some() => Err(forbidden(
                a,
                object,
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Write;
    use super::*;
    use crate::authorization::testing::Memory;
    use serde_json::json;

    #[tokio::test(start_paused = true)]
    async fn pods_take_from_their_class() {
        let class = |name: &str, mut rest: Value| {
            rest["metadata"] = json!({"name": name});
            ("node.k8s.io", "runtimeclasses", rest)
        };
        let toleration = json!({"key": "k", "operator": "Exists"});
        let reader = Memory::with(&[
            class("plain", json!({"handler": "h"})),
            class("heavy", json!({"overhead": {"podFixed": {"cpu": "100m"}}})),
            class(
                "placed",
                json!({"scheduling": {"nodeSelector": {"a": "1"}, "tolerations": [toleration]}}),
            ),
        ]);
        let plugin = RuntimeClass::new(Lookup { reader, live: None });
        let with = |class: &str, mut spec: Value| {
            spec["runtimeClassName"] = class.into();
            spec
        };
        let cases = [
            (json!({}), Ok(json!({}))),
            (
                json!({"overhead": {"cpu": "1"}}),
                Err(
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                ),
            ),
            (with("none", json!({})), Err("pod rejected: RuntimeClass \"none\" not found")),
            (with("plain", json!({})), Ok(with("plain", json!({})))),
            (with("heavy", json!({})), Ok(with("heavy", json!({"overhead": {"cpu": "100m"}})))),
            (
                with("heavy", json!({"overhead": {"cpu": "0.1"}})),
                Ok(with("heavy", json!({"overhead": {"cpu": "100m"}}))),
            ),
            (with("heavy", json!({"overhead": {"cpu": "1"}})), Err(MISMATCH)),
            (
                with("placed", json!({"nodeSelector": {"b": "2"}})),
                Ok(with(
                    "placed",
                    json!({"nodeSelector": {"a": "1", "b": "2"}, "tolerations": [toleration]}),
                )),
            ),
            (
                with("placed", json!({"nodeSelector": {"a": "2"}})),
                Err(
                    "conflict: runtimeClass.scheduling.nodeSelector[a] = 1; pod.spec.nodeSelector[a] = 2",
                ),
            ),
        ];
        for (spec, want) in cases {
            let write = Write {
                object: json!({"metadata": {"name": "p"}, "spec": spec}),
                ..Write::default()
            };
            let got = write.run(&plugin).await.map(|(pod, _)| pod["spec"].clone());
            assert_eq!(
                got,
                want.map_err(|reason| format!("pods \"p\" is forbidden: {reason}")),
                "{spec}"
            );
        }
    }
}
