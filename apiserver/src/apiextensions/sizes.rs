//! How large the values of a schema may become, and how small (upstream: apiserver
//! `pkg/cel/common/schemas.go`).

use apimachinery::Value;

use super::schema::Schema;
use crate::cel::Extent;

/// Bytes of a request, at most.
const REQUEST: u64 = 3 << 20;

fn declared(most: Option<i64>) -> Option<u64> {
    most.map(|n| u64::try_from(n).unwrap_or(0))
}

/// How large the values of a schema may become: as large as it says, or as a request lets them.
pub fn extent(schema: &Schema) -> Extent {
    let nested = schema.additional.as_ref().and_then(|a| a.schema.as_deref());
    let boxed = |inner: &Schema| Some(Box::new(extent(inner)));
    if schema.int_or_string {
        return Extent { most: 1, ..Extent::default() };
    }
    match schema.ty.as_str() {
        "string" => Extent { most: text(schema), ..Extent::default() },
        "array" => Extent {
            most: elements(schema).unwrap_or_else(|| {
                let least = schema.items.as_deref().map_or(1, least);
                (REQUEST - 2) / (least + 1)
            }),
            element: schema.items.as_deref().and_then(boxed),
            ..Extent::default()
        },
        "object" if nested.is_some() => Extent {
            most: elements(schema).unwrap_or_else(|| (REQUEST - 2) / (nested.map_or(1, least) + 6)),
            element: nested.and_then(boxed),
            keyed: true,
            ..Extent::default()
        },
        _ => {
            let fields = schema.properties.iter();
            let fields = fields.map(|(name, inner)| (name.clone(), extent(inner))).collect();
            Extent { most: 1, fields, ..Extent::default() }
        }
    }
}

fn text(schema: &Schema) -> u64 {
    if let Some(allowed) = &schema.one_of_values {
        let longest = allowed.iter().filter_map(Value::as_str).map(str::len).max();
        return u64::try_from(longest.unwrap_or(0)).unwrap_or(u64::MAX);
    }
    match schema.format.as_str() {
        "duration" | "date-time" => 32,
        "date" => 12,
        // A character may have four bytes.
        _ => declared(schema.max_length).map_or(REQUEST - 2, |n| n.saturating_mul(4)),
    }
}

/// How many elements a schema of lists or maps allows; `None`: it does not say.
pub fn elements(schema: &Schema) -> Option<u64> {
    match schema.ty.as_str() {
        "array" => declared(schema.max_items),
        "object" if schema.properties.is_empty() => declared(schema.max_properties),
        _ => Some(1),
    }
}

/// How many values of a schema a request can hold.
pub fn in_a_request(schema: &Schema) -> u64 {
    REQUEST / least(schema).max(1)
}

/// Bytes of the smallest value in JSON.
fn least(schema: &Schema) -> u64 {
    if schema.int_or_string {
        return 1;
    }
    match (schema.ty.as_str(), schema.format.as_str()) {
        ("boolean", _) => 4,
        ("integer" | "number", _) => 1,
        ("string", "date") => 12,
        ("string", "date-time") => 21,
        ("string", "duration") => 3,
        ("object", _) => {
            let required = schema
                .properties
                .iter()
                .filter(|(name, inner)| schema.required.contains(name) && inner.default.is_none());
            required.fold(2, |sum, (name, inner)| {
                sum + u64::try_from(name.len()).unwrap_or(0) + least(inner) + 4
            })
        }
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_are_declared_or_bounded_by_requests() {
        let schema = |props: Value| Schema::read(&props).expect("a schema");
        for (props, most) in [
            (json!({"type": "string", "maxLength": 5}), 20),
            (json!({"type": "string"}), 3_145_726),
            (json!({"type": "string", "enum": ["a", "abc"]}), 3),
            (json!({"type": "string", "format": "date"}), 12),
            (json!({"type": "array", "maxItems": 7, "items": {"type": "string"}}), 7),
            (json!({"type": "array", "items": {"type": "string"}}), 1_048_575),
            (json!({"type": "object", "additionalProperties": {"type": "integer"}}), 449_389),
            (json!({"type": "integer"}), 1),
        ] {
            assert_eq!(extent(&schema(props.clone())).most, most, "{props}");
        }
        let object = json!({"type": "object", "required": ["ab"], "properties": {
            "ab": {"type": "boolean"}, "c": {"type": "string"}}});
        assert_eq!(least(&schema(object)), 2 + 2 + 4 + 4);
    }
}
