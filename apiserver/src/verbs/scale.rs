//! The `scale` subresource: a Scale over the replicas of an object.

use std::sync::Arc;

use apimachinery::codec::{FieldValidation, Schema};
use apimachinery::field::{FieldError, Path};
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::Registry;
use apimachinery::selector::LabelSelector;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::Response;
use serde_json::json;

use super::input::{self, Input};
use super::patch::{Form, Patch, PatchType};
use super::update::Update;
use super::{Call, RequestBody, write};
use crate::negotiate::Offer;
use crate::registry::Action;
use crate::registry::catalog::Served;
use crate::respond::Body;

/// Attempts of a change that others overtake.
const ATTEMPTS: usize = 6;

struct Paths<'a> {
    spec_replicas: Vec<&'a str>,
    status_replicas: Vec<&'a str>,
    selector: Vec<&'a str>,
}

fn paths(served: &Served) -> Result<Paths<'_>, ApiError> {
    match served.subresource("scale").map(|s| &s.action) {
        Some(Action::Scale { spec_replicas, status_replicas, selector }) => {
            fn split(path: &str) -> Vec<&str> {
                if path.is_empty() { Vec::new() } else { path.split('.').collect() }
            }
            Ok(Paths {
                spec_replicas: split(spec_replicas),
                status_replicas: split(status_replicas),
                selector: split(selector),
            })
        }
        _ => Err(served.not_allowed("scale")),
    }
}

fn gvk() -> GroupVersionKind {
    GroupVersionKind::new("autoscaling", "v1", "Scale")
}

fn schema() -> Result<Schema<'static>, ApiError> {
    let registry = Registry::builtin();
    let message = registry.kind(&gvk());
    let message = message.ok_or_else(|| ApiError::Internal("Scale has no schema".to_owned()))?;
    Ok(Schema { registry, message })
}

/// The Scale of an object.
fn scale_of(paths: &Paths<'_>, from: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object::get(from, &["metadata", field]) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    match object::int_at(from, &paths.spec_replicas).unwrap_or(0) {
        0 => {}
        n => spec["replicas"] = n.into(),
    }
    let mut status = json!({"replicas": object::int_at(from, &paths.status_replicas).unwrap_or(0)});
    let found = if paths.selector.is_empty() { None } else { object::get(from, &paths.selector) };
    let selector = match found {
        Some(Value::String(text)) => text.clone(),
        // ReplicationControllers select by a plain map.
        Some(Value::Object(map)) if map.values().all(Value::is_string) => {
            let terms: Vec<String> =
                map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or(""))).collect();
            terms.join(",")
        }
        selector => match LabelSelector::from_json(selector) {
            Ok(Some(selector)) => selector.to_string(),
            _ => String::new(),
        },
    };
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": spec, "status": status})
}

pub(super) async fn get(call: Call, served: Arc<Served>) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Plain)?;
    let paths = paths(&served)?;
    let key = served.key(call.namespace(), call.name());
    let Some(stored) = write::load(&call.api, &served, &key).await? else {
        return Err(served.not_found(call.name()));
    };
    if served.row.custom.is_some() && object::get(&stored.object, &paths.spec_replicas).is_none() {
        let path = paths.spec_replicas.join(".");
        let text = format!("the spec replicas field \".{path}\" does not exist");
        return Err(ApiError::Internal(text));
    }
    call.send_object(200, &wanted, &scale_of(&paths, &stored.object)).await
}

pub(super) async fn update(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let input = Input::read(&call, "UpdateOptions", false)?;
    let data = input::read_body(body).await?;
    let content_type = call.header("content-type");
    let read = input::decode(content_type, &data, schema()?, (&gvk(), &[]), input.validation)?;
    super::update::check_name(&call, &read.object)?;
    let warnings = read.warnings;
    let scale = read.object;
    run(call, served, input, warnings, |_, _| Ok(scale.clone())).await
}

pub(super) async fn patch(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let patch_type = PatchType::read(call.header("content-type"), false)?;
    let is_apply = patch_type == PatchType::Apply;
    let input = Input::read(&call, "PatchOptions", is_apply)?;
    let data = input::read_body(body).await?;
    // An applied Scale says no more than a merged one: it has one field.
    let (patch_type, data) = if is_apply {
        let untyped = apimachinery::codec::yaml::decode_untyped(&data, FieldValidation::Ignore)
            .map_err(|e| ApiError::BadRequest(format!("error decoding YAML: {e}")))?;
        let text = serde_json::to_vec(&json!({"spec": untyped.object.get("spec")}));
        let text = text.map_err(|e| ApiError::Internal(e.to_string()))?;
        (PatchType::Merge, text.into())
    } else {
        (patch_type, data)
    };
    let schema = schema()?;
    let form = Form::Compiled(schema);
    let patch = Patch::parse(patch_type, data, form, input.validation)?;
    let validation = input.validation;
    run(call, served, input, Vec::new(), |old, said| patch.change(old, form, validation, said))
        .await
}

async fn run(
    call: Call,
    served: Arc<Served>,
    input: Input,
    said: Vec<String>,
    change: impl Fn(&Value, &mut Vec<String>) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Plain)?;
    let mut warnings = call.warnings.collect();
    warnings.extend(said);
    let paths = paths(&served)?;
    let kind = gvk();
    let strategy = &*served.row.strategy;
    let update = Update {
        call: &call,
        served: &served,
        input: &input,
        strategy,
        subresource: "scale",
        reset: strategy.reset_fields(),
        apply: false,
        admitted_as: Some(&kind),
    };
    let scaled = |old: Option<&Value>, said: &mut Vec<String>| {
        let Some(old) = old else { return Err(served.not_found(call.name())) };
        let scale = change(&scale_of(&paths, old), said)?;
        apply_scale(&paths, old, &scale)
    };
    let (stored, _) = update.run(ATTEMPTS, &mut warnings, scaled).await?;
    let stored = served.decode(&stored).map_err(|e| super::unreadable(&e))?;
    call.send_object(200, &wanted, &scale_of(&paths, &stored)).await
}

/// The object with the replicas of a Scale.
fn apply_scale(paths: &Paths<'_>, old: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas = object::int_at(scale, &["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let path = Path::new("spec").child("replicas");
        let text = "must be greater than or equal to 0";
        return Err(ApiError::Invalid {
            group: "autoscaling".to_owned(),
            kind: "Scale".to_owned(),
            name: object::name(scale).to_owned(),
            errors: vec![FieldError::invalid(&path, replicas, text)],
        });
    }
    let mut new = old.clone();
    object::set(&mut new, &paths.spec_replicas, replicas);
    let (uid, version) = (object::uid(scale), object::resource_version(scale));
    if !uid.is_empty() {
        object::set_uid(&mut new, uid);
    }
    // Without a resourceVersion the scale is unconditional.
    object::set_resource_version(&mut new, version);
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_and_sets_replicas() {
        let paths = Paths {
            spec_replicas: vec!["spec", "replicas"],
            status_replicas: vec!["status", "replicas"],
            selector: vec!["spec", "selector"],
        };
        let object = json!({"metadata": {"name": "a", "resourceVersion": "3", "labels": {}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"a": "b"}}}, "status": {"replicas": 1}});
        let scale = scale_of(&paths, &object);
        assert_eq!(scale["metadata"], json!({"name": "a", "resourceVersion": "3"}));
        assert_eq!(scale["spec"], json!({"replicas": 2}));
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=b"}));
        let new = apply_scale(&paths, &object, &json!({"spec": {"replicas": 5}})).expect("scaled");
        assert_eq!(new["spec"]["replicas"], 5);
        assert!(apply_scale(&paths, &object, &json!({"spec": {"replicas": -1}})).is_err());
    }
}
