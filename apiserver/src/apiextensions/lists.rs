//! What holds within custom resources beside their schema: items of sets and maps are there once
//! (upstream: `pkg/apiserver/schema/listtype`), and resources within resources have the metadata
//! of resources (`objectmeta`).

use std::collections::HashMap;

use apimachinery::codec::{FieldValidation, Schema as Message, json};
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::schema::Registry;
use apimachinery::{Map, Value, meta, names, object};

use super::schema::Schema;

/// Items that are in a set or map of the object more than once.
pub fn duplicates(value: &Value, schema: &Schema, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Array(items) => {
            match schema.list_type.as_deref() {
                Some("set") => {
                    let again = repeated(items.iter().map(Value::to_string));
                    errors.extend(
                        again
                            .into_iter()
                            .map(|i| FieldError::duplicate(&path.index(i), items[i].clone())),
                    );
                }
                Some("map") => keyed(items, schema, path, errors),
                _ => {}
            }
            if let Some(inner) = schema.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    duplicates(item, inner, &path.index(i), errors);
                }
            }
        }
        Value::Object(map) => {
            for (name, child) in map {
                if let Some(property) = schema.properties.get(name) {
                    duplicates(child, property, &path.child(name), errors);
                } else if let Some(other) = schema.entry(name) {
                    duplicates(child, other, &path.key(name), errors);
                }
            }
        }
        _ => {}
    }
}

/// Where texts are seen for the second time.
fn repeated(texts: impl Iterator<Item = String>) -> Vec<usize> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut again = Vec::new();
    for (i, text) in texts.enumerate() {
        let times = seen.entry(text).or_default();
        *times += 1;
        if *times == 2 {
            again.push(i);
        }
    }
    again
}

fn keyed(items: &[Value], schema: &Schema, path: &Path, errors: &mut ErrorList) {
    let odd = items.iter().position(|item| !item.is_object() && !item.is_null());
    if let Some(i) = odd {
        let text = "must be an object for an array of list-type map";
        errors.push(FieldError::invalid(&path.index(i), items[i].clone(), text));
        return;
    }
    let keys: Vec<Value> = items
        .iter()
        .map(|item| {
            let pairs = schema
                .list_keys
                .iter()
                .filter_map(|key| item.get(key).map(|value| (key.clone(), value.clone())));
            Value::Object(pairs.collect::<Map>())
        })
        .collect();
    for i in repeated(keys.iter().map(Value::to_string)) {
        errors.push(FieldError::duplicate(&path.index(i), keys[i].clone()));
    }
}

/// Whether resources within the value look like resources.
pub fn embedded(value: &Value, schema: &Schema, path: &Path, errors: &mut ErrorList) {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                resource(map, path, errors);
            }
            for (name, child) in map {
                if let Some(property) = schema.properties.get(name) {
                    embedded(child, property, &path.child(name), errors);
                } else if let Some(other) = schema.entry(name) {
                    embedded(child, other, &path.key(name), errors);
                }
            }
        }
        Value::Array(items) => {
            if let Some(inner) = schema.items.as_deref() {
                for (i, item) in items.iter().enumerate() {
                    embedded(item, inner, &path.index(i), errors);
                }
            }
        }
        _ => {}
    }
}

fn resource(map: &Map, path: &Path, errors: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let at = path.child(name);
        match map.get(name) {
            None => errors.push(FieldError::required(&at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid(&at, "", "must not be empty"));
            }
            Some(Value::String(text)) if name == "kind" => {
                let messages = names::dns1035_label(&text.to_lowercase());
                if !messages.is_empty() {
                    let text_of = format!(
                        "may have mixed case, but should otherwise match: {}",
                        messages.join(",")
                    );
                    errors.push(FieldError::invalid(&at, text.as_str(), text_of));
                }
            }
            Some(Value::String(text)) => {
                if text.matches('/').count() > 1 {
                    let detail = format!("unexpected GroupVersion string: {text}");
                    errors.push(FieldError::invalid(&at, text.as_str(), detail));
                }
            }
            Some(other) => errors.push(FieldError::invalid(&at, other.clone(), "must be a string")),
        }
    }
    let Some(metadata) = map.get("metadata") else { return };
    let at = path.child("metadata");
    let registry = Registry::builtin();
    let name = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
    let Some(message) = registry.by_name(name) else { return };
    let text = serde_json::to_vec(metadata).unwrap_or_default();
    match json::decode(Message { registry, message }, &text, FieldValidation::Ignore) {
        Err(error) => errors.push(FieldError::invalid(&at, metadata.clone(), error.to_string())),
        Ok(decoded) => {
            let mut holder =
                Value::Object(Map::from_iter([("metadata".to_owned(), decoded.object)]));
            if object::name(&holder).is_empty() {
                object::set_name(&mut holder, "fakename");
            }
            let namespaced = !object::namespace(&holder).is_empty();
            let rule = names::name_is_path_segment;
            errors.extend(meta::validate_object_meta(&holder, namespaced, rule, &at));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sets_and_maps_hold_an_item_once() {
        let schema = Schema::read(&json!({"type": "object", "properties": {
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "m": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}}));
        let schema = schema.expect("a schema");
        let value = json!({"s": ["a", "b", "a", "a"], "m": [{"k": "x"}, {"k": "y"}, {"k": "x"}]});
        let mut errors = ErrorList::new();
        duplicates(&value, &schema, &Path::new(""), &mut errors);
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts, [r#"m[2]: Duplicate value: {"k":"x"}"#, r#"s[2]: Duplicate value: "a""#]);
    }

    #[test]
    fn resources_within_resources_look_like_resources() {
        let schema = Schema::read(&json!({"type": "object", "properties": {"r": {"type": "object",
            "x-kubernetes-embedded-resource": true,
            "x-kubernetes-preserve-unknown-fields": true}}}));
        let schema = schema.expect("a schema");
        let value = json!({"r": {"kind": "Bad!", "metadata": {"name": "a/b"}}});
        let mut errors = ErrorList::new();
        embedded(&value, &schema, &Path::new(""), &mut errors);
        let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["r.apiVersion", "r.kind", "r.metadata.name"]);
    }
}
