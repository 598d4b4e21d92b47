//! What decoding does to a custom resource: unknown fields are pruned and named, metadata is made
//! what it must be, nulls that mean nothing go, and defaults are set (upstream:
//! `pkg/apiserver/schema/{pruning,objectmeta,defaulting}`).

use apimachinery::codec::{DecodeError, FieldValidation, Schema as Message, json};
use apimachinery::field::{FieldError, Path};
use apimachinery::schema::Registry;
use apimachinery::{Map, Value};

use super::schema::Schema;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

fn is_meta(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// Removes what the schema does not know from the object at its root. Gives the paths of what was
/// removed, in order.
pub fn prune(object: &mut Value, schema: &Schema) -> Vec<String> {
    let mut pruner = Pruner { path: Vec::new(), unknown: Vec::new() };
    pruner.prune(object, Some(schema), true);
    pruner.unknown.sort();
    pruner.unknown
}

/// Whether pruning would leave a value as it is.
pub fn is_pruned(value: &Value, schema: &Schema, resource: bool) -> bool {
    let mut pruned = value.clone();
    Pruner { path: Vec::new(), unknown: Vec::new() }.prune(&mut pruned, Some(schema), resource);
    pruned == *value
}

struct Pruner {
    path: Vec<String>,
    unknown: Vec<String>,
}

impl Pruner {
    fn key(&mut self, name: &str) {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.path.push(format!("{dot}{name}"));
    }

    fn record(&mut self, name: &str) {
        self.key(name);
        self.unknown.push(self.path.concat());
        self.path.pop();
    }

    /// `resource`: the value is a whole resource, whatever the schema says.
    fn prune(&mut self, value: &mut Value, schema: Option<&Schema>, resource: bool) {
        if let Some(schema) = schema.filter(|s| s.preserve) {
            return self.preserved(value, Some(schema), resource);
        }
        match value {
            Value::Object(map) => {
                let Some(schema) = schema else {
                    map.keys().for_each(|name| self.record(name));
                    map.clear();
                    return;
                };
                let embedded = schema.embedded || resource;
                map.retain(|name, child| {
                    if embedded && is_meta(name) {
                        return true;
                    }
                    if let Some(property) = schema.properties.get(name) {
                        self.key(name);
                        self.prune(child, Some(property), false);
                        self.path.pop();
                    } else if let Some(additional) = &schema.additional {
                        self.key(name);
                        self.prune(child, additional.schema.as_deref(), false);
                        self.path.pop();
                    } else {
                        if !is_meta(name) || !self.path.is_empty() {
                            self.record(name);
                        }
                        return false;
                    }
                    true
                });
            }
            Value::Array(items) => {
                let inner = schema.and_then(|s| s.items.as_deref());
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{i}]"));
                    self.prune(item, inner, false);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }

    /// A value whose unknown fields stay; below known ones pruning goes on.
    fn preserved(&mut self, value: &mut Value, schema: Option<&Schema>, resource: bool) {
        let Some(schema) = schema else { return };
        match value {
            Value::Object(map) => {
                for (name, child) in map.iter_mut() {
                    if (schema.embedded || resource) && is_meta(name) {
                        continue;
                    }
                    let known = match (schema.properties.get(name), &schema.additional) {
                        (Some(property), _) => Some(property),
                        (None, Some(additional)) => additional.schema.as_deref(),
                        (None, None) => continue,
                    };
                    self.key(name);
                    self.prune(child, known, false);
                    self.path.pop();
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    self.path.push(format!("[{i}]"));
                    self.preserved(item, schema.items.as_deref(), false);
                    self.path.pop();
                }
            }
            _ => {}
        }
    }
}

/// Removes nulls from where none may stand, unless a default is to take their place.
pub fn drop_nulls(value: &mut Value, schema: Option<&Schema>) {
    match value {
        Value::Object(map) => map.retain(|name, child| {
            let schema = schema.and_then(|s| s.entry(name));
            let meaningless =
                child.is_null() && schema.is_some_and(|s| !s.nullable && s.default.is_none());
            if !meaningless {
                drop_nulls(child, schema);
            }
            !meaningless
        }),
        Value::Array(items) => {
            let schema = schema.and_then(|s| s.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, schema));
        }
        _ => {}
    }
}

/// Sets the defaults of a schema.
pub fn default(value: &mut Value, schema: &Schema) {
    let replaceable = |v: &Value, s: &Schema| v.is_null() && !s.nullable;
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                if map.get(name).is_none_or(|v| replaceable(v, property)) {
                    map.insert(name.clone(), default.clone());
                }
            }
            for (name, child) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name) {
                    self::default(child, property);
                } else if let Some(other) = schema.entry(name) {
                    set_if_null(child, other);
                    self::default(child, other);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema.items.as_deref() else { return };
            for item in items {
                set_if_null(item, schema);
                default(item, schema);
            }
        }
        _ => {}
    }
}

fn set_if_null(value: &mut Value, schema: &Schema) {
    if value.is_null()
        && !schema.nullable
        && let Some(default) = &schema.default
    {
        *value = default.clone();
    }
}

/// What to do with metadata that does not fit its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Stored objects: fields that do not fit are dropped.
    Drop,
    Refuse,
}

/// Makes `metadata` of a map what its type allows; unknown fields are dropped and named.
fn object_meta(
    map: &mut Map,
    malformed: Malformed,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    let Some(metadata) = map.get("metadata") else { return Ok(()) };
    let registry = Registry::builtin();
    let Some(message) = registry.by_name(OBJECT_META) else { return Ok(()) };
    let schema = Message { registry, message };
    let read = |value: &Value| {
        let text = serde_json::to_vec(value).unwrap_or_default();
        json::decode(schema, &text, FieldValidation::Warn)
    };
    let mut made = match read(metadata) {
        Ok(decoded) => {
            unknown.extend(decoded.warnings.iter().filter_map(|w| field_of(w)));
            decoded.object
        }
        Err(error) if malformed == Malformed::Refuse => return Err(go_error(&error)),
        Err(_) => {
            let mut kept = Map::new();
            for (name, value) in metadata.as_object().into_iter().flatten() {
                let mut one = Map::new();
                one.insert(name.clone(), value.clone());
                if let Ok(decoded) = read(&Value::Object(one))
                    && let Value::Object(decoded) = decoded.object
                {
                    kept.extend(decoded.into_iter().filter(|(k, _)| k == name));
                }
            }
            Value::Object(kept)
        }
    };
    if let Value::Object(made) = &mut made
        && made.get("creationTimestamp").is_some_and(Value::is_null)
    {
        made.remove("creationTimestamp");
    }
    map.insert("metadata".to_owned(), made);
    Ok(())
}

/// The path of `unknown field "a.b"`.
fn field_of(warning: &str) -> Option<String> {
    let path = warning.strip_prefix("unknown field ")?;
    Some(path.trim_matches('"').to_owned())
}

/// What upstream's plain decoder says, which knows nothing of the API's types.
fn go_error(error: &DecodeError) -> String {
    error.to_string()
}

/// Makes the metadata of the object at the root what it must be. Gives the names of unknown
/// fields.
///
/// # Errors
/// Metadata does not fit its type, and is to be refused.
pub fn root_metadata(object: &mut Value, malformed: Malformed) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    if let Value::Object(map) = object {
        object_meta(map, malformed, &mut unknown)?;
    }
    Ok(unknown.into_iter().map(|name| format!("metadata.{name}")).collect())
}

/// Does the same with the resources that stand within others.
///
/// # Errors
/// As [`root_metadata`], and for an apiVersion or kind that is no text.
pub fn embedded(
    value: &mut Value,
    schema: &Schema,
    path: &Path,
    malformed: Malformed,
    unknown: &mut Vec<String>,
) -> Result<(), FieldError> {
    match value {
        Value::Object(map) => {
            if schema.embedded {
                for name in ["apiVersion", "kind"] {
                    if let Some(value) = map.get(name).filter(|v| !v.is_string()) {
                        if malformed == Malformed::Refuse {
                            let at = path.child(name);
                            return Err(FieldError::invalid(
                                &at,
                                value.clone(),
                                "must be a string",
                            ));
                        }
                        map.remove(name);
                    }
                }
                let mut names = Vec::new();
                if let Err(error) = object_meta(map, malformed, &mut names) {
                    let value = map.get("metadata").cloned().unwrap_or_default();
                    return Err(FieldError::invalid(&path.child("metadata"), value, error));
                }
                let at = path.child("metadata");
                unknown.extend(names.into_iter().map(|name| format!("{at}.{name}")));
            }
            for (name, child) in map.iter_mut() {
                if let Some(property) = schema.properties.get(name) {
                    embedded(child, property, &path.child(name), malformed, unknown)?;
                } else if let Some(other) = schema.entry(name) {
                    embedded(child, other, &path.key(name), malformed, unknown)?;
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema.items.as_deref() else { return Ok(()) };
            for (i, item) in items.iter_mut().enumerate() {
                embedded(item, schema, &path.index(i), malformed, unknown)?;
            }
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(props: Value) -> Schema {
        Schema::read(&props).expect("a schema")
    }

    #[test]
    fn unknown_fields_are_pruned_and_named() {
        let spec = json!({"type": "object", "properties": {
            "known": {"type": "string"},
            "map": {"type": "object", "additionalProperties": {
                "type": "object", "properties": {"a": {"type": "integer"}}}},
            "list": {"type": "array", "items": {
                "type": "object", "properties": {"a": {"type": "integer"}}}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "closed": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
            "inner": {"type": "object", "x-kubernetes-embedded-resource": true,
                "properties": {"spec": {"type": "object"}}},
            "free": {"type": "object", "additionalProperties": true},
        }});
        let schema = schema(json!({"type": "object", "properties": {"spec": spec}}));
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"},
            "other": 1, "spec": {
                "known": "x", "unknown": {"a": 1},
                "map": {"k": {"a": 1, "b": 2}}, "list": [{"a": 1}, {"b": 2}],
                "open": {"any": {"thing": 1}, "closed": {"a": 1, "b": 2}},
                "inner": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"},
                    "spec": {"a": 1}, "status": {}},
                "free": {"a": {"b": 1}, "c": 2},
        }});
        let unknown = prune(&mut object, &schema);
        assert_eq!(
            unknown,
            [
                "other",
                "spec.free.a.b",
                "spec.inner.spec.a",
                "spec.inner.status",
                "spec.list[1].b",
                "spec.map.k.b",
                "spec.open.closed.b",
                "spec.unknown"
            ]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "a"}, "spec": {
                "known": "x", "map": {"k": {"a": 1}}, "list": [{"a": 1}, {}],
                "open": {"any": {"thing": 1}, "closed": {"a": 1}},
                "inner": {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x"}, "spec": {}},
                "free": {"a": {}, "c": 2},
            }})
        );
    }

    #[test]
    fn defaults_are_set_where_nothing_is() {
        let schema = schema(json!({"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "n": {"type": "string", "nullable": true, "default": "x"},
            "gone": {"type": "string"},
            "m": {"type": "object", "default": {}, "properties": {
                "b": {"type": "integer", "default": 5}}},
            "l": {"type": "array", "items": {"type": "object", "properties": {
                "c": {"type": "boolean", "default": true}}}},
            "am": {"type": "object", "additionalProperties": {"type": "integer", "default": 7}},
        }}));
        let cases = [
            (json!({}), json!({"a": "x", "n": "x", "m": {"b": 5}})),
            (
                json!({"a": null, "n": null, "gone": null, "m": {"b": 1}, "l": [{}, {"c": false}]}),
                json!({"a": "x", "n": null, "m": {"b": 1}, "l": [{"c": true}, {"c": false}]}),
            ),
            (
                json!({"am": {"k": null}, "a": "y", "n": "z", "m": {}}),
                json!({"am": {"k": 7}, "a": "y", "n": "z", "m": {"b": 5}}),
            ),
        ];
        for (mut object, want) in cases {
            drop_nulls(&mut object, Some(&schema));
            default(&mut object, &schema);
            assert_eq!(object, want);
        }
    }

    #[test]
    fn metadata_is_made_to_fit() {
        let object = json!({"metadata": {"name": "a", "labels": {"b": 1}, "what": 1,
            "creationTimestamp": null}});
        let mut stored = object.clone();
        assert_eq!(root_metadata(&mut stored, Malformed::Drop), Ok(Vec::new()));
        assert_eq!(stored, json!({"metadata": {"name": "a"}}));
        assert!(root_metadata(&mut object.clone(), Malformed::Refuse).is_err());
        let mut sent = json!({"metadata": {"name": "a", "what": 1}});
        let unknown = root_metadata(&mut sent, Malformed::Refuse);
        assert_eq!(unknown, Ok(vec!["metadata.what".to_owned()]));
    }
}
