//! JSON merge patch, RFC 7386 (`application/merge-patch+json`).

use super::PatchError;
use crate::{Map, Value};

/// Reads a patch. Only an object can be one.
pub fn parse(patch: &[u8]) -> Result<Value, PatchError> {
    let malformed = |text: String| PatchError::Malformed(format!("error decoding patch: {text}"));
    let patch: Value = serde_json::from_slice(patch).map_err(|e| malformed(e.to_string()))?;
    match patch {
        Value::Object(_) => Ok(patch),
        Value::Null => Err(PatchError::Malformed("Invalid JSON Patch".to_owned())),
        other => Err(malformed(format!(
            "json: cannot unmarshal {} into Go value of type map[string]interface {{}}",
            go_kind(&other)
        ))),
    }
}

/// What Go's decoder calls a JSON value.
pub(super) fn go_kind(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Merges the patch into the object.
pub fn apply(object: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *object = patch.clone();
        return;
    };
    if let Value::Object(fields) = object {
        merge(fields, changes);
    } else {
        *object = without_nulls(patch);
    }
}

fn merge(fields: &mut Map, changes: &Map) {
    for (key, change) in changes {
        if change.is_null() {
            fields.remove(key);
            continue;
        }
        match fields.get_mut(key).filter(|v| !v.is_null()) {
            Some(Value::Object(inner)) => match change {
                Value::Object(changes) => merge(inner, changes),
                other => drop(fields.insert(key.clone(), other.clone())),
            },
            _ => drop(fields.insert(key.clone(), without_nulls(change))),
        }
    }
}

/// Nulls of maps mean absence in something new; nulls of lists are values.
fn without_nulls(v: &Value) -> Value {
    match v {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), without_nulls(v)))
            .collect::<Map>()
            .into(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges() {
        // The examples of RFC 7386, appendix A, for objects.
        for (mut object, patch, want) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
            (json!({"a": 1}), json!({"a": {"b": null, "c": 2}}), json!({"a": {"c": 2}})),
        ] {
            apply(&mut object, &patch);
            assert_eq!(object, want, "{patch}");
        }
    }

    #[test]
    fn refused_patches() {
        for (patch, want) in [
            ("null", "Invalid JSON Patch"),
            (
                "[]",
                "error decoding patch: json: cannot unmarshal array into Go value of type \
                 map[string]interface {}",
            ),
        ] {
            assert_eq!(parse(patch.as_bytes()), Err(PatchError::Malformed(want.to_owned())));
        }
        assert!(parse(b"{").is_err());
    }
}
